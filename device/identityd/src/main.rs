//! `holdfast-identityd`: wiring of the two APIs.
//!
//! `--config` and `--config-dir` name the identity section, `--certificates` and
//! `--certificates-dir` the certificate section; `--only identities` or `--only certificates` serves
//! one of them beside another daemon for the other.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use contract::audit::{Decision, Entry, Event};
use contract::names::KeyId;
use contract::refusal::Refusal;
use contract::time::Now;
use identityd::act::Stop;
use identityd::api::{self, CertificateService, IdentityService};
use identityd::certs::{Certs, Clock};
use identityd::cloud::Network;
use identityd::config::{
    Certificates, Identities, Preloaded, Process, Provisioning, SYSTEM_ROOTS, certs_dir,
};
use identityd::error::{Journal, OnDamage};
use identityd::identities::{self, Issuing, Parts};
use identityd::keys::{Keyd, Keys};
use identityd::store::Store;
use local::audit::{self, Audit};
use local::client::Client;
use local::clock;
use local::config::Watch;
use local::daemon::{Access, Daemon, confine};
use local::files::{Dir, FileError, Rules, own_uid};
use local::log;
use local::peer::KernelFacts;
use local::server::{Limits, Listener, Server};
use local::witness;

/// Signs the head of this daemon's audit log and nothing else.
const AUDIT_KEY: &str = "holdfast_audit_identityd";
/// How often the configuration is looked at, and the audit log's counts are.
const TICK: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let (own, rest) = match Own::take(std::env::args().skip(1)) {
        Ok(split) => split,
        Err(error) => return failed(&*error, 2),
    };
    let daemon = match Daemon::prepare(rest, "/etc/aziot/identityd/config.toml") {
        Ok(daemon) => daemon,
        Err(error) => return failed(&error, 2),
    };
    match run(&own, &daemon) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&*error, 1),
    }
}

fn failed(error: &dyn Error, code: u8) -> ExitCode {
    log::failure(log::Level::Error, error);
    ExitCode::from(code)
}

