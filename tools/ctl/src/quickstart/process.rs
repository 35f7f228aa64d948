//! The daemons of a run: started, brought back when they end, and ended with it.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// What to run.
#[derive(Debug, Clone)]
pub(super) struct Program {
    /// Its name in messages.
    pub(super) name: &'static str,
    /// The executable.
    pub(super) path: PathBuf,
    /// Its arguments.
    pub(super) arguments: Vec<String>,
    /// Its user and group; `None` for our own.
    pub(super) user: Option<(u32, u32)>,
    /// Where its output goes.
    pub(super) log: PathBuf,
}

/// A daemon under watch.
pub(super) struct Daemon {
    shared: Arc<Shared>,
    watch: Option<JoinHandle<()>>,
}

struct Shared {
    program: Program,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    pid: Option<i32>,
    stopping: bool,
    starts: u32,
}

/// Between the end of a daemon and its next start.
const PAUSE: Duration = Duration::from_millis(300);
/// How long a daemon may take to end.
const GRACE: Duration = Duration::from_secs(5);

impl Daemon {
    /// Starts it.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub(super) fn start(program: Program) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            program,
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        });
        let watched = Arc::clone(&shared);
        let (sender, receiver) = std::sync::mpsc::channel();
        // The daemon is bound to the thread that starts it, so that thread lives as long.
        let watch = std::thread::Builder::new().spawn(move || match watched.spawn() {
            Ok(child) => {
                let _ = sender.send(Ok(()));
                watched.watch(child);
            }
            Err(error) => drop(sender.send(Err(error))),
        })?;
        receiver
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("no watching thread")))?;
        Ok(Self {
            shared,
            watch: Some(watch),
        })
    }

    /// How often it has been started.
    #[must_use]
    pub(super) fn starts(&self) -> u32 {
        self.shared.lock().starts
    }

    /// Its process, for a test that ends it.
    #[must_use]
    pub(super) fn pid(&self) -> Option<i32> {
        self.shared.lock().pid
    }

    /// Asks it to end and waits; by force after a while.
    pub(super) fn stop(&mut self) {
        let Some(watch) = self.watch.take() else {
            return;
        };
        let pid = {
            let mut state = self.shared.lock();
            state.stopping = true;
            self.shared.changed.notify_all();
            state.pid
        };
        signal(pid, Signal::TERM);
        let state = self.shared.lock();
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, GRACE, |state| state.pid.is_some());
        let (state, late) = waited.unwrap_or_else(PoisonError::into_inner);
        let pid = state.pid;
        drop(state);
        if late.timed_out() {
            signal(pid, Signal::KILL);
        }
        let _ = watch.join();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

fn signal(pid: Option<i32>, signal: Signal) {
    if let Some(pid) = pid.and_then(Pid::from_raw) {
        // It may have ended already; it is not reaped by anybody but its watch, which holds it.
        let _ = kill_process(pid, signal);
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self) -> io::Result<Child> {
        let program = &self.program;
        let log = File::options()
            .append(true)
            .create(true)
            .open(&program.log)?;
        #[expect(
            clippy::disallowed_methods,
            reason = "quickstart is who starts the daemons"
        )]
        let mut command = Command::new(&program.path);
        command
            .args(&program.arguments)
            .args(["--parent", &std::process::id().to_string()])
            .env_clear()
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if let Some((uid, gid)) = program.user {
            command.uid(uid).gid(gid);
        }
        local::os::process::unblock_in_child(&mut command);
        let child = command.spawn()?;
        let mut state = self.lock();
        state.pid = i32::try_from(child.id()).ok();
        state.starts += 1;
        Ok(child)
    }

    fn watch(&self, mut child: Child) {
        loop {
            let _ = child.wait();
            let mut state = self.lock();
            state.pid = None;
            self.changed.notify_all();
            if state.stopping {
                return;
            }
            let waited = self
                .changed
                .wait_timeout_while(state, PAUSE, |state| !state.stopping);
            if waited.unwrap_or_else(PoisonError::into_inner).0.stopping {
                return;
            }
            match self.spawn() {
                Ok(again) => child = again,
                Err(error) => {
                    local::log::error(format_args!(
                        "{} does not start: {error}",
                        self.program.name
                    ));
                    return;
                }
            }
        }
    }
}
