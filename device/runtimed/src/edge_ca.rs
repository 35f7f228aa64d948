//! The Edge CA: the device's own issuer, whose key never leaves `keyd` (module-runtime.md 6.6).

use contract::api::certificate::{Create, CreateRequest, Read};
use contract::api::key::{CreateKeyPair, CreateKeyPairRequest, KeyHandle};
use contract::audit::{Decision, Entry, Event};
use contract::endpoint::Empty;
use contract::refusal::Refusal;
use local::client::CallError;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyUsagePurpose};
use x509_parser::pem::parse_x509_pem;

use crate::identity::upstream;
use crate::remote_key::RemoteKey;
use crate::runtime::Runtime;

/// Why there is no Edge CA.
#[derive(Debug, thiserror::Error)]
pub enum EdgeCaError {
    /// A service refused or is away; try again.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] crate::remote_key::RemoteKeyError),
    /// The request cannot be built.
    #[error("building the request of the Edge CA failed: {0}")]
    Build(#[from] rcgen::Error),
    /// The certificate there is another key's; replacing it would orphan what it has issued.
    #[error("certificate {0:?} does not belong to its key; delete one of them")]
    Mismatch(String),
    /// The certificate there cannot be read.
    #[error("certificate {0:?} is unreadable; delete it")]
    Unreadable(String),
}

impl Runtime {
    /// A handle of the Edge CA's key.
    ///
    /// # Errors
    /// What `keyd` answered.
    pub fn edge_ca_key(&self) -> Result<KeyHandle, Refusal> {
        self.edge_ca_pair().map_err(|error| upstream(&error))
    }

    fn edge_ca_pair(&self) -> Result<KeyHandle, CallError> {
        let request = CreateKeyPairRequest {
            key_id: self.config.edge_ca.key.clone(),
            preferred_algorithms: Some(self.config.edge_ca.algorithms.clone()),
        };
        Ok(self.keys.call::<CreateKeyPair>(&(), &request)?.key_handle)
    }

    /// Makes sure that there is an Edge CA, and that certificate and key belong together. Only a
    /// definite "not found" leads to a new one: a service that is away must not.
    ///
    /// # Errors
    /// [`EdgeCaError`]; nothing was changed.
    pub fn ensure_edge_ca(&self, device: Option<&str>) -> Result<(), EdgeCaError> {
        let ca = &self.config.edge_ca;
        let key = RemoteKey::load(&self.keys, self.edge_ca_pair()?)?;
        match self.certs.call::<Read>(&ca.cert, &Empty) {
            Ok(found) => {
                let id = || ca.cert.to_string();
                let (_, pem) = parse_x509_pem(found.pem.as_bytes())
                    .map_err(|_| EdgeCaError::Unreadable(id()))?;
                let cert = pem
                    .parse_x509()
                    .map_err(|_| EdgeCaError::Unreadable(id()))?;
                if cert.public_key().subject_public_key.data.as_ref() != key.public() {
                    return Err(EdgeCaError::Mismatch(id()));
                }
                return Ok(());
            }
            Err(CallError::Refused {
                status: 400,
                message,
            }) if message.contains("not found") => {}
            Err(other) => return Err(other.into()),
        }
        let name = ca.common_name.clone().unwrap_or_else(|| {
            format!("aziot-edge CA {}", device.unwrap_or(&self.config.hostname))
        });
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, cut(&name, 64));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
        ];
        let csr = params.serialize_request(&key)?.pem()?;
        let request = CreateRequest {
            cert_id: ca.cert.clone(),
            csr,
            issuer: None,
        };
        self.certs.call::<Create>(&(), &request)?;
        let mut entry = Entry::new(Event::CertIssued, Decision::Allowed, "daemon:runtimed");
        entry.operation = "edge-ca".to_owned();
        entry.object = ca.cert.to_string();
        self.audit.note(&self.clock.now(), entry);
        Ok(())
    }
}

/// At most `limit` characters.
pub fn cut(text: &str, limit: usize) -> String {
    text.chars().take(limit).collect()
}
