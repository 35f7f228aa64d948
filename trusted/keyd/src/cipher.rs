//! Encryption with AES-256-GCM, and RSA signatures, which the compatible API calls encryption
//! (identity-service.md 2.4). Layouts: `02 || ciphertext || tag` is written, `01 || tag ||
//! ciphertext` is read as well. Nonces of other lengths than 96 bits and the bare RSA operation
//! have their place here and are refused by this release.

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce};
use aws_lc_rs::digest::{self, Digest};
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RsaEncoding};
use contract::api::key::{
    self as api, AeadParameters, CipherAlgorithm, DecryptResponse, EncryptResponse,
};
use contract::bytes::{Bytes, Secret};
use contract::endpoint::Ask;
use contract::handle::Subject;
use contract::policy::{Purpose, Purposes};
use contract::refusal::Refusal;
use zeroize::Zeroizing;

use crate::daemon::{Keyd, Use, User};
use crate::error::KeyError;
use crate::material::{Pair, aead};

const TAG: usize = 16;
/// Written: tag last.
const CURRENT: u8 = 2;
/// Read only: tag first.
const LEGACY: u8 = 1;

/// Encrypts, or signs with RSA.
///
/// # Errors
/// [`Refusal`]
pub fn encrypt(
    keyd: &Keyd,
    who: &User,
    ask: Ask<api::Encrypt>,
) -> Result<EncryptResponse, Refusal> {
    let encrypt = || {
        let key = keyd.find(*who, &ask.body.key_handle)?;
        let input = ask.body.plaintext.expose();
        let ciphertext = match ask.body.algorithm {
            CipherAlgorithm::Aead => {
                let (nonce, aad) = parameters(ask.body.parameters.as_ref())?;
                let usable = Purpose::Encrypt;
                with_aead(keyd, *who, &key, usable, |cipher| {
                    seal(cipher, nonce, aad, input)
                })?
            }
            CipherAlgorithm::RsaPkcs1 => rsa_sign(keyd, *who, &key, input)?,
            CipherAlgorithm::RsaNoPadding => {
                return Err(KeyError::Mechanism("RSA-NO-PADDING is not supported"));
            }
        };
        Ok(EncryptResponse {
            ciphertext: Bytes(ciphertext),
        })
    };
    encrypt().map_err(|error| keyd.refuse(*who, "encrypt", "", error))
}

/// Decrypts.
///
/// # Errors
/// [`Refusal`]
pub fn decrypt(
    keyd: &Keyd,
    who: &User,
    ask: Ask<api::Decrypt>,
) -> Result<DecryptResponse, Refusal> {
    let decrypt = || {
        let key = keyd.find(*who, &ask.body.key_handle)?;
        if ask.body.algorithm != CipherAlgorithm::Aead {
            return Err(KeyError::Mechanism("only AEAD decrypts"));
        }
        let (nonce, aad) = parameters(ask.body.parameters.as_ref())?;
        let input = &ask.body.ciphertext.0;
        let usable = Purpose::Decrypt;
        let plaintext = with_aead(keyd, *who, &key, usable, |cipher| {
            open(cipher, nonce, aad, input)
        })?;
        Ok(DecryptResponse { plaintext })
    };
    decrypt().map_err(|error| keyd.refuse(*who, "decrypt", "", error))
}

fn parameters(given: Option<&AeadParameters>) -> Result<([u8; 12], &[u8]), KeyError> {
    let given = given.ok_or(KeyError::Unprocessable("missing field `parameters`"))?;
    let nonce = given.iv.0.as_slice().try_into();
    let nonce = nonce.map_err(|_| KeyError::Parameter {
        name: "iv",
        why: "only nonces of 12 bytes are supported",
    })?;
    Ok((nonce, &given.aad.0))
}

/// Runs an operation with the encryption key behind a handle.
fn with_aead<T>(
    keyd: &Keyd,
    who: User,
    key: &Use,
    purpose: Purpose,
    run: impl FnOnce(&LessSafeKey) -> Result<T, KeyError>,
) -> Result<T, KeyError> {
    let no = KeyError::Mechanism("AEAD needs a key or derived key");
    let symmetric = key.symmetric().ok_or(no)?;
    keyd.permit(who, key, Purposes::of(&[purpose]))?;
    match &key.handle.subject {
        Subject::Derived { data, .. } => {
            let derived = aead(&*symmetric.derive(data)).ok_or(KeyError::Crypto("AES-GCM"))?;
            run(&derived)
        }
        _ if !key.entry.usage.encrypt => Err(KeyError::Mechanism("the key was not made for this")),
        _ => run(symmetric
            .aead()
            .ok_or(KeyError::Mechanism("AEAD needs a key of 32 bytes"))?),
    }
}

fn seal(
    key: &LessSafeKey,
    nonce: [u8; 12],
    aad: &[u8],
    plaintext: &[u8],
) -> Result<Vec<u8>, KeyError> {
    let mut out = Vec::with_capacity(1 + plaintext.len() + TAG);
    out.push(CURRENT);
    out.extend(plaintext);
    let nonce = Nonce::assume_unique_for_key(nonce);
    let tag = key
        .seal_in_place_separate_tag(nonce, Aad::from(aad), &mut out[1..])
        .map_err(|_| KeyError::Crypto("AES-GCM"))?;
    out.extend(tag.as_ref());
    Ok(out)
}

