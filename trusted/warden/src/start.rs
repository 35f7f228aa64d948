//! One start: read the grant, measure the program, make the process, tell the facts (R3, R49).
//!
//! The grant is read anew each time and the program that runs is the descriptor that was
//! measured. If any step fails nothing of the module is left.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use contract::grant::{Grant, Standing};
use contract::warden::{End, Executable, Facts, Reason, Refusal, Start, Weaker};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    PidfdFlags, Signal, WaitId, WaitIdOptions, fchdir, getpid, pidfd_open, pidfd_send_signal,
    waitid,
};

use crate::cgroup::Cgroups;
use crate::child::{self, Ends, Sockets};
use crate::config::Config;
use crate::digest::{DigestError, Digests, Stamp};
use crate::guarded::{self, GuardError};
use crate::measure;
use crate::os::{landlock, process};
use crate::plan::{Plan, plan};

/// A module's set-up that takes longer is given up.
const SETUP_SECONDS: i64 = 10;

/// A module that runs.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) facts: Facts,
    pub(crate) pidfd: OwnedFd,
    /// Where its first process reports the program's end.
    status: OwnedFd,
}

impl Module {
    /// Asks it to end.
    pub(crate) fn signal(&self, signal: Signal) {
        // It may have ended in this moment, which is what was wanted.
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Takes it off the process table, if it has ended.
    pub(crate) fn reap(&self) -> Option<End> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Ok(Some(_)) => Some(child::end(self.status.as_fd())),
            Ok(None) => None,
            // Nothing to wait for any more: it cannot be running.
            Err(_) => Some(End::Signal(9)),
        }
    }

    /// Ends it by force and waits until that is done.
    pub(crate) fn destroy(&self) -> End {
        self.signal(Signal::KILL);
        let _ = poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], None);
        self.reap().unwrap_or(End::Signal(9))
    }
}

/// Starts a module; `beside` are the descriptors that came with the request.
pub(crate) fn start(
    config: &Config,
    cgroups: Option<&Cgroups>,
    digests: &mut Digests,
    start: &Start,
    beside: &[OwnedFd],
) -> Result<Module, Refusal> {
    let standing = config.standing();
    let grant = read_grant(&config.grants, start, standing)?;
    let plan = plan(&grant, start, standing, landlock::abi())?;
    let (program, executable, stamp) = open_program(&grant, standing, digests)?;
    let [stdout, stderr, sockets @ ..] = beside else {
        return Err(refuse(Reason::BadFrame, "output descriptors are missing"));
    };
    let sockets = sockets
        .first()
        .map(AsFd::as_fd)
        .map(check_directory)
        .transpose()?;
    let (directory, cgroup) = match cgroups {
        Some(cgroups) => {
            let made = cgroups
                .create(&start.module)
                .map_err(setup("make its cgroup"))?;
            (Some(made.0), Some(made.1))
        }
        None => (None, None),
    };
    let mut epoch = [0; 8];
    aws_lc_rs::rand::fill(&mut epoch)
        .map_err(|_| refuse(Reason::Setup, "no random number for the epoch"))?;
    let measured = Program {
        file: &program,
        stamp,
    };
    let output = [stdout.as_fd(), stderr.as_fd()];
    let made = make(&plan, &measured, output, sockets, directory.as_ref());
    if let (Err(_), Some(cgroups)) = (&made, cgroups) {
        cgroups.remove(&start.module);
    }
    let Made {
        pid,
        pidfd,
        status,
        pid_ns,
        mount_ns,
    } = made?;
    let facts = Facts {
        module: start.module.clone(),
        grant: start.grant.clone(),
        epoch: u64::from_le_bytes(epoch),
        pid,
        pid_ns,
        mount_ns,
        weaker: plan.weaker.with(Weaker::CGROUP_ABSENT, cgroup.is_none()),
        cgroup,
        executable,
        uid: grant.uid,
        gid: grant.gid,
        network: grant.network,
    };
    Ok(Module {
        facts,
        pidfd,
        status,
    })
}

/// Reads and judges the grant named in the request (R78, A89).
fn read_grant(grants: &Path, start: &Start, standing: Standing) -> Result<Grant, Refusal> {
    let path = format!("{}/{}.toml", grants.display(), start.grant.as_str());
    let text = guarded::read(&path, standing.owner()).map_err(|error| {
        let reason = match &error {
            error if error.is_absent(&path) => Reason::UnknownGrant,
            GuardError::Unguarded(_) => Reason::UnguardedGrant,
            _ => Reason::InvalidGrant,
        };
        refuse(reason, crate::chain(&error))
    })?;
    toml::from_str(&text).map_err(|error| refuse(Reason::InvalidGrant, error.to_string()))
}

