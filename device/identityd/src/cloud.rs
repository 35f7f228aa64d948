//! The provisioning service and the hub, as this daemon asks them.
//!
//! [`Cloud`] and [`Hub`] are the whole of it, so that simulation can put a world behind them.
//! [`Network`] is the real one: over `net`, with tokens signed in keyd and only on a clock that may
//! mint (R72). Nothing here decides or remembers anything.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;

use contract::api::key::KeyHandle;
use contract::bytes::Secret;
use contract::names::{Generation, KeyId, ModuleId};
use local::files::{self, FileError, Rules};
use net::dps::{Assigned, Dps, DpsError, Limits};
use net::https::{Https, HttpsError};
use net::registry::{Module, Registry, RegistryError};
use net::tls::{self, Roots, Target, TlsError};
use net::token::{Owner, SignError, Source};

use crate::certs::Clock;
use crate::config::{Identities, Provisioning, SYSTEM_ROOTS};
use crate::keys::{KeyError, Keys};
use crate::provision::Device;

/// Seconds a token lives: it is made for one request (identity-service.md 6.3).
const TOKEN: u32 = 30;
/// The longest payload file.
const MAX_PAYLOAD: usize = 64 * 1024;
/// The wait before a call that did not get through is made again.
const AGAIN: Duration = Duration::from_secs(3);

/// Why the cloud did not answer as wished.
#[derive(Debug, thiserror::Error)]
pub enum CloudError {
    /// The provisioning service.
    #[error(transparent)]
    Dps(#[from] DpsError),
    /// The hub.
    #[error(transparent)]
    Hub(#[from] RegistryError),
    /// The hub's answer lacks what it must have.
    #[error("the hub gave module {0} no generation")]
    NoGeneration(ModuleId),
    /// The roots or the address cannot be used.
    #[error("no trusted connection can be made")]
    Tls(#[from] TlsError),
    /// A file of roots, or the payload.
    #[error("a configured file cannot be read")]
    File(#[from] FileError),
    /// A configured file is not there, or not what it should be.
    #[error("{path}: {why}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl CloudError {
    /// Whether nobody said no: the last record then counts, and a later attempt may succeed.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        match self {
            Self::Dps(error) => error.may_pass(),
            // Without a token nothing was asked: keyd is away, or the clock is wrong.
            Self::Hub(RegistryError::Token(_) | RegistryError::Throttled { .. }) => true,
            Self::Hub(error) => error.is_offline(),
            Self::Tls(_) | Self::File(_) | Self::Content { .. } => true,
            Self::NoGeneration(_) => false,
        }
    }

    /// Whether the hub itself says that there is no such thing.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Hub(RegistryError::Hub { status: 404, .. }))
    }
}

/// A module at the hub, with what the protocol needs of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub id: ModuleId,
    /// Its generation; a hub may leave it out for a moment.
    pub generation: Option<Generation>,
    /// Who made it.
    pub managed_by: Option<String>,
}

impl From<Module> for Known {
    fn from(module: Module) -> Self {
        Self {
            id: module.module_id,
            generation: module.generation_id,
            managed_by: module.managed_by,
        }
    }
}

/// The hub's registry, for the modules of one device.
pub trait Hub: Send + Sync {
    /// All of them.
    fn list(&self) -> Result<Vec<Known>, CloudError>;
    /// One.
    fn read(&self, id: &ModuleId) -> Result<Known, CloudError>;
    /// Creates one without keys, to learn its generation.
    fn create(&self, id: &ModuleId) -> Result<Known, CloudError>;
    /// Gives one its keys.
    fn set_keys(&self, id: &ModuleId, keys: &[Secret; 2]) -> Result<Known, CloudError>;
    /// Removes one.
    fn delete(&self, id: &ModuleId) -> Result<(), CloudError>;
}

