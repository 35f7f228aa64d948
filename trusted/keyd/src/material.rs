//! Keys in memory: parsed once, ready for use, wiped when the last user lets go (R26). Nothing here
//! is `Debug`, `Clone` or `Display`, and only [`crate::store`] makes them from files.

use aws_lc_rs::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
use aws_lc_rs::digest::{Digest, SHA256};
use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::hmac;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _, RsaKeyPair,
};
use zeroize::Zeroizing;

use crate::error::KeyError;
use crate::pem;

/// Longest key file.
pub const MAX_FILE: usize = 64 * 1024;

/// A key of one of the two kinds.
pub enum Material {
    /// Symmetric.
    Key(Box<Symmetric>),
    /// A key pair.
    Pair(Pair),
}

/// A symmetric key.
pub struct Symmetric {
    bytes: Zeroizing<Vec<u8>>,
    hmac: hmac::Key,
    aead: Option<LessSafeKey>,
}

impl Symmetric {
    /// From its bytes.
    #[must_use]
    pub fn new(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self {
            hmac: hmac::Key::new(hmac::HMAC_SHA256, &bytes),
            // Any length signs; only 256 bits encrypt.
            aead: aead(&bytes),
            bytes,
        }
    }

    /// HMAC-SHA256 of a message.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> hmac::Tag {
        hmac::sign(&self.hmac, message)
    }

    /// The key derived with some data (identity-service.md 2.4).
    #[must_use]
    pub fn derive(&self, data: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut out = Zeroizing::new([0; 32]);
        out.copy_from_slice(self.sign(data).as_ref());
        out
    }

    /// For encryption, if it has the length for it.
    #[must_use]
    pub fn aead(&self) -> Option<&LessSafeKey> {
        self.aead.as_ref()
    }

    /// Whether these are its bytes, in constant time.
    #[must_use]
    pub fn is(&self, bytes: &[u8]) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(&self.bytes, bytes).is_ok()
    }
}

/// An encryption key from 32 bytes.
#[must_use]
pub fn aead(bytes: &[u8]) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, bytes)
        .ok()
        .map(LessSafeKey::new)
}

/// A key pair.
pub enum Pair {
    /// On the curve P-256.
    Ec(EcdsaKeyPair),
    /// RSA, 2048 bits or more.
    Rsa(RsaKeyPair),
}

/// What a key pair can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// NIST P-256.
    EcP256,
    /// RSA with 2048 bits.
    Rsa2048,
    /// RSA with 4096 bits.
    Rsa4096,
}

/// DER of the curve's object identifier.
pub const P256_OID: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

impl Pair {
    /// Makes a new one; its file's content.
    ///
    /// # Errors
    /// [`KeyError::Crypto`].
    pub fn generate(algorithm: Algorithm) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let failed = |_| KeyError::Crypto("key generation");
        let rsa = |size| -> Result<_, KeyError> {
            let pair = RsaKeyPair::generate(size).map_err(failed)?;
            let der: Pkcs8V1Der<'static> = pair.as_der().map_err(failed)?;
            Ok(pem::write_pkcs8(der.as_ref()))
        };
        match algorithm {
            Algorithm::EcP256 => {
                let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING);
                let der = pair.and_then(|p| p.to_pkcs8v1()).map_err(failed)?;
                Ok(pem::write_pkcs8(der.as_ref()))
            }
            Algorithm::Rsa2048 => rsa(KeySize::Rsa2048),
            Algorithm::Rsa4096 => rsa(KeySize::Rsa4096),
        }
    }

    /// From the content of a file: any unencrypted PEM private key of a kind we use.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let ec = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let key = pem::read(text)?;
        match key.form {
            pem::Form::Pkcs8 => EcdsaKeyPair::from_pkcs8(ec, &key.der)
                .map(Self::Ec)
                .or_else(|_| RsaKeyPair::from_pkcs8(&key.der).map(Self::Rsa))
                .ok(),
            pem::Form::Ec => EcdsaKeyPair::from_private_key_der(ec, &key.der)
                .map(Self::Ec)
                .ok(),
            pem::Form::Rsa => RsaKeyPair::from_der(&key.der).map(Self::Rsa).ok(),
        }
    }

    /// ECDSA over a digest of 32 bytes, in DER.
    ///
    /// # Errors
    /// [`KeyError`] for another length, another kind of pair, or trouble in the crypto library.
    pub fn sign_digest(&self, digest: &[u8]) -> Result<Vec<u8>, KeyError> {
        let Self::Ec(pair) = self else {
            return Err(KeyError::Mechanism("ECDSA needs a key pair on a curve"));
        };
        // The curve's order has 32 bytes; longer digests are for the caller to cut (2.4).
        let digest = Digest::import_less_safe(digest, &SHA256);
        let digest = digest.map_err(|_| KeyError::Parameter {
            name: "digest",
            why: "not 32 bytes, the size of the curve's order",
        })?;
        let signature = pair.sign_digest(&digest);
        let signature = signature.map_err(|_| KeyError::Crypto("ECDSA"))?;
        Ok(signature.as_ref().to_vec())
    }

    /// What it is; `None` for an RSA key of a size that is not created here.
    #[must_use]
    pub fn algorithm(&self) -> Option<Algorithm> {
        match self {
            Self::Ec(_) => Some(Algorithm::EcP256),
            Self::Rsa(pair) => match pair.public_modulus_len() {
                256 => Some(Algorithm::Rsa2048),
                512 => Some(Algorithm::Rsa4096),
                _ => None,
            },
        }
    }

    /// The public point, compressed, as the compatible service writes it.
    #[must_use]
    pub fn point(&self) -> Option<Vec<u8>> {
        let Self::Ec(pair) = self else {
            return None;
        };
        // Uncompressed: 4, then 32 bytes of x, then 32 of y, whose parity is all that is needed.
        let point = pair.public_key().as_ref();
        let (x, y) = (point.get(1..33)?, point.last()?);
        Some([&[2 | (y & 1)], x].concat())
    }

    /// Modulus and exponent, big-endian and unsigned.
    #[must_use]
    pub fn rsa_numbers(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let Self::Rsa(pair) = self else {
            return None;
        };
        // SEQUENCE { INTEGER modulus, INTEGER exponent }, made by the crypto library.
        let (0x30, sequence, []) = der(pair.public_key().as_ref())? else {
            return None;
        };
        let (0x02, modulus, rest) = der(sequence)? else {
            return None;
        };
        let (0x02, exponent, []) = der(rest)? else {
            return None;
        };
        Some((unsigned(modulus), unsigned(exponent)))
    }
}

/// Tag, content and rest of a DER element of less than 64 KiB.
fn der(input: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = input.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => (usize::from(*rest.first()?), rest.get(1..)?),
        0x82 => (
            usize::from(*rest.first()?) << 8 | usize::from(*rest.get(1)?),
            rest.get(2..)?,
        ),
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

fn unsigned(integer: &[u8]) -> Vec<u8> {
    integer.strip_prefix(&[0]).unwrap_or(integer).to_vec()
}
