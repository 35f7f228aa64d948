//! Whose fault it is, and which answer that gives on the wire (identity-service.md 1.4).
//!
//! The certificate part answers 400 for what the caller got wrong and 500 `internal error` for the
//! rest; the identity part answers 404 with the causes where keyd, hub or provisioning service
//! failed, as the reference does. Causes that the wire does not show are for the log.

use contract::audit::{Entry, Event};
use contract::names::{CertId, ModuleId};
use contract::refusal::{Class, Refusal};
use local::client::CallError;
use local::files::FileError;

use crate::certs::CertsError;
use crate::cloud::{CloudError, causes};
use crate::keys::KeyError;
use crate::provision::RecordError;

/// Where decisions are recorded; an error refuses the change that was to be recorded (R38).
pub type Journal = std::sync::Arc<dyn Fn(Entry) -> Result<(), Refusal> + Send + Sync>;

/// Told of a stored file that had to be read from its previous generation, or is lost: which, and
/// what is wrong with it.
pub type OnDamage = std::sync::Arc<dyn Fn(&str, &str) + Send + Sync>;

/// Who may not write under this id, in the compatible words.
#[must_use]
pub fn may_not_write(uid: u32, id: &CertId) -> Refusal {
    let text = format!("user {uid} is not authorized to modify the cert {id}");
    Refusal::new(Class::Unauthorized, text).recorded_as(Event::CertRefused)
}

impl From<CertsError> for Refusal {
    fn from(error: CertsError) -> Self {
        let refused =
            |name, why: String| Self::parameter(name, why).recorded_as(Event::CertRefused);
        match &error {
            CertsError::NotFound => Self::parameter("id", &error),
            CertsError::Import(_) => refused("pem", causes(&error)),
            CertsError::Csr(_) | CertsError::Asked(_) => refused("csr", error.to_string()),
            CertsError::NamedIssuer(_) => refused("issuer", error.to_string()),
            _ => Self::internal(causes(&error)),
        }
    }
}

/// Why the identity API did not answer as wished.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The caller may not.
    #[error("authorization error")]
    Unauthorized,
    /// The configuration gives this device no identity.
    #[error("device identity not found")]
    NoDevice,
    /// The device is not provisioned yet; the daemon goes on trying.
    #[error("the device is not provisioned yet")]
    NotYet,
    /// Provisioning or reconciling is under way.
    #[error("provisioning is under way")]
    Busy,
    /// There is no such module.
    #[error("module identity not found")]
    NoModule,
    /// A value that does not go here.
    #[error("invalid parameter: {0}")]
    Parameter(&'static str),
    /// A local identity that the configuration already names.
    #[error("local identity for {0} already exists")]
    LocalExists(ModuleId),
    /// The provisioning service.
    #[error("DPS client error")]
    Dps(#[source] CloudError),
    /// The hub.
    #[error("Hub client error")]
    Hub(#[source] CloudError),
    /// keyd.
    #[error("Key client error")]
    Key(#[from] KeyError),
    /// This daemon may not keep a certificate under that name.
    #[error("this daemon may not write the certificate {0}")]
    NotOurs(CertId),
    /// The certificate service answered something else than a chain.
    #[error("the certificate service's answer is no certificate")]
    BadCertificate,
    /// The certificate part, in this daemon.
    #[error("no certificate was issued")]
    Certs(#[from] CertsError),
    /// The certificate service, another daemon.
    #[error("no certificate was issued")]
    Certd(#[from] CallError),
    /// A local identity's key or request could not be made.
    #[error("no key was made")]
    Make(#[from] rcgen::Error),
    /// The record.
    #[error("the record cannot be read or written")]
    File(#[from] FileError),
    /// Both generations of the record are damaged.
    #[error("the record is damaged")]
    Record(#[from] RecordError),
    /// The change could not be recorded in the audit log.
    #[error("{0}")]
    Audit(Refusal),
}

impl IdentityError {
    /// Whether it may pass without anyone changing anything.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Dps(error) | Self::Hub(error) => error.is_offline(),
            Self::Key(KeyError::Away(_)) | Self::File(_) | Self::Busy => true,
            _ => false,
        }
    }
}

impl From<IdentityError> for Refusal {
    fn from(error: IdentityError) -> Self {
        let text = causes(&error);
        match error {
            IdentityError::Audit(refusal) => refusal,
            IdentityError::Unauthorized => Self::new(Class::Unauthorized, text),
            IdentityError::NoDevice
            | IdentityError::NoModule
            | IdentityError::Parameter(_)
            | IdentityError::LocalExists(_) => Self::new(Class::BadRequest, text),
            IdentityError::Dps(_) => {
                Self::new(Class::NotFound, text).recorded_as(Event::ProvisioningRefused)
            }
            IdentityError::Hub(_) | IdentityError::Key(_) => Self::new(Class::NotFound, text),
            IdentityError::NotYet | IdentityError::Busy => Self::new(Class::Unavailable, text),
            IdentityError::NotOurs(_)
            | IdentityError::BadCertificate
            | IdentityError::Certs(_)
            | IdentityError::Certd(_)
            | IdentityError::Make(_)
            | IdentityError::File(_)
            | IdentityError::Record(_) => Self::internal(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use net::registry::RegistryError;

    use super::*;
    use crate::csr::CsrError;

    #[test]
    fn answers_have_the_compatible_status_and_text() {
        let id = CertId::new("x").unwrap();
        let hub = RegistryError::Hub {
            status: 404,
            message: "gone".to_owned(),
        };
        let table: Vec<(Refusal, u16, &str)> = vec![
            (
                CertsError::NotFound.into(),
                400,
                "parameter \"id\" has an invalid value\ncaused by: not found",
            ),
            (
                CertsError::Csr(CsrError::Signature).into(),
                400,
                "parameter \"csr\" has an invalid value\ncaused by: its own signature does not verify",
            ),
            (
                CertsError::NamedIssuer("not found").into(),
                400,
                "parameter \"issuer\" has an invalid value\ncaused by: not found",
            ),
            (
                CertsError::NoIssuance { id: id.clone() }.into(),
                500,
                "internal error",
            ),
            (
                CertsError::Bundle { id: id.clone() }.into(),
                500,
                "internal error",
            ),
            (
                may_not_write(7, &id),
                401,
                "user 7 is not authorized to modify the cert x",
            ),
            (
                IdentityError::Unauthorized.into(),
                401,
                "authorization error",
            ),
            (
                IdentityError::NoDevice.into(),
                400,
                "device identity not found",
            ),
            (
                IdentityError::NoModule.into(),
                400,
                "module identity not found",
            ),
            (
                IdentityError::Hub(hub.into()).into(),
                404,
                "Hub client error\ncaused by: the hub refuses with 404: gone",
            ),
            (
                IdentityError::Key(KeyError::Refused {
                    status: 400,
                    message: "no".to_owned(),
                })
                .into(),
                404,
                "Key client error\ncaused by: no",
            ),
        ];
        for (refusal, status, text) in table {
            assert_eq!(
                (refusal.class.status(), refusal.message.as_str()),
                (status, text)
            );
        }
    }
}
