//! The certificate section (identity-service.md 1.8).

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::path::PathBuf;

use rcgen::{DistinguishedName, DnType, DnValue};
use serde::Deserialize;
use serde::de::IgnoredAny;

use contract::names::{CertId, KeyId};
use contract::policy::glob;

use super::{
    ConfigError, Process, WireEndpoints, contradiction, file, later, missing, requests, value,
};
use crate::csr::{MAX_COMMON_NAME, NameError, check_part};
use crate::issue::DEFAULT_DAYS;

/// Ids whose certificates may become issuers, unless the configuration names others.
const ISSUER_CERTS: [&str; 3] = ["aziot-edged-ca", "aziot-edged-ca-temp", "local-ca"];
/// Ids of module certificates, which never become issuers (R57).
const MODULE_CERTS: &str = "aziot-edged/module/*";

/// The certificate part's configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "WireCertificates")]
pub struct Certificates {
    /// State directory; certificates are in `certs` below it.
    pub homedir: PathBuf,
    /// Connections per user.
    pub max_requests: u32,
    /// Files and bundles.
    pub preloaded: BTreeMap<CertId, Preloaded>,
    /// Who may write what.
    pub writers: Writers,
    /// How ids are issued.
    pub issuance: BTreeMap<CertId, Issuance>,
    /// The issuing certificate and key of `local_ca`.
    pub local_ca: Option<LocalCa>,
    issuer_certs: Vec<String>,
    /// How much is logged and how callers are proved.
    pub process: Process,
    /// Where the certificate API is served.
    pub socket: PathBuf,
    /// Where keyd is.
    pub keyd: PathBuf,
}

/// A certificate that the operator brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Preloaded {
    /// A file; writing to the id replaces it.
    File(PathBuf),
    /// A list of other ids; cannot be written.
    Bundle(Vec<CertId>),
}

/// Users and the ids they may write; several rows for one user add up. Root may write all.
#[derive(Debug, Clone, Default)]
pub struct Writers(Vec<(u32, Vec<String>)>);

impl Writers {
    /// Whether `uid` may create, import and delete under this id.
    #[must_use]
    pub fn may(&self, uid: u32, id: &CertId) -> bool {
        uid == 0
            || self.0.iter().any(|(user, patterns)| {
                *user == uid
                    && patterns
                        .iter()
                        .any(|p| glob(p.as_bytes(), id.as_str().as_bytes()))
            })
    }
}

/// How one id is issued when the request names no issuer.
#[derive(Debug, Clone)]
pub struct Issuance {
    /// By whom.
    pub method: Method,
    /// How long.
    pub days: NonZeroU32,
    /// Whom it names instead of the request's subject.
    pub subject: Option<DistinguishedName>,
}

/// By whom an id is issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// By its own key.
    SelfSigned,
    /// By the device's own authority.
    LocalCa,
}

/// The device's own authority.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalCa {
    /// Its certificate.
    pub cert: CertId,
    /// Its key pair.
    pub pk: KeyId,
}

