//! The program itself, beside the key service itself, over real sockets: statuses and bodies as the
//! reference's pages have them, and state that outlives a kill.
#![expect(
    clippy::disallowed_methods,
    reason = "the test starts the program it is about"
)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use serde_json::{Value, json};

use contract::api::key::{self, CreateKeyRequest, Usage};
use contract::bytes::Secret;
use contract::endpoint::Empty;
use contract::names::KeyId;
use identityd::keys::{Keyd, Keys as _, RemoteKey};
use keyd::config::Config;
use local::audit::verify_dir;
use local::client::Client;
use local::config::Sources;
use local::files::{Dir, Rules};
use local::peer::{KernelFacts, Require};
use local::server::{Limits, Listener, Server};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, PublicKeyData as _};

use crate::support::{self, Folder};

/// Both daemons in one folder.
struct World {
    folder: Folder,
    daemon: Option<Child>,
    _keyd: Arc<Server>,
}

impl World {
    fn new(name: &str, provisioning: &str) -> Self {
        let folder = Folder::new(name);
        let at = folder.path().display().to_string();
        let uid = support::uid();
        let keyd = serve_keyd(folder.path(), uid);
        // Whoever runs this is the daemon that others are, unless the test says otherwise.
        let daemon = format!("principal = [{{ uid = {uid}, name = \"aziot-edge\" }}]");
        let daemon = if provisioning.contains("principal") {
            ""
        } else {
            &daemon
        };
        folder.put("identities.toml", &format!(
            "hostname = \"dev\"\nhomedir = \"{at}/i\"\nmax_requests = 64\ncloud_retries = 0\n{daemon}\n{provisioning}\n[endpoints]\naziot_identityd = \"unix://{at}/i.sock\"\naziot_keyd = \"unix://{at}/k.sock\"\n"
        ));
        folder.put(
            "certificates.toml",
            &format!(
                r#"
            homedir_path = "{at}/c"
            [cert_issuance.aziot-edged-ca]
            method = "self_signed"
            [preloaded_certs]
            bundle = ["aziot-edged-ca"]
            [[principal]]
            uid = {uid}
            certs = ["aziot-edged-ca", "aziot-edged/module/*", "copy", "bundle", "x", "y"]
            [endpoints]
            aziot_certd = "unix://{at}/c.sock"
            aziot_keyd = "unix://{at}/k.sock"
            "#
            ),
        );
        let mut world = Self {
            folder,
            daemon: None,
            _keyd: keyd,
        };
        world.start();
        world
    }

