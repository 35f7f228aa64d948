//! What cargo says about our crates and those they link: the tidy tests' view of dependencies.
//!
//! Everything comes from `cargo metadata` and `cargo tree`, offline. Where there is no cargo (the
//! suite run as another user has none) each question is answered with [`CargoError::Absent`].

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::tidy::root;

/// Why cargo does not answer.
#[derive(Debug, thiserror::Error)]
pub enum CargoError {
    /// It is not installed here.
    #[error("there is no cargo")]
    Absent,
    /// It failed.
    #[error("cargo {what}: {text}")]
    Failed {
        /// What was asked.
        what: String,
        /// Its own words.
        text: String,
    },
}

/// One crate of the workspace.
#[derive(Debug, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// What it states in its manifest.
    pub dependencies: Vec<Dependency>,
    /// Its library, programs and tests.
    pub targets: Vec<Target>,
}

/// One line of a manifest.
#[derive(Debug, Deserialize)]
pub struct Dependency {
    /// Of which crate.
    pub name: String,
    /// `dev`, `build`, or nothing for an ordinary one.
    pub kind: Option<String>,
}

/// What is built from a package.
#[derive(Debug, Deserialize)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// `lib`, `bin`, `test`.
    pub kind: Vec<String>,
}

/// One crate that is linked or compiled.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Linked {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its licence expression.
    pub license: String,
}

/// The crates of the workspace by name.
///
/// # Errors
/// [`CargoError`].
pub fn packages() -> Result<BTreeMap<String, Package>, CargoError> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    let text = cargo(&["metadata", "--format-version", "1", "--no-deps"])?;
    let metadata: Metadata = serde_json::from_str(&text).map_err(|error| CargoError::Failed {
        what: "metadata".to_owned(),
        text: error.to_string(),
    })?;
    let named = |package: Package| (package.name.clone(), package);
    Ok(metadata.packages.into_iter().map(named).collect())
}

/// External crates linked into a crate of ours: no proc-macros, no build tools.
///
/// # Errors
/// [`CargoError`].
pub fn linked(package: &str) -> Result<BTreeSet<Linked>, CargoError> {
    tree(&["-p", package, "-e", "normal,no-proc-macro"])
}

/// External crates that take part in building any crate of the workspace, tests included.
///
/// # Errors
/// [`CargoError`].
pub fn all() -> Result<BTreeSet<Linked>, CargoError> {
    tree(&["--workspace", "-e", "normal,build,dev"])
}

fn tree(which: &[&str]) -> Result<BTreeSet<Linked>, CargoError> {
    let mut arguments = vec!["tree", "--prefix", "none", "--format", "{p}|{l}|"];
    arguments.extend_from_slice(which);
    let text = cargo(&arguments)?;
    Ok(text.lines().filter_map(external).collect())
}

/// `name vVERSION|LICENCE|`, perhaps with more behind; crates of ours have a path in parentheses.
fn external(line: &str) -> Option<Linked> {
    let mut parts = line.split('|');
    let (package, license) = (parts.next()?, parts.next()?);
    if package.contains("(/") {
        return None;
    }
    let mut words = package.split_whitespace();
    Some(Linked {
        name: words.next()?.to_owned(),
        version: words.next()?.trim_start_matches('v').to_owned(),
        license: license.to_owned(),
    })
}

fn cargo(arguments: &[&str]) -> Result<String, CargoError> {
    #[expect(
        clippy::disallowed_methods,
        reason = "cargo is asked about its own workspace, by tools and tests only"
    )]
    let output = Command::new("cargo")
        .args(["--offline", "--quiet"])
        .args(arguments)
        .current_dir(root())
        .stdin(Stdio::null())
        .output()
        .map_err(|_| CargoError::Absent)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(CargoError::Failed {
        what: arguments.join(" "),
        text: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_tree_are_read() {
        let linked = external("toml v1.2.2+spec-1.1.0|MIT OR Apache-2.0| (*)").unwrap();
        assert_eq!(linked.name, "toml");
        assert_eq!(linked.version, "1.2.2+spec-1.1.0");
        assert_eq!(linked.license, "MIT OR Apache-2.0");
        let macros = external("serde_derive v1.0.2 (proc-macro)|MIT|").unwrap();
        assert_eq!(macros.name, "serde_derive");
        assert!(external("keyd v0.1.0 (/home/x/trusted/keyd)|MIT|").is_none());
        assert!(external("").is_none());
    }
}
