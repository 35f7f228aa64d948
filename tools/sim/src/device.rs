//! A whole device in a throw-away folder: keyd, identityd, warden and runtimed as real processes,
//! with puppets for modules ([`shim::puppet`]).
//!
//! As root each daemon and each module has a numeric user of its own; as an ordinary user
//! everything is that user and modules are told apart by their namespaces alone. Dropping it ends
//! every process by its own descriptor and removes the folder and the control groups. Nothing here
//! sleeps: it waits for sockets and files by the kernel's notice. Where it differs from
//! [`crate::stage`]: users are separate, modules are any, and processes outside can be anywhere.
#![expect(
    clippy::disallowed_methods,
    reason = "builds, starts and removes a throw-away device"
)]

mod settings;

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use contract::audit::{Event, Record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use shim::channel::Meeting;
use shim::puppet::Puppet;

/// Any error that keeps a device from running.
pub type Failure = Box<dyn std::error::Error>;

/// How long anything may take to come up or to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// Where user numbers are taken from, as root: above what distributions and containers give out.
const FIRST_UID: u32 = 0x6f80_0000;

/// One module.
#[derive(Debug, Clone)]
pub struct Module {
    /// Its name; `edgeAgent` is the agent.
    pub name: &'static str,
    /// `container`, `image` or `measured`.
    pub strictness: &'static str,
}

/// How a device is set up.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The modules, all of them puppets.
    pub modules: Vec<Module>,
    /// Whether callers must be proved by process descriptor (A18).
    pub require_strong: bool,
    /// Words of `holdfast-puppet` before a daemon is run, or `all`; those of `place` come last.
    pub tricks: Vec<(&'static str, &'static str)>,
    /// Environment of every daemon.
    pub environment: Vec<(String, String)>,
}

impl Plan {
    /// A device with these modules, attested as by default.
    #[must_use]
    pub fn with(names: &[&'static str]) -> Self {
        let module = |name: &&'static str| Module {
            name,
            strictness: "image",
        };
        Self {
            modules: names.iter().map(module).collect(),
            ..Self::default()
        }
    }

    /// The same with this strictness for each module.
    #[must_use]
    pub fn strictness(mut self, strictness: &'static str) -> Self {
        for module in &mut self.modules {
            module.strictness = strictness;
        }
        self
    }
}

/// User numbers.
#[derive(Debug, Clone, Copy)]
pub struct Users {
    /// Whether each daemon and module has its own.
    pub separate: bool,
    /// Group of the daemons; its members may open their sockets.
    pub services: u32,
    /// Of `keyd`.
    pub keyd: u32,
    /// Of `identityd`.
    pub identityd: u32,
    /// Of `runtimed`.
    pub runtimed: u32,
    /// Of nobody on this device.
    pub stranger: u32,
    /// Of the first module; the others follow.
    first_module: u32,
}

impl Users {
    fn choose(number: u32) -> Self {
        let own = rustix::process::geteuid().as_raw();
        if own != 0 {
            return Self {
                separate: false,
                services: rustix::process::getegid().as_raw(),
                keyd: own,
                identityd: own,
                runtimed: own,
                stranger: own,
                first_module: own,
            };
        }
        let first = FIRST_UID + (std::process::id() % 1024) * 1024 + (number % 32) * 32;
        Self {
            separate: true,
            services: first,
            keyd: first + 1,
            identityd: first + 2,
            runtimed: first + 3,
            stranger: first + 4,
            first_module: first + 5,
        }
    }

    /// Of the module at this place in the plan.
    #[must_use]
    pub fn module(&self, index: usize) -> u32 {
        let offset = u32::try_from(index).unwrap_or(0);
        self.first_module + if self.separate { offset } else { 0 }
    }
}

