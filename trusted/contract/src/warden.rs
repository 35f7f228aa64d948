//! What is said to `warden`, the one root process: six operations in fixed frames.
//!
//! Warden must not read JSON, and what it reads comes from a process that modules can reach. So
//! the frames are few, little-endian, bounded and canonical: each value has exactly one encoding
//! and any other bytes are refused (A60). One datagram of a sequenced-packet socket is one frame;
//! descriptors travel beside it, their number fixed by the frame. Both directions are encoded
//! and decoded here, without I/O. The other end of the wire is `local::warden`.

mod frame;

use std::fmt;

use crate::grant::{GrantName, Network};
use crate::names::ModuleName;

/// First byte of each frame.
pub const VERSION: u8 = 1;
/// Version, operation and length of the body.
pub const HEADER: usize = 4;
/// Most bytes after the header.
pub const MAX_BODY: usize = 16 * 1024;
/// A channel is closed after this many bad frames.
pub const MAX_BAD_FRAMES: u8 = 3;
/// Most modules in one page of a list, so that page and descriptors fit one datagram.
pub const LIST_PAGE: usize = 16;
/// Most descriptors beside one frame.
pub const MAX_DESCRIPTORS: usize = LIST_PAGE;
/// Longest wait between the request to end and the end by force.
pub const MAX_GRACE_MS: u32 = 600_000;
/// Most environment variables given to a module.
pub const MAX_ENV: usize = 128;
/// Deepest nesting of pid namespaces the kernel allows.
pub const MAX_PID_NAMESPACES: usize = 33;

/// A frame that is not exactly as described here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Shorter than it says, or longer.
    #[error("frame length does not match")]
    Length,
    /// Another version of the frames.
    #[error("frame version is not {VERSION}")]
    Version,
    /// Not one of the operations.
    #[error("unknown operation")]
    Operation,
    /// A value that its type does not have, or one in another than its only encoding.
    #[error("invalid {0}")]
    Value(&'static str),
    /// A value too long to send.
    #[error("{0} is too long to send")]
    TooLong(&'static str),
}

/// What warden is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Start a module. Beside it: descriptors for its standard output and standard error, then
    /// the directory that becomes its `/run/iotedge`, if [`Start::sockets`] says so.
    Start(Start),
    /// End a module: a request first, by force after the grace. Answered at once.
    Stop {
        /// The module.
        module: ModuleName,
        /// Milliseconds of grace.
        grace_ms: u32,
    },
    /// End a module by force.
    Kill(ModuleName),
    /// Ask how a module is, or how it ended.
    Status(ModuleName),
    /// The running modules in order of name, a page at a time, each with its process descriptor.
    List {
        /// Last name of the page before.
        after: Option<ModuleName>,
    },
    /// Facts of the process whose descriptor travels beside this.
    Measure,
}

/// What to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The module it becomes.
    pub module: ModuleName,
    /// The grant it starts under.
    pub grant: GrantName,
    /// Its environment, besides a fixed `PATH` (R29).
    pub env: Vec<EnvPair>,
    /// Whether the directory for its sockets is beside the frame.
    pub sockets: SocketDir,
}

/// Whether a module gets a `/run/iotedge`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketDir {
    /// No descriptor: it gets an empty directory.
    Absent,
    /// The third descriptor beside the frame.
    Beside,
}

/// One environment variable. Its value may be a module's secret, so it is not printed (AS14).
#[derive(Clone, PartialEq, Eq)]
pub struct EnvPair {
    name: String,
    value: String,
}

impl EnvPair {
    /// Checks both halves.
    ///
    /// # Errors
    /// [`FrameError::Value`] for an empty name, one with `=`, or a NUL in either.
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Result<Self, FrameError> {
        let (name, value) = (name.into(), value.into());
        let fits = !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
        if fits {
            Ok(Self { name, value })
        } else {
            Err(FrameError::Value("environment variable"))
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its value.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }
}

impl fmt::Debug for EnvPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=...", self.name)
    }
}

/// What warden answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Started; its process descriptor is beside this.
    Started(Facts),
    /// The end has been asked for; the process descriptor tells when it has come.
    Done,
    /// How a module is.
    Status(State),
    /// One page; a process descriptor for each is beside this, in the same order.
    Listed {
        /// At most [`LIST_PAGE`].
        running: Vec<Facts>,
        /// Whether another page follows.
        more: bool,
    },
    /// Facts of the process asked about, true while its descriptor has not fired.
    Measured(Measured),
    /// Not done.
    Refused(Refusal),
}

/// How a module is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It runs.
    Running,
    /// It ended, and has not been started again.
    Exited(End),
    /// Never started here, or forgotten.
    Unknown,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, with this code.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

/// What is registered of a module at its start (R3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The module.
    pub module: ModuleName,
    /// The grant it was started under.
    pub grant: GrantName,
    /// Random number of this start.
    pub epoch: u64,
    /// Its first process, as warden numbers it. A label, never a proof (K1).
    pub pid: u32,
    /// Its pid namespace.
    pub pid_ns: u64,
    /// Its mount namespace.
    pub mount_ns: u64,
    /// Its cgroup, where there is one.
    pub cgroup: Option<Cgroup>,
    /// The program, as measured and as executed.
    pub executable: Executable,
    /// Its user id.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
    /// What it sees of the network.
    pub network: Network,
    /// What the platform or the standing of warden did not offer.
    pub weaker: Weaker,
}

