//! What a daemon does to itself at start.
#![expect(unsafe_code, reason = "mallopt and signal masks have no safe form")]

use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::{io, ptr};

use rustix::process::{
    DumpableBehavior, Signal, set_dumpable_behavior, set_parent_process_death_signal,
};

/// Nothing this process starts may gain privileges.
///
/// # Errors
/// As the kernel says.
pub fn no_new_privileges() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// No core dump and no reading of our memory by processes of the same user (R26).
///
/// # Errors
/// As the kernel says.
pub fn no_dumps() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// The process gets SIGKILL when the thread that started it ends.
///
/// # Errors
/// As the kernel says.
pub fn die_with_parent() -> io::Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Few heaps for all threads: a pool of small threads would else keep a heap each, and with a single
/// one they would wait for each other.
pub fn few_heaps() {
    // SAFETY: mallopt with plain numbers, before other threads exist.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Gives free memory back to the system; called when a thread that was needed under load ends.
pub fn give_back_memory() {
    // SAFETY: malloc_trim with a plain number; it locks what it looks at.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// From here on the signals that ask a daemon to stop wait for [`wait_for_stop`]. Call before
/// other threads exist: they inherit it.
///
/// # Errors
/// As the kernel says.
pub fn block_stop_signals() -> io::Result<()> {
    let set = stop_signals();
    // SAFETY: `set` is a live and initialised signal set; no old set is asked for.
    let failed = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
    if failed == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(failed))
    }
}

/// Waits for one of the blocked signals.
pub fn wait_for_stop() {
    let set = stop_signals();
    let mut signal = 0;
    loop {
        // SAFETY: both pointers are to live locals.
        if unsafe { libc::sigwait(&raw const set, &raw mut signal) } == 0 {
            return;
        }
    }
}

fn stop_signals() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set before it is used.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        libc::sigaddset(set.as_mut_ptr(), libc::SIGINT);
        set.assume_init()
    }
}

/// A program started by this command takes the stop signals again, although we have blocked them:
/// the mask is inherited.
pub fn unblock_in_child(command: &mut Command) {
    let set = stop_signals();
    let unblock = move || {
        // SAFETY: `set` is an initialised signal set; no old set is asked for.
        let failed =
            unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut()) };
        if failed == 0 {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(failed))
        }
    };
    // SAFETY: between fork and exec the closure makes one system call and touches no heap.
    unsafe {
        command.pre_exec(unblock);
    }
}
