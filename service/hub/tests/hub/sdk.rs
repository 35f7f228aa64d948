//! A judge that is not ours: the public Python device SDK, unmodified.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::world::World;

/// The SDK connects to port 8883 only, so the hub gets a loopback address of its own.
const ADDRESS: &str = "127.88.83.1";

#[test]
fn the_public_python_sdk_works_unmodified() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/venv/bin/python");
    let run = |arguments: &[&str]| {
        #[expect(
            clippy::disallowed_methods,
            reason = "a foreign SDK runs in a process of its own"
        )]
        let mut command = Command::new(&python);
        command.args(arguments).stdin(Stdio::null());
        command
    };
    let found = run(&["-c", "import azure.iot.device"])
        .stderr(Stdio::null())
        .status();
    if !found.is_ok_and(|status| status.success()) {
        // Not println: the harness would keep it for itself when the test passes.
        let reason = "no azure-iot-device there (make test installs it)";
        let _ = writeln!(std::io::stderr(), "SKIPPED {}: {reason}", python.display());
        return;
    }
    let world = World::with(&["hub.test", ADDRESS], |text| {
        text.replace(
            "mqtt = \"127.0.0.1:0\"",
            &format!("mqtt = \"{ADDRESS}:8883\""),
        )
    });
    let connection = |rest: &str, key: &contract::sas::SasKey| {
        format!(
            "HostName={ADDRESS};{rest};SharedAccessKey={}",
            key.to_base64().as_str()
        )
    };
    let device = connection("DeviceId=dev-1", &world.device("dev-1", true));
    let module = connection("DeviceId=dev-1;ModuleId=mod", &world.module("dev-1", "mod"));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk.py");
    let roots = world.folder.0.join("ca.pem");
    let owner = world.owner();
    for (connection, twin) in [
        (device, "/twins/dev-1"),
        (module, "/twins/dev-1/modules/mod"),
    ] {
        let mut child = run(&[script, roots.to_str().unwrap()])
            .env("HUB_CONNECTION_STRING", &connection)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines =
            std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
        let mut next = || lines.next().map(Result::unwrap);
        assert_eq!(next().as_deref(), Some("listening"), "{twin}");
        let patch = json!({"properties": {"desired": {"color": "green"}}});
        assert_eq!(world.call("PATCH", twin, &owner, Some(&patch)).status, 200);
        assert_eq!(next().as_deref(), Some("desired green 2"));
        assert_eq!(next().as_deref(), Some("done"));
        assert!(child.wait().unwrap().success());
        let shown = world.call("GET", twin, &owner, None).body;
        assert_eq!(shown["properties"]["reported"]["temperature"], 21);
    }
    let events = world.call("GET", "/messages/events", &owner, None).body;
    assert_eq!(events.as_array().map(Vec::len), Some(2));
    for (event, module) in events
        .as_array()
        .unwrap()
        .iter()
        .zip([json!(null), json!("mod")])
    {
        assert_eq!(event["moduleId"], module);
        assert_eq!(event["properties"], json!({"alarm": "a b&c"}));
        assert_eq!(event["systemProperties"]["messageId"], "m-1");
        assert_eq!(event["systemProperties"]["contentType"], "application/json");
        assert_eq!(event["body"], "eyJ0IjogMX0=");
    }
}
