//! The management API (module-runtime.md 2): what the agent uses to make the modules match their
//! deployment.
//!
//! Writes are the attested agent's alone; start, stop and restart also belong to host principals
//! named in the configuration (P4). Each write is in the audit log before its answer (R37). An
//! operation that fails leaves the module as it was.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{endpoint, kib};
use crate::endpoint::{Api, BadTarget, Empty, Maybe, Parts, Target};
use crate::names::{ModuleId, ModuleName};

/// The management API. The workload API shares its versions (module-runtime.md 1.3).
pub struct ManagementApi;

/// Versions accepted on both runtime sockets.
pub const RUNTIME_VERSIONS: &[&str] = &[
    "2018-06-28",
    "2019-01-30",
    "2019-10-22",
    "2019-11-05",
    "2020-07-07",
    "2021-12-07",
    "2022-08-03",
];

impl Api for ManagementApi {
    const NAME: &'static str = "management";
    const VERSIONS: &'static [&'static str] = RUNTIME_VERSIONS;
    const CURRENT: &'static str = "2022-08-03";
}

/// A module to create.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModuleSpec {
    /// Its name.
    pub name: String,
    /// Its engine: `docker`, or our `host`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `on-create` or `never`, in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<String>,
    /// What it runs.
    pub config: ModuleConfig,
}

/// What a module runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModuleConfig {
    /// Image and options.
    pub settings: Settings,
    /// Its environment; always empty when read back.
    #[serde(default)]
    pub env: Vec<EnvVar>,
}

/// One environment variable. Values may be secret (R48): `Debug` shows the name only.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// Name.
    pub key: String,
    /// Value.
    pub value: String,
}

impl std::fmt::Debug for EnvVar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}=..", self.key)
    }
}

/// Image and options of a module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// Image reference; for the host engine, the name of a grant.
    pub image: String,
    /// Identity of the image; for the host engine, `sha256:` of the executable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_hash: Option<String>,
    /// Container options; the host engine has none and refuses members.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub create_options: Option<BTreeMap<String, Value>>,
    /// Accepted and not used, as in the reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Registry login; never echoed (R48).
    #[serde(default, skip_serializing)]
    pub auth: Option<Value>,
}

/// A member that may be left out but not be null (module-runtime.md 2.1).
fn present<'de, D, T>(from: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(from).map(Some)
}

/// A module as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModuleDetails {
    /// The constant `id`.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its engine.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it runs.
    pub config: ModuleConfig,
    /// How it is.
    pub status: Status,
}

/// Label that says whose a module is (module-runtime.md 5.3).
pub const OWNER_LABEL: &str = "net.azure-devices.edge.owner";
/// Its value on modules that the agent has created.
pub const OWNER: &str = "Microsoft.Azure.Devices.Edge.Agent";
/// Label with the image that was asked for.
pub const IMAGE_LABEL: &str = "net.azure-devices.edge.original-image";

impl ModuleDetails {
    /// Whether the agent created it. Modules of the device's own configuration are not the
    /// agent's to change.
    #[must_use]
    pub fn is_the_agents(&self) -> bool {
        let options = self.config.settings.create_options.as_ref();
        options.is_some_and(|members| {
            members
                .get("Labels")
                .is_some_and(|l| l[OWNER_LABEL] == OWNER)
        })
    }
}

/// How a module is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Last start, RFC 3339 ending in `Z`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<String>,
    /// Last exit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_status: Option<ExitStatus>,
    /// Now.
    pub runtime_status: RuntimeStatus,
}

/// How a module ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExitStatus {
    /// When, RFC 3339 ending in `Z`.
    pub exit_time: String,
    /// The exit code, as text.
    pub status_code: String,
}

/// A module's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeStatus {
    /// The state.
    pub status: State,
    /// Never sent by the reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// States of a module (module-runtime.md 5.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Cannot be told.
    Unknown,
    /// Running.
    Running,
    /// Ended well, or not started yet.
    Stopped,
    /// Ended badly.
    Failed,
    /// Cannot be used any more.
    Dead,
}

/// All modules.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModuleList {
    /// The modules.
    pub modules: Vec<ModuleDetails>,
}

/// A module identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Its name at the hub.
    pub module_id: String,
    /// Who made it.
    pub managed_by: String,
    /// Its generation.
    pub generation_id: String,
    /// `sas`.
    pub auth_type: String,
}

/// All module identities of the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityList {
    /// The identities.
    pub identities: Vec<Identity>,
}

/// A module identity to create.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateIdentityRequest {
    /// Its name at the hub.
    pub module_id: ModuleId,
    /// Echoed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed_by: Option<String>,
}

/// A module identity to refresh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpdateIdentityRequest {
    /// Not looked at, as in the reference.
    pub generation_id: String,
    /// Not looked at, as in the reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed_by: Option<String>,
}