impl Certificates {
    /// The path length an issuer under this id gets; `None` when the id never is one (A64). The
    /// device's own authority has the Edge CA below it, an Edge CA has leaves only.
    #[must_use]
    pub fn issuers_below(&self, id: &CertId) -> Option<u8> {
        let text = id.as_str().as_bytes();
        let listed = self.issuer_certs.iter().any(|p| glob(p.as_bytes(), text));
        if glob(MODULE_CERTS.as_bytes(), text) || !listed {
            return None;
        }
        Some(u8::from(
            self.local_ca.as_ref().is_some_and(|ca| ca.cert == *id),
        ))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireCertificates {
    homedir_path: PathBuf,
    max_requests: Option<u32>,
    #[serde(default)]
    preloaded_certs: BTreeMap<CertId, WirePreloaded>,
    #[serde(default)]
    principal: Vec<WireWriter>,
    #[serde(default)]
    cert_issuance: WireIssuances,
    issuer_certs: Option<Vec<String>>,
    log_level: Option<String>,
    #[serde(default)]
    require_strong_callers: bool,
    #[serde(default)]
    endpoints: WireEndpoints,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum WirePreloaded {
    File(String),
    Bundle(Vec<CertId>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireWriter {
    uid: u32,
    certs: Vec<String>,
}

#[derive(Default, Deserialize)]
struct WireIssuances {
    est: Option<IgnoredAny>,
    local_ca: Option<LocalCa>,
    #[serde(flatten)]
    of: BTreeMap<CertId, WireIssuance>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireIssuance {
    method: String,
    expiry_days: Option<u32>,
    common_name: Option<String>,
    subject: Option<BTreeMap<String, String>>,
    url: Option<IgnoredAny>,
    username: Option<IgnoredAny>,
    password: Option<IgnoredAny>,
    identity_cert: Option<IgnoredAny>,
    identity_pk: Option<IgnoredAny>,
    bootstrap_identity_cert: Option<IgnoredAny>,
    bootstrap_identity_pk: Option<IgnoredAny>,
}

impl TryFrom<WireCertificates> for Certificates {
    type Error = ConfigError;

    fn try_from(wire: WireCertificates) -> Result<Self, ConfigError> {
        if wire.cert_issuance.est.is_some() {
            return Err(later("cert_issuance.est", "est"));
        }
        let mut preloaded = BTreeMap::new();
        for (id, entry) in wire.preloaded_certs {
            let entry = match entry {
                WirePreloaded::File(uri) => {
                    Preloaded::File(file(&format!("preloaded_certs.{id}"), &uri)?)
                }
                WirePreloaded::Bundle(ids) => Preloaded::Bundle(ids),
            };
            preloaded.insert(id, entry);
        }
        refuse_cycles(&preloaded)?;
        let mut issuance = BTreeMap::new();
        for (id, entry) in wire.cert_issuance.of {
            let entry = entry.check(&format!("cert_issuance.{id}"))?;
            if entry.method == Method::LocalCa && wire.cert_issuance.local_ca.is_none() {
                return Err(missing("cert_issuance.local_ca"));
            }
            issuance.insert(id, entry);
        }
        let issuer_certs = wire
            .issuer_certs
            .unwrap_or_else(|| ISSUER_CERTS.iter().map(|&id| id.to_owned()).collect());
        if issuer_certs
            .iter()
            .any(|p| p.starts_with("aziot-edged/module/"))
        {
            return Err(contradiction(
                "issuer_certs",
                "a module certificate is never an issuer",
            ));
        }
        let ends = wire.endpoints;
        Ok(Self {
            homedir: wire.homedir_path,
            max_requests: requests(wire.max_requests)?,
            preloaded,
            writers: Writers(
                wire.principal
                    .into_iter()
                    .map(|w| (w.uid, w.certs))
                    .collect(),
            ),
            issuance,
            local_ca: wire.cert_issuance.local_ca,
            issuer_certs,
            process: Process::new(wire.log_level.as_deref(), wire.require_strong_callers)?,
            socket: ends.certd()?,
            keyd: ends.keyd()?,
        })
    }
}

impl WireIssuance {
    fn check(self, key: &str) -> Result<Issuance, ConfigError> {
        let method = match self.method.as_str() {
            "self_signed" => Method::SelfSigned,
            "local_ca" => Method::LocalCa,
            "est" => return Err(later(key, "est")),
            _ => return Err(value(key, "method is self_signed, local_ca or est")),
        };
        let est = [
            self.url.is_some(),
            self.username.is_some(),
            self.password.is_some(),
            self.identity_cert.is_some(),
            self.identity_pk.is_some(),
            self.bootstrap_identity_cert.is_some(),
            self.bootstrap_identity_pk.is_some(),
        ];
        if est.contains(&true) {
            return Err(contradiction(
                key,
                "url and credentials are for method est only",
            ));
        }
        let days = match self.expiry_days {
            None => DEFAULT_DAYS,
            Some(days) => NonZeroU32::new(days)
                .ok_or_else(|| value(&format!("{key}.expiry_days"), "at least 1"))?,
        };
        let subject = match (self.common_name, self.subject) {
            (None, None) => None,
            (Some(name), None) => Some(subject([("CN".to_owned(), name)])),
            (None, Some(parts)) => Some(subject(parts)),
            // The reference takes whichever stands first, which no reader can see any more.
            (Some(_), Some(_)) => return Err(contradiction(key, "common_name and subject")),
        };
        let subject = subject.transpose().map_err(|e| value(key, e))?;
        Ok(Issuance {
            method,
            days,
            subject,
        })
    }
}

/// A subject from its short names. The common name is cut to what a certificate can hold, as in
/// the reference; anything else that does not fit is refused.
fn subject(
    parts: impl IntoIterator<Item = (String, String)>,
) -> Result<DistinguishedName, NameError> {
    let mut out = DistinguishedName::new();
    for (name, text) in parts {
        let (kind, ia5) = match name.to_ascii_uppercase().as_str() {
            "C" => (DnType::CountryName, None),
            "ST" => (DnType::StateOrProvinceName, None),
            "L" => (DnType::LocalityName, None),
            "O" => (DnType::OrganizationName, None),
            "OU" => (DnType::OrganizationalUnitName, None),
            "CN" => (DnType::CommonName, None),
            "SERIALNUMBER" => (DnType::from_oid(&[2, 5, 4, 5]), None),
            "EMAILADDRESS" => (DnType::from_oid(&[1, 2, 840, 113_549, 1, 9, 1]), Some(())),
            "DC" => (
                DnType::from_oid(&[0, 9, 2342, 19_200_300, 100, 1, 25]),
                Some(()),
            ),
            _ => return Err(NameError::Encoding),
        };
        if out.get(&kind).is_some() {
            return Err(NameError::Twice);
        }
        let text: String = match kind {
            DnType::CommonName => text.chars().take(MAX_COMMON_NAME).collect(),
            _ => text,
        };
        check_part(&kind, &text)?;
        let value = match (&kind, ia5) {
            (_, Some(())) => DnValue::Ia5String(text.try_into().map_err(|_| NameError::Encoding)?),
            (DnType::CountryName, _) => {
                DnValue::PrintableString(text.try_into().map_err(|_| NameError::Encoding)?)
            }
            _ => DnValue::Utf8String(text),
        };
        out.push(kind, value);
    }
    Ok(out)
}

/// A bundle may hold bundles, but never itself (A78).
fn refuse_cycles(all: &BTreeMap<CertId, Preloaded>) -> Result<(), ConfigError> {
    // Depth first; `done` holds what was seen to end, so each id is walked once.
    let mut done = BTreeSet::new();
    for start in all.keys() {
        let mut path: Vec<(&CertId, usize)> = vec![(start, 0)];
        while let Some((id, next)) = path.last_mut() {
            let members = match all.get(*id) {
                Some(Preloaded::Bundle(members)) if !done.contains(*id) => members.as_slice(),
                _ => &[],
            };
            let Some(member) = members.get(*next) else {
                done.insert(*id);
                path.pop();
                continue;
            };
            *next += 1;
            if path.iter().any(|(on, _)| *on == member) {
                return Err(ConfigError::Cycle { id: member.clone() });
            }
            path.push((member, 0));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificates(text: &str) -> Result<Certificates, String> {
        toml::from_str(&format!("homedir_path = \"/c\"\n{text}"))
            .map_err(|e| e.message().to_owned())
    }
    fn id(text: &str) -> CertId {
        CertId::new(text).unwrap()
    }
    #[test]
    fn the_references_quickstart_is_read() {
        let config = certificates(
            r#"
            [cert_issuance.aziot-edged-ca]
            method = "self_signed"
            expiry_days = 365
            common_name = "my-device custom-quickstart"
            [preloaded_certs]
            aziot-edged-trust-bundle = ["aziot-edged-ca", "trust-bundle-user"]
            trust-bundle-user = "file:///var/secrets/trusted-ca.pem"
            [[principal]]
            uid = 5558
            certs = ["aziot-edged-ca", "aziot-edged/module/*", "aziot-edged-ca-temp"]
            "#,
        )
        .unwrap();
        let rule = &config.issuance[&id("aziot-edged-ca")];
        assert_eq!((rule.method, rule.days.get()), (Method::SelfSigned, 365));
        let file = PathBuf::from("/var/secrets/trusted-ca.pem");
        assert_eq!(
            config.preloaded[&id("trust-bundle-user")],
            Preloaded::File(file)
        );
        for (uid, cert, want) in [
            (5558, "aziot-edged-ca", true),
            (5558, "aziot-edged/module/m:1:server", true),
            (5558, "aziot-edged-ca2", false),
            (5558, "device-id", false),
            (5559, "aziot-edged-ca", false),
            (0, "device-id", true),
        ] {
            assert_eq!(config.writers.may(uid, &id(cert)), want, "{uid} {cert}");
        }
    }

    #[test]
    fn a64_which_ids_may_become_issuers() {
        let config = certificates(
            "issuer_certs = [\"*\"]\n[cert_issuance]\nlocal_ca = { cert = \"root\", pk = \"root\" }",
        )
        .unwrap();
        assert_eq!(config.issuers_below(&id("root")), Some(1));
        assert_eq!(config.issuers_below(&id("any")), Some(0));
        assert_eq!(
            config.issuers_below(&id("aziot-edged/module/m:identity")),
            None
        );
        let usual = certificates("").unwrap();
        assert_eq!(usual.issuers_below(&id("aziot-edged-ca-temp")), Some(0));
        assert_eq!(usual.issuers_below(&id("device-id")), None);
        assert!(certificates("issuer_certs = [\"aziot-edged/module/m:identity\"]").is_err());
    }

    #[test]
    fn a139_what_is_refused_in_the_certificate_section() {
        for (text, want) in [
            ("nonsense = 1", "unknown field"),
            ("max_requests = 0", "max_requests: 1 to 256"),
            (
                "[cert_issuance.est]\nx = 1",
                "\"est\" is not in this version",
            ),
            (
                "[cert_issuance.a]\nmethod = \"est\"\nurl = \"https://x\"",
                "\"est\" is not in this",
            ),
            (
                "[cert_issuance.a]\nmethod = \"guess\"",
                "method is self_signed",
            ),
            (
                "[cert_issuance.a]\nmethod = \"self_signed\"\nurl = \"x\"",
                "for method est only",
            ),
            (
                "[cert_issuance.a]\nmethod = \"self_signed\"\nexpiry_days = 0",
                "at least 1",
            ),
            (
                "[cert_issuance.a]\nmethod = \"local_ca\"",
                "cert_issuance.local_ca is missing",
            ),
            (
                "[cert_issuance.a]\nmethod = \"self_signed\"\ncommon_name = \"a\"\nsubject = { CN = \"b\" }",
                "common_name and subject",
            ),
            (
                "[cert_issuance.a]\nmethod = \"self_signed\"\nsubject = { XX = \"b\" }",
                "a part is",
            ),
            (
                "[cert_issuance.a]\nmethod = \"self_signed\"\ncommon_name = \"\"",
                "a part is empty",
            ),
            ("[preloaded_certs]\na = \"http://x/y\"", "only file:///path"),
            (
                "[preloaded_certs]\na = \"file://relative\"",
                "only file:///path",
            ),
            ("[preloaded_certs]\na = [\"a\"]", "the bundle holds itself"),
            (
                "[preloaded_certs]\na = [\"x\", \"b\"]\nb = [\"c\"]\nc = [\"a\"]",
                "holds itself",
            ),
            (
                "[endpoints]\naziot_certd = \"http://0.0.0.0:80\"",
                "only unix:///path",
            ),
            (
                "[preloaded_certs]\n\"\" = \"file:///x\"",
                "invalid certificate id",
            ),
        ] {
            let error = certificates(text).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
        // Held twice is not held by itself.
        assert!(
            certificates("[preloaded_certs]\na = [\"b\", \"c\"]\nb = [\"c\"]\nc = [\"d\"]").is_ok()
        );
    }
}
