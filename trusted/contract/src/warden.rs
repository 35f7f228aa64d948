//! What is said to `warden`, the one root process: six operations in fixed frames.
//!
//! Warden must not read JSON, and what it reads comes from a process that modules can reach. So
//! the frames are few, little-endian, bounded and canonical: each value has exactly one encoding
//! and any other bytes are refused (A60). One datagram of a sequenced-packet socket is one frame;
//! descriptors travel beside it, their number fixed by the frame. Both directions are encoded
//! and decoded here, without I/O. The other end of the wire is `local::warden`.

use std::fmt;

use crate::grant::{GrantName, Network, plain_path};
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

const MAX_PATH: usize = 4096;
const MAX_DETAIL: usize = 512;

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

const START: u8 = 0x01;
const STOP: u8 = 0x02;
const KILL: u8 = 0x03;
const STATUS: u8 = 0x04;
const LIST: u8 = 0x05;
const MEASURE: u8 = 0x06;
const STARTED: u8 = 0x81;
const DONE: u8 = 0x82;
const STATE: u8 = 0x84;
const LISTED: u8 = 0x85;
const MEASURED: u8 = 0x86;
const REFUSED: u8 = 0xff;

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

    /// The frame.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] when the environment does not fit; [`FrameError::Value`] for a
    /// grace above [`MAX_GRACE_MS`] or a system module's name with its `$`.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let mut out = Writer::default();
        let op = match self {
            Self::Start(start) => {
                out.module(&start.module)?;
                out.text(start.grant.as_str())?;
                out.byte(u8::from(start.sockets == SocketDir::Beside));
                if start.env.len() > MAX_ENV {
                    return Err(FrameError::TooLong("environment"));
                }
                out.count(start.env.len())?;
                for pair in &start.env {
                    out.text(&pair.name)?;
                    out.text(&pair.value)?;
                }
                START
            }
            Self::Stop { module, grace_ms } => {
                out.module(module)?;
                out.u32(grace(*grace_ms)?);
                STOP
            }
            Self::Kill(module) => {
                out.module(module)?;
                KILL
            }
            Self::Status(module) => {
                out.module(module)?;
                STATUS
            }
            Self::List { after } => {
                out.byte(u8::from(after.is_some()));
                if let Some(module) = after {
                    out.module(module)?;
                }
                LIST
            }
            Self::Measure => MEASURE,
        };
        out.frame(op)
    }

    /// The request in a frame.
    ///
    /// # Errors
    /// [`FrameError`] for all bytes but the one encoding of a request.
    pub fn decode(frame: &[u8]) -> Result<Self, FrameError> {
        let (op, mut body) = Reader::open(frame)?;
        let request = match op {
            START => {
                let (module, grant) = (body.module()?, body.grant()?);
                let sockets = if body.flag()? {
                    SocketDir::Beside
                } else {
                    SocketDir::Absent
                };
                let env = body.list(MAX_ENV, |body| EnvPair::new(body.text()?, body.text()?))?;
                Self::Start(Start {
                    module,
                    grant,
                    env,
                    sockets,
                })
            }
            STOP => Self::Stop {
                module: body.module()?,
                grace_ms: grace(body.u32()?)?,
            },
            KILL => Self::Kill(body.module()?),
            STATUS => Self::Status(body.module()?),
            LIST => Self::List {
                after: body.optional(Reader::module)?,
            },
            MEASURE => Self::Measure,
            _ => return Err(FrameError::Operation),
        };
        body.end(request)
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

    /// The frame.
    ///
    /// # Errors
    /// [`FrameError::TooLong`]; the detail of a refusal is cut instead.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let mut out = Writer::default();
        let op = match self {
            Self::Started(facts) => {
                out.facts(facts)?;
                STARTED
            }
            Self::Done => DONE,
            Self::Status(state) => {
                out.state(*state);
                STATE
            }
            Self::Listed { running, more } => {
                if running.len() > LIST_PAGE {
                    return Err(FrameError::TooLong("list"));
                }
                out.byte(u8::from(*more));
                out.count(running.len())?;
                running.iter().try_for_each(|facts| out.facts(facts))?;
                LISTED
            }
            Self::Measured(measured) => {
                out.measured(measured)?;
                MEASURED
            }
            Self::Refused(refusal) => {
                out.byte(refusal.reason as u8);
                out.text(&refusal.detail[..refusal.detail.floor_char_boundary(MAX_DETAIL)])?;
                REFUSED
            }
        };
        out.frame(op)
    }

    /// The reply in a frame.
    ///
    /// # Errors
    /// [`FrameError`] for all bytes but the one encoding of a reply.
    pub fn decode(frame: &[u8]) -> Result<Self, FrameError> {
        let (op, mut body) = Reader::open(frame)?;
        let reply = match op {
            STARTED => Self::Started(body.facts()?),
            DONE => Self::Done,
            STATE => Self::Status(body.state()?),
            LISTED => {
                let more = body.flag()?;
                Self::Listed {
                    running: body.list(LIST_PAGE, Reader::facts)?,
                    more,
                }
            }
            MEASURED => Self::Measured(body.measured()?),
            REFUSED => {
                let reason = Reason::decode(body.byte()?)?;
                let detail = body.text()?;
                if detail.len() > MAX_DETAIL {
                    return Err(FrameError::Value("detail"));
                }
                Self::Refused(Refusal { reason, detail })
            }
            _ => return Err(FrameError::Operation),
        };
        body.end(reply)
    }
}