/// A running device.
pub struct Device {
    folder: PathBuf,
    plan: Plan,
    users: Users,
    daemons: Vec<(&'static str, Child)>,
    outsiders: Vec<Child>,
    meeting: Meeting,
    /// Puppets that have announced themselves before somebody asked for them.
    waiting: Vec<Puppet>,
}

/// The daemons, in the order of their start.
pub const DAEMONS: [&str; 4] = ["keyd", "identityd", "warden", "runtimed"];

impl Device {
    /// Starts it; returns when the last daemon listens.
    ///
    /// # Errors
    /// [`Failure`] that names the program that is not built or the daemon that does not start;
    /// what was started is ended.
    pub fn start(plan: Plan) -> Result<Self, Failure> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("holdfast-device-{}-{number}", std::process::id());
        let folder = Path::new("/tmp").join(name);
        fs::DirBuilder::new().mode(0o755).create(&folder)?;
        let puppets = folder.join("puppets");
        fs::create_dir(&puppets)?;
        for path in [&folder, &puppets] {
            set_mode(path, 0o755)?;
        }
        let meeting = Meeting::open(&puppets.join("control"))?;
        set_mode(&puppets.join("control"), 0o666)?;
        let mut device = Self {
            folder,
            plan,
            users: Users::choose(number),
            daemons: Vec::new(),
            outsiders: Vec::new(),
            meeting,
            waiting: Vec::new(),
        };
        device.folders()?;
        device.configure()?;
        for name in DAEMONS {
            device.start_daemon(name)?;
        }
        Ok(device)
    }

    /// Who is who.
    #[must_use]
    pub fn users(&self) -> Users {
        self.users
    }

    /// A path in the folder.
    #[must_use]
    pub fn path(&self, below: &str) -> PathBuf {
        self.folder.join(below)
    }

    /// A module's socket, as a process outside finds it.
    #[must_use]
    pub fn workload(&self, module: &str) -> PathBuf {
        self.path(&format!("runtimed/mnt/{module}/workload.sock"))
    }

    /// The socket of an API: `key`, `certificate`, `identity` or `management`.
    #[must_use]
    pub fn socket(&self, api: &str) -> PathBuf {
        match api {
            "key" => self.path("run-keyd/keyd.sock"),
            "certificate" => self.path("run-identityd/certd.sock"),
            "identity" => self.path("run-identityd/identityd.sock"),
            _ => self.path("run-runtimed/mgmt.sock"),
        }
    }

    /// The folder of the control group that a module has; `None` where it has none.
    #[must_use]
    pub fn control_group(&self, module: &str) -> Option<PathBuf> {
        let group = control_groups()?.join(self.name());
        let group = group.join(format!("{module}.holdfast"));
        group.is_dir().then_some(group)
    }

    /// The name of the folder, also of the control group.
    #[must_use]
    pub fn name(&self) -> String {
        let name = self.folder.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// A daemon's process.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self, daemon: &str) -> Result<Pid, Failure> {
        let found = self.daemons.iter().find(|(name, _)| *name == daemon);
        let pid = found.and_then(|(_, child)| Pid::from_raw(i32::try_from(child.id()).ok()?));
        pid.ok_or_else(|| format!("{daemon} does not run").into())
    }

