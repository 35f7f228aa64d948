//! Wiring of `holdfast-warden`: one argument, then [`warden::run`].

use std::io::Write;
use std::process::ExitCode;

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
            let text = format!("holdfast-warden: {}\n", warden::chain(error.as_ref()));
            let _ = std::io::stderr().write_all(text.as_bytes());
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    let _ = std::io::stderr().write_all(b"usage: holdfast-warden --config FILE\n");
    ExitCode::from(2)
}
