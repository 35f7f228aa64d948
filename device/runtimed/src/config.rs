//! This daemon's configuration (module-runtime.md 9.1), parsed into checked types.
//!
//! Compatible keys keep their names. Ours: `[warden]`, `[[module]]` for a device without a cloud,
//! `[server_names]`, `operators`, and `type = "host"`, whose image is the name of a grant.

use std::collections::BTreeMap;
use std::path::PathBuf;

use contract::grant::GrantName;
use contract::names::{CertId, KeyId, ModuleName};
use serde::Deserialize;

use crate::attest::Strictness;

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name for downstream clients; `edgeHub` may have it in its server certificate.
    pub hostname: String,
    /// State folder.
    pub homedir: PathBuf,
    /// Bundle of roots that modules trust.
    #[serde(default = "trust_bundle")]
    pub trust_bundle_cert: CertId,
    /// Bundle of roots that sign deployments.
    #[serde(default = "manifest_trust_bundle")]
    pub manifest_trust_bundle_cert: CertId,
    /// Ids of the Edge CA.
    #[serde(default)]
    pub edge_ca: EdgeCa,
    /// The agent, if there is one.
    pub agent: Option<AgentConfig>,
    /// Modules that are always there, with or without a cloud.
    #[serde(default, rename = "module")]
    pub modules: Vec<StaticModule>,
    /// Further names that a module may have in its server certificate (R57).
    #[serde(default)]
    pub server_names: BTreeMap<String, Vec<String>>,
    /// Users that may start, stop and restart modules (P4).
    #[serde(default = "root_only")]
    pub operators: Vec<u32>,
    /// How modules are attested (R8).
    #[serde(default)]
    pub attestation: Attestation,
    /// Listening sockets.
    #[serde(default)]
    pub listen: Listen,
    /// Simultaneous connections per user and socket.
    #[serde(default)]
    pub iotedge_max_requests: MaxRequests,
    /// Sockets of other daemons.
    #[serde(default)]
    pub endpoints: Endpoints,
    /// The starter of processes.
    #[serde(default)]
    pub warden: Warden,
}

fn trust_bundle() -> CertId {
    known_cert("aziot-edged-trust-bundle")
}

fn manifest_trust_bundle() -> CertId {
    known_cert("aziot-edged-manifest-trust-bundle")
}

#[expect(
    clippy::expect_used,
    reason = "constants that fit the grammar; the tests read them all"
)]
fn known_cert(id: &str) -> CertId {
    CertId::new(id).expect("a constant id")
}

fn root_only() -> Vec<u32> {
    vec![0]
}

/// Ids of the Edge CA.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EdgeCa {
    /// Its certificate.
    pub cert: CertId,
    /// Its key pair.
    pub key: KeyId,
    /// Its subject; `aziot-edge CA <device id>` unless set.
    pub common_name: Option<String>,
    /// Key algorithms in order of preference; the compatible list unless set.
    pub algorithms: String,
}

impl Default for EdgeCa {
    #[expect(clippy::expect_used, reason = "a constant that fits the grammar")]
    fn default() -> Self {
        Self {
            cert: known_cert("aziot-edged-ca"),
            key: KeyId::new("aziot-edged-ca").expect("a constant id"),
            common_name: None,
            algorithms: "rsa-2048:*".to_owned(),
        }
    }
}

/// The agent module.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// `edgeAgent`: the agent rule knows no other (module-runtime.md 4.1).
    pub name: ModuleName,
    /// Its engine.
    #[serde(rename = "type")]
    pub kind: EngineKind,
    /// What it runs.
    pub config: AgentImage,
    /// Its environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// What the agent runs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentImage {
    /// For the host engine, the name of a grant.
    pub image: GrantName,
}

/// Engines a module may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// Processes of this host.
    Host,
}

/// A module that is always there.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticModule {
    /// Its name.
    pub name: ModuleName,
    /// The grant it runs under.
    pub image: GrantName,
    /// Its environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// How modules are attested.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Attestation {
    /// For modules without a row of their own.
    pub default: Strictness,
    /// By module.
    pub modules: BTreeMap<String, Strictness>,
    /// Whether a kernel that cannot prove callers keeps the module APIs closed (A18).
    pub require_strong: bool,
}

impl Attestation {
    /// The strictness for a module.
    #[must_use]
    pub fn of(&self, module: &ModuleName) -> Strictness {
        self.modules
            .get(module.plain())
            .copied()
            .unwrap_or(self.default)
    }
}

