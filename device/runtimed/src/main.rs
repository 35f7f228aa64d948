//! `holdfast-runtimed`: wiring.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use contract::refusal::Refusal;
use local::audit::{self, Audit};
use local::clock::Clock;
use local::config;
use local::daemon::{Access, Daemon, confine};
use local::files::{Dir, Rules};
use local::log;
use local::peer::{KernelFacts, Require};
use local::server::{Listener, Reach, Server};
use runtimed::config::Config;
use runtimed::engine::host::HostEngine;
use runtimed::module::{Keeper, Module};
use runtimed::runtime::{Parts, Runtime, open_folder};
use runtimed::{api, modules, watchdog};

/// Settings could not be loaded; the unit file tells systemd not to restart (module-runtime.md 1.1).
const BAD_SETTINGS: u8 = 153;

fn main() -> ExitCode {
    let arguments = std::env::args().skip(1);
    let daemon = match Daemon::prepare(arguments, "/etc/aziot/edged/config.toml") {
        Ok(daemon) => daemon,
        Err(error) => return failed(&error, 2),
    };
    let uid = rustix::process::geteuid().as_raw();
    let settings = config::load::<Config>(&daemon.config, &daemon.config_dir, uid)
        .and_then(|config| config.checked().map_err(config::ConfigError::Meaning));
    match settings {
        Err(error) => failed(&error, BAD_SETTINGS),
        Ok(config) => match serve(config, uid) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&*error, 1),
        },
    }
}

fn failed(error: &dyn std::error::Error, code: u8) -> ExitCode {
    log::failure(log::Level::Error, error);
    ExitCode::from(code)
}

fn serve(config: Config, uid: u32) -> Result<(), Box<dyn std::error::Error>> {
    let home = config.homedir.clone();
    let dir = |name: &str| Dir::open_or_create(&home.join(name), Rules::private(uid));
    for (name, mode) in [("mnt", 0o700), ("logs", 0o750)] {
        open_folder(&home.join(name), mode)?;
    }
    let clock = Clock::open(Some(dir("state")?))?;
    let audit = Audit::open(
        dir("audit")?,
        &audit::boot_id(),
        audit::Limits::default(),
        &clock.now(),
    )?;
    let facts = KernelFacts::probe();
    let require = if config.attestation.require_strong {
        Require::Strong
    } else {
        Require::Best
    };
    if !facts.peer_pidfd {
        log::warn("attestation=weak: this kernel proves callers by number only (docs/threats.md)");
    }
    let server = Server::new(facts, require)?;
    let management = config.listen.management_uri.path().to_owned();
    confine(&paths(&config, &management))?;
    let parts = Parts {
        engine: Box::new(HostEngine::new(config.warden.socket.path().to_owned())),
        audit,
        clock,
        store: dir("modules")?,
        server: Arc::clone(&server),
    };
    let runtime = Arc::new(Runtime::new(config, parts)?);
    modules::restore(&runtime)?;
    configured(&runtime)?;
    let limits = api::limits(runtime.config.iotedge_max_requests.management, Reach::Host);
    server.open(
        Listener::bind(&management, 0o660)?,
        api::management(Arc::clone(&runtime)),
        limits,
    )?;
    server.start()?;
    let watched = Arc::clone(&runtime);
    std::thread::Builder::new()
        .name("watchdog".to_owned())
        .spawn(move || {
            watchdog::run(&watched);
        })?;
    log::info("runtimed serves");
    Daemon::wait_for_stop();
    runtime.audit.close(&runtime.clock.now())?;
    runtime.sign_heads(true);
    Ok(())
}

/// Modules of the configuration come over those that were asked for under the same name.
fn configured(runtime: &Arc<Runtime>) -> Result<(), Refusal> {
    for (name, grant, env) in runtime.config.always() {
        if let Some(other) = runtime.module(&name) {
            runtime.remove(&other);
        }
        let strictness = runtime.config.attestation.of(&name);
        let spec = modules::configured(&name, &grant, env);
        runtime.add(Module::new(name, spec, grant, Keeper::Us, strictness))?;
    }
    Ok(())
}

/// All that this daemon opens, reads and writes from here on.
fn paths<'a>(config: &'a Config, management: &'a Path) -> Vec<(&'a Path, Access)> {
    let mut paths = vec![
        (config.homedir.as_path(), Access::Write),
        (Path::new("/proc"), Access::Read),
        (Path::new("/etc/os-release"), Access::Read),
        (Path::new("/usr/lib/os-release"), Access::Read),
        (Path::new("/sys/devices/virtual/dmi/id"), Access::Read),
        (Path::new("/sys/devices/system/cpu"), Access::Read),
        (Path::new("/sys/fs/cgroup"), Access::Read),
        (Path::new("/dev/urandom"), Access::Read),
    ];
    paths.extend(management.parent().map(|parent| (parent, Access::Write)));
    paths
}