    /// Stops a daemon in its tracks, or lets it go on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, daemon: &str, signal: Signal) -> Result<(), Failure> {
        Ok(kill_process(self.pid(daemon)?, signal)?)
    }

    /// Waits for a puppet that announces itself with this label; a module's is its name.
    ///
    /// # Errors
    /// When it does not come, with the last words of the daemons.
    pub fn puppet(&mut self, label: &str) -> Result<Puppet, Failure> {
        loop {
            if let Some(at) = self.waiting.iter().position(|one| one.label == label) {
                return Ok(self.waiting.remove(at));
            }
            let met = self.meeting.accept();
            let (pid, channel) = met.map_err(|error| {
                let words: Vec<_> = DAEMONS.iter().map(|name| self.log(name)).collect();
                format!("no puppet {label:?} came: {error}\n{}", words.concat())
            })?;
            self.waiting.push(Puppet::meet(pid, channel)?);
        }
    }

    /// A puppet outside of any module, put where `place` says (words of `holdfast-puppet place`).
    ///
    /// # Errors
    /// [`Failure`]; many places need root.
    pub fn outsider(&mut self, label: &str, place: &[String]) -> Result<Puppet, Failure> {
        let mut command = Command::new(self.path("bin/holdfast-puppet"));
        if !place.is_empty() {
            command.arg("place").args(place);
        }
        command
            .arg("be")
            .arg(self.path("puppets/control"))
            .arg(label)
            .env_clear()
            .stdin(Stdio::null());
        self.outsiders.push(command.spawn()?);
        self.puppet(label)
    }

    /// Lets everybody reach every module's socket, as a wrong mount or mode would.
    ///
    /// # Errors
    /// As the system says.
    pub fn expose_sockets(&self) -> io::Result<()> {
        set_mode(&self.path("runtimed/mnt"), 0o755)
    }

    /// Waits until a folder holds a file whose name begins like this.
    ///
    /// # Errors
    /// When it does not come.
    pub fn wait_for_file(&self, folder: &str, begin: &str) -> Result<(), Failure> {
        let folder = self.path(folder);
        let watch = watch(&folder)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            for entry in fs::read_dir(&folder)? {
                if entry?.file_name().to_string_lossy().starts_with(begin) {
                    return Ok(());
                }
            }
            if !wait(&[&watch], deadline)? {
                return Err(format!("no {begin} in {}", folder.display()).into());
            }
        }
    }

    /// Takes the outsiders that have ended off the process table, so that their numbers are free.
    ///
    /// # Errors
    /// As the system says.
    pub fn reap_outsiders(&mut self) -> io::Result<()> {
        for mut child in std::mem::take(&mut self.outsiders) {
            if child.try_wait()?.is_none() {
                self.outsiders.push(child);
            }
        }
        Ok(())
    }

    /// What a daemon or a module has written.
    #[must_use]
    pub fn log(&self, name: &str) -> String {
        let own = self.path(&format!("log/{name}.log"));
        let module = self.path(&format!("runtimed/logs/{name}.log"));
        let text = fs::read(own).or_else(|_| fs::read(module));
        String::from_utf8_lossy(&text.unwrap_or_default()).into_owned()
    }

    /// The records of a daemon's audit log so far. A line that is no record is an error.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn audit(&self, daemon: &str) -> Result<Vec<Record>, Failure> {
        let home = match daemon {
            "keyd" => "keyd/state",
            other => other,
        };
        let mut segments: Vec<_> = fs::read_dir(self.path(home).join("audit"))?
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<_>>()?;
        segments.retain(|path| path.extension().is_some_and(|kind| kind == "log"));
        segments.sort();
        let mut records = Vec::new();
        for path in segments {
            for line in fs::read(&path)?.split_inclusive(|byte| *byte == b'\n') {
                let text = line.strip_suffix(b"\n").unwrap_or(line);
                let record = Record::parse(text).ok_or_else(|| {
                    format!(
                        "no record: {}",
                        String::from_utf8_lossy(text).escape_debug()
                    )
                })?;
                records.push(record);
            }
        }
        Ok(records)
    }

    /// The reasons that `runtimed` has recorded for this event.
    ///
    /// # Errors
    /// As [`Self::audit`].
    pub fn reasons(&self, event: Event) -> Result<Vec<String>, Failure> {
        let records = self.audit("runtimed")?.into_iter();
        Ok(records
            .filter(|record| record.entry.event == event)
            .map(|record| record.entry.reason)
            .collect())
    }

    /// Starts a daemon and waits until it listens.
    ///
    /// # Errors
    /// With the daemon's last words.
    pub fn start_daemon(&mut self, name: &'static str) -> Result<(), Failure> {
        let (users, log) = (self.users, self.path(&format!("log/{name}.log")));
        let ids = match name {
            "keyd" => Some((users.keyd, users.services)),
            "identityd" => Some((users.identityd, users.services)),
            "runtimed" => Some((users.runtimed, users.services)),
            _ => None,
        };
        let tricks = self.plan.tricks.iter();
        let mut words: Vec<String> = tricks
            .filter(|(daemon, _)| *daemon == name || *daemon == "all")
            .flat_map(|(_, words)| words.split(' ').map(str::to_owned))
            .collect();
        // Whoever places the process is its parent, gives it its ids, and has it end with itself.
        let placed = words.iter().any(|word| word == "place");
        if let (true, true, Some((uid, gid))) = (placed, users.separate, ids) {
            words.extend([format!("uid={uid}"), format!("gid={gid}")]);
        }
        let program = self.path(&format!("bin/holdfast-{name}"));
        let mut command = if words.is_empty() {
            Command::new(program)
        } else {
            let mut command = Command::new(self.path("bin/holdfast-puppet"));
            command.args(words).arg("run").arg(program);
            command
        };
        let output = File::options().append(true).create(true).open(&log)?;
        command
            .arg("--config")
            .arg(self.path(&format!("config/{name}.toml")))
            .env_clear()
            .envs(self.plan.environment.iter().cloned())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        if !placed {
            command.args(["--parent", &std::process::id().to_string()]);
            if let Some((uid, gid)) = ids.filter(|_| users.separate) {
                command.uid(uid).gid(gid);
            }
        }
        if name == "identityd" {
            command
                .arg("--certificates")
                .arg(self.path("config/certd.toml"));
        }
        let socket = match name {
            "keyd" => self.socket("key"),
            "identityd" => self.socket("identity"),
            "runtimed" => self.socket("management"),
            _ => self.path("run-warden/warden.sock"),
        };
        let folder = socket.parent().unwrap_or(&self.folder).to_owned();
        let watch = watch(&folder)?;
        let child = command.spawn()?;
        let pid = Pid::from_raw(i32::try_from(child.id())?).ok_or("no number")?;
        let ended = pidfd_open(pid, PidfdFlags::empty())?;
        self.daemons.push((name, child));
        // Warden's socket speaks packets; each is renamed into place once it listens.
        let listens = || match name {
            "warden" => socket.exists(),
            _ => UnixStream::connect(&socket).is_ok(),
        };
        let deadline = Instant::now() + PATIENCE;
        while !listens() {
            if !wait(&[&watch, &ended], deadline)? || !alive(&ended) {
                return Err(format!("{name} does not listen: {}", self.log(name)).into());
            }
        }
        Ok(())
    }

    /// Ends a daemon and waits for its end.
    ///
    /// # Errors
    /// As the system says.
    pub fn stop_daemon(&mut self, name: &str) -> Result<(), Failure> {
        while let Some(at) = self.daemons.iter().position(|(one, _)| *one == name) {
            end(&mut self.daemons.remove(at).1);
        }
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        for mut child in self.outsiders.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
        // In the opposite order, so that nobody ends before those who need him.
        for (_, mut child) in self.daemons.drain(..).rev() {
            end(&mut child);
        }
        let _ = fs::remove_dir_all(&self.folder);
        if let Some(groups) = control_groups() {
            let parent = groups.join(self.name());
            for group in fs::read_dir(&parent).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(group.path());
            }
            let _ = fs::remove_dir(parent);
        }
    }
}

