//! What a module asks of its own socket: sign, encrypt, decrypt, roots (module-runtime.md 3).
//!
//! By the time a handler here runs, the caller has been attested as the module in the path.

use contract::api::certificate;
use contract::api::key::{
    self, AeadParameters, CipherAlgorithm, CreateKey, CreateKeyRequest, KeyHandle, SignAlgorithm,
    SignParameters, Usage,
};
use contract::api::management::ModuleList;
use contract::api::workload::{
    self as api, DecryptResponse, EncryptResponse, SignResponse, TrustBundle,
};
use contract::bytes::{Bytes, Secret};
use contract::endpoint::{Ask, Empty};
use contract::names::{CertId, Generation, KeyId, ModuleName};
use contract::refusal::{Class, Refusal};
use local::client::CallError;

use crate::gate::{Member, WorkloadSocket};
use crate::identity::upstream;
use crate::module::{Identity, Module};
use crate::runtime::Runtime;
use std::sync::Arc;

/// The device-wide encryption key of the compatible form; ours derives one per module from it.
const ENCRYPTION_KEY: &str = "iotedge_master_encryption_id";
/// First byte of what we encrypt; 1 and 2 are the compatible layouts, which are read only.
const OURS: u8 = 3;
/// Bytes of a nonce.
const NONCE: usize = 12;

/// Sign with the module's primary key.
///
/// # Errors
/// 403 for another generation; 500 with the words of the service that failed.
pub fn sign(
    socket: &WorkloadSocket,
    who: &Member,
    ask: Ask<api::Sign>,
) -> Result<SignResponse, Refusal> {
    let digest = with_identity(socket, who, &ask.target.1, |runtime, identity| {
        hmac(runtime, &identity.key, &ask.body.data)
    })?;
    Ok(SignResponse { digest })
}

/// Encrypt for this module and this generation (R20): a key of its own, and a nonce made from the
/// input, so that a repeated vector never repeats a key stream (A43).
///
/// # Errors
/// As [`sign`].
pub fn encrypt(
    socket: &WorkloadSocket,
    who: &Member,
    ask: Ask<api::Encrypt>,
) -> Result<EncryptResponse, Refusal> {
    let (name, generation) = &ask.target;
    let body = ask.body;
    let blob = with_identity(socket, who, generation, |runtime, identity| {
        let key = module_key(runtime, identity, name)?;
        let context = frame(&[
            &body.initialization_vector.0,
            b"nonce",
            body.plaintext.expose(),
        ]);
        let mut nonce = hmac(runtime, &key, &Bytes(context))?.0;
        nonce.truncate(NONCE);
        let request = key::EncryptRequest {
            key_handle: key,
            algorithm: CipherAlgorithm::Aead,
            parameters: Some(AeadParameters {
                iv: Bytes(nonce.clone()),
                aad: Bytes(frame(&[&body.initialization_vector.0, b"data"])),
            }),
            plaintext: Secret::new(body.plaintext.expose().to_vec()),
        };
        let answer = runtime.keys.call::<key::Encrypt>(&(), &request)?;
        let mut blob = vec![OURS];
        blob.extend(nonce);
        blob.extend(answer.ciphertext.0);
        Ok(blob)
    })?;
    Ok(EncryptResponse {
        ciphertext: Bytes(blob),
    })
}

/// Decrypt what was encrypted for this module and generation, by us or in the compatible form.
///
/// # Errors
/// As [`sign`]; 500 for what does not decrypt, without a reason (A45).
pub fn decrypt(
    socket: &WorkloadSocket,
    who: &Member,
    ask: Ask<api::Decrypt>,
) -> Result<DecryptResponse, Refusal> {
    let (name, generation) = &ask.target;
    let vector = &ask.body.initialization_vector.0;
    let blob = &ask.body.ciphertext.0;
    let plaintext = with_identity(socket, who, generation, |runtime, identity| {
        let (key_handle, iv, aad, ciphertext) = match blob.first() {
            Some(&OURS) if blob.len() > NONCE => (
                module_key(runtime, identity, name)?,
                blob[1..=NONCE].to_vec(),
                frame(&[vector, b"data"]),
                blob[NONCE + 1..].to_vec(),
            ),
            _ => {
                let aad = format!("{name}{generation}").into_bytes();
                (base_key(runtime)?, vector.clone(), aad, blob.clone())
            }
        };
        let request = key::DecryptRequest {
            key_handle,
            algorithm: CipherAlgorithm::Aead,
            parameters: Some(AeadParameters {
                iv: Bytes(iv),
                aad: Bytes(aad),
            }),
            ciphertext: Bytes(ciphertext),
        };
        Ok(runtime.keys.call::<key::Decrypt>(&(), &request)?.plaintext)
    })?;
    Ok(DecryptResponse { plaintext })
}

/// All modules; labels and options of others are not shown (R48).
///
/// # Errors
/// None.
pub fn list(
    socket: &WorkloadSocket,
    _: &Member,
    _: Ask<api::ListModules>,
) -> Result<ModuleList, Refusal> {
    let mut modules: Vec<_> = socket
        .runtime
        .modules()
        .iter()
        .map(|one| one.details())
        .collect();
    for module in &mut modules {
        module.config.settings.create_options = None;
    }
    Ok(ModuleList { modules })
}

