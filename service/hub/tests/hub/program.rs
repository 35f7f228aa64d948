//! The program itself: what it writes, prints and refuses.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Output, Stdio};

use crate::world::{Folder, World, token};

fn program() -> Command {
    #[expect(
        clippy::disallowed_methods,
        reason = "the test starts the program that it tests"
    )]
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast-hub"));
    command.stdin(Stdio::null()).env_clear();
    command
}

fn init(folder: &Folder) -> Output {
    let mut command = program();
    command.args([
        "init",
        "--hostname",
        "hub.test",
        "--hostname",
        "127.0.0.1",
        "--state",
    ]);
    command.arg(&folder.0).output().unwrap()
}

/// Ended with the test, also when it fails.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn init_makes_private_files_and_says_nothing() {
    let folder = Folder::new();
    let output = init(&folder);
    assert!(output.status.success());
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice()),
        (b"".as_slice(), b"".as_slice())
    );
    for name in ["hub.toml", "server.key", "server.pem", "ca.pem"] {
        let mode = std::fs::metadata(folder.0.join(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    assert_eq!(
        std::fs::metadata(&folder.0).unwrap().permissions().mode() & 0o777,
        0o700
    );
    let before = std::fs::read(folder.0.join("hub.toml")).unwrap();
    let again = init(&folder);
    assert_eq!(again.status.code(), Some(1));
    assert_eq!(
        std::fs::read(folder.0.join("hub.toml")).unwrap(),
        before,
        "keys are not replaced"
    );
}

/// Starts the program and waits until it listens.
fn serve(folder: &Folder) -> Guard {
    let file = folder.0.join("endpoints.json");
    let before = std::fs::metadata(&file)
        .and_then(|found| found.modified())
        .ok();
    let mut command = program();
    command.arg("--config").arg(folder.0.join("hub.toml"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Guard(command.spawn().unwrap());
    loop {
        let now = std::fs::metadata(&file)
            .and_then(|found| found.modified())
            .ok();
        if now.is_some() && now != before {
            return child;
        }
        assert!(child.0.try_wait().unwrap().is_none(), "it ended");
        std::thread::yield_now();
    }
}

#[test]
fn a_killed_hub_loses_nothing_that_it_acknowledged() {
    let folder = Folder::new();
    assert!(init(&folder).status.success());
    let first = serve(&folder);
    for name in ["hub.sqlite", "hub.sqlite-wal", "endpoints.json"] {
        let mode = std::fs::metadata(folder.0.join(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let world = World::of(folder);
    let key = world.device("d", false);
    let mut client = world.mqtt("d", &token("d", &key), true);
    for id in 1..=300_u16 {
        client.publish("devices/d/messages/events/", &id.to_be_bytes(), Some(id));
    }
    for _ in 0..100 {
        assert!(client.receive().is_some());
    }
    // SIGKILL, with messages in every state on their way.
    drop(first);
    let mut acknowledged = 100;
    while client.receive().is_some() {
        acknowledged += 1;
    }
    let folder = world.folder;
    let _second = serve(&folder);
    let world = World::of(folder);
    let path = "/messages/events?max=1000";
    let events = world.call("GET", path, &world.owner(), None).body;
    let stored = events.as_array().unwrap().len();
    assert!(
        stored >= acknowledged,
        "{stored} stored, {acknowledged} acknowledged"
    );
    assert_eq!(
        world.call("GET", "/devices/d", &world.owner(), None).status,
        200
    );
}

#[test]
fn a_second_hub_on_the_same_folder_is_refused() {
    let folder = Folder::new();
    assert!(init(&folder).status.success());
    let _first = serve(&folder);
    let before = std::fs::read(folder.0.join("endpoints.json")).unwrap();
    let second = program()
        .arg("--config")
        .arg(folder.0.join("hub.toml"))
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8(second.stderr).unwrap().contains("locked"));
    assert_eq!(
        std::fs::read(folder.0.join("endpoints.json")).unwrap(),
        before
    );
}

#[test]
fn the_program_tells_its_ports_in_a_file_and_prints_nothing() {
    let folder = Folder::new();
    assert!(init(&folder).status.success());
    let mut child = serve(&folder);
    let file = folder.0.join("endpoints.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let endpoints: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(endpoints["hostname"], "hub.test");
    for name in ["https", "mqtt"] {
        let address = endpoints[name].as_str().unwrap();
        std::net::TcpStream::connect(address).unwrap();
    }
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    let mut printed = String::new();
    child
        .0
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut printed)
        .unwrap();
    child
        .0
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut printed)
        .unwrap();
    assert_eq!(printed, "");
}

#[test]
fn a_configuration_that_others_can_read_is_refused() {
    let folder = Folder::new();
    assert!(init(&folder).status.success());
    let file = folder.0.join("hub.toml");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let output = program().arg("--config").arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("must have mode 0600")
    );
    assert_eq!(program().output().unwrap().status.code(), Some(2), "usage");
}
