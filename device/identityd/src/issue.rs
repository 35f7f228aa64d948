//! Issuing: which certificate a request gets, from a table, and building it (R57).
//!
//! | role | asked by | basicConstraints | keyUsage (critical) | extKeyUsage |
//! |---|---|---|---|---|
//! | issuer | CA:TRUE, and the id is one for issuers | critical, CA:TRUE, pathlen by id | keyCertSign, digitalSignature | - |
//! | leaf | anything else | critical, CA:FALSE | digitalSignature; RSA also keyEncipherment | serverAuth, clientAuth as asked |
//!
//! A certificate never outlives its issuer and never begins before it (A65). What was built is read
//! back before it leaves: its issuer's name is byte for byte the issuer's own, and its signature
//! verifies with the issuer's key, so a handle of another key cannot slip through (R22).
//! Pure but for the one signature, which is [`RemoteKey`]'s. Who may ask is [`crate::certs`]'s.

use std::num::NonZeroU32;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyIdMethod, KeyUsagePurpose, SerialNumber, SubjectPublicKeyInfo,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo as WireKey;

use contract::api::key::KeyHandle;

use crate::csr::{self, NameError, Request, Wish};
use crate::keys::{KeyError, Keys, RemoteKey};

/// How far a new certificate begins in the past, for verifiers whose clock is behind.
const BACKDATE: i64 = 300;
/// The last moment a certificate can name: the end of the year 9999.
const END_OF_TIME: i64 = 253_402_300_799;
/// Days a certificate lives when the configuration does not say.
pub const DEFAULT_DAYS: NonZeroU32 = NonZeroU32::new(30).unwrap();

