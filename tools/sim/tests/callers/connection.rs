//! Connections that change hands, and processes that go while they are judged: A1 to A5, A20.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use contract::audit::Event;
use rustix::process::Signal;
use sim::device::{Device, Plan};

use super::{INSIDE, allowed, forbidden, hand_over, post, recorded, root, sign};

#[test]
fn a01_a_number_taken_over_from_a_dead_connector_speaks_for_nobody() {
    if !root("a01") {
        return;
    }
    let mut device = Device::start(Plan::with(&["victim"])).unwrap();
    let victim = device.puppet("victim").unwrap();
    let group = device.control_group("victim").unwrap();
    let keeper = device.outsider("keeper", &[]).unwrap();
    // The kernel may give the number to somebody else in between: another round then.
    for round in 0..50 {
        let attacker = device.outsider(&format!("attacker {round}"), &[]).unwrap();
        let connection = attacker.connect(device.workload("victim")).unwrap();
        let kept = hand_over(&attacker, connection, &keeper);
        let number = attacker.pid;
        attacker.exit().unwrap();
        device.reap_outsiders().unwrap();
        let heir = device.outsider(
            "heir",
            &[
                format!("pid-namespace=/proc/{}/ns/pid", victim.pid),
                format!("cgroup={}", group.display()),
                format!("pid={number}"),
                format!("inner-pid={}", 1000 + round),
            ],
        );
        let Ok(heir) = heir else { continue };
        assert_eq!(heir.pid, number);
        // It is a process of the victim by every fact, and connects as one.
        allowed(
            &heir
                .call(device.workload("victim"), &sign("victim"))
                .unwrap(),
        );
        // But the connection under its number was made by another process. The keeper writes.
        forbidden(&keeper.exchange(kept, &sign("victim")).unwrap());
        recorded(&device, Event::PeerStale, "gone");
        allowed(&victim.call(INSIDE, &sign("victim")).unwrap());
        return;
    }
    panic!("the number was never free");
}

#[test]
fn a01_not_even_the_heir_of_the_number_may_use_the_connection() {
    if !root("a01") {
        return;
    }
    let mut device = Device::start(Plan::with(&["victim"])).unwrap();
    let victim = device.puppet("victim").unwrap();
    let group = device.control_group("victim").unwrap();
    for round in 0..50 {
        let attacker = device.outsider(&format!("attacker {round}"), &[]).unwrap();
        let connection = attacker.connect(device.workload("victim")).unwrap();
        let copy = attacker.give(connection).unwrap();
        let number = attacker.pid;
        attacker.exit().unwrap();
        device.reap_outsiders().unwrap();
        let heir = device.outsider(
            "heir",
            &[
                format!("pid-namespace=/proc/{}/ns/pid", victim.pid),
                format!("cgroup={}", group.display()),
                format!("pid={number}"),
                format!("inner-pid={}", 1000 + round),
            ],
        );
        let Ok(heir) = heir else { continue };
        // Connector and writer now have one number, and the writer is of the module.
        let taken = heir.take(&copy).unwrap();
        forbidden(&heir.exchange(taken, &sign("victim")).unwrap());
        recorded(&device, Event::PeerStale, "gone");
        allowed(
            &heir
                .call(device.workload("victim"), &sign("victim"))
                .unwrap(),
        );
        return;
    }
    panic!("the number was never free");
}

