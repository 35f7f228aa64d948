//! The two sections of configuration, parsed into checked types (identity-service.md 1.8, 1.9).
//!
//! Unknown keys and contradictions are refused, and so is what this version cannot do yet: a file
//! is taken as a whole or not at all (R78, P28). Reading and merging the files is
//! `local::config`'s; nothing here touches a disk. Keys beyond the compatible ones:
//! `issuer_certs` (certificates), `provisioning.trusted_certs` and `provisioning.allowed_hubs`
//! (identities), `log_level` and `require_strong_callers` (both).

mod certificates;
mod identities;

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;

use contract::names::CertId;
use local::log::Level;
use local::peer::Require;

pub use self::certificates::{Certificates, Issuance, LocalCa, Method, Preloaded, Writers};
pub use self::identities::{Identities, Principal, PrincipalKind, Provisioning, SYSTEM_ROOTS, Who};

/// Why a configuration is refused. Each text names the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A method that comes in a later version.
    #[error("{key}: \"{method}\" is not in this version yet")]
    Later {
        /// Where.
        key: String,
        /// The method.
        method: &'static str,
    },
    /// A key that must be there.
    #[error("{key} is missing")]
    Missing {
        /// Where.
        key: String,
    },
    /// A key that does not go with the others.
    #[error("{key}: {why}")]
    Contradiction {
        /// Where.
        key: String,
        /// Why.
        why: &'static str,
    },
    /// A value out of its grammar or range.
    #[error("{key}: {why}")]
    Value {
        /// Where.
        key: String,
        /// What is wrong, without the value.
        why: String,
    },
    /// Bundles that hold each other.
    #[error("preloaded_certs.{id}: the bundle holds itself")]
    Cycle {
        /// The bundle.
        id: CertId,
    },
}

fn missing(key: &str) -> ConfigError {
    ConfigError::Missing {
        key: key.to_owned(),
    }
}

fn value(key: &str, why: impl std::fmt::Display) -> ConfigError {
    ConfigError::Value {
        key: key.to_owned(),
        why: why.to_string(),
    }
}

fn contradiction(key: &str, why: &'static str) -> ConfigError {
    ConfigError::Contradiction {
        key: key.to_owned(),
        why,
    }
}

fn later(key: &str, method: &'static str) -> ConfigError {
    ConfigError::Later {
        key: key.to_owned(),
        method,
    }
}

/// What concerns the process as a whole; with two sections, the stricter of both.
#[derive(Debug, Clone, Copy)]
pub struct Process {
    /// How much is logged.
    pub log_level: Level,
    /// How callers must be proved (R1).
    pub require: Require,
}

impl Process {
    fn new(level: Option<&str>, strong: bool) -> Result<Self, ConfigError> {
        let level = Level::parse(level.unwrap_or("info"));
        let log_level =
            level.ok_or_else(|| value("log_level", "error, warn, info, debug or trace"))?;
        Ok(Self {
            log_level,
            require: if strong {
                Require::Strong
            } else {
                Require::Best
            },
        })
    }

    /// Both sections together: the more talkative log, the stronger proof.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let require = match (self.require, other.require) {
            (Require::Best, Require::Best) => Require::Best,
            _ => Require::Strong,
        };
        Self {
            log_level: self.log_level.max(other.log_level),
            require,
        }
    }
}

/// The path of a `unix://` URI; no other scheme is served (identity-service.md 1.2).
fn unix(key: &str, uri: Option<&str>, default: &str) -> Result<PathBuf, ConfigError> {
    match uri {
        None => Ok(PathBuf::from(default)),
        Some(uri) => match uri.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => Ok(PathBuf::from(path)),
            _ => Err(value(key, "only unix:///path")),
        },
    }
}

/// The path of a `file://` URI.
fn file(key: &str, uri: &str) -> Result<PathBuf, ConfigError> {
    match uri.strip_prefix("file://") {
        Some(path) if path.starts_with('/') && path.len() > 1 && !path.ends_with('/') => {
            Ok(PathBuf::from(path))
        }
        _ => Err(value(key, "only file:///path")),
    }
}

/// Both files may name all four, as the reference's do; each part looks at its own.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireEndpoints {
    aziot_certd: Option<String>,
    aziot_identityd: Option<String>,
    aziot_keyd: Option<String>,
    #[serde(rename = "aziot_tpmd")]
    _tpmd: Option<IgnoredAny>,
}

impl WireEndpoints {
    fn certd(&self) -> Result<PathBuf, ConfigError> {
        let uri = self.aziot_certd.as_deref();
        unix("endpoints.aziot_certd", uri, "/run/aziot/certd.sock")
    }

    fn identityd(&self) -> Result<PathBuf, ConfigError> {
        let uri = self.aziot_identityd.as_deref();
        unix(
            "endpoints.aziot_identityd",
            uri,
            "/run/aziot/identityd.sock",
        )
    }

    fn keyd(&self) -> Result<PathBuf, ConfigError> {
        let uri = self.aziot_keyd.as_deref();
        unix("endpoints.aziot_keyd", uri, "/run/aziot/keyd.sock")
    }
}

fn requests(wanted: Option<u32>) -> Result<u32, ConfigError> {
    match wanted.unwrap_or(10) {
        n @ 1..=256 => Ok(n),
        _ => Err(value("max_requests", "1 to 256")),
    }
}

/// Where certificates are kept.
#[must_use]
pub fn certs_dir(homedir: &Path) -> PathBuf {
    homedir.join("certs")
}
