//! The one configuration file, read into checked types. Unknown keys are refused (R78).
//!
//! Paths in it are relative to its folder. It holds the policies' keys, so only its owner may
//! read it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use contract::names::{BadName, HostName, RegistrationId};
use contract::sas::{SasError, SasKey};
use serde::Deserialize;

use crate::auth::Policy;
use crate::files::{self, Holds};

/// Why the service does not start.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read, or others can.
    #[error("{file}: {cause}")]
    File {
        /// Which.
        file: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// It is no TOML, or a key is unknown, missing or of another type.
    #[error("configuration: {0}")]
    Format(#[from] toml::de::Error),
    /// A name is not one.
    #[error("configuration: {0}")]
    Name(#[from] BadName),
    /// A key is not one.
    #[error("configuration, {what}: {cause}")]
    Key {
        /// Whose.
        what: String,
        /// Why.
        #[source]
        cause: SasError,
    },
    /// A value makes no sense.
    #[error("configuration: {0}")]
    Value(&'static str),
}

/// The file as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    hostnames: Vec<HostName>,
    advertise: Option<HostName>,
    scope_id: RegistrationId,
    state: PathBuf,
    listen: Listen,
    tls: Tls,
    policies: BTreeMap<Policy, String>,
    #[serde(default)]
    limits: LimitsText,
    #[serde(default)]
    enrolment: Vec<EnrolmentText>,
}

/// Where to listen.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// Device, service and provisioning API.
    pub https: SocketAddr,
    /// MQTT 3.1.1 over TLS.
    pub mqtt: SocketAddr,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tls {
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LimitsText {
    twin_bytes: usize,
    events_kept: i64,
    connections: usize,
}

impl Default for LimitsText {
    fn default() -> Self {
        Self {
            twin_bytes: 32 << 10,
            events_kept: 100_000,
            connections: 4096,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EnrolmentText {
    registration: Option<RegistrationId>,
    group: Option<RegistrationId>,
    device: Option<String>,
    primary_key: String,
    secondary_key: Option<String>,
    #[serde(default)]
    edge: bool,
}

/// An enrolment that exists from the first start. Later changes by the API are kept.
#[derive(Debug, Clone)]
pub struct Enrolment {
    /// For one device, or a group.
    pub kind: crate::enrolments::Kind,
    /// Registration or group id.
    pub id: RegistrationId,
    /// The document, with keys.
    pub document: serde_json::Value,
}

/// The configuration, checked.
#[derive(Debug)]
pub struct Config {
    /// The hub's names; the first is its own.
    pub hostnames: Vec<HostName>,
    /// What devices are told to connect to. By default the first name, with the port of HTTPS
    /// unless that is 443.
    pub advertise: Option<HostName>,
    /// The provisioning id scope.
    pub scope_id: RegistrationId,
    /// Where the store is.
    pub state: PathBuf,
    /// Where to listen.
    pub listen: Listen,
    /// PEM file with the server's chain.
    pub certificate: PathBuf,
    /// PEM file with its private key.
    pub key: PathBuf,
    /// Keys by policy.
    pub policies: BTreeMap<Policy, SasKey>,
    /// Bytes of one twin section.
    pub twin_bytes: usize,
    /// Messages kept for reading.
    pub events_kept: i64,
    /// Connections of all kinds at a time.
    pub connections: usize,
    /// Enrolments to begin with.
    pub enrolments: Vec<Enrolment>,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigError`] with the first thing that is wrong.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let fail = |cause| ConfigError::File {
            file: file.to_owned(),
            cause,
        };
        let content = files::read(file, Holds::Secret).map_err(fail)?;
        let text = String::from_utf8(content).map_err(|_| ConfigError::Value("not UTF-8"))?;
        let absolute = std::path::absolute(file).map_err(fail)?;
        Self::parse(&text, absolute.parent().unwrap_or(Path::new("/")))
    }

    fn parse(text: &str, folder: &Path) -> Result<Self, ConfigError> {
        let text: Text = toml::from_str(text)?;
        if text.hostnames.is_empty() {
            return Err(ConfigError::Value("hostnames is empty"));
        }
        if text.limits.events_kept < 1 || text.limits.connections < 1 {
            return Err(ConfigError::Value(
                "limits.events_kept and limits.connections are at least 1",
            ));
        }
        if !(1024..=1 << 20).contains(&text.limits.twin_bytes) {
            return Err(ConfigError::Value(
                "limits.twin_bytes is between 1 KiB and 1 MiB",
            ));
        }
        let key = |what: &str, text: &str| {
            SasKey::from_base64(text).map_err(|cause| ConfigError::Key {
                what: what.to_owned(),
                cause,
            })
        };
        let policies = text
            .policies
            .iter()
            .map(|(policy, text)| Ok((*policy, key(policy.name(), text)?)))
            .collect::<Result<_, ConfigError>>()?;
        let enrolments = text
            .enrolment
            .iter()
            .map(enrolment)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            hostnames: text.hostnames,
            advertise: text.advertise,
            scope_id: text.scope_id,
            state: folder.join(text.state),
            listen: text.listen,
            certificate: folder.join(text.tls.certificate),
            key: folder.join(text.tls.key),
            policies,
            twin_bytes: text.limits.twin_bytes,
            events_kept: text.limits.events_kept,
            connections: text.limits.connections,
            enrolments,
        })
    }
}

fn enrolment(text: &EnrolmentText) -> Result<Enrolment, ConfigError> {
    use crate::enrolments::Kind;
    let (kind, id) = match (&text.registration, &text.group) {
        (Some(id), None) => (Kind::Individual, id.clone()),
        (None, Some(id)) => (Kind::Group, id.clone()),
        _ => {
            return Err(ConfigError::Value(
                "an enrolment has a registration or a group",
            ));
        }
    };
    for given in std::iter::once(&text.primary_key).chain(&text.secondary_key) {
        SasKey::from_base64(given).map_err(|cause| ConfigError::Key {
            what: id.to_string(),
            cause,
        })?;
    }
    let document = serde_json::json!({
        "deviceId": text.device,
        "capabilities": {"iotEdge": text.edge},
        "attestation": {"type": "symmetricKey", "symmetricKey": {
            "primaryKey": text.primary_key, "secondaryKey": text.secondary_key}},
    });
    Ok(Enrolment { kind, id, document })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        hostnames = ["hub.example.net", "127.0.0.1"]
        scope_id = "0ne00000001"
        state = "state"
        listen = { https = "127.0.0.1:0", mqtt = "127.0.0.1:0" }
        tls = { certificate = "server.pem", key = "server.key" }
        [policies]
        iothubowner = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
        [[enrolment]]
        group = "fleet"
        primary_key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
        edge = true
    "#;

    #[test]
    fn paths_are_relative_to_the_file() {
        let config = Config::parse(GOOD, Path::new("/etc/hub")).unwrap();
        assert_eq!(config.state, Path::new("/etc/hub/state"));
        assert_eq!(config.certificate, Path::new("/etc/hub/server.pem"));
        assert_eq!(config.enrolments.len(), 1);
        assert!(
            !format!("{:?}", config.policies).contains("MDEy"),
            "keys are not printed"
        );
    }

    #[test]
    fn unknown_and_wrong_keys_are_refused() {
        for (from, to) in [
            ("scope_id", "scope"),
            ("[policies]", "[policies]\nadmin = \"x\""),
            ("edge = true", "edges = true"),
            ("edge = true", "registration = \"r\""),
            ("group = \"fleet\"", ""),
            ("group = \"fleet\"", "group = \"-\""),
            ("MDEyMzQ1Njc4OWFi", "?"),
            ("\"127.0.0.1\"]", "\"a/b\"]"),
            (
                "state = \"state\"",
                "state = \"state\"\nlimits = { twin_bytes = 1 }",
            ),
            (
                "state = \"state\"",
                "state = \"state\"\nlimits = { events_kept = 0 }",
            ),
            ("mqtt = \"127.0.0.1:0\"", "mqtt = \"localhost\""),
        ] {
            assert!(GOOD.contains(from));
            let text = GOOD.replace(from, to);
            assert!(
                Config::parse(&text, Path::new("/")).is_err(),
                "{from} -> {to}"
            );
        }
    }
}
