//! The device's identity, local identities, and what the identity API says about provisioning
//! (identity-service.md 4.1-4.4).
//!
//! Identities are answered from memory with one call to keyd for a fresh handle; no lock is held
//! while keyd, the hub or a disk is waited for. Module identities are in [`crate::modules`];
//! changing what is in force is [`crate::act`]'s.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, RsaKeySize,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use contract::api::certificate::{Create, CreateRequest};
use contract::api::identity::{
    Auth, AuthKind, AziotIdentity, Identity, LocalAuth, LocalIdentity, LocalOptions, LocalRole,
    ProvisioningInfo,
};
use contract::api::key::KeyHandle;
use contract::audit::{Decision, Entry, Event};
use contract::bytes::SecretText;
use contract::names::{CertId, KeyId, ModuleId};
use contract::time::rfc3339;
use local::client::Client;
use local::files::{Rules, own_uid};

use crate::certs::Certs;
use crate::cloud::{self, Cloud, Hub};
use crate::config::{self, Principal, PrincipalKind, Provisioning, Who};
use crate::error::{IdentityError, Journal};
use crate::keys::Keys;
use crate::pem::Chain;
use crate::provision::Device;
use crate::store::{Modules, Store};

/// The longest common name in bytes; a local identity's is cut to it (identity-service.md 4.4).
const MAX_COMMON_NAME: usize = 64;

/// Who issues the certificates of local identities.
pub trait Issuing: Send + Sync {
    /// The chain for a request, leaf first, kept under this id.
    ///
    /// # Errors
    /// [`IdentityError::Certs`] or [`IdentityError::Certd`].
    fn issue(&self, id: &CertId, csr: &str) -> Result<String, IdentityError>;
}

/// The certificate part of this daemon. Its policy holds for us as for anybody: a local identity
/// has a row for its name, and never takes the place of an issuer.
impl Issuing for Certs {
    fn issue(&self, id: &CertId, csr: &str) -> Result<String, IdentityError> {
        if !self.may_write(own_uid(), id) || self.is_for_issuers(id) {
            return Err(IdentityError::NotOurs(id.clone()));
        }
        Ok(Self::issue(self, id, csr, None)?.to_pem())
    }
}

/// Another daemon beside this one.
impl Issuing for Client {
    fn issue(&self, id: &CertId, csr: &str) -> Result<String, IdentityError> {
        let request = CreateRequest {
            cert_id: id.clone(),
            csr: csr.to_owned(),
            issuer: None,
        };
        Ok(self.call::<Create>(&(), &request)?.pem)
    }
}

/// A provisioned device: its record, its hub, its modules.
pub struct Provisioned {
    /// The device.
    pub device: Device,
    /// Its registry.
    pub hub: Box<dyn Hub>,
    /// What is remembered of its modules.
    pub modules: Modules,
}

/// What is in force. Two lives are two variants.
#[derive(Clone)]
pub enum Life {
    /// By configuration there is no device.
    None,
    /// There will be one.
    NotYet,
    /// There is one.
    Provisioned(Arc<Provisioned>),
}

/// What an [`Identities`] is made of.
pub struct Parts {
    /// Its configuration at the start.
    pub config: config::Identities,
    /// Its state.
    pub store: Store,
    /// keyd.
    pub keys: Arc<dyn Keys>,
    /// Provisioning service and hub.
    pub cloud: Box<dyn Cloud>,
    /// Who issues local identities.
    pub issuing: Arc<dyn Issuing>,
    /// The audit log.
    pub journal: Journal,
    /// For the operator's files.
    pub rules: Rules,
}

/// The identities of this device.
pub struct Identities {
    pub(crate) parts: Parts,
    config: RwLock<Arc<config::Identities>>,
    life: RwLock<Life>,
    /// Set while provisioning or reconciling runs: one at a time, nobody waits.
    pub(crate) changing: AtomicBool,
    /// The handle of the modules' master key, as long as keyd accepts it.
    pub(crate) master: Mutex<Option<KeyHandle>>,
}

