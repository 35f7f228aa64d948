//! Keys, key policy and the software store (`holdfast-keyd`).
//!
//! The only program that holds private keys of the device. It gives out handles (R18), asks policy
//! for each use (R17), and keeps its keys in compatible files; it has no network, no async runtime
//! and no vendor code in its tree. A request goes [`api`], then the verb of its resource ([`keys`],
//! [`pairs`], [`sign`], [`cipher`]), then [`daemon`] for permission and [`store`] for the key.

pub mod api;
pub mod cipher;
pub mod config;
pub mod daemon;
pub mod error;
pub mod keys;
pub mod material;
pub mod pairs;
pub mod pem;
pub mod sign;
pub mod store;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use local::audit::{Audit, Limits, boot_id};
use local::clock::Clock;
use local::config::{Sources, Watch};
use local::daemon::{Access, Daemon, confine};
use local::files::{self, Dir, Rules};
use local::log;
use local::peer::KernelFacts;
use local::server::{Listener, Server};

use crate::config::Config;
use crate::daemon::Keyd;
use crate::store::Store;

/// Whoever may open the socket is in the daemon's group (identity-service.md 1.1).
const SOCKET_MODE: u32 = 0o660;
/// How often changed configuration is looked for.
const LOOK: Duration = Duration::from_secs(2);
/// How many looks make a minute, after which counts are written.
const LOOKS_PER_SETTLE: u32 = 30;

/// Serves until the process is asked to stop.
///
/// # Errors
/// Whatever prevents the start, in words.
pub fn run(daemon: &Daemon) -> Result<(), Box<dyn std::error::Error>> {
    let (base, dir) = (&daemon.config, &daemon.config_dir);
    let uid = files::own_uid();
    let watch = Watch::new(base, dir, uid);
    let config = Config::parse(&Sources::read(base, dir, uid)?)?;
    log::set_level(config.log_level);
    let keyd = Arc::new(open(&config, uid)?);
    let server = Server::new(KernelFacts::probe(), config.require)?;
    let listener = Listener::bind(&config.socket, SOCKET_MODE)?;
    confine(&paths(daemon, &config))?;
    let routes = Arc::new(api::routes(Arc::clone(&keyd)));
    let socket = server.open(listener, routes, config.limits)?;
    server.start()?;
    let tended = Arc::clone(&keyd);
    std::thread::Builder::new()
        .name("tend".to_owned())
        .stack_size(256 * 1024)
        .spawn(move || tend(&tended, watch))?;
    log::info(format_args!("listening on {}", config.socket.display()));
    Daemon::wait_for_stop();
    server.close(socket);
    keyd.close();
    Ok(())
}

/// What this process may open from now on: its state, its configuration, and what identifies its
/// callers (R80).
fn paths<'a>(daemon: &'a Daemon, config: &'a Config) -> Vec<(&'a Path, Access)> {
    let mut paths = vec![
        (config.home.as_path(), Access::Write),
        (daemon.config_dir.as_path(), Access::Read),
        (Path::new("/proc"), Access::Read),
    ];
    // Folders, since files in them are replaced; the socket's file goes when we do.
    paths.extend(config.socket.parent().map(|p| (p, Access::Write)));
    paths.extend(daemon.config.parent().map(|p| (p, Access::Read)));
    let placed = config.preloaded.values().filter_map(|file| file.parent());
    paths.extend(placed.map(|folder| (folder, Access::Write)));
    paths
}

/// Opens what is on disk; nothing is served yet.
///
/// # Errors
/// As [`run`].
pub fn open(config: &Config, uid: u32) -> Result<Keyd, Box<dyn std::error::Error>> {
    let private = Rules::private(uid);
    let home = Dir::open_or_create(&config.home, private)?;
    // The compatible daemon leaves the modes of its files to the umask.
    for name in files::take_over(&config.home.join("keys"), uid)? {
        log::warn(format_args!(
            "key file {name} was readable by others; it no longer is"
        ));
    }
    let keys = Dir::open_or_create(&config.home.join("keys"), private)?;
    let records = Dir::open_or_create(&config.home.join("audit"), private)?;
    let clock = Clock::open(Some(home.clone()))?;
    let audit = Audit::open(records, &boot_id(), Limits::default(), &clock.now())?;
    let store = Store::open(keys, config.preloaded.clone(), uid)?;
    Ok(Keyd::new(home, store, config.policy.clone(), audit, clock)?)
}

/// Looks after configuration and audit log while others serve. Only policy is taken from changed
/// configuration; the rest needs a restart (identity-service.md 1.6).
fn tend(keyd: &Keyd, mut watch: Watch) {
    let mut looks = 0;
    loop {
        // Nobody wakes this thread; it is the clock's own.
        std::thread::park_timeout(LOOK);
        if let Some(changed) = watch.poll(keyd.now().monotonic_ms) {
            let applied = changed
                .and_then(|sources| Config::parse(&sources))
                .map_err(|error| error.to_string())
                .and_then(|c| keyd.set_policy(c.policy).map_err(|error| error.to_string()));
            match applied {
                Ok(()) => log::info("policy taken from changed configuration"),
                Err(why) => keyd.configuration_refused(&why),
            }
        }
        looks += 1;
        if looks == LOOKS_PER_SETTLE {
            looks = 0;
            keyd.settle();
        }
    }
}
