//! System calls that `rustix` does not offer, each behind a safe function.
//!
//! This folder and `warden/src/os` hold all unsafe code of the shipped programs. Nothing here
//! decides anything: it turns a call into a value or an error number.

pub mod landlock;
pub mod pidfd;
pub mod process;
pub mod socket;

use std::io;

/// Turns the C convention into a result.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
