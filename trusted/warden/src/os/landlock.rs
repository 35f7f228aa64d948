//! Landlock: rules by inode that a process lays on itself and its descendants.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::owned;

/// Version of the rules, from 1; none where the kernel has no Landlock or it is switched off.
pub(crate) fn abi() -> Option<u32> {
    const VERSION: libc::c_uint = 1;
    // SAFETY: a null attribute of size 0 with this flag asks for the version and reads nothing.
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0usize,
            VERSION,
        )
    };
    u32::try_from(abi).ok().filter(|abi| *abi > 0)
}

/// `struct landlock_ruleset_attr`; older kernels accept a longer one whose tail is zero.
#[repr(C)]
pub(crate) struct Handled {
    /// File accesses that are denied unless a rule allows them.
    pub(crate) files: u64,
    /// Network accesses, likewise.
    pub(crate) network: u64,
    /// What may not cross the border of the sandbox.
    pub(crate) scoped: u64,
}

/// A new set of rules, empty.
pub(crate) fn create(handled: &Handled) -> io::Result<OwnedFd> {
    // SAFETY: pointer and size describe one live value with the layout the kernel documents.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::from_ref(handled),
            size_of::<Handled>(),
            0u32,
        )
    };
    owned(libc::c_int::try_from(fd).unwrap_or(-1))
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: libc::c_int,
}

/// Allows accesses to a file, or to a directory and all beneath it.
pub(crate) fn allow(rules: BorrowedFd<'_>, access: u64, at: BorrowedFd<'_>) -> io::Result<()> {
    const PATH_BENEATH: libc::c_uint = 1;
    let rule = PathBeneath {
        allowed: access,
        parent: at.as_raw_fd(),
    };
    // SAFETY: the rule is a live value with the packed layout the kernel documents.
    let done = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            rules.as_raw_fd(),
            PATH_BENEATH,
            &raw const rule,
            0u32,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Lays the rules on the calling thread, for good.
pub(crate) fn restrict(rules: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes a descriptor and flags, touches no memory.
    let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0u32) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
