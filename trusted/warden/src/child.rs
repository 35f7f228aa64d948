//! The new process, step by step, from the clone to the program (R29, R80).
//!
//! It begins as a copy of warden in fresh namespaces and becomes the first process of the
//! module's pid namespace: it gives away every power, starts the program as its child, hands
//! requests to end on to it, collects orphans, and tells how the program ended. When it goes, by
//! itself or because warden is gone, the kernel ends everything in the namespace.
//! Each step that fails is reported by name, and nothing of the program has run then.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};

use contract::grant::Standing;
use contract::warden::End;
use local::os::pidfd;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, mkdirat, open};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::process::{
    DumpableBehavior, Pid, Rlimit, Signal, WaitOptions, kill_process, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit, setsid, umask, wait,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use crate::os::{landlock, process, signal};
use crate::plan::{Access, Plan, Presence, Sandbox};

/// What the new process holds of its maker.
pub(crate) struct Ends<'a> {
    /// The program, as measured.
    pub(crate) program: BorrowedFd<'a>,
    pub(crate) stdout: BorrowedFd<'a>,
    pub(crate) stderr: BorrowedFd<'a>,
    /// One byte comes when warden has read the facts.
    pub(crate) go: BorrowedFd<'a>,
    /// Warden's own process descriptor.
    pub(crate) warden: BorrowedFd<'a>,
    /// Where a failing step is reported; closes by itself when the program starts.
    pub(crate) errors: BorrowedFd<'a>,
    /// Where the program's end is reported.
    pub(crate) status: BorrowedFd<'a>,
}

/// Whether the working directory is to become `/run/iotedge`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sockets {
    WorkingDirectory,
    Absent,
}

/// First word in the status pipe: the set-up is done and the program's process exists.
const STARTED: u8 = b's';

/// Runs the whole life of the new process; the result is its exit code.
pub(crate) fn run(plan: &Plan, sockets: Sockets, ends: &Ends<'_>) -> u8 {
    let null = match prepare(plan, sockets, ends) {
        Ok(null) => null,
        Err(failure) => return report(ends.errors, &failure),
    };
    let standard = [null.as_fd(), ends.stdout, ends.stderr];
    let kept = [ends.program, ends.errors, ends.status];
    process::with_descriptors(standard, kept, |[program, errors, status]| {
        live(plan, program, errors, status)
    })
}

/// A step that failed.
struct Failure(String, io::Error);

trait Step<T> {
    fn step(self, name: impl Into<String>) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, name: impl Into<String>) -> Result<T, Failure> {
        self.map_err(|cause| Failure(name.into(), cause.into()))
    }
}

fn report(errors: BorrowedFd<'_>, Failure(step, cause): &Failure) -> u8 {
    // Nobody is left to tell if this fails, and the code tells enough.
    let _ = rustix::io::write(errors, format!("{step}: {cause}").as_bytes());
    126
}

/// Everything before the program. The order matters: what needs a power comes before the power
/// is given away, and the death signal after the ids, since changing ids clears it.
fn prepare(plan: &Plan, sockets: Sockets, ends: &Ends<'_>) -> Result<File, Failure> {
    let mut either = [&ends.go, &ends.warden].map(|fd| PollFd::new(fd, PollFlags::IN));
    poll(&mut either, None).step("wait for warden")?;
    warden_lives(ends)?;
    if let Standing::User { uid, gid } = plan.standing {
        map_own_ids(uid, gid)?;
    }
    mounts(sockets)?;
    let null = File::options()
        .read(true)
        .open("/dev/null")
        .step("open /dev/null")?;
    setsid().step("new session")?;
    umask(Mode::from_raw_mode(0o027));
    for (kind, most) in &plan.limits {
        let limit = Rlimit {
            current: Some(*most),
            maximum: Some(*most),
        };
        setrlimit(*kind, limit).step(format!("limit {kind:?}"))?;
    }
    set_no_new_privs(true).step("no new privileges")?;
    let rules = plan
        .sandbox
        .as_ref()
        .map(|sandbox| rules(sandbox, ends.program))
        .transpose()?;
    drop_bounding_set()?;
    if matches!(plan.standing, Standing::Root { .. }) {
        set_ids(plan.uid, plan.gid)?;
    }
    clear_ambient_capability_set().step("clear ambient capabilities")?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    set_capabilities(None, sets).step("drop capabilities")?;
    set_parent_process_death_signal(Some(Signal::KILL)).step("death signal")?;
    // Warden may have died before that signal was set.
    warden_lives(ends)?;
    // This copy of warden's memory is not for the module to read.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).step("no dumps")?;
    if let Some(rules) = rules {
        landlock::restrict(rules.as_fd()).step("restrict by Landlock")?;
    }
    Ok(null)
}

fn warden_lives(ends: &Ends<'_>) -> Result<(), Failure> {
    let lives = if pidfd::alive(ends.warden) {
        Ok(())
    } else {
        Err(io::ErrorKind::BrokenPipe)
    };
    lives.step("wait for warden")
}