/// Why nothing was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The request asks for what its id may not have.
    #[error("{0}")]
    Role(&'static str),
    /// Neither the request nor the configuration names a subject.
    #[error("it names no subject")]
    NoSubject,
    /// A leaf with its issuer's name would end every chain at itself.
    #[error("its subject is the issuer's own")]
    IssuersName,
    /// A self-signed certificate for somebody else's key.
    #[error("its key is not the one that is to sign")]
    OtherKey,
    /// The issuer cannot issue this.
    #[error("the issuer cannot issue this")]
    Issuer(#[from] IssuerError),
    /// keyd did not sign.
    #[error("the certificate was not signed")]
    Key(#[from] KeyError),
    /// The certificate could not be written.
    #[error("the certificate could not be built")]
    Build(#[from] rcgen::Error),
    /// What was built is not what was meant: the issuer's key is not the issuer's certificate's.
    #[error("the new certificate does not verify with its issuer: {0}")]
    Check(&'static str),
}

/// Why a certificate is no issuer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IssuerError {
    /// Not a certificate.
    #[error("it does not parse")]
    Syntax,
    /// A name that we could not repeat byte for byte.
    #[error("its subject cannot be repeated")]
    Subject(#[from] NameError),
    /// CA:FALSE, or no keyCertSign.
    #[error("it is not a certificate authority")]
    NotAuthority,
    /// Its path length is used up.
    #[error("it may not have issuers below it")]
    PathLength,
    /// Its time is over.
    #[error("it is expired")]
    Expired,
    /// A key that keyd cannot sign with.
    #[error("its key is neither RSA nor P-256")]
    Key,
}

/// What one certificate gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It may issue, with this many issuers below it.
    Issuer {
        /// pathLenConstraint.
        below: u8,
    },
    /// It may not.
    Leaf {
        /// serverAuth.
        server: bool,
        /// clientAuth.
        client: bool,
    },
}

impl Role {
    /// The role for a wish; `below` is the path length an issuer under this id gets, `None` when
    /// the id is none for issuers (A64).
    ///
    /// # Errors
    /// [`IssueError::Role`] when it asks for more than it may have.
    pub fn of(wish: Wish, below: Option<u8>) -> Result<Self, IssueError> {
        match (wish, below) {
            (Wish::Leaf { server, client }, _) => Ok(Self::Leaf { server, client }),
            (Wish::Issuer, Some(below)) => Ok(Self::Issuer { below }),
            (Wish::Issuer, None) => Err(IssueError::Role(
                "this certificate id may not become an issuer",
            )),
        }
    }

    fn apply(self, rsa: bool, params: &mut CertificateParams) {
        match self {
            Self::Issuer { below } => {
                params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
                params.key_usages = vec![
                    KeyUsagePurpose::DigitalSignature,
                    KeyUsagePurpose::KeyCertSign,
                ];
            }
            Self::Leaf { server, client } => {
                params.is_ca = IsCa::ExplicitNoCa;
                params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
                if rsa {
                    params.key_usages.push(KeyUsagePurpose::KeyEncipherment);
                }
                if server {
                    params
                        .extended_key_usages
                        .push(ExtendedKeyUsagePurpose::ServerAuth);
                }
                if client {
                    params
                        .extended_key_usages
                        .push(ExtendedKeyUsagePurpose::ClientAuth);
                }
            }
        }
    }
}

/// From when to when, in Unix seconds, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// notBefore.
    pub from: i64,
    /// notAfter.
    pub to: i64,
}

impl Validity {
    /// A life of `days` from `now`, within the issuer's (A65).
    ///
    /// # Errors
    /// [`IssuerError::Expired`] when the issuer's time is over.
    pub fn new(now: i64, days: NonZeroU32, issuer: Option<Self>) -> Result<Self, IssuerError> {
        let issuer = issuer.unwrap_or(Self {
            from: 0,
            to: END_OF_TIME,
        });
        // A clock behind the issuer's beginning is wrong, not a reason for a life of no length.
        let now = now.max(issuer.from).max(0);
        let to = now
            .saturating_add(i64::from(days.get()) * 86_400)
            .min(issuer.to)
            .min(END_OF_TIME);
        let from = (now - BACKDATE).max(issuer.from).max(0);
        if to <= now {
            Err(IssuerError::Expired)
        } else {
            Ok(Self { from, to })
        }
    }
}

/// An issuing certificate, read once.
#[derive(Debug)]
pub struct Authority {
    subject: DistinguishedName,
    subject_der: Vec<u8>,
    key: SubjectPublicKeyInfo,
    key_der: Vec<u8>,
    key_id: Option<Vec<u8>>,
    below: Option<u32>,
    validity: Validity,
}

impl Authority {
    /// Reads a certificate that is to issue.
    ///
    /// # Errors
    /// [`IssuerError`] when it may not.
    pub fn parse(der: &[u8]) -> Result<Self, IssuerError> {
        let (_, cert) = X509Certificate::from_der(der).map_err(|_| IssuerError::Syntax)?;
        let constraints = cert.basic_constraints().map_err(|_| IssuerError::Syntax)?;
        let constraints = constraints.map(|e| e.value);
        let usage = cert.key_usage().map_err(|_| IssuerError::Syntax)?;
        if !constraints.is_some_and(|c| c.ca) || usage.is_some_and(|u| !u.value.key_cert_sign()) {
            return Err(IssuerError::NotAuthority);
        }
        let key =
            SubjectPublicKeyInfo::from_der(cert.public_key().raw).map_err(|_| IssuerError::Key)?;
        if !crate::keys::can_sign(&key) {
            return Err(IssuerError::Key);
        }
        let key_id = cert
            .iter_extensions()
            .find_map(|e| match e.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                _ => None,
            });
        Ok(Self {
            subject: csr::distinguished_name(cert.subject())?,
            subject_der: cert.subject().as_raw().to_vec(),
            key,
            key_der: cert.public_key().raw.to_vec(),
            key_id,
            below: constraints.and_then(|c| c.path_len_constraint),
            validity: Validity {
                from: cert.validity().not_before.timestamp(),
                to: cert.validity().not_after.timestamp(),
            },
        })
    }
}

/// Who signs.
#[derive(Debug, Clone, Copy)]
pub enum By<'a> {
    /// The key that is certified.
    Itself,
    /// An authority.
    Authority(&'a Authority),
}

/// One certificate to issue.
pub struct Order<'a> {
    /// The verified request.
    pub request: &'a Request,
    /// What it gets.
    pub role: Role,
    /// The configured subject; otherwise the request's.
    pub subject: Option<&'a DistinguishedName>,
    /// The configured life.
    pub days: NonZeroU32,
    /// Who signs.
    pub by: By<'a>,
    /// Unix seconds.
    pub now: i64,
    /// Random bytes for the serial number.
    pub random: [u8; 16],
}