/// A cgroup of the unified hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// Its id: the inode of its directory.
    pub id: u64,
    /// Its path below the root of the hierarchy.
    pub path: String,
}

/// A program's file and its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Executable {
    /// Device of its file system.
    pub dev: u64,
    /// Its inode.
    pub ino: u64,
    /// SHA-256 of its bytes.
    pub digest: [u8; 32],
}

/// Facts of any process (R2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    /// The process, as warden numbers it.
    pub pid: u32,
    /// Its thread group.
    pub tgid: u32,
    /// Its effective user id.
    pub uid: u32,
    /// Its effective group id.
    pub gid: u32,
    /// Its pid namespace and those it lies in, innermost first, up to warden's own.
    pub pid_namespaces: Vec<u64>,
    /// Its mount namespace.
    pub mount_ns: u64,
    /// Its cgroup in the unified hierarchy, where there is one.
    pub cgroup: Option<Cgroup>,
    /// The program it executes now (K7).
    pub executable: Executable,
    /// What is odd about that program's file.
    pub flags: ExecutableFlags,
}

/// Defines a closed set of flags in one byte: unknown bits do not decode.
macro_rules! flags {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $($(#[$flag_doc:meta])* $flag:ident = $bit:literal),+ $(,)?) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct $name(u8);

        impl $name {
            $($(#[$flag_doc])* pub const $flag: Self = Self(1 << $bit);)+
            const NAMED: &[(Self, &str)] = &[$((Self::$flag, stringify!($flag))),+];

            /// Whether all flags of `other` are set.
            #[must_use]
            pub fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// Whether no flag is set.
            #[must_use]
            pub fn is_empty(self) -> bool {
                self.0 == 0
            }

            /// This and the flags of `other`, if `holds`.
            #[must_use]
            pub fn with(self, other: Self, holds: bool) -> Self {
                if holds { Self(self.0 | other.0) } else { self }
            }

            /// Names of the flags that are set.
            pub fn names(self) -> impl Iterator<Item = &'static str> {
                Self::NAMED.iter().filter(move |(flag, _)| self.contains(*flag)).map(|(_, name)| *name)
            }

            fn decode(bits: u8) -> Result<Self, FrameError> {
                let known = Self::NAMED.iter().fold(0, |all, (flag, _)| all | flag.0);
                if bits & !known == 0 { Ok(Self(bits)) } else { Err(FrameError::Value($kind)) }
            }
        }
    };
}

flags!(
    /// What is weaker about a started module than it would be elsewhere.
    Weaker, "weaker",
    /// No cgroup of its own: attestation by namespace alone.
    CGROUP_ABSENT = 0,
    /// It shares its user id with warden and with the other modules.
    UID_SHARED = 1,
    /// The kernel has no Landlock: only file modes limit what it reaches.
    LANDLOCK_ABSENT = 2,
    /// The kernel's Landlock is older than the rules known here.
    LANDLOCK_PARTIAL = 3,
);

flags!(
    /// What is odd about the file of a measured program (A7).
    ExecutableFlags, "executable flags",
    /// It lives in memory only.
    MEMFD = 0,
    /// It has no name any more.
    DELETED = 1,
    /// It does not lie on the mount that is the process's root. True also for the program that
    /// warden itself started from a descriptor: compare [`Executable`] first.
    OTHER_MOUNT = 2,
    /// No program that warden has started: its bytes were not read, and the digest is all zeros.
    NOT_READ = 3,
);

/// Why not, and a sentence for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The kind.
    pub reason: Reason,
    /// What happened, for an operator.
    pub detail: String,
}

/// Defines an enum whose variants are single bytes on the wire.
macro_rules! byte_enum {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $($(#[$variant_doc:meta])* $variant:ident = $byte:literal),+ $(,)?) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant = $byte),+
        }

        impl $name {
            fn decode(byte: u8) -> Result<Self, FrameError> {
                match byte {
                    $($byte => Ok(Self::$variant),)+
                    _ => Err(FrameError::Value($kind)),
                }
            }
        }
    };
}

byte_enum!(
    /// Kinds of refusal.
    Reason, "reason",
    /// The frame or the descriptors beside it are not as described.
    BadFrame = 1,
    /// No such module runs.
    NotRunning = 2,
    /// A module of that name runs already.
    AlreadyRunning = 3,
    /// As many modules as allowed run already.
    Full = 4,
    /// There is no grant of that name.
    UnknownGrant = 5,
    /// The grant, or a directory above it, could be changed by others (A89).
    UnguardedGrant = 6,
    /// The grant is not in form, or asks for ids that may not be given.
    InvalidGrant = 7,
    /// The program cannot be used: missing, no program, or changeable by others.
    Executable = 8,
    /// The program's bytes are not those of the grant.
    Digest = 9,
    /// A step of the start failed.
    Setup = 10,
    /// The process measured is gone: nothing known of it counts.
    Gone = 11,
    /// The kernel does not show that process to warden.
    Hidden = 12,
    /// The program is too large to be measured.
    TooLarge = 13,
);

impl Request {
    /// How many descriptors must be beside this frame.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        match self {
            Self::Start(Start {
                sockets: SocketDir::Beside,
                ..
            }) => 3,
            Self::Start(_) => 2,
            Self::Measure => 1,
            _ => 0,
        }
    }
}

impl Reply {
    /// How many descriptors must be beside this frame.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        match self {
            Self::Started(_) => 1,
            Self::Listed { running, .. } => running.len(),
            _ => 0,
        }
    }
}