/// A user namespace in which the own ids mean themselves and nobody else exists.
fn map_own_ids(uid: u32, gid: u32) -> Result<(), Failure> {
    let files = [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{uid} {uid} 1")),
        ("gid_map", format!("{gid} {gid} 1")),
    ];
    for (file, text) in files {
        let opened = File::options()
            .write(true)
            .open(format!("/proc/self/{file}"));
        opened
            .and_then(|mut opened| opened.write_all(text.as_bytes()))
            .step(file)?;
    }
    Ok(())
}

/// Private mounts, a /proc of the own processes, a /run with the own sockets only.
fn mounts(sockets: Sockets) -> Result<(), Failure> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).step("make mounts private")?;
    let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", safe, None).step("mount /proc")?;
    let options = c"mode=755,size=64k,nr_inodes=16";
    mount("tmpfs", "/run", "tmpfs", safe, options).step("mount /run")?;
    mkdirat(CWD, "/run/iotedge", Mode::from_raw_mode(0o755)).step("make /run/iotedge")?;
    if sockets == Sockets::WorkingDirectory {
        // Warden stood in the directory behind the descriptor when it made this process, so "."
        // is that directory in this mount namespace, whatever its path leads to by now.
        mount_bind(".", "/run/iotedge").step("mount /run/iotedge")?;
    }
    rustix::process::chdir("/").step("change to /")
}

/// The set of Landlock rules, still to be laid on.
fn rules(sandbox: &Sandbox, program: BorrowedFd<'_>) -> Result<std::os::fd::OwnedFd, Failure> {
    let handled = landlock::Handled {
        files: sandbox.handled,
        network: 0,
        scoped: sandbox.scoped,
    };
    let rules = landlock::create(&handled).step("create Landlock rules")?;
    let execute = sandbox.access(Access::Execute, false);
    landlock::allow(rules.as_fd(), execute, program).step("allow the program")?;
    for rule in &sandbox.rules {
        let name = || format!("allow {:?} of {}", rule.access, rule.path);
        let at = match open(
            rule.path.as_str(),
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            Err(rustix::io::Errno::NOENT) if rule.presence == Presence::Optional => continue,
            opened => opened.step(name())?,
        };
        let stat = fstat(&at).step(name())?;
        let on_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let access = sandbox.access(rule.access, on_directory);
        landlock::allow(rules.as_fd(), access, at.as_fd()).step(name())?;
    }
    Ok(rules)
}

/// Nothing this process executes can gain a capability from a file.
fn drop_bounding_set() -> Result<(), Failure> {
    for bit in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match remove_capability_from_bounding_set(capability) {
            Err(rustix::io::Errno::INVAL) => break,
            done => done.step("drop the bounding set")?,
        }
    }
    Ok(())
}

fn set_ids(uid: u32, gid: u32) -> Result<(), Failure> {
    let (uid, gid) = (
        rustix::process::Uid::from_raw(uid),
        rustix::process::Gid::from_raw(gid),
    );
    set_thread_groups(&[]).step("drop groups")?;
    set_thread_res_gid(gid, gid, gid).step("set group id")?;
    set_thread_res_uid(uid, uid, uid).step("set user id")
}

/// The first process of the namespace after its set-up.
fn live(
    plan: &Plan,
    program: BorrowedFd<'_>,
    errors: BorrowedFd<'_>,
    status: BorrowedFd<'_>,
) -> u8 {
    let started = process::clone(0, None, || {
        signal::reset();
        let cause = process::execute(program, &plan.argv, &plan.envp);
        report(errors, &Failure("execute".into(), cause))
    });
    let main = match started {
        Ok((pid, _)) => i32::try_from(pid).ok().and_then(Pid::from_raw),
        Err(cause) => return report(errors, &Failure("start the program".into(), cause)),
    };
    let Some(main) = main else { return 126 };
    // Before the last copy of `errors` here is closed: its end alone would also follow from a
    // death of this process in the middle of its set-up.
    if rustix::io::write(status, &[STARTED]) != Ok(1) {
        return 126;
    }
    let status = process::keep_only(status);
    loop {
        if signal::wait() != libc::SIGCHLD {
            // It may have ended in this moment; then SIGCHLD follows.
            let _ = kill_process(main, Signal::TERM);
            continue;
        }
        while let Ok(Some((pid, end))) = wait(WaitOptions::NOHANG) {
            if pid == main {
                let byte = |value: i32| u8::try_from(value).unwrap_or(u8::MAX);
                let end = match (end.exit_status(), end.terminating_signal()) {
                    (Some(code), _) => [0, byte(code)],
                    (None, signal) => [1, byte(signal.unwrap_or(0))],
                };
                let _ = rustix::io::write(status, &end);
                return 0;
            }
        }
    }
}

/// Whether the set-up came to its end; asked once, after `errors` has closed.
pub(crate) fn is_started(status: BorrowedFd<'_>) -> bool {
    let mut word = [0];
    rustix::io::read(status, &mut word) == Ok(1) && word == [STARTED]
}

/// How the program ended, from what its first process left in the status pipe: nothing when
/// that process was ended by force itself.
pub(crate) fn end(status: BorrowedFd<'_>) -> End {
    let mut end = [0; 2];
    match rustix::io::read(status, &mut end) {
        Ok(2) if end[0] == 0 => End::Code(end[1]),
        Ok(2) => End::Signal(end[1]),
        _ => End::Signal(9),
    }
}
