//! The identity API (identity-service.md 4).
//!
//! It names identities and the key handles that act for them; no key bytes except those of local
//! identities, which the protocol makes for the caller. While the hub is away, reading goes on from
//! the last record; creating, updating and deleting fail with a typed reason.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::key::KeyHandle;
use super::{endpoint, kib};
use crate::bytes::SecretText;
use crate::endpoint::{Api, BadTarget, Empty, Maybe, Parts, Target};
use crate::names::{CertId, ModuleId};

/// The identity API.
pub struct IdentityApi;

impl Api for IdentityApi {
    const NAME: &'static str = "identity";
    const VERSIONS: &'static [&'static str] = &["2020-09-01", "2021-12-01", "2022-08-01"];
    const CURRENT: &'static str = "2022-08-01";
}

/// An identity.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", content = "spec", rename_all = "lowercase")]
pub enum Identity {
    /// Known at the hub.
    Aziot(AziotIdentity),
    /// Known on this device only.
    Local(LocalIdentity),
}

/// An identity at the hub: the device's, or a module's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AziotIdentity {
    /// The hub a token is made for.
    pub hub_name: String,
    /// The host a client connects to.
    pub gateway_host: String,
    /// The device.
    pub device_id: String,
    /// The module; absent for the device itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module_id: Option<String>,
    /// The module's generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gen_id: Option<String>,
    /// How it proves itself; absent in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
}

/// How an identity proves itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Auth {
    /// The kind.
    #[serde(rename = "type")]
    pub kind: AuthKind,
    /// The key, for `sas` and `x509`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_handle: Option<KeyHandle>,
    /// The certificate, for `x509`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_id: Option<CertId>,
}

/// Kinds of proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthKind {
    /// Shared access signature.
    Sas,
    /// Certificate.
    X509,
    /// TPM.
    Tpm,
}

/// A local identity with its key, made for the caller.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalIdentity {
    /// Its name.
    pub module_id: ModuleId,
    /// Its credential.
    pub auth: LocalAuth,
}

/// Credential of a local identity.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalAuth {
    /// PKCS#8 in PEM.
    pub private_key: SecretText,
    /// Chain in PEM, leaf first.
    pub certificate: String,
    /// End of validity, RFC 3339.
    pub expiration: String,
}

/// A list of identities, without credentials.
#[derive(Debug, Serialize, Deserialize)]
pub struct IdentityList {
    /// The identities.
    pub identities: Vec<Identity>,
}

/// The device's identity is asked for; the value is not looked at.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceRequest {
    /// `aziot`.
    #[serde(rename = "type")]
    pub kind: String,
}

/// Module identity to create.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateModuleRequest {
    /// Where it lives.
    #[serde(rename = "type")]
    pub kind: IdentityKind,
    /// Its name.
    pub module_id: ModuleId,
    /// For a local one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_id_opts: Option<LocalOptions>,
}

/// Where an identity lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdentityKind {
    /// At the hub.
    Aziot,
    /// On this device.
    Local,
}

/// Options of a local identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalOptions {
    /// `x509`.
    #[serde(rename = "type")]
    pub kind: AuthKind,
    /// Client or server.
    pub attributes: LocalRole,
}

/// What a local identity's certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LocalRole {
    /// Client.
    Client,
    /// Client and server.
    Server,
}

/// `?type=` of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OfKind(pub IdentityKind);

fn kind(parts: &Parts) -> Result<IdentityKind, BadTarget> {
    match parts.query("type") {
        Some("aziot") => Ok(IdentityKind::Aziot),
        Some("local") => Ok(IdentityKind::Local),
        Some(_) => Err(BadTarget::Query("type")),
        None => Err(BadTarget::Missing("type")),
    }
}

fn kind_query(kind: IdentityKind) -> Vec<(String, String)> {
    let word = match kind {
        IdentityKind::Aziot => "aziot",
        IdentityKind::Local => "local",
    };
    vec![("type".to_owned(), word.to_owned())]
}

impl Target for OfKind {
    fn read(parts: &Parts) -> Result<Self, BadTarget> {
        kind(parts).map(Self)
    }
    fn write(&self) -> Parts {
        Parts {
            path: Vec::new(),
            query: kind_query(self.0),
        }
    }
}

/// One module identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OneModule {
    /// Its name.
    pub id: ModuleId,
    /// Where it lives.
    pub kind: IdentityKind,
}

impl OneModule {
    /// A module identity at the hub.
    #[must_use]
    pub const fn aziot(id: ModuleId) -> Self {
        Self {
            id,
            kind: IdentityKind::Aziot,
        }
    }
}

impl Target for OneModule {
    fn read(parts: &Parts) -> Result<Self, BadTarget> {
        Ok(Self {
            id: ModuleId::new(parts.at(0))?,
            kind: kind(parts)?,
        })
    }
    fn write(&self) -> Parts {
        Parts {
            path: vec![self.id.to_string()],
            query: kind_query(self.kind),
        }
    }
}

/// How the device was provisioned (member names are snake case here).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "lowercase")]
pub enum ProvisioningInfo {
    /// Through the provisioning service.
    Dps {
        /// `symmetric_key`, `x509` or `tpm`.
        auth: String,
        /// Its address.
        endpoint: String,
        /// The scope.
        scope_id: String,
        /// The registration.
        registration_id: String,
        /// Content of the request payload file.
        payload: Value,
    },
    /// From the configuration.
    Manual {
        /// `sas` or `x509`.
        auth: String,
    },
    /// Not at all.
    None,
}

/// Bundle of trusted roots; always empty in the compatible protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustBundle {
    /// PEM text.
    pub certificate: String,
}

endpoint!(
    /// The caller's own identity.
    Own: IdentityApi, Get "/identities/identity", Identities, 0,
    (), Empty => Identity
);
endpoint!(
    /// The device's identity.
    Device: IdentityApi, Post "/identities/device", Identities, kib(64),
    (), DeviceRequest => Identity
);
endpoint!(
    /// Provision again.
    Reprovision: IdentityApi, Post "/identities/device/reprovision", Services, kib(64),
    (), Maybe<Value> => Empty
);
endpoint!(
    /// How the device was provisioned.
    Provisioning: IdentityApi, Get "/identities/provisioning" since "2021-12-01", Anyone, 0,
    (), Empty => ProvisioningInfo
);
endpoint!(
    /// All module identities.
    ListModules: IdentityApi, Get "/identities/modules", Services, 0,
    OfKind, Empty => IdentityList
);
endpoint!(
    /// Create a module identity.
    CreateModule: IdentityApi, Post "/identities/modules", Services, kib(64),
    (), CreateModuleRequest => Identity
);
endpoint!(
    /// One module identity.
    ReadModule: IdentityApi, Get "/identities/modules/{id}", Identities, 0,
    OneModule, Empty => Identity
);
endpoint!(
    /// Refresh a module identity's keys at the hub.
    UpdateModule: IdentityApi, Put "/identities/modules/{id}", Services, kib(64),
    OneModule, Value => Identity
);
endpoint!(
    /// Delete a module identity.
    DeleteModule: IdentityApi, Delete "/identities/modules/{id}", Services, 0,
    OneModule, Empty => Empty
);
endpoint!(
    /// Trusted roots; the reference never filled it.
    ReadTrustBundle: IdentityApi, Get "/trust-bundle", Anyone, 0,
    (), Empty => TrustBundle
);