impl Order<'_> {
    /// Builds the certificate and has it signed; the answer is DER.
    ///
    /// # Errors
    /// [`IssueError`]; nothing was issued then.
    pub fn issue(&self, keys: &dyn Keys, handle: &KeyHandle) -> Result<Vec<u8>, IssueError> {
        let request = self.request;
        let (authority, key) = match self.by {
            By::Itself => (None, request.key.clone()),
            By::Authority(authority) => (Some(authority), authority.key.clone()),
        };
        if authority.is_none() && !crate::keys::can_sign(&key) {
            return Err(IssuerError::Key.into());
        }
        if let (
            Some(Authority {
                below: Some(left), ..
            }),
            Role::Issuer { below },
        ) = (authority, self.role)
            && u32::from(below) >= *left
        {
            return Err(IssuerError::PathLength.into());
        }
        if matches!(self.role, Role::Issuer { .. }) && !request.names.is_empty() {
            return Err(IssueError::Role("an issuer has no alternative names"));
        }
        let subject = self
            .subject
            .or(request.subject.as_ref())
            .ok_or(IssueError::NoSubject)?;
        if authority.is_some_and(|a| a.subject == *subject) {
            return Err(IssueError::IssuersName);
        }
        let params = self.params(subject, authority)?;
        let key = RemoteKey::new(keys, handle, key);
        let built = match authority {
            None => params.self_signed(&key),
            Some(authority) => {
                let mut issuer = CertificateParams::default();
                issuer.distinguished_name = authority.subject.clone();
                if let Some(id) = &authority.key_id {
                    issuer.key_identifier_method = KeyIdMethod::PreSpecified(id.clone());
                }
                params.signed_by(&request.key, &Issuer::from_params(&issuer, &key))
            }
        };
        // rcgen cannot carry the reason of a remote key; the key kept it.
        if let Some(reason) = key.failure() {
            return Err(reason.into());
        }
        let der = built?.der().to_vec();
        match (check(&der, authority, &request.key_der), authority) {
            (Ok(()), _) => Ok(der),
            (Err(_), None) => Err(IssueError::OtherKey),
            (Err(why), Some(_)) => Err(why),
        }
    }

    fn params(
        &self,
        subject: &DistinguishedName,
        authority: Option<&Authority>,
    ) -> Result<CertificateParams, IssueError> {
        let life = Validity::new(self.now, self.days, authority.map(|a| a.validity))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject.clone();
        params.subject_alt_names = self.request.names.clone();
        params.serial_number = Some(serial(self.random));
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + Duration::from_secs(life.from.unsigned_abs());
        params.not_after = epoch + Duration::from_secs(life.to.unsigned_abs());
        params.use_authority_key_identifier_extension =
            authority.is_some_and(|a| a.key_id.is_some());
        self.role.apply(self.request.rsa, &mut params);
        Ok(params)
    }
}

/// A positive number of 16 bytes with 126 random bits, never the zero of the reference.
fn serial(mut random: [u8; 16]) -> SerialNumber {
    random[0] = (random[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&random)
}

fn check(der: &[u8], authority: Option<&Authority>, own_key: &[u8]) -> Result<(), IssueError> {
    let fail = IssueError::Check;
    let (_, cert) = X509Certificate::from_der(der).map_err(|_| fail("it does not parse"))?;
    let (name, key) = match authority {
        Some(authority) => (
            authority.subject_der.as_slice(),
            authority.key_der.as_slice(),
        ),
        None => (cert.subject().as_raw(), own_key),
    };
    if cert.issuer().as_raw() != name {
        return Err(fail("the issuer's name is spelled otherwise"));
    }
    if cert.public_key().raw != own_key {
        return Err(fail("the key is spelled otherwise"));
    }
    let (_, key) = WireKey::from_der(key).map_err(|_| fail("the issuer's key does not parse"))?;
    cert.verify_signature(Some(&key))
        .map_err(|_| fail("signed by another key"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    #[test]
    fn a65_a_life_is_clipped_to_the_issuers_and_to_the_end_of_time() {
        let days = |n| NonZeroU32::new(n).unwrap();
        let issuer = Validity {
            from: 1_000_000,
            to: 1_000_000 + 90 * DAY,
        };
        let now = 1_000_000 + 10 * DAY;
        for (now, life, issuer, want) in [
            (now, 30, None, Some((now - 300, now + 30 * DAY))),
            (now, 30, Some(issuer), Some((now - 300, now + 30 * DAY))),
            (now, 365, Some(issuer), Some((now - 300, issuer.to))),
            (
                1_000_010,
                30,
                Some(issuer),
                Some((issuer.from, 1_000_010 + 30 * DAY)),
            ),
            (
                0,
                30,
                Some(issuer),
                Some((issuer.from, issuer.from + 30 * DAY)),
            ),
            (-5, 30, None, Some((0, 30 * DAY))),
            (now, u32::MAX, None, Some((now - 300, END_OF_TIME))),
            (issuer.to, 30, Some(issuer), None),
            (issuer.to + 1, 30, Some(issuer), None),
        ] {
            let got = Validity::new(now, days(life), issuer)
                .ok()
                .map(|v| (v.from, v.to));
            assert_eq!(got, want, "{now} {life}");
        }
        assert_eq!(NonZeroU32::new(0), None, "a life of zero days has no type");
    }

    #[test]
    fn a64_only_an_id_for_issuers_becomes_one() {
        let leaf = Wish::Leaf {
            server: true,
            client: false,
        };
        assert!(matches!(
            Role::of(leaf, Some(0)),
            Ok(Role::Leaf {
                server: true,
                client: false
            })
        ));
        assert!(matches!(
            Role::of(Wish::Issuer, Some(0)),
            Ok(Role::Issuer { below: 0 })
        ));
        assert!(matches!(
            Role::of(Wish::Issuer, None),
            Err(IssueError::Role(_))
        ));
    }

    #[test]
    fn serial_numbers_are_positive_and_long() {
        for random in [[0; 16], [0xff; 16]] {
            let bytes = serial(random).to_bytes();
            assert_eq!(bytes.len(), 16);
            assert!((0x40..0x80).contains(&bytes[0]));
        }
    }
}
