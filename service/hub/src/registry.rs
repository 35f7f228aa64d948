//! Devices and modules: records, keys, etags (reference/cloud.md 3.2).
//!
//! Verbs work on the connection of one store job, so each is all or nothing. A generation id is
//! made at creation and never changes on update, since module keys are derived from it. Who may
//! call a verb is decided in `auth`, before.

use contract::sas::SasKey;
use rusqlite::{Connection, OptionalExtension as _, params};
use serde::Deserialize;

use crate::error::Error;
use crate::record::{COLUMNS, Credential, Identity, NEVER, Record};
use crate::{random, twins};

/// A document from outside. Members that only the service writes are ignored: clients send back
/// whole records.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    device_id: Option<String>,
    module_id: Option<String>,
    status: Option<String>,
    status_reason: Option<String>,
    authentication: Option<Authentication>,
    capabilities: Option<Capabilities>,
    managed_by: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Authentication {
    #[serde(rename = "type")]
    kind: Option<String>,
    symmetric_key: Option<SymmetricKey>,
}

/// A pair of keys in a document.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SymmetricKey {
    /// base64
    pub primary_key: Option<String>,
    /// base64
    pub secondary_key: Option<String>,
}

/// What a device can do.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Capabilities {
    /// It runs modules.
    #[serde(default)]
    pub iot_edge: bool,
}

/// What `If-Match` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IfMatch {
    /// No header: create.
    Absent,
    /// `*`, also in quotes.
    Any,
    /// This version only.
    Tag(String),
}

impl IfMatch {
    /// Reads a header, with or without quotes.
    #[must_use]
    pub fn parse(text: Option<&str>) -> Self {
        match text.map(|t| t.trim().trim_matches('"')) {
            None => Self::Absent,
            Some("*") => Self::Any,
            Some(tag) => Self::Tag(tag.to_owned()),
        }
    }

    /// Whether an existing record of this etag may be changed.
    ///
    /// # Errors
    /// [`Error::Etag`].
    pub fn allows(&self, etag: &str) -> Result<(), Error> {
        match self {
            Self::Tag(tag) if tag != etag => Err(Error::Etag),
            _ => Ok(()),
        }
    }
}

/// Reads one record.
///
/// # Errors
/// [`Error::Store`].
pub fn find(connection: &Connection, identity: &Identity) -> Result<Option<Record>, Error> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM identity WHERE device = ?1 AND module = ?2"
    ))?;
    statement
        .query_row(
            params![identity.device.as_str(), identity.module_text()],
            |row| Ok(Record::read(row)),
        )
        .optional()?
        .transpose()
}

/// Reads one record that must exist.
///
/// # Errors
/// [`Error::NoDevice`], [`Error::NoModule`].
pub fn read(connection: &Connection, identity: &Identity) -> Result<Record, Error> {
    find(connection, identity)?.ok_or_else(|| identity.missing())
}

/// The modules of a device.
///
/// # Errors
/// [`Error::NoDevice`].
pub fn modules(connection: &Connection, device: &Identity) -> Result<Vec<Record>, Error> {
    read(connection, device)?;
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM identity WHERE device = ?1 AND module <> '' ORDER BY module"
    ))?;
    let mut rows = statement.query(params![device.device.as_str()])?;
    collect(&mut rows)
}

/// The first `top` devices by id.
///
/// # Errors
/// [`Error::Store`].
pub fn devices(connection: &Connection, top: u32) -> Result<Vec<Record>, Error> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM identity WHERE module = '' ORDER BY device LIMIT ?1"
    ))?;
    let mut rows = statement.query(params![top])?;
    collect(&mut rows)
}

fn collect(rows: &mut rusqlite::Rows<'_>) -> Result<Vec<Record>, Error> {
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        records.push(Record::read(row)?);
    }
    Ok(records)
}

/// Whether a live connection may outlive a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Live {
    /// The credential still holds.
    Keep,
    /// It was replaced or taken away.
    Close,
}

