//! Who may import whom, and what may be linked where (design: a folder is a trust zone).
//!
//! What is banned, allowed or noted as a duplicate is read from `deny.toml`, its one home.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;

use sim::crates::{self, CargoError, Linked, Package};
use sim::tidy;
use toml::{Table, Value};

use super::none;

/// Each crate of ours, its folder, and which of ours it may import. `shim` may be imported by any
/// test, `sim` may import everything.
const IMPORTS: [(&str, &str, &[&str]); 10] = [
    ("contract", "trusted", &[]),
    ("local", "trusted", &["contract"]),
    ("warden", "trusted", &["contract", "local"]),
    ("keyd", "trusted", &["contract", "local"]),
    ("net", "device", &["contract", "local"]),
    ("identityd", "device", &["contract", "local", "net"]),
    ("runtimed", "device", &["contract", "local"]),
    ("agent", "device", &["contract", "local", "net"]),
    ("hub", "service", &["contract"]),
    ("ctl", "tools", &["contract", "local", "net"]),
];
/// What only the tests of a crate import: the real thing on the other side of a socket.
const TESTS_IMPORT: [(&str, &str); 3] = [("agent", "hub"), ("identityd", "keyd"), ("net", "hub")];
/// Programs that run on their own, each in a process and under a user of its own.
const DAEMONS: [&str; 6] = ["warden", "keyd", "identityd", "runtimed", "agent", "hub"];
/// Most external crates linked into a program of the trusted base.
const CEILINGS: [(&str, usize); 2] = [("keyd", 45), ("warden", 25)];
/// Crates that reach the network, run tasks, or load foreign code.
const NOT_IN_TRUSTED: [&str; 14] = [
    "async-executor",
    "async-io",
    "futures",
    "futures-util",
    "h2",
    "hyper",
    "libloading",
    "mio",
    "net",
    "rustls",
    "socket2",
    "tokio",
    "tower",
    "ureq",
];
/// Which crate has the one implementation of something, and who may link it.
const DOORS: [(&str, &[&str]); 6] = [
    ("rustls", &["net", "hub"]),
    ("ureq", &["net"]),
    ("rusqlite", &["hub"]),
    ("tokio", &["hub"]),
    ("axum", &["hub"]),
    ("libc", &["local", "warden", "shim"]),
];

#[test]
fn crates_import_only_what_the_table_allows() {
    let Some(packages) = known(crates::packages()) else {
        return;
    };
    let allowed: BTreeMap<_, _> = IMPORTS
        .iter()
        .map(|(name, _, list)| (*name, *list))
        .collect();
    let mut findings = Vec::new();
    for (name, package) in &packages {
        if name == "sim" || name == "shim" {
            continue;
        }
        let Some(list) = allowed.get(name.as_str()) else {
            findings.push(format!(
                "{name} is not in the table: which privilege does it protect?"
            ));
            continue;
        };
        for import in ours(package, &packages, true) {
            let pair = (name.as_str(), import.as_str());
            if !list.contains(&pair.1) && !TESTS_IMPORT.contains(&pair) && import != "shim" {
                findings.push(format!("the tests of {name} import {import}"));
            }
        }
        for import in ours(package, &packages, false) {
            if !list.contains(&import.as_str()) {
                findings.push(format!("{name} imports {import}"));
            }
        }
    }
    none("see the table in ARCHITECTURE.md", &findings);
}

#[test]
fn a_daemon_never_imports_a_daemon() {
    let Some(packages) = known(crates::packages()) else {
        return;
    };
    let mut findings = Vec::new();
    for name in DAEMONS {
        for import in ours(&packages[name], &packages, false) {
            if DAEMONS.contains(&import.as_str()) {
                findings.push(format!("{name} imports {import}"));
            }
        }
    }
    none("daemons meet on sockets only", &findings);
}