fn grace(ms: u32) -> Result<u32, FrameError> {
    if ms <= MAX_GRACE_MS {
        Ok(ms)
    } else {
        Err(FrameError::Value("grace"))
    }
}

/// Only the plain spelling of a module's name is used here, so that one module has one name.
fn plain(module: &ModuleName) -> Result<&str, FrameError> {
    let name = module.as_str();
    if module.plain() == name {
        Ok(name)
    } else {
        Err(FrameError::Value("module name"))
    }
}

/// Appends values to a body.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn byte(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn count(&mut self, count: usize) -> Result<(), FrameError> {
        let count = u16::try_from(count).map_err(|_| FrameError::TooLong("list"))?;
        self.0.extend_from_slice(&count.to_le_bytes());
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), FrameError> {
        let length = u16::try_from(text.len()).map_err(|_| FrameError::TooLong("text"))?;
        self.0.extend_from_slice(&length.to_le_bytes());
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }

    fn module(&mut self, module: &ModuleName) -> Result<(), FrameError> {
        self.text(plain(module)?)
    }

    fn cgroup(&mut self, cgroup: Option<&Cgroup>) -> Result<(), FrameError> {
        self.byte(u8::from(cgroup.is_some()));
        if let Some(cgroup) = cgroup {
            self.u64(cgroup.id);
            self.text(&cgroup.path)?;
        }
        Ok(())
    }

    fn executable(&mut self, executable: &Executable) {
        self.u64(executable.dev);
        self.u64(executable.ino);
        self.0.extend_from_slice(&executable.digest);
    }

    fn state(&mut self, state: State) {
        let (kind, value) = match state {
            State::Running => (0, 0),
            State::Exited(End::Code(code)) => (1, code),
            State::Exited(End::Signal(signal)) => (2, signal),
            State::Unknown => (3, 0),
        };
        self.byte(kind);
        self.byte(value);
    }

    fn facts(&mut self, facts: &Facts) -> Result<(), FrameError> {
        self.module(&facts.module)?;
        self.text(facts.grant.as_str())?;
        self.u64(facts.epoch);
        self.u32(facts.pid);
        self.u64(facts.pid_ns);
        self.u64(facts.mount_ns);
        self.cgroup(facts.cgroup.as_ref())?;
        self.executable(&facts.executable);
        self.u32(facts.uid);
        self.u32(facts.gid);
        self.byte(match facts.network {
            Network::Host => 0,
            Network::None => 1,
        });
        self.byte(facts.weaker.0);
        Ok(())
    }

    fn measured(&mut self, measured: &Measured) -> Result<(), FrameError> {
        for value in [measured.pid, measured.tgid, measured.uid, measured.gid] {
            self.u32(value);
        }
        self.count(measured.pid_namespaces.len())?;
        measured.pid_namespaces.iter().for_each(|ns| self.u64(*ns));
        self.u64(measured.mount_ns);
        self.cgroup(measured.cgroup.as_ref())?;
        self.executable(&measured.executable);
        self.byte(measured.flags.0);
        Ok(())
    }

    fn frame(self, op: u8) -> Result<Vec<u8>, FrameError> {
        if self.0.len() > MAX_BODY {
            return Err(FrameError::TooLong("frame"));
        }
        let length = u16::try_from(self.0.len()).map_err(|_| FrameError::TooLong("frame"))?;
        let mut frame = vec![VERSION, op];
        frame.extend_from_slice(&length.to_le_bytes());
        frame.extend_from_slice(&self.0);
        Ok(frame)
    }
}

