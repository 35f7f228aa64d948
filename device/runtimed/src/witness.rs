//! Signs where the audit log stands, with a key of `keyd` that signs nothing else (R36).
//!
//! A log that was cut off or replaced then shows: the signed head names a record that is no longer
//! there. `keyd` being away delays a signature and stops nothing.

use aws_lc_rs::digest::{SHA256, digest};
use contract::api::key::{
    CreateKeyPair, CreateKeyPairRequest, Sign, SignAlgorithm, SignParameters, SignRequest,
};
use contract::audit::SignedHead;
use contract::bytes::Bytes;
use contract::names::KeyId;
use local::log;

use crate::runtime::Runtime;

/// The key's id.
pub const KEY: &str = "holdfast_audit_runtimed";

/// Why a head was not signed.
#[derive(Debug, thiserror::Error)]
enum WitnessError {
    #[error("signing the head of the audit log")]
    Call(#[from] local::client::CallError),
    #[error("the head of the audit log")]
    Audit(#[from] local::audit::AuditError),
    #[error("the id of the audit key")]
    Name(#[from] contract::names::BadName),
}

/// Signs what is due: after a minute, after 256 records, and whatever there is at start and stop.
/// Says whether nothing is left to sign.
pub fn sign_heads(runtime: &Runtime, everything: bool) -> bool {
    loop {
        match one(runtime, everything) {
            Ok(true) => {}
            Ok(false) => return true,
            Err(error) => {
                log::failure(log::Level::Warn, &error);
                return false;
            }
        }
    }
}

fn one(runtime: &Runtime, everything: bool) -> Result<bool, WitnessError> {
    let now = runtime.clock.now();
    let Some(head) = runtime.audit.head_to_sign(&now, everything)? else {
        return Ok(false);
    };
    let pair = CreateKeyPairRequest {
        key_id: KeyId::new(KEY)?,
        preferred_algorithms: Some("ec-p256".to_owned()),
    };
    let request = SignRequest {
        key_handle: runtime.keys.call::<CreateKeyPair>(&(), &pair)?.key_handle,
        algorithm: SignAlgorithm::Ecdsa,
        parameters: SignParameters::Digest(Bytes(
            digest(&SHA256, &head.signed_bytes()).as_ref().to_vec(),
        )),
    };
    let signature = runtime.keys.call::<Sign>(&(), &request)?.signature;
    runtime
        .audit
        .keep_head(&now, SignedHead { head, signature })?;
    Ok(true)
}
