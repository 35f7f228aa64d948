//! Every recorded case, asked of real daemons over real sockets; and each operation with `curl`.
//!
//! The programs must have been built before (`make test` does). What cannot run says why.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]
#![expect(
    clippy::disallowed_methods,
    reason = "the test starts a program that is a foreign judge"
)]
#![expect(
    clippy::print_stdout,
    reason = "what was compared and what was skipped is for the reader of the test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use contract::bytes::Bytes;
use sim::conformance::{self, Cases, Device, Names, Who};
use sim::puppet::{Order, Puppet};
use sim::stage::{MODULE, Plan, Stage};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance")
}

fn files() -> Vec<(PathBuf, Cases)> {
    let mut files = Vec::new();
    for api in ["key", "certificate", "identity", "workload", "management"] {
        let mut paths: Vec<_> = std::fs::read_dir(folder().join(api))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        for path in paths {
            let cases = conformance::read(&path).unwrap();
            assert_eq!(cases.api, api, "{}", path.display());
            files.push((path, cases));
        }
    }
    files
}

struct Callers(BTreeMap<Who, Puppet>);

/// A device, whoever can call it, and what the cases may refer to.
fn device(kind: Device) -> (Stage, Callers, Names) {
    let programs = sim::stage::programs().unwrap();
    let mut stage = Stage::start(match kind {
        Device::None => Plan::unprovisioned(programs),
        Device::Manual => Plan::manual(programs),
    })
    .unwrap();
    let mut callers = BTreeMap::new();
    let mut names = Names::default();
    if kind == Device::None {
        let [(module, one), (agent, other)] = stage.module_puppets().unwrap();
        callers.insert(Who::Module, one);
        callers.insert(Who::Agent, other);
        names.0.insert("gen".to_owned(), module.generation);
        names.0.insert("agentgen".to_owned(), agent.generation);
    }
    callers.insert(Who::Host, stage.host_puppet(false).unwrap());
    if rustix::process::geteuid().is_root() {
        callers.insert(Who::Stranger, stage.host_puppet(true).unwrap());
    }
    names.0.insert("uid".to_owned(), stage.uid().to_string());
    names
        .0
        .insert("stranger".to_owned(), (stage.uid() + 1).to_string());
    (stage, Callers(callers), names)
}

fn socket(stage: &Stage, api: &str, who: Who) -> String {
    match (api, who) {
        ("workload", Who::Module | Who::Agent) => "/run/iotedge/workload.sock".to_owned(),
        ("management", Who::Agent) => "/run/iotedge/mgmt.sock".to_owned(),
        _ => stage.socket(api).display().to_string(),
    }
}

/// Runs the files of one kind of device; the differences, and how many ran and were skipped.
fn run(kind: Device) -> (Vec<String>, usize, usize) {
    let (stage, mut callers, base) = device(kind);
    let (mut differences, mut ran, mut skipped) = (Vec::new(), 0, 0);
    for (path, cases) in files() {
        if cases.device != kind {
            continue;
        }
        let mut names = base.clone();
        let file = path.strip_prefix(folder()).unwrap().display().to_string();
        let (before_ran, before_skipped) = (ran, skipped);
        for case in &cases.cases {
            for who in case.senders() {
                let label = format!("{file}: {} ({who:?})", case.name);
                let missing = match who {
                    Who::Stranger => "needs root: another user of the host",
                    _ => "there is no such caller on this device",
                };
                let caller = callers.0.get_mut(&who);
                let why = case.skip.as_deref();
                let why = why.or(caller.is_none().then_some(missing));
                if let Some(why) = why {
                    println!("SKIPPED {label}: {why}");
                    skipped += 1;
                    continue;
                }
                ran += 1;
                let found = case
                    .request(&names)
                    .map_err(|why| vec![why])
                    .and_then(|send| {
                        let order = Order {
                            socket: socket(&stage, case.api.as_ref().unwrap_or(&cases.api), who),
                            send: Bytes(send),
                            until_close: case.closes.is_some(),
                            repeat: None,
                        };
                        let reply = caller.unwrap().send(&order).unwrap();
                        let found = case.judge(&reply, &mut names);
                        if found.is_empty() { Ok(()) } else { Err(found) }
                    });
                if let Err(found) = found {
                    differences.push(format!("{label}\n    {}", found.join("\n    ")));
                }
            }
        }
        let (ran, skipped) = (ran - before_ran, skipped - before_skipped);
        println!("{file}: {ran} compared, {skipped} skipped");
    }
    (differences, ran, skipped)
}

