//! The one encoding of each value: bodies are written and read here, byte by byte (A60).

use super::{
    Cgroup, End, EnvPair, Executable, ExecutableFlags, Facts, FrameError, HEADER, LIST_PAGE,
    MAX_BODY, MAX_ENV, MAX_GRACE_MS, MAX_PID_NAMESPACES, Measured, Reason, Refusal, Reply, Request,
    SocketDir, Start, State, VERSION, Weaker,
};
use crate::grant::{GrantName, Network, plain_path};
use crate::names::ModuleName;

const MAX_PATH: usize = 4096;
const MAX_DETAIL: usize = 512;

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
    use std::fmt;

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
