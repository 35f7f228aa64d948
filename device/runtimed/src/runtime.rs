//! What this daemon holds, and the life of a module: listen, start, register, end.
//!
//! A module's socket listens in a folder of its own before its process starts, and only that
//! folder is mounted into it. Everything that starts or ends a module comes through here, so the
//! registration and the sockets can never say different things.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use contract::audit::{Decision, Entry, Event};
use contract::names::{KeyId, ModuleName};
use contract::refusal::{Class, Refusal};
use contract::warden::{End, EnvPair, State};
use local::audit::Audit;
use local::client::Client;
use local::clock::Clock;
use local::files::Dir;
use local::log;
use local::peer::{Caller, Credentials, Proof};
use local::server::{Listener, Reach, Server};
use local::warden::Running;
use local::witness;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{Mode, OFlags};

use crate::api;
use crate::attest::{self, Evidence, Registration, Strictness};
use crate::config::Config;
use crate::engine::{Engine, Launch};
use crate::module::Module;

/// Where a module finds its sockets.
pub const INSIDE: &str = "/run/iotedge";
/// Signs the head of this daemon's audit log and nothing else.
const AUDIT_KEY: &str = "holdfast_audit_runtimed";
/// How long a module may take to end when it is asked to.
const GRACE: Duration = Duration::from_secs(10);
/// A module's output is dropped when it has grown to this: at its start, and once a minute. In
/// between the size limit of its grant holds (A88).
const LOG: u64 = 1024 * 1024;

/// Everything the handlers share.
pub struct Runtime {
    /// The configuration.
    pub config: Config,
    /// Keys.
    pub keys: Client,
    /// Certificates.
    pub certs: Client,
    /// Identities.
    pub identities: Client,
    /// What runs modules.
    pub engine: Box<dyn Engine>,
    /// The audit log.
    pub audit: Audit,
    /// The clocks.
    pub clock: Clock,
    /// Records of modules that the agent created.
    pub store: Dir,
    /// The listening sockets.
    pub server: Arc<Server>,
    /// By plain name.
    modules: RwLock<BTreeMap<String, Arc<Module>>>,
    /// Held while the counts of module generations are changed.
    pub generations: Mutex<()>,
    /// Readable when a module has started or ended.
    changes: OwnedFd,
}

/// What [`Runtime::new`] takes besides the configuration.
pub struct Parts {
    /// What runs modules.
    pub engine: Box<dyn Engine>,
    /// The audit log.
    pub audit: Audit,
    /// The clocks.
    pub clock: Clock,
    /// Records of modules.
    pub store: Dir,
    /// The listening sockets.
    pub server: Arc<Server>,
}

