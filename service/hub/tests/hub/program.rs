//! The program itself: what it writes, prints and refuses.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Output, Stdio};

use crate::world::Folder;

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

#[test]
fn the_program_tells_its_ports_in_a_file_and_prints_nothing() {
    let folder = Folder::new();
    assert!(init(&folder).status.success());
    let mut command = program();
    command.arg("--config").arg(folder.0.join("hub.toml"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Guard(command.spawn().unwrap());
    let file = folder.0.join("endpoints.json");
    while !file.exists() {
        assert!(child.0.try_wait().unwrap().is_none(), "it ended");
        std::thread::yield_now();
    }
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
