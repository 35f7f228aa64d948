//! Unix sockets with the credentials of each writer (K3, K5).
#![expect(
    unsafe_code,
    reason = "recvmsg with control data and two socket options need libc"
)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use super::check;

const SO_PASSRIGHTS: libc::c_int = 83;
const SO_PASSPIDFD: libc::c_int = 76;
const SO_PEERPIDFD: libc::c_int = 77;
const SCM_PIDFD: libc::c_int = 4;

/// Credentials as the kernel states them; a pid of 0 means a process this namespace cannot name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// Thread group id.
    pub pid: i32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What one read brought along.
#[derive(Debug)]
pub struct Received {
    /// Bytes read; 0 at the end.
    pub length: usize,
    /// The writer.
    pub writer: Option<Credentials>,
    /// The writer's process descriptor, where it was asked for and the kernel has it.
    pub pidfd: Option<OwnedFd>,
}

/// Room for credentials, one process descriptor, and the most descriptors a message may carry (253):
/// what has no room the kernel closes for us, and a peer's socket may ask it to linger (A37).
const CONTROL: usize = 1280;

/// Whether a read takes the bytes or leaves them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// Leave them, and wait for the first.
    Peek,
    /// Take what is there.
    Take,
}

/// The connected peer's process descriptor. It is returned even when the peer has exited (K3).
///
/// # Errors
/// `ENOPROTOOPT` without kernel support; another error means that the peer is gone.
pub fn peer_pidfd(socket: impl AsFd) -> io::Result<OwnedFd> {
    let mut fd: libc::c_int = -1;
    let mut length = socklen::<libc::c_int>();
    // SAFETY: the two pointers are to locals of the size that `length` states.
    check(unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut length,
        )
    })?;
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The connected peer's credentials as of `connect` (K1).
///
/// # Errors
/// As the kernel says.
pub fn peer_credentials(socket: impl AsFd) -> io::Result<Credentials> {
    let mut raw = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut length = socklen::<libc::ucred>();
    // SAFETY: the two pointers are to locals of the size that `length` states.
    check(unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut raw).cast(),
            &raw mut length,
        )
    })?;
    Ok(Credentials {
        pid: raw.pid,
        uid: raw.uid,
        gid: raw.gid,
    })
}

/// Has each read carry the writer's credentials. Set it before `listen`, so that no byte can come
/// before it (K5).
///
/// # Errors
/// As the kernel says.
pub fn pass_credentials(socket: impl AsFd) -> io::Result<()> {
    set(socket, libc::SO_PASSCRED)
}

/// Has each read carry the writer's process descriptor as well.
///
/// # Errors
/// `ENOPROTOOPT` without kernel support.
pub fn pass_pidfd(socket: impl AsFd) -> io::Result<()> {
    set(socket, SO_PASSPIDFD)
}

fn set(socket: impl AsFd, name: libc::c_int) -> io::Result<()> {
    option(socket, name, 1)
}

fn option(socket: impl AsFd, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the pointer is to a local of the size stated.
    check(unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw const value).cast(),
            socklen::<libc::c_int>(),
        )
    })
    .map(drop)
}

/// Refuses descriptors that a peer sends along, at the sender (Linux 6.16). Set it before `listen`.
///
/// # Errors
/// `ENOPROTOOPT` without kernel support: [`receive`] then disarms and closes what comes.
pub fn refuse_descriptors(socket: impl AsFd) -> io::Result<()> {
    option(socket, SO_PASSRIGHTS, 0)
}

/// Takes what is left in a socket that is about to be closed, as [`receive`] does, and lets nothing
/// more come. Else the kernel would close a peer's descriptors for us, and wait as they ask.
pub fn drain(socket: impl AsFd) {
    let socket = socket.as_fd();
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
    let mut rest = [0; 4096];
    while receive(socket, &mut rest, Read::Take).is_ok_and(|received| received.length > 0) {}
}

/// One read with its writer. Descriptors that a peer sends along are closed at once.
///
/// # Errors
/// `EAGAIN` after the socket's receive timeout, else as the kernel says.
pub fn receive(socket: impl AsFd, buffer: &mut [u8], read: Read) -> io::Result<Received> {
    #[repr(align(8))]
    struct Control([u8; CONTROL]);
    let mut control = Control([0; CONTROL]);
    let mut slice = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: an all-zero msghdr is a valid value of that C structure.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    // A peek has room for the credentials only: the kernel then installs no descriptor, neither a
    // stranger's nor a second copy of the writer's.
    message.msg_controllen = match read {
        // SAFETY: CMSG_SPACE computes a size.
        Read::Peek => unsafe { libc::CMSG_SPACE(socklen::<libc::ucred>()) as usize },
        Read::Take => control.0.len(),
    };
    let flags = match read {
        Read::Peek => libc::MSG_PEEK | libc::MSG_CMSG_CLOEXEC,
        Read::Take => libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC,
    };
    // SAFETY: `message` points at buffers that outlive the call, with their true lengths.
    let length = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, flags) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let mut received = Received {
        length,
        writer: None,
        pidfd: None,
    };
    // SAFETY: the kernel filled `message`; CMSG_FIRSTHDR and CMSG_NXTHDR stay inside the control
    // buffer, and each data pointer has the number of bytes that cmsg_len states.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            let data = libc::CMSG_DATA(header);
            let size = (*header).cmsg_len - libc::CMSG_LEN(0) as usize;
            match ((*header).cmsg_level, (*header).cmsg_type) {
                (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                    let raw: libc::ucred = data.cast::<libc::ucred>().read_unaligned();
                    received.writer = Some(Credentials {
                        pid: raw.pid,
                        uid: raw.uid,
                        gid: raw.gid,
                    });
                }
                (libc::SOL_SOCKET, SCM_PIDFD) => {
                    received.pidfd = descriptors(data, size).next();
                }
                (libc::SOL_SOCKET, libc::SCM_RIGHTS) => descriptors(data, size).for_each(discard),
                _ => {}
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok(received)
}

/// Closes a stranger's descriptor without waiting for what it may have to say.
fn discard(fd: OwnedFd) {
    let none = libc::linger {
        l_onoff: 0,
        l_linger: 0,
    };
    // SAFETY: the pointer is to a local of the size stated. What is no socket refuses it.
    unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const none).cast(),
            socklen::<libc::linger>(),
        );
    }
}

/// The descriptors in one control message.
///
/// # Safety
/// `data` must hold `size` bytes of descriptors that the kernel has just made for this process.
unsafe fn descriptors(data: *const u8, size: usize) -> impl Iterator<Item = OwnedFd> {
    (0..size / size_of::<libc::c_int>()).filter_map(move |index| {
        // SAFETY: by the caller's promise, `index` is inside the message and the descriptor ours.
        unsafe {
            let fd = data.cast::<libc::c_int>().add(index).read_unaligned();
            (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))
        }
    })
}

/// A C socket length of a type; all of them are a few bytes.
#[expect(clippy::cast_possible_truncation, reason = "sizes of a few bytes")]
const fn socklen<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}
