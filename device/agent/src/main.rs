//! `holdfast-agent`: wiring.

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use agent::config::Config;
use agent::error::AgentError;
use local::clock::Clock;
use local::daemon::Daemon;
use local::log;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::failure(log::Level::Error, &error as &dyn Error);
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), AgentError> {
    // There is no configuration file: a module is configured by its environment.
    Daemon::prepare(std::env::args().skip(1), "/dev/null")?;
    let config = Config::read(&variable)?;
    let clock = Clock::open(None).map_err(AgentError::Clock)?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            Daemon::wait_for_stop();
            flag.store(true, Ordering::Relaxed);
        })
        .map_err(AgentError::Thread)?;
    agent::agent::run(config, clock, &stop)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a module's environment is its interface"
)]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
