//! What this daemon remembers of its identity, in the files of the reference (identity-service.md
//! 4.7): `device_info`, `prev_state`, and one small file per module of the device.
//!
//! Each file is written whole with its previous generation kept (R74); ours carry a checksum in a
//! comment line, so that the reference still reads them. A damaged file is answered from its
//! previous generation, and where that is damaged too the loss is said and survived: the device is
//! registered again, and [`crate::reconcile`] deletes nothing it has no record of (A134).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use contract::api::identity::LocalRole;
use contract::names::{DeviceId, Generation, ModuleId};
use local::files::{Dir, FileError, Rules};
use local::log;

use crate::cloud::Known;
use crate::config::{Identities, PrincipalKind, Provisioning};
use crate::error::OnDamage;
use crate::provision::{Device, Record, sha256};

const DEVICE: &str = "device_info";
const PREVIOUS: &str = "prev_state";
const MODULES: &str = "modules";
const MODE: u32 = 0o600;
const MAX_FILE: usize = 64 * 1024;
/// Most modules of one device that are remembered.
const MAX_MODULES: usize = 1024;
const MARK: &str = "# holdfast 1 sum=";

/// Opens a directory below the state directory, creating it if it is absent.
pub type OpenDir = Box<dyn Fn(&[&str]) -> Result<Dir, FileError> + Send + Sync>;

/// The state directory.
pub struct Store {
    home: Dir,
    below: OpenDir,
    on_damage: OnDamage,
}

impl Store {
    /// The state in this directory of the disk.
    #[must_use]
    pub fn new(home: Dir, rules: Rules, on_damage: OnDamage) -> Self {
        let path = home.path().to_owned();
        let below = move |names: &[&str]| {
            let mut path = path.clone();
            let mut dir = None;
            for name in names {
                path.push(name);
                dir = Some(Dir::open_or_create(&path, rules)?);
            }
            dir.map_or_else(|| Dir::open(&path, rules), Ok)
        };
        Self::over(home, Box::new(below), on_damage)
    }

    /// The state in directories of another kind.
    #[must_use]
    pub fn over(home: Dir, below: OpenDir, on_damage: OnDamage) -> Self {
        Self {
            home,
            below,
            on_damage,
        }
    }

    /// The device's record; `None` when there is none, or none that can be believed.
    ///
    /// # Errors
    /// [`FileError`] when it cannot be read at all.
    pub fn device(&self) -> Result<Option<Record>, FileError> {
        let record = self.newest(DEVICE, |text| {
            Record::parse(text).map_err(|e| e.to_string())
        })?;
        Ok(record.flatten())
    }

    /// Remembers a device. If it is another one, which modules were ours at the old hub is
    /// forgotten first: nothing may be deleted at the new hub on its account (R77).
    ///
    /// # Errors
    /// [`FileError`]; the old record is then still there.
    pub fn put_device(&self, record: &Record, other: bool) -> Result<(), FileError> {
        if other {
            self.home.delete(PREVIOUS)?;
        }
        self.home.replace(DEVICE, record.write().as_bytes(), MODE)
    }

    /// The host processes with a module at the last success.
    ///
    /// # Errors
    /// [`FileError`] when it cannot be read at all.
    pub fn previous(&self) -> Result<BTreeSet<ModuleId>, FileError> {
        Ok(self.newest(PREVIOUS, previous_modules)?.unwrap_or_default())
    }

    /// Remembers the settings of a success.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn put_previous(&self, config: &Identities) -> Result<(), FileError> {
        let text = marked(&dump(config));
        if self
            .home
            .read(PREVIOUS, MAX_FILE)
            .is_ok_and(|old| old.as_deref() == Some(text.as_bytes()))
        {
            return Ok(());
        }
        self.home.replace(PREVIOUS, text.as_bytes(), MODE)
    }

    /// What is remembered of the modules of a device.
    ///
    /// # Errors
    /// [`FileError`] when the directories cannot be had.
    pub fn modules(&self, device: &Device) -> Result<Modules, FileError> {
        let name = format!(
            "{}-{}",
            sha256(device.hub.as_str()),
            sha256(device.id.as_str())
        );
        let dir = (self.below)(&[MODULES, &name])?;
        Modules::load(dir, device.id.clone(), &*self.on_damage)
    }

    /// The current generation if it can be believed, else the previous one, else nothing.
    fn newest<T>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, FileError> {
        let Some(bytes) = self.home.read(name, MAX_FILE)? else {
            return Ok(None);
        };
        let read = |bytes: &[u8]| match std::str::from_utf8(bytes) {
            Ok(text) => parse(text),
            Err(_) => Err("not UTF-8".to_owned()),
        };
        let why = match read(&bytes) {
            Ok(found) => return Ok(Some(found)),
            Err(why) => why,
        };
        let previous = self.home.read_previous(name, MAX_FILE)?;
        match previous.as_deref().map(read) {
            Some(Ok(found)) => {
                (self.on_damage)(name, &why);
                Ok(Some(found))
            }
            _ => {
                (self.on_damage)(name, &format!("{why}; and nothing older is left"));
                Ok(None)
            }
        }
    }
}

