//! Processes where an attacker would like to be.
#![expect(unsafe_code, reason = "fork and clone3 have no safe form")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{
    LinkNameSpaceType, move_into_link_name_space, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

/// Where a process is put. What is not named stays as its maker has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The pid namespace, by its file.
    pub pid_namespace: Option<PathBuf>,
    /// A pid namespace of its own.
    pub new_pid_namespace: bool,
    /// The control group, by its folder.
    pub cgroup: Option<PathBuf>,
    /// Its number out here, and if it is in another namespace a number in there.
    pub pid: Option<(i32, Option<i32>)>,
    /// Its user and group.
    pub ids: Option<(u32, u32)>,
}

/// Makes the process; it runs `child` and ends with its code. It ends with its maker as well.
///
/// # Errors
/// As the system says; `EEXIST` when the number is taken. Most places need root.
pub fn put(place: &Place, child: impl FnOnce() -> i32) -> io::Result<i32> {
    if let Some(path) = &place.pid_namespace {
        let file = File::open(path)?;
        move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&file),
            Some(LinkNameSpaceType::ProcessID),
        )?;
    }
    let cgroup = place.cgroup.as_ref().map(File::open).transpose()?;
    // From the innermost namespace outwards.
    let numbers: Vec<libc::pid_t> = place
        .pid
        .map(|(outside, inside)| inside.into_iter().chain([outside]).collect())
        .unwrap_or_default();
    // SAFETY: all-zero is the documented neutral value of each member.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.exit_signal = libc::SIGCHLD as u64;
    if place.new_pid_namespace {
        arguments.flags |= libc::CLONE_NEWPID as u64;
    }
    if let Some(cgroup) = &cgroup {
        /// Of `linux/sched.h`; the library's constant is too narrow.
        const CLONE_INTO_CGROUP: u64 = 1 << 33;
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd().cast_unsigned().into();
    }
    if !numbers.is_empty() {
        arguments.set_tid = numbers.as_ptr() as u64;
        arguments.set_tid_size = numbers.len() as u64;
    }
    one_thread()?;
    // SAFETY: without CLONE_VM this is a fork, of a process with one thread, so that no lock is
    // held in the copy; `numbers` and `cgroup` outlive the call.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of_val(&arguments),
        )
    };
    match i32::try_from(pid) {
        Ok(0) => std::process::exit(match settle(place) {
            Ok(()) => child(),
            Err(_) => 126,
        }),
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err(io::Error::last_os_error()),
    }
}

/// In the new process: its ids, and its end with its maker's.
fn settle(place: &Place) -> io::Result<()> {
    if let Some((uid, gid)) = place.ids {
        let (uid, gid) = (
            rustix::process::Uid::from_raw(uid),
            rustix::process::Gid::from_raw(gid),
        );
        set_thread_groups(&[])?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
    }
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// A copy of this process: `child` runs in it and is its end.
///
/// # Errors
/// As the system says.
pub fn fork(child: impl FnOnce() -> i32) -> io::Result<i32> {
    one_thread()?;
    // SAFETY: one thread, so no lock is held in the copy.
    match unsafe { libc::fork() } {
        0 => std::process::exit(child()),
        pid if pid > 0 => Ok(pid),
        _ => Err(io::Error::last_os_error()),
    }
}

fn one_thread() -> io::Result<()> {
    if std::fs::read_dir("/proc/self/task")?.count() == 1 {
        Ok(())
    } else {
        Err(io::Error::other("a process with threads cannot be copied"))
    }
}

/// Children that end are taken off the process table by the kernel, and their numbers are free.
pub fn forget_children() {
    // SAFETY: sets the disposition of one signal to a constant; there is no handler.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
    }
}

/// Takes over a descriptor that was left open for this program when it was executed.
///
/// # Errors
/// When there is no such descriptor.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: asks about a number; a closed one is an error.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and named on the command line by whoever was this process before, for
    // this purpose; nothing else here owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes the three standard streams.
pub fn close_standard_streams() {
    for number in 0..3 {
        // SAFETY: nobody in this process owns these; what prints from now on gets an error.
        unsafe {
            libc::close(number);
        }
    }
}
