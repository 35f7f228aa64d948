//! This daemon's configuration: the compatible keys (identity-service.md 1.7) and our own, read
//! whole and turned into checked types. Tokens are a later back-end: their settings are refused
//! here by name, so that nobody believes a key is in hardware when it is not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use contract::endpoint::percent_decode;
use contract::names::KeyId;
use contract::policy::{Policy, Row};
use local::config::{ConfigError, Sources};
use local::log::Level;
use local::peer::Require;
use local::server::Limits;
use serde::Deserialize;

/// What is asked of `keyd`.
#[derive(Debug)]
pub struct Config {
    /// State directory; keys are in `keys`, the audit log in `audit` below it.
    pub home: PathBuf,
    /// The socket.
    pub socket: PathBuf,
    /// What the socket allows.
    pub limits: Limits,
    /// How callers must be proved.
    pub require: Require,
    /// Keys in files placed by an administrator.
    pub preloaded: BTreeMap<KeyId, PathBuf>,
    /// Who may do what.
    pub policy: Policy,
    /// How much is logged.
    pub log_level: Level,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    max_requests: usize,
    max_connections: usize,
    aziot_keys: Library,
    preloaded_keys: BTreeMap<String, String>,
    principal: Vec<Row>,
    endpoints: Endpoints,
    root_may_use_keys: bool,
    require_strong_callers: bool,
    log_level: String,
}