/// Opens the program once, judges and measures that descriptor.
fn open_program(
    grant: &Grant,
    standing: Standing,
    digests: &mut Digests,
) -> Result<(File, Executable, Stamp), Refusal> {
    let path = &grant.executable;
    let bad = |why: &str| refuse(Reason::Executable, format!("{path}: {why}"));
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let program = open(path.as_str(), flags, Mode::empty())
        .map_err(|cause| bad(&io::Error::from(cause).to_string()))?;
    let program = File::from(program);
    let metadata = program
        .metadata()
        .map_err(|cause| bad(&cause.to_string()))?;
    if !metadata.is_file() {
        return Err(bad("is no file"));
    }
    if (metadata.uid() != 0 && metadata.uid() != standing.owner()) || metadata.mode() & 0o022 != 0 {
        return Err(bad("could be changed by somebody not trusted with it"));
    }
    let mut magic = [0; 4];
    if program.read_exact_at(&mut magic, 0).is_err() || magic != *b"\x7fELF" {
        // A script would run an interpreter that nobody measured.
        return Err(bad("is no ELF program"));
    }
    let (executable, stamp) = digests
        .measure_granted(&program)
        .map_err(|error| match error {
            DigestError::TooLarge => refuse(Reason::TooLarge, crate::chain(&error)),
            error => bad(&crate::chain(&error)),
        })?;
    if executable.digest != grant.digest {
        return Err(refuse(
            Reason::Digest,
            format!("{path} is not the program of the grant"),
        ));
    }
    Ok((program, executable, stamp))
}

fn check_directory(fd: BorrowedFd<'_>) -> Result<BorrowedFd<'_>, Refusal> {
    let stat = fstat(fd).map_err(|error| setup("look at the sockets' directory")(error.into()))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        Ok(fd)
    } else {
        Err(refuse(
            Reason::BadFrame,
            "the descriptor for sockets is no directory",
        ))
    }
}

/// A measured program and the state in which it was measured.
struct Program<'a> {
    file: &'a File,
    stamp: Stamp,
}

impl Program<'_> {
    /// Only the file's owner can have changed it, and from now on not even the owner can: a
    /// program being executed is busy.
    fn check_unchanged(&self) -> Result<(), Refusal> {
        if Stamp::of(self.file).is_ok_and(|now| now == self.stamp) {
            Ok(())
        } else {
            Err(refuse(
                Reason::Digest,
                "the program changed while it was started",
            ))
        }
    }
}

/// A process whose program runs.
struct Made {
    pid: u32,
    pidfd: OwnedFd,
    status: OwnedFd,
    pid_ns: u64,
    mount_ns: u64,
}

/// Makes the process and waits until the program runs or a step has failed.
fn make(
    plan: &Plan,
    program: &Program<'_>,
    [stdout, stderr]: [BorrowedFd<'_>; 2],
    sockets: Option<BorrowedFd<'_>>,
    cgroup: Option<&OwnedFd>,
) -> Result<Made, Refusal> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from);
    let (go, go_write) = pipe().map_err(setup("make a pipe"))?;
    let (errors, errors_write) = pipe().map_err(setup("make a pipe"))?;
    let (status, status_write) = pipe().map_err(setup("make a pipe"))?;
    rustix::io::ioctl_fionbio(&status, true).map_err(|e| setup("make a pipe")(e.into()))?;
    let warden = pidfd_open(getpid(), PidfdFlags::empty())
        .map_err(|error| setup("open the own process")(error.into()))?;
    let ends = Ends {
        program: program.file.as_fd(),
        stdout,
        stderr,
        go: go.as_fd(),
        warden: warden.as_fd(),
        errors: errors_write.as_fd(),
        status: status_write.as_fd(),
    };
    if let Some(sockets) = sockets {
        fchdir(sockets).map_err(|error| setup("enter the sockets' directory")(error.into()))?;
    }
    let sockets = if sockets.is_some() {
        Sockets::WorkingDirectory
    } else {
        Sockets::Absent
    };
    let made = process::clone(plan.namespaces, cgroup.map(AsFd::as_fd), || {
        child::run(plan, sockets, &ends)
    });
    rustix::process::chdir("/")
        .map_err(|error| setup("leave the sockets' directory")(error.into()))?;
    let (pid, pidfd) = made.map_err(setup("make the process"))?;
    drop((errors_write, status_write));
    let ready = || {
        let namespaces = measure::namespaces(pid).map_err(setup("read its namespaces"))?;
        rustix::io::write(&go_write, &[1]).map_err(|error| setup("let it go")(error.into()))?;
        outcome(&errors, &status)?;
        program.check_unchanged()?;
        Ok(namespaces)
    };
    match ready() {
        Ok((pid_ns, mount_ns)) => Ok(Made {
            pid,
            pidfd,
            status,
            pid_ns,
            mount_ns,
        }),
        Err(refusal) => {
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
            Err(refusal)
        }
    }
}

/// The end of file means that the program has started.
fn outcome(errors: &OwnedFd, status: &OwnedFd) -> Result<(), Refusal> {
    let patience = Timespec {
        tv_sec: SETUP_SECONDS,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::new(errors, PollFlags::IN)];
    if !poll(&mut fds, Some(&patience)).is_ok_and(|ready| ready > 0) {
        return Err(refuse(Reason::Setup, "the set-up did not end in time"));
    }
    let mut text = [0; 400];
    match rustix::io::read(errors, &mut text) {
        Ok(0) if child::is_started(status.as_fd()) => Ok(()),
        Ok(0) => Err(refuse(Reason::Setup, "the set-up ended without a word")),
        Ok(length) => Err(refuse(
            Reason::Setup,
            String::from_utf8_lossy(&text[..length]),
        )),
        Err(error) => Err(setup("hear of the set-up")(error.into())),
    }
}

pub(crate) fn refuse(reason: Reason, detail: impl Into<String>) -> Refusal {
    Refusal {
        reason,
        detail: detail.into(),
    }
}

fn setup(step: &'static str) -> impl Fn(io::Error) -> Refusal {
    move |cause| refuse(Reason::Setup, format!("{step}: {cause}"))
}
