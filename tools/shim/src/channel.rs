//! Packets between a test and its puppets, with at most one descriptor beside each.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind,
    connect, listen, recvmsg, sendmsg, socket_with, sockopt,
};

/// Longest packet.
const PACKET: usize = 128 * 1024;
/// Longest wait for anything, in seconds: above every deadline of a daemon.
const PATIENCE: i64 = 30;

/// One end.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// Where puppets announce themselves.
#[derive(Debug)]
pub struct Meeting(OwnedFd);

fn socket() -> io::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(socket_with(family, kind, SocketFlags::CLOEXEC, None)?)
}

fn readable(fd: BorrowedFd<'_>) -> io::Result<()> {
    let patience = Timespec {
        tv_sec: PATIENCE,
        tv_nsec: 0,
    };
    match poll(
        &mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)],
        Some(&patience),
    )? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

impl Meeting {
    /// Listens; the folder decides who may come.
    ///
    /// # Errors
    /// As the system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let socket = socket()?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        listen(&socket, 64)?;
        Ok(Self(socket))
    }

    /// Waits for the next puppet; its number as this process sees it is told by the kernel.
    ///
    /// # Errors
    /// `TimedOut`, or as the system says.
    pub fn accept(&self) -> io::Result<(i32, Channel)> {
        readable(self.0.as_fd())?;
        let channel = accept_with(&self.0, SocketFlags::CLOEXEC)?;
        let pid = sockopt::socket_peercred(&channel)?
            .pid
            .as_raw_nonzero()
            .get();
        Ok((pid, Channel(channel)))
    }
}

impl Channel {
    /// Goes to a meeting.
    ///
    /// # Errors
    /// As the system says.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = socket()?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self(socket))
    }

    /// Sends a packet.
    ///
    /// # Errors
    /// As the system says.
    pub fn send(&self, bytes: &[u8], beside: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let beside: Vec<_> = beside.into_iter().collect();
        if !beside.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&beside));
        }
        sendmsg(
            &self.0,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }

    /// Waits for a packet; `None` when the other end has gone. `patient` ends may wait for ever.
    ///
    /// # Errors
    /// `TimedOut`, or as the system says.
    pub fn receive(&self, patient: bool) -> io::Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
        if !patient {
            readable(self.0.as_fd())?;
        }
        let mut bytes = vec![0; PACKET];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let mut slice = [IoSliceMut::new(&mut bytes)];
        let received = match recvmsg(&self.0, &mut slice, &mut control, flags) {
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            received => received?,
        };
        if received.bytes == 0 {
            return Ok(None);
        }
        bytes.truncate(received.bytes);
        let beside = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        Ok(Some((bytes, beside)))
    }
}
