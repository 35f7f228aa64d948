//! The key API (identity-service.md 2).
//!
//! It gives out handles, never keys: a caller names a key once, is checked against policy, and then
//! holds a handle that works only for it and its delegates (R17, R18). Signing takes digests or
//! messages, so the key service never sees what a token is for. On any failure the store is as
//! before; a refused handle says only `invalid handle`.

use serde::{Deserialize, Serialize};

use super::{endpoint, kib};
use crate::bytes::{Bytes, Secret};
use crate::endpoint::{Api, BadTarget, Empty, Parts, Target};
use crate::names::KeyId;

/// The key API.
pub struct KeyApi;

impl Api for KeyApi {
    const NAME: &'static str = "key";
    const VERSIONS: &'static [&'static str] = &["2020-09-01", "2021-05-01"];
    const CURRENT: &'static str = "2021-05-01";
}

/// A key handle as text: opaque to clients, judged by `keyd` alone (R18).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyHandle(pub String);

/// Answer of every operation that yields a handle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HandleResponse {
    /// The handle.
    pub key_handle: KeyHandle,
}

/// Request that consists of a handle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HandleRequest {
    /// The handle.
    pub key_handle: KeyHandle,
}

/// Key pair to create if absent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateKeyPairRequest {
    /// Its id.
    pub key_id: KeyId,
    /// Colon list of `ec-p256`, `rsa-2048`, `rsa-4096`, `*`; unknown parts are skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preferred_algorithms: Option<String>,
}

/// Where a key pair is moved from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MoveRequest {
    /// The id it has now.
    pub from: KeyId,
}

/// Key to create if absent, or to import.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateKeyRequest {
    /// Its id.
    pub key_id: KeyId,
    /// What it is for.
    pub usage: Usage,
    /// Its bytes, for an import.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_bytes: Option<Secret>,
}

/// Comma list of `derive`, `encrypt`, `sign`, without spaces. Derive and sign are one thing in the
/// compatible protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Usage {
    /// Derive and sign.
    pub sign: bool,
    /// Encrypt and decrypt.
    pub encrypt: bool,
}

impl TryFrom<String> for Usage {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let mut usage = Self {
            sign: false,
            encrypt: false,
        };
        for word in text.split(',') {
            match word {
                "derive" | "sign" => usage.sign = true,
                "encrypt" => usage.encrypt = true,
                _ => return Err("unknown key usage".to_owned()),
            }
        }
        Ok(usage)
    }
}

impl From<Usage> for String {
    fn from(usage: Usage) -> Self {
        match (usage.sign, usage.encrypt) {
            (true, true) => "derive,encrypt,sign",
            (false, true) => "encrypt",
            _ => "derive,sign",
        }
        .to_owned()
    }
}

/// Derived key to name.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeriveRequest {
    /// The base key.
    pub base_key_handle: KeyHandle,
    /// What it is derived with.
    pub derivation_data: Bytes,
}

/// A derived key's bytes.
#[derive(Debug, Serialize, Deserialize)]
pub struct ExportResponse {
    /// The bytes.
    pub key: Secret,
}

/// Signature to make.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SignRequest {
    /// The key.
    pub key_handle: KeyHandle,
    /// How.
    pub algorithm: SignAlgorithm,
    /// Over what.
    pub parameters: SignParameters,
}

/// Signature algorithms of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SignAlgorithm {
    /// ECDSA over a digest.
    #[serde(rename = "ECDSA")]
    Ecdsa,
    /// HMAC over a message.
    #[serde(rename = "HMAC-SHA256")]
    HmacSha256,
}

/// What is signed: a digest for ECDSA, a message for HMAC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SignParameters {
    /// An already computed digest.
    Digest(Bytes),
    /// A whole message.
    Message(Bytes),
}

/// A signature.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SignResponse {
    /// DER for ECDSA, 32 bytes for HMAC.
    pub signature: Bytes,
}

/// Cipher algorithms of the wire. The two RSA ones are private-key operations, used by TLS stacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CipherAlgorithm {
    /// AES-256-GCM.
    #[serde(rename = "AEAD")]
    Aead,
    /// PKCS#1 v1.5 signature over a `DigestInfo`.
    #[serde(rename = "RSA-PKCS1")]
    RsaPkcs1,
    /// The bare RSA operation (a later issue; refused).
    #[serde(rename = "RSA-NO-PADDING")]
    RsaNoPadding,
}

/// Nonce and associated data of AEAD; both members are mandatory on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AeadParameters {
    /// The nonce.
    pub iv: Bytes,
    /// Authenticated only, not stored.
    pub aad: Bytes,
}

/// Data to encrypt, or a `DigestInfo` to sign with RSA.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EncryptRequest {
    /// The key.
    pub key_handle: KeyHandle,
    /// How.
    pub algorithm: CipherAlgorithm,
    /// For AEAD only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<AeadParameters>,
    /// The input.
    pub plaintext: Secret,
}

