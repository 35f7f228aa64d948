//! Making processes: clone and execute.

use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::{close_from, owned};

/// A new process in the given namespaces and cgroup, which runs `child` and ends with its code.
///
/// The child is a copy of the caller, so the caller must have one thread only, else a lock held
/// by another thread would stay locked for ever in the copy; with more threads it is refused.
pub(crate) fn clone(
    namespaces: libc::c_int,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> u8,
) -> io::Result<(u32, OwnedFd)> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("a process with threads cannot be copied"));
    }
    let mut pidfd: libc::c_int = -1;
    // SAFETY: all-zero is the documented neutral value of each member.
    let mut arguments: libc::clone_args = unsafe { mem::zeroed() };
    arguments.flags = u64::from(namespaces.cast_unsigned()) | libc::CLONE_PIDFD as u64;
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd().cast_unsigned().into();
    }
    // SAFETY: without CLONE_VM and CLONE_THREAD this is a fork: the child has its own copy of
    // memory and stack. There is one thread, so no lock is held in the copy. `pidfd` outlives
    // the call. The child leaves by `_exit`, also when `child` panics.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of_val(&arguments),
        )
    };
    match u32::try_from(pid) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(0) => {
            let mut exit = ExitOnDrop(PANICKED);
            exit.0 = child();
            drop(exit);
            unreachable!()
        }
        Ok(pid) => Ok((pid, owned(pidfd)?)),
    }
}

/// Of `linux/sched.h`; the constant of the library is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// Code of a child whose set-up panicked.
const PANICKED: u8 = 125;

/// Ends the process without running anything of the parent it is a copy of.
struct ExitOnDrop(u8);

impl Drop for ExitOnDrop {
    fn drop(&mut self) {
        // SAFETY: never returns and touches no memory of ours.
        unsafe { libc::_exit(self.0.into()) }
    }
}

/// Executes the program behind a descriptor; returns only if that fails.
///
/// The descriptor is the one that was measured, so no path is looked up again (A117).
pub(crate) fn execute(program: BorrowedFd<'_>, argv: &[CString], envp: &[CString]) -> io::Error {
    let pointers = |texts: &[CString]| {
        let mut pointers: Vec<_> = texts.iter().map(|text| text.as_ptr()).collect();
        pointers.push(std::ptr::null());
        pointers
    };
    let (argv, envp) = (pointers(argv), pointers(envp));
    // SAFETY: both arrays end with null and point to NUL-terminated texts that outlive the
    // call; the path is an empty NUL-terminated text.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    io::Error::last_os_error()
}

/// Keeps the three given descriptors as standard input, output and error, `kept` under the
/// numbers from 3 upwards and closed on execution, closes all others, and hands `kept` to
/// `then`, whose code ends the process. Only for a process made by [`clone`].
pub(crate) fn with_descriptors<const N: usize>(
    standard: [BorrowedFd<'_>; 3],
    kept: [BorrowedFd<'_>; N],
    then: impl FnOnce([BorrowedFd<'static>; N]) -> u8,
) -> u8 {
    // Nothing that owns a descriptor of before may run again, whatever happens from here on.
    let mut exit = ExitOnDrop(PANICKED);
    // First all to numbers above every target, so that no copy overwrites a source.
    const ABOVE: libc::c_int = 64;
    let mut high = Vec::with_capacity(3 + N);
    for fd in standard.iter().chain(&kept) {
        // SAFETY: duplicates a live descriptor.
        high.push(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, ABOVE) });
    }
    for (target, source) in (0..).zip(&high) {
        let flags = if target < 3 { 0 } else { libc::O_CLOEXEC };
        // SAFETY: overwrites a descriptor of this process, which never returns to its owner.
        if unsafe { libc::dup3(*source, target, flags) } < 0 {
            drop(exit);
            unreachable!()
        }
    }
    close_from(3 + libc::c_uint::try_from(N).unwrap_or(0));
    let mut number = 2;
    exit.0 = then([(); N].map(|()| {
        number += 1;
        // SAFETY: this number was filled above and stays open until the process ends.
        unsafe { BorrowedFd::borrow_raw(number) }
    }));
    drop(exit);
    unreachable!()
}

/// Closes every descriptor but the one given, which moves to number 0.
pub(crate) fn keep_only(fd: BorrowedFd<'_>) -> BorrowedFd<'static> {
    // SAFETY: overwrites a descriptor of a process that serves nothing but signals from now on
    // and never returns to the owners of its descriptors.
    unsafe { libc::dup3(fd.as_raw_fd(), 0, libc::O_CLOEXEC) };
    close_from(1);
    // SAFETY: number 0 was filled above and stays open until the process ends.
    unsafe { BorrowedFd::borrow_raw(0) }
}
