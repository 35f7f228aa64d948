//! Signals as events: blocked everywhere, read from a descriptor or waited for.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::owned;

/// The signals that warden and a module's first process handle.
pub(crate) const HANDLED: [libc::c_int; 4] =
    [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCHLD];

/// Blocks the handled signals for this process and those it will make.
pub(crate) fn block() -> io::Result<()> {
    let set = handled();
    // SAFETY: the set is a live, initialised value; no old set is asked for.
    let done = unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A descriptor that becomes readable when a handled signal has come.
pub(crate) fn descriptor() -> io::Result<OwnedFd> {
    let set = handled();
    // SAFETY: the set is a live, initialised value; -1 asks for a new descriptor.
    owned(unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })
}

/// The next signal from the descriptor, if one has come.
pub(crate) fn take(descriptor: BorrowedFd<'_>) -> Option<libc::c_int> {
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut info: libc::signalfd_siginfo = unsafe { mem::zeroed() };
    let size = size_of_val(&info);
    // SAFETY: the kernel writes at most `size` bytes, the size of `info`.
    let read = unsafe { libc::read(descriptor.as_raw_fd(), (&raw mut info).cast(), size) };
    (usize::try_from(read) == Ok(size)).then_some(info.ssi_signo.cast_signed())
}

/// Waits for one of the handled signals.
pub(crate) fn wait() -> libc::c_int {
    let set = handled();
    let mut signal = 0;
    // SAFETY: both point to live locals.
    unsafe { libc::sigwait(&raw const set, &raw mut signal) };
    signal
}

/// Gives each signal its default action and unblocks all, as a program expects at its start.
pub(crate) fn reset() {
    // By the system call itself: the library keeps two signals from its callers, and those too
    // may have been ignored by whoever started warden.
    // First word 0 is the default action, 1 is to ignore. A file over its limit is an error to the
    // module that writes it, not its end.
    let (default, ignore) = ([0_u64; 4], [1_u64, 0, 0, 0]);
    for signal in 1..=64 {
        let action = if signal == libc::SIGXFSZ {
            &ignore
        } else {
            &default
        };
        // SAFETY: at least as many bytes as the kernel's structure has; no old action is asked
        // for; numbers that cannot be set are refused.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                action.as_ptr(),
                std::ptr::null_mut::<u8>(),
                8_usize,
            )
        };
    }
    // SAFETY: all-zero is the empty set, and the set outlives the call.
    unsafe {
        let empty: libc::sigset_t = mem::zeroed();
        libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, std::ptr::null_mut());
    }
}

fn handled() -> libc::sigset_t {
    // SAFETY: `sigemptyset` initialises the set; `sigaddset` gets a live set and valid numbers.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in HANDLED {
            libc::sigaddset(&raw mut set, signal);
        }
        set
    }
}