#[test]
fn nothing_that_is_shipped_imports_what_is_for_tests() {
    let Some(packages) = known(crates::packages()) else {
        return;
    };
    let mut findings = Vec::new();
    for (name, package) in packages.iter().filter(|(name, _)| *name != "sim") {
        let normal = package
            .dependencies
            .iter()
            .filter(|d| d.kind.as_deref() != Some("dev"));
        for import in normal.filter(|d| ["shim", "sim"].contains(&d.name.as_str())) {
            findings.push(format!("{name} imports {}", import.name));
        }
    }
    none("shim and sim are never shipped", &findings);
}

#[test]
fn keyd_and_warden_stay_below_their_ceilings() {
    let mut findings = Vec::new();
    for (name, ceiling) in CEILINGS {
        let Some(linked) = known(crates::linked(name)) else {
            return;
        };
        if linked.len() > ceiling {
            findings.push(format!(
                "{name} links {} crates, at most {ceiling}",
                linked.len()
            ));
        }
    }
    none("the trusted base stays small (P30)", &findings);
}

#[test]
fn the_trusted_base_has_no_network_no_runtime_and_no_vendor_code() {
    let mut findings = Vec::new();
    for (name, ..) in IMPORTS.iter().filter(|(_, folder, _)| *folder == "trusted") {
        let Some(linked) = known(crates::linked(name)) else {
            return;
        };
        for one in linked
            .iter()
            .filter(|one| NOT_IN_TRUSTED.contains(&one.name.as_str()))
        {
            findings.push(format!("{name} links {}", one.name));
        }
    }
    for source in tidy::sources()
        .unwrap()
        .iter()
        .filter(|s| s.is_in("trusted/"))
    {
        for word in [
            "TcpStream",
            "TcpListener",
            "UdpSocket",
            "SocketAddr",
            "IpAddr",
        ] {
            for line in tidy::lines_with(&source.product, word) {
                findings.push(format!("{}:{line} {word}", source.path));
            }
        }
    }
    none("no network in the trusted base", &findings);
}

#[test]
fn nothing_on_the_device_has_an_async_runtime() {
    let banned = banned();
    let mut findings = Vec::new();
    for (name, ..) in IMPORTS.iter().filter(|(name, ..)| *name != "hub") {
        let Some(linked) = known(crates::linked(name)) else {
            return;
        };
        for one in linked.iter().filter(|one| banned.contains_key(&one.name)) {
            findings.push(format!("{name} links {}", one.name));
        }
    }
    none("the device is synchronous (D1)", &findings);
}

#[test]
fn there_is_one_crypto_library_and_one_tls_stack() {
    let Some(all) = known(crates::all()) else {
        return;
    };
    let banned = banned();
    let nowhere = |one: &&Linked| banned.get(&one.name) == Some(&false);
    let findings: Vec<_> = all
        .iter()
        .filter(nowhere)
        .map(|one| one.name.clone())
        .collect();
    none("banned in deny.toml", &findings);
}

#[test]
fn each_foreign_door_has_one_keeper() {
    let Some(packages) = known(crates::packages()) else {
        return;
    };
    let mut findings = Vec::new();
    for (name, package) in packages.iter().filter(|(name, _)| *name != "sim") {
        let normal = package
            .dependencies
            .iter()
            .filter(|d| d.kind.as_deref() != Some("dev"));
        for import in normal {
            for (door, keepers) in DOORS {
                if import.name == door && !keepers.contains(&name.as_str()) {
                    findings.push(format!("{name} imports {door}, which is for {keepers:?}"));
                }
            }
        }
    }
    none("one door each", &findings);
}

#[test]
fn each_licence_is_on_the_list() {
    let Some(all) = known(crates::all()) else {
        return;
    };
    let table = toml("deny.toml");
    let allowed: BTreeSet<&str> = texts(&table["licenses"]["allow"]).collect();
    let fits = |licence: &str| {
        let licence = licence.replace(['(', ')'], " ").replace('/', " OR ");
        // Without brackets `A AND (B OR C)` reads as `A AND B OR C`: splitting at AND first is
        // right for every expression in our tree, and too strict for any other.
        licence
            .split(" AND ")
            .all(|part| part.split(" OR ").any(|one| allowed.contains(one.trim())))
    };
    let unfit = all.iter().filter(|one| !fits(&one.license));
    let findings: Vec<_> = unfit
        .map(|one| format!("{}: {}", one.name, one.license))
        .collect();
    none("not allowed in deny.toml", &findings);
}