/// Asks a process to end, and makes it after a while.
fn end(child: &mut Child) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let Some((pid, ended)) =
        pid.and_then(|pid| Some((pid, pidfd_open(pid, PidfdFlags::empty()).ok()?)))
    else {
        let _ = child.wait();
        return;
    };
    // It is ours and not reaped, so the number is still its own. One that was stopped goes on.
    let _ = kill_process(pid, Signal::TERM);
    let _ = kill_process(pid, Signal::CONT);
    if !wait(&[&ended], Instant::now() + PATIENCE).unwrap_or(false) {
        let _ = child.kill();
    }
    let _ = child.wait();
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn watch(folder: &Path) -> io::Result<OwnedFd> {
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let watch = inotify::init(flags)?;
    let what = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&watch, folder, what)?;
    Ok(watch)
}

fn alive(pidfd: &OwnedFd) -> bool {
    local::os::pidfd::alive(pidfd)
}

/// Waits until one of these is readable; false at the deadline.
fn wait(descriptors: &[&OwnedFd], deadline: Instant) -> io::Result<bool> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(0),
        tv_nsec: i64::from(left.subsec_nanos()),
    };
    let mut polled: Vec<_> = descriptors
        .iter()
        .map(|one| PollFd::new(*one, PollFlags::IN))
        .collect();
    let ready = poll(&mut polled, Some(&timeout))? > 0;
    // Notices are only a reason to look; a process descriptor has nothing to read.
    let mut buffer = [0; 4096];
    for one in descriptors {
        while rustix::io::read(one, &mut buffer).is_ok_and(|length| length > 0) {}
    }
    Ok(ready)
}

/// Where the second version of control groups is mounted, as a whole.
#[must_use]
pub fn control_groups() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    let mut fields = line.split(' ').skip(3);
    let (root, at) = (fields.next()?, fields.next()?);
    (root == "/").then(|| PathBuf::from(at))
}

/// Where the programs of this build are: beside the one that runs.
fn programs() -> io::Result<PathBuf> {
    crate::stage::programs()
}
