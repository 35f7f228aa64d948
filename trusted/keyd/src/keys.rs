//! Symmetric keys: create, import, load, delete, derive, export what is derived (R19, R24).

use contract::api::key::{
    self as api, CreateKeyRequest, ExportResponse, HandleResponse, KeyHandle, Usage,
};
use contract::audit::Event;
use contract::bytes::Secret;
use contract::endpoint::{Ask, Empty};
use contract::handle::Subject;
use contract::names::KeyId;
use contract::policy::{Act, Purpose, Purposes};
use contract::refusal::Refusal;
use zeroize::Zeroizing;

use crate::daemon::{Keyd, User, random_key};
use crate::error::KeyError;
use crate::material::Material;
use crate::pem;
use crate::store::Entry;

/// Creates a key if it is absent, or imports one.
///
/// # Errors
/// [`Refusal`]; a key that exists is then as it was (A47).
pub fn create(
    keyd: &Keyd,
    who: &User,
    ask: Ask<api::CreateKey>,
) -> Result<HandleResponse, Refusal> {
    let id = ask.body.key_id.clone();
    create_or_import(keyd, *who, ask.body)
        .map_err(|error| keyd.refuse(*who, "create key", id.as_str(), error))
}

fn create_or_import(
    keyd: &Keyd,
    who: User,
    request: CreateKeyRequest,
) -> Result<HandleResponse, KeyError> {
    let CreateKeyRequest {
        key_id: id,
        usage,
        key_bytes,
    } = request;
    keyd.may(who, &id, Act::Create)?;
    let bytes = key_bytes.as_ref().map(Secret::expose);
    // A file that looks like PEM is a key pair's, so such bytes are no symmetric key here.
    if bytes.is_some_and(|b| b.is_empty() || pem::is_pem(b)) {
        return Err(KeyError::Invalid);
    }
    let change = keyd.store().change();
    let old = if change.free(&id)? {
        None
    } else {
        change.load(&id)?
    };
    let epoch = match (old, bytes) {
        (Some(entry), wanted) if satisfies(&entry, usage, wanted) => entry.epoch,
        (Some(entry), Some(bytes)) if satisfies(&entry, usage, None) => {
            if keyd.may(who, &id, Act::Replace).is_err() {
                let how = "with other bytes, and replacing it was not granted";
                return Err(KeyError::Conflict { id, how });
            }
            keyd.record(
                who,
                Event::KeyCreated,
                "import",
                &id,
                "replaces other bytes",
            )?;
            change.put(&id, copy(bytes), entry.usage)?.epoch
        }
        (Some(entry), _) => {
            let how = match entry.material {
                Material::Key(_) => "with another usage",
                Material::Pair(_) => "and is a key pair",
            };
            return Err(KeyError::Conflict { id, how });
        }
        (None, Some(bytes)) => {
            keyd.record(who, Event::KeyCreated, "import", &id, "")?;
            change.put(&id, copy(bytes), usage)?.epoch
        }
        (None, None) => {
            keyd.record(who, Event::KeyCreated, "create key", &id, "")?;
            change.put(&id, random_key()?, usage)?.epoch
        }
    };
    keyd.issue(who, Subject::Key(id), epoch)
}

/// Whether a key is what was asked for: symmetric, good for the usage, and of these bytes if any
/// are given.
fn satisfies(entry: &Entry, usage: Usage, bytes: Option<&[u8]>) -> bool {
    let Material::Key(key) = &entry.material else {
        return false;
    };
    let usable = (entry.usage.sign || !usage.sign) && (entry.usage.encrypt || !usage.encrypt);
    usable && bytes.is_none_or(|b| key.is(b))
}

fn copy(bytes: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(bytes.to_vec())
}

/// A handle for an existing key.
///
/// # Errors
/// [`Refusal`]
pub fn load(keyd: &Keyd, who: &User, ask: Ask<api::LoadKey>) -> Result<HandleResponse, Refusal> {
    let id = ask.target;
    let load = || {
        keyd.may(*who, &id, Act::Load)?;
        let entry = keyd.store().load(&id)?.ok_or(KeyError::Invalid)?;
        match entry.material {
            Material::Key(_) => keyd.issue(*who, Subject::Key(id.clone()), entry.epoch),
            Material::Pair(_) => Err(KeyError::Invalid),
        }
    };
    load().map_err(|error| keyd.refuse(*who, "load key", id.as_str(), error))
}

