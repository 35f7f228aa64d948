//! What warden itself may do: the few powers below and nothing else (R80).

use std::io;

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, getppid, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// The capabilities root's warden keeps, and what for.
pub const KEPT: &[(CapabilitySet, &str)] = &[
    (
        CapabilitySet::SYS_ADMIN,
        "namespaces and mounts of a module",
    ),
    (CapabilitySet::SETUID, "a module's user id"),
    (
        CapabilitySet::SETGID,
        "a module's group id, and dropping all groups",
    ),
    (CapabilitySet::SETPCAP, "emptying a module's bounding set"),
    (
        CapabilitySet::KILL,
        "ending a module, which has another user id",
    ),
    (
        CapabilitySet::SYS_PTRACE,
        "reading namespaces and program of other users' processes",
    ),
    (
        CapabilitySet::DAC_READ_SEARCH,
        "measuring programs that root's mode bits do not show",
    ),
];

/// Kept aside until the very end: the root of the cgroup hierarchy has no write bit.
pub const AT_THE_END: (CapabilitySet, &str) = (
    CapabilitySet::DAC_OVERRIDE,
    "removing warden's own cgroup, and with it the last trace",
);

/// Gives up everything not needed. As an ordinary user there is nothing to give up but dumps;
/// warden stays dumpable then, since the kernel would otherwise hand its children's /proc
/// entries to root.
///
/// # Errors
/// The system's.
pub fn reduce() -> io::Result<()> {
    setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )?;
    set_no_new_privs(true)?;
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let now = KEPT
        .iter()
        .fold(CapabilitySet::empty(), |all, (one, _)| all | *one);
    let kept = now | AT_THE_END.0;
    for bit in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        if kept.contains(one) {
            continue;
        }
        match remove_capability_from_bounding_set(one) {
            Err(rustix::io::Errno::INVAL) => break,
            done => done?,
        }
    }
    clear_ambient_capability_set()?;
    let permitted = capabilities(None)?.permitted & kept;
    hold(permitted & now, permitted)
}

/// Ends this process by force when its parent ends. Giving up capabilities later does not undo
/// this.
pub(crate) fn bind_to(parent: i32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have gone before that.
    match getppid() {
        Some(now) if now.as_raw_nonzero().get() == parent => Ok(()),
        _ => Err(io::Error::other("the parent process is gone")),
    }
}

/// Takes up what was kept aside; nothing is served any more.
pub(crate) fn finish() -> io::Result<()> {
    let permitted = capabilities(None)?.permitted;
    hold(permitted, permitted)
}

fn hold(effective: CapabilitySet, permitted: CapabilitySet) -> io::Result<()> {
    let inheritable = CapabilitySet::empty();
    Ok(set_capabilities(
        None,
        CapabilitySets {
            effective,
            permitted,
            inheritable,
        },
    )?)
}