impl Identities {
    /// Nothing is in force yet; see [`Self::start`].
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self {
            config: RwLock::new(Arc::new(parts.config.clone())),
            parts,
            life: RwLock::new(Life::NotYet),
            changing: AtomicBool::new(false),
            master: Mutex::new(None),
        }
    }

    /// Puts other principals and preferences in force; what concerns provisioning waits for the
    /// next start, since a record belongs to the settings it came from.
    pub fn reconfigure(&self, config: config::Identities) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }

    /// What is in force.
    pub(crate) fn config(&self) -> Arc<config::Identities> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Who a user is.
    #[must_use]
    pub fn who(&self, uid: u32) -> Who {
        self.config().who(uid)
    }

    /// Where decisions are recorded.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.parts.journal
    }

    pub(crate) fn live(&self, life: Life) {
        *self.life.write().unwrap_or_else(PoisonError::into_inner) = life;
    }

    /// The provisioned device.
    pub(crate) fn provisioned(&self) -> Result<Arc<Provisioned>, IdentityError> {
        match &*self.life.read().unwrap_or_else(PoisonError::into_inner) {
            Life::None => Err(IdentityError::NoDevice),
            Life::NotYet => Err(IdentityError::NotYet),
            Life::Provisioned(one) => Ok(Arc::clone(one)),
        }
    }

    /// The caller's own identity.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn own(&self, who: &Who) -> Result<Identity, IdentityError> {
        match who {
            Who::Root | Who::Daemon => self.device(),
            Who::Host(Principal {
                kind: PrincipalKind::Host { device: true, .. },
                ..
            }) => self.device(),
            Who::Host(Principal {
                name,
                kind: PrincipalKind::Host { module: true, .. },
                ..
            }) => self.module(name),
            _ => Err(IdentityError::Unauthorized),
        }
    }

    /// The device's identity, with a fresh handle.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn device(&self) -> Result<Identity, IdentityError> {
        let provisioned = self.provisioned()?;
        let key_handle = Some(self.parts.keys.key(self.device_key()?)?);
        let auth = Auth {
            kind: AuthKind::Sas,
            key_handle,
            cert_id: None,
        };
        Ok(Identity::Aziot(aziot(
            &provisioned.device,
            None,
            Some(auth),
        )))
    }

    fn device_key(&self) -> Result<&KeyId, IdentityError> {
        match &self.parts.config.provisioning {
            Provisioning::Manual { key, .. } | Provisioning::Dps { key, .. } => Ok(key),
            Provisioning::None => Err(IdentityError::NoDevice),
        }
    }

    /// How the device was provisioned.
    ///
    /// # Errors
    /// [`IdentityError::Dps`] when the payload file cannot be read.
    pub fn provisioning(&self) -> Result<ProvisioningInfo, IdentityError> {
        let source = &self.parts.config.provisioning;
        Ok(match source {
            Provisioning::None => ProvisioningInfo::None,
            Provisioning::Manual { .. } => ProvisioningInfo::Manual {
                auth: "sas".to_owned(),
            },
            Provisioning::Dps {
                endpoint,
                scope,
                registration,
                ..
            } => ProvisioningInfo::Dps {
                auth: "symmetric_key".to_owned(),
                endpoint: format!("https://{endpoint}/"),
                scope_id: scope.clone(),
                registration_id: registration.to_string(),
                payload: cloud::payload(source, self.parts.rules)
                    .map_err(IdentityError::Dps)?
                    .unwrap_or_default(),
            },
        })
    }

    /// The local identity that the configuration gives a host process.
    ///
    /// # Errors
    /// [`IdentityError::NoModule`] for any other name.
    pub fn local(&self, who: &str, name: &ModuleId) -> Result<Identity, IdentityError> {
        let options = self
            .parts
            .config
            .local(name)
            .ok_or(IdentityError::NoModule)?;
        self.make_local(who, name, options.attributes)
    }

    /// A local identity for a name that the configuration does not know.
    ///
    /// # Errors
    /// [`IdentityError::LocalExists`] for one that it does.
    pub fn create_local(
        &self,
        who: &str,
        name: &ModuleId,
        options: Option<&LocalOptions>,
    ) -> Result<Identity, IdentityError> {
        if self.config().local(name).is_some() {
            return Err(IdentityError::LocalExists(name.clone()));
        }
        self.make_local(
            who,
            name,
            options.map_or(LocalRole::Client, |o| o.attributes),
        )
    }

    /// On record before a key is made, and again if there is none to hand out (R37).
    fn make_local(
        &self,
        who: &str,
        name: &ModuleId,
        role: LocalRole,
    ) -> Result<Identity, IdentityError> {
        let entry = |event, decision| {
            let mut entry = Entry::new(event, decision, who);
            "issue a local identity".clone_into(&mut entry.operation);
            name.as_str().clone_into(&mut entry.object);
            entry
        };
        let journal = &self.parts.journal;
        journal(entry(Event::CertIssued, Decision::Allowed)).map_err(IdentityError::Audit)?;
        self.issue_local(name, role).inspect_err(|error| {
            let mut entry = entry(Event::CertRefused, Decision::Refused);
            entry.reason = cloud::causes(error);
            // The refusal stands whether or not it could be recorded.
            let _ = journal(entry);
        })
    }

    fn issue_local(&self, name: &ModuleId, role: LocalRole) -> Result<Identity, IdentityError> {
        let config = self.config();
        let domain = config
            .local_domain
            .as_ref()
            .ok_or(IdentityError::Parameter("type"))?;
        let id = CertId::new(name.as_str()).map_err(|_| IdentityError::NoModule)?;
        let common = cut(
            &format!("{name}.{}.{domain}", config.hostname),
            MAX_COMMON_NAME,
        )
        .to_owned();
        let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048)?;
        let csr = local_request(&common, role)
            .serialize_request(&key)?
            .pem()?;
        let certificate = self.parts.issuing.issue(&id, &csr)?;
        let expiration = Chain::parse(&certificate)
            .ok()
            .and_then(|chain| not_after(chain.leaf()))
            .ok_or(IdentityError::BadCertificate)?;
        Ok(Identity::Local(LocalIdentity {
            module_id: name.clone(),
            auth: LocalAuth {
                private_key: SecretText::new(key.serialize_pem()),
                certificate,
                expiration,
            },
        }))
    }
}

/// An identity at the hub, as the API says it.
pub(crate) fn aziot(
    device: &Device,
    module: Option<&cloud::Known>,
    auth: Option<Auth>,
) -> AziotIdentity {
    AziotIdentity {
        hub_name: device.hub.to_string(),
        gateway_host: device.gateway.to_string(),
        device_id: device.id.to_string(),
        module_id: module.map(|m| m.id.to_string()),
        gen_id: module
            .and_then(|m| m.generation.as_ref())
            .map(ToString::to_string),
        auth,
    }
}

/// What the reference asks for; the certificate part has its own table all the same.
fn local_request(common: &str, role: LocalRole) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::ContentCommitment,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if role == LocalRole::Server {
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params
}

fn not_after(leaf: &[u8]) -> Option<String> {
    let (_, cert) = X509Certificate::from_der(leaf).ok()?;
    let text = rfc3339(cert.validity().not_after.timestamp());
    Some(format!("{}+00:00", text.trim_end_matches('Z')))
}

/// The beginning of a text, never half a character.
fn cut(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