    fn start(&mut self) {
        let file = |name: &str| self.folder.path().join(name);
        let mut daemon = Command::new(env!("CARGO_BIN_EXE_holdfast-identityd"))
            .args(["--parent", &std::process::id().to_string()])
            .arg("--config")
            .arg(file("identities.toml"))
            .arg("--certificates")
            .arg(file("certificates.toml"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(daemon.stderr.take().unwrap());
        let (mut line, mut said) = (String::new(), String::new());
        while !line.contains("identityd serves") {
            line.clear();
            if lines.read_line(&mut line).unwrap() == 0 {
                panic!("it did not start: {}\n{said}", daemon.wait().unwrap());
            }
            said.push_str(&line);
        }
        // Whatever it says later must find a reader.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        self.daemon = Some(daemon);
    }

    fn kill(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    fn keys(&self) -> Keyd {
        Keyd::new(&self.folder.path().join("k.sock"))
    }

    fn ask(&self, socket: &str, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let text = body.map(ToString::to_string).unwrap_or_default();
        ask(
            &self.folder.path().join(socket),
            method,
            path,
            &text,
            "application/json",
        )
    }

    fn certs(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        self.ask(
            "c.sock",
            method,
            &format!("{path}?api-version=2020-09-01"),
            body,
        )
    }

    fn identities(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let mark = if path.contains('?') { '&' } else { '?' };
        self.ask(
            "i.sock",
            method,
            &format!("{path}{mark}api-version=2021-12-01"),
            body,
        )
    }

    fn edge_ca(&self) -> (key::KeyHandle, String) {
        let client = Client::new(self.folder.path().join("k.sock"));
        let pair = key::CreateKeyPairRequest {
            key_id: KeyId::new("aziot-edged-ca").unwrap(),
            preferred_algorithms: Some("ec-p256".to_owned()),
        };
        let handle = client
            .call::<key::CreateKeyPair>(&(), &pair)
            .unwrap()
            .key_handle;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let keys = self.keys();
        let point = |name| {
            let request = key::HandleRequest {
                key_handle: handle.clone(),
            };
            client
                .call::<key::PublicParameter>(&name, &request)
                .unwrap()
                .value
        };
        let public = public_key(&point(key::Parameter::EcPoint));
        let key = RemoteKey::new(&keys, &handle, public);
        (
            handle.clone(),
            params.serialize_request(&key).unwrap().pem().unwrap(),
        )
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            self.kill();
        }
    }
}

/// A key pair's public half from its compressed point, by way of openssl.
fn public_key(point: &str) -> rcgen::SubjectPublicKeyInfo {
    use base64::Engine as _;
    let point = base64::engine::general_purpose::STANDARD
        .decode(point)
        .unwrap();
    let mut der = vec![
        0x30, 0x39, 0x30, 0x13, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a,
    ];
    der.extend([0x86, 0x48, 0xce, 0x3d, 3, 1, 7, 3, 0x22, 0]);
    der.extend(&point);
    let mut openssl = Command::new("openssl")
        .args([
            "ec",
            "-pubin",
            "-inform",
            "DER",
            "-conv_form",
            "uncompressed",
            "-outform",
            "DER",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    openssl.stdin.take().unwrap().write_all(&der).unwrap();
    rcgen::SubjectPublicKeyInfo::from_der(&openssl.wait_with_output().unwrap().stdout).unwrap()
}

fn serve_keyd(folder: &Path, uid: u32) -> Arc<Server> {
    let at = folder.display();
    let text = format!(
        r#"
        aziot_keys = {{ homedir_path = "{at}/k" }}
        endpoints = {{ aziot_keyd = "unix://{at}/k.sock" }}
        [[principal]]
        uid = {uid}
        keys = ["*"]
        replace = true
        purposes = ["sign-token", "sign-cert", "tls", "derive", "encrypt", "decrypt", "export-derived"]
        "#
    );
    let config = Config::parse(&Sources::of(&[("keyd.toml", &text)])).unwrap();
    let keyd = Arc::new(keyd::open(&config, uid).unwrap());
    let server = Server::new(KernelFacts::probe(), Require::Best).unwrap();
    let limits = Limits {
        per_user: 64,
        ..Limits::default()
    };
    let listener = Listener::bind(&config.socket, 0o600).unwrap();
    server
        .open(listener, Arc::new(keyd::api::routes(keyd)), limits)
        .unwrap();
    server.start().unwrap();
    let client = Client::new(folder.join("k.sock"));
    let device = CreateKeyRequest {
        key_id: KeyId::new("device-id").unwrap(),
        usage: Usage {
            sign: true,
            encrypt: false,
        },
        key_bytes: Some(Secret::new(vec![7; 32])),
    };
    client.call::<key::CreateKey>(&(), &device).unwrap();
    server
}

/// One request as curl would send it, with nothing of our client in between.
fn ask(socket: &Path, method: &str, path: &str, body: &str, kind: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(socket).unwrap();
    // A server that has seen enough answers and closes before it has read everything.
    let _ = write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

const MANUAL: &str = r#"
    [provisioning]
    source = "manual"
    iothub_hostname = "127.0.0.1:1"
    device_id = "d1"
    [provisioning.authentication]
    method = "sas"
    device_id_pk = "device-id"
"#;

fn message(text: &str) -> Value {
    json!({ "message": text })
}

#[test]
fn the_certificate_api_answers_as_the_reference_does() {
    let world = World::new("wire-certs", MANUAL);
    let (handle, csr) = world.edge_ca();
    let absent = message("parameter \"id\" has an invalid value\ncaused by: not found");
    assert_eq!(
        world.certs("GET", "/certificates/aziot-edged-ca", None),
        (400, absent.clone())
    );
    let create = json!({ "certId": "aziot-edged-ca", "csr": csr });
    let (status, ca) = world.certs("POST", "/certificates", Some(&create));
    assert_eq!(status, 201, "{ca}");
    assert_eq!(
        world.certs("GET", "/certificates/aziot-edged-ca", None),
        (200, ca.clone())
    );
    assert_eq!(
        world.certs("GET", "/certificates/bundle", None),
        (200, ca.clone())
    );

    let mut leaf = CertificateParams::new(vec!["m".to_owned()]).unwrap();
    leaf.distinguished_name.push(rcgen::DnType::CommonName, "m");
    let leaf = leaf
        .serialize_request(&KeyPair::generate().unwrap())
        .unwrap()
        .pem()
        .unwrap();
    let issuer = json!({ "certId": "aziot-edged-ca", "privateKeyHandle": handle.0 });
    let create =
        json!({ "certId": "aziot-edged/module/m:1:server", "csr": leaf, "issuer": issuer });
    let (status, chain) = world.certs("POST", "/certificates", Some(&create));
    assert_eq!(status, 201, "{chain}");
    let path = "/certificates/aziot-edged%2Fmodule%2Fm:1:server";
    assert_eq!(world.certs("GET", path, None), (200, chain));
    assert_eq!(world.certs("DELETE", path, None), (204, Value::Null));
    assert_eq!(world.certs("DELETE", path, None), (204, Value::Null));
    assert_eq!(world.certs("GET", path, None), (400, absent));

    assert_eq!(
        world.certs("PUT", "/certificates/copy", Some(&ca)),
        (201, ca)
    );
    let internal = message("internal error");
    let no_issuance = json!({ "certId": "x", "csr": leaf });
    assert_eq!(
        world.certs("POST", "/certificates", Some(&no_issuance)),
        (500, internal.clone())
    );
    let nobody =
        json!({ "certId": "x", "csr": leaf, "issuer": { "certId": "y", "privateKeyHandle": "z" } });
    let text = "parameter \"issuer\" has an invalid value\ncaused by: not found";
    assert_eq!(
        world.certs("POST", "/certificates", Some(&nobody)),
        (400, message(text))
    );
    let forged = json!({ "certId": "x", "csr": leaf, "issuer": { "certId": "copy", "privateKeyHandle": "z" } });
    assert_eq!(
        world.certs("POST", "/certificates", Some(&forged)),
        (500, internal.clone())
    );
    let (status, text) = world.certs(
        "POST",
        "/certificates",
        Some(&json!({ "certId": "x", "csr": "no" })),
    );
    assert_eq!(status, 400);
    assert!(
        text["message"]
            .as_str()
            .unwrap()
            .starts_with("parameter \"csr\" has an invalid value")
    );
    let pem = json!({ "pem": "x" });
    assert_eq!(
        world.certs("PUT", "/certificates/bundle", Some(&pem)).0,
        400
    );
    assert_eq!(
        world.certs("DELETE", "/certificates/bundle", None),
        (500, internal)
    );
}

#[test]
fn what_is_no_request_is_refused_as_the_reference_does() {
    let world = World::new("wire-refusals", MANUAL);
    for (method, path, status, text) in [
        ("GET", "/certificates/a", 400, "api-version not specified"),
        (
            "GET",
            "/certificates/a?api-version=1999-01-01",
            400,
            "invalid api-version \"1999-01-01\"",
        ),
        ("GET", "/nothing?api-version=2020-09-01", 404, "not found"),
        (
            "PATCH",
            "/certificates/a?api-version=2020-09-01",
            400,
            "method not allowed",
        ),
        (
            "POST",
            "/certificates?api-version=2020-09-01",
            400,
            "missing request body",
        ),
    ] {
        assert_eq!(
            world.ask("c.sock", method, path, None),
            (status, message(text)),
            "{path}"
        );
    }
    let socket = world.folder.path().join("c.sock");
    let path = "/certificates/a?api-version=2020-09-01";
    assert_eq!(ask(&socket, "PUT", path, "{}", "text/plain").0, 415);
    assert_eq!(ask(&socket, "PUT", path, "{", "application/json").0, 422);
    assert_eq!(
        ask(
            &socket,
            "PUT",
            path,
            "{\"pem\":\"a\",\"pem\":\"b\"}",
            "application/json"
        )
        .0,
        422
    );
    let long = format!("{{\"pem\":\"{}\"}}", "x".repeat(256 * 1024));
    assert_eq!(ask(&socket, "PUT", path, &long, "application/json").0, 413);
}

#[test]
fn the_identity_api_answers_as_the_reference_does() {
    let world = World::new("wire-identities", MANUAL);
    let (status, own) = world.identities("GET", "/identities/identity", None);
    assert_eq!(status, 200, "{own}");
    assert_eq!(own["type"], "aziot");
    let spec = &own["spec"];
    assert_eq!(spec["hubName"], "127.0.0.1:1");
    assert_eq!(spec["gatewayHost"], "127.0.0.1:1");
    assert_eq!(spec["deviceId"], "d1");
    assert_eq!(spec["auth"]["type"], "sas");
    assert!(spec.get("moduleId").is_none() && spec.get("genId").is_none());
    let handle = key::KeyHandle(spec["auth"]["keyHandle"].as_str().unwrap().to_owned());
    assert_eq!(world.keys().hmac(&handle, b"x").unwrap().len(), 32);

    let body = json!({ "type": "aziot" });
    assert_eq!(
        world
            .identities("POST", "/identities/device", Some(&body))
            .0,
        200
    );
    assert_eq!(
        world.identities("POST", "/identities/device", None),
        (400, message("missing request body"))
    );
    assert_eq!(
        world
            .identities("POST", "/identities/device", Some(&json!({})))
            .0,
        422
    );
    assert_eq!(
        world.identities("GET", "/identities/provisioning", None),
        (200, json!({ "source": "manual", "auth": "sas" }))
    );
    let old = world.ask(
        "i.sock",
        "GET",
        "/identities/provisioning?api-version=2020-09-01",
        None,
    );
    assert_eq!(old, (404, message("not found")));
    assert_eq!(
        world.identities("GET", "/trust-bundle", None),
        (200, json!({ "certificate": "" }))
    );
    assert_eq!(
        world.identities("GET", "/identities/modules", None),
        (400, message("missing parameter: type"))
    );
    assert_eq!(
        world.identities("GET", "/identities/modules?type=local", None),
        (400, message("invalid parameter: type"))
    );
    let local = json!({ "type": "local", "moduleId": "m" });
    assert_eq!(
        world
            .identities("POST", "/identities/modules", Some(&local))
            .0,
        400
    );
    // Nobody listens at the hub's address, and no roots are configured that would be trusted.
    let (status, text) = world.identities("GET", "/identities/modules?type=aziot", None);
    assert_eq!(status, 404);
    assert!(
        text["message"]
            .as_str()
            .unwrap()
            .starts_with("Hub client error\ncaused by: "),
        "{text}"
    );
}

#[test]
fn a131_what_was_answered_is_there_after_a_kill() {
    let mut world = World::new("wire-kill", MANUAL);
    let (_, csr) = world.edge_ca();
    let create = json!({ "certId": "aziot-edged-ca", "csr": csr });
    for _ in 0..3 {
        let (status, ca) = world.certs("POST", "/certificates", Some(&create));
        assert_eq!(status, 201);
        world.kill();
        world.start();
        assert_eq!(
            world.certs("GET", "/certificates/aziot-edged-ca", None),
            (200, ca)
        );
        assert_eq!(world.identities("GET", "/identities/identity", None).0, 200);
    }
    let log: PathBuf = world.folder.path().join("i/audit");
    let records: String = std::fs::read_dir(log)
        .unwrap()
        .filter_map(|entry| std::fs::read_to_string(entry.unwrap().path()).ok())
        .collect();
    assert_eq!(records.matches("cert.issued").count(), 3, "{records}");
    assert_eq!(records.matches("prov.changed").count(), 1, "{records}");
}

#[test]
fn the_audit_log_has_signed_heads_from_start_to_stop() {
    let mut world = World::new("wire-heads", MANUAL);
    let (_, csr) = world.edge_ca();
    let create = json!({ "certId": "aziot-edged-ca", "csr": csr });
    assert_eq!(world.certs("POST", "/certificates", Some(&create)).0, 201);
    let mut daemon = world.daemon.take().unwrap();
    let pid = daemon.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert!(daemon.wait().unwrap().success());
    let client = Client::new(world.folder.path().join("k.sock"));
    let key_id = KeyId::new("holdfast_audit_identityd").unwrap();
    let pair = client.call::<key::LoadKeyPair>(&key_id, &Empty).unwrap();
    let request = key::HandleRequest {
        key_handle: pair.key_handle,
    };
    let point = client
        .call::<key::PublicParameter>(&key::Parameter::EcPoint, &request)
        .unwrap()
        .value;
    let public = public_key(&point);
    let dir = Dir::open(
        &world.folder.path().join("i/audit"),
        Rules::private(support::uid()),
    )
    .unwrap();
    let report = verify_dir(&dir, Some(public.der_bytes())).unwrap();
    assert_eq!(report.problem, None);
    assert!(report.records >= 2);
    assert_eq!(report.signed_through, Some(report.last));
}

#[test]
fn a_stranger_reads_certificates_and_nothing_else() {
    let uid = support::uid();
    // Whoever runs this is named in the configuration, as a host process without the device.
    let principal =
        format!("principal = [{{ uid = {uid}, name = \"m\", idtype = [\"module\"] }}]\n{MANUAL}");
    let world = World::new("wire-stranger", &principal);
    let denied = (401, message("authorization error"));
    let body = json!({ "type": "aziot" });
    assert_eq!(
        world.identities("POST", "/identities/device", Some(&body)),
        denied
    );
    assert_eq!(
        world.identities("GET", "/identities/modules?type=aziot", None),
        denied
    );
    assert_eq!(
        world.identities("GET", "/identities/modules/other?type=aziot", None),
        denied
    );
    assert_eq!(
        world.identities("POST", "/identities/device/reprovision", None),
        denied
    );
    assert_eq!(
        world.identities("DELETE", "/identities/modules/m?type=aziot", None),
        denied
    );
    let own = world.identities("GET", "/identities/modules/m?type=aziot", None);
    assert_eq!(own.0, 404, "its own module, and the hub is away: {own:?}");
    if uid != 0 {
        let pem = json!({ "pem": "x" });
        let text = format!("user {uid} is not authorized to modify the cert a");
        assert_eq!(
            world.certs("PUT", "/certificates/a", Some(&pem)),
            (401, message(&text))
        );
        // A handle that was copied is worth nothing without a right to the issuer itself (P8).
        let issuer = json!({ "certId": "local-ca", "privateKeyHandle": "copied" });
        let order = json!({ "certId": "x", "csr": "any", "issuer": issuer });
        let text = format!("user {uid} is not authorized to modify the cert local-ca");
        assert_eq!(
            world.certs("POST", "/certificates", Some(&order)),
            (401, message(&text))
        );
    }
}
