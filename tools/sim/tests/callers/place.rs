//! Processes in the wrong place: A9, A12, A13, A16.

use std::fs::File;
use std::path::PathBuf;

use contract::audit::Event;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sim::device::{Device, Plan, control_groups};

use super::{INSIDE, allowed, forbidden, recorded, root, sign};

/// A control group of our own making; goes with its owner.
struct Group(PathBuf);

impl Group {
    /// `module` is the name of the inner group, as warden would call it.
    fn like(module: &str) -> Self {
        let name = format!("holdfast-like-{}", std::process::id());
        let outer = control_groups().unwrap().join(name);
        std::fs::create_dir(&outer).unwrap();
        std::fs::create_dir(outer.join(format!("{module}.holdfast"))).unwrap();
        Self(outer)
    }

    fn inner(&self, module: &str) -> PathBuf {
        self.0.join(format!("{module}.holdfast"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for inner in std::fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let inner = inner.path();
            let Ok(events) = File::open(inner.join("cgroup.events")) else {
                continue;
            };
            // What is in it has been ended, and may not have gone yet; the kernel tells when.
            while std::fs::remove_dir(&inner).is_err() {
                let mut gone = [PollFd::new(&events, PollFlags::PRI)];
                let patience = Timespec {
                    tv_sec: 5,
                    tv_nsec: 0,
                };
                if !poll(&mut gone, Some(&patience)).is_ok_and(|ready| ready > 0) {
                    break;
                }
            }
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn a09_a_process_in_a_group_of_the_modules_name_elsewhere_is_not_the_module() {
    if !root("a09") {
        return;
    }
    // Before the device, so that it goes after it.
    let like = Group::like("sensor");
    let mut device = Device::start(Plan::with(&["sensor"])).unwrap();
    let sensor = device.puppet("sensor").unwrap();
    let own = device.control_group("sensor").unwrap();
    device.expose_sockets().unwrap();
    let uid = device.users().stranger;
    let socket = device.workload("sensor");
    let namespace = format!("pid-namespace=/proc/{}/ns/pid", sensor.pid);
    let ids = [format!("uid={uid}"), format!("gid={uid}")];
    let place = |group: PathBuf| [&ids[..], &[format!("cgroup={}", group.display())]].concat();
    // An ordinary user who owns a group of that name.
    let ordinary = device
        .outsider("ordinary", &place(like.inner("sensor")))
        .unwrap();
    forbidden(&ordinary.call(&socket, &sign("sensor")).unwrap());
    // Even with the right namespace it is the group that tells; with the right group it is allowed,
    // so nothing else did.
    let wrong = [
        &place(like.inner("sensor"))[..],
        std::slice::from_ref(&namespace),
    ]
    .concat();
    let wrong = device.outsider("wrong group", &wrong).unwrap();
    forbidden(&wrong.call(&socket, &sign("sensor")).unwrap());
    recorded(&device, Event::PeerRefused, "control group");
    let right = [&place(own)[..], &[namespace]].concat();
    let right = device.outsider("right group", &right).unwrap();
    allowed(&right.call(&socket, &sign("sensor")).unwrap());
    allowed(&sensor.call(INSIDE, &sign("sensor")).unwrap());
}

#[test]
fn a12_a_process_of_the_host_or_of_the_modules_namespace_alone_is_not_the_module() {
    if !root("a12") {
        return;
    }
    let mut device = Device::start(Plan::with(&["sensor", "actuator"])).unwrap();
    let sensor = device.puppet("sensor").unwrap();
    let _actuator = device.puppet("actuator").unwrap();
    device.expose_sockets().unwrap();
    let socket = device.workload("sensor");
    let group = |module: &str| {
        let group = device.control_group(module).unwrap();
        format!("cgroup={}", group.display())
    };
    let (own, other) = (group("sensor"), group("actuator"));
    let namespace = format!("pid-namespace=/proc/{}/ns/pid", sensor.pid);
    // Each has a user of its own, since like refusals of one user are counted and not repeated.
    let first = device.users().module(0);
    let user = |plus: u32| format!("uid={}", first + 10 + plus);
    for (label, place, why) in [
        ("host", vec![user(0)], "control group"),
        (
            "host, in the group",
            vec![user(1), own.clone()],
            "namespace",
        ),
        (
            "the namespace alone",
            vec![user(2), namespace.clone()],
            "control group",
        ),
        (
            "the namespace, another module's group",
            vec![user(3), namespace.clone(), other],
            "control group",
        ),
    ] {
        let puppet = device.outsider(label, &place).unwrap();
        forbidden(&puppet.call(&socket, &sign("sensor")).unwrap());
        let records = device.audit("runtimed").unwrap();
        let who = place[0].replace('=', ":");
        let record = records.iter().find(|record| record.entry.principal == who);
        let entry = &record.unwrap_or_else(|| panic!("{label}: no record")).entry;
        assert_eq!(entry.event, Event::PeerRefused, "{label}");
        assert!(entry.reason.contains(why), "{label}: {}", entry.reason);
    }
    let both = device.outsider("both", &[user(4), namespace, own]).unwrap();
    allowed(&both.call(&socket, &sign("sensor")).unwrap());
    allowed(&sensor.call(INSIDE, &sign("sensor")).unwrap());
}

#[test]
fn a13_a_module_is_nobody_at_another_modules_socket() {
    let mut device = Device::start(Plan::with(&["sensor", "actuator"])).unwrap();
    let sensor = device.puppet("sensor").unwrap();
    let actuator = device.puppet("actuator").unwrap();
    let socket = device.workload("actuator");
    if device.users().separate {
        // Nothing of another module's socket is within its reach, unless somebody makes a mistake.
        sensor.connect(&socket).unwrap_err();
        device.expose_sockets().unwrap();
    }
    // As the other, and as itself at the wrong door.
    forbidden(&sensor.call(&socket, &sign("actuator")).unwrap());
    let records = device.reasons(Event::PeerRefused).unwrap();
    assert_eq!(records.len(), 1, "{records:?}");
    forbidden(&sensor.call(&socket, &sign("sensor")).unwrap());
    recorded(&device, Event::PeerAlias, "another module's");
    allowed(&sensor.call(INSIDE, &sign("sensor")).unwrap());
    allowed(&actuator.call(INSIDE, &sign("actuator")).unwrap());
    allowed(&actuator.call(&socket, &sign("actuator")).unwrap());
}

#[test]
fn a16_not_even_the_hosts_root_speaks_for_a_module() {
    let mut device = Device::start(Plan::with(&["sensor"])).unwrap();
    let sensor = device.puppet("sensor").unwrap();
    // This user: root, or where there is only one user, the module's own.
    let host = device.outsider("host", &[]).unwrap();
    forbidden(
        &host
            .call(device.workload("sensor"), &sign("sensor"))
            .unwrap(),
    );
    assert_eq!(device.reasons(Event::PeerRefused).unwrap().len(), 1);
    allowed(&sensor.call(INSIDE, &sign("sensor")).unwrap());
}
