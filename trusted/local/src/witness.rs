//! Signs where a daemon's audit log stands, with a key of `keyd` that signs nothing else (R36).
//!
//! A log that was cut off or replaced then shows: the signed head names a record that is no longer
//! there. `keyd` being away delays a signature and stops nothing.

use aws_lc_rs::digest::{SHA256, digest};
use contract::api::key::{
    CreateKeyPair, CreateKeyPairRequest, Sign, SignAlgorithm, SignParameters, SignRequest,
};
use contract::bytes::Bytes;
use contract::names::KeyId;
use contract::time::Now;

use crate::audit::Audit;
use crate::client::{CallError, Client};
use crate::log;

/// Signs what is due: after a minute, after 256 records, and with `everything` whatever there is,
/// as at start and stop. Says whether nothing is left to sign.
pub fn sign_heads(audit: &Audit, keyd: &Client, key: &KeyId, now: &Now, everything: bool) -> bool {
    let signed = audit.sign_heads(now, everything, |text| sign(keyd, key, text));
    signed
        .inspect_err(|error| log::failure(log::Level::Warn, error))
        .is_ok()
}

fn sign(keyd: &Client, key: &KeyId, text: &[u8]) -> Result<Vec<u8>, CallError> {
    let pair = CreateKeyPairRequest {
        key_id: key.clone(),
        preferred_algorithms: Some("ec-p256".to_owned()),
    };
    let request = SignRequest {
        key_handle: keyd.call::<CreateKeyPair>(&(), &pair)?.key_handle,
        algorithm: SignAlgorithm::Ecdsa,
        parameters: SignParameters::Digest(Bytes(digest(&SHA256, text).as_ref().to_vec())),
    };
    Ok(keyd.call::<Sign>(&(), &request)?.signature.0)
}
