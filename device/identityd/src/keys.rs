//! The road to keyd: what this daemon asks of it, and a key that signs there.
//!
//! [`Keys`] is the whole of it, so that tests and simulation can put another signer behind the same
//! calls. No private key of the device is ever here: only handles, and the exported keys of modules
//! on their way to the hub, which wipe themselves (D4, R19).

use std::cell::RefCell;
use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{PublicKeyData, SignatureAlgorithm, SigningKey, SubjectPublicKeyInfo};

use contract::api::key::{self, HandleRequest, HandleResponse, KeyHandle, Usage};
use contract::bytes::{Bytes, Secret};
use contract::endpoint::{Empty, Endpoint};
use contract::names::KeyId;
use local::client::{CallError, Client};

/// The header of a SHA-256 `DigestInfo` (RFC 8017, 9.2).
const DIGEST_INFO: [u8; 19] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05,
    0x00, 0x04, 0x20,
];

/// Why keyd did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It cannot be reached, or broke off.
    #[error("key service is away: {0}")]
    Away(String),
    /// It said no.
    #[error("{message}")]
    Refused {
        /// Its status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// Its answer is not what the protocol says.
    #[error("key service's answer is malformed: {0}")]
    Malformed(&'static str),
}

/// What this daemon asks of keyd.
pub trait Keys: Send + Sync {
    /// A handle for an existing key pair.
    fn pair(&self, id: &KeyId) -> Result<KeyHandle, KeyError>;
    /// A handle for an existing symmetric key.
    fn key(&self, id: &KeyId) -> Result<KeyHandle, KeyError>;
    /// A handle for a symmetric key to derive from and sign with, created if absent.
    fn create_key(&self, id: &KeyId) -> Result<KeyHandle, KeyError>;
    /// A handle for a key derived from another.
    fn derive(&self, base: &KeyHandle, data: &[u8]) -> Result<KeyHandle, KeyError>;
    /// The bytes of a derived key, for the hub.
    fn export(&self, derived: &KeyHandle) -> Result<Secret, KeyError>;
    /// HMAC-SHA256.
    fn hmac(&self, key: &KeyHandle, message: &[u8]) -> Result<[u8; 32], KeyError>;
    /// ECDSA over a digest, in DER.
    fn ecdsa(&self, pair: &KeyHandle, digest: &[u8]) -> Result<Vec<u8>, KeyError>;
    /// PKCS#1 v1.5 over a `DigestInfo`.
    fn rsa(&self, pair: &KeyHandle, digest_info: &[u8]) -> Result<Vec<u8>, KeyError>;
}

/// Whether keyd can sign with a key of this kind.
#[must_use]
pub fn can_sign(key: &SubjectPublicKeyInfo) -> bool {
    [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_RSA_SHA256].contains(&key.algorithm())
}

/// A key pair in keyd, as rcgen wants one. The public half comes from a certificate or a verified
/// request, so signing is one call; a handle of another pair shows when the result is verified.
pub struct RemoteKey<'a> {
    keys: &'a dyn Keys,
    handle: &'a KeyHandle,
    public: SubjectPublicKeyInfo,
    failure: RefCell<Option<KeyError>>,
}

impl<'a> RemoteKey<'a> {
    /// The pair behind `handle`, said to have this public half.
    #[must_use]
    pub fn new(keys: &'a dyn Keys, handle: &'a KeyHandle, public: SubjectPublicKeyInfo) -> Self {
        Self {
            keys,
            handle,
            public,
            failure: RefCell::new(None),
        }
    }

    /// Why the last signature failed.
    #[must_use]
    pub fn failure(&self) -> Option<KeyError> {
        self.failure.borrow_mut().take()
    }
}

impl PublicKeyData for RemoteKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.public.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.public.algorithm()
    }
}

impl SigningKey for RemoteKey<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let digest = digest(&SHA256, message);
        let signed = if *self.algorithm() == rcgen::PKCS_RSA_SHA256 {
            let mut info = DIGEST_INFO.to_vec();
            info.extend_from_slice(digest.as_ref());
            self.keys.rsa(self.handle, &info)
        } else {
            self.keys.ecdsa(self.handle, digest.as_ref())
        };
        signed.map_err(|reason| {
            *self.failure.borrow_mut() = Some(reason);
            rcgen::Error::RemoteKeyError
        })
    }
}

/// keyd itself, over its socket.
#[derive(Debug)]
pub struct Keyd(Client);

impl Keyd {
    /// The key service at this socket; nothing is opened yet.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self(Client::new(socket))
    }

    fn handle<E: Endpoint<Response = HandleResponse>>(
        &self,
        target: &E::Target,
        body: &E::Request,
    ) -> Result<KeyHandle, KeyError> {
        Ok(self.0.call::<E>(target, body)?.key_handle)
    }
}

impl From<CallError> for KeyError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused { status, message } => Self::Refused { status, message },
            CallError::Answer { .. } => Self::Malformed("unreadable answer"),
            other => Self::Away(other.to_string()),
        }
    }
}

impl Keys for Keyd {
    fn pair(&self, id: &KeyId) -> Result<KeyHandle, KeyError> {
        self.handle::<key::LoadKeyPair>(id, &Empty)
    }

    fn key(&self, id: &KeyId) -> Result<KeyHandle, KeyError> {
        self.handle::<key::LoadKey>(id, &Empty)
    }

    fn create_key(&self, id: &KeyId) -> Result<KeyHandle, KeyError> {
        let request = key::CreateKeyRequest {
            key_id: id.clone(),
            usage: Usage {
                sign: true,
                encrypt: false,
            },
            key_bytes: None,
        };
        self.handle::<key::CreateKey>(&(), &request)
    }

    fn derive(&self, base: &KeyHandle, data: &[u8]) -> Result<KeyHandle, KeyError> {
        let request = key::DeriveRequest {
            base_key_handle: base.clone(),
            derivation_data: Bytes(data.to_vec()),
        };
        self.handle::<key::Derive>(&(), &request)
    }

    fn export(&self, derived: &KeyHandle) -> Result<Secret, KeyError> {
        let request = HandleRequest {
            key_handle: derived.clone(),
        };
        Ok(self.0.call::<key::ExportDerived>(&(), &request)?.key)
    }

    fn hmac(&self, key: &KeyHandle, message: &[u8]) -> Result<[u8; 32], KeyError> {
        let request = key::SignRequest {
            key_handle: key.clone(),
            algorithm: key::SignAlgorithm::HmacSha256,
            parameters: key::SignParameters::Message(Bytes(message.to_vec())),
        };
        let signature = self.0.call::<key::Sign>(&(), &request)?.signature.0;
        signature
            .try_into()
            .map_err(|_| KeyError::Malformed("an HMAC has 32 bytes"))
    }

    fn ecdsa(&self, pair: &KeyHandle, digest: &[u8]) -> Result<Vec<u8>, KeyError> {
        let request = key::SignRequest {
            key_handle: pair.clone(),
            algorithm: key::SignAlgorithm::Ecdsa,
            parameters: key::SignParameters::Digest(Bytes(digest.to_vec())),
        };
        Ok(self.0.call::<key::Sign>(&(), &request)?.signature.0)
    }

    fn rsa(&self, pair: &KeyHandle, digest_info: &[u8]) -> Result<Vec<u8>, KeyError> {
        let request = key::EncryptRequest {
            key_handle: pair.clone(),
            algorithm: key::CipherAlgorithm::RsaPkcs1,
            parameters: None,
            plaintext: Secret::new(digest_info.to_vec()),
        };
        Ok(self.0.call::<key::Encrypt>(&(), &request)?.ciphertext.0)
    }
}
