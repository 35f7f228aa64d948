//! What a daemon does to itself at start.
#![expect(
    unsafe_code,
    reason = "prctl and mallopt have no safe form for these options"
)]

use std::io;

use super::check;

/// Nothing this process starts may gain privileges.
///
/// # Errors
/// As the kernel says.
pub fn no_new_privileges() -> io::Result<()> {
    // SAFETY: prctl with plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map(drop)
}

/// No core dump and no reading of our memory by processes of the same user (R26).
///
/// # Errors
/// As the kernel says.
pub fn no_dumps() -> io::Result<()> {
    // SAFETY: prctl with plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }).map(drop)
}

/// The process gets SIGKILL when the thread that started it ends.
///
/// # Errors
/// As the kernel says.
pub fn die_with_parent() -> io::Result<()> {
    // SAFETY: prctl with plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) }).map(drop)
}

/// One heap for all threads: a pool of small threads would else keep a heap each.
pub fn one_heap() {
    // SAFETY: mallopt with plain numbers, before other threads exist.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