fn open(
    key: &LessSafeKey,
    nonce: [u8; 12],
    aad: &[u8],
    ciphertext: &[u8],
) -> Result<Secret, KeyError> {
    let (&version, rest) = ciphertext.split_first().ok_or(KeyError::Invalid)?;
    let split = match version {
        CURRENT => rest.len().checked_sub(TAG).map(|at| rest.split_at(at)),
        LEGACY => rest.split_at_checked(TAG).map(|(tag, text)| (text, tag)),
        _ => None,
    };
    let (text, tag) = split.ok_or(KeyError::Invalid)?;
    let mut out = Zeroizing::new(vec![0; text.len()]);
    let nonce = Nonce::assume_unique_for_key(nonce);
    key.open_separate_gather(nonce, Aad::from(aad), text, tag, &mut out)
        .map_err(|_| KeyError::Decrypt)?;
    Ok(Secret::new(std::mem::take(&mut *out)))
}

/// What comes before the digest in a `DigestInfo`, and how such a digest is signed.
type Known = (
    &'static [u8],
    &'static digest::Algorithm,
    &'static dyn RsaEncoding,
);

/// `SEQUENCE { SEQUENCE { OID, NULL }, OCTET STRING }` for SHA-256, SHA-384 and SHA-512: the object
/// identifiers differ in one byte, the lengths in three.
static DIGEST_INFOS: [Known; 3] = [
    (
        &[
            0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02,
            0x01, 0x05, 0x00, 0x04, 0x20,
        ],
        &digest::SHA256,
        &RSA_PKCS1_SHA256,
    ),
    (
        &[
            0x30, 0x41, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02,
            0x02, 0x05, 0x00, 0x04, 0x30,
        ],
        &digest::SHA384,
        &RSA_PKCS1_SHA384,
    ),
    (
        &[
            0x30, 0x51, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02,
            0x03, 0x05, 0x00, 0x04, 0x40,
        ],
        &digest::SHA512,
        &RSA_PKCS1_SHA512,
    ),
];

/// PKCS#1 v1.5 over a `DigestInfo`: only of digests we know and of the length they have, so that
/// the key is no oracle for other messages (R21).
fn rsa_sign(keyd: &Keyd, who: User, key: &Use, input: &[u8]) -> Result<Vec<u8>, KeyError> {
    let Some(Pair::Rsa(pair)) = key.pair() else {
        return Err(KeyError::Mechanism("RSA-PKCS1 needs an RSA key pair"));
    };
    keyd.permit(who, key, Purposes::DIGEST)?;
    let (digest, encoding) = digest_info(input).ok_or(KeyError::Parameter {
        name: "plaintext",
        why: "not a DigestInfo of SHA-256, SHA-384 or SHA-512",
    })?;
    let mut signature = vec![0; pair.public_modulus_len()];
    pair.sign_digest(encoding, &digest, &mut signature)
        .map_err(|_| KeyError::Crypto("RSA"))?;
    Ok(signature)
}

fn digest_info(input: &[u8]) -> Option<(Digest, &'static dyn RsaEncoding)> {
    DIGEST_INFOS
        .iter()
        .find_map(|(prefix, algorithm, encoding)| {
            let digest = input.strip_prefix(*prefix)?;
            // The import checks the length.
            let digest = Digest::import_less_safe(digest, algorithm).ok()?;
            Some((digest, *encoding))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a45_an_altered_ciphertext_fails_uniformly() {
        let key = aead(&[7; 32]).unwrap();
        let good = seal(&key, [1; 12], b"aad", b"secret").unwrap();
        assert_eq!(
            open(&key, [1; 12], b"aad", &good).unwrap().expose(),
            b"secret"
        );
        for at in 1..good.len() {
            let mut bent = good.clone();
            bent[at] ^= 1;
            assert!(matches!(
                open(&key, [1; 12], b"aad", &bent),
                Err(KeyError::Decrypt)
            ));
        }
        let mut downgraded = good.clone();
        downgraded[0] = LEGACY;
        for (nonce, aad, text) in [
            ([2; 12], &b"aad"[..], &good[..]),
            ([1; 12], b"add", &good),
            ([1; 12], b"", &good),
            ([1; 12], b"aad", &downgraded),
            ([1; 12], b"aad", &good[..good.len() - 1]),
        ] {
            assert!(matches!(
                open(&key, nonce, aad, text),
                Err(KeyError::Decrypt)
            ));
        }
        for cut in 0..17 {
            assert!(matches!(
                open(&key, [1; 12], b"aad", &good[..cut]),
                Err(KeyError::Invalid)
            ));
        }
        let mut other = good;
        other[0] = 3;
        assert!(matches!(
            open(&key, [1; 12], b"aad", &other),
            Err(KeyError::Invalid)
        ));
    }

    #[test]
    fn the_legacy_layout_is_read() {
        let key = aead(&[7; 32]).unwrap();
        let good = seal(&key, [1; 12], b"", b"old data").unwrap();
        let (text, tag) = good[1..].split_at(good.len() - 1 - TAG);
        let legacy = [&[LEGACY], tag, text].concat();
        assert_eq!(
            open(&key, [1; 12], b"", &legacy).unwrap().expose(),
            b"old data"
        );
    }

    #[test]
    fn a46_only_whole_digest_infos_of_known_digests_are_signed() {
        for (prefix, algorithm, _) in &DIGEST_INFOS {
            let good = [prefix, digest::digest(algorithm, b"m").as_ref()].concat();
            assert!(digest_info(&good).is_some());
            assert!(digest_info(&good[..good.len() - 1]).is_none());
            assert!(digest_info(&[&good[..], &[0]].concat()).is_none());
            assert!(digest_info(&good[prefix.len()..]).is_none());
            for at in 0..prefix.len() {
                let mut bent = good.clone();
                bent[at] ^= 1;
                assert!(digest_info(&bent).is_none(), "byte {at}");
            }
        }
        assert!(digest_info(&[]).is_none());
        assert!(
            digest_info(&[0xab; 36]).is_none(),
            "MD5 and SHA-1 of old TLS"
        );
    }
}
