//! Names that would like to be another's or a path, and versions and bytes that would like to be
//! something else: A10, A14, A33, A34, A36, over the sockets of all daemons.

use std::collections::BTreeMap;
use std::path::Path;

use contract::audit::Event;
use shim::puppet::Puppet;
use sim::device::{DAEMONS, Device, Plan};

use super::{INSIDE, allowed, forbidden, get, post, recorded, sign};

#[test]
fn a10_what_is_like_a_module_name_names_no_module() {
    let mut device = Device::start(Plan::with(&["sensor"])).unwrap();
    let sensor = device.puppet("sensor").unwrap();
    let pid = sensor.pid.to_string();
    let id = "4c01db0b339c4a2d9a1b".repeat(4)[..64].to_owned();
    let cgroup = "sensor.holdfast";
    for alias in ["sens", "sensor2", cgroup, &pid, &id, &id[..12], "none"] {
        forbidden(&sensor.call(INSIDE, &sign(alias)).unwrap());
    }
    recorded(&device, Event::PeerAlias, "another module's");
    allowed(&sensor.call(INSIDE, &sign("sensor")).unwrap());
}

#[test]
fn a14_no_spelling_of_a_name_is_another_modules() {
    let mut device = Device::start(Plan::with(&["edgeAgent", "sensor"])).unwrap();
    let sensor = device.puppet("sensor").unwrap();
    let agent = device.puppet("$edgeAgent").unwrap();
    for spelling in [
        "$sensor",
        "%24sensor",
        "$$sensor",
        "%24%24sensor",
        "%2524sensor",
        "SENSOR",
        "Sensor",
        "sensor%00",
        "%00sensor",
        "sensor%20",
        "sensor%0a",
        "sens%C3%B6r",
        "%D1%95ensor",
        "sensor%E2%80%8B",
        "%73ensor%",
        "sensor%2F",
        "sensor%2F..%2Fsensor",
        ".%2Fsensor",
    ] {
        let answer = sensor.call(INSIDE, &sign(spelling)).unwrap();
        let refused = [400, 403, 404].contains(&answer.status);
        assert!(refused, "{spelling}: {}", answer.text);
        assert!(
            !answer.text.contains("digest"),
            "{spelling}: {}",
            answer.text
        );
    }
    assert!(!device.reasons(Event::PeerAlias).unwrap().is_empty());
    // Encoded once is the same name, and the agent's `$` is its own, once.
    allowed(&sensor.call(INSIDE, &sign("%73ensor")).unwrap());
    for own in ["edgeAgent", "$edgeAgent", "%24edgeAgent"] {
        allowed(&agent.call(INSIDE, &sign(own)).unwrap());
    }
    for other in [
        "$$edgeAgent",
        "%24$edgeAgent",
        "%2524edgeAgent",
        "edgeagent",
        "$edgeagent",
    ] {
        forbidden(&agent.call(INSIDE, &sign(other)).unwrap());
    }
}

/// A caller that each daemon knows: the user of `runtimed`, outside.
fn known(device: &mut Device) -> Puppet {
    let users = device.users();
    let ids = [
        format!("uid={}", users.runtimed),
        format!("gid={}", users.services),
    ];
    let ids = if users.separate { &ids[..] } else { &[] };
    device.outsider("known", ids).unwrap()
}

/// An API: its socket, a version, and requests in which `NAME` stands for a name.
const NAMED: &[(&str, &str, &[&str])] = &[
    (
        "key",
        "2021-05-01",
        &[
            "GET /key/NAME",
            "GET /keypair/NAME",
            "POST /parameters/NAME",
        ],
    ),
    (
        "certificate",
        "2020-09-01",
        &["GET /certificates/NAME", "DELETE /certificates/NAME"],
    ),
    (
        "identity",
        "2022-08-01",
        &[
            "GET /identities/modules/NAME",
            "DELETE /identities/modules/NAME",
        ],
    ),
    (
        "management",
        "2022-08-03",
        &[
            "GET /modules/NAME",
            "POST /modules/NAME/start",
            "DELETE /identities/NAME",
        ],
    ),
    (
        "workload",
        "2020-07-07",
        &[
            "POST /modules/NAME/genid/1/sign",
            "POST /modules/NAME/certificate/identity",
        ],
    ),
];