/// Takes values off a body.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn open(frame: &'a [u8]) -> Result<(u8, Self), FrameError> {
        let Some((&[version, op, low, high], body)) = frame.split_first_chunk::<HEADER>() else {
            return Err(FrameError::Length);
        };
        if version != VERSION {
            return Err(FrameError::Version);
        }
        if body.len() != usize::from(u16::from_le_bytes([low, high])) || body.len() > MAX_BODY {
            return Err(FrameError::Length);
        }
        Ok((op, Self(body)))
    }

    fn end<T>(self, value: T) -> Result<T, FrameError> {
        if self.0.is_empty() {
            Ok(value)
        } else {
            Err(FrameError::Length)
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(FrameError::Length)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, FrameError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Result<u32, FrameError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, FrameError> {
        self.array().map(u64::from_le_bytes)
    }

    fn flag(&mut self) -> Result<bool, FrameError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(FrameError::Value("flag")),
        }
    }

    fn optional<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, FrameError>,
    ) -> Result<Option<T>, FrameError> {
        if self.flag()? {
            read(self).map(Some)
        } else {
            Ok(None)
        }
    }

    fn list<T>(
        &mut self,
        most: usize,
        mut read: impl FnMut(&mut Self) -> Result<T, FrameError>,
    ) -> Result<Vec<T>, FrameError> {
        let count = usize::from(u16::from_le_bytes(self.array()?));
        if count > most {
            return Err(FrameError::Value("list"));
        }
        (0..count).map(|_| read(self)).collect()
    }

    fn text(&mut self) -> Result<String, FrameError> {
        let length = usize::from(u16::from_le_bytes(self.array()?));
        let (taken, rest) = self.0.split_at_checked(length).ok_or(FrameError::Length)?;
        self.0 = rest;
        String::from_utf8(taken.to_vec()).map_err(|_| FrameError::Value("text"))
    }

    fn module(&mut self) -> Result<ModuleName, FrameError> {
        let module = ModuleName::new(self.text()?).map_err(|_| FrameError::Value("module name"))?;
        plain(&module)?;
        Ok(module)
    }

    fn grant(&mut self) -> Result<GrantName, FrameError> {
        GrantName::new(self.text()?).map_err(|_| FrameError::Value("grant name"))
    }

    fn cgroup(&mut self) -> Result<Option<Cgroup>, FrameError> {
        self.optional(|body| {
            let (id, path) = (body.u64()?, body.text()?);
            if path.len() > MAX_PATH || plain_path(&path).is_err() {
                return Err(FrameError::Value("cgroup path"));
            }
            Ok(Cgroup { id, path })
        })
    }

    fn executable(&mut self) -> Result<Executable, FrameError> {
        Ok(Executable {
            dev: self.u64()?,
            ino: self.u64()?,
            digest: self.array()?,
        })
    }

    fn state(&mut self) -> Result<State, FrameError> {
        match self.array()? {
            [0, 0] => Ok(State::Running),
            [1, code] => Ok(State::Exited(End::Code(code))),
            [2, signal] => Ok(State::Exited(End::Signal(signal))),
            [3, 0] => Ok(State::Unknown),
            _ => Err(FrameError::Value("state")),
        }
    }

    fn facts(&mut self) -> Result<Facts, FrameError> {
        Ok(Facts {
            module: self.module()?,
            grant: self.grant()?,
            epoch: self.u64()?,
            pid: self.u32()?,
            pid_ns: self.u64()?,
            mount_ns: self.u64()?,
            cgroup: self.cgroup()?,
            executable: self.executable()?,
            uid: self.u32()?,
            gid: self.u32()?,
            network: match self.byte()? {
                0 => Network::Host,
                1 => Network::None,
                _ => return Err(FrameError::Value("network")),
            },
            weaker: Weaker::decode(self.byte()?)?,
        })
    }

    fn measured(&mut self) -> Result<Measured, FrameError> {
        Ok(Measured {
            pid: self.u32()?,
            tgid: self.u32()?,
            uid: self.u32()?,
            gid: self.u32()?,
            pid_namespaces: self.list(MAX_PID_NAMESPACES, Reader::u64)?,
            mount_ns: self.u64()?,
            cgroup: self.cgroup()?,
            executable: self.executable()?,
            flags: ExecutableFlags::decode(self.byte()?)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str) -> ModuleName {
        ModuleName::new(name).unwrap()
    }

    fn facts() -> Facts {
        Facts {
            module: module("sensor"),
            grant: GrantName::new("sensor-grant").unwrap(),
            epoch: 0x0123_4567_89ab_cdef,
            pid: 4711,
            pid_ns: 4_026_532_000,
            mount_ns: 4_026_532_001,
            cgroup: Some(Cgroup {
                id: 77,
                path: "/holdfast/sensor.holdfast".into(),
            }),
            executable: Executable {
                dev: 1,
                ino: 2,
                digest: [0xa5; 32],
            },
            uid: 70_001,
            gid: 70_001,
            network: Network::None,
            weaker: Weaker::default().with(Weaker::LANDLOCK_PARTIAL, true),
        }
    }

    fn requests() -> Vec<Request> {
        let env = vec![
            EnvPair::new("A", "1").unwrap(),
            EnvPair::new("EMPTY", "").unwrap(),
        ];
        vec![
            Request::Start(Start {
                module: module("sensor"),
                grant: GrantName::new("g").unwrap(),
                env,
                sockets: SocketDir::Beside,
            }),
            Request::Stop {
                module: module("sensor"),
                grace_ms: MAX_GRACE_MS,
            },
            Request::Kill(module("a")),
            Request::Status(module("edgeAgent")),
            Request::List { after: None },
            Request::List {
                after: Some(module("sensor")),
            },
            Request::Measure,
        ]
    }

    fn replies() -> Vec<Reply> {
        let measured = Measured {
            pid: 9,
            tgid: 9,
            uid: 1000,
            gid: 1000,
            pid_namespaces: vec![3, 2, 1],
            mount_ns: 5,
            cgroup: None,
            executable: Executable {
                dev: 1,
                ino: 2,
                digest: [7; 32],
            },
            flags: ExecutableFlags::DELETED.with(ExecutableFlags::MEMFD, true),
        };
        vec![
            Reply::Started(facts()),
            Reply::Done,
            Reply::Status(State::Running),
            Reply::Status(State::Exited(End::Code(3))),
            Reply::Status(State::Exited(End::Signal(9))),
            Reply::Status(State::Unknown),
            Reply::Listed {
                running: vec![facts(), facts()],
                more: true,
            },
            Reply::Measured(measured),
            Reply::Refused(Refusal {
                reason: Reason::Setup,
                detail: "mount proc: é".into(),
            }),
        ]
    }

    /// Each single flipped bit gives another value with exactly that encoding, or an error.
    fn a60_check<T: PartialEq + fmt::Debug>(
        value: &T,
        encode: fn(&T) -> Result<Vec<u8>, FrameError>,
        decode: fn(&[u8]) -> Result<T, FrameError>,
    ) {
        let frame = encode(value).unwrap();
        assert_eq!(&decode(&frame).unwrap(), value);
        for bit in 0..frame.len() * 8 {
            let mut flipped = frame.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(other) = decode(&flipped) {
                assert_ne!(&other, value, "bit {bit} of {value:?}");
                assert_eq!(encode(&other).unwrap(), flipped, "bit {bit} of {value:?}");
            }
        }
        for cut in 0..frame.len() {
            assert!(decode(&frame[..cut]).is_err(), "{value:?} cut at {cut}");
        }
        let longer = [frame.as_slice(), &[0]].concat();
        assert_eq!(decode(&longer).unwrap_err(), FrameError::Length);
    }

    #[test]
    fn a60_each_frame_has_one_encoding_and_other_bytes_are_refused() {
        for request in requests() {
            a60_check(&request, Request::encode, Request::decode);
        }
        for reply in replies() {
            a60_check(&reply, Reply::encode, Reply::decode);
        }
    }

    #[test]
    fn a60_values_outside_their_lists_are_refused() {
        let frame = |op: u8, body: &[u8]| {
            let length = u16::try_from(body.len()).unwrap().to_le_bytes();
            [&[VERSION, op], length.as_slice(), body].concat()
        };
        assert_eq!(
            Request::decode(&frame(0x07, b"")),
            Err(FrameError::Operation)
        );
        assert_eq!(
            Request::decode(&frame(STARTED, b"")),
            Err(FrameError::Operation)
        );
        assert_eq!(
            Request::decode(&frame(KILL, b"\x01\x00$")),
            Err(FrameError::Value("module name"))
        );
        let dollar = frame(KILL, b"\x0a\x00$edgeAgent");
        assert_eq!(
            Request::decode(&dollar),
            Err(FrameError::Value("module name"))
        );
        assert_eq!(
            Request::decode(&frame(LIST, b"\x02")),
            Err(FrameError::Value("flag"))
        );
        let grace = frame(STOP, b"\x01\x00a\xff\xff\xff\xff");
        assert_eq!(Request::decode(&grace), Err(FrameError::Value("grace")));
        assert_eq!(
            Reply::decode(&frame(STATE, &[4, 0])),
            Err(FrameError::Value("state"))
        );
        assert_eq!(
            Reply::decode(&frame(LISTED, &[0, 17, 0])),
            Err(FrameError::Value("list"))
        );
        assert_eq!(
            Request::decode(&frame(MEASURE, &[0; MAX_BODY + 1])),
            Err(FrameError::Length)
        );
    }

    #[test]
    fn a_full_page_of_the_longest_facts_fits_a_frame() {
        let mut longest = facts();
        longest.module = module(&"m".repeat(128));
        longest.grant = GrantName::new("g".repeat(128)).unwrap();
        longest.cgroup = Some(Cgroup {
            id: 1,
            path: format!("/{}", "p".repeat(400)),
        });
        let page = Reply::Listed {
            running: vec![longest; LIST_PAGE],
            more: false,
        };
        assert!(page.encode().is_ok());
    }

    #[test]
    fn too_much_environment_is_not_sent_and_values_are_not_printed() {
        let Request::Start(mut start) = requests().remove(0) else {
            panic!()
        };
        start.env = vec![EnvPair::new("SECRET", "x".repeat(5000)).unwrap(); 4];
        let request = Request::Start(start);
        assert_eq!(request.encode(), Err(FrameError::TooLong("frame")));
        assert!(!format!("{request:?}").contains("xx"));
        assert!(EnvPair::new("A=B", "").is_err() && EnvPair::new("A", "\0").is_err());
    }
}