impl Default for Settings {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            max_requests: limits.per_user,
            max_connections: limits.per_socket,
            aziot_keys: Library::default(),
            preloaded_keys: BTreeMap::new(),
            principal: Vec::new(),
            endpoints: Endpoints::default(),
            root_may_use_keys: false,
            require_strong_callers: false,
            log_level: "info".to_owned(),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Library {
    homedir_path: Option<PathBuf>,
    pkcs11_lib_path: Option<PathBuf>,
    pkcs11_base_slot: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Endpoints {
    aziot_keyd: Option<String>,
}

const HOME: &str = "/var/lib/aziot/keyd";
const SOCKET: &str = "unix:///run/aziot/keyd.sock";

impl Config {
    /// Reads the merged sources.
    ///
    /// # Errors
    /// [`ConfigError`]; nothing is applied then.
    pub fn parse(sources: &Sources) -> Result<Self, ConfigError> {
        let settings: Settings = sources.parse()?;
        let refuse = |why: String| Err(ConfigError::Meaning(why));
        if settings.aziot_keys.pkcs11_lib_path.is_some()
            || settings.aziot_keys.pkcs11_base_slot.is_some()
        {
            return refuse(format!("`aziot_keys.pkcs11_*`: {NO_TOKENS}"));
        }
        let home = settings
            .aziot_keys
            .homedir_path
            .unwrap_or_else(|| HOME.into());
        if !home.is_absolute() {
            return refuse("`aziot_keys.homedir_path` is not an absolute path".to_owned());
        }
        let socket = settings.endpoints.aziot_keyd;
        let socket = match socket.as_deref().unwrap_or(SOCKET).strip_prefix("unix://") {
            Some(path) if Path::new(path).is_absolute() => PathBuf::from(path),
            _ => return refuse("`endpoints.aziot_keyd` is not `unix://` and a path".to_owned()),
        };
        let mut preloaded = BTreeMap::new();
        for (id, uri) in settings.preloaded_keys {
            let id = KeyId::new(id)
                .map_err(|bad| ConfigError::Meaning(format!("`preloaded_keys`: {bad}")))?;
            let path = key_file(&uri)
                .map_err(|why| ConfigError::Meaning(format!("`preloaded_keys.{id}`: {why}")))?;
            preloaded.insert(id, path);
        }
        for row in &settings.principal {
            let fits = |pattern: &String| KeyId::new(pattern.as_str()).is_ok();
            if !row.keys.iter().all(fits) {
                let uid = row.uid;
                return refuse(format!(
                    "`principal` with uid {uid}: a pattern is no key id"
                ));
            }
        }
        let Some(log_level) = Level::parse(&settings.log_level) else {
            return refuse("`log_level` is not error, warn, info, debug or trace".to_owned());
        };
        if settings.max_requests == 0 || settings.max_connections == 0 {
            return refuse("`max_requests` and `max_connections` are at least 1".to_owned());
        }
        Ok(Self {
            home,
            socket,
            limits: Limits {
                per_user: settings.max_requests,
                per_socket: settings.max_connections.max(settings.max_requests),
                ..Limits::default()
            },
            require: if settings.require_strong_callers {
                Require::Strong
            } else {
                Require::Best
            },
            preloaded,
            policy: Policy {
                rows: settings.principal,
                root_may_use_keys: settings.root_may_use_keys,
            },
            log_level,
        })
    }
}

const NO_TOKENS: &str = "keys in PKCS#11 tokens are not supported by this release";

/// The path of a `file://` URI; the text itself may hold a PIN and is not repeated.
fn key_file(uri: &str) -> Result<PathBuf, &'static str> {
    if uri.starts_with("pkcs11:") {
        return Err(NO_TOKENS);
    }
    let path = uri
        .strip_prefix("file://")
        .ok_or("only `file://` is allowed")?;
    let path = percent_decode(path).ok_or("a broken escape")?;
    let path = PathBuf::from(path);
    let plain = path.is_absolute()
        && path.file_name().is_some()
        && !path.components().any(|c| c.as_os_str() == "..");
    if plain {
        Ok(path)
    } else {
        Err("not an absolute path of a file")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::policy::{Purpose, Purposes};

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(&Sources::of(&[("keyd.toml", text)]))
    }

    #[test]
    fn the_compatible_form_is_read() {
        let config = parse(
            r#"
            max_requests = 20
            [aziot_keys]
            homedir_path = "/srv/keyd"
            [preloaded_keys]
            device-id = "file:///var/secrets/aziot/keyd/device%2Did"
            [[principal]]
            uid = 1000
            keys = ["aziot_identityd_master_id", "device-id*"]
            purposes = ["sign-token", "derive", "export-derived"]
            delegates = [1001]
            replace = true
            [[principal]]
            uid = 1002
            keys = ["*"]
            "#,
        )
        .unwrap();
        assert_eq!(config.home, Path::new("/srv/keyd"));
        assert_eq!(config.limits.per_user, 20);
        let file = &config.preloaded[&KeyId::new("device-id").unwrap()];
        assert_eq!(file, Path::new("/var/secrets/aziot/keyd/device-id"));
        let [first, second] = &config.policy.rows[..] else {
            panic!("two rows");
        };
        assert!(first.purposes.has(Purpose::ExportDerived));
        assert_eq!(second.purposes, Purposes::USUAL);
        assert!(!config.policy.root_may_use_keys);
        let none = parse("").unwrap();
        assert_eq!(none.socket, Path::new("/run/aziot/keyd.sock"));
        assert_eq!(none.home, Path::new(HOME));
    }

    #[test]
    fn a139_what_is_unknown_or_unsafe_is_refused_without_its_value() {
        for (text, want) in [
            (
                "[aziot_keys]\npkcs11_lib_path = '/lib/x.so'",
                "PKCS#11 tokens are not supported",
            ),
            (
                "[aziot_keys]\npkcs11_base_slot = 'slot-id=1?pin-value=4321'",
                "not supported",
            ),
            (
                "[preloaded_keys]\na = 'pkcs11:token=t;object=a?pin-value=4321'",
                "not supported",
            ),
            ("[preloaded_keys]\na = 'https://4321/'", "only `file://`"),
            (
                "[preloaded_keys]\na = 'file://4321/../x'",
                "not an absolute path",
            ),
            (
                "[preloaded_keys]\na = 'file:///x/../4321'",
                "not an absolute path",
            ),
            (
                "[preloaded_keys]\n'' = 'file:///a'",
                "invalid key id: empty",
            ),
            (
                "[[principal]]\nuid = 1\nkeys = ['']",
                "a pattern is no key id",
            ),
            (
                "[[principal]]\nuid = 1\nkeys = ['a']\npurposes = ['sing']",
                "line 4",
            ),
            ("[[principal]]\nuid = -1\nkeys = ['a']", "expected u32"),
            (
                "[aziot_keys]\nhomedirpath = '4321'",
                "did you mean `homedir_path`?",
            ),
            (
                "[endpoints]\naziot_keyd = 'http://0.0.0.0:4321'",
                "not `unix://`",
            ),
            (
                "root_may_use_key = true",
                "did you mean `root_may_use_keys`?",
            ),
            ("log_level = 'loud'", "`log_level`"),
            ("max_requests = 0", "at least 1"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(want), "{text}: {message}");
            assert!(!message.contains("4321"), "{message}");
        }
    }
}
