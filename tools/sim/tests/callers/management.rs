//! Who may manage: A24.

use contract::audit::Event;
use shim::puppet::Puppet;
use sim::device::{Device, Plan};

use super::{INSIDE, allowed, forbidden, get, post, root, sign};

const MODULES: &str = "/modules?api-version=2022-08-03";
const SPEC: &str = r#"{"name":"sensor","type":"host","config":{"settings":{"image":"sensor"}}}"#;
const IDENTITY: &str = r#"{"moduleId":"sensor","generationId":"1"}"#;

fn write(method: &str, path: &str, body: &str) -> Vec<u8> {
    let text = String::from_utf8(post(path, body)).unwrap();
    text.replacen("POST", method, 1).into_bytes()
}

/// Everything that changes something.
fn writes() -> Vec<Vec<u8>> {
    let mut writes: Vec<_> = ["start", "stop", "restart"]
        .map(|action| post(&format!("/modules/sensor/{action}"), ""))
        .to_vec();
    writes.extend([
        write("DELETE", "/modules/sensor", ""),
        write("PUT", "/modules/sensor", SPEC),
        post("/modules", SPEC),
        post("/modules/sensor/prepareupdate", SPEC),
        post("/identities", IDENTITY),
        write("PUT", "/identities/sensor", IDENTITY),
        write("DELETE", "/identities/sensor", ""),
    ]);
    writes
}

/// May read, and nothing else; the module that is spoken of runs on.
fn reads_only(device: &Device, who: &Puppet, socket: &std::path::Path, sensor: &Puppet) {
    let answer = who.call(socket, &get(MODULES)).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text);
    for request in writes() {
        forbidden(&who.call(socket, &request).unwrap());
    }
    let denied = device.reasons(Event::ManagementDenied).unwrap();
    assert!(!denied.is_empty());
    assert!(device.reasons(Event::ManagementDone).unwrap().is_empty());
    allowed(&sensor.call(INSIDE, &sign("sensor")).unwrap());
}

#[test]
fn a24_a_module_that_reaches_the_agents_socket_may_only_read() {
    let mut device = Device::start(Plan::with(&["edgeAgent", "sensor"])).unwrap();
    let sensor = device.puppet("sensor").unwrap();
    let agent = device.puppet("$edgeAgent").unwrap();
    device.expose_sockets().unwrap();
    let socket = device.path("runtimed/mnt/edgeAgent/mgmt.sock");
    reads_only(&device, &sensor, &socket, &sensor);
    // The agent may.
    let restart = post("/modules/sensor/restart", "");
    let answer = agent.call("/run/iotedge/mgmt.sock", &restart).unwrap();
    assert_eq!(answer.status, 204, "{}", answer.text);
    assert_ne!(device.puppet("sensor").unwrap().pid, sensor.pid);
}

#[test]
fn a24_a_module_is_refused_at_the_hosts_management_socket() {
    let mut device = Device::start(Plan::with(&["sensor"])).unwrap();
    let sensor = device.puppet("sensor").unwrap();
    let socket = device.socket("management");
    match sensor.connect(&socket) {
        // Where users are separate the folder is closed to it.
        Err(_) => assert!(device.users().separate),
        Ok(connection) => forbidden(&sensor.exchange(connection, &get(MODULES)).unwrap()),
    }
    let operator = device.outsider("operator", &[]).unwrap();
    let answer = operator.call(&socket, &get(MODULES)).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text);
}

#[test]
fn a24_a_member_of_the_sockets_group_may_only_read() {
    if !root("a24") {
        return;
    }
    let mut device = Device::start(Plan::with(&["sensor"])).unwrap();
    let sensor = device.puppet("sensor").unwrap();
    let socket = device.socket("management");
    let users = device.users();
    let group = [
        format!("uid={}", users.stranger),
        format!("gid={}", users.services),
    ];
    let member = device.outsider("member", &group).unwrap();
    reads_only(&device, &member, &socket, &sensor);
    // A stranger to the group does not even get in.
    let other = [
        format!("uid={}", users.stranger),
        format!("gid={}", users.stranger),
    ];
    let stranger = device.outsider("stranger", &other).unwrap();
    stranger.connect(&socket).unwrap_err();
    // An operator may, but is not the agent.
    let operator = device.outsider("operator", &[]).unwrap();
    forbidden(&operator.call(&socket, &post("/modules", SPEC)).unwrap());
    let restart = post("/modules/sensor/restart", "");
    let answer = operator.call(&socket, &restart).unwrap();
    assert_eq!(answer.status, 204, "{}", answer.text);
}