impl Runtime {
    /// A runtime without modules.
    ///
    /// # Errors
    /// When the kernel gives no event descriptor.
    pub fn new(config: Config, parts: Parts) -> std::io::Result<Self> {
        let endpoints = &config.endpoints;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self {
            keys: Client::new(endpoints.aziot_keyd_url.path()),
            certs: Client::new(endpoints.aziot_certd_url.path()),
            identities: Client::new(endpoints.aziot_identityd_url.path()),
            config,
            engine: parts.engine,
            audit: parts.audit,
            clock: parts.clock,
            store: parts.store,
            server: parts.server,
            modules: RwLock::new(BTreeMap::new()),
            generations: Mutex::new(()),
            changes: eventfd(0, flags)?,
        })
    }

    /// The module of this name.
    #[must_use]
    pub fn module(&self, name: &ModuleName) -> Option<Arc<Module>> {
        let modules = self.modules.read().unwrap_or_else(PoisonError::into_inner);
        modules.get(name.plain()).cloned()
    }

    /// All modules, by name.
    #[must_use]
    pub fn modules(&self) -> Vec<Arc<Module>> {
        let modules = self.modules.read().unwrap_or_else(PoisonError::into_inner);
        modules.values().cloned().collect()
    }

    /// Adds a module.
    ///
    /// # Errors
    /// 409 when the name is taken.
    pub fn add(&self, module: Module) -> Result<Arc<Module>, Refusal> {
        let mut modules = self.modules.write().unwrap_or_else(PoisonError::into_inner);
        let name = module.name.plain().to_owned();
        if modules.contains_key(&name) {
            let text = format!("runtime operation error: create module {name:?}");
            return Err(Refusal::new(Class::Conflict, text));
        }
        let module = Arc::new(module);
        modules.insert(name, Arc::clone(&module));
        Ok(module)
    }

    /// Takes a module out; its sockets go with it.
    pub fn remove(&self, module: &Module) {
        self.close(module);
        let mut modules = self.modules.write().unwrap_or_else(PoisonError::into_inner);
        modules.remove(module.name.plain());
    }

    /// Whether a process belongs to a module (R3-R10).
    ///
    /// # Errors
    /// `forbidden`, with the reason for the audit log.
    pub fn attest(
        &self,
        module: &Module,
        caller: &Caller,
    ) -> Result<(Arc<Registration>, Evidence), Refusal> {
        let registration = module
            .settled_registration()
            .filter(|registration| registration.alive())
            .ok_or_else(|| Refusal::forbidden("the module does not run"))?;
        let group = registration.facts.cgroup.as_ref().map(|group| group.id);
        if module.strictness != Strictness::Measured
            && let Some(evidence) = registration.known(caller.inode())
        {
            // Namespaces of a process do not change, its control group can: ask the kernel again.
            if group.is_none() || caller.info().map(|info| info.cgroup) == group {
                return Ok((registration, evidence));
            }
        }
        let seen = self.engine.measure(caller.pidfd()).map_err(|error| {
            Refusal::forbidden(format_args!("measuring the caller failed: {error}"))
                .recorded_as(Event::PeerStale)
        })?;
        let evidence = attest::judge(&registration.facts, &seen, module.strictness)
            .map_err(Refusal::forbidden)?;
        // A namespace's number may be given out again once the module is gone.
        if !registration.alive() {
            return Err(Refusal::forbidden("the module ended meanwhile"));
        }
        if caller.proof() == Proof::Weak {
            // R1: every decision on weaker proof says so; the log counts them.
            let who = format!("module:{}", module.name.plain());
            let mut entry = Entry::new(Event::PeerWeak, Decision::Noted, who);
            entry.reason = "attestation=weak: this kernel proves callers by number only".to_owned();
            self.audit.note(&self.clock.now(), entry);
        }
        registration.remember(caller.inode(), evidence);
        Ok((registration, evidence))
    }

    /// Writes a refusal of a caller to the audit log (R37: counted, first and last in full).
    pub fn refused(&self, who: Credentials, object: &str, refusal: &Refusal) {
        let Some(event) = refusal.event else { return };
        let principal = format!("uid:{}", who.uid);
        let mut entry = Entry::new(event, Decision::Refused, principal);
        entry.object = object.to_owned();
        entry.reason = format!(
            "{} (pid {})",
            refusal.cause.as_deref().unwrap_or(&refusal.message),
            who.pid
        );
        self.audit.note(&self.clock.now(), entry);
    }

    /// Records a privileged change before its answer is sent (R37).
    ///
    /// # Errors
    /// 503 when it cannot be recorded: then it must not be done (R38).
    pub fn record(&self, principal: &str, operation: &str, object: &str) -> Result<(), Refusal> {
        let mut entry = Entry::new(Event::ManagementDone, Decision::Allowed, principal);
        entry.operation = operation.to_owned();
        entry.object = object.to_owned();
        self.audit
            .record(&self.clock.now(), entry)
            .map_err(|error| {
                log::failure(log::Level::Error, &error);
                Refusal::new(Class::Unavailable, "the audit log cannot be written")
            })
    }

    /// Whether this is the module of its name still: it may have been removed while somebody waited
    /// for its `work` lock.
    #[must_use]
    pub fn has(&self, module: &Arc<Module>) -> bool {
        self.module(&module.name)
            .is_some_and(|now| Arc::ptr_eq(&now, module))
    }

    /// Signs where the audit log stands; says whether nothing is left to sign.
    pub fn sign_heads(&self, everything: bool) -> bool {
        let Ok(key) = KeyId::new(AUDIT_KEY) else {
            return true;
        };
        witness::sign_heads(&self.audit, &self.keys, &key, &self.clock.now(), everything)
    }

    /// Starts a module; fine when it runs. Hold its `work` lock.
    ///
    /// # Errors
    /// A refusal with the engine's reason; the module is as before.
    pub fn start(self: &Arc<Self>, module: &Arc<Module>) -> Result<(), Refusal> {
        if module
            .registration()
            .is_some_and(|registration| registration.alive())
        {
            return Ok(());
        }
        if !self.has(module) {
            let text = format!(
                "runtime operation error: start module {:?}",
                module.name.plain()
            );
            return Err(Refusal::new(Class::NotFound, text));
        }
        self.listen(module)?;
        let identity = self.identity(module)?;
        let env = self.env(module, &identity)?;
        let launch = Launch {
            module: &module.name,
            grant: &module.grant,
            env,
            log: self
                .log_file(module)
                .map_err(|e| failed("open the log of", module, &e))?,
            sockets: self
                .folder(module)
                .map_err(|e| failed("open the sockets of", module, &e))?,
        };
        let _starting = module.starting();
        match self.engine.start(launch) {
            Ok(running) => {
                self.register(module, running);
                Ok(())
            }
            Err(error) => {
                log::failure(log::Level::Warn, &error);
                if error.is_already_running() {
                    // The answer to an earlier start was lost. Nobody has registered what runs, so
                    // it is nobody; the next start is a clean one.
                    if let Err(error) = self.engine.stop(&module.name, 0) {
                        log::failure(log::Level::Warn, &error);
                    }
                }
                Err(failed("start", module, &error))
            }
        }
    }

    /// Takes over a module that runs, freshly started or met at a restart of this daemon.
    pub fn register(&self, module: &Module, running: Running) {
        let Running { facts, pidfd } = running;
        log::info(format_args!(
            "module {} runs under grant {}; attestation by {}",
            module.name,
            facts.grant,
            if facts.cgroup.is_some() {
                "cgroup and namespace"
            } else {
                "namespace"
            }
        ));
        module.register(
            Arc::new(Registration::new(facts, pidfd)),
            self.clock.now().wall,
        );
        self.signal();
    }

    /// Ends a module and waits for it. Hold its `work` lock.
    ///
    /// # Errors
    /// A refusal with the engine's reason.
    pub fn stop(&self, module: &Module) -> Result<(), Refusal> {
        let Some(registration) = module.registration() else {
            return Ok(());
        };
        let grace = u32::try_from(GRACE.as_millis()).unwrap_or(u32::MAX);
        if let Err(error) = self.engine.stop(&module.name, grace)
            && registration.alive()
        {
            return Err(failed("stop", module, &error));
        }
        let deadline = Instant::now() + GRACE + Duration::from_secs(2);
        while registration.alive() && Instant::now() < deadline {
            wait_for_end(&registration, deadline);
        }
        self.ended(module, &registration);
        Ok(())
    }

    /// Records that this registration of a module has ended. Both the watchdog and a stop may see
    /// it first; the second finds it recorded.
    pub fn ended(&self, module: &Module, registration: &Arc<Registration>) {
        if !module
            .registration()
            .is_some_and(|now| Arc::ptr_eq(&now, registration))
        {
            return;
        }
        let code = match self.engine.state(&module.name) {
            Ok(State::Exited(End::Code(code))) => i64::from(code),
            Ok(State::Exited(End::Signal(signal))) => 128 + i64::from(signal),
            // Warden itself was ended and took the module along, so nobody saw how.
            _ => 137,
        };
        module.deregister(self.clock.now().wall, code);
        log::info(format_args!("module {} ended with {code}", module.name));
        self.signal();
    }

    /// Readable when a module has started or ended since [`Self::clear_changes`].
    #[must_use]
    pub fn changes(&self) -> &OwnedFd {
        &self.changes
    }

    /// The watchdog has looked.
    pub fn clear_changes(&self) {
        // Empty already, then.
        let _ = rustix::io::read(&self.changes, &mut [0; 8]);
    }

    /// Has the watchdog look at once.
    pub fn signal(&self) {
        // A full counter is readable too.
        let _ = rustix::io::write(&self.changes, &1_u64.to_ne_bytes());
    }

    /// The folder of a module's sockets, outside.
    #[must_use]
    pub fn sockets_of(&self, name: &ModuleName) -> PathBuf {
        self.config.homedir.join("mnt").join(name.plain())
    }

    /// Listens on a module's own sockets, unless that is so already. The folder is mounted, not
    /// the socket, so a restart of this daemon gives the module its socket back.
    ///
    /// # Errors
    /// 500 when the folder is not ours or the socket cannot be bound.
    pub fn listen(self: &Arc<Self>, module: &Arc<Module>) -> Result<(), Refusal> {
        if module.listens() {
            return Ok(());
        }
        let folder = self.sockets_of(&module.name);
        open_folder(&folder, 0o755)
            .map_err(|error| failed("make the folder of", module, &error))?;
        let mut sockets = Vec::new();
        let limits = api::limits(self.config.iotedge_max_requests.workload, Reach::Modules);
        let routes = api::workload(Arc::clone(self), Arc::clone(module));
        sockets.push(self.open(module, &folder.join("workload.sock"), routes, limits)?);
        if module.name.plain() == "edgeAgent" {
            // The agent manages through its own folder, so that its mount outlives us too.
            let limits = api::limits(self.config.iotedge_max_requests.management, Reach::Modules);
            let routes = api::management(Arc::clone(self));
            sockets.push(self.open(module, &folder.join("mgmt.sock"), routes, limits)?);
        }
        module.keep_sockets(sockets);
        Ok(())
    }

    fn open(
        &self,
        module: &Module,
        path: &Path,
        routes: Arc<dyn local::routes::Service>,
        limits: local::server::Limits,
    ) -> Result<local::server::SocketId, Refusal> {
        Listener::bind(path, 0o666)
            .and_then(|listener| self.server.open(listener, routes, limits))
            .map_err(|error| failed("open a socket of", module, &error))
    }

    /// Stops listening on a module's own sockets.
    pub fn close(&self, module: &Module) {
        for socket in module.take_sockets() {
            self.server.close(socket);
        }
    }

    fn folder(&self, module: &Module) -> std::io::Result<OwnedFd> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::PATH | OFlags::CLOEXEC;
        Ok(rustix::fs::open(
            self.sockets_of(&module.name),
            flags,
            Mode::empty(),
        )?)
    }

    fn log_file(&self, module: &Module) -> std::io::Result<OwnedFd> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = self
            .config
            .homedir
            .join("logs")
            .join(format!("{}.log", module.name.plain()));
        let flags = OFlags::NOFOLLOW.bits();
        let file = File::options()
            .append(true)
            .create(true)
            .mode(0o640)
            .custom_flags(i32::try_from(flags).unwrap_or(0))
            .open(path)?;
        if file.metadata()?.len() > LOG {
            file.set_len(0)?;
        }
        Ok(file.into())
    }

    /// Drops a module's output once there is too much of it; the module appends on.
    pub fn bound_log(&self, module: &Module) {
        // What cannot be opened cannot grow through us either.
        drop(self.log_file(module));
    }

    fn env(
        &self,
        module: &Module,
        identity: &crate::module::Identity,
    ) -> Result<Vec<EnvPair>, Refusal> {
        let mut all = BTreeMap::new();
        for pair in &module.spec.config.env {
            all.insert(pair.key.clone(), pair.value.clone());
        }
        // Ours win: a deployment must not be able to point a module at another socket (A81).
        for (key, value) in [
            (
                "IOTEDGE_WORKLOADURI",
                format!("unix://{INSIDE}/workload.sock"),
            ),
            ("IOTEDGE_AUTHSCHEME", "sasToken".to_owned()),
            (
                "IOTEDGE_MODULEGENERATIONID",
                identity.generation.to_string(),
            ),
            ("IOTEDGE_MODULEID", module.name.identity()),
            ("IOTEDGE_APIVERSION", "2022-08-03".to_owned()),
            ("EdgeDeviceHostName", self.config.hostname.clone()),
        ] {
            all.insert(key.to_owned(), value);
        }
        if let Some(hub) = &identity.hub {
            all.insert("IOTEDGE_IOTHUBHOSTNAME".to_owned(), hub.name.clone());
            all.insert("IOTEDGE_DEVICEID".to_owned(), hub.device.clone());
            if !hub.gateway.eq_ignore_ascii_case(&hub.name) {
                all.insert("IOTEDGE_GATEWAYHOSTNAME".to_owned(), hub.gateway.clone());
            }
        }
        if module.name.plain() == "edgeAgent" {
            all.insert(
                "IOTEDGE_MANAGEMENTURI".to_owned(),
                format!("unix://{INSIDE}/mgmt.sock"),
            );
            all.insert("Mode".to_owned(), "iotedged".to_owned());
        }
        let pairs = all.into_iter().map(|(key, value)| EnvPair::new(key, value));
        pairs.collect::<Result<_, _>>().map_err(|error| {
            Refusal::new(Class::BadRequest, format!("invalid environment: {error}"))
        })
    }
}

/// Makes a folder that is missing, with this mode whatever the umask.
///
/// # Errors
/// As the system says.
pub fn open_folder(path: &Path, mode: u32) -> std::io::Result<()> {
    match rustix::fs::mkdir(path, Mode::RWXU) {
        Ok(()) => Ok(rustix::fs::chmod(path, Mode::from_raw_mode(mode))?),
        Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn wait_for_end(registration: &Registration, deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    let wait = rustix::event::Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(1),
        tv_nsec: i64::from(left.subsec_nanos()),
    };
    let mut poll = [rustix::event::PollFd::new(
        &registration.pidfd,
        rustix::event::PollFlags::IN,
    )];
    // An error only means another look at once.
    let _ = rustix::event::poll(&mut poll, Some(&wait));
}

/// The compatible text of an engine's failure; the reason goes to the log.
pub fn failed(verb: &str, module: &Module, error: &dyn std::error::Error) -> Refusal {
    let text = format!(
        "runtime operation error: {verb} module {:?}",
        module.name.plain()
    );
    let mut refusal = Refusal::new(Class::Internal, text);
    refusal.cause = Some(error.to_string());
    refusal
}
