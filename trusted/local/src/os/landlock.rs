//! Landlock: from here on this process opens only what is listed.
//!
//! Landlock does not restrict connecting to a socket by path; folder modes do that.
#![expect(unsafe_code, reason = "the three Landlock calls are not in libc")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::check;

/// `struct landlock_ruleset_attr` up to the first version.
#[repr(C)]
struct Ruleset {
    handled_access_fs: u64,
}

/// `struct landlock_path_beneath_attr`, packed as the kernel has it.
#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const MAKE_CHAR: u64 = 1 << 6;
const MAKE_BLOCK: u64 = 1 << 11;
/// All thirteen rights of the first version.
const FIRST: u64 = (1 << 13) - 1;
/// Second version: without it, a rename between folders is refused even inside what is allowed.
const REFER: u64 = 1 << 13;
/// Third version: without it, a file outside the list could still be cut.
const TRUNCATE: u64 = 1 << 14;
/// Fifth version.
const IOCTL_DEV: u64 = 1 << 15;

/// Every right that this version of Landlock can take away.
const fn handled(version: libc::c_long) -> u64 {
    let mut rights = FIRST;
    if version >= 2 {
        rights |= REFER;
    }
    if version >= 3 {
        rights |= TRUNCATE;
    }
    if version >= 5 {
        rights |= IOCTL_DEV;
    }
    rights
}

/// What a path may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read files and folders.
    Read,
    /// Read, and run programs.
    Execute,
    /// Everything below the folder but running programs and making devices.
    Write,
}

/// Limits this thread and all it starts to the listed paths. Call before other threads exist.
/// A path that does not exist is left out.
///
/// # Errors
/// `ENOSYS` or `EOPNOTSUPP` without kernel support; else as the kernel says.
pub fn restrict(paths: &[(&Path, Access)]) -> io::Result<()> {
    // SAFETY: asking for the version takes no pointer.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<Ruleset>(),
            0,
            1,
        )
    };
    if version < 0 {
        return Err(io::Error::last_os_error());
    }
    let handled = handled(version);
    let rules = Ruleset {
        handled_access_fs: handled,
    };
    // SAFETY: the pointer is to a live `Ruleset` of the size stated.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const rules,
            size_of::<Ruleset>(),
            0,
        )
    };
    let fd = check(libc::c_int::try_from(fd).unwrap_or(-1))?;
    // SAFETY: the kernel has just made this descriptor for us.
    let ruleset = unsafe { OwnedFd::from_raw_fd(fd) };
    for (path, access) in paths {
        let Ok(parent) = rustix::fs::open(*path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        else {
            continue;
        };
        let is_dir = rustix::fs::fstat(&parent)?.st_mode & libc::S_IFMT == libc::S_IFDIR;
        let mut allowed = match access {
            Access::Read => READ_FILE | READ_DIR,
            Access::Execute => READ_FILE | READ_DIR | EXECUTE,
            Access::Write => handled & !(EXECUTE | MAKE_CHAR | MAKE_BLOCK | IOCTL_DEV),
        };
        if !is_dir {
            // Rights of folders on a file are an error.
            allowed &= EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE;
        }
        let rule = PathBeneath {
            allowed_access: allowed,
            parent_fd: parent.as_raw_fd(),
        };
        // SAFETY: rule type 1 is path-beneath, and the pointer is to a live one.
        let added = unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                ruleset.as_raw_fd(),
                1,
                &raw const rule,
                0,
            )
        };
        check(libc::c_int::try_from(added).unwrap_or(-1))?;
    }
    // SAFETY: plain numbers.
    let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
    check(libc::c_int::try_from(done).unwrap_or(-1)).map(drop)
}