/// The arguments that only this daemon has.
struct Own {
    certificates: PathBuf,
    certificates_dir: Option<PathBuf>,
    serves: Serves,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Serves {
    Both,
    Certificates,
    Identities,
}

impl Own {
    fn take(
        arguments: impl Iterator<Item = String>,
    ) -> Result<(Self, Vec<String>), Box<dyn Error>> {
        let mut own = Self {
            certificates: "/etc/aziot/certd/config.toml".into(),
            certificates_dir: None,
            serves: Serves::Both,
        };
        let (mut rest, mut arguments) = (Vec::new(), arguments);
        while let Some(name) = arguments.next() {
            let mut value = || {
                arguments
                    .next()
                    .ok_or_else(|| format!("{name} needs a value"))
            };
            match name.as_str() {
                "--certificates" => own.certificates = value()?.into(),
                "--certificates-dir" => own.certificates_dir = Some(value()?.into()),
                "--only" => {
                    own.serves = match value()?.as_str() {
                        "certificates" => Serves::Certificates,
                        "identities" => Serves::Identities,
                        _ => return Err("--only certificates, or --only identities".into()),
                    }
                }
                _ => rest.push(name),
            }
        }
        Ok((own, rest))
    }
}

fn run(own: &Own, daemon: &Daemon) -> Result<(), Box<dyn Error>> {
    let uid = own_uid();
    let mut watches = Watches::default();
    let mut certificates = None;
    let mut identities = None;
    if own.serves != Serves::Identities {
        let beside = || own.certificates.with_file_name("config.d");
        let (base, dir) = (
            &own.certificates,
            own.certificates_dir.clone().unwrap_or_else(beside),
        );
        // Watched from before it is read, so that no change falls between.
        watches.certificates = Some(Watch::new(base, &dir, uid));
        certificates = Some(local::config::load::<Certificates>(base, &dir, uid)?);
    }
    if own.serves != Serves::Certificates {
        let (base, dir) = (&daemon.config, &daemon.config_dir);
        watches.identities = Some(Watch::new(base, dir, uid));
        identities = Some(local::config::load::<Identities>(base, dir, uid)?);
    }
    let files = [&own.certificates, &daemon.config].map(|path| path.parent());
    serve(certificates, identities, watches, &files, uid)
}

/// The files the configuration came from.
#[derive(Default)]
struct Watches {
    certificates: Option<Watch>,
    identities: Option<Watch>,
}

fn serve(
    certificates: Option<Certificates>,
    identities: Option<Identities>,
    watches: Watches,
    files: &[Option<&Path>],
    uid: u32,
) -> Result<(), Box<dyn Error>> {
    let rules = Rules::guarded(uid);
    let sections = [
        identities.as_ref().map(|i| i.process),
        certificates.as_ref().map(|c| c.process),
    ];
    let Some(process) = sections.into_iter().flatten().reduce(Process::and) else {
        return Err("nothing to serve".into());
    };
    log::set_level(process.log_level);
    let homes = [
        identities.as_ref().map(|i| i.homedir.clone()),
        certificates.as_ref().map(|c| c.homedir.clone()),
    ];
    for home in homes.iter().flatten() {
        Dir::open_or_create(home, rules)?;
    }
    let Some(home) = homes.iter().flatten().next() else {
        return Err("nothing to serve".into());
    };
    let clock = Arc::new(clock::Clock::open(Some(Dir::open(home, rules)?))?);
    let audit = Dir::open_or_create(&home.join("audit"), Rules::private(uid))?;
    let boot = audit::boot_id();
    let audit = Arc::new(Audit::open(
        audit,
        &boot,
        audit::Limits::default(),
        &clock.now(),
    )?);
    let mut paths = paths(certificates.as_ref(), identities.as_ref());
    paths.extend(files.iter().flatten().map(|folder| (*folder, Access::Read)));
    confine(&paths)?;
    let journal = journal(&audit, &clock);
    let now = Arc::clone(&clock);
    let now: Clock = Arc::new(move || now.now());
    let server = Server::new(KernelFacts::probe(), process.require)?;
    let keyd = certificates.as_ref().map(|config| &config.keyd);
    let keyd = keyd
        .or(identities.as_ref().map(|config| &config.keyd))
        .cloned();
    let witness = Witness(
        Arc::new(Client::new(keyd.unwrap_or_default())),
        KeyId::new(AUDIT_KEY)?,
    );
    let mut tick = Tick {
        witness: witness.clone(),
        watches,
        certs: None,
        identities: None,
        stop: Arc::default(),
    };
    let stop = Arc::clone(&tick.stop);
    if let Some(config) = certificates {
        let keys: Arc<dyn Keys> = Arc::new(Keyd::new(&config.keyd));
        let (socket, limits) = (config.socket.clone(), limits(config.max_requests));
        let store = store_of(config, rules, keys, Arc::clone(&now), on_damage(&journal))?;
        tick.certs = Some(Arc::clone(&store));
        let service = CertificateService {
            certs: store,
            journal: Arc::clone(&journal),
        };
        let routes = Arc::new(api::certificates(Arc::new(service)));
        server.open(Listener::bind(&socket, 0o660)?, routes, limits)?;
    }
    if let Some(config) = identities {
        let (socket, limits) = (config.socket.clone(), limits(config.max_requests));
        let identities = identities_of(config, rules, tick.certs.clone(), now, journal, &stop)?;
        identities.start()?;
        tick.identities = Some(Arc::clone(&identities));
        let service = IdentityService {
            identities: Arc::clone(&identities),
        };
        let routes = Arc::new(api::identities(Arc::new(service)));
        server.open(Listener::bind(&socket, 0o660)?, routes, limits)?;
        let stop = Arc::clone(&stop);
        let run = move || identities.catch_up(&stop, &random);
        std::thread::Builder::new()
            .name("catch-up".to_owned())
            .spawn(run)?;
    }
    server.start()?;
    let (counted, told) = (Arc::clone(&audit), Arc::clone(&clock));
    let run = move || tick.run(&counted, &told);
    std::thread::Builder::new()
        .name("tick".to_owned())
        .spawn(run)?;
    log::info("identityd serves");
    Daemon::wait_for_stop();
    stop.stop();
    audit.close(&clock.now())?;
    witness.sign_heads(&audit, &clock.now(), true);
    Ok(())
}

/// Signs the head of this daemon's audit log (R36).
#[derive(Clone)]
struct Witness(Arc<Client>, KeyId);

impl Witness {
    fn sign_heads(&self, audit: &Audit, now: &Now, everything: bool) -> bool {
        witness::sign_heads(audit, &self.0, &self.1, now, everything)
    }
}

/// What is done now and then.
struct Tick {
    watches: Watches,
    certs: Option<Arc<Certs>>,
    identities: Option<Arc<identities::Identities>>,
    stop: Arc<Stop>,
    witness: Witness,
}

impl Tick {
    fn run(mut self, audit: &Audit, clock: &clock::Clock) {
        let mut signed = self.witness.sign_heads(audit, &clock.now(), true);
        while self.stop.wait(TICK) {
            let now = clock.now();
            if let Err(error) = audit.settle(&now) {
                log::failure(log::Level::Error, &error);
            }
            signed |= self.witness.sign_heads(audit, &now, !signed);
            let watch = self.watches.certificates.as_mut();
            if let (Some(config), Some(certs)) = (changed(watch, now.monotonic_ms), &self.certs) {
                certs.reconfigure(config);
            }
            let watch = self.watches.identities.as_mut();
            if let (Some(config), Some(identities)) =
                (changed(watch, now.monotonic_ms), &self.identities)
            {
                identities.reconfigure(config);
                // Host processes may have come or gone (identity-service.md 4.5).
                if let Err(error) = identities.settle() {
                    log::failure(log::Level::Warn, &error);
                }
            }
        }
    }
}

/// A changed configuration that is good as a whole; a bad one leaves the last good in force (P28).
fn changed<T: DeserializeOwned>(watch: Option<&mut Watch>, now_ms: i64) -> Option<T> {
    let read = watch?.poll(now_ms)?.and_then(|sources| sources.parse());
    match read {
        Ok(config) => {
            log::info("the configuration changed");
            Some(config)
        }
        Err(error) => {
            log::failure(log::Level::Error, &error);
            None
        }
    }
}

fn store_of(
    config: Certificates,
    rules: Rules,
    keys: Arc<dyn Keys>,
    clock: Clock,
    on_damage: OnDamage,
) -> Result<Arc<Certs>, FileError> {
    let dir = Dir::open_or_create(&certs_dir(&config.homedir), rules)?;
    Ok(Arc::new(Certs::new(
        config, dir, rules, keys, clock, on_damage,
    )))
}

fn identities_of(
    config: Identities,
    rules: Rules,
    certs: Option<Arc<Certs>>,
    clock: Clock,
    journal: Journal,
    stop: &Arc<Stop>,
) -> Result<Arc<identities::Identities>, FileError> {
    let keys: Arc<dyn Keys> = Arc::new(Keyd::new(&config.keyd));
    let issuing: Arc<dyn Issuing> = match certs {
        Some(certs) => certs,
        None => Arc::new(Client::new(&config.certd)),
    };
    let stop = Arc::clone(stop);
    let wait = Arc::new(move |span| stop.wait(span));
    let cloud = Network::new(config.clone(), Arc::clone(&keys), clock, rules, wait);
    let store = Store::new(
        Dir::open(&config.homedir, rules)?,
        rules,
        on_damage(&journal),
    );
    let cloud = Box::new(cloud);
    let parts = Parts {
        config,
        store,
        keys,
        cloud,
        issuing,
        journal,
        rules,
    };
    Ok(Arc::new(identities::Identities::new(parts)))
}

/// Damage is said once in the log and counted in the audit log.
fn on_damage(journal: &Journal) -> OnDamage {
    let journal = Arc::clone(journal);
    Arc::new(move |what: &str, why: &str| {
        log::error(format_args!("{what} is damaged: {why}"));
        let mut entry = Entry::new(Event::StoreDamaged, Decision::Noted, "identityd");
        what.clone_into(&mut entry.object);
        why.clone_into(&mut entry.reason);
        // A count never fails its caller.
        let _ = journal(entry);
    })
}

/// Changes are durable before they are answered, refusals are counted (R37).
fn journal(audit: &Arc<Audit>, clock: &Arc<clock::Clock>) -> Journal {
    let (audit, clock) = (Arc::clone(audit), Arc::clone(clock));
    Arc::new(move |entry: Entry| -> Result<(), Refusal> {
        let now = clock.now();
        if entry.decision == Decision::Allowed {
            return Ok(audit.record(&now, entry)?);
        }
        audit.note(&now, entry);
        Ok(())
    })
}

fn limits(per_user: u32) -> Limits {
    Limits {
        per_user: usize::try_from(per_user).unwrap_or(10),
        ..Limits::default()
    }
}

/// Spreads the attempts of a fleet; without randomness the delay is fixed, which is still correct.
fn random() -> u64 {
    let mut bytes = [0; 8];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => u64::from_le_bytes(bytes),
        Err(_) => 0,
    }
}

