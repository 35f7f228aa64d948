//! Waiting for files: a socket that appears, a log that grows. By the kernel's notice, not by time.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

/// Watches a folder and tries something each time that something in it changes.
///
/// # Errors
/// `TimedOut` with the last word of `attempt`; other errors of the system.
pub(super) fn until<T>(
    folder: &Path,
    patience: Duration,
    mut attempt: impl FnMut() -> Result<T, String>,
) -> io::Result<T> {
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let watch = inotify::init(flags)?;
    let what = inotify::WatchFlags::CREATE
        | inotify::WatchFlags::MOVED_TO
        | inotify::WatchFlags::MODIFY
        | inotify::WatchFlags::DELETE;
    inotify::add_watch(&watch, folder, what)?;
    let deadline = Instant::now() + patience;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(why) => {
                if !wait(&watch, deadline)? {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, why));
                }
            }
        }
    }
}

/// Waits for a change; false at the deadline. A change that another process makes elsewhere is
/// noticed within a moment, since the wait is cut into pieces.
fn wait(watch: &OwnedFd, deadline: Instant) -> io::Result<bool> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Ok(false);
    }
    let piece = left.min(Duration::from_millis(100));
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: i64::from(piece.subsec_nanos()),
    };
    let mut descriptors = [PollFd::new(watch, PollFlags::IN)];
    poll(&mut descriptors, Some(&timeout))?;
    let mut buffer = [0; 4096];
    while rustix::io::read(watch, &mut buffer).is_ok_and(|length| length > 0) {}
    Ok(true)
}
