//! `warden`, the one root process: it starts, measures and ends processes, and nothing else.
//!
//! It reads no JSON, has no network, no threads and no state on disk. It is asked by fixed
//! frames (`contract::warden`) over one local socket, and believes only root-owned grant files
//! about what may run (R49). Read `server` for the loop, then `modules`, `start`, `plan` (what
//! a sandbox is) and `child` (how it comes about); `measure` is the other half of its work.

mod cgroup;
mod child;
mod config;
mod digest;
mod guarded;
mod measure;
mod modules;
mod os;
mod plan;
pub mod privileges;
mod server;
mod start;

use std::error::Error;

use config::Config;

/// Runs warden with the configuration in `path` until a signal asks for its end, or until
/// `parent` ends, if it is given.
///
/// # Errors
/// Whatever kept it from starting, or from going on.
pub fn run(path: &str, parent: Option<i32>) -> Result<(), Box<dyn Error>> {
    rustix::process::chdir("/")?;
    // What warden makes must be readable by whom it is made for, whatever its starter had.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    os::signal::block()?;
    if let Some(parent) = parent {
        privileges::bind_to(parent)?;
    }
    let config = Config::load(path, rustix::process::geteuid().as_raw())?;
    let listener = server::Listener::bind(&config)?;
    let cgroups = match config.standing() {
        contract::grant::Standing::Root { .. } => cgroup::Cgroups::open(&config.cgroup_parent).ok(),
        contract::grant::Standing::User { .. } => None,
    };
    match &cgroups {
        Some(cgroups) => cgroups.end_leftovers()?,
        None => local::log::warn("modules get no cgroup: attestation by namespace alone"),
    }
    privileges::reduce()?;
    let modules = modules::Modules::new(config.clone(), cgroups);
    Ok(server::serve(config, &listener, modules)?)
}

/// An error and its causes in one line, for the detail of a refusal.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
