//! A daemon in a hostile start, and one that runs out of descriptors: A144, A37.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use sim::device::{DAEMONS, Device, Plan};

use super::{INSIDE, allowed, get, sign};

#[test]
fn a144_environment_streams_umask_and_limits_of_the_start_change_nothing() {
    let mut usual = Device::start(Plan::with(&["sensor"])).unwrap();
    let sensor = usual.puppet("sensor").unwrap();
    allowed(&sensor.call(INSIDE, &sign("sensor")).unwrap());
    let want = modes(&usual);
    // Nothing of this is a file: what the loader obeys is the affair of whoever starts a daemon.
    let environment = [
        ("LD_PRELOAD", "/nonexistent/hostile.so"),
        ("LD_LIBRARY_PATH", "/nonexistent"),
        ("RUST_LOG", "trace"),
        ("RUST_BACKTRACE", "full"),
        ("HOME", "/nonexistent"),
        ("TMPDIR", "/nonexistent"),
        ("SSL_CERT_FILE", "/nonexistent"),
        ("AZIOT_LOG", "trace"),
        ("IOTEDGE_WORKLOADURI", "unix:///nonexistent"),
        ("NOTIFY_SOCKET", "/nonexistent"),
        ("LISTEN_FDS", "3"),
        ("HOSTILE", "yes"),
    ];
    let mut plan = Plan::with(&["sensor"]);
    plan.environment = environment
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
    plan.tricks = vec![("all", "odd")];
    let mut device = Device::start(plan).unwrap();
    let sensor = device.puppet("sensor").unwrap();
    allowed(&sensor.call(INSIDE, &sign("sensor")).unwrap());
    assert_eq!(modes(&device), want);
    for daemon in DAEMONS {
        assert_eq!(set(&device, daemon), set(&usual, daemon), "{daemon}");
        if !rustix::process::geteuid().is_root() {
            // A process that is not dumpable shows its descriptors to root only.
            continue;
        }
        let pid = device.pid(daemon).unwrap().as_raw_nonzero();
        for number in 0..3 {
            let file = std::fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap();
            assert_eq!(file, Path::new("/dev/null"), "{daemon} {number}");
        }
    }
    // Nothing of it is handed on to a module.
    let inside = std::fs::read(format!("/proc/{}/environ", sensor.pid)).unwrap();
    let inside = String::from_utf8_lossy(&inside);
    assert!(inside.contains("IOTEDGE_MODULEID=sensor"), "{inside}");
    for (name, value) in environment {
        assert!(!inside.contains(&format!("{name}={value}")), "{inside}");
    }
}

/// What a daemon has set of its own process: umask, core dumps, gain of privileges.
fn set(device: &Device, daemon: &str) -> Vec<String> {
    let pid = device.pid(daemon).unwrap().as_raw_nonzero();
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let texts = [read("status"), read("limits")].concat();
    let kept = ["Umask:", "NoNewPrivs:", "Max core file size"];
    let lines = texts
        .lines()
        .filter(|line| kept.iter().any(|name| line.starts_with(name)));
    let lines: Vec<_> = lines
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(lines.len(), kept.len(), "{texts}");
    assert!(!lines[0].ends_with("0000"), "{lines:?}");
    assert_eq!(
        lines[1..],
        ["NoNewPrivs: 1", "Max core file size 0 0 bytes"]
    );
    lines
}

/// Modes of all that the daemons have made, and of the sockets they listen on.
fn modes(device: &Device) -> BTreeMap<String, u32> {
    let mut modes = BTreeMap::new();
    for top in [
        "run-keyd",
        "run-identityd",
        "run-runtimed",
        "run-warden",
        "keyd",
        "certd",
        "identityd",
        "runtimed",
    ] {
        collect(&device.path(top), &device.path(""), &mut modes);
    }
    modes
}

fn collect(folder: &Path, top: &Path, modes: &mut BTreeMap<String, u32>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let Ok(metadata) = std::fs::symlink_metadata(&path) else {
            continue;
        };
        let mode = metadata.permissions().mode();
        let name = path.strip_prefix(top).unwrap().display().to_string();
        if metadata.is_dir() {
            collect(&path, top, modes);
        } else if metadata.is_file() && !name.contains("/logs/") {
            let want = if name.ends_with(".cer") { 0o644 } else { 0o600 };
            assert_eq!(mode & 0o777, want, "{name}");
            // Which file is written when is a matter of moments; how is not.
            continue;
        }
        modes.insert(name, mode);
    }
}

#[test]
fn a37_without_descriptors_the_connected_are_served_and_the_others_wait_their_turn() {
    let mut plan = Plan::with(&["sensor"]);
    plan.tricks = vec![("keyd", "files 40")];
    let mut device = Device::start(plan).unwrap();
    let sensor = device.puppet("sensor").unwrap();
    allowed(&sensor.call(INSIDE, &sign("sensor")).unwrap());
    let connect = || {
        let stream = UnixStream::connect(device.socket("key")).unwrap();
        let patience = Some(Duration::from_secs(20));
        stream.set_read_timeout(patience).unwrap();
        stream
    };
    let request = get("/key/none?api-version=2021-05-01");
    let mut first = connect();
    let usual = answer(&mut first, &request);
    for _ in 0..2 {
        // Each costs two descriptors, so these are more than there are.
        let mut more: Vec<_> = (0..45).map(|_| connect()).collect();
        for stream in &mut more {
            stream.write_all(&request).unwrap();
        }
        // Those who are connected are served meanwhile: this one, and the module by runtimed's.
        assert_eq!(answer(&mut first, &request), usual);
        allowed(&sensor.call(INSIDE, &sign("sensor")).unwrap());
        // One after the other gets its turn as the ones before it go. Who was taken with the last
        // descriptor is told to come again; nobody is taken for somebody else, or left waiting.
        let answers: Vec<_> = more
            .into_iter()
            .map(|mut stream| read(&mut stream))
            .collect();
        let again = |answer: &&String| answer.starts_with("HTTP/1.1 503");
        let served = answers.iter().filter(|answer| **answer == usual).count();
        let again = answers.iter().filter(again).count();
        assert_eq!(served + again, answers.len(), "{answers:?}");
        assert!(served > 20, "{answers:?}");
    }
    assert_eq!(answer(&mut connect(), &request), usual);
    assert_eq!(answer(&mut first, &request), usual);
    allowed(&sensor.call(INSIDE, &sign("sensor")).unwrap());
}

fn answer(stream: &mut UnixStream, request: &[u8]) -> String {
    stream.write_all(request).unwrap();
    read(stream)
}

fn read(stream: &mut UnixStream) -> String {
    let mut buffer = [0; 4096];
    let length = stream.read(&mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}