#[test]
fn a02_a_caller_that_exits_before_the_decision_gets_nothing_and_leaves_nothing() {
    let mut device = Device::start(Plan::with(&["sensor"])).unwrap();
    let sensor = device.puppet("sensor").unwrap();
    allowed(&sensor.call(INSIDE, &sign("sensor")).unwrap());
    let counted = root("the count of descriptors in a02").then(|| descriptors(&device));
    for round in 0..10 {
        sensor.fork(&format!("child {round}")).unwrap();
        let child = device.puppet(&format!("child {round}")).unwrap();
        // Warden measures; as long as it stands still there is no decision.
        device.signal("warden", Signal::STOP).unwrap();
        let connection = child.connect(INSIDE).unwrap();
        child.write(connection, &sign("sensor")).unwrap();
        let kept = hand_over(&child, connection, &sensor);
        child.exit().unwrap();
        device.signal("warden", Signal::CONT).unwrap();
        let answer = sensor.read(kept).unwrap();
        forbidden(&answer);
        assert!(!answer.text.contains("digest"), "{}", answer.text);
        sensor.close(kept).unwrap();
    }
    assert!(!device.reasons(Event::PeerStale).unwrap().is_empty());
    allowed(&sensor.call(INSIDE, &sign("sensor")).unwrap());
    let Some(before) = counted else { return };
    // The server lets go of the last caller just after the answer.
    let deadline = Instant::now() + Duration::from_secs(10);
    while descriptors(&device) > before {
        let now = descriptors(&device);
        assert!(Instant::now() < deadline, "{now} instead of {before}");
        std::thread::yield_now();
    }
}

#[test]
fn a02_a_caller_that_exits_before_it_is_accepted_gets_nothing() {
    let mut device = Device::start(Plan::with(&["sensor"])).unwrap();
    let sensor = device.puppet("sensor").unwrap();
    sensor.fork("child").unwrap();
    let child = device.puppet("child").unwrap();
    device.signal("runtimed", Signal::STOP).unwrap();
    let connection = child.connect(INSIDE).unwrap();
    child.write(connection, &sign("sensor")).unwrap();
    let kept = hand_over(&child, connection, &sensor);
    child.exit().unwrap();
    device.signal("runtimed", Signal::CONT).unwrap();
    forbidden(&sensor.read(kept).unwrap());
    recorded(&device, Event::PeerStale, "gone");
    allowed(&sensor.call(INSIDE, &sign("sensor")).unwrap());
}

#[test]
fn a03_a_connection_handed_to_another_module_is_refused_when_that_one_writes() {
    let mut device = Device::start(Plan::with(&["sensor", "actuator"])).unwrap();
    let sensor = device.puppet("sensor").unwrap();
    let actuator = device.puppet("actuator").unwrap();
    let connection = sensor.connect(INSIDE).unwrap();
    allowed(&sensor.exchange(connection, &sign("sensor")).unwrap());
    let taken = hand_over(&sensor, connection, &actuator);
    forbidden(&actuator.exchange(taken, &sign("sensor")).unwrap());
    recorded(&device, Event::PeerWriterChanged, "not the module's");
    allowed(&actuator.call(INSIDE, &sign("actuator")).unwrap());
}

#[test]
fn a04_a_request_written_partly_by_another_module_is_refused_and_not_executed() {
    let mut device = Device::start(Plan::with(&["sensor", "actuator"])).unwrap();
    let sensor = device.puppet("sensor").unwrap();
    let actuator = device.puppet("actuator").unwrap();
    let request = sign("sensor");
    // Cut in the request line, between head and body, and in the body.
    let head = request.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    for cut in [10, head, request.len() - 5] {
        let connection = sensor.connect(INSIDE).unwrap();
        let taken = hand_over(&sensor, connection, &actuator);
        sensor.write(connection, &request[..cut]).unwrap();
        actuator.write(taken, &request[cut..]).unwrap();
        forbidden(&sensor.read(connection).unwrap());
        // And the other way round: the stranger begins.
        let connection = sensor.connect(INSIDE).unwrap();
        let taken = hand_over(&sensor, connection, &actuator);
        actuator.write(taken, &request[..cut]).unwrap();
        sensor.write(connection, &request[cut..]).unwrap();
        forbidden(&sensor.read(connection).unwrap());
    }
    recorded(&device, Event::PeerWriterChanged, "not the module's");
    let connection = sensor.connect(INSIDE).unwrap();
    sensor.write(connection, &request[..10]).unwrap();
    sensor.write(connection, &request[10..]).unwrap();
    allowed(&sensor.read(connection).unwrap());
}