/// Listening sockets.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// The management socket.
    pub management_uri: UnixUri,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            management_uri: UnixUri::known("/var/run/iotedge/mgmt.sock"),
        }
    }
}

/// Simultaneous connections per user and socket.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaxRequests {
    /// Of the management socket.
    pub management: usize,
    /// Of each workload socket.
    pub workload: usize,
}

impl Default for MaxRequests {
    fn default() -> Self {
        Self {
            management: 50,
            workload: 10,
        }
    }
}

/// Sockets of other daemons.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Endpoints {
    /// Keys.
    pub aziot_keyd_url: UnixUri,
    /// Certificates.
    pub aziot_certd_url: UnixUri,
    /// Identities.
    pub aziot_identityd_url: UnixUri,
}

impl Default for Endpoints {
    fn default() -> Self {
        Self {
            aziot_keyd_url: UnixUri::known("/run/aziot/keyd.sock"),
            aziot_certd_url: UnixUri::known("/run/aziot/certd.sock"),
            aziot_identityd_url: UnixUri::known("/run/aziot/identityd.sock"),
        }
    }
}

/// The starter of processes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Warden {
    /// Its socket.
    pub socket: UnixUri,
}

impl Default for Warden {
    fn default() -> Self {
        Self {
            socket: UnixUri::known("/run/holdfast/warden.sock"),
        }
    }
}

/// `unix:///path`, the only scheme there is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct UnixUri(PathBuf);

impl UnixUri {
    fn known(path: &str) -> Self {
        Self(PathBuf::from(path))
    }

    /// The path.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.0
    }
}

impl TryFrom<String> for UnixUri {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, &'static str> {
        match text.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => Ok(Self(PathBuf::from(path))),
            _ => Err("only unix:///path is possible here"),
        }
    }
}

impl Config {
    /// Modules that this daemon keeps: those of the configuration, and the agent.
    #[must_use]
    pub fn always(&self) -> Vec<(ModuleName, GrantName, &BTreeMap<String, String>)> {
        let modules = self
            .modules
            .iter()
            .map(|m| (m.name.clone(), m.image.clone(), &m.env));
        let agent = self
            .agent
            .iter()
            .map(|a| (a.name.clone(), a.config.image.clone(), &a.env));
        modules.chain(agent).collect()
    }

    /// What types alone do not check.
    ///
    /// # Errors
    /// A sentence that names the key.
    pub fn checked(self) -> Result<Self, String> {
        if let Some(agent) = &self.agent
            && agent.name.plain() != "edgeAgent"
        {
            return Err("agent.name must be \"edgeAgent\": no other module may manage".to_owned());
        }
        let mut names: Vec<&str> = self.modules.iter().map(|m| m.name.plain()).collect();
        names.extend(self.agent.iter().map(|a| a.name.plain()));
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("module {:?} is configured twice", twice[0]));
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(more: &str) -> Result<Config, String> {
        let text = format!("hostname = \"h\"\nhomedir = \"/d\"\n{more}");
        toml::from_str::<Config>(&text)
            .map_err(|e| e.message().to_owned())?
            .checked()
    }

    #[test]
    fn the_least_configuration_has_the_compatible_defaults() {
        let config = read("").unwrap();
        assert_eq!(config.edge_ca.cert.as_str(), "aziot-edged-ca");
        assert_eq!(
            config.trust_bundle_cert.as_str(),
            "aziot-edged-trust-bundle"
        );
        let manifest = config.manifest_trust_bundle_cert.as_str();
        assert_eq!(manifest, "aziot-edged-manifest-trust-bundle");
        assert_eq!(config.operators, [0]);
        assert_eq!(config.iotedge_max_requests.management, 50);
        assert_eq!(
            config.listen.management_uri.path().to_str(),
            Some("/var/run/iotedge/mgmt.sock")
        );
    }

    #[test]
    fn a139_what_does_not_fit_is_refused() {
        for more in [
            "unknown = 1",
            "operators = [\"root\"]",
            "[agent]\nname = \"other\"\ntype = \"host\"\nconfig = { image = \"a\" }",
            "[agent]\nname = \"edgeAgent\"\ntype = \"docker\"\nconfig = { image = \"a\" }",
            "[[module]]\nname = \"a\"\nimage = \"g\"\n[[module]]\nname = \"a\"\nimage = \"g\"",
            "[[module]]\nname = \"../a\"\nimage = \"g\"",
            "[listen]\nmanagement_uri = \"http://a\"",
            "[iotedge_max_requests]\nmanagement = 1",
        ] {
            assert!(read(more).is_err(), "{more}");
        }
    }
}
