//! Kernels and namespaces that cannot prove a caller: A17, A18.

use contract::audit::Event;
use sim::device::{Device, Plan};

use super::{INSIDE, allowed, forbidden, get, recorded, root, sign};

#[test]
fn a17_a_caller_outside_the_daemons_namespace_has_no_number_and_is_refused() {
    if !root("a17") {
        return;
    }
    let mut plan = Plan::with(&["sensor"]);
    plan.tricks = vec![("runtimed", "place pid-namespace=new")];
    let mut device = Device::start(plan).unwrap();
    let operator = device.outsider("operator", &[]).unwrap();
    let list = get("/modules?api-version=2022-08-03");
    let socket = device.socket("management");
    forbidden(&operator.call(&socket, &list).unwrap());
    recorded(&device, Event::PeerRefused, "outside this daemon's pid");
    assert!(device.log("runtimed").contains("outside this daemon's pid"));
    // The same device with its daemon where it belongs.
    let mut device = Device::start(Plan::with(&["sensor"])).unwrap();
    let operator = device.outsider("operator", &[]).unwrap();
    let answer = operator.call(device.socket("management"), &list).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text);
}

#[test]
fn a18_on_an_old_kernel_modules_are_served_on_weaker_proof_and_the_log_says_so() {
    let mut plan = Plan::with(&["sensor", "actuator"]);
    plan.tricks = vec![("runtimed", "old-kernel")];
    let mut device = Device::start(plan).unwrap();
    let sensor = device.puppet("sensor").unwrap();
    let actuator = device.puppet("actuator").unwrap();
    allowed(&sensor.call(INSIDE, &sign("sensor")).unwrap());
    recorded(&device, Event::PeerWeak, "attestation=weak");
    assert!(device.log("runtimed").contains("attestation=weak"));
    // Weaker, but not blind: another module, and another module on this one's connection.
    device.expose_sockets().unwrap();
    let socket = device.workload("sensor");
    forbidden(&actuator.call(&socket, &sign("sensor")).unwrap());
    let connection = sensor.connect(INSIDE).unwrap();
    let taken = super::hand_over(&sensor, connection, &actuator);
    forbidden(&actuator.exchange(taken, &sign("sensor")).unwrap());
    allowed(&actuator.call(INSIDE, &sign("actuator")).unwrap());
}

#[test]
fn a18_where_proof_is_required_an_old_kernel_keeps_the_module_apis_closed() {
    let mut plan = Plan::with(&["sensor"]);
    plan.require_strong = true;
    plan.tricks = vec![("runtimed", "old-kernel")];
    let mut device = Device::start(plan).unwrap();
    let sensor = device.puppet("sensor").unwrap();
    forbidden(&sensor.call(INSIDE, &sign("sensor")).unwrap());
    recorded(&device, Event::PeerWeak, "cannot prove callers");
    // On this kernel the same requirement closes nothing.
    let mut plan = Plan::with(&["sensor"]);
    plan.require_strong = true;
    let mut device = Device::start(plan).unwrap();
    let sensor = device.puppet("sensor").unwrap();
    allowed(&sensor.call(INSIDE, &sign("sensor")).unwrap());
    assert!(device.reasons(Event::PeerWeak).unwrap().is_empty());
}
