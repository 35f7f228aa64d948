//! The identity section (identity-service.md 1.9).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use contract::api::identity::{AuthKind, LocalOptions, LocalRole};
use contract::names::{DeviceId, HostName, KeyId, ModuleId, RegistrationId};
use net::dps::HubRule;

use super::{
    ConfigError, Process, WireEndpoints, contradiction, file, later, missing, requests, value,
};

/// Hubs of the public clouds, which an installation without `allowed_hubs` may be sent to.
const CLOUD_HUBS: [&str; 3] = [
    ".azure-devices.net",
    ".azure-devices.cn",
    ".azure-devices.us",
];
/// The system's roots.
pub const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Seconds one attempt at the cloud may take, at least.
const CLOUD_TIMEOUT: u64 = 70;

/// The identity part's configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "WireIdentities")]
pub struct Identities {
    /// The device's name in its network.
    pub hostname: HostName,
    /// State directory.
    pub homedir: PathBuf,
    /// Whether a module identity is answered from the last record first.
    pub prefer_cache: bool,
    /// Connections per user.
    pub max_requests: u32,
    /// Seconds one attempt at the cloud may take.
    pub cloud_timeout: u64,
    /// Attempts after the first.
    pub cloud_retries: u32,
    /// Domain of local identities.
    pub local_domain: Option<String>,
    /// Host processes and daemons, one per user.
    pub principals: Vec<Principal>,
    /// How the device comes to its identity.
    pub provisioning: Provisioning,
    /// The parent in a nested network.
    pub gateway: Option<HostName>,
    /// Roots for the provisioning service and the hub; empty: the system's.
    pub trusted_certs: Vec<PathBuf>,
    /// Which hubs may be assigned (R54).
    pub allowed_hubs: HubRule,
    /// How much is logged and how callers are proved.
    pub process: Process,
    /// Where the identity API is served.
    pub socket: PathBuf,
    /// Where the certificate API is, when another daemon serves it.
    pub certd: PathBuf,
    /// Where keyd is.
    pub keyd: PathBuf,
}

/// A user of the identity API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Its user id.
    pub uid: u32,
    /// Its name, which is its module's at the hub.
    pub name: ModuleId,
    /// What it is.
    pub kind: PrincipalKind,
}

/// What a user of the identity API is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrincipalKind {
    /// A daemon that acts for all.
    Daemon,
    /// A process with identities of its own.
    Host {
        /// It may use the device's identity.
        device: bool,
        /// It has a module identity at the hub.
        module: bool,
        /// It has a local identity, with these options.
        local: Option<LocalOptions>,
    },
}

/// How the device comes to its identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provisioning {
    /// Not at all.
    None,
    /// From the configuration.
    Manual {
        /// The hub.
        hub: HostName,
        /// The device.
        device: DeviceId,
        /// Its key.
        key: KeyId,
    },
    /// From the provisioning service.
    Dps {
        /// `host` or `host:port`.
        endpoint: HostName,
        /// The scope.
        scope: String,
        /// The registration.
        registration: RegistrationId,
        /// Its key.
        key: KeyId,
        /// File with what is sent along.
        payload: Option<PathBuf>,
    },
}

/// Who a caller of the identity API is (identity-service.md 4.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// uid 0, not named in the configuration.
    Root,
    /// The daemon.
    Daemon,
    /// A host process.
    Host(Principal),
    /// Anybody else.
    Unknown,
}

impl Identities {
    /// Principals come before the root rule, as in the reference.
    #[must_use]
    pub fn who(&self, uid: u32) -> Who {
        match self.principals.iter().find(|p| p.uid == uid) {
            Some(Principal {
                kind: PrincipalKind::Daemon,
                ..
            }) => Who::Daemon,
            Some(host) => Who::Host(host.clone()),
            None if uid == 0 => Who::Root,
            None => Who::Unknown,
        }
    }

    /// Options of a configured local identity.
    #[must_use]
    pub fn local(&self, name: &ModuleId) -> Option<&LocalOptions> {
        self.principals.iter().find_map(|p| match &p.kind {
            PrincipalKind::Host {
                local: Some(options),
                ..
            } if p.name == *name => Some(options),
            _ => None,
        })
    }