#[derive(Deserialize)]
struct WirePrevious {
    #[serde(default)]
    principal: Vec<WirePrincipal>,
}

#[derive(Deserialize)]
struct WirePrincipal {
    name: ModuleId,
    #[serde(default)]
    idtype: Vec<String>,
}

fn previous_modules(text: &str) -> Result<BTreeSet<ModuleId>, String> {
    let body = match text.split_once(MARK) {
        None => text,
        Some((body, sum)) if sum.trim_end() == sha256(body) => body,
        Some(_) => return Err("its checksum does not fit".to_owned()),
    };
    let wire: WirePrevious = toml::from_str(body).map_err(|e| e.message().to_owned())?;
    let ours = wire
        .principal
        .into_iter()
        .filter(|p| p.idtype.iter().any(|t| t == "module"));
    Ok(ours.map(|p| p.name).collect())
}

fn marked(body: &str) -> String {
    format!("{body}{MARK}{}\n", sha256(body))
}

/// The settings as the reference dumps them, for the day the device is handed back to it.
fn dump(config: &Identities) -> String {
    let mut out = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| {
        // Writing to a String does not fail.
        let _ = out.write_fmt(text);
        out.push('\n');
    };
    line(format_args!(
        "hostname = {}",
        quoted(config.hostname.as_str())
    ));
    line(format_args!(
        "homedir = {}",
        quoted(&config.homedir.to_string_lossy())
    ));
    line(format_args!(
        "prefer_module_identity_cache = {}",
        config.prefer_cache
    ));
    line(format_args!("cloud_timeout_sec = {}", config.cloud_timeout));
    line(format_args!("cloud_retries = {}", config.cloud_retries));
    if let Some(domain) = &config.local_domain {
        line(format_args!("\n[localid]\ndomain = {}", quoted(domain)));
    }
    line(format_args!("\n[provisioning]"));
    if let Some(gateway) = &config.gateway {
        line(format_args!(
            "local_gateway_hostname = {}",
            quoted(gateway.as_str())
        ));
    }
    match &config.provisioning {
        Provisioning::None => line(format_args!("source = \"none\"")),
        Provisioning::Manual { hub, device, key } => {
            line(format_args!("source = \"manual\""));
            line(format_args!("iothub_hostname = {}", quoted(hub.as_str())));
            line(format_args!("device_id = {}", quoted(device.as_str())));
            line(format_args!(
                "\n[provisioning.authentication]\nmethod = \"sas\""
            ));
            line(format_args!("device_id_pk = {}", quoted(key.as_str())));
        }
        Provisioning::Dps {
            endpoint,
            scope,
            registration,
            key,
            ..
        } => {
            line(format_args!("source = \"dps\""));
            line(format_args!(
                "global_endpoint = {}",
                quoted(&format!("https://{endpoint}/"))
            ));
            line(format_args!("scope_id = {}", quoted(scope)));
            line(format_args!(
                "\n[provisioning.attestation]\nmethod = \"symmetric_key\""
            ));
            line(format_args!(
                "registration_id = {}",
                quoted(registration.as_str())
            ));
            line(format_args!("symmetric_key = {}", quoted(key.as_str())));
        }
    }
    for principal in &config.principals {
        line(format_args!("\n[[principal]]\nuid = {}", principal.uid));
        line(format_args!("name = {}", quoted(principal.name.as_str())));
        let PrincipalKind::Host {
            device,
            module,
            local,
        } = &principal.kind
        else {
            continue;
        };
        let kinds = [
            ("device", *device),
            ("module", *module),
            ("local", local.is_some()),
        ];
        let kinds: Vec<String> = kinds
            .iter()
            .filter(|(_, has)| *has)
            .map(|(kind, _)| quoted(kind))
            .collect();
        line(format_args!("idtype = [{}]", kinds.join(", ")));
        if let Some(options) = local {
            let attributes = match options.attributes {
                LocalRole::Client => "client",
                LocalRole::Server => "server",
            };
            line(format_args!(
                "localid = {{ type = \"x509\", attributes = \"{attributes}\" }}"
            ));
        }
    }
    out
}

