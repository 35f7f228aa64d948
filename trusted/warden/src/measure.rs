//! Facts of any process, read so that they are of that process and no other (R2, K2).
//!
//! Everything under /proc is reached through one directory descriptor. Last of all the process
//! descriptor is polled: if the process still lives, its number was never free, so all of it
//! was read from that process; if not, all is thrown away.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use contract::warden::{
    Executable, ExecutableFlags, MAX_PID_NAMESPACES, Measured, Reason, Refusal,
};
use local::os::pidfd;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, fstat, openat, readlinkat, statx};

use crate::cgroup;
use crate::digest::{DigestError, Digests};
use crate::os::parent_namespace;

/// Why there are no facts.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MeasureError {
    #[error("the descriptor is not that of a process")]
    NotProcess,
    #[error("the process is gone")]
    Gone,
    #[error("the kernel does not show {0} of the process")]
    Hidden(&'static str, #[source] io::Error),
    #[error("its program cannot be measured")]
    Program(#[from] DigestError),
}

impl From<MeasureError> for Refusal {
    fn from(error: MeasureError) -> Self {
        let reason = match &error {
            MeasureError::NotProcess => Reason::BadFrame,
            MeasureError::Gone => Reason::Gone,
            MeasureError::Program(DigestError::TooLarge) => Reason::TooLarge,
            MeasureError::Hidden(..) | MeasureError::Program(_) => Reason::Hidden,
        };
        Self {
            reason,
            detail: crate::chain(&error),
        }
    }
}

/// Measures the process behind a descriptor.
pub(crate) fn measure(
    pidfd: BorrowedFd<'_>,
    digests: &mut Digests,
) -> Result<Measured, MeasureError> {
    let pid = pid(pidfd)?;
    let facts = read(pid, digests);
    // The kernel's word without a look at /proc, where it gives one (K4).
    let cgroup = pidfd::info(pidfd)
        .ok()
        .map(|info| info.cgroup)
        .filter(|id| *id != 0);
    // Not before everything has been read, and before any of it is believed.
    if !pidfd::alive(pidfd) {
        return Err(MeasureError::Gone);
    }
    let facts = facts?;
    match (cgroup, &facts.cgroup) {
        (Some(kernel), Some(read)) if kernel != read.id => Err(MeasureError::Hidden(
            "the cgroup",
            io::ErrorKind::InvalidData.into(),
        )),
        _ => Ok(facts),
    }
}

/// The process and mount namespaces of a process that warden has just made.
pub(crate) fn namespaces(pid: u32) -> io::Result<(u64, u64)> {
    let proc = proc_directory(pid)?;
    Ok((namespace(&proc, "ns/pid")?.1, namespace(&proc, "ns/mnt")?.1))
}

fn read(pid: u32, digests: &mut Digests) -> Result<Measured, MeasureError> {
    let hidden = |what| move |cause: io::Error| MeasureError::Hidden(what, cause);
    let proc = proc_directory(pid).map_err(hidden("the entry"))?;
    let cgroup = text(&proc, "cgroup").map_err(hidden("the cgroup"))?;
    let pid_namespaces = pid_namespaces(&proc).map_err(hidden("the pid namespaces"))?;
    let (_, mount_ns) = namespace(&proc, "ns/mnt").map_err(hidden("the mount namespace"))?;
    let (executable, flags) = executable(&proc, digests)?;
    let status = text(&proc, "status").map_err(hidden("the status"))?;
    // Real, effective, saved and file system id, in this order.
    let number = |key: &str, nth: usize| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|line| line.split_whitespace().nth(nth)?.parse().ok())
            .ok_or_else(|| MeasureError::Hidden("the ids", io::ErrorKind::InvalidData.into()))
    };
    Ok(Measured {
        pid,
        tgid: number("Tgid:", 0)?,
        uid: number("Uid:", 1)?,
        gid: number("Gid:", 1)?,
        pid_namespaces,
        mount_ns,
        cgroup: cgroup::of_process(&cgroup),
        executable,
        flags,
    })
}

/// The number of the process behind a descriptor, as this pid namespace has it.
fn pid(pidfd: BorrowedFd<'_>) -> Result<u32, MeasureError> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))
        .map_err(|_| MeasureError::NotProcess)?;
    let number = info
        .lines()
        .find_map(|line| line.strip_prefix("Pid:"))
        .map(str::trim);
    match number.ok_or(MeasureError::NotProcess)?.parse::<i64>() {
        Ok(-1) => Err(MeasureError::Gone),
        // A process outside this pid namespace has no number here (K8).
        Ok(0) => Err(MeasureError::Hidden(
            "the number",
            io::ErrorKind::NotFound.into(),
        )),
        Ok(pid) => u32::try_from(pid).map_err(|_| MeasureError::NotProcess),
        Err(_) => Err(MeasureError::NotProcess),
    }
}

fn proc_directory(pid: u32) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(
        format!("/proc/{pid}"),
        flags,
        Mode::empty(),
    )?)
}

fn text(proc: &OwnedFd, name: &str) -> io::Result<String> {
    let mut text = String::new();
    let file = openat(proc, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    File::from(file).take(64 * 1024).read_to_string(&mut text)?;
    Ok(text)
}

fn namespace(proc: &OwnedFd, name: &str) -> io::Result<(OwnedFd, u64)> {
    let fd = openat(proc, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let inode = fstat(&fd)?.st_ino;
    Ok((fd, inode))
}

/// The process's own pid namespace, then the one around it, up to warden's.
fn pid_namespaces(proc: &OwnedFd) -> io::Result<Vec<u64>> {
    let own = rustix::fs::stat("/proc/self/ns/pid")?.st_ino;
    let (mut fd, inode) = namespace(proc, "ns/pid")?;
    let mut chain = vec![inode];
    while chain.last() != Some(&own) {
        if chain.len() == MAX_PID_NAMESPACES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        fd = parent_namespace(fd.as_fd())?;
        chain.push(fstat(&fd)?.st_ino);
    }
    Ok(chain)
}

fn executable(
    proc: &OwnedFd,
    digests: &mut Digests,
) -> Result<(Executable, ExecutableFlags), MeasureError> {
    let hidden = |what| move |cause: rustix::io::Errno| MeasureError::Hidden(what, cause.into());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let program = openat(proc, "exe", flags, Mode::empty()).map_err(hidden("the program"))?;
    let link = readlinkat(proc, "exe", Vec::new()).map_err(hidden("the program's name"))?;
    let root = openat(proc, "root", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(hidden("the root"))?;
    let links = fstat(&program)
        .map_err(hidden("the program's file"))?
        .st_nlink;
    let mounts = mount_id(&program).and_then(|program| Ok((program, mount_id(&root)?)));
    let (program_mount, root_mount) = mounts.map_err(hidden("the mounts"))?;
    let flags = ExecutableFlags::default()
        .with(
            ExecutableFlags::MEMFD,
            link.as_bytes().starts_with(b"/memfd:"),
        )
        .with(ExecutableFlags::DELETED, links == 0)
        .with(ExecutableFlags::OTHER_MOUNT, program_mount != root_mount);
    let (executable, read) = digests.measure_caller(&File::from(program))?;
    Ok((executable, flags.with(ExecutableFlags::NOT_READ, !read)))
}

fn mount_id(fd: &OwnedFd) -> rustix::io::Result<u64> {
    /// `STATX_MNT_ID` of `linux/stat.h`.
    const MOUNT_ID: StatxFlags = StatxFlags::from_bits_retain(0x1000);
    Ok(statx(fd, "", AtFlags::EMPTY_PATH, MOUNT_ID)?.stx_mnt_id)
}