/// The way to both services.
pub trait Cloud: Send + Sync {
    /// Registers the device, as configured.
    fn register(&self) -> Result<Assigned, CloudError>;
    /// The registry of a device, with the configured key. Nothing is asked yet.
    fn hub(&self, device: &Device) -> Box<dyn Hub>;
}

/// How long to wait; false ends the waiting for good.
pub type Wait = Arc<dyn Fn(Duration) -> bool + Send + Sync>;

/// The services themselves.
pub struct Network(Arc<Line>);

/// What each call is made over.
struct Line {
    config: Identities,
    keys: Arc<dyn Keys>,
    clock: Clock,
    rules: Rules,
    wait: Wait,
    tls: Mutex<Option<tls::Client>>,
}

impl Network {
    /// The configured services; no file is read and nobody called yet.
    #[must_use]
    pub fn new(
        config: Identities,
        keys: Arc<dyn Keys>,
        clock: Clock,
        rules: Rules,
        wait: Wait,
    ) -> Self {
        Self(Arc::new(Line {
            config,
            keys,
            clock,
            rules,
            wait,
            tls: Mutex::new(None),
        }))
    }
}

impl Line {
    /// The roots are read when they are first needed, and again after a failure.
    fn https(&self, address: &str) -> Result<Https, CloudError> {
        let mut tls = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
        let client = match &*tls {
            Some(client) => client.clone(),
            None => tls.insert(tls::Client::new(&self.roots()?)?).clone(),
        };
        let deadline = Duration::from_secs(self.config.cloud_timeout);
        Ok(Https::with_deadline(
            client,
            Target::parse(address, 443)?,
            deadline,
        ))
    }

    fn roots(&self) -> Result<Roots, CloudError> {
        let read = |path: &Path, limit| {
            let absent = || CloudError::Content {
                path: path.to_owned(),
                why: "no such file",
            };
            files::read_at(path, self.rules, limit)?.ok_or_else(absent)
        };
        if self.config.trusted_certs.is_empty() {
            let bundle = read(Path::new(SYSTEM_ROOTS), tls::MAX_SYSTEM_BUNDLE)?;
            return Ok(Roots::from_system(&bundle)?);
        }
        let mut bundle = Vec::new();
        for path in &self.config.trusted_certs {
            bundle.extend(read(path, tls::MAX_BUNDLE)?);
            bundle.push(b'\n');
        }
        Ok(Roots::from_pem(&bundle)?)
    }

    fn tokens(&self, owner: Owner, key: &KeyId) -> Source {
        let (keys, key) = (Arc::clone(&self.keys), key.clone());
        // A handle lives as long as its key's epoch; a refused one is asked for once more.
        let held: Mutex<Option<KeyHandle>> = Mutex::new(None);
        let sign = move |data: &[u8]| -> Result<[u8; 32], SignError> {
            let kept = held.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(handle) = kept
                && let Ok(signature) = keys.hmac(&handle, data)
            {
                return Ok(signature);
            }
            let handle = keys.key(&key)?;
            let signature = keys.hmac(&handle, data)?;
            *held.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
            Ok(signature)
        };
        let clock = Arc::clone(&self.clock);
        let wall = move || {
            let now = clock();
            now.may_mint().then_some(now.wall)
        };
        Source::new(owner, TOKEN, sign, wall)
    }

    fn registry(&self, device: &Device) -> Result<Registry, CloudError> {
        let key = match &self.config.provisioning {
            Provisioning::Manual { key, .. } | Provisioning::Dps { key, .. } => key,
            Provisioning::None => return Err(DpsError::Stopped.into()),
        };
        let owner = Owner::Device {
            hub: device.hub.to_string(),
            device: device.id.to_string(),
        };
        let tokens = self.tokens(owner, key);
        let https = self.https(device.gateway.as_str())?;
        Ok(Registry::new(https, device.id.clone(), tokens))
    }
}

