//! Quickstart as a stranger runs it: every step, and nothing left behind, however it ends.
//!
//! The programs must have been built before (`make test` does).
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]
#![expect(
    clippy::disallowed_methods,
    reason = "the test starts the program it tests"
)]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

/// Runs look for what others have left, so they come one after the other.
static ONE: Mutex<()> = Mutex::new(());

fn quickstart(arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .arg("quickstart")
        .arg("--json")
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn steps(output: ChildStdout) -> impl Iterator<Item = Value> {
    BufReader::new(output)
        .lines()
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
}

/// Folders, control groups and processes that carry the name of a run.
fn left(pid: u32) -> BTreeSet<String> {
    let name = format!("holdfast-quickstart-{pid}");
    let mut found = BTreeSet::new();
    for place in ["/tmp", "/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        let path = PathBuf::from(place).join(&name);
        if path.exists() {
            found.insert(path.display().to_string());
        }
    }
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&words).contains(&name) {
            found.insert(entry.path().display().to_string());
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(
        mounts
            .lines()
            .filter(|line| line.contains(&name))
            .map(str::to_owned),
    );
    found
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

#[test]
fn every_step_is_proved_and_nothing_is_left() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut child = quickstart(&[]);
    let mut seen = Vec::new();
    for step in steps(child.stdout.take().unwrap()) {
        assert_eq!(step["ok"], true, "{step}");
        assert!(step["detail"].is_object(), "{step}");
        seen.push(step["step"].as_str().unwrap().to_owned());
    }
    assert!(child.wait().unwrap().success());
    seen.retain(|step| step != "cleanup");
    let wanted = [
        "hub.start",
        "keyd.start",
        "identityd.start",
        "device.enrolled",
        "warden.start",
        "runtimed.start",
        "edge-ca.issued",
        "agent.attested",
        "module.started",
        "module.started",
        "module.signature",
        "module.certificate",
        "modules.mtls",
        "module.message",
        "impostor.refused",
        "audit.verified",
        "done",
    ];
    assert_eq!(seen, wanted);
    assert_eq!(left(child.id()), BTreeSet::new());
}

#[test]
fn each_daemon_comes_back_from_a_kill_and_nothing_is_lost() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut child = quickstart(&["--crash"]);
    let back = steps(child.stdout.take().unwrap())
        .inspect(|step| assert_eq!(step["ok"], true, "{step}"))
        .filter(|step| step["step"] == "daemon.recovered")
        .count();
    assert!(child.wait().unwrap().success());
    assert_eq!(back, 5);
    assert_eq!(left(child.id()), BTreeSet::new());
}

/// Runs another command of the program, in a folder and environment that mean it ill.
fn command(arguments: &[&str]) -> (Option<i32>, String) {
    let folder = std::env::temp_dir().join(format!("hf-hostile-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["config.toml", "holdfast.toml", ".env", "libc.so.6"] {
        std::fs::write(folder.join(name), "output = \"nonsense\"\n").unwrap();
    }
    let output = Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(arguments)
        .current_dir(&folder)
        .env_clear()
        .envs([
            ("HOME", "."),
            ("PATH", "."),
            ("RUST_LOG", "trace"),
            ("LANG", "\u{1b}[2J"),
        ])
        .envs([
            ("AZIOT_KEYD_CONFIG", "./config.toml"),
            ("IOTEDGE_HOST", "unix:///nowhere"),
        ])
        .output()
        .unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
    )
}

#[test]
fn a144_a145_status_lists_and_verification_depend_on_their_arguments_only() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut child = quickstart(&["--keep"]);
    for step in steps(child.stdout.take().unwrap()) {
        assert_eq!(step["ok"], true, "{step}");
        if step["step"] == "done" {
            break;
        }
    }
    let folder = format!("/tmp/holdfast-quickstart-{}", child.id());
    let at = |path: &str| format!("{folder}/{path}");
    let (keyd, certd) = (at("run-keyd/keyd.sock"), at("run-identityd/certd.sock"));
    let (identityd, management) = (
        at("run-identityd/identityd.sock"),
        at("run-runtimed/mgmt.sock"),
    );
    let sockets = [
        "--keyd",
        &keyd,
        "--certd",
        &certd,
        "--identityd",
        &identityd,
        "--management",
        &management,
    ];
    let (code, text) = command(&[&["--output", "json", "status"], &sockets[..]].concat());
    let found: Value = serde_json::from_str(&text).unwrap();
    assert!(
        found["daemons"]
            .as_array()
            .unwrap()
            .iter()
            .all(|one| one["ok"] == true),
        "{found}"
    );
    assert_eq!(code, Some(0));
    let list = [
        "--output",
        "json",
        "module",
        "list",
        "--management",
        &management,
    ];
    let (code, text) = command(&list);
    let found: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (code, found["modules"].as_array().unwrap().len()),
        (Some(0), 3)
    );
    let (code, text) = command(&["audit", "verify", &at("runtimed/audit")]);
    assert!(text.starts_with("whole: "), "{text}");
    assert_eq!(code, Some(0));
    signal(&child, rustix::process::Signal::TERM);
    child.wait().unwrap();
    let (code, _) = command(&list);
    assert_eq!(code, Some(3));
    let (code, _) = command(&["audit", "verify", "/nonexistent"]);
    assert_eq!(code, Some(1));
    let (code, _) = command(&["nonsense"]);
    assert_eq!(code, Some(2));
    assert_eq!(left(child.id()), BTreeSet::new());
}

#[test]
fn an_interrupt_leaves_nothing() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut child = quickstart(&[]);
    for step in steps(child.stdout.take().unwrap()) {
        if step["step"] == "module.started" {
            signal(&child, rustix::process::Signal::INT);
            break;
        }
    }
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(left(child.id()), BTreeSet::new());
}

#[test]
fn what_a_killed_run_leaves_the_next_one_removes() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut killed = quickstart(&["--keep"]);
    for step in steps(killed.stdout.take().unwrap()) {
        if step["step"] == "module.started" {
            break;
        }
    }
    signal(&killed, rustix::process::Signal::KILL);
    killed.wait().unwrap();
    assert!(left(killed.id()).contains(&format!("/tmp/holdfast-quickstart-{}", killed.id())));
    let mut next = quickstart(&[]);
    let removed = steps(next.stdout.take().unwrap())
        .filter(|step| step["step"] == "cleanup")
        .map(|step| step["detail"]["removed"].as_str().unwrap().to_owned())
        .collect::<Vec<_>>();
    assert!(next.wait().unwrap().success());
    assert!(
        removed.contains(&format!("holdfast-quickstart-{}", killed.id())),
        "{removed:?}"
    );
    assert_eq!(left(killed.id()), BTreeSet::new());
    assert_eq!(left(next.id()), BTreeSet::new());
}
