//! Warden's own configuration: one small file, guarded like a grant (R78).

use std::path::PathBuf;

use contract::grant::{Standing, plain_path};
use serde::Deserialize;

use crate::guarded::{self, GuardError};

/// Why the configuration is not in force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read safely.
    #[error("configuration file")]
    Read(#[from] GuardError),
    /// It is not in form; unknown keys are refused and the known ones named.
    #[error("configuration file: {0}")]
    Parse(#[from] toml::de::Error),
    /// A value cannot be used.
    #[error("{key}: {why}")]
    Value {
        /// The key.
        key: &'static str,
        /// Why not.
        why: &'static str,
    },
}

/// The file as written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Where it listens. The directory must be warden's own.
    pub(crate) socket: String,
    /// Who may ask: user ids.
    pub(crate) allowed_uids: Vec<u32>,
    /// Directory of the grant files.
    pub(crate) grants: PathBuf,
    /// Name of the cgroup under which each module gets its own.
    #[serde(default = "holdfast")]
    pub(crate) cgroup_parent: String,
    /// Lowest user and group id a grant may name, when warden is root.
    #[serde(default = "first_ordinary_uid")]
    pub(crate) minimum_uid: u32,
}

fn holdfast() -> String {
    "holdfast".into()
}

/// Below lie the ids of the system's own accounts on every common distribution.
fn first_ordinary_uid() -> u32 {
    1000
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// [`ConfigError`]; nothing of an unsafe or invalid file is applied.
    pub(crate) fn load(path: &str, owner: u32) -> Result<Self, ConfigError> {
        let text = guarded::read(path, owner)?;
        let config: Self = toml::from_str(&text)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let value = |key, why| Err(ConfigError::Value { key, why });
        if let Err(why) = plain_path(&self.socket) {
            return value("socket", why);
        }
        if self
            .grants
            .to_str()
            .is_none_or(|path| plain_path(path).is_err())
        {
            return value("grants", "not an absolute path without '.' and '..'");
        }
        if contract::grant::GrantName::new(self.cgroup_parent.as_str()).is_err() {
            return value("cgroup_parent", "not a plain name");
        }
        if self.minimum_uid == 0 {
            return value("minimum_uid", "root's id is never given");
        }
        Ok(())
    }

    /// With which powers this process gives ids.
    #[must_use]
    pub(crate) fn standing(&self) -> Standing {
        let uid = rustix::process::geteuid();
        if uid.is_root() {
            Standing::Root {
                minimum_uid: self.minimum_uid,
            }
        } else {
            Standing::User {
                uid: uid.as_raw(),
                gid: rustix::process::getegid().as_raw(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        let config: Config = toml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    #[test]
    fn values_are_checked_and_unknown_keys_refused() {
        let good = "socket = '/run/w/s'\nallowed_uids = [7]\ngrants = '/etc/g'\n";
        assert_eq!(parse(good).unwrap().minimum_uid, 1000);
        for bad in [
            "minimum_uid = 0",
            "cgroup_parent = '../x'",
            "cgroup_parent = ''",
            "sockets = 1",
        ] {
            assert!(parse(&format!("{good}{bad}")).is_err(), "{bad}");
        }
        assert!(parse(&good.replace("/run", "run")).is_err());
        assert!(parse(&good.replace("/etc/g", "/etc/../g")).is_err());
    }
}
