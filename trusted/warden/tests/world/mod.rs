//! A warden of its own in a throw-away folder, as root or as an ordinary user.

use std::fs::{self, File, Permissions};
use std::io::{PipeReader, Read, pipe};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use contract::grant::GrantName;
use contract::names::ModuleName;
use contract::warden::{EnvPair, Reason, SocketDir, Start};
use local::warden::{Running, WardenClient, WardenError};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, kill_process, pidfd_open};

/// As whom a warden runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Root,
    User(u32),
}

/// Everybody a warden can be started as from here.
pub(crate) fn everybody() -> Vec<Who> {
    let uid = geteuid().as_raw();
    if uid != 0 {
        println!("SKIPPED: warden as root needs root");
        return vec![Who::User(uid)];
    }
    vec![Who::Root, Who::User(65_533)]
}

/// Uid and gid of modules of a warden of root.
const MODULE_UID: u32 = 70_001;

pub(crate) struct World {
    pub(crate) dir: PathBuf,
    pub(crate) who: Who,
    pub(crate) cgroup_parent: String,
    pub(crate) process: Child,
    allowed: Vec<u32>,
}

impl World {
    pub(crate) fn new(who: Who) -> Self {
        Self::allowing(who, vec![geteuid().as_raw()])
    }

    pub(crate) fn allowing(who: Who, allowed: Vec<u32>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let tag = format!(
            "{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = std::env::temp_dir().join(format!("holdfast-warden-{tag}"));
        fs::create_dir(&dir).unwrap();
        let owner = match who {
            Who::Root => 0,
            Who::User(uid) => uid,
        };
        for sub in ["", "grants", "run", "sockets"] {
            fs::create_dir_all(dir.join(sub)).unwrap();
            fs::set_permissions(dir.join(sub), Permissions::from_mode(0o755)).unwrap();
            if sub != "sockets" {
                own(&dir.join(sub), owner);
            }
        }
        fs::write(dir.join("sockets/workload"), "socket here").unwrap();
        copy(
            Path::new(env!("CARGO_BIN_EXE_holdfast-warden")),
            &dir.join("warden"),
        );
        let cgroup_parent = format!("holdfast-test-{tag}");
        let process = launch(BELOW_THE_TEST, &dir, who, &cgroup_parent, &allowed);
        Self {
            dir,
            who,
            cgroup_parent,
            process,
            allowed,
        }
    }

    /// Starts another warden in the place of a killed one.
    pub(crate) fn restart(&mut self) {
        self.launch(BELOW_THE_TEST);
    }

    /// The same, with a shell for a parent: [`kill`](Self::kill) kills that.
    pub(crate) fn restart_below_a_shell(&mut self) {
        self.launch(BELOW_A_SHELL);
    }

    fn launch(&mut self, script: &str) {
        self.process = launch(
            script,
            &self.dir,
            self.who,
            &self.cgroup_parent,
            &self.allowed,
        );
    }

    /// Ends warden without a word.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("run/warden.sock")
    }

    pub(crate) fn client(&self) -> WardenClient {
        let patience = Duration::from_secs(30);
        WardenClient::connect_to(&self.socket(), &[self.owner()], patience).unwrap()
    }

    /// Warden's own user.
    fn owner(&self) -> u32 {
        if self.who == Who::Root { 0 } else { self.uid() }
    }

    pub(crate) fn uid(&self) -> u32 {
        match self.who {
            Who::Root => MODULE_UID,
            Who::User(uid) => uid,
        }
    }

    /// A folder the module's user may write by its mode.
    pub(crate) fn folder(&self, name: &str) -> String {
        let path = self.dir.join(name);
        fs::create_dir(&path).unwrap();
        own(&path, self.uid());
        path.to_str().unwrap().to_owned()
    }

    /// A grant for a program, with more lines; readable text in TOML.
    pub(crate) fn grant_program(
        &self,
        name: &str,
        program: &Path,
        args: &[&str],
        more: &str,
    ) -> PathBuf {
        let gid = match self.who {
            Who::User(uid) if uid == geteuid().as_raw() => rustix::process::getegid().as_raw(),
            _ => self.uid(),
        };
        let text = format!(
            "executable = {:?}\nsha256 = '{}'\nargs = {args:?}\nuid = {}\ngid = {gid}\n{more}\n",
            program.to_str().unwrap(),
            hex(&digest(program)),
            self.uid(),
        );
        let path = self.dir.join(format!("grants/{name}.toml"));
        self.write(&path, &text);
        path
    }

    /// A grant for a line of shell, which may run the system's programs.
    pub(crate) fn grant(&self, name: &str, script: &str, more: &str) -> PathBuf {
        let more = format!("execute = ['/usr/bin']\n{more}");
        self.grant_program(name, &shell(), &["-c", script], &more)
    }

