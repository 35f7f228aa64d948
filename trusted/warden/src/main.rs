//! Wiring of `holdfast-warden`: one argument, then [`warden::run`].

use std::io::Write;
use std::process::ExitCode;

use local::log;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [option, path] = &arguments[..] else {
        return usage();
    };
    if option != "--config" {
        return usage();
    }
    match warden::run(path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::failure(log::Level::Error, error.as_ref());
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    let _ = std::io::stderr().write_all(b"usage: holdfast-warden --config FILE\n");
    ExitCode::from(2)
}