    /// Names of the host processes with a module identity at the hub.
    pub fn modules(&self) -> impl Iterator<Item = &ModuleId> {
        self.principals.iter().filter_map(|p| match p.kind {
            PrincipalKind::Host { module: true, .. } => Some(&p.name),
            _ => None,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireIdentities {
    hostname: HostName,
    homedir: PathBuf,
    #[serde(default)]
    prefer_module_identity_cache: bool,
    max_requests: Option<u32>,
    cloud_timeout_sec: Option<u64>,
    cloud_retries: Option<u32>,
    localid: Option<WireLocal>,
    #[serde(default)]
    principal: Vec<WirePrincipal>,
    provisioning: WireProvisioning,
    log_level: Option<String>,
    #[serde(default)]
    require_strong_callers: bool,
    #[serde(default)]
    endpoints: WireEndpoints,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireLocal {
    domain: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WirePrincipal {
    uid: u32,
    name: ModuleId,
    idtype: Option<Vec<WireKind>>,
    localid: Option<LocalOptions>,
}

#[derive(Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum WireKind {
    Device,
    Module,
    Local,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireProvisioning {
    source: String,
    local_gateway_hostname: Option<HostName>,
    iothub_hostname: Option<HostName>,
    device_id: Option<DeviceId>,
    authentication: Option<WireMethod>,
    global_endpoint: Option<String>,
    scope_id: Option<String>,
    payload: Option<WirePayload>,
    attestation: Option<WireMethod>,
    trusted_certs: Option<OneOrMany>,
    allowed_hubs: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WirePayload {
    uri: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

/// Authentication and attestation alike; each method takes its own keys.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireMethod {
    method: String,
    device_id_pk: Option<KeyId>,
    symmetric_key: Option<KeyId>,
    registration_id: Option<Value>,
    identity_cert: Option<IgnoredAny>,
    identity_pk: Option<IgnoredAny>,
    identity_auto_renew: Option<IgnoredAny>,
    csr_subject: Option<IgnoredAny>,
}

impl WireMethod {
    /// The methods of later versions are named as such before their keys are looked at.
    fn check(&self, key: &str, ours: &str) -> Result<(), ConfigError> {
        match self.method.as_str() {
            method if method == ours => {}
            "x509" => return Err(later(key, "x509")),
            "tpm" => return Err(later(key, "tpm")),
            _ => return Err(value(&format!("{key}.method"), "unknown")),
        }
        let foreign = [
            self.identity_cert.is_some(),
            self.identity_pk.is_some(),
            self.identity_auto_renew.is_some(),
            self.csr_subject.is_some(),
        ];
        if foreign.contains(&true) {
            return Err(contradiction(
                key,
                "certificate keys are for method x509 only",
            ));
        }
        Ok(())
    }
}

impl TryFrom<WireIdentities> for Identities {
    type Error = ConfigError;

    fn try_from(wire: WireIdentities) -> Result<Self, ConfigError> {
        let domain = wire.localid.map(|l| l.domain);
        let (cloud, retries) = (
            wire.cloud_timeout_sec.unwrap_or(CLOUD_TIMEOUT),
            wire.cloud_retries.unwrap_or(1),
        );
        if !(CLOUD_TIMEOUT..=600).contains(&cloud) {
            return Err(value("cloud_timeout_sec", "70 to 600"));
        }
        if retries > 10 {
            return Err(value("cloud_retries", "at most 10"));
        }
        let none = wire.provisioning.source == "none";
        let principals = check_principals(wire.principal, domain.is_some(), none)?;
        let ends = wire.endpoints;
        let from = wire.provisioning;
        let gateway = from.local_gateway_hostname.clone();
        let trusted_certs = match &from.trusted_certs {
            None => Vec::new(),
            Some(OneOrMany::One(path)) => vec![path.clone()],
            Some(OneOrMany::Many(paths)) => paths.clone(),
        };
        if (from.trusted_certs.is_some() && trusted_certs.is_empty())
            || !trusted_certs.iter().all(|p| p.is_absolute())
        {
            return Err(value(
                "provisioning.trusted_certs",
                "at least one absolute path",
            ));
        }
        let hubs = from.allowed_hubs.clone();
        let provisioning = from.check()?;
        Ok(Self {
            hostname: wire.hostname,
            homedir: wire.homedir,
            prefer_cache: wire.prefer_module_identity_cache,
            max_requests: requests(wire.max_requests)?,
            cloud_timeout: cloud,
            cloud_retries: retries,
            local_domain: domain,
            principals,
            allowed_hubs: allowed(hubs, &provisioning)?,
            provisioning,
            gateway,
            trusted_certs,
            process: Process::new(wire.log_level.as_deref(), wire.require_strong_callers)?,
            socket: ends.identityd()?,
            certd: ends.certd()?,
            keyd: ends.keyd()?,
        })
    }
}

/// Without a list: the public clouds, and the host that assigns, since a hub of one's own is
/// often one with its provisioning service.
fn allowed(hubs: Option<Vec<String>>, provisioning: &Provisioning) -> Result<HubRule, ConfigError> {
    let hubs = match (hubs, provisioning) {
        (Some(hubs), _) => hubs,
        (None, Provisioning::Dps { endpoint, .. }) => {
            let host = endpoint.as_str();
            let host = match host.rsplit_once(':') {
                Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
                _ => host,
            };
            CLOUD_HUBS
                .iter()
                .map(|&s| s.to_owned())
                .chain([host.to_owned()])
                .collect()
        }
        (None, _) => Vec::new(),
    };
    let bad = |entry: &String| {
        let name = entry.strip_prefix('.').unwrap_or(entry);
        HostName::new(name).is_err() || name.starts_with('.')
    };
    if hubs.iter().any(bad) {
        return Err(value(
            "provisioning.allowed_hubs",
            "host names, or suffixes after a dot",
        ));
    }
    Ok(HubRule::new(hubs))
}

fn check_principals(
    wire: Vec<WirePrincipal>,
    domain: bool,
    unprovisioned: bool,
) -> Result<Vec<Principal>, ConfigError> {
    let mut names = BTreeSet::new();
    let mut all: BTreeMap<u32, Principal> = BTreeMap::new();
    let mut daemon = false;
    for entry in wire {
        let key = format!("principal {}", entry.name);
        if !names.insert(entry.name.clone()) {
            return Err(contradiction(&key, "the name is there twice"));
        }
        let Some(kinds) = entry.idtype else {
            if entry.localid.is_some() {
                return Err(contradiction(&key, "localid without idtype local"));
            }
            // Only the first daemon counts (identity-service.md 4.1).
            if !daemon {
                daemon = true;
                let kind = PrincipalKind::Daemon;
                all.insert(
                    entry.uid,
                    Principal {
                        uid: entry.uid,
                        name: entry.name,
                        kind,
                    },
                );
            }
            continue;
        };
        let has = |kind| kinds.contains(&kind);
        let (device, module, local) = (
            has(WireKind::Device),
            has(WireKind::Module),
            has(WireKind::Local),
        );
        if local && !domain {
            return Err(contradiction(&key, "idtype local needs localid.domain"));
        }
        if !local && entry.localid.is_some() {
            return Err(contradiction(&key, "localid without idtype local"));
        }
        if unprovisioned && (device || module) {
            return Err(contradiction(
                &key,
                "idtype device and module need provisioning",
            ));
        }
        let options = entry.localid.unwrap_or(LocalOptions {
            kind: AuthKind::X509,
            attributes: LocalRole::Client,
        });
        let kind = PrincipalKind::Host {
            device,
            module,
            local: local.then_some(options),
        };
        all.insert(
            entry.uid,
            Principal {
                uid: entry.uid,
                name: entry.name,
                kind,
            },
        );
    }
    Ok(all.into_values().collect())
}

impl WireProvisioning {
    fn check(self) -> Result<Provisioning, ConfigError> {
        let foreign = |there: bool, key: &str| match there {
            true => Err(contradiction(key, "does not go with this source")),
            false => Ok(()),
        };
        let manual = self.source == "manual";
        let dps = self.source == "dps";
        foreign(
            !manual && self.iothub_hostname.is_some(),
            "provisioning.iothub_hostname",
        )?;
        foreign(
            !manual && self.device_id.is_some(),
            "provisioning.device_id",
        )?;
        foreign(
            !manual && self.authentication.is_some(),
            "provisioning.authentication",
        )?;
        foreign(
            !dps && self.global_endpoint.is_some(),
            "provisioning.global_endpoint",
        )?;
        foreign(!dps && self.scope_id.is_some(), "provisioning.scope_id")?;
        foreign(!dps && self.payload.is_some(), "provisioning.payload")?;
        foreign(
            !dps && self.attestation.is_some(),
            "provisioning.attestation",
        )?;
        match self.source.as_str() {
            "none" => Ok(Provisioning::None),
            "manual" => self.manual(),
            "dps" => self.dps(),
            _ => Err(value("provisioning.source", "manual, dps or none")),
        }
    }

    fn manual(self) -> Result<Provisioning, ConfigError> {
        let key = "provisioning.authentication";
        let method = self.authentication.ok_or_else(|| missing(key))?;
        method.check(key, "sas")?;
        Ok(Provisioning::Manual {
            hub: self
                .iothub_hostname
                .ok_or_else(|| missing("provisioning.iothub_hostname"))?,
            device: self
                .device_id
                .ok_or_else(|| missing("provisioning.device_id"))?,
            key: method
                .device_id_pk
                .ok_or_else(|| missing(&format!("{key}.device_id_pk")))?,
        })
    }

    fn dps(self) -> Result<Provisioning, ConfigError> {
        if self.local_gateway_hostname.is_some() {
            return Err(contradiction(
                "provisioning.local_gateway_hostname",
                "the provisioning service cannot be reached through a parent",
            ));
        }
        let key = "provisioning.attestation";
        let method = self.attestation.ok_or_else(|| missing(key))?;
        method.check(key, "symmetric_key")?;
        let registration = format!("{key}.registration_id");
        let registration = match method.registration_id {
            Some(Value::String(text)) => {
                RegistrationId::new(text).map_err(|e| value(&registration, e))?
            }
            Some(_) => return Err(value(&registration, "a text, with this method")),
            None => return Err(missing(&registration)),
        };
        let payload = self
            .payload
            .map(|p| file("provisioning.payload.uri", &p.uri))
            .transpose()?;
        let endpoint = self
            .global_endpoint
            .ok_or_else(|| missing("provisioning.global_endpoint"))?;
        Ok(Provisioning::Dps {
            endpoint: authority("provisioning.global_endpoint", &endpoint)?,
            scope: self
                .scope_id
                .ok_or_else(|| missing("provisioning.scope_id"))?,
            registration,
            key: method
                .symmetric_key
                .ok_or_else(|| missing(&format!("{key}.symmetric_key")))?,
            payload,
        })
    }
}

/// Host and port of an `https` URL; path and query are replaced by the protocol's own.
fn authority(key: &str, url: &str) -> Result<HostName, ConfigError> {
    let rest = match url.split_once("://") {
        Some(("https", rest)) => rest,
        Some(_) => return Err(value(key, "only https")),
        None => url,
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    HostName::new(host).map_err(|e| value(key, e))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn identities(text: &str) -> Result<Identities, String> {
        toml::from_str(&format!(
            "hostname = \"my-device\"\nhomedir = \"/i\"\n{text}"
        ))
        .map_err(|e| e.message().to_owned())
    }

    const MANUAL: &str = r#"
        [provisioning]
        source = "manual"
        iothub_hostname = "example.azure-devices.net"
        device_id = "my-device"
        [provisioning.authentication]
        method = "sas"
        device_id_pk = "device-id"
    "#;
    const DPS: &str = r#"
        [provisioning]
        source = "dps"
        global_endpoint = "https://127.0.0.1:8443/ignored?x=y"
        scope_id = "0ne1"
        payload = { uri = "file:///etc/payload.json" }
        [provisioning.attestation]
        method = "symmetric_key"
        registration_id = "reg-1"
        symmetric_key = "device-id"
    "#;

    fn hub(text: &str) -> HostName {
        HostName::new(text).unwrap()
    }

    #[test]
    fn manual_and_dps_provisioning_are_read() {
        let config = identities(MANUAL).unwrap();
        assert!(
            matches!(&config.provisioning, Provisioning::Manual { hub, .. }
            if hub.as_str() == "example.azure-devices.net")
        );
        assert_eq!(
            (
                config.cloud_timeout,
                config.cloud_retries,
                config.prefer_cache
            ),
            (70, 1, false)
        );
        assert_eq!(config.socket, Path::new("/run/aziot/identityd.sock"));
        let config = identities(DPS).unwrap();
        let Provisioning::Dps {
            endpoint,
            scope,
            payload,
            ..
        } = &config.provisioning
        else {
            panic!("{:?}", config.provisioning)
        };
        assert_eq!(
            (endpoint.as_str(), scope.as_str()),
            ("127.0.0.1:8443", "0ne1")
        );
        assert_eq!(payload.as_deref(), Some(Path::new("/etc/payload.json")));
        let none = identities("[provisioning]\nsource = \"none\"").unwrap();
        assert_eq!(none.provisioning, Provisioning::None);
    }

    #[test]
    fn a72_which_hubs_may_be_assigned() {
        let usual = identities(DPS).unwrap().allowed_hubs;
        let own = DPS.replace(
            "scope_id",
            "allowed_hubs = [\".home.lan\", \"h.test\"]\nscope_id",
        );
        let own = identities(&own).unwrap().allowed_hubs;
        for (name, in_usual, in_own) in [
            ("x.azure-devices.net", true, false),
            ("127.0.0.1:8883", true, false),
            ("127.0.0.2", false, false),
            ("evil-azure-devices.net", false, false),
            ("azure-devices.net.evil.test", false, false),
            ("a.home.lan:443", false, true),
            ("home.lan", false, false),
            ("h.test", false, true),
            ("x.h.test", false, false),
        ] {
            assert_eq!(usual.allows(&hub(name)), in_usual, "{name}");
            assert_eq!(own.allows(&hub(name)), in_own, "{name}");
        }
    }

    #[test]
    fn who_is_who() {
        let config = identities(&format!(
            r#"
            localid = {{ domain = "home.lan" }}
            principal = [
                {{ uid = 10, name = "aziot-edge" }},
                {{ uid = 11, name = "second-daemon" }},
                {{ uid = 12, name = "first", idtype = ["module"] }},
                {{ uid = 12, name = "host", idtype = ["device", "module", "local"] }},
                {{ uid = 13, name = "server", idtype = ["local"], localid = {{ type = "x509", attributes = "server" }} }},
            ]
            {MANUAL}"#
        ))
        .unwrap();
        assert_eq!(config.who(10), Who::Daemon);
        assert_eq!(config.who(11), Who::Unknown, "only the first daemon counts");
        assert!(matches!(config.who(12), Who::Host(p) if p.name.as_str() == "host"));
        assert_eq!(config.who(0), Who::Root);
        assert_eq!(config.who(14), Who::Unknown);
        assert_eq!(
            config.modules().map(ModuleId::as_str).collect::<Vec<_>>(),
            ["host"]
        );
        use LocalRole::{Client, Server};
        let role = |name| {
            config
                .local(&ModuleId::new(name).unwrap())
                .map(|o| o.attributes)
        };
        assert_eq!(
            (role("host"), role("server"), role("first")),
            (Some(Client), Some(Server), None)
        );
    }

    #[test]
    fn a139_what_is_refused_in_the_identity_section() {
        let with = |line: &str| format!("{line}\n{MANUAL}");
        let x509 = r#"
            [provisioning]
            source = "manual"
            iothub_hostname = "h"
            device_id = "d"
            [provisioning.authentication]
            method = "x509"
            identity_cert = "device-id"
            identity_pk = "device-id"
        "#;
        for (text, want) in [
            (with("nonsense = 1"), "unknown field"),
            (with("cloud_timeout_sec = 69"), "cloud_timeout_sec: 70 to 600"),
            (with("cloud_retries = 11"), "cloud_retries"),
            (with("max_requests = 257"), "max_requests"),
            (with("principal = [{ uid = 1, name = \"a\" }, { uid = 2, name = \"a\" }]"), "twice"),
            (with("principal = [{ uid = 1, name = \"a\", idtype = [\"local\"] }]"), "localid.domain"),
            (with("principal = [{ uid = 1, name = \"a\", idtype = \"module\" }]"), "invalid type"),
            (with("principal = [{ uid = 1, name = \"a/b\" }]"), "invalid module id"),
            (
                "principal = [{ uid = 1, name = \"a\", idtype = [\"module\"] }]\n[provisioning]\nsource = \"none\"".to_owned(),
                "need provisioning",
            ),
            (x509.to_owned(), "\"x509\" is not in this version"),
            (DPS.replace("symmetric_key\"\n", "tpm\"\n"), "\"tpm\" is not in this version"),
            (DPS.replace("https:", "http:"), "only https"),
            (DPS.replace("scope_id = \"0ne1\"", ""), "provisioning.scope_id is missing"),
            (DPS.replace("scope_id", "local_gateway_hostname = \"p\"\nscope_id"), "a parent"),
            (DPS.replace("scope_id", "device_id = \"d\"\nscope_id"), "does not go with this source"),
            (DPS.replace("\"reg-1\"", "{ CN = \"x\" }"), "a text, with this method"),
            (DPS.replace("file://", "https://"), "only file:///path"),
            (DPS.replace("scope_id", "allowed_hubs = [\"*.x\"]\nscope_id"), "allowed_hubs"),
            (DPS.replace("scope_id", "trusted_certs = []\nscope_id"), "trusted_certs"),
            (MANUAL.replace("device-id\"", "\""), "invalid key id"),
            ("[provisioning]\nsource = \"guess\"".to_owned(), "manual, dps or none"),
        ] {
            let error = identities(&text).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
