//! Attacks on the proof of who is calling, by real processes against real daemons
//! (security.md 10.1): A1 to A20 and A24 at the modules' sockets, A33 to A37 and A144 at all.
//!
//! Each test also shows the rightful caller being answered in the same setup, so that it can fail.
//! Modules are puppets: what they do, and in which order, a test says line by line. What needs root
//! (other users, control groups, a chosen process number) says so and is skipped without.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking and say what they skip"
)]

mod connection;
mod kernel;
mod management;
mod names;
mod place;
mod program;
mod start;

use contract::audit::Event;
use shim::puppet::{Answer, Connection, Puppet};
use sim::device::Device;

/// Where a module finds its own socket.
const INSIDE: &str = "/run/iotedge/workload.sock";

/// Whether this process is root; otherwise says that the test is skipped.
fn root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIPPED {test}: needs root");
    }
    root
}

/// A request for a signature in the name of a module.
fn sign(module: &str) -> Vec<u8> {
    let body = r#"{"keyId":"primary","algo":"HMACSHA256","data":"aGVsbG8="}"#;
    post(&format!("/modules/{module}/genid/1/sign"), body)
}

fn post(path: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path}?api-version=2020-07-07 HTTP/1.1\r\nHost: h\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").into_bytes()
}

/// The module is answered: what the attacks in this setup are compared with.
#[track_caller]
fn allowed(answer: &Answer) {
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert!(answer.text.contains("\"digest\":"), "{}", answer.text);
}

/// Refused without a word of why, and the connection closed.
#[track_caller]
fn forbidden(answer: &Answer) {
    assert_eq!(answer.status, 403, "{}", answer.text);
    assert!(answer.closed, "{}", answer.text);
    assert!(
        answer.text.ends_with("{\"message\":\"forbidden\"}"),
        "{}",
        answer.text
    );
}

/// The audit log says this once, and why.
#[track_caller]
fn recorded(device: &Device, event: Event, why: &str) {
    let reasons = device.reasons(event).unwrap();
    assert!(
        reasons.iter().any(|reason| reason.contains(why)),
        "{event:?}: {reasons:?}"
    );
}

/// Hands a connection from one process to another.
fn hand_over(from: &Puppet, connection: Connection, to: &Puppet) -> Connection {
    to.take(&from.give(connection).unwrap()).unwrap()
}
