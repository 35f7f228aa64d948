//! Wiring of `holdfast-keyd`: prepare the process, then [`keyd::run`].

use std::process::ExitCode;

use local::daemon::Daemon;
use local::log;

fn main() -> ExitCode {
    let started = Daemon::prepare(std::env::args().skip(1), "/etc/aziot/keyd/config.toml")
        .map_err(Into::into)
        .and_then(|daemon| keyd::run(&daemon));
    match started {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::failure(log::Level::Error, error.as_ref());
            ExitCode::FAILURE
        }
    }
}
