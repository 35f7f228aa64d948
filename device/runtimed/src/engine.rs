//! Engines: what starts, measures and ends modules (D7).
//!
//! Everything the rest of `runtimed` knows of an engine is this trait. [`host`] runs modules as
//! processes through `warden`; a container engine is a second file beside it.

pub mod host;

use std::os::fd::{BorrowedFd, OwnedFd};

use contract::grant::GrantName;
use contract::names::ModuleName;
use contract::warden::{EnvPair, Measured, Reason, State};
use local::warden::{Running, WardenError};

/// Why an engine did not do something.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// `warden` refused or cannot be reached.
    #[error("{0}")]
    Warden(#[from] WardenError),
    /// What the start needs on disk is not there.
    #[error("preparing {what} for the module failed")]
    Prepare {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
}

impl EngineError {
    /// Whether a module of that name runs already.
    #[must_use]
    pub fn is_already_running(&self) -> bool {
        matches!(self, Self::Warden(WardenError::Refused(refusal))
            if refusal.reason == Reason::AlreadyRunning)
    }
}

/// What to start.
pub struct Launch<'a> {
    /// The module it becomes.
    pub module: &'a ModuleName,
    /// What it runs.
    pub grant: &'a GrantName,
    /// Its environment.
    pub env: Vec<EnvPair>,
    /// Where its output goes.
    pub log: OwnedFd,
    /// The folder of its sockets.
    pub sockets: OwnedFd,
}

/// One engine.
pub trait Engine: Send + Sync {
    /// Starts a module.
    ///
    /// # Errors
    /// [`EngineError`]; then nothing runs.
    fn start(&self, launch: Launch<'_>) -> Result<Running, EngineError>;

    /// Asks a module to end, by force after the grace in milliseconds. Returns at once; the
    /// process descriptor of the registration tells when it has ended.
    ///
    /// # Errors
    /// [`EngineError`].
    fn stop(&self, module: &ModuleName, grace_ms: u32) -> Result<(), EngineError>;

    /// How a module is, or how it ended.
    ///
    /// # Errors
    /// [`EngineError`].
    fn state(&self, module: &ModuleName) -> Result<State, EngineError>;

    /// All running modules, to take over after a restart of this daemon.
    ///
    /// # Errors
    /// [`EngineError`].
    fn running(&self) -> Result<Vec<Running>, EngineError>;

    /// Facts of a process by its descriptor (R2).
    ///
    /// # Errors
    /// [`EngineError`]; a process that is gone is an error.
    fn measure(&self, pidfd: BorrowedFd<'_>) -> Result<Measured, EngineError>;
}
