//! Rules about the text of our sources: unsafe code, purity, sockets, module documents, size.

use std::fmt::Write as _;
use std::io::Write as _;

use sim::tidy::{self, Source};

use super::none;

/// Where unsafe code may be, each block with its reason.
const UNSAFE: [&str; 3] = [
    "trusted/local/src/os/",
    "trusted/warden/src/os/",
    "tools/shim/",
];
/// Product files that may use a way that `clippy.toml` forbids; tools may, with a reason.
const RAW_WAYS: [(&str, &str); 3] = [
    (
        "device/agent/src/main.rs",
        "a module is told by its environment",
    ),
    (
        "service/hub/src/clock.rs",
        "the service's own clock: local is not in its tree",
    ),
    (
        "service/hub/src/files.rs",
        "the service's own files: local is not in its tree",
    ),
];
/// Most lines of one file, and from where on it is named as too long.
const LONG: usize = 900;
const GROWING: usize = 650;

#[test]
fn unsafe_code_is_in_its_folders() {
    let rule = "write it in an os/ folder with a safe wrapper above it";
    let outside = |source: &Source| !UNSAFE.iter().any(|folder| source.is_in(folder));
    // The lint is switched off there too, not in a parent.
    let findings = words(&["unsafe", "unsafe_code"], outside, |s| &s.code);
    none(rule, &findings);
}

#[test]
fn each_unsafe_block_says_why_it_holds() {
    let mut findings = Vec::new();
    for source in sources() {
        let written: Vec<&str> = source.text.lines().collect();
        for line in tidy::lines_with(&source.code, "unsafe") {
            let reason = |text: &&str| text.contains("SAFETY:") || text.contains("# Safety");
            let from = line.saturating_sub(REACH);
            if !written[from..line].iter().any(reason) {
                findings.push(format!("{}:{line}", source.path));
            }
        }
    }
    none("no SAFETY comment above", &findings);
}
/// Lines above an unsafe site in which its reason begins.
const REACH: usize = 12;

#[test]
fn the_contract_is_pure() {
    let impure = [
        "std::fs",
        "std::net",
        "std::os",
        "std::process",
        "std::thread",
        "std::env",
        "std::io",
        "SystemTime",
        "Instant",
        "rustix",
        "async fn",
    ];
    let findings = words(&impure, |s| s.is_in("trusted/contract/"), |s| &s.product);
    none(
        "no clock, file, socket, thread or environment in contract",
        &findings,
    );
}

#[test]
fn the_hub_is_the_only_async_program() {
    let hub = |source: &Source| !source.is_in("service/hub/");
    none(
        "device and tools block (D1)",
        &words(&["async fn", "async move", ".await"], hub, |s| &s.code),
    );
}

#[test]
fn local_sockets_are_opened_in_local_and_warden_only() {
    let elsewhere = |source: &Source| {
        !source.is_in("trusted/local/")
            && !source.is_in("trusted/warden/")
            && !source.is_in("tools/")
    };
    let names = [
        "UnixListener",
        "UnixStream",
        "UnixDatagram",
        "SocketAddrUnix",
    ];
    none(
        "use local::server or local::client",
        &words(&names, elsewhere, |s| &s.product),
    );
}

#[test]
fn raw_ways_are_used_where_the_list_says() {
    let unlisted = |source: &Source| {
        !source.is_in("tools/") && !RAW_WAYS.iter().any(|(path, _)| *path == source.path)
    };
    let findings = words(&["disallowed_methods"], unlisted, |s| &s.product);
    none(
        "clippy.toml names our way; an exception is listed with its reason",
        &findings,
    );
    let all = sources();
    for (path, why) in RAW_WAYS {
        let there = all
            .iter()
            .any(|s| s.path == path && s.product.contains("disallowed_methods"));
        assert!(there, "{path} needs no exception any more: {why}");
    }
}

#[test]
fn nothing_is_left_to_do() {
    let names = ["todo!", "unimplemented!", "dbg!", "#[ignore]"];
    none(
        "finish it or leave it out",
        &words(&names, |_| true, |s| &s.code),
    );
}

#[test]
fn each_file_says_what_it_is_for() {
    let all = sources();
    let silent = all.iter().filter(|source| !source.text.starts_with("//!"));
    let findings: Vec<_> = silent.map(|source| source.path.clone()).collect();
    none(
        "begin with //!: what for, what it never does, where next",
        &findings,
    );
}

#[test]
fn no_file_grows_beyond_its_topic() {
    let mut growing = String::new();
    let mut findings = Vec::new();
    for source in sources() {
        let lines = source.text.lines().count();
        if lines > LONG {
            findings.push(format!("{} has {lines} lines", source.path));
        } else if lines > GROWING {
            let _ = write!(growing, "\n  {} has {lines} lines", source.path);
        }
    }
    if !growing.is_empty() {
        let _ = writeln!(std::io::stderr(), "look for the second topic:{growing}");
    }
    none("find the second topic", &findings);
}

#[test]
fn names_are_plain() {
    let mut findings = Vec::new();
    for source in sources() {
        for (index, line) in source.code.lines().enumerate() {
            let named = |word: &str| line.split(word).nth(1).unwrap_or_default();
            let verb = named("fn ").starts_with("get_");
            let kinds = ["struct ", "enum ", "trait ", "mod "].map(named);
            let noun = kinds.iter().any(|name| {
                let end = name.find(|c: char| !c.is_alphanumeric() && c != '_');
                let name = &name[..end.unwrap_or(name.len())];
                ["Manager", "Helper", "Impl"]
                    .iter()
                    .any(|word| name.ends_with(word) && name != *word)
                    || ["utils", "helpers", "common", "misc"].contains(&name)
            });
            if verb || noun {
                findings.push(format!("{}:{} {}", source.path, index + 1, line.trim()));
            }
        }
    }
    none("no get_, Manager, Helper, Impl, utils", &findings);
}

fn sources() -> Vec<Source> {
    tidy::sources().unwrap()
}

/// Every place of these words in the files that `which` picks.
fn words(
    words: &[&str],
    which: impl Fn(&Source) -> bool,
    part: impl Fn(&Source) -> &String,
) -> Vec<String> {
    let mut findings = Vec::new();
    for source in sources().iter().filter(|source| which(source)) {
        for word in words {
            for line in tidy::lines_with(part(source), word) {
                findings.push(format!("{}:{line} {word}", source.path));
            }
        }
    }
    findings
}
