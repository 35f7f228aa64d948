//! Which program calls: A6, A7.

use contract::audit::Event;
use sim::device::{Device, Plan};

use super::{INSIDE, allowed, forbidden, recorded, sign};

#[test]
fn a06_another_program_on_the_same_connection_is_allowed_under_container() {
    let plan = Plan::with(&["sensor"]).strictness("container");
    let mut device = Device::start(plan).unwrap();
    let sensor = device.puppet("sensor").unwrap();
    let connection = sensor.connect(INSIDE).unwrap();
    let pid = sensor.pid;
    sensor.execute(&device.path("bin/other")).unwrap();
    let other = device.puppet("executed").unwrap();
    assert_eq!(other.pid, pid);
    allowed(&other.exchange(connection, &sign("sensor")).unwrap());
}

#[test]
fn a06_under_measured_the_program_that_calls_now_is_judged_and_not_the_one_that_connected() {
    let plan = Plan::with(&["sensor"]).strictness("measured");
    let mut device = Device::start(plan).unwrap();
    let sensor = device.puppet("sensor").unwrap();
    let connection = sensor.connect(INSIDE).unwrap();
    allowed(&sensor.exchange(connection, &sign("sensor")).unwrap());
    sensor.fork("child").unwrap();
    let child = device.puppet("child").unwrap();
    let pid = child.pid;
    let own = child.connect(INSIDE).unwrap();
    allowed(&child.exchange(own, &sign("sensor")).unwrap());
    child.execute(&device.path("bin/other")).unwrap();
    let other = device.puppet("executed").unwrap();
    assert_eq!(other.pid, pid);
    // The same process, the same connection, which was allowed a moment ago.
    forbidden(&other.exchange(own, &sign("sensor")).unwrap());
    recorded(&device, Event::PeerRefused, "not the granted one");
    allowed(&sensor.exchange(connection, &sign("sensor")).unwrap());
}

#[test]
fn a07_a_program_in_memory_is_refused_under_measured() {
    let plan = Plan::with(&["sensor"]).strictness("measured");
    let mut device = Device::start(plan).unwrap();
    let sensor = device.puppet("sensor").unwrap();
    sensor.fork("child").unwrap();
    let child = device.puppet("child").unwrap();
    allowed(&child.call(INSIDE, &sign("sensor")).unwrap());
    // The same bytes, so that it is the place and not the digest that tells.
    child.execute_from_memory().unwrap();
    let copy = device.puppet("executed").unwrap();
    forbidden(&copy.call(INSIDE, &sign("sensor")).unwrap());
    recorded(&device, Event::PeerRefused, "deleted or lies in memory");
    allowed(&sensor.call(INSIDE, &sign("sensor")).unwrap());
}

#[test]
fn a07_a_program_whose_file_is_deleted_is_refused_under_measured() {
    let plan = Plan::with(&["sensor", "twin"]).strictness("measured");
    let mut device = Device::start(plan).unwrap();
    let sensor = device.puppet("sensor").unwrap();
    let twin = device.puppet("twin").unwrap();
    allowed(&sensor.call(INSIDE, &sign("sensor")).unwrap());
    std::fs::remove_file(device.path("bin/sensor")).unwrap();
    forbidden(&sensor.call(INSIDE, &sign("sensor")).unwrap());
    recorded(&device, Event::PeerRefused, "deleted or lies in memory");
    allowed(&twin.call(INSIDE, &sign("twin")).unwrap());
}

#[test]
fn a07_under_container_the_program_does_not_matter() {
    let plan = Plan::with(&["sensor"]).strictness("container");
    let mut device = Device::start(plan).unwrap();
    let sensor = device.puppet("sensor").unwrap();
    sensor.execute_from_memory().unwrap();
    let copy = device.puppet("executed").unwrap();
    allowed(&copy.call(INSIDE, &sign("sensor")).unwrap());
}
