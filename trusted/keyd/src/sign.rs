//! Signatures: HMAC over messages, ECDSA over digests (identity-service.md 2.4, R21).

use aws_lc_rs::hmac;
use contract::api::key::{self as api, SignAlgorithm, SignParameters, SignResponse};
use contract::bytes::Bytes;
use contract::endpoint::Ask;
use contract::handle::Subject;
use contract::policy::Purposes;
use contract::refusal::Refusal;

use crate::daemon::{Keyd, Use, User};
use crate::error::KeyError;
use crate::material::Pair;

/// Signs.
///
/// # Errors
/// [`Refusal`]
pub fn sign(keyd: &Keyd, who: &User, ask: Ask<api::Sign>) -> Result<SignResponse, Refusal> {
    let sign = || {
        let key = keyd.find(*who, &ask.body.key_handle)?;
        let signature = match (ask.body.algorithm, &ask.body.parameters) {
            (SignAlgorithm::HmacSha256, SignParameters::Message(message)) => {
                hmac_over(keyd, *who, &key, &message.0)?
            }
            (SignAlgorithm::Ecdsa, SignParameters::Digest(digest)) => {
                ecdsa_over(keyd, *who, &key, &digest.0)?
            }
            (SignAlgorithm::HmacSha256, _) => {
                return Err(KeyError::Unprocessable("missing field `message`"));
            }
            (SignAlgorithm::Ecdsa, _) => {
                return Err(KeyError::Unprocessable("missing field `digest`"));
            }
        };
        Ok(SignResponse {
            signature: Bytes(signature),
        })
    };
    sign().map_err(|error| keyd.refuse(*who, "sign", "", error))
}

fn hmac_over(keyd: &Keyd, who: User, key: &Use, message: &[u8]) -> Result<Vec<u8>, KeyError> {
    let no = KeyError::Mechanism("HMAC-SHA256 needs a key or derived key");
    let symmetric = key.symmetric().ok_or(no)?;
    keyd.permit(who, key, Purposes::TOKEN)?;
    let tag = match &key.handle.subject {
        Subject::Derived { data, .. } => {
            let derived = hmac::Key::new(hmac::HMAC_SHA256, &*symmetric.derive(data));
            hmac::sign(&derived, message)
        }
        _ if key.entry.usage.sign => symmetric.sign(message),
        _ => return Err(KeyError::Mechanism("the key was not made for this")),
    };
    Ok(tag.as_ref().to_vec())
}

fn ecdsa_over(keyd: &Keyd, who: User, key: &Use, digest: &[u8]) -> Result<Vec<u8>, KeyError> {
    let pair = match key.pair() {
        Some(pair @ Pair::Ec(_)) => pair,
        _ => return Err(KeyError::Mechanism("ECDSA needs a key pair on a curve")),
    };
    keyd.permit(who, key, Purposes::DIGEST)?;
    pair.sign_digest(digest)
}