    /// A file of warden's user.
    pub(crate) fn write(&self, path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
        own(path, if self.who == Who::Root { 0 } else { self.uid() });
    }

    /// Starts the module under the grant of the same name.
    pub(crate) fn start(&self, name: &str, env: &[(&str, &str)]) -> Result<Module, WardenError> {
        let (output, write) = pipe().unwrap();
        let sockets = File::open(self.dir.join("sockets")).unwrap();
        let start = Start {
            module: module(name),
            grant: GrantName::new(name).unwrap(),
            env: env
                .iter()
                .map(|(name, value)| EnvPair::new(*name, *value).unwrap())
                .collect(),
            sockets: SocketDir::Beside,
        };
        let write = write.as_fd();
        let running = self
            .client()
            .start(&start, write, write, Some(sockets.as_fd()))?;
        Ok(Module { running, output })
    }

    /// The reason why a module does not start.
    pub(crate) fn refusal(&self, name: &str) -> Reason {
        match self.start(name, &[]) {
            Err(WardenError::Refused(refusal)) => refusal.reason,
            Err(error) => panic!("{name}: {error:?}"),
            Ok(_) => panic!("{name} started"),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.process);
        let _ = kill_process(pid, Signal::TERM);
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A started module and what it says.
pub(crate) struct Module {
    pub(crate) running: Running,
    output: PipeReader,
}

impl Module {
    /// All it says, until it and all its descendants have ended and warden can tell.
    pub(crate) fn all(mut self) -> String {
        let mut text = String::new();
        self.output.read_to_string(&mut text).unwrap();
        self.wait();
        text
    }

    /// Its next line.
    pub(crate) fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while self.output.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    pub(crate) fn wait(&self) {
        wait(self.running.pidfd.as_fd());
    }

    /// The program itself, the child of the first process.
    pub(crate) fn program_pid(&self) -> u32 {
        child(self.running.facts.pid)
    }

    pub(crate) fn program(&self) -> OwnedFd {
        pidfd(self.program_pid())
    }
}

/// The first child of a process.
pub(crate) fn child(pid: u32) -> u32 {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.split_whitespace().next().unwrap().parse().unwrap()
}

pub(crate) fn pidfd(pid: u32) -> OwnedFd {
    let pid = Pid::from_raw(pid.cast_signed()).unwrap();
    pidfd_open(pid, PidfdFlags::empty()).unwrap()
}

/// Copies a program by another process: a descriptor open for writing here could be inherited by
/// a child of another test in this moment, and a program open for writing is not executed.
pub(crate) fn copy(from: &Path, to: &Path) {
    assert!(
        Command::new("cp")
            .args([from, to])
            .status()
            .unwrap()
            .success()
    );
}

pub(crate) fn wait(pidfd: BorrowedFd<'_>) {
    poll(&mut [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)], None).unwrap();
}

pub(crate) fn module(name: &str) -> ModuleName {
    ModuleName::new(name).unwrap()
}

/// The real file behind `/bin/sh`.
pub(crate) fn shell() -> PathBuf {
    fs::canonicalize("/bin/sh").unwrap()
}

pub(crate) fn digest(path: &Path) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &fs::read(path).unwrap());
    digest.as_ref().try_into().unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn own(path: &Path, uid: u32) {
    if geteuid().is_root() {
        chown(path, Some(uid), Some(uid)).unwrap();
    }
}

/// An odd umask of the starter must not matter.
const BELOW_THE_TEST: &str = "umask 077; exec \"$@\" --parent $PPID";
const BELOW_A_SHELL: &str = "\"$@\" --parent $$ & wait";

fn launch(script: &str, dir: &Path, who: Who, cgroup_parent: &str, allowed: &[u32]) -> Child {
    let config = dir.join("warden.toml");
    let text = format!(
        "socket = {:?}\nallowed_uids = {allowed:?}\ngrants = {:?}\ncgroup_parent = '{cgroup_parent}'\n\
         minimum_uid = 60000\n",
        dir.join("run/warden.sock"),
        dir.join("grants"),
    );
    fs::write(&config, text).unwrap();
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&watch, dir.join("run"), inotify::WatchFlags::MOVED_TO).unwrap();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "sh"]);
    if let Who::User(uid) = who
        && uid != geteuid().as_raw()
    {
        own(&config, uid);
        let ids = [format!("--reuid={uid}"), format!("--regid={uid}")];
        command.arg("setpriv").args(ids).arg("--clear-groups");
    }
    command.arg(dir.join("warden")).arg("--config").arg(&config);
    let process = command.spawn().unwrap();
    let pidfd = pidfd_open(Pid::from_child(&process), PidfdFlags::empty()).unwrap();
    let mut fds = [&watch, &pidfd].map(|fd| PollFd::new(fd, PollFlags::IN));
    poll(&mut fds, None).unwrap();
    assert!(fds[1].revents().is_empty(), "warden ended at once");
    process
}
