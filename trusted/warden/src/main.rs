//! Wiring of `holdfast-warden`: where its configuration is and whose end is its own, then [`warden::run`].

use std::io::Write;
use std::process::ExitCode;

use local::log;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let (config, parent) = match arguments[..] {
        ["--config", config] => (config, None),
        ["--config", config, "--parent", parent] => match parent.parse() {
            Ok(parent) => (config, Some(parent)),
            Err(_) => return usage(),
        },
        _ => return usage(),
    };
    match warden::run(config, parent) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::failure(log::Level::Error, error.as_ref());
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    let _ = std::io::stderr().write_all(b"usage: holdfast-warden --config FILE [--parent PID]\n");
    ExitCode::from(2)
}
