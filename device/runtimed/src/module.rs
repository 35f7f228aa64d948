//! One module: what it is, whether it runs, and its identity while it does.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use contract::api::key::KeyHandle;
use contract::api::management::{
    ExitStatus, IMAGE_LABEL, ModuleConfig, ModuleDetails, ModuleSpec, OWNER, OWNER_LABEL,
    RuntimeStatus, Settings, State, Status,
};
use contract::grant::GrantName;
use contract::names::{Generation, ModuleName};
use contract::time::rfc3339;
use local::server::SocketId;
use serde_json::{Value, json};

use crate::attest::{Registration, Strictness};

/// Who brings a module back when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeper {
    /// This daemon: the agent, and modules of the configuration.
    Us,
    /// The agent, by its restart policy.
    Agent,
}

/// A module.
pub struct Module {
    /// Its name.
    pub name: ModuleName,
    /// What it was created as.
    pub spec: ModuleSpec,
    /// What it runs.
    pub grant: GrantName,
    /// Who brings it back.
    pub keeper: Keeper,
    /// How its callers are attested.
    pub strictness: Strictness,
    /// Held while it is started, stopped or replaced, so that these do not mix; never while a
    /// request of the module is served.
    pub work: Mutex<()>,
    running: RwLock<Option<Arc<Registration>>>,
    identity: RwLock<Option<Arc<Identity>>>,
    history: Mutex<History>,
    sockets: Mutex<Vec<SocketId>>,
    /// An operator stopped it; the watchdog leaves it so.
    halted: AtomicBool,
    /// When its identity was last asked for again, in monotonic milliseconds.
    renewed: AtomicI64,
    /// Its requests in flight at the services behind us.
    turns: (Mutex<usize>, Condvar),
    /// Whether its process may run already, although nobody has registered it yet.
    starting: (Mutex<bool>, Condvar),
}

/// While this lives, who asks for the registration waits for it.
pub struct Starting<'a>(&'a Module);

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        *self
            .0
            .starting
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = false;
        self.0.starting.1.notify_all();
    }
}

/// Most requests of one module in flight at the services behind us.
const TURNS: usize = 2;
/// Between two renewals of an identity, in milliseconds.
const RENEW: i64 = 5_000;

/// A request in flight.
pub struct Turn<'a>(&'a Module);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self
            .0
            .turns
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.turns.1.notify_one();
    }
}

/// Longest wait for a start to be registered: it takes milliseconds.
const START: Duration = Duration::from_secs(2);

/// A module's identity: its generation and the handles that act for it.
#[derive(Debug)]
pub struct Identity {
    /// Of this creation at the hub, or of this device's own count.
    pub generation: Generation,
    /// The module's primary key.
    pub key: KeyHandle,
    /// The hub, if the device has one.
    pub hub: Option<Hub>,
    /// The key that encrypts for the module, once it has been asked for.
    pub encryption: OnceLock<KeyHandle>,
}

/// Where a module is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hub {
    /// The hub a token is made for.
    pub name: String,
    /// The host a client connects to.
    pub gateway: String,
    /// The device.
    pub device: String,
}

/// When it started and how it ended; times in seconds since 1970.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Last start.
    pub started: Option<i64>,
    /// Last end, and its exit code.
    pub ended: Option<(i64, i64)>,
}

impl Module {
    /// A module that has not been started.
    #[must_use]
    pub fn new(
        name: ModuleName,
        spec: ModuleSpec,
        grant: GrantName,
        keeper: Keeper,
        strictness: Strictness,
    ) -> Self {
        Self {
            name,
            spec,
            grant,
            keeper,
            strictness,
            work: Mutex::new(()),
            running: RwLock::new(None),
            identity: RwLock::new(None),
            history: Mutex::new(History::default()),
            sockets: Mutex::new(Vec::new()),
            halted: AtomicBool::new(false),
            renewed: AtomicI64::new(i64::MIN),
            turns: (Mutex::new(0), Condvar::new()),
            starting: (Mutex::new(false), Condvar::new()),
        }
    }

