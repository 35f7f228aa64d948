//! A key pair in `keyd`, as rcgen wants one to sign a certificate request with.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use contract::api::key::{
    CipherAlgorithm, Encrypt, EncryptRequest, HandleRequest, KeyHandle, Parameter, PublicParameter,
    Sign, SignAlgorithm, SignParameters, SignRequest,
};
use contract::bytes::{Bytes, Secret};
use local::client::{CallError, Client};
use rcgen::{PublicKeyData, SignatureAlgorithm, SigningKey};

/// The header of a SHA-256 `DigestInfo` (RFC 8017, 9.2).
const DIGEST_INFO: [u8; 19] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05,
    0x00, 0x04, 0x20,
];

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RemoteKeyError {
    /// `keyd` refused or is away.
    #[error(transparent)]
    Keyd(#[from] CallError),
    /// Its answer is none of the key kinds of the protocol.
    #[error("keyd's public key is malformed")]
    Malformed,
}

/// The pair.
pub struct RemoteKey<'a> {
    keyd: &'a Client,
    handle: KeyHandle,
    algorithm: &'static SignatureAlgorithm,
    public: Vec<u8>,
}

impl<'a> RemoteKey<'a> {
    /// Asks for its public half.
    ///
    /// # Errors
    /// [`RemoteKeyError`].
    pub fn load(keyd: &'a Client, handle: KeyHandle) -> Result<Self, RemoteKeyError> {
        let text = |parameter| -> Result<String, RemoteKeyError> {
            let request = HandleRequest {
                key_handle: handle.clone(),
            };
            Ok(keyd.call::<PublicParameter>(&parameter, &request)?.value)
        };
        let bytes = |parameter| -> Result<Vec<u8>, RemoteKeyError> {
            STANDARD
                .decode(text(parameter)?)
                .map_err(|_| RemoteKeyError::Malformed)
        };
        let (algorithm, public) = match text(Parameter::Algorithm)?.as_str() {
            "ECDSA" => (
                &rcgen::PKCS_ECDSA_P256_SHA256,
                uncompressed(&bytes(Parameter::EcPoint)?).ok_or(RemoteKeyError::Malformed)?,
            ),
            "RSA" => (
                &rcgen::PKCS_RSA_SHA256,
                rsa(
                    &bytes(Parameter::RsaModulus)?,
                    &bytes(Parameter::RsaExponent)?,
                ),
            ),
            _ => return Err(RemoteKeyError::Malformed),
        };
        Ok(Self {
            keyd,
            handle,
            algorithm,
            public,
        })
    }

    /// The bits of its `subjectPublicKey`.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        &self.public
    }
}

impl PublicKeyData for RemoteKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

impl SigningKey for RemoteKey<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let digest = digest(&SHA256, message);
        let signature = if *self.algorithm == rcgen::PKCS_RSA_SHA256 {
            let request = EncryptRequest {
                key_handle: self.handle.clone(),
                algorithm: CipherAlgorithm::RsaPkcs1,
                parameters: None,
                plaintext: Secret::new([&DIGEST_INFO, digest.as_ref()].concat()),
            };
            self.keyd
                .call::<Encrypt>(&(), &request)
                .map(|answer| answer.ciphertext)
        } else {
            let request = SignRequest {
                key_handle: self.handle.clone(),
                algorithm: SignAlgorithm::Ecdsa,
                parameters: SignParameters::Digest(Bytes(digest.as_ref().to_vec())),
            };
            self.keyd
                .call::<Sign>(&(), &request)
                .map(|answer| answer.signature)
        };
        signature.map(|bytes| bytes.0).map_err(|error| {
            local::log::failure(local::log::Level::Warn, &error);
            rcgen::Error::RemoteKeyError
        })
    }
}

/// A compressed P-256 point in the form that certificates carry.
fn uncompressed(point: &[u8]) -> Option<Vec<u8>> {
    use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
    let key = aws_lc_rs::signature::ParsedPublicKey::new(
        &aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1,
        point,
    )
    .ok()?;
    // The point ends the SubjectPublicKeyInfo: 65 bytes, the first of which says "uncompressed".
    let der: PublicKeyX509Der<'_> = key.as_der().ok()?;
    let der = der.as_ref();
    let point = der.get(der.len().checked_sub(65)?..)?;
    (point[0] == 4).then(|| point.to_vec())
}

/// `RSAPublicKey` in DER (RFC 8017, A.1.1).
fn rsa(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    let body = [integer(modulus), integer(exponent)].concat();
    tagged(0x30, &body)
}

fn integer(bytes: &[u8]) -> Vec<u8> {
    let start = bytes
        .iter()
        .position(|b| *b != 0)
        .unwrap_or(bytes.len().saturating_sub(1));
    let mut value = bytes[start..].to_vec();
    if value.first().is_none_or(|b| b & 0x80 != 0) {
        value.insert(0, 0);
    }
    tagged(0x02, &value)
}

fn tagged(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let mut out = vec![tag];
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => out.push(short),
        Ok(long) => out.extend([0x81, long]),
        Err(_) => {
            out.push(0x82);
            // Keys have at most 4096 bits, so two bytes of length are enough.
            out.extend(u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    out.extend_from_slice(body);
    out
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::{AsBigEndian as _, EcPublicKeyCompressedBin};
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};

    use super::*;

    #[test]
    fn a_compressed_point_becomes_the_uncompressed_one() {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let point: EcPublicKeyCompressedBin<'_> = pair.public_key().as_be_bytes().unwrap();
        assert_eq!(
            uncompressed(point.as_ref()).as_deref(),
            Some(pair.public_key().as_ref())
        );
        assert_eq!(uncompressed(&[5; 33]), None);
    }

    #[test]
    fn integers_are_positive_and_short() {
        assert_eq!(integer(&[0, 0, 1]), [2, 1, 1]);
        assert_eq!(integer(&[0x80]), [2, 2, 0, 0x80]);
        assert_eq!(tagged(4, &[0; 200])[..3], [4, 0x81, 200]);
        assert_eq!(tagged(4, &[0; 300])[..4], [4, 0x82, 1, 44]);
    }
}