fn socket(device: &Device, api: &str) -> std::path::PathBuf {
    match api {
        "workload" => device.workload("sensor"),
        other => device.socket(other),
    }
}

#[test]
fn a33_names_never_become_paths() {
    let mut device = Device::start(Plan::with(&["sensor"])).unwrap();
    let sensor = device.puppet("sensor").unwrap();
    let known = known(&mut device);
    allowed(&sensor.call(INSIDE, &sign("sensor")).unwrap());
    settled(&device);
    let before = state(&device);
    let long = "n".repeat(4096);
    for name in [
        "..%2F..%2F..%2F..%2Fetc%2Fpasswd",
        "..",
        "%2e%2e",
        "%2e%2e%2f%2e%2e%2fkeyd%2fstate",
        "%2Fetc%2Fpasswd",
        "sensor%2F..%2Factuator",
        "..%5C..%5Cwindows",
        "sensor%00.toml",
        "other?x=/../..",
        "sensor#/../..",
        "%3Fapi-version=2",
        "%23",
        ".",
        &long,
    ] {
        for (api, version, requests) in NAMED {
            for request in *requests {
                let (method, path) = request.split_once(' ').unwrap();
                let path = path.replace("NAME", name);
                let mark = if path.contains('?') { '&' } else { '?' };
                let text = format!(
                    "{method} {path}{mark}api-version={version} HTTP/1.1\r\nHost: h\r\n\
                     Content-Length: 0\r\n\r\n"
                );
                let answer = known.call(socket(&device, api), text.as_bytes()).unwrap();
                // 500 is what the reference answers for a key or a certificate that is not there.
                let refused = (400..=500).contains(&answer.status);
                assert!(refused, "{api} {text}: {}", answer.text);
            }
        }
    }
    assert_eq!(before, state(&device));
    allowed(&sensor.call(INSIDE, &sign("sensor")).unwrap());
}

#[test]
fn a33_a_key_whose_id_is_like_a_path_is_kept_under_no_such_path() {
    let mut device = Device::start(Plan::with(&["sensor"])).unwrap();
    let known = known(&mut device);
    settled(&device);
    let before = state(&device);
    let body = r#"{"keyId":"holdfast_/../../../escape","usage":"derive","generateBytes":32}"#;
    let text = String::from_utf8(post("/key", body)).unwrap();
    let text = text.replace("2020-07-07", "2021-05-01");
    let answer = known.call(device.socket("key"), text.as_bytes()).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text);
    let new: Vec<_> = state(&device)
        .into_keys()
        .filter(|path| !before.contains_key(path))
        .collect();
    // The letters are for whoever looks into the folder; the name is a hash.
    assert!(!new.is_empty());
    for file in new {
        let name = file.strip_prefix("keyd/state/keys/holdfastescape-");
        assert!(
            name.is_some_and(|hash| !hash.contains(['/', '%'])),
            "{file}"
        );
    }
}

/// Waits for what a device makes by itself at its first start: its Edge CA, and the key that signs
/// the head of the audit log.
fn settled(device: &Device) {
    let keys = "keyd/state/keys";
    device
        .wait_for_file("certd/certs", "aziotedgedca-")
        .unwrap();
    device
        .wait_for_file(keys, "holdfastauditruntimed-")
        .unwrap();
    device.wait_for_file("runtimed/audit", "heads").unwrap();
}

/// The bytes of all state but audit logs, which grow by every refusal, and what modules write.
fn state(device: &Device) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    collect(&device.path(""), &mut |path| {
        let below = path.strip_prefix(device.path("")).unwrap();
        let below = below.display().to_string();
        let noise = ["log/", "bin/", "runtimed/logs/"]
            .iter()
            .any(|noise| below.starts_with(noise));
        if !noise && !below.contains("/audit/") && !below.contains("clock") {
            files.insert(below, std::fs::read(path).unwrap_or_default());
        }
    });
    files
}

fn collect(folder: &Path, found: &mut impl FnMut(&Path)) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            collect(&entry.path(), found);
        } else {
            found(&entry.path());
        }
    }
}