/// Roots that modules trust.
///
/// # Errors
/// 404 when there are none.
pub fn trust_bundle(
    socket: &WorkloadSocket,
    _: &Member,
    _: Ask<api::ReadTrustBundle>,
) -> Result<TrustBundle, Refusal> {
    let id = &socket.runtime.config.trust_bundle_cert;
    match bundle(&socket.runtime, id) {
        Ok(certificate) => Ok(TrustBundle { certificate }),
        Err(error) => {
            let mut refusal = Refusal::new(
                Class::NotFound,
                format!("certificate {:?} not found", id.as_str()),
            );
            refusal.cause = Some(error.to_string());
            Err(refusal)
        }
    }
}

/// Roots that sign deployments; empty when there are none, whatever the reason.
///
/// # Errors
/// None.
pub fn manifest_trust_bundle(
    socket: &WorkloadSocket,
    _: &Member,
    _: Ask<api::ReadManifestTrustBundle>,
) -> Result<TrustBundle, Refusal> {
    let id = &socket.runtime.config.manifest_trust_bundle_cert;
    Ok(TrustBundle {
        certificate: bundle(&socket.runtime, id).unwrap_or_default(),
    })
}

fn bundle(runtime: &Runtime, id: &CertId) -> Result<String, CallError> {
    Ok(runtime.certs.call::<certificate::Read>(id, &Empty)?.pem)
}

/// Runs something with the module's identity. The generation must be the present one. A kept
/// identity that does not fit, or whose handle `keyd` no longer takes, is asked for once more: the
/// module may have been created anew.
fn with_identity<T>(
    socket: &WorkloadSocket,
    who: &Member,
    generation: &Generation,
    run: impl Fn(&Runtime, &Identity) -> Result<T, CallError>,
) -> Result<T, Refusal> {
    let (runtime, module): (&Runtime, &Module) = (&socket.runtime, &who.module);
    let _turn = module.turn();
    let kept = module.identity().is_some();
    let attempt = || -> Result<Result<T, CallError>, Refusal> {
        let identity: Arc<Identity> = runtime.identity(module)?;
        if identity.generation != *generation {
            return Err(Refusal::forbidden("the generation id is not the module's"));
        }
        Ok(run(runtime, &identity))
    };
    let first = attempt();
    let stale = matches!(&first, Err(refusal) if refusal.class == Class::Forbidden)
        || matches!(&first, Ok(Err(CallError::Refused { status: 400, .. })));
    let last = if kept && stale && module.may_renew(runtime.clock.now().monotonic_ms) {
        module.forget_identity();
        attempt()
    } else {
        first
    };
    last?.map_err(|error| upstream(&error))
}

fn hmac(runtime: &Runtime, key: &KeyHandle, data: &Bytes) -> Result<Bytes, CallError> {
    let request = key::SignRequest {
        key_handle: key.clone(),
        algorithm: SignAlgorithm::HmacSha256,
        parameters: SignParameters::Message(data.clone()),
    };
    Ok(runtime.keys.call::<key::Sign>(&(), &request)?.signature)
}

fn base_key(runtime: &Runtime) -> Result<KeyHandle, CallError> {
    let request = CreateKeyRequest {
        key_id: constant(ENCRYPTION_KEY),
        usage: Usage {
            sign: true,
            encrypt: true,
        },
        key_bytes: None,
    };
    Ok(runtime.keys.call::<CreateKey>(&(), &request)?.key_handle)
}

/// The key of this module and generation; its handle is kept as long as the identity.
fn module_key(
    runtime: &Runtime,
    identity: &Identity,
    name: &ModuleName,
) -> Result<KeyHandle, CallError> {
    if let Some(handle) = identity.encryption.get() {
        return Ok(handle.clone());
    }
    let name = name.identity();
    let generation = identity.generation.as_str().as_bytes();
    let data = frame(&[b"holdfast module encryption 1", name.as_bytes(), generation]);
    let request = key::DeriveRequest {
        base_key_handle: base_key(runtime)?,
        derivation_data: Bytes(data),
    };
    let handle = runtime.keys.call::<key::Derive>(&(), &request)?.key_handle;
    Ok(identity.encryption.get_or_init(|| handle).clone())
}

#[expect(clippy::expect_used, reason = "a constant that fits the grammar")]
fn constant(id: &str) -> KeyId {
    KeyId::new(id).expect("a constant id")
}

/// Parts with their lengths in front, so that no two lists of parts give the same bytes (A44).
fn frame(parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for part in parts {
        out.extend((part.len() as u64).to_be_bytes());
        out.extend_from_slice(part);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a44_names_and_generations_that_concatenate_equally_are_different_contexts() {
        assert_ne!(frame(&[b"a", b"bc"]), frame(&[b"ab", b"c"]));
        assert_ne!(frame(&[b"", b"abc"]), frame(&[b"abc", b""]));
    }
}
