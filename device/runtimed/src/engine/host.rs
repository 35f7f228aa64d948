//! The host engine: modules as processes in their own namespaces, started by `warden`.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use contract::names::ModuleName;
use contract::warden::{Measured, SocketDir, Start, State};
use local::warden::{Running, WardenClient, WardenError};

use super::{Engine, EngineError, Launch};

/// Most channels to `warden` kept open.
const CHANNELS: usize = 4;

/// Modules as processes of this host.
pub struct HostEngine {
    socket: PathBuf,
    channels: Mutex<Vec<WardenClient>>,
}

impl HostEngine {
    /// An engine over the `warden` at this socket; nothing is opened yet.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            channels: Mutex::new(Vec::new()),
        }
    }

    /// One question on a channel of its own. A channel that failed is dropped, and a question
    /// that never reached anybody is asked once more: `warden` may have been restarted.
    fn ask<T>(
        &self,
        question: impl Fn(&mut WardenClient) -> Result<T, WardenError>,
    ) -> Result<T, EngineError> {
        let kept = self
            .channels
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        if let Some(mut channel) = kept {
            match question(&mut channel) {
                Err(WardenError::Channel(cause)) if cause.raw_os_error().is_some_and(closed) => {}
                answer => return self.keep(channel, answer),
            }
        }
        let mut channel = WardenClient::connect(&self.socket, Duration::from_secs(10))?;
        let answer = question(&mut channel);
        self.keep(channel, answer)
    }

    fn keep<T>(
        &self,
        channel: WardenClient,
        answer: Result<T, WardenError>,
    ) -> Result<T, EngineError> {
        if matches!(answer, Ok(_) | Err(WardenError::Refused(_))) {
            let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
            if channels.len() < CHANNELS {
                channels.push(channel);
            }
        }
        Ok(answer?)
    }
}

/// Errors that mean the other end had closed before the question.
fn closed(errno: i32) -> bool {
    [
        rustix::io::Errno::PIPE,
        rustix::io::Errno::CONNRESET,
        rustix::io::Errno::NOTCONN,
    ]
    .iter()
    .any(|e| e.raw_os_error() == errno)
}

impl Engine for HostEngine {
    fn start(&self, launch: Launch<'_>) -> Result<Running, EngineError> {
        let start = Start {
            module: launch.module.clone(),
            grant: launch.grant.clone(),
            env: launch.env,
            sockets: SocketDir::Beside,
        };
        let log = launch.log.as_fd();
        self.ask(|warden| warden.start(&start, log, log, Some(launch.sockets.as_fd())))
    }

    fn stop(&self, module: &ModuleName, grace_ms: u32) -> Result<(), EngineError> {
        self.ask(|warden| warden.stop(module, grace_ms))
    }

    fn state(&self, module: &ModuleName) -> Result<State, EngineError> {
        self.ask(|warden| warden.status(module))
    }

    fn running(&self) -> Result<Vec<Running>, EngineError> {
        self.ask(WardenClient::list)
    }

    fn measure(&self, pidfd: BorrowedFd<'_>) -> Result<Measured, EngineError> {
        self.ask(|warden| warden.measure(pidfd))
    }
}