#[test]
fn a05_a_child_of_the_module_may_use_the_inherited_connection() {
    let mut device = Device::start(Plan::with(&["sensor"])).unwrap();
    let sensor = device.puppet("sensor").unwrap();
    let connection = sensor.connect(INSIDE).unwrap();
    sensor.fork("child").unwrap();
    let child = device.puppet("child").unwrap();
    assert_ne!(child.pid, sensor.pid);
    allowed(&child.exchange(connection, &sign("sensor")).unwrap());
    // Also half a request each.
    let request = sign("sensor");
    sensor.write(connection, &request[..20]).unwrap();
    child.write(connection, &request[20..]).unwrap();
    allowed(&child.read(connection).unwrap());
    assert!(device.reasons(Event::PeerRefused).unwrap().is_empty());
    assert!(device.reasons(Event::PeerWriterChanged).unwrap().is_empty());
}

#[test]
fn a20_a_connection_of_the_modules_past_life_is_refused_in_its_next_one() {
    let mut device = Device::start(Plan::with(&["sensor"])).unwrap();
    let old = device.puppet("sensor").unwrap();
    let connection = old.connect(INSIDE).unwrap();
    allowed(&old.exchange(connection, &sign("sensor")).unwrap());
    let lingering: OwnedFd = old.give(connection).unwrap();
    let operator = device.outsider("operator", &[]).unwrap();
    let restart = post("/modules/sensor/restart", "");
    let answer = operator
        .call(device.socket("management"), &restart)
        .unwrap();
    let why = || device.audit("runtimed").unwrap();
    assert_eq!(answer.status, 204, "{}\n{:?}", answer.text, why());
    let new = device.puppet("sensor").unwrap();
    assert_ne!(new.pid, old.pid);
    let taken = new.take(&lingering).unwrap();
    forbidden(&new.exchange(taken, &sign("sensor")).unwrap());
    recorded(&device, Event::PeerStale, "gone");
    allowed(&new.call(INSIDE, &sign("sensor")).unwrap());
}

#[test]
fn a20_a_process_of_the_past_life_that_lingers_outside_is_refused() {
    if !root("a20") {
        return;
    }
    let mut device = Device::start(Plan::with(&["sensor"])).unwrap();
    let old = device.puppet("sensor").unwrap();
    let group = device.control_group("sensor").unwrap();
    // What is in the namespace ends with it, and what is in the group is ended; so only a process
    // outside of both is left, with a connection that it made while its parent was inside.
    device.expose_sockets().unwrap();
    let lingering = device
        .outsider("lingering", &[format!("uid={}", device.users().module(0))])
        .unwrap();
    let connection = lingering.connect(device.workload("sensor")).unwrap();
    let inside = format!("cgroup={}", group.display());
    let ended = device.outsider("ended", &[inside]).unwrap();
    let operator = device.outsider("operator", &[]).unwrap();
    let restart = post("/modules/sensor/restart", "");
    let answer = operator
        .call(device.socket("management"), &restart)
        .unwrap();
    let why = || device.audit("runtimed").unwrap();
    assert_eq!(answer.status, 204, "{}\n{:?}", answer.text, why());
    let new = device.puppet("sensor").unwrap();
    assert_ne!(new.pid, old.pid);
    ended.connect(INSIDE).unwrap_err();
    forbidden(&lingering.exchange(connection, &sign("sensor")).unwrap());
    recorded(&device, Event::PeerRefused, "control group");
    allowed(&new.call(INSIDE, &sign("sensor")).unwrap());
}

/// How many descriptors `runtimed` has; it is not dumpable, so only root may look.
fn descriptors(device: &Device) -> usize {
    let pid = device.pid("runtimed").unwrap().as_raw_nonzero();
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count()
}