/// All that this daemon opens from here on (R80): its state, its sockets' folders, the operator's
/// files, and what the system's resolver reads.
fn paths<'a>(
    certificates: Option<&'a Certificates>,
    identities: Option<&'a Identities>,
) -> Vec<(&'a Path, Access)> {
    let mut paths: Vec<(&Path, Access)> = [
        "/proc",
        "/dev/urandom",
        "/etc/hosts",
        "/etc/host.conf",
        "/etc/resolv.conf",
        "/etc/nsswitch.conf",
        "/etc/gai.conf",
        "/etc/services",
        "/run/systemd/resolve",
        "/run/resolvconf",
        "/lib",
        "/lib64",
        "/usr/lib",
    ]
    .iter()
    .map(|path| (Path::new(*path), Access::Read))
    .collect();
    let mut write = |path: Option<&'a Path>| paths.extend(path.map(|path| (path, Access::Write)));
    if let Some(config) = certificates {
        write(Some(&config.homedir));
        write(config.socket.parent());
        for entry in config.preloaded.values() {
            // Writing to such an id replaces the operator's file.
            if let Preloaded::File(path) = entry {
                write(path.parent());
            }
        }
    }
    if let Some(config) = identities {
        write(Some(&config.homedir));
        write(config.socket.parent());
        let system = Path::new(SYSTEM_ROOTS).parent();
        paths.extend(system.map(|folder| (folder, Access::Read)));
        paths.extend(
            config
                .trusted_certs
                .iter()
                .map(|path| (path.as_path(), Access::Read)),
        );
        if let Provisioning::Dps {
            payload: Some(path),
            ..
        } = &config.provisioning
        {
            paths.push((path, Access::Read));
        }
    }
    paths
}