/// Creates a record (no `If-Match`) or updates it.
///
/// # Errors
/// What the reference page lists: exists, missing, etag, bad keys.
pub fn put(
    connection: &Connection,
    identity: &Identity,
    document: &Document,
    if_match: &IfMatch,
    at: &str,
) -> Result<(Record, Live), Error> {
    let same = |given: &Option<String>, own: &str| given.as_deref().is_none_or(|id| id == own);
    if !same(&document.device_id, identity.device.as_str())
        || !same(&document.module_id, identity.module_text())
    {
        return Err(Error::Argument(
            "the id in the body is not the one in the path".into(),
        ));
    }
    let enabled = match document.status.as_deref() {
        None | Some("enabled") => true,
        Some("disabled") => false,
        Some(_) => return Err(Error::Argument("status is enabled or disabled".into())),
    };
    let existing = find(connection, identity)?;
    let old = match (existing, if_match) {
        (None, IfMatch::Absent) => None,
        (None, _) => return Err(identity.missing()),
        (Some(_), IfMatch::Absent) => return Err(identity.exists()),
        (Some(old), tag) => {
            tag.allows(&old.etag)?;
            Some(old)
        }
    };
    let credential = credential(document.authentication.as_ref(), old.as_ref())?;
    if old.is_none() && identity.module.is_some() {
        read(connection, &identity.of_device())?;
        if identity.module_text().starts_with('$') && !is_system(identity) {
            return Err(Error::Argument("only system modules begin with $".into()));
        }
    }
    let edge = match (document.capabilities, &old) {
        (Some(given), _) => given.iot_edge && identity.module.is_none(),
        (None, Some(old)) => old.edge,
        (None, None) => false,
    };
    let Some(old) = old else {
        return Ok((
            create(
                connection, identity, credential, edge, enabled, document, at,
            )?,
            Live::Keep,
        ));
    };
    let mut record = old.clone();
    record.etag = random::etag();
    record.credential = credential;
    record.edge = edge;
    record.reason.clone_from(&document.status_reason);
    if document.managed_by.is_some() {
        record.managed_by.clone_from(&document.managed_by);
    }
    if old.enabled != enabled {
        record.enabled = enabled;
        at.clone_into(&mut record.status_at);
    }
    record.write(connection)?;
    if record.edge && !old.edge {
        system_modules(connection, identity, at)?;
    }
    let keep = record.enabled && same_credential(&old.credential, &record.credential);
    Ok((record, if keep { Live::Keep } else { Live::Close }))
}

/// Creates a record that does not exist yet, with its twin and, for an edge device, its system
/// modules.
fn create(
    connection: &Connection,
    identity: &Identity,
    credential: Credential,
    edge: bool,
    enabled: bool,
    document: &Document,
    at: &str,
) -> Result<Record, Error> {
    let generation = random::generation();
    let scope = edge.then(|| format!("ms-azure-iot-edge://{}-{generation}", identity.device));
    let record = Record {
        identity: identity.clone(),
        generation,
        etag: random::etag(),
        enabled,
        reason: document.status_reason.clone(),
        credential,
        edge,
        scope,
        managed_by: document.managed_by.clone(),
        status_at: NEVER.to_owned(),
        active_at: NEVER.to_owned(),
        twin_version: 1,
        twin_etag: random::etag(),
    };
    record.write(connection)?;
    twins::create(connection, identity, at)?;
    if edge {
        system_modules(connection, identity, at)?;
    }
    Ok(record)
}

fn system_modules(connection: &Connection, device: &Identity, at: &str) -> Result<(), Error> {
    for name in ["$edgeAgent", "$edgeHub"] {
        let module = Identity::new(device.device.as_str(), Some(name))?;
        ensure(connection, &module, at)?;
    }
    Ok(())
}

/// Makes sure that an identity exists; a new one has no credential until someone writes keys.
///
/// # Errors
/// [`Error::Store`].
pub fn ensure(connection: &Connection, identity: &Identity, at: &str) -> Result<(), Error> {
    if find(connection, identity)?.is_none() {
        let document = Document::default();
        create(
            connection,
            identity,
            Credential::None,
            false,
            true,
            &document,
            at,
        )?;
    }
    Ok(())
}

