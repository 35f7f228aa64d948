//! Facts of a process by its descriptor, without a look at `/proc` (K4).
#![expect(unsafe_code, reason = "PIDFD_GET_INFO is an ioctl of its own")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::check;

/// Facts of a live process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PidInfo {
    /// Thread group id in our namespace; 0 when it has none there.
    pub pid: u32,
    /// Effective user.
    pub uid: u32,
    /// Id of its v2 control group: the inode number of that folder.
    pub cgroup: u64,
}

/// `struct pidfd_info` of the kernel's first version, 64 bytes.
#[repr(C)]
#[derive(Default)]
struct Raw {
    mask: u64,
    cgroup: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ruid: u32,
    rgid: u32,
    euid: u32,
    egid: u32,
    suid: u32,
    sgid: u32,
    fsuid: u32,
    fsgid: u32,
    exit_code: i32,
}

const PID: u64 = 1;
const CREDS: u64 = 2;
const CGROUP: u64 = 4;
/// `_IOWR(0xFF, 11, struct pidfd_info)` with its size of 64 bytes.
const PIDFD_GET_INFO: libc::c_ulong = 0xC040_FF0B;

/// Facts of the process, if it is still there.
///
/// # Errors
/// `ESRCH` when it is gone; `ENOTTY` or `EINVAL` without kernel support.
pub fn info(pidfd: impl AsFd) -> io::Result<PidInfo> {
    let mut raw = Raw {
        mask: PID | CREDS | CGROUP,
        ..Raw::default()
    };
    // SAFETY: the request number states the size of `Raw`, and the pointer is to a live one.
    check(unsafe { libc::ioctl(pidfd.as_fd().as_raw_fd(), PIDFD_GET_INFO, &raw mut raw) })?;
    if raw.mask & (PID | CREDS) != PID | CREDS {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    let cgroup = if raw.mask & CGROUP == 0 {
        0
    } else {
        raw.cgroup
    };
    Ok(PidInfo {
        pid: raw.tgid,
        uid: raw.euid,
        cgroup,
    })
}

/// Whether the process is still there. Ask *after* reading what is to be believed.
#[must_use]
pub fn alive(pidfd: impl AsFd) -> bool {
    let mut wait = [PollFd::new(&pidfd, PollFlags::IN)];
    // An error of poll itself proves nothing, so it counts as gone.
    matches!(
        poll(
            &mut wait,
            Some(&Timespec {
                tv_sec: 0,
                tv_nsec: 0
            })
        ),
        Ok(0)
    )
}

/// Whether the process lives in a pid namespace below ours, as every module does and no daemon.
/// Our own table of descriptors is asked, which no mount option hides and no reuse of the number
/// can fool; whatever it does not say plainly counts as below.
#[must_use]
pub fn is_nested(pidfd: impl AsFd) -> bool {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_fd().as_raw_fd());
    let Ok(text) = std::fs::read_to_string(path) else {
        return true;
    };
    let numbers = text.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.is_none_or(|numbers| numbers.split_ascii_whitespace().count() != 1)
}

/// The number of the file system of process descriptors (Linux 6.9).
const PIDFS_MAGIC: u64 = 0x5049_4446;

/// Whether the descriptor's inode is the process's own: on older kernels all share one.
#[must_use]
pub fn has_own_inode(pidfd: impl AsFd) -> bool {
    rustix::fs::fstatfs(pidfd).is_ok_and(|fs| u64::try_from(fs.f_type) == Ok(PIDFS_MAGIC))
}

/// The descriptor's inode: unique to the process, never reused while the system runs (K3),
/// where [`has_own_inode`] says so.
///
/// # Errors
/// As the kernel says.
pub fn inode(pidfd: impl AsFd) -> io::Result<u64> {
    Ok(rustix::fs::fstat(pidfd)?.st_ino)
}