/// Keys do not move (identity-service.md 2.3).
///
/// # Errors
/// Always: 400.
pub fn rename(keyd: &Keyd, who: &User, ask: Ask<api::MoveKey>) -> Result<Empty, Refusal> {
    let (from, to) = (ask.body.from, ask.target);
    let refused = keyd
        .may(*who, &from, Act::Move)
        .and_then(|()| keyd.may(*who, &to, Act::Move));
    let error = refused.err().unwrap_or(KeyError::Parameter {
        name: "type",
        why: "invalid type \"key\"",
    });
    Err(keyd.refuse(*who, "move key", to.as_str(), error))
}

/// Deletes a key.
///
/// # Errors
/// [`Refusal`]
pub fn delete(keyd: &Keyd, who: &User, ask: Ask<api::DeleteKey>) -> Result<Empty, Refusal> {
    let is_key = |subject: &Subject| matches!(subject, Subject::Key(_));
    remove(
        keyd,
        *who,
        &ask.body.key_handle,
        is_key,
        "handle is not for a key",
    )
    .map_err(|error| keyd.refuse(*who, "delete key", "", error))
}

/// Deletes what a handle of the right kind stands for; one that is already gone is no error.
pub(crate) fn remove(
    keyd: &Keyd,
    who: User,
    handle: &KeyHandle,
    right_kind: impl Fn(&Subject) -> bool,
    wrong: &'static str,
) -> Result<Empty, KeyError> {
    let handle = keyd.open(who, handle)?;
    if !right_kind(&handle.subject) {
        return Err(KeyError::HandleKind(wrong));
    }
    let id: &KeyId = handle.subject.key();
    keyd.may(who, id, Act::Delete)?;
    let change = keyd.store().change();
    match change.load(id)? {
        None => return Ok(Empty),
        Some(entry) if entry.epoch != handle.epoch => return Err(KeyError::Handle),
        Some(_) => {}
    }
    keyd.record(who, Event::KeyDeleted, "delete", id, "")?;
    change.delete(id)?;
    Ok(Empty)
}

/// A handle for a key derived from another: there is no file, the handle is all there is.
///
/// # Errors
/// [`Refusal`]
pub fn derive(keyd: &Keyd, who: &User, ask: Ask<api::Derive>) -> Result<HandleResponse, Refusal> {
    let derive = || {
        let base = keyd.find(*who, &ask.body.base_key_handle)?;
        match &base.handle.subject {
            Subject::Key(_) => {}
            Subject::Derived { .. } => {
                return Err(KeyError::HandleKind("nested derived keys not supported"));
            }
            Subject::KeyPair(_) => {
                return Err(KeyError::Mechanism("keys are derived from keys only"));
            }
        }
        keyd.permit(*who, &base, Purposes::of(&[Purpose::Derive]))?;
        if !base.entry.usage.sign {
            return Err(KeyError::Mechanism("the key was not made for this"));
        }
        let mut handle = base.handle;
        handle.purposes = handle.purposes.without(Purposes::of(&[Purpose::Derive]));
        handle.subject = Subject::Derived {
            base: handle.subject.key().clone(),
            data: ask.body.derivation_data.0,
        };
        keyd.seal(&handle)
    };
    derive().map_err(|error| keyd.refuse(*who, "derive", "", error))
}

/// The bytes of a derived key, where policy allows it for the base key (R19).
///
/// # Errors
/// [`Refusal`]
pub fn export(
    keyd: &Keyd,
    who: &User,
    ask: Ask<api::ExportDerived>,
) -> Result<ExportResponse, Refusal> {
    let export = || {
        let key = keyd.find(*who, &ask.body.key_handle)?;
        let Subject::Derived { base, data } = &key.handle.subject else {
            return Err(KeyError::HandleKind("handle is not for a derived key"));
        };
        keyd.permit(*who, &key, Purposes::of(&[Purpose::ExportDerived]))?;
        let symmetric = key.symmetric().ok_or(KeyError::Handle)?;
        keyd.record(*who, Event::KeyExported, "export derived key", base, "")?;
        Ok(ExportResponse {
            key: Secret::new(symmetric.derive(data).to_vec()),
        })
    };
    export().map_err(|error| keyd.refuse(*who, "export", "", error))
}
