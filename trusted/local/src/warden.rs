//! The road to `warden`: one datagram is one frame, descriptors travel beside it.
//!
//! [`WardenClient`] is what `runtimed` holds; [`send`] and [`receive`] are both ends' way to the
//! wire. The client believes an answer only from a socket that a trusted user serves, and only
//! with as many descriptors beside it as the frame requires. What is said is
//! `contract::warden`.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::retry_on_intr;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use contract::names::ModuleName;
use contract::warden::{
    Facts, FrameError, HEADER, MAX_BODY, MAX_DESCRIPTORS, Measured, Reply, Request, Start, State,
};

/// Why warden did not do something.
#[derive(Debug, thiserror::Error)]
pub enum WardenError {
    /// It cannot be reached.
    #[error("cannot reach warden")]
    Connect(#[source] io::Error),
    /// Somebody else serves its socket.
    #[error("warden's socket is served by uid {0}")]
    Impostor(u32),
    /// The channel failed; connect anew.
    #[error("the channel to warden failed")]
    Channel(#[source] io::Error),
    /// A frame that is none.
    #[error("a frame to or from warden is invalid")]
    Frame(#[from] FrameError),
    /// An answer to another question, or with a wrong number of descriptors.
    #[error("warden gave an answer that does not fit the question")]
    Unexpected,
    /// It refused.
    #[error("warden refused ({:?}): {}", .0.reason, .0.detail)]
    Refused(contract::warden::Refusal),
}

/// A running module.
#[derive(Debug)]
pub struct Running {
    /// What was registered at its start.
    pub facts: Facts,
    /// Its first process; readable when the module has ended.
    pub pidfd: OwnedFd,
}

/// One channel to warden: one question at a time.
#[derive(Debug)]
pub struct WardenClient {
    socket: OwnedFd,
}

impl WardenClient {
    /// Connects to a warden that runs as root, or as the own user where everything runs as one.
    /// Each later answer is awaited for at most `patience`.
    ///
    /// # Errors
    /// [`WardenError::Connect`], or [`WardenError::Impostor`] when another user serves there.
    pub fn connect(path: &Path, patience: Duration) -> Result<Self, WardenError> {
        Self::connect_to(path, &[0, rustix::process::geteuid().as_raw()], patience)
    }

    /// Connects to a warden that runs as one of the given users.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn connect_to(
        path: &Path,
        servers: &[u32],
        patience: Duration,
    ) -> Result<Self, WardenError> {
        let connected = || -> io::Result<OwnedFd> {
            let socket = seqpacket(SocketFlags::CLOEXEC)?;
            set_socket_timeout(&socket, Timeout::Recv, Some(patience))?;
            set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
            with_address(path, |address| {
                rustix::net::connect(&socket, address).map_err(io::Error::from)
            })?;
            Ok(socket)
        };
        let socket = connected().map_err(WardenError::Connect)?;
        let peer = socket_peercred(&socket).map_err(|e| WardenError::Connect(e.into()))?;
        if !servers.contains(&peer.uid.as_raw()) {
            return Err(WardenError::Impostor(peer.uid.as_raw()));
        }
        Ok(Self { socket })
    }

    /// Starts a module. Its output goes to `stdout` and `stderr`; `sockets` becomes its
    /// `/run/iotedge` and must be given exactly when `start.sockets` says so.
    ///
    /// # Errors
    /// [`WardenError::Refused`] with warden's reason, or the channel's failure.
    pub fn start(
        &mut self,
        start: &Start,
        stdout: BorrowedFd<'_>,
        stderr: BorrowedFd<'_>,
        sockets: Option<BorrowedFd<'_>>,
    ) -> Result<Running, WardenError> {
        let descriptors: Vec<_> = [stdout, stderr].into_iter().chain(sockets).collect();
        let (reply, mut pidfds) = self.ask(&Request::Start(start.clone()), &descriptors)?;
        match (reply, pidfds.pop()) {
            (Reply::Started(facts), Some(pidfd)) => Ok(Running { facts, pidfd }),
            _ => Err(WardenError::Unexpected),
        }
    }

    /// Asks a module to end, and ends it by force after the grace. Returns at once; the module's
    /// process descriptor tells when it has ended.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn stop(&mut self, module: &ModuleName, grace_ms: u32) -> Result<(), WardenError> {
        self.done(&Request::Stop {
            module: module.clone(),
            grace_ms,
        })
    }

    /// Ends a module by force.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn kill(&mut self, module: &ModuleName) -> Result<(), WardenError> {
        self.done(&Request::Kill(module.clone()))
    }