/// The content of the configured payload file.
///
/// # Errors
/// [`CloudError`] when there is one and it is not JSON.
pub fn payload(source: &Provisioning, rules: Rules) -> Result<Option<Value>, CloudError> {
    let Provisioning::Dps {
        payload: Some(path),
        ..
    } = source
    else {
        return Ok(None);
    };
    let fail = |why| CloudError::Content {
        path: path.clone(),
        why,
    };
    let text = files::read_at(path, rules, MAX_PAYLOAD)?.ok_or_else(|| fail("no such file"))?;
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|_| fail("not JSON"))
}

impl Cloud for Network {
    fn register(&self) -> Result<Assigned, CloudError> {
        let line = &self.0;
        let Provisioning::Dps {
            endpoint,
            scope,
            registration,
            key,
            ..
        } = &line.config.provisioning
        else {
            return Err(DpsError::Stopped.into());
        };
        let owner = Owner::Registration {
            scope: scope.clone(),
            registration: registration.to_string(),
        };
        let dps = Dps::new(
            line.https(endpoint.as_str())?,
            scope,
            registration.clone(),
            payload(&line.config.provisioning, line.rules)?,
            line.tokens(owner, key),
        )?;
        let rule = line.config.allowed_hubs.clone();
        Ok(dps.register(rule, Limits::default(), &mut |span| (line.wait)(span))?)
    }

    fn hub(&self, device: &Device) -> Box<dyn Hub> {
        Box::new(Remote {
            line: Arc::clone(&self.0),
            device: device.clone(),
            registry: Mutex::new(None),
        })
    }
}

/// The hub's registry. It is made with the first call, so that a device serves its identity while
/// its roots cannot be read, and it is asked again where no connection came about.
struct Remote {
    line: Arc<Line>,
    device: Device,
    registry: Mutex<Option<Arc<Registry>>>,
}

impl Remote {
    fn registry(&self) -> Result<Arc<Registry>, CloudError> {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(registry) = &*registry {
            return Ok(Arc::clone(registry));
        }
        let made = Arc::new(self.line.registry(&self.device)?);
        *registry = Some(Arc::clone(&made));
        Ok(made)
    }

    /// Only a call that never reached the hub is repeated: then nothing can have happened twice.
    fn again<T>(
        &self,
        call: impl Fn(&Registry) -> Result<T, RegistryError>,
    ) -> Result<T, CloudError> {
        let registry = self.registry()?;
        let mut left = self.line.config.cloud_retries;
        loop {
            match call(&registry) {
                Err(RegistryError::Network(HttpsError::Connect { .. }))
                    if left > 0 && (self.line.wait)(AGAIN) =>
                {
                    left -= 1;
                }
                done => return Ok(done?),
            }
        }
    }
}

impl Hub for Remote {
    fn list(&self) -> Result<Vec<Known>, CloudError> {
        Ok(self
            .again(Registry::list)?
            .into_iter()
            .map(Known::from)
            .collect())
    }

    fn read(&self, id: &ModuleId) -> Result<Known, CloudError> {
        self.again(|registry| registry.get(id)).map(Known::from)
    }

    fn create(&self, id: &ModuleId) -> Result<Known, CloudError> {
        self.again(|registry| registry.create_without_keys(id))
            .map(Known::from)
    }

    fn set_keys(&self, id: &ModuleId, keys: &[Secret; 2]) -> Result<Known, CloudError> {
        self.again(|registry| registry.set_keys(id, &keys[0], &keys[1]))
            .map(Known::from)
    }

    fn delete(&self, id: &ModuleId) -> Result<(), CloudError> {
        self.again(|registry| registry.delete(id))
    }
}

/// An error and its causes, in the compatible form (identity-service.md 1.4).
#[must_use]
pub fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str("\ncaused by: ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

impl From<KeyError> for CloudError {
    fn from(error: KeyError) -> Self {
        Self::Hub(RegistryError::Token(net::token::TokenError::Sign(
            Box::new(error),
        )))
    }
}