#[test]
fn every_answer_of_an_unprovisioned_device_is_as_recorded() {
    let (differences, ran, _) = run(Device::None);
    assert!(ran > 0);
    assert!(differences.is_empty(), "\n{}", differences.join("\n"));
}

#[test]
fn every_answer_of_a_manually_provisioned_device_is_as_recorded() {
    let (differences, ran, _) = run(Device::Manual);
    assert!(ran > 0);
    assert!(differences.is_empty(), "\n{}", differences.join("\n"));
}

/// The rows by which we differ are those of the README, so that none is made up on the way.
#[test]
fn each_case_says_why_and_each_deviation_names_its_row() {
    let readme = std::fs::read_to_string(folder().join("README.md")).unwrap();
    let rows: BTreeSet<&str> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" | ").next())
        .collect();
    for (path, cases) in files() {
        let mut seen = BTreeSet::new();
        for case in &cases.cases {
            let label = format!("{}: {}", path.display(), case.name);
            assert!(seen.insert(&case.name), "{label} is there twice");
            assert!(!case.why.trim().is_empty(), "{label} says no why");
            assert!(case.send.is_some() != case.raw.is_some(), "{label}");
            if let Some(row) = &case.stricter {
                assert!(rows.contains(row.as_str()), "{label}: no row {row:?}");
            }
        }
    }
}

/// Each operation of the runtime's sockets with a client that is not ours.
#[test]
fn curl_reads_what_anyone_may_and_is_refused_the_rest() {
    let (stage, _callers, _) = device(Device::None);
    let agent_name = "/modules/edgeAgent";
    let spec = r#"{"name":"x","type":"host","config":{"settings":{"image":"spare"}}}"#;
    let data = r#"{"data":"YQ=="}"#;
    let seal = r#"{"plaintext":"YQ==","initializationVector":"YQ=="}"#;
    let open = r#"{"ciphertext":"YQ==","initializationVector":"YQ=="}"#;
    let name = r#"{"commonName":"sensor"}"#;
    let module = |rest: &str| format!("/modules/{MODULE}{rest}");
    let genid = |rest: &str| module(&format!("/genid/1/{rest}"));
    for (api, method, path, body, want) in [
        ("workload", "GET", "/modules".to_owned(), "", 200),
        ("workload", "GET", "/trust-bundle".to_owned(), "", 200),
        (
            "workload",
            "GET",
            "/manifest-trust-bundle".to_owned(),
            "",
            200,
        ),
        ("workload", "POST", genid("sign"), data, 403),
        ("workload", "POST", genid("encrypt"), seal, 403),
        ("workload", "POST", genid("decrypt"), open, 403),
        ("workload", "POST", module("/certificate/identity"), "", 403),
        ("workload", "POST", genid("certificate/server"), name, 403),
        ("management", "GET", "/modules".to_owned(), "", 200),
        ("management", "POST", "/modules".to_owned(), spec, 403),
        ("management", "GET", agent_name.to_owned(), "", 200),
        ("management", "PUT", module(""), spec, 403),
        ("management", "DELETE", module(""), "", 403),
        ("management", "POST", module("/start"), "", 204),
        ("management", "POST", module("/prepareupdate"), spec, 403),
        (
            "management",
            "POST",
            "/identities".to_owned(),
            r#"{"moduleId":"x"}"#,
            403,
        ),
        (
            "management",
            "PUT",
            "/identities/x".to_owned(),
            r#"{"generationId":"1"}"#,
            403,
        ),
        ("management", "DELETE", "/identities/x".to_owned(), "", 403),
        ("management", "GET", "/systeminfo".to_owned(), "", 200),
    ] {
        let status = curl(&stage, api, method, &path, body);
        let root_only = rustix::process::geteuid().is_root() && path.ends_with("/start");
        // As root this process is not the operator that the stage names.
        let want = if root_only { 403 } else { want };
        assert_eq!(status, want, "{api} {method} {path}");
    }
}

fn curl(stage: &Stage, api: &str, method: &str, path: &str, body: &str) -> u16 {
    let url = format!("http://localhost{path}?api-version=2020-07-07");
    let mut command = Command::new("curl");
    command
        .args([
            "--silent",
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}",
        ])
        .args(["--max-time", "20", "--request", method, "--unix-socket"])
        .arg(stage.socket(api));
    if !body.is_empty() {
        command.args(["--header", "Content-Type: application/json", "--data", body]);
    }
    let output = command.arg(url).output().unwrap();
    String::from_utf8(output.stdout).unwrap().parse().unwrap()
}