/// The ciphertext, or the RSA signature.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EncryptResponse {
    /// For AEAD: a version byte, the ciphertext, the 16-byte tag.
    pub ciphertext: Bytes,
}

/// Data to decrypt.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DecryptRequest {
    /// The key.
    pub key_handle: KeyHandle,
    /// How.
    pub algorithm: CipherAlgorithm,
    /// For AEAD only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<AeadParameters>,
    /// The input.
    pub ciphertext: Bytes,
}

/// The plaintext.
#[derive(Debug, Serialize, Deserialize)]
pub struct DecryptResponse {
    /// The bytes.
    pub plaintext: Secret,
}

/// Name of a public parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parameter {
    /// `ECDSA` or `RSA`, plain text.
    Algorithm,
    /// DER object identifier.
    EcCurveOid,
    /// Compressed SEC1 point.
    EcPoint,
    /// Big-endian, unsigned.
    RsaModulus,
    /// Big-endian, unsigned.
    RsaExponent,
}

impl Parameter {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Algorithm, "algorithm"),
        (Self::EcCurveOid, "ec-curve-oid"),
        (Self::EcPoint, "ec-point"),
        (Self::RsaModulus, "rsa-modulus"),
        (Self::RsaExponent, "rsa-exponent"),
    ];
}

impl Target for Parameter {
    fn read(parts: &Parts) -> Result<Self, BadTarget> {
        let found = Self::ALL.iter().find(|(_, name)| *name == parts.at(0));
        found.map(|(p, _)| *p).ok_or(BadTarget::Query("name"))
    }
    fn write(&self) -> Parts {
        let name = Self::ALL
            .iter()
            .find(|(p, _)| p == self)
            .map_or("", |(_, name)| name);
        Parts::one(name)
    }
}

/// A public parameter's value: plain text for the algorithm, base64 for the rest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ParameterResponse {
    /// The value.
    pub value: String,
}

endpoint!(
    /// Create a key pair if it is absent.
    CreateKeyPair: KeyApi, Post "/keypair", KeyUsers, kib(64),
    (), CreateKeyPairRequest => HandleResponse
);
endpoint!(
    /// A handle for an existing key pair.
    LoadKeyPair: KeyApi, Get "/keypair/{id}", KeyUsers, 0,
    KeyId, Empty => HandleResponse
);
endpoint!(
    /// Give a key pair another id, replacing what has it.
    MoveKeyPair: KeyApi, Post "/keypair/{id}", KeyUsers, kib(64),
    KeyId, MoveRequest => Empty
);
endpoint!(
    /// Delete a key pair.
    DeleteKeyPair: KeyApi, Delete "/keypair", KeyUsers, kib(64),
    (), HandleRequest => Empty
);
endpoint!(
    /// One parameter of a public key.
    PublicParameter: KeyApi, Post "/parameters/{name}", KeyUsers, kib(64),
    Parameter, HandleRequest => ParameterResponse
);
endpoint!(
    /// Create a key if it is absent, or import one.
    CreateKey: KeyApi, Post "/key", KeyUsers, kib(64),
    (), CreateKeyRequest => HandleResponse
);
endpoint!(
    /// A handle for an existing key.
    LoadKey: KeyApi, Get "/key/{id}", KeyUsers, 0,
    KeyId, Empty => HandleResponse
);
endpoint!(
    /// Keys do not move; answers 400 (identity-service.md 2.3).
    MoveKey: KeyApi, Post "/key/{id}", KeyUsers, kib(64),
    KeyId, MoveRequest => Empty
);
endpoint!(
    /// Delete a key.
    DeleteKey: KeyApi, Delete "/key", KeyUsers, kib(64),
    (), HandleRequest => Empty
);
endpoint!(
    /// A handle for a key derived from another.
    Derive: KeyApi, Post "/derivedkey", KeyUsers, kib(64),
    (), DeriveRequest => HandleResponse
);
endpoint!(
    /// The bytes of a derived key, where policy allows it (R19).
    ExportDerived: KeyApi, Post "/derivedkey/export", KeyUsers, kib(64),
    (), HandleRequest => ExportResponse
);
endpoint!(
    /// Sign.
    Sign: KeyApi, Post "/sign", KeyUsers, kib(64),
    (), SignRequest => SignResponse
);
endpoint!(
    /// Encrypt, or sign with RSA.
    Encrypt: KeyApi, Post "/encrypt", KeyUsers, kib(1024),
    (), EncryptRequest => EncryptResponse
);
endpoint!(
    /// Decrypt.
    Decrypt: KeyApi, Post "/decrypt", KeyUsers, kib(1024),
    (), DecryptRequest => DecryptResponse
);
