//! One thread, one poll: the listener, the channels, the modules and the signals.
//!
//! Who connects is checked twice: by user id, and by a process descriptor that must not have
//! fired when a request is answered (R1, K3).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use contract::grant::Standing;
use contract::warden::{FrameError, MAX_BAD_FRAMES, Reason, Reply, Request};
use local::log;
use local::os::pidfd;
use local::os::socket::peer_pidfd;
use local::warden::{Message, receive, send, seqpacket, with_address};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{
    AtFlags, FileType, FlockOperation, Gid, Mode, Uid, chownat, flock, renameat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{SocketFlags, accept_with, bind, listen};
use rustix::process::{PidfdFlags, pidfd_open};

use crate::config::Config;
use crate::guarded::{self, GuardError};
use crate::modules::{Answer, Modules};
use crate::os::signal;
use crate::start::refuse;

/// Most channels at once.
const MAX_CHANNELS: usize = 32;

/// Why warden does not serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The directory of the socket is not its own.
    #[error("directory of the socket")]
    Directory(#[from] GuardError),
    /// Another warden serves there, or something else lies at that path.
    #[error("{path} is in use")]
    InUse {
        /// The path.
        path: String,
    },
    /// A system call failed.
    #[error("{0}")]
    System(&'static str, #[source] io::Error),
}

fn system<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> ServeError {
    move |cause| ServeError::System(operation, cause.into())
}

/// The socket, bound under its final name, in a locked directory.
pub(crate) struct Listener {
    socket: OwnedFd,
    directory: OwnedFd,
    name: String,
}

impl Listener {
    /// Binds under a temporary name with the final mode and owner, then renames (R13).
    ///
    /// # Errors
    /// [`ServeError`]; a socket that a killed warden left is replaced, anything else is not.
    pub(crate) fn bind(config: &Config) -> Result<Self, ServeError> {
        let owner = config.standing().owner();
        let in_use = || ServeError::InUse {
            path: config.socket.clone(),
        };
        let (parent, name) = config.socket.rsplit_once('/').ok_or_else(in_use)?;
        let directory = guarded::directory(parent, owner)?;
        flock(&directory, FlockOperation::NonBlockingLockExclusive).map_err(|_| in_use())?;
        // A killed warden leaves its socket, which may be its caller's by now.
        let ours = |uid| uid == owner || config.allowed_uids.contains(&uid);
        if let Ok(stat) = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)
            && (FileType::from_raw_mode(stat.st_mode) != FileType::Socket || !ours(stat.st_uid))
        {
            return Err(in_use());
        }
        let temporary = format!(".{name}.new");
        match unlinkat(&directory, temporary.as_str(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(cause) => return Err(system("remove a leftover socket")(cause)),
        }
        let socket = seqpacket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
            .map_err(system("make a socket"))?;
        let root = matches!(config.standing(), Standing::Root { .. });
        let sole = match config.allowed_uids[..] {
            [uid] if root || uid == owner => Some(uid),
            _ => None,
        };
        // One caller owns the socket and nobody else can connect; where the mode cannot tell
        // callers from others, the check at accept stands alone.
        let mask = if sole.is_some() { 0o177 } else { 0o111 };
        let before = rustix::process::umask(Mode::from_raw_mode(mask));
        let bound = with_address(&Path::new(parent).join(&temporary), |address| {
            bind(&socket, address).map_err(io::Error::from)
        });
        rustix::process::umask(before);
        bound.map_err(system("bind the socket"))?;
        if let Some(uid) = sole.filter(|uid| *uid != owner) {
            let uid = Some(Uid::from_raw(uid));
            chownat(
                &directory,
                temporary.as_str(),
                uid,
                None::<Gid>,
                AtFlags::SYMLINK_NOFOLLOW,
            )
            .map_err(system("give the socket to its caller"))?;
        }
        listen(&socket, 16).map_err(system("listen"))?;
        renameat(&directory, temporary.as_str(), &directory, name)
            .map_err(system("put the socket into place"))?;
        Ok(Self {
            socket,
            directory,
            name: name.to_owned(),
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = unlinkat(&self.directory, self.name.as_str(), AtFlags::empty());
    }
}

/// One connected caller.
struct Channel {
    socket: OwnedFd,
    peer: OwnedFd,
    bad_frames: u8,
}

/// What becomes of a channel.
#[derive(PartialEq, Eq)]
enum Fate {
    Keep,
    Close,
}

/// Serves until a signal asks for the end; then ends all modules.
///
/// # Errors
/// [`ServeError`] when the poll itself fails.
pub(crate) fn serve(
    config: Config,
    listener: &Listener,
    modules: Modules,
) -> Result<(), ServeError> {
    let signals = signal::descriptor().map_err(system("watch signals"))?;
    let mut modules = modules;
    let mut channels: Vec<Channel> = Vec::new();
    let outcome = loop {
        let ready = match wait(&signals, listener, &channels, &mut modules) {
            Ok(ready) => ready,
            Err(Errno::INTR) => continue,
            Err(cause) => break Err(system("wait for events")(cause)),
        };
        let mut end = false;
        while let Some(signal) = signal::take(signals.as_fd()) {
            end |= signal != libc::SIGCHLD;
        }
        if end {
            break Ok(());
        }
        modules.reap();
        let mut index = 0;
        channels.retain_mut(|channel| {
            index += 1;
            !ready[index] || turn(channel, &mut modules) == Fate::Keep
        });
        if ready[0] && channels.len() < MAX_CHANNELS {
            channels.extend(accept(listener, &config.allowed_uids));
        }
    };
    modules.close();
    outcome
}

/// Waits for the next event: whether the listener (first) and each channel is ready.
fn wait(
    signals: &OwnedFd,
    listener: &Listener,
    channels: &[Channel],
    modules: &mut Modules,
) -> Result<Vec<bool>, Errno> {
    let left = modules.enforce(Instant::now()).map(|left| Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    });
    let listening = if channels.len() < MAX_CHANNELS {
        PollFlags::IN
    } else {
        PollFlags::empty()
    };
    let mut fds = vec![PollFd::new(&listener.socket, listening)];
    fds.extend(
        channels
            .iter()
            .map(|channel| PollFd::new(&channel.socket, PollFlags::IN)),
    );
    fds.push(PollFd::new(signals, PollFlags::IN));
    fds.extend(
        modules
            .pidfds()
            .map(|pidfd| PollFd::from_borrowed_fd(pidfd, PollFlags::IN)),
    );
    poll(&mut fds, left.as_ref())?;
    Ok(fds
        .iter()
        .take(1 + channels.len())
        .map(|fd| !fd.revents().is_empty())
        .collect())
}

/// Takes one connection, if its process may ask and lives.
fn accept(listener: &Listener, allowed: &[u32]) -> Option<Channel> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = accept_with(&listener.socket, flags).ok()?;
    let credentials = socket_peercred(&socket).ok()?;
    let uid = credentials.uid.as_raw();
    let peer = match peer_pidfd(&socket) {
        // An older kernel. The user id is what counts here, the descriptor adds only that
        // somebody of that number lives (R1).
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
            pidfd_open(credentials.pid, PidfdFlags::empty()).ok()?
        }
        peer => peer.ok()?,
    };
    // Where modules share the callers' user, the namespace is what tells them apart.
    if !allowed.contains(&uid) || pidfd::is_nested(&peer) || !pidfd::alive(&peer) {
        log::warn(format_args!("refused a caller with uid {uid}"));
        return None;
    }
    Some(Channel {
        socket,
        peer,
        bad_frames: 0,
    })
}

/// Reads one request and answers it.
fn turn(channel: &mut Channel, modules: &mut Modules) -> Fate {
    let message = match receive(channel.socket.as_fd()) {
        Ok(message) if message.frame.is_empty() && message.descriptors.is_empty() => {
            return Fate::Close;
        }
        Ok(message) => message,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Fate::Keep,
        Err(_) => return Fate::Close,
    };
    // Whoever connected may be gone, and another may write on what it left behind (A3).
    if !pidfd::alive(&channel.peer) {
        return Fate::Close;
    }
    let (reply, beside) = match parse(&message) {
        Ok(request) => modules.answer(&request, &message.descriptors),
        Err(error) => {
            log::warn(format_args!("a bad frame: {error}"));
            channel.bad_frames += 1;
            if channel.bad_frames >= MAX_BAD_FRAMES {
                return Fate::Close;
            }
            bad_frame(error)
        }
    };
    let fds: Vec<_> = beside.iter().map(AsFd::as_fd).collect();
    let sent = reply
        .encode()
        .is_ok_and(|frame| send(channel.socket.as_fd(), &frame, &fds).is_ok());
    if sent { Fate::Keep } else { Fate::Close }
}

fn parse(message: &Message) -> Result<Request, FrameError> {
    if message.truncated {
        return Err(FrameError::Length);
    }
    let request = Request::decode(&message.frame)?;
    if request.descriptors() == message.descriptors.len() {
        Ok(request)
    } else {
        Err(FrameError::Value("number of descriptors"))
    }
}

fn bad_frame(error: FrameError) -> Answer {
    (
        Reply::Refused(refuse(Reason::BadFrame, error.to_string())),
        Vec::new(),
    )
}
