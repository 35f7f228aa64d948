//! Why the agent cannot work at all. What fails for one module is in [`crate::act::ActError`].

use local::client::CallError;
use net::tls::TlsError;

use crate::config::ConfigError;

/// Why the agent ends.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The environment is not an agent's.
    #[error("the environment is not that of an agent")]
    Config(#[from] ConfigError),
    /// The process cannot be made safe, or its arguments are wrong.
    #[error("the process cannot be prepared")]
    Start(#[from] local::daemon::StartError),
    /// The clocks cannot be read.
    #[error("the clock cannot be opened")]
    Clock(#[source] local::files::FileError),
    /// The roots for the hub cannot be read.
    #[error("the hub's roots cannot be read from {path}")]
    Roots {
        /// Where they should be.
        path: String,
        /// Why not.
        #[source]
        cause: std::io::Error,
    },
    /// The device's trust bundle cannot be had.
    #[error("the workload API gives no trust bundle")]
    TrustBundle(#[source] CallError),
    /// The hub's address or roots are unusable.
    #[error("the hub cannot be trusted or addressed")]
    Tls(#[from] TlsError),
    /// The thread that waits for the end cannot be made.
    #[error("no thread for signals")]
    Thread(#[source] std::io::Error),
}