/// The machine (names mix styles on the wire).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemInfo {
    /// `Linux`.
    #[serde(rename = "osType")]
    pub os_type: String,
    /// Kernel release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_release: Option<String>,
    /// Kernel version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_version: Option<String>,
    /// `ID` of os-release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operating_system: Option<String>,
    /// `VERSION_ID` of os-release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operating_system_version: Option<String>,
    /// Of the daemon's build.
    pub architecture: String,
    /// Number of processors.
    pub cpus: u64,
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_memory: Option<u64>,
    /// `yes`, `no` or `unknown`.
    pub virtualized: String,
    /// From the firmware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product_name: Option<String>,
    /// From the firmware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_vendor: Option<String>,
    /// The daemon's version.
    pub version: String,
    /// The engine's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_version: Option<String>,
    /// Constants, as in the reference.
    pub provisioning: ProvisioningFlags,
}

/// Constants of [`SystemInfo`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProvisioningFlags {
    /// `ProvisioningType`.
    #[serde(rename = "type")]
    pub kind: String,
    /// false.
    pub dynamic_reprovisioning: bool,
    /// false.
    pub always_reprovision_on_startup: bool,
}

/// A module to update, and whether to start it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateTarget {
    /// The module that is stopped and removed.
    pub name: ModuleName,
    /// Whether the new one is started.
    pub start: bool,
}

impl Target for UpdateTarget {
    fn read(parts: &Parts) -> Result<Self, BadTarget> {
        let start = match parts.query("start") {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(BadTarget::Query("start")),
        };
        Ok(Self {
            name: ModuleName::new(parts.at(0))?,
            start,
        })
    }
    fn write(&self) -> Parts {
        let query = vec![("start".to_owned(), self.start.to_string())];
        Parts {
            path: vec![self.name.to_string()],
            query,
        }
    }
}

/// A module and what to do with it; the words are compared without case (module-runtime.md 2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActionTarget {
    /// The module.
    pub name: ModuleName,
    /// What.
    pub action: Action,
}

/// What to do with a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start it; fine when it runs.
    Start,
    /// Stop it; fine when it does not run.
    Stop,
    /// Stop it and start it.
    Restart,
}

impl Action {
    const ALL: [(Self, &'static str); 3] = [
        (Self::Start, "start"),
        (Self::Stop, "stop"),
        (Self::Restart, "restart"),
    ];

    /// The word in the path.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(a, _)| *a == self)
            .map_or("", |(_, word)| word)
    }
}

impl Target for ActionTarget {
    fn read(parts: &Parts) -> Result<Self, BadTarget> {
        let found = Action::ALL
            .iter()
            .find(|(_, word)| parts.at(1).eq_ignore_ascii_case(word));
        let action = found
            .map(|(action, _)| *action)
            .ok_or(BadTarget::NotFound)?;
        Ok(Self {
            name: ModuleName::new(parts.at(0))?,
            action,
        })
    }
    fn write(&self) -> Parts {
        Parts {
            path: vec![self.name.to_string(), self.action.as_str().to_owned()],
            query: Vec::new(),
        }
    }
}

/// A module identity named in the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OneIdentity(pub ModuleId);

impl Target for OneIdentity {
    fn read(parts: &Parts) -> Result<Self, BadTarget> {
        Ok(Self(ModuleId::new(parts.at(0))?))
    }
    fn write(&self) -> Parts {
        Parts::one(self.0.as_str())
    }
}

endpoint!(
    /// All modules.
    ListModules: ManagementApi, Get "/modules", Readers, 0,
    (), Empty => ModuleList
);
endpoint!(
    /// Create a module, not started.
    CreateModule: ManagementApi, Post "/modules", Agent, kib(1024),
    (), ModuleSpec => ModuleDetails, 201
);
endpoint!(
    /// One module.
    ReadModule: ManagementApi, Get "/modules/{name}", Readers, 0,
    ModuleName, Empty => ModuleDetails
);
endpoint!(
    /// Replace a module.
    UpdateModule: ManagementApi, Put "/modules/{name}", Agent, kib(1024),
    UpdateTarget, ModuleSpec => ModuleDetails, 201
);
endpoint!(
    /// Remove a module, also when it runs.
    DeleteModule: ManagementApi, Delete "/modules/{name}", Agent, 0,
    ModuleName, Empty => Empty
);
endpoint!(
    /// Fetch what an update will need.
    PrepareUpdate: ManagementApi, Post "/modules/{name}/prepareupdate" since "2019-01-30", Agent,
    kib(1024), ModuleName, ModuleSpec => Empty
);
endpoint!(
    /// Start, stop or restart a module.
    ActOnModule: ManagementApi, Post "/modules/{name}/{action}", Operators, kib(64),
    ActionTarget, Maybe<Value> => Empty
);
endpoint!(
    /// All module identities of the device.
    ListIdentities: ManagementApi, Get "/identities", Readers, 0,
    (), Empty => IdentityList
);
endpoint!(
    /// Create a module identity.
    CreateIdentity: ManagementApi, Post "/identities", Agent, kib(64),
    (), CreateIdentityRequest => Identity
);
endpoint!(
    /// Refresh a module identity.
    UpdateIdentity: ManagementApi, Put "/identities/{id}", Agent, kib(64),
    OneIdentity, UpdateIdentityRequest => Identity
);
endpoint!(
    /// Delete a module identity.
    DeleteIdentity: ManagementApi, Delete "/identities/{id}", Agent, 0,
    OneIdentity, Empty => Empty
);
endpoint!(
    /// The machine.
    ReadSystemInfo: ManagementApi, Get "/systeminfo", Readers, 0,
    (), Empty => SystemInfo
);