#[test]
fn each_duplicate_version_has_its_reason() {
    let Some(all) = known(crates::all()) else {
        return;
    };
    let mut newest: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for one in &all {
        newest.entry(&one.name).or_default().insert(&one.version);
    }
    // The newest is the one to stay; the others need a line in deny.toml.
    let found: BTreeSet<String> = newest
        .iter()
        .flat_map(|(name, versions)| {
            let older = versions.iter().rev().skip(1);
            older.map(move |version| format!("{name}@{version}"))
        })
        .collect();
    let table = toml("deny.toml");
    let skip = table["bans"]["skip"].as_array().unwrap();
    let noted: BTreeSet<String> = skip
        .iter()
        .map(|row| row["crate"].as_str().unwrap().to_owned())
        .collect();
    let differ: Vec<_> = found.symmetric_difference(&noted).cloned().collect();
    none(
        "new without reason in deny.toml, or noted there and gone",
        &differ,
    );
}

#[test]
fn crates_come_from_the_registry_and_versions_are_said_once() {
    let mut findings = Vec::new();
    for package in toml("Cargo.lock")["package"].as_array().unwrap() {
        let source = package.get("source").and_then(Value::as_str);
        if source.is_some_and(|source| !source.starts_with("registry+")) {
            findings.push(format!("Cargo.lock: {:?}", package["name"]));
        }
    }
    let members = IMPORTS
        .iter()
        .map(|(name, folder, _)| format!("{folder}/{name}/Cargo.toml"));
    let tools = ["sim", "shim"].map(|name| format!("tools/{name}/Cargo.toml"));
    for path in members.chain(tools) {
        let manifest = toml(&path);
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(lines) = manifest.get(section).and_then(Value::as_table) else {
                continue;
            };
            for (name, line) in lines {
                if line.get("workspace").and_then(Value::as_bool) != Some(true) {
                    findings.push(format!("{path}: {name} states its own version or path"));
                }
            }
        }
    }
    none("versions are stated in the root's Cargo.toml", &findings);
}

/// Ours that a crate imports: for its tests, or for what is shipped.
fn ours(package: &Package, packages: &BTreeMap<String, Package>, tests: bool) -> BTreeSet<String> {
    let imports = package.dependencies.iter();
    let wanted = imports.filter(|d| (d.kind.as_deref() == Some("dev")) == tests);
    let names = wanted.map(|d| d.name.clone());
    names
        .filter(|name| packages.contains_key(name) && *name != package.name)
        .collect()
}

/// What deny.toml bans, and whether the hub may have it all the same.
fn banned() -> BTreeMap<String, bool> {
    let table = toml("deny.toml");
    let rows = table["bans"]["deny"].as_array().unwrap();
    rows.iter()
        .map(|row| {
            let name = row["crate"].as_str().unwrap().to_owned();
            (name, row.get("wrappers").is_some())
        })
        .collect()
}

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array()
        .unwrap()
        .iter()
        .map(|one| one.as_str().unwrap())
}

fn toml(path: &str) -> Table {
    let text = fs::read_to_string(tidy::root().join(path)).unwrap();
    text.parse().unwrap()
}

/// The answer, or nothing where there is no cargo to ask.
fn known<T>(answer: Result<T, CargoError>) -> Option<T> {
    match answer {
        Ok(answer) => Some(answer),
        Err(CargoError::Absent) => {
            // Not println: the harness would keep it for itself when the test passes.
            let _ = writeln!(std::io::stderr(), "SKIPPED: no cargo here to ask");
            None
        }
        Err(error) => panic!("{error}"),
    }
}
