//! The workload API (module-runtime.md 3): what a module asks of its own socket.
//!
//! Everything that acts in a module's name is answered only to that module, attested for each
//! request (R1-R11); anything else is 403 without detail. The two certificate operations give a
//! fresh key with each certificate; nothing is stored that could be asked for again.

use serde::{Deserialize, Serialize};

use super::management::{ModuleList, RUNTIME_VERSIONS};
use super::{endpoint, kib};
use crate::bytes::{Bytes, Secret, SecretText};
use crate::endpoint::{Api, Empty, Maybe};
use crate::names::{Generation, ModuleName};

/// The workload API.
pub struct WorkloadApi;

impl Api for WorkloadApi {
    const NAME: &'static str = "workload";
    const VERSIONS: &'static [&'static str] = RUNTIME_VERSIONS;
    const CURRENT: &'static str = "2020-07-07";
}

/// Data to sign with the module's primary key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SignRequest {
    /// The data.
    pub data: Bytes,
    /// Not looked at; clients send `primary`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// Not looked at; clients send `HMACSHA256`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub algo: Option<String>,
}

/// The HMAC-SHA256 of the data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignResponse {
    /// 32 bytes.
    pub digest: Bytes,
}

/// Data to encrypt for this module and generation.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EncryptRequest {
    /// The data.
    pub plaintext: Secret,
    /// Goes into the context; never used as a nonce directly (R20).
    pub initialization_vector: Bytes,
}

/// Encrypted data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncryptResponse {
    /// The data.
    pub ciphertext: Bytes,
}

/// Data to decrypt.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DecryptRequest {
    /// The data.
    pub ciphertext: Bytes,
    /// As given when it was encrypted.
    pub initialization_vector: Bytes,
}

/// Decrypted data.
#[derive(Debug, Serialize, Deserialize)]
pub struct DecryptResponse {
    /// The data.
    pub plaintext: Secret,
}

/// PEM text of trusted roots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustBundle {
    /// PEM, or empty.
    pub certificate: String,
}

/// Client certificate to make.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityCertificateRequest {
    /// Not looked at, as in the reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiration: Option<String>,
}

/// Server certificate to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerCertificateRequest {
    /// One of the names this module may have (R57).
    pub common_name: String,
    /// Not looked at, as in the reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiration: Option<String>,
}

/// A certificate and its key.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateResponse {
    /// The key.
    pub private_key: PrivateKey,
    /// Chain in PEM, leaf first.
    pub certificate: String,
    /// End of validity, RFC 3339.
    pub expiration: String,
}

/// A private key made for the caller.
#[derive(Debug, Serialize, Deserialize)]
pub struct PrivateKey {
    /// `key`.
    #[serde(rename = "type")]
    pub kind: String,
    /// PKCS#8 in PEM.
    pub bytes: SecretText,
}

endpoint!(
    /// All modules, without their labels and options (R48).
    ListModules: WorkloadApi, Get "/modules", Anyone, 0,
    (), Empty => ModuleList
);
endpoint!(
    /// Roots that modules trust.
    ReadTrustBundle: WorkloadApi, Get "/trust-bundle", Anyone, 0,
    (), Empty => TrustBundle
);
endpoint!(
    /// Roots that sign deployments; empty when there are none.
    ReadManifestTrustBundle: WorkloadApi, Get "/manifest-trust-bundle", Anyone, 0,
    (), Empty => TrustBundle
);
endpoint!(
    /// Sign.
    Sign: WorkloadApi, Post "/modules/{name}/genid/{generation}/sign", Module, kib(64),
    (ModuleName, Generation), SignRequest => SignResponse,
    no_body "missing parameter: request body"
);
endpoint!(
    /// Encrypt.
    Encrypt: WorkloadApi, Post "/modules/{name}/genid/{generation}/encrypt", Module, kib(1024),
    (ModuleName, Generation), EncryptRequest => EncryptResponse
);
endpoint!(
    /// Decrypt.
    Decrypt: WorkloadApi, Post "/modules/{name}/genid/{generation}/decrypt", Module, kib(1024),
    (ModuleName, Generation), DecryptRequest => DecryptResponse
);
endpoint!(
    /// A client certificate.
    IdentityCertificate: WorkloadApi, Post "/modules/{name}/certificate/identity", Module, kib(64),
    ModuleName, Maybe<IdentityCertificateRequest> => CertificateResponse, 201
);
endpoint!(
    /// A server certificate.
    ServerCertificate: WorkloadApi,
    Post "/modules/{name}/genid/{generation}/certificate/server", Module, kib(64),
    (ModuleName, Generation), ServerCertificateRequest => CertificateResponse, 201
);
