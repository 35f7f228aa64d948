//! The module that tests and bench run: a puppet (`sim::puppet`), inside or outside.

use std::process::ExitCode;

use sim::puppet::{self, Hello};

fn main() -> ExitCode {
    let Some(port) = variable("PUPPET_PORT").and_then(|port| port.parse().ok()) else {
        return ExitCode::from(2);
    };
    let hello = Hello {
        module: variable("IOTEDGE_MODULEID").unwrap_or_default(),
        generation: variable("IOTEDGE_MODULEGENERATIONID").unwrap_or_default(),
    };
    match puppet::serve(port, &hello) {
        // Whoever pulled has let go.
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => ExitCode::SUCCESS,
        Err(error) => {
            local::log::failure(local::log::Level::Error, &error);
            ExitCode::FAILURE
        }
        Ok(()) => ExitCode::SUCCESS,
    }
}

fn variable(name: &str) -> Option<String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a module is configured by its environment"
    )]
    std::env::var(name).ok()
}