    /// Its process is about to run: it may ask for something before it is registered.
    #[must_use]
    pub fn starting(&self) -> Starting<'_> {
        *self
            .starting
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
        Starting(self)
    }

    /// Its registration, once a start that is under way has ended.
    #[must_use]
    pub fn settled_registration(&self) -> Option<Arc<Registration>> {
        self.registration().or_else(|| {
            let starting = self
                .starting
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            drop(
                self.starting
                    .1
                    .wait_timeout_while(starting, START, |starting| *starting),
            );
            self.registration()
        })
    }

    /// Its registration, while it runs.
    #[must_use]
    pub fn registration(&self) -> Option<Arc<Registration>> {
        self.running
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// It runs from now on.
    pub fn register(&self, registration: Arc<Registration>, now: i64) {
        *self.running.write().unwrap_or_else(PoisonError::into_inner) = Some(registration);
        self.history
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .started = Some(now);
    }

    /// It has ended: this registration is void from now on (R3).
    pub fn deregister(&self, now: i64, code: i64) {
        *self.running.write().unwrap_or_else(PoisonError::into_inner) = None;
        self.forget_identity();
        self.history
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .ended = Some((now, code));
    }

    /// Its identity, where it has been asked for.
    #[must_use]
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.identity
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Keeps its identity until it ends or is refused somewhere.
    pub fn keep_identity(&self, identity: Arc<Identity>) {
        *self
            .identity
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Some(identity);
    }

    /// The next request asks for it again.
    pub fn forget_identity(&self) {
        *self
            .identity
            .write()
            .unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether its identity may be asked for again now: wrong generations must not let a module
    /// drive the services behind us.
    #[must_use]
    pub fn may_renew(&self, now: i64) -> bool {
        let last = self.renewed.load(Ordering::Relaxed);
        let due = last == i64::MIN || now - last >= RENEW;
        due && self
            .renewed
            .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }

    /// Waits for its turn; the request is in flight while the turn lives (R14, P9).
    #[must_use]
    pub fn turn(&self) -> Turn<'_> {
        let flying = self.turns.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.turns.1.wait_while(flying, |flying| *flying >= TURNS);
        *waited.unwrap_or_else(PoisonError::into_inner) += 1;
        Turn(self)
    }

    /// Its listening sockets, handed over.
    #[must_use]
    pub fn take_sockets(&self) -> Vec<SocketId> {
        std::mem::take(&mut *self.sockets.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes over listening sockets.
    pub fn keep_sockets(&self, sockets: Vec<SocketId>) {
        *self.sockets.lock().unwrap_or_else(PoisonError::into_inner) = sockets;
    }

    /// Whether it has listening sockets.
    #[must_use]
    pub fn listens(&self) -> bool {
        !self
            .sockets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty()
    }

    /// Whether the watchdog leaves it stopped.
    #[must_use]
    pub fn is_halted(&self) -> bool {
        self.halted.load(Ordering::Relaxed)
    }

    /// From now on the watchdog leaves it stopped, or no longer does. The agent is always brought
    /// back (module-runtime.md 6.3).
    pub fn halt(&self, halted: bool) {
        self.halted.store(
            halted && self.name.plain() != "edgeAgent",
            Ordering::Relaxed,
        );
    }

    /// Its history so far.
    #[must_use]
    pub fn history(&self) -> History {
        self.history
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Labels as a container would carry them; a module of the configuration has no owner.
    fn labels(&self) -> BTreeMap<String, Value> {
        let mut labels = json!({ IMAGE_LABEL: self.spec.config.settings.image });
        if self.keeper == Keeper::Agent || self.name.plain() == "edgeAgent" {
            labels[OWNER_LABEL] = json!(OWNER);
        }
        BTreeMap::from([("Labels".to_owned(), labels)])
    }

    /// How it is, as the management API says it (module-runtime.md 2.1, 5.6).
    #[must_use]
    pub fn details(&self) -> ModuleDetails {
        let running = self.registration();
        let history = self.history();
        let state = match (&running, history.ended) {
            (Some(_), _) => State::Running,
            (None, Some((_, code))) if code != 0 => State::Failed,
            (None, _) => State::Stopped,
        };
        let asked = &self.spec.config.settings;
        // Secrets in the environment and logins are not read back (R48).
        let settings = Settings {
            image: asked.image.clone(),
            image_hash: running.map(|r| {
                format!(
                    "sha256:{}",
                    contract::audit::hex(&r.facts.executable.digest)
                )
            }),
            create_options: Some(self.labels()),
            digest: asked.digest.clone(),
            auth: None,
        };
        let config = ModuleConfig {
            settings,
            env: Vec::new(),
        };
        ModuleDetails {
            id: "id".to_owned(),
            name: self.name.plain().to_owned(),
            kind: self.spec.kind.clone(),
            config,
            status: Status {
                start_time: history.started.map(rfc3339),
                exit_status: history.ended.map(|(time, code)| ExitStatus {
                    exit_time: rfc3339(time),
                    status_code: code.to_string(),
                }),
                runtime_status: RuntimeStatus {
                    status: state,
                    description: None,
                },
            },
        }
    }
}