/// A text in quotes: JSON's escapes are TOML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// What is remembered of the modules of one device. Answers come from memory; each change is in its
/// file before it is.
#[derive(Debug)]
pub struct Modules {
    dir: Dir,
    device: DeviceId,
    known: RwLock<BTreeMap<ModuleId, Known>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireModule {
    module_id: ModuleId,
    device_id: DeviceId,
    generation_id: Option<Generation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    managed_by: Option<String>,
}

impl Modules {
    fn load(dir: Dir, device: DeviceId, on_damage: &dyn Fn(&str, &str)) -> Result<Self, FileError> {
        let mut known = BTreeMap::new();
        for name in dir.list()?.into_iter().take(MAX_MODULES) {
            // One damaged file is one absent module, never an empty list; its generation comes
            // back from the hub.
            match read_module(&dir, &name, &device) {
                Ok(Some(module)) => {
                    known.insert(module.id.clone(), module);
                }
                Ok(None) => on_damage(&name, "a module record"),
                Err(error) => log::failure(log::Level::Error, &error),
            }
        }
        Ok(Self {
            dir,
            device,
            known: RwLock::new(known),
        })
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<Known> {
        self.known
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// One of them.
    #[must_use]
    pub fn find(&self, id: &ModuleId) -> Option<Known> {
        self.known
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned()
    }

    /// Remembers what the hub said of a module. What cannot be written is not remembered, and
    /// said; the caller has its answer from the hub all the same (P24).
    pub fn put(&self, module: &Known) {
        if self.find(&module.id).as_ref() == Some(module) || module.generation.is_none() {
            return;
        }
        let wire = WireModule {
            module_id: module.id.clone(),
            device_id: self.device.clone(),
            generation_id: module.generation.clone(),
            managed_by: module.managed_by.clone(),
        };
        let text = serde_json::to_vec(&wire).unwrap_or_default();
        match self.dir.replace(&file_name(&module.id), &text, MODE) {
            Ok(()) => {
                let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
                known.insert(module.id.clone(), module.clone());
            }
            Err(error) => log::failure(log::Level::Error, &error),
        }
    }

    /// Forgets a module that the hub deleted.
    ///
    /// # Errors
    /// [`FileError`] when its file may still be there.
    pub fn forget(&self, id: &ModuleId) -> Result<(), FileError> {
        self.dir.delete(&file_name(id))?;
        self.known
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
        Ok(())
    }

    /// Remembers a whole list of the hub's: what is not in it is forgotten.
    pub fn put_list(&self, list: &[Known]) {
        for module in list {
            self.put(module);
        }
        let there: BTreeSet<&ModuleId> = list.iter().map(|m| &m.id).collect();
        for gone in self.all().iter().filter(|m| !there.contains(&m.id)) {
            if let Err(error) = self.forget(&gone.id) {
                log::failure(log::Level::Error, &error);
            }
        }
    }
}

fn read_module(dir: &Dir, name: &str, device: &DeviceId) -> Result<Option<Known>, FileError> {
    let parse = |bytes: Vec<u8>| -> Option<Known> {
        let wire: WireModule = serde_json::from_slice(&bytes).ok()?;
        let ours = wire.device_id == *device && file_name(&wire.module_id) == name;
        ours.then_some(Known {
            id: wire.module_id,
            generation: wire.generation_id,
            managed_by: wire.managed_by,
        })
    };
    match dir.read(name, MAX_FILE)?.and_then(parse) {
        Some(module) => Ok(Some(module)),
        None => Ok(dir.read_previous(name, MAX_FILE)?.and_then(parse)),
    }
}

fn file_name(id: &ModuleId) -> String {
    let stem: String = id
        .as_str()
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect();
    format!("{stem}-{}", sha256(id.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
        hostname = "h"
        homedir = "/var/lib/aziot/\"odd\""
        localid = { domain = "home.lan" }
        principal = [
            { uid = 1, name = "daemon" },
            { uid = 2, name = "a", idtype = ["module", "local"] },
            { uid = 3, name = "b", idtype = ["device"] },
        ]
        [provisioning]
        source = "dps"
        global_endpoint = "https://dps.test:8443"
        scope_id = "0ne1"
        [provisioning.attestation]
        method = "symmetric_key"
        registration_id = "reg-1"
        symmetric_key = "device-id"
    "#;

    #[test]
    fn the_dump_reads_back_as_the_settings_it_came_from() {
        let config: Identities = toml::from_str(CONFIG).unwrap();
        let text = dump(&config);
        let again: Identities = toml::from_str(&text).unwrap();
        assert_eq!(dump(&again), text);
        assert_eq!(again.provisioning, config.provisioning);
        assert_eq!(again.principals, config.principals);
        let modules = previous_modules(&marked(&text)).unwrap();
        assert_eq!(
            modules.iter().map(ModuleId::as_str).collect::<Vec<_>>(),
            ["a"]
        );
    }

    #[test]
    fn a134_an_altered_dump_is_not_believed() {
        let config: Identities = toml::from_str(CONFIG).unwrap();
        let text = marked(&dump(&config));
        assert!(previous_modules(&text.replace("\"a\"", "\"x\"")).is_err());
        // The reference's has no mark.
        assert!(
            previous_modules("[[principal]]\nuid = 1\nname = \"a\"\nidtype = [\"module\"]").is_ok()
        );
        assert!(previous_modules("[[principal").is_err());
    }
}
