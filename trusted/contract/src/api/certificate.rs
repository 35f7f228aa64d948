//! The certificate API (identity-service.md 3).
//!
//! Reading is free for whoever can open the socket; writing is judged by certificate id. Issuing
//! builds a certificate from a table of what the role may have and takes only the public key and
//! allowed names from the request (R57). A failed write leaves the old certificate in place.

use serde::{Deserialize, Serialize};

use super::key::KeyHandle;
use super::{endpoint, kib};
use crate::endpoint::{Api, Empty};
use crate::names::CertId;

/// The certificate API.
pub struct CertificateApi;

impl Api for CertificateApi {
    const NAME: &'static str = "certificate";
    const VERSIONS: &'static [&'static str] = &["2020-09-01"];
    const CURRENT: &'static str = "2020-09-01";
}

/// Certificate to issue.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateRequest {
    /// Under which id it is kept.
    pub cert_id: CertId,
    /// PKCS#10 in PEM.
    pub csr: String,
    /// Who issues; absent: the configuration decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<Issuer>,
}

/// An issuer named by the caller.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Issuer {
    /// Its certificate.
    pub cert_id: CertId,
    /// Its key.
    pub private_key_handle: KeyHandle,
}

/// A certificate, or a chain with the leaf first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pem {
    /// PEM text.
    pub pem: String,
}

endpoint!(
    /// Issue from a certificate request.
    Create: CertificateApi, Post "/certificates", CertUsers, kib(256),
    (), CreateRequest => Pem, 201
);
endpoint!(
    /// Read.
    Read: CertificateApi, Get "/certificates/{id}", Anyone, 0,
    CertId, Empty => Pem
);
endpoint!(
    /// Import.
    Import: CertificateApi, Put "/certificates/{id}", CertUsers, kib(256),
    CertId, Pem => Pem, 201
);
endpoint!(
    /// Delete; also when absent.
    Delete: CertificateApi, Delete "/certificates/{id}", CertUsers, 0,
    CertId, Empty => Empty
);
