//! Who is calling: proof, not a name (R1, D3). Boundary B1.
//!
//! A [`Caller`] is made from a connected socket and holds a process descriptor, which stays true
//! when the number is reused (K1-K3). Handlers never see it: a daemon's gate turns it into a
//! principal first. A process that has exited is refused, whatever its number says now.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use contract::audit::Event;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::os::pidfd::{self, PidInfo};
use crate::os::socket;
pub use crate::os::socket::Credentials;

/// What this kernel offers. One value, probed once and passed in, so that every fallback is tested
/// on a new kernel too (R1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelFacts {
    /// Process descriptors of a connected peer and of each writer (Linux 6.5).
    pub peer_pidfd: bool,
    /// Facts by process descriptor (Linux 6.13).
    pub pidfd_info: bool,
    /// A socket can refuse descriptors that a peer sends along (Linux 6.16).
    pub refuses_descriptors: bool,
    /// Process descriptors have an inode of their own (Linux 6.9).
    pub own_inode: bool,
}

impl KernelFacts {
    /// What a kernel of 2021 offers: the normal case in the field.
    pub const OLD: Self = Self {
        peer_pidfd: false,
        pidfd_info: false,
        refuses_descriptors: false,
        own_inode: false,
    };

    /// Asks the running kernel.
    #[must_use]
    pub fn probe() -> Self {
        let pair = std::os::unix::net::UnixStream::pair().ok();
        let ours = pair.as_ref().map(|(ours, _theirs)| ours);
        let peer = ours.and_then(|ours| socket::peer_pidfd(ours).ok());
        let own = pidfd_open(rustix::process::getpid(), PidfdFlags::empty());
        Self {
            refuses_descriptors: ours.is_some_and(|ours| socket::refuse_descriptors(ours).is_ok()),
            own_inode: own.is_ok_and(|fd| pidfd::has_own_inode(&fd)),
            peer_pidfd: peer.is_some(),
            pidfd_info: peer.is_some_and(|fd| pidfd::info(&fd).is_ok()),
        }
    }
}

/// How well a caller is proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// By a process descriptor that the kernel made from the socket.
    Strong,
    /// By number, start time and a descriptor opened afterwards: a reuse of the number within one
    /// clock tick, before the look, would not be seen (K2).
    Weak,
}

/// Which proof a socket asks for (R1: configuration may forbid the fallback).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Require {
    /// The kernel's own descriptor, or refusal.
    Strong,
    /// The best there is.
    Best,
}

/// Why a peer is nobody.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// It has exited.
    #[error("the calling process is gone")]
    Gone,
    /// This daemon's pid namespace cannot name it (K8, A17).
    #[error("the calling process is outside this daemon's pid namespace")]
    Namespace,
    /// The kernel cannot prove it and the fallback is forbidden (A18).
    #[error("this kernel cannot prove callers and the configuration asks for proof")]
    Unprovable,
    /// The number the kernel knows differs from the one on the socket.
    #[error("the calling process is not the one that the socket names")]
    Mismatch,
    /// This daemon has no descriptor left to hold it by; it says nothing about the peer (A37).
    #[error("this daemon is out of descriptors")]
    Full,
    /// Anything else.
    #[error("asking the kernel for the calling process failed")]
    Kernel(#[source] io::Error),
}

impl PeerError {
    /// What the audit log calls it.
    #[must_use]
    pub fn event(&self) -> Event {
        match self {
            Self::Gone => Event::PeerStale,
            Self::Unprovable => Event::PeerWeak,
            Self::Full => Event::InputLimit,
            Self::Namespace | Self::Mismatch | Self::Kernel(_) => Event::PeerRefused,
        }
    }
}

/// A process, proved.
#[derive(Debug)]
pub struct Caller {
    credentials: Credentials,
    pidfd: OwnedFd,
    inode: Option<u64>,
    proof: Proof,
    facts: KernelFacts,
}

