//! What a module gets is good for others too: openssl verifies its certificates, shows what is in
//! them, and does a handshake with its keys from both ends.
//!
//! The programs must have been built before (`make test` does).
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]
#![expect(
    clippy::disallowed_methods,
    reason = "openssl is the judge, and reads files"
)]

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use contract::bytes::Bytes;
use serde_json::Value;
use sim::puppet::{Order, Puppet};
use sim::stage::{MODULE, Plan, Stage, programs};

/// A folder that goes with its owner.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("hf-openssl-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One request of the module to its own socket.
fn ask(module: &mut Puppet, line: &str, body: &str) -> Value {
    let text = format!(
        "{line}?api-version=2020-07-07 HTTP/1.1\r\nHost: workload.sock\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let order = Order {
        socket: "/run/iotedge/workload.sock".to_owned(),
        send: Bytes(text.into_bytes()),
        until_close: true,
        repeat: None,
    };
    let reply = String::from_utf8(module.send(&order).unwrap().bytes.0).unwrap();
    let (head, body) = reply
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("{reply:?}"));
    assert!(head.starts_with("HTTP/1.1 20"), "{line}: {reply}");
    serde_json::from_str(body).unwrap()
}

fn openssl(arguments: &[&str]) -> String {
    let output = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success(),
        "openssl {arguments:?}: {text}{errors}"
    );
    text + &errors
}

struct Credential {
    chain: String,
    key: String,
}

fn credential(folder: &Folder, name: &str, answer: &Value) -> Credential {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    Credential {
        chain: folder.file(&format!("{name}.pem"), &text(&answer["certificate"])),
        key: folder.file(
            &format!("{name}.key"),
            &text(&answer["privateKey"]["bytes"]),
        ),
    }
}

#[test]
fn openssl_accepts_a_modules_certificates_and_shakes_hands_with_its_keys() {
    if Command::new("openssl").arg("version").output().is_err() {
        eprintln!("SKIPPED openssl_accepts_a_modules_certificates: there is no openssl");
        return;
    }
    let stage = Stage::start(Plan::unprovisioned(programs().unwrap())).unwrap();
    let [(hello, mut module), _agent] = stage.module_puppets().unwrap();
    let folder = Folder::new();
    let bundle = ask(&mut module, "GET /trust-bundle", "");
    let roots = folder.file("roots.pem", bundle["certificate"].as_str().unwrap());
    let identity = format!("POST /modules/{MODULE}/certificate/identity");
    let client = credential(&folder, "client", &ask(&mut module, &identity, "{}"));
    let server = format!(
        "POST /modules/{MODULE}/genid/{}/certificate/server",
        hello.generation
    );
    let body = format!("{{\"commonName\":\"{MODULE}\"}}");
    let server = credential(&folder, "server", &ask(&mut module, &server, &body));

    for (one, purpose) in [(&client, "sslclient"), (&server, "sslserver")] {
        let verdict = openssl(&[
            "verify",
            "-x509_strict",
            "-purpose",
            purpose,
            "-CAfile",
            &roots,
            "-untrusted",
            &one.chain,
            &one.chain,
        ]);
        assert!(verdict.trim_end().ends_with(": OK"), "{verdict}");
        let key = openssl(&["pkey", "-in", &one.key, "-pubout"]);
        let certified = openssl(&["x509", "-in", &one.chain, "-noout", "-pubkey"]);
        assert_eq!(key, certified);
    }
    let text = openssl(&["x509", "-in", &server.chain, "-noout", "-text"]);
    for wanted in [
        "CA:FALSE",
        "TLS Web Server Authentication",
        &format!("DNS:{MODULE}"),
    ] {
        assert!(text.contains(wanted), "{wanted} is not in {text}");
    }
    handshake(&roots, &server, &client);
}

/// `s_server` with the module's server key and `s_client` with its client key, each asking for the
/// other's certificate and ending on anything wrong with it.
fn handshake(roots: &str, server: &Credential, client: &Credential) {
    let port = free_port();
    let at = format!("127.0.0.1:{port}");
    let mut judge = Command::new("openssl")
        .args([
            "s_server",
            "-accept",
            &at,
            "-cert",
            &server.chain,
            "-key",
            &server.key,
        ])
        .args([
            "-cert_chain",
            &server.chain,
            "-CAfile",
            roots,
            "-naccept",
            "1",
        ])
        .args(["-Verify", "3", "-verify_return_error"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(judge.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("ACCEPT") {
        line.clear();
        assert!(
            said.read_line(&mut line).unwrap() > 0,
            "s_server does not listen"
        );
    }
    let text = openssl(&[
        "s_client",
        "-connect",
        &at,
        "-cert",
        &client.chain,
        "-key",
        &client.key,
        "-cert_chain",
        &client.chain,
        "-CAfile",
        roots,
        "-verify_return_error",
        "-verify_hostname",
        MODULE,
        "-servername",
        MODULE,
        "-brief",
    ]);
    assert!(text.contains("Verification: OK"), "{text}");
    drop(judge.stdin.take());
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert!(judge.wait().unwrap().success(), "{rest}");
    assert!(rest.contains(&format!("CN = {MODULE}")), "{rest}");
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}