#[test]
fn a34_only_a_known_version_is_served_and_never_the_newest_by_default() {
    let mut device = Device::start(Plan::with(&["sensor"])).unwrap();
    let _sensor = device.puppet("sensor").unwrap();
    let known = known(&mut device);
    for (api, path, good) in [
        ("key", "/key/holdfast_none", "2021-05-01"),
        ("certificate", "/certificates/none", "2020-09-01"),
        ("identity", "/identities/provisioning", "2022-08-01"),
        ("management", "/modules", "2022-08-03"),
        ("workload", "/modules", "2020-07-07"),
    ] {
        let ask = |query: &str| {
            let answer = known
                .call(socket(&device, api), &get(&format!("{path}{query}")))
                .unwrap();
            (answer.status, answer.text)
        };
        let served = ask(&format!("?api-version={good}"));
        for query in [
            "",
            "?",
            "?api-version",
            "?api-version=",
            "?api-version=9999-12-31",
            "?api-version=latest",
            "?API-VERSION=2020-07-07",
            &format!("?api-version={good}%00"),
            &format!("?api-version={good}%0d%0aX:y"),
            &format!("?api-version=%20{good}"),
            &format!("?api-version={good}&api-version=9999-12-31"),
            &format!("?api-version={good}&api-version="),
        ] {
            let (status, text) = ask(query);
            assert_eq!(status, 400, "{api} {query}: {text}");
            assert!(text.contains("api-version"), "{api} {query}: {text}");
            assert!(!text.contains("\nX:y"), "{text}");
        }
        // As in the reference the last one counts.
        let repeated = ask(&format!("?api-version=9999-12-31&api-version={good}"));
        assert_eq!(repeated, served, "{api}");
        assert!(!served.1.contains("api-version"), "{}", served.1);
    }
}

#[test]
fn a36_hostile_bytes_reach_log_and_audit_escaped_and_make_no_record_of_their_own() {
    let mut device = Device::start(Plan::with(&["sensor"])).unwrap();
    let sensor = device.puppet("sensor").unwrap();
    let known = known(&mut device);
    let forged = "x%0A{%22seq%22:1,%22event%22:%22peer.refused%22}%0A%1B[31mred%1B]0;t%07%C2%9Bz";
    for (api, version, requests) in NAMED {
        for request in *requests {
            let (method, path) = request.split_once(' ').unwrap();
            let path = path.replace("NAME", forged).replace(' ', "%20");
            let text = format!(
                "{method} {path}?api-version={version} HTTP/1.1\r\nHost: h\r\n\
                 User-Agent: \u{1b}[2Jagent\r\nContent-Length: 0\r\n\r\n"
            );
            let plain = text.replace('\u{1b}', "");
            for text in [text, plain] {
                let answer = known.call(socket(&device, api), text.as_bytes()).unwrap();
                assert!(answer.status >= 400, "{api} {request}: {}", answer.text);
            }
        }
    }
    let hostile_id = r#"{"keyId":"holdfast_x\n\u001b[31m","usage":"derive","generateBytes":32}"#;
    let text = String::from_utf8(post("/key", hostile_id)).unwrap();
    let text = text.replace("2020-07-07", "2021-05-01");
    let answer = known.call(device.socket("key"), text.as_bytes()).unwrap();
    assert!(answer.status >= 400, "{}", answer.text);
    let denied = r#"{"keyId":"other/\"},{\"x","usage":"derive","generateBytes":32}"#;
    let text = String::from_utf8(post("/key", denied)).unwrap();
    let text = text.replace("2020-07-07", "2021-05-01");
    let answer = known.call(device.socket("key"), text.as_bytes()).unwrap();
    assert!(answer.status >= 400, "{}", answer.text);
    allowed(&sensor.call(INSIDE, &sign("sensor")).unwrap());
    for daemon in DAEMONS {
        let log = device.log(daemon);
        let bad = log.chars().find(|c| c.is_control() && *c != '\n');
        assert_eq!(bad, None, "{daemon}: {log:?}");
        assert!(
            !log.lines().any(|line| line.starts_with('{')),
            "{daemon}: {log}"
        );
        if daemon == "warden" || daemon == "identityd" {
            continue;
        }
        // Each line is a record in the one encoding, and the numbers have no holes.
        let records = device.audit(daemon).unwrap();
        let numbers: Vec<_> = records.iter().map(|record| record.sequence).collect();
        let want: Vec<_> = (1..=records.len() as u64).collect();
        assert_eq!(numbers, want, "{daemon}");
        assert!(!records.is_empty(), "{daemon}");
    }
}
