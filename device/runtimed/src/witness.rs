//! Signs where the audit log stands, with a key of `keyd` that signs nothing else (R36).
//!
//! A log that was cut off or replaced then shows: the signed head names a record that is no longer
//! there. `keyd` being away delays a signature and stops nothing.

use aws_lc_rs::digest::{SHA256, digest};
use contract::api::key::{
    CreateKeyPair, CreateKeyPairRequest, Sign, SignAlgorithm, SignParameters, SignRequest,
};
use contract::bytes::Bytes;
use contract::names::KeyId;
use local::log;

use crate::runtime::Runtime;

/// The key's id.
pub const KEY: &str = "holdfast_audit_runtimed";

/// Why a head was not signed.
#[derive(Debug, thiserror::Error)]
enum WitnessError {
    #[error(transparent)]
    Call(#[from] local::client::CallError),
    #[error(transparent)]
    Name(#[from] contract::names::BadName),
}

/// Signs what is due: after a minute, after 256 records, and whatever there is at start and stop.
/// Says whether nothing is left to sign.
pub fn sign_heads(runtime: &Runtime, everything: bool) -> bool {
    let now = runtime.clock.now();
    let signed = runtime
        .audit
        .sign_heads(&now, everything, |text| sign(runtime, text));
    signed
        .inspect_err(|error| log::failure(log::Level::Warn, error))
        .is_ok()
}

fn sign(runtime: &Runtime, text: &[u8]) -> Result<Vec<u8>, WitnessError> {
    let pair = CreateKeyPairRequest {
        key_id: KeyId::new(KEY)?,
        preferred_algorithms: Some("ec-p256".to_owned()),
    };
    let request = SignRequest {
        key_handle: runtime.keys.call::<CreateKeyPair>(&(), &pair)?.key_handle,
        algorithm: SignAlgorithm::Ecdsa,
        parameters: SignParameters::Digest(Bytes(digest(&SHA256, text).as_ref().to_vec())),
    };
    Ok(runtime.keys.call::<Sign>(&(), &request)?.signature.0)
}
