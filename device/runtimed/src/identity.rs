//! A module's identity: from the hub through `identityd`, or this device's own when there is none.
//!
//! Asked once per life of a module and kept; a signature then costs one call to `keyd`.

use std::sync::{Arc, OnceLock, PoisonError};

use contract::api::identity::{
    AziotIdentity, CreateModule, CreateModuleRequest, Identity as Wire, IdentityKind, OneModule,
    ReadModule, UpdateModule,
};
use contract::api::key::{CreateKey, CreateKeyRequest, Derive, DeriveRequest, Usage};
use contract::bytes::Bytes;
use contract::endpoint::Empty;
use contract::names::{Generation, KeyId, ModuleId, ModuleName};
use contract::refusal::{Class, Refusal};
use local::client::CallError;
use local::records::{self, Record};
use serde::{Deserialize, Serialize};

use crate::module::{Hub, Identity, Keeper, Module};
use crate::runtime::Runtime;

/// The key under all module keys of a device without a hub.
const LOCAL_MASTER: &str = "holdfast_module_master_id";

/// Its record.
const COUNTS: &str = "generations";

/// How often each module has been created on this device, when no hub counts.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Counts(std::collections::BTreeMap<String, u64>);

impl Record for Counts {
    const KIND: &'static str = "module-generations";
    const VERSION: u32 = 1;
}

impl Runtime {
    /// A module's identity, kept or asked for.
    ///
    /// # Errors
    /// What `identityd` or `keyd` answered.
    pub fn identity(&self, module: &Module) -> Result<Arc<Identity>, Refusal> {
        if let Some(identity) = module.identity() {
            return Ok(identity);
        }
        let identity = Arc::new(match self.hub_identity(module)? {
            Some(spec) => from_hub(spec)?,
            None => self.local_identity(&module.name)?,
        });
        module.keep_identity(Arc::clone(&identity));
        Ok(identity)
    }

    /// What the hub knows of the module; `None` on a device that is not provisioned.
    ///
    /// A module that this daemon keeps gets its keys written to the hub at each start, and is
    /// created where it is missing; without the hub, the last record of it is good enough.
    fn hub_identity(&self, module: &Module) -> Result<Option<AziotIdentity>, Refusal> {
        let id = ModuleId::new(module.name.identity()).map_err(Refusal::internal)?;
        let target = OneModule::aziot(id.clone());
        let read = || self.identities.call::<ReadModule>(&target, &Empty);
        let answer = match module.keeper {
            Keeper::Agent => read(),
            Keeper::Us => self
                .identities
                .call::<UpdateModule>(&target, &serde_json::json!({}))
                .or_else(|error| {
                    if unprovisioned(&error) {
                        Err(error)
                    } else {
                        read()
                    }
                })
                .or_else(|error| {
                    if unprovisioned(&error) || error.status().is_none() {
                        return Err(error);
                    }
                    let request = CreateModuleRequest {
                        kind: IdentityKind::Aziot,
                        module_id: id.clone(),
                        local_id_opts: None,
                    };
                    self.identities.call::<CreateModule>(&(), &request)
                }),
        };
        match answer {
            Ok(Wire::Aziot(spec)) => Ok(Some(spec)),
            Ok(Wire::Local(_)) => Err(Refusal::internal("identityd gave a local identity")),
            Err(error) if unprovisioned(&error) => Ok(None),
            Err(error) => Err(upstream(&error)),
        }
    }

    fn local_identity(&self, name: &ModuleName) -> Result<Identity, Refusal> {
        let count = self.generation_of(name)?;
        let generation = Generation::new(count.to_string()).map_err(Refusal::internal)?;
        let request = CreateKeyRequest {
            key_id: KeyId::new(LOCAL_MASTER).map_err(Refusal::internal)?,
            usage: Usage {
                sign: true,
                encrypt: false,
            },
            key_bytes: None,
        };
        let master = self
            .keys
            .call::<CreateKey>(&(), &request)
            .map_err(|e| upstream(&e))?;
        let data = format!("{name}:{generation}:primary", name = name.identity());
        let request = DeriveRequest {
            base_key_handle: master.key_handle,
            derivation_data: Bytes(data.into_bytes()),
        };
        let derived = self
            .keys
            .call::<Derive>(&(), &request)
            .map_err(|e| upstream(&e))?;
        Ok(Identity {
            generation,
            key: derived.key_handle,
            hub: None,
            encryption: OnceLock::new(),
        })
    }

    fn generation_of(&self, name: &ModuleName) -> Result<u64, Refusal> {
        let _one = self
            .generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut counts = self.counts()?;
        if let Some(count) = counts.0.get(name.plain()) {
            return Ok(*count);
        }
        counts.0.insert(name.plain().to_owned(), 1);
        records::write(&self.store, COUNTS, &counts).map_err(Refusal::internal)?;
        Ok(1)
    }

    /// The next creation of a module of this name is another generation.
    ///
    /// # Errors
    /// When that cannot be recorded.
    pub fn end_local_generation(&self, name: &ModuleName) -> Result<(), Refusal> {
        let _one = self
            .generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut counts = self.counts()?;
        let Some(count) = counts.0.get_mut(name.plain()) else {
            return Ok(());
        };
        *count += 1;
        records::write(&self.store, COUNTS, &counts).map_err(Refusal::internal)
    }

    fn counts(&self) -> Result<Counts, Refusal> {
        let found = records::read::<Counts>(&self.store, COUNTS).map_err(Refusal::internal)?;
        Ok(found.map(|(counts, _)| counts).unwrap_or_default())
    }
}

fn from_hub(spec: AziotIdentity) -> Result<Identity, Refusal> {
    let missing = |what: &str| Refusal::internal(format_args!("identityd gave no {what}"));
    let generation = spec.gen_id.ok_or_else(|| missing("generation id"))?;
    let auth = spec.auth.ok_or_else(|| missing("auth"))?;
    Ok(Identity {
        generation: Generation::new(generation).map_err(Refusal::internal)?,
        key: auth.key_handle.ok_or_else(|| missing("key handle"))?,
        hub: Some(Hub {
            name: spec.hub_name,
            gateway: spec.gateway_host,
            device: spec.device_id,
        }),
        encryption: OnceLock::new(),
    })
}

fn unprovisioned(error: &CallError) -> bool {
    error.status() == Some(400) && error.to_string().contains("device identity not found")
}

/// A failure of a service behind us: 500 with its words (module-runtime.md 1.4).
pub fn upstream(error: &CallError) -> Refusal {
    let mut refusal = Refusal::new(Class::Internal, error.to_string());
    refusal.cause = Some(error.to_string());
    refusal
}
