//! What the agent is told by its environment (reference/module-runtime.md 5.4).
//!
//! The environment is the agent's interface: the runtime gives it to every module. It says where
//! things are and who we are; nothing in it weakens a check (R79).

use std::collections::BTreeMap;
use std::path::PathBuf;

use contract::names::{BadName, DeviceId, Generation, HostName, ModuleName};

/// Where the hub is, when it is not at its own name on port 8883.
pub const HUB_MQTT: &str = "HOLDFAST_HUB_MQTT";
/// The file with the roots for the hub; without it the device's trust bundle counts.
pub const HUB_CA: &str = "HOLDFAST_HUB_CA";

/// What the agent hands on to modules that do not say otherwise.
const INHERITED: [&str; 4] = [HUB_MQTT, HUB_CA, "RuntimeLogLevel", "UpstreamProtocol"];

/// Why an environment is not an agent's.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A variable is missing.
    #[error("{0} is not set")]
    Missing(&'static str),
    /// A variable is not what it should be.
    #[error("{name} is not usable")]
    Name {
        /// Its name.
        name: &'static str,
        /// Why.
        #[source]
        cause: BadName,
    },
    /// A socket is not a local one.
    #[error("{0} is not a unix:// address")]
    Socket(&'static str),
}

/// An agent's environment, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The socket of the workload API.
    pub workload: PathBuf,
    /// The socket of the management API.
    pub management: PathBuf,
    /// The workload API's address as modules are told it.
    pub workload_uri: String,
    /// The management API's address as an agent is told it.
    pub management_uri: String,
    /// The hub's own name.
    pub hub: HostName,
    /// Where the hub is.
    pub hub_address: String,
    /// The roots for the hub.
    pub hub_roots: Option<PathBuf>,
    /// The device.
    pub device: DeviceId,
    /// Ourselves.
    pub module: ModuleName,
    /// Our generation.
    pub generation: Generation,
    /// The version of the APIs that modules are told.
    pub api_version: String,
    /// The device's host name.
    pub hostname: Option<String>,
    /// The parent of a nested device.
    pub gateway: Option<String>,
    /// What is handed on to modules.
    pub inherited: BTreeMap<String, String>,
}

impl Config {
    /// Reads an environment.
    ///
    /// # Errors
    /// The first variable that is missing or wrong.
    pub fn read(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let optional = |name: &str| variable(name).filter(|value| !value.is_empty());
        let needed = |name: &'static str| optional(name).ok_or(ConfigError::Missing(name));
        let socket = |name: &'static str| {
            let uri = needed(name)?;
            match uri.strip_prefix("unix://") {
                Some(path) if path.starts_with('/') => Ok((PathBuf::from(path), uri)),
                _ => Err(ConfigError::Socket(name)),
            }
        };
        let bad = |name| move |cause| ConfigError::Name { name, cause };
        let (workload, workload_uri) = socket("IOTEDGE_WORKLOADURI")?;
        let (management, management_uri) = socket("IOTEDGE_MANAGEMENTURI")?;
        let hub = HostName::new(needed("IOTEDGE_IOTHUBHOSTNAME")?)
            .map_err(bad("IOTEDGE_IOTHUBHOSTNAME"))?;
        let gateway = optional("IOTEDGE_GATEWAYHOSTNAME");
        let default_address = || gateway.clone().unwrap_or_else(|| hub.to_string());
        Ok(Self {
            workload,
            management,
            workload_uri,
            management_uri,
            hub_address: optional(HUB_MQTT).unwrap_or_else(default_address),
            hub_roots: optional(HUB_CA).map(PathBuf::from),
            device: DeviceId::new(needed("IOTEDGE_DEVICEID")?).map_err(bad("IOTEDGE_DEVICEID"))?,
            module: ModuleName::new(needed("IOTEDGE_MODULEID")?)
                .map_err(bad("IOTEDGE_MODULEID"))?,
            generation: Generation::new(needed("IOTEDGE_MODULEGENERATIONID")?)
                .map_err(bad("IOTEDGE_MODULEGENERATIONID"))?,
            api_version: optional("IOTEDGE_APIVERSION").unwrap_or_else(|| "2022-08-03".to_owned()),
            hostname: optional("EdgeDeviceHostName"),
            inherited: INHERITED
                .iter()
                .filter_map(|name| Some(((*name).to_owned(), optional(name)?)))
                .collect(),
            hub,
            gateway,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn environment() -> BTreeMap<&'static str, &'static str> {
        BTreeMap::from([
            ("IOTEDGE_WORKLOADURI", "unix:///run/module/workload.sock"),
            ("IOTEDGE_MANAGEMENTURI", "unix:///run/module/mgmt.sock"),
            ("IOTEDGE_IOTHUBHOSTNAME", "hub.test"),
            ("IOTEDGE_DEVICEID", "d1"),
            ("IOTEDGE_MODULEID", "$edgeAgent"),
            ("IOTEDGE_MODULEGENERATIONID", "638"),
            ("EdgeDeviceHostName", "box"),
        ])
    }

    pub(crate) fn read(variables: &BTreeMap<&str, &str>) -> Result<Config, ConfigError> {
        Config::read(&|name| variables.get(name).map(|value| (*value).to_owned()))
    }

    #[test]
    fn the_environment_of_an_agent_is_read() {
        let mut variables = environment();
        let config = read(&variables).unwrap();
        assert_eq!(config.workload, PathBuf::from("/run/module/workload.sock"));
        assert_eq!(config.hub_address, "hub.test");
        assert!(config.inherited.is_empty() && config.hub_roots.is_none());
        variables.insert(HUB_MQTT, "127.0.0.1:4711");
        let config = read(&variables).unwrap();
        assert_eq!(config.hub_address, "127.0.0.1:4711");
        assert_eq!(config.inherited[HUB_MQTT], "127.0.0.1:4711");
    }

    #[test]
    fn a_missing_or_foreign_value_is_named() {
        for (name, value, shown) in [
            ("IOTEDGE_DEVICEID", "", "IOTEDGE_DEVICEID is not set"),
            (
                "IOTEDGE_WORKLOADURI",
                "http://127.0.0.1:80",
                "not a unix://",
            ),
            ("IOTEDGE_MANAGEMENTURI", "unix://relative", "not a unix://"),
            ("IOTEDGE_MODULEID", "../x", "IOTEDGE_MODULEID is not usable"),
            (
                "IOTEDGE_IOTHUBHOSTNAME",
                "h/x",
                "IOTEDGE_IOTHUBHOSTNAME is not usable",
            ),
        ] {
            let mut variables = environment();
            variables.insert(name, value);
            let error = read(&variables).unwrap_err();
            assert!(error.to_string().contains(shown), "{error}");
        }
    }
}