/// Writes what an enrolment says about a device: creates it, or refreshes only its credential.
///
/// # Errors
/// [`Error::Store`].
pub fn provision(
    connection: &Connection,
    identity: &Identity,
    keys: (SasKey, SasKey),
    capabilities: Capabilities,
    at: &str,
) -> Result<(Record, Live), Error> {
    let credential = Credential::Sas {
        primary: keys.0,
        secondary: keys.1,
    };
    let Some(mut record) = find(connection, identity)? else {
        let document = Document::default();
        let edge = capabilities.iot_edge;
        let record = create(connection, identity, credential, edge, true, &document, at)?;
        return Ok((record, Live::Keep));
    };
    if same_credential(&record.credential, &credential) {
        return Ok((record, Live::Keep));
    }
    record.credential = credential;
    record.etag = random::etag();
    record.write(connection)?;
    Ok((record, Live::Close))
}

/// Deletes a record; a device takes its modules, twins and sessions along.
///
/// # Errors
/// Missing, etag, or a system module of an edge device.
pub fn delete(
    connection: &Connection,
    identity: &Identity,
    if_match: &IfMatch,
) -> Result<(), Error> {
    if_match.allows(&read(connection, identity)?.etag)?;
    if is_system(identity) && read(connection, &identity.of_device())?.edge {
        return Err(Error::Operation(
            "a system module of an edge device cannot be deleted",
        ));
    }
    // A device takes its modules along; a module id is never empty.
    connection.execute(
        "DELETE FROM identity WHERE device = ?1 AND (module = ?2 OR ?2 = '')",
        params![identity.device.as_str(), identity.module_text()],
    )?;
    Ok(())
}

/// Notes that it was heard of.
///
/// # Errors
/// [`Error::Store`].
pub fn touch(connection: &Connection, identity: &Identity, at: &str) -> Result<(), Error> {
    connection
        .prepare_cached("UPDATE identity SET active_at = ?3 WHERE device = ?1 AND module = ?2")?
        .execute(params![
            identity.device.as_str(),
            identity.module_text(),
            at
        ])?;
    Ok(())
}

fn is_system(identity: &Identity) -> bool {
    matches!(identity.module_text(), "$edgeAgent" | "$edgeHub")
}

fn same_credential(a: &Credential, b: &Credential) -> bool {
    match (a, b) {
        (Credential::None, Credential::None) => true,
        (
            Credential::Sas {
                primary: a,
                secondary: b,
            },
            Credential::Sas {
                primary: c,
                secondary: d,
            },
        ) => a.to_base64() == c.to_base64() && b.to_base64() == d.to_base64(),
        _ => false,
    }
}

/// The credential that a document asks for. Keys not given are kept, or made.
fn credential(given: Option<&Authentication>, old: Option<&Record>) -> Result<Credential, Error> {
    let kept = match old.map(|record| &record.credential) {
        Some(Credential::Sas { primary, secondary }) => Some((primary, secondary)),
        _ => None,
    };
    let Some(given) = given else {
        return Ok(match (old, kept) {
            (Some(_), None) => Credential::None,
            (_, Some((primary, secondary))) => Credential::Sas {
                primary: primary.clone(),
                secondary: secondary.clone(),
            },
            (None, None) => Credential::Sas {
                primary: random::key(),
                secondary: random::key(),
            },
        });
    };
    match given.kind.as_deref() {
        Some("none") => return Ok(Credential::None),
        None | Some("sas") => {}
        Some("selfSigned" | "certificateAuthority" | "x509") => {
            return Err(Error::Argument(
                "this hub knows authentication types sas and none".into(),
            ));
        }
        Some(_) => return Err(Error::Argument("unknown authentication type".into())),
    }
    let key = |text: Option<&String>, old: Option<&SasKey>| match text {
        Some(text) if !text.is_empty() => SasKey::from_base64(text),
        _ => Ok(old.cloned().unwrap_or_else(random::key)),
    };
    let pair = given.symmetric_key.as_ref();
    let primary = key(pair.and_then(|p| p.primary_key.as_ref()), kept.map(|k| k.0))?;
    let secondary = key(
        pair.and_then(|p| p.secondary_key.as_ref()),
        kept.map(|k| k.1),
    )?;
    if primary.to_base64() == secondary.to_base64() {
        return Err(Error::Argument(
            "primary and secondary key are equal".into(),
        ));
    }
    Ok(Credential::Sas { primary, secondary })
}