impl Caller {
    /// The process at the other end of a connected socket.
    ///
    /// # Errors
    /// [`PeerError`]; an error is always a refusal.
    pub fn connected(
        socket: impl AsFd,
        facts: KernelFacts,
        require: Require,
    ) -> Result<Self, PeerError> {
        if !facts.peer_pidfd {
            let credentials = socket::peer_credentials(&socket).map_err(PeerError::Kernel)?;
            return Self::by_number(credentials, facts, require);
        }
        // Descriptor first: whatever is read afterwards is checked against it. An error here means
        // that the peer is gone, never that the fallback should be tried.
        let pidfd = socket::peer_pidfd(&socket).map_err(|error| match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => PeerError::Full,
            _ => PeerError::Gone,
        })?;
        let credentials = socket::peer_credentials(&socket).map_err(PeerError::Kernel)?;
        Self::by_descriptor(credentials, pidfd, facts)
    }

    /// The process that wrote, when it is not the one that connected. `pidfd` came with its bytes.
    ///
    /// # Errors
    /// [`PeerError`]; an error is always a refusal.
    pub fn writer(
        credentials: Credentials,
        pidfd: Option<OwnedFd>,
        facts: KernelFacts,
        require: Require,
    ) -> Result<Self, PeerError> {
        match pidfd {
            Some(pidfd) => Self::by_descriptor(credentials, pidfd, facts),
            None if facts.peer_pidfd => Err(PeerError::Gone),
            None => Self::by_number(credentials, facts, require),
        }
    }

    fn by_descriptor(
        credentials: Credentials,
        pidfd: OwnedFd,
        facts: KernelFacts,
    ) -> Result<Self, PeerError> {
        if credentials.pid == 0 {
            return Err(PeerError::Namespace);
        }
        if facts.pidfd_info {
            match pidfd::info(&pidfd) {
                Ok(info) if info.pid == 0 => return Err(PeerError::Namespace),
                Ok(info) if i64::from(info.pid) != i64::from(credentials.pid) => {
                    return Err(PeerError::Mismatch);
                }
                Ok(_) => {}
                Err(_) => return Err(PeerError::Gone),
            }
        }
        let inode = inode(&pidfd, facts)?;
        let caller = Self {
            credentials,
            pidfd,
            inode,
            proof: Proof::Strong,
            facts,
        };
        if caller.alive() {
            Ok(caller)
        } else {
            Err(PeerError::Gone)
        }
    }

    /// The fallback of R1: start time before and after opening the descriptor must agree, and the
    /// process must still have the user that connected.
    fn by_number(
        credentials: Credentials,
        facts: KernelFacts,
        require: Require,
    ) -> Result<Self, PeerError> {
        if require == Require::Strong {
            return Err(PeerError::Unprovable);
        }
        let pid = Pid::from_raw(credentials.pid).ok_or(PeerError::Namespace)?;
        let before = start_time(credentials.pid).ok_or(PeerError::Gone)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| PeerError::Gone)?;
        let owner = rustix::fs::stat(format!("/proc/{}", credentials.pid)).ok();
        if start_time(credentials.pid) != Some(before) {
            return Err(PeerError::Gone);
        }
        // A process that is not dumpable shows as root's; any other user is another process.
        if !owner.is_some_and(|o| o.st_uid == credentials.uid || o.st_uid == 0) {
            return Err(PeerError::Mismatch);
        }
        let inode = inode(&pidfd, facts)?;
        let caller = Self {
            credentials,
            pidfd,
            inode,
            proof: Proof::Weak,
            facts,
        };
        if caller.alive() {
            Ok(caller)
        } else {
            Err(PeerError::Gone)
        }
    }

    /// Number, user and group as the socket names them: labels for the log.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        self.credentials
    }

    /// The user that connected or wrote.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.credentials.uid
    }

    /// The group that connected or wrote.
    #[must_use]
    pub fn gid(&self) -> u32 {
        self.credentials.gid
    }

    /// The process number, as a label for logs; it authorises nothing (P2).
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.credentials.pid
    }

    /// The process descriptor, for `warden` to measure.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Unique to this process for as long as the system runs: the key of caches (R9). `None` where
    /// the kernel has no such number; nothing may be remembered of the process then.
    #[must_use]
    pub fn inode(&self) -> Option<u64> {
        self.inode
    }

    /// Whether it lives in a pid namespace below ours, as every module does and no daemon.
    #[must_use]
    pub fn is_nested(&self) -> bool {
        pidfd::is_nested(&self.pidfd)
    }

    /// How well it is proved.
    #[must_use]
    pub fn proof(&self) -> Proof {
        self.proof
    }

    /// Whether it is still there. Ask after reading what is to be believed.
    #[must_use]
    pub fn alive(&self) -> bool {
        pidfd::alive(&self.pidfd)
    }

    /// The kernel's facts of it now; `None` when it is gone or the kernel does not tell.
    #[must_use]
    pub fn info(&self) -> Option<PidInfo> {
        if self.facts.pidfd_info {
            pidfd::info(&self.pidfd).ok()
        } else {
            None
        }
    }
}

fn inode(pidfd: &OwnedFd, facts: KernelFacts) -> Result<Option<u64>, PeerError> {
    let inode = facts.own_inode.then(|| pidfd::inode(pidfd));
    inode.transpose().map_err(PeerError::Kernel)
}

/// Field 22 of `/proc/PID/stat`: clock ticks from boot to start.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name is in parentheses and may hold anything, so cut after the last one.
    stat.rsplit_once(')')?
        .1
        .split_ascii_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_live_peer_is_proved_by_descriptor_and_by_number() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let facts = KernelFacts::probe();
        let own = i32::try_from(std::process::id()).unwrap();
        for facts in [facts, KernelFacts::OLD] {
            let caller = Caller::connected(&ours, facts, Require::Best).unwrap();
            assert_eq!(caller.pid(), own);
            assert!(caller.alive());
            let want = if facts.peer_pidfd {
                Proof::Strong
            } else {
                Proof::Weak
            };
            assert_eq!(caller.proof(), want);
        }
    }

    #[test]
    fn a18_an_old_kernel_is_weak_and_refused_where_proof_is_required() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let weak = Caller::connected(&ours, KernelFacts::OLD, Require::Best).unwrap();
        assert_eq!(weak.proof(), Proof::Weak);
        let strict = Caller::connected(&ours, KernelFacts::OLD, Require::Strong);
        assert!(matches!(strict, Err(PeerError::Unprovable)));
    }

    #[test]
    fn a17_a_peer_without_a_number_here_is_refused() {
        let nobody = Credentials {
            pid: 0,
            uid: 0,
            gid: 0,
        };
        for facts in [KernelFacts::probe(), KernelFacts::OLD] {
            let own = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
            let refused = Caller::writer(nobody, Some(own), facts, Require::Best);
            assert!(matches!(refused, Err(PeerError::Namespace)));
        }
        let refused = Caller::writer(nobody, None, KernelFacts::OLD, Require::Best);
        assert!(matches!(refused, Err(PeerError::Namespace)));
    }

    #[test]
    fn a_descriptor_of_another_process_than_the_named_one_is_refused() {
        let facts = KernelFacts::probe();
        if !facts.pidfd_info {
            return;
        }
        let own = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
        let named = Credentials {
            pid: 1,
            uid: 0,
            gid: 0,
        };
        let refused = Caller::writer(named, Some(own), facts, Require::Best);
        assert!(matches!(refused, Err(PeerError::Mismatch)));
    }
}
