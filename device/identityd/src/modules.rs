//! Module identities at the hub: the verbs of the identity API (identity-service.md 4.2, 4.3).
//!
//! A module's keys are derived from one master key in keyd by its name and generation; the hub gets
//! their bytes, a caller gets a handle of the first. Reading goes on from the last record while the
//! hub cannot be asked; creating, updating and deleting need it.

use std::sync::PoisonError;

use contract::api::identity::{Auth, AuthKind, Identity};
use contract::api::key::KeyHandle;
use contract::audit::{Decision, Entry, Event};
use contract::bytes::Secret;
use contract::names::{Generation, KeyId, ModuleId};

use crate::cloud::{CloudError, Known};
use crate::error::IdentityError;
use crate::identities::{Identities, Provisioned, aziot};
use crate::keys::KeyError;

/// The key that all module keys of this device are derived from.
const MASTER: &str = "aziot_identityd_master_id";

impl Identities {
    /// All module identities, without credentials.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn modules(&self) -> Result<Vec<Identity>, IdentityError> {
        let at = self.provisioned()?;
        let known = at.modules.all();
        // The reference takes any list it has, an empty one too; an empty one of ours may only
        // mean that nothing was asked yet, and asking once more loses nothing.
        let list = if self.config().prefer_cache && !known.is_empty() {
            known
        } else {
            match at.hub.list() {
                Ok(list) => {
                    at.modules.put_list(&list);
                    list
                }
                Err(error) if known.is_empty() => return Err(IdentityError::Hub(error)),
                Err(_) => known,
            }
        };
        Ok(list
            .iter()
            .map(|m| Identity::Aziot(aziot(&at.device, Some(m), None)))
            .collect())
    }

    /// One module identity, with a handle of its key.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn module(&self, id: &ModuleId) -> Result<Identity, IdentityError> {
        let at = self.provisioned()?;
        let known = at.modules.find(id);
        let module = match known {
            Some(known) if self.config().prefer_cache => known,
            known => match (at.hub.read(id), known) {
                (Ok(module), _) => {
                    at.modules.put(&module);
                    module
                }
                // The hub itself says that there is none: no old record outweighs that.
                (Err(error), Some(known)) if !error.is_absent() => known,
                (Err(error), _) => return Err(IdentityError::Hub(error)),
            },
        };
        self.credentialed(&at, &module)
    }

    /// Creates a module identity with keys of ours.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn create_module(&self, who: &str, id: &ModuleId) -> Result<Identity, IdentityError> {
        let at = self.provisioned()?;
        self.create_at(who, &at, id)?;
        let module = at.modules.find(id).ok_or(IdentityError::NoModule)?;
        self.credentialed(&at, &module)
    }

    /// Gives an existing module identity our keys.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn update_module(&self, who: &str, id: &ModuleId) -> Result<Identity, IdentityError> {
        let at = self.provisioned()?;
        let module = self.set_keys_at(who, &at, id)?;
        self.credentialed(&at, &module)
    }

    /// Deletes a module identity.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn delete_module(&self, who: &str, id: &ModuleId) -> Result<(), IdentityError> {
        let at = self.provisioned()?;
        self.delete_at(who, &at, id)
    }

    pub(crate) fn create_at(
        &self,
        who: &str,
        at: &Provisioned,
        id: &ModuleId,
    ) -> Result<Known, IdentityError> {
        self.record(who, "create", id)?;
        // A creation cut short between the two calls is completed by an update, or at the next
        // reconcile: the hub lists the module, and it is given its keys then.
        let module = at.hub.create(id).map_err(IdentityError::Hub)?;
        self.keyed(at, module)
    }

    pub(crate) fn set_keys_at(
        &self,
        who: &str,
        at: &Provisioned,
        id: &ModuleId,
    ) -> Result<Known, IdentityError> {
        self.record(who, "update", id)?;
        let module = at.hub.read(id).map_err(IdentityError::Hub)?;
        self.keyed(at, module)
    }

    pub(crate) fn delete_at(
        &self,
        who: &str,
        at: &Provisioned,
        id: &ModuleId,
    ) -> Result<(), IdentityError> {
        self.record(who, "delete", id)?;
        at.hub.delete(id).map_err(IdentityError::Hub)?;
        Ok(at.modules.forget(id)?)
    }

    /// Sets the keys that belong to a module's generation.
    fn keyed(&self, at: &Provisioned, module: Known) -> Result<Known, IdentityError> {
        let generation = module.generation.clone();
        let generation = generation
            .ok_or_else(|| IdentityError::Hub(CloudError::NoGeneration(module.id.clone())))?;
        let keys = [
            self.exported(&module.id, &generation, "primary")?,
            self.exported(&module.id, &generation, "secondary")?,
        ];
        let set = at
            .hub
            .set_keys(&module.id, &keys)
            .map_err(IdentityError::Hub)?;
        // A hub that leaves the generation out of this answer has not changed it.
        let set = Known {
            generation: set.generation.or(Some(generation)),
            ..set
        };
        at.modules.put(&set);
        Ok(set)
    }

    /// A module's identity as its user gets it.
    fn credentialed(&self, at: &Provisioned, module: &Known) -> Result<Identity, IdentityError> {
        let generation = module.generation.as_ref().ok_or(IdentityError::NoModule)?;
        let key_handle = Some(self.derived(&module.id, generation, "primary")?);
        let auth = Auth {
            kind: AuthKind::Sas,
            key_handle,
            cert_id: None,
        };
        Ok(Identity::Aziot(aziot(&at.device, Some(module), Some(auth))))
    }

    fn exported(
        &self,
        id: &ModuleId,
        generation: &Generation,
        which: &str,
    ) -> Result<Secret, KeyError> {
        let handle = self.derived(id, generation, which)?;
        self.parts.keys.export(&handle)
    }

    /// The handle of a module's key. The text it is derived by is the compatible one; a generation
    /// has no colon at any known hub, and no choice of a name can make up for one.
    fn derived(
        &self,
        id: &ModuleId,
        generation: &Generation,
        which: &str,
    ) -> Result<KeyHandle, KeyError> {
        let data = format!("{id}:{generation}:{which}");
        let held = self
            .master
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(master) = held
            && let Ok(handle) = self.parts.keys.derive(&master, data.as_bytes())
        {
            return Ok(handle);
        }
        // None yet, or its epoch is over: creating again answers the key that is there.
        let id = KeyId::new(MASTER).map_err(|_| KeyError::Malformed("key id"))?;
        let master = self.parts.keys.create_key(&id)?;
        let handle = self.parts.keys.derive(&master, data.as_bytes())?;
        *self.master.lock().unwrap_or_else(PoisonError::into_inner) = Some(master);
        Ok(handle)
    }

    /// Recorded before it is done: an identity that changed at the hub cannot be changed back.
    fn record(&self, who: &str, operation: &str, id: &ModuleId) -> Result<(), IdentityError> {
        let mut entry = Entry::new(Event::ProvisioningChanged, Decision::Allowed, who);
        operation.clone_into(&mut entry.operation);
        entry.object = format!("module {id}");
        (self.parts.journal)(entry).map_err(IdentityError::Audit)
    }
}
