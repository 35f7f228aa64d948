//! The system calls for which there is no safe wrapper: the only unsafe code of warden.
//!
//! Each function here is safe to call and says in its SAFETY comments why. Nothing here decides.

#![expect(
    unsafe_code,
    reason = "the system calls for which no safe wrapper exists"
)]

pub(crate) mod landlock;
pub(crate) mod process;
pub(crate) mod signal;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The namespace this namespace was created in, if the caller lies in it or above it.
pub(crate) fn parent_namespace(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// `NS_GET_PARENT` of `linux/nsfs.h`.
    const NS_GET_PARENT: libc::Ioctl = 0xb702;
    // SAFETY: this request takes no argument and touches no memory; it returns a descriptor.
    owned(unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_PARENT) })
}

/// Closes every descriptor from `first` upwards.
///
/// Only for a process about to execute or to serve nothing but signals: no value that owns one
/// of those descriptors may be used or dropped afterwards, so the caller never returns.
fn close_from(first: libc::c_uint) {
    // SAFETY: closing touches no memory. The callers, both in `process`, never return to code
    // that owns a descriptor.
    unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
}

/// Takes a descriptor that a system call has just returned, or its error.
fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for the caller; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