    /// How a module is.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn status(&mut self, module: &ModuleName) -> Result<State, WardenError> {
        match self.ask(&Request::Status(module.clone()), &[])? {
            (Reply::Status(state), _) => Ok(state),
            _ => Err(WardenError::Unexpected),
        }
    }

    /// All running modules, so that a restarted daemon can take them over.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn list(&mut self) -> Result<Vec<Running>, WardenError> {
        let mut all: Vec<Running> = Vec::new();
        loop {
            let after = all.last().map(|last| last.facts.module.clone());
            let (reply, pidfds) = self.ask(
                &Request::List {
                    after: after.clone(),
                },
                &[],
            )?;
            let Reply::Listed { running, more } = reply else {
                return Err(WardenError::Unexpected);
            };
            // Only names beyond the last one, so that a page cannot repeat for ever.
            let ascending = running.iter().try_fold(after, |last, facts| {
                (last.is_none_or(|last| last < facts.module)).then(|| Some(facts.module.clone()))
            });
            if ascending.is_none() || (more && running.is_empty()) {
                return Err(WardenError::Unexpected);
            }
            let page = running.into_iter().zip(pidfds);
            all.extend(page.map(|(facts, pidfd)| Running { facts, pidfd }));
            if !more {
                return Ok(all);
            }
        }
    }

    /// Facts of the process behind a process descriptor (R2).
    ///
    /// # Errors
    /// As [`start`](Self::start); `Reason::Gone` when it has ended.
    pub fn measure(&mut self, pidfd: BorrowedFd<'_>) -> Result<Measured, WardenError> {
        match self.ask(&Request::Measure, &[pidfd])? {
            (Reply::Measured(measured), _) => Ok(measured),
            _ => Err(WardenError::Unexpected),
        }
    }

    fn done(&mut self, request: &Request) -> Result<(), WardenError> {
        match self.ask(request, &[])? {
            (Reply::Done, _) => Ok(()),
            _ => Err(WardenError::Unexpected),
        }
    }

    fn ask(
        &mut self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), WardenError> {
        if descriptors.len() != request.descriptors() {
            return Err(WardenError::Unexpected);
        }
        send(self.socket.as_fd(), &request.encode()?, descriptors).map_err(WardenError::Channel)?;
        let message = receive(self.socket.as_fd()).map_err(WardenError::Channel)?;
        if message.truncated {
            return Err(FrameError::Length.into());
        }
        let reply = Reply::decode(&message.frame)?;
        match reply {
            Reply::Refused(refusal) => Err(WardenError::Refused(refusal)),
            _ if reply.descriptors() != message.descriptors.len() => Err(WardenError::Unexpected),
            _ => Ok((reply, message.descriptors)),
        }
    }
}

/// One datagram as it came.
#[derive(Debug)]
pub struct Message {
    /// Its bytes; none when the other end has closed.
    pub frame: Vec<u8>,
    /// The descriptors beside it.
    pub descriptors: Vec<OwnedFd>,
    /// Whether bytes or descriptors were cut off: more than any frame may have.
    pub truncated: bool,
}

/// A sequenced-packet socket, not yet connected.
///
/// # Errors
/// The system's.
pub fn seqpacket(flags: SocketFlags) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    Ok(socket)
}

/// Sends one datagram and the descriptors beside it.
///
/// # Errors
/// The system's; `EPIPE` when the other end has closed.
pub fn send(
    socket: BorrowedFd<'_>,
    frame: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // A socket with a timeout is interrupted also by a stop and a continuation; the question of a
    // start would then be lost, and its module would run without anybody knowing it.
    retry_on_intr(|| {
        let slices = [IoSlice::new(frame)];
        rustix::net::sendmsg(socket, &slices, &mut beside, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// Receives one datagram.
///
/// # Errors
/// The system's; `EAGAIN` when none comes in time.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Message> {
    let mut frame = vec![0; HEADER + MAX_BODY];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let got = retry_on_intr(|| {
        let mut slices = [IoSliceMut::new(&mut frame)];
        rustix::net::recvmsg(socket, &mut slices, &mut beside, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut descriptors = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    frame.truncate(got.bytes);
    let truncated = got
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    Ok(Message {
        frame,
        descriptors,
        truncated,
    })
}

/// Calls `then` with an address for the path; one too long for an address is reached through
/// its directory's descriptor (R13).
///
/// # Errors
/// Those of `then`, and those of opening the directory.
pub fn with_address<T>(
    path: &Path,
    then: impl FnOnce(&SocketAddrUnix) -> io::Result<T>,
) -> io::Result<T> {
    if let Ok(address) = SocketAddrUnix::new(path) {
        return then(&address);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(parent, flags, Mode::empty())?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&directory);
    then(&SocketAddrUnix::new(
        Path::new(&format!("/proc/self/fd/{number}")).join(name),
    )?)
}
