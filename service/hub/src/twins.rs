//! Twins in the store: sections, etags, and who is told of a change (reference/cloud.md 2.5, 3.3).
//!
//! The arithmetic is `contract::twin`'s. A change of desired properties gives a [`Notice`]; it is
//! sent from the sequel of the store job, so notices leave in the order of their versions.

use contract::twin::{Change, Limits, Members, Section};
use rusqlite::{Connection, params};
use serde_json::{Value, json};

use crate::error::Error;
use crate::random;
use crate::record::{Identity, Record};
use crate::registry::{self, IfMatch};
use crate::store::StoreError;

/// A section's name in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// Written by operators, not seen by the device.
    Tags,
    /// Written by operators, told to the device.
    Desired,
    /// Written by the device.
    Reported,
}

impl Name {
    const ALL: [Self; 3] = [Self::Tags, Self::Desired, Self::Reported];

    fn text(self) -> &'static str {
        match self {
            Self::Tags => "tags",
            Self::Desired => "desired",
            Self::Reported => "reported",
        }
    }
}

/// What a connected subscriber is to be told.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// Whom.
    pub identity: Identity,
    /// The version it leads to.
    pub version: i64,
    /// The patch, with version.
    pub body: Value,
}

/// How a document changes a twin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Merge.
    Patch,
    /// Replace the sections given.
    Replace,
}

/// Makes the empty sections of a new identity.
///
/// # Errors
/// [`Error::Store`].
pub fn create(connection: &Connection, identity: &Identity, at: &str) -> Result<(), Error> {
    for name in Name::ALL {
        write(connection, identity, name, &Section::new(at))?;
    }
    Ok(())
}

/// Reads one section.
///
/// # Errors
/// Missing identity, or [`Error::Store`].
pub fn section(connection: &Connection, identity: &Identity, name: Name) -> Result<Section, Error> {
    let mut statement = connection.prepare_cached(
        "SELECT properties, version, metadata FROM section
         WHERE device = ?1 AND module = ?2 AND name = ?3",
    )?;
    let mut rows = statement.query(params![
        identity.device.as_str(),
        identity.module_text(),
        name.text()
    ])?;
    let Some(row) = rows.next()? else {
        return Err(identity.missing());
    };
    let members = |text: String| -> Result<Members, Error> {
        serde_json::from_str(&text).map_err(|_| StoreError::Value("twin section").into())
    };
    Ok(Section {
        properties: members(row.get(0)?)?,
        version: row.get(1)?,
        metadata: members(row.get(2)?)?,
    })
}

fn write(
    connection: &Connection,
    identity: &Identity,
    name: Name,
    section: &Section,
) -> Result<(), Error> {
    connection
        .prepare_cached(
            "INSERT INTO section (device, module, name, properties, version, metadata)
             VALUES (?1,?2,?3,?4,?5,?6)
             ON CONFLICT DO UPDATE SET properties=?4, version=?5, metadata=?6",
        )?
        .execute(params![
            identity.device.as_str(),
            identity.module_text(),
            name.text(),
            Value::Object(section.properties.clone()).to_string(),
            section.version,
            Value::Object(section.metadata.clone()).to_string(),
        ])?;
    Ok(())
}

/// The twin as a device or module sees it.
///
/// # Errors
/// Missing identity, or [`Error::Store`].
pub fn for_device(connection: &Connection, identity: &Identity) -> Result<Value, Error> {
    Ok(json!({
        "desired": section(connection, identity, Name::Desired)?.for_device(),
        "reported": section(connection, identity, Name::Reported)?.for_device(),
    }))
}

/// A twin as operators see it, before the state of its connection is known.
pub struct Twin {
    record: Record,
    tags: Section,
    desired: Section,
    reported: Section,
}

impl Twin {
    /// Reads it.
    ///
    /// # Errors
    /// Missing identity, or [`Error::Store`].
    pub fn read(connection: &Connection, identity: &Identity) -> Result<Self, Error> {
        Ok(Self {
            record: registry::read(connection, identity)?,
            tags: section(connection, identity, Name::Tags)?,
            desired: section(connection, identity, Name::Desired)?,
            reported: section(connection, identity, Name::Reported)?,
        })
    }

    /// Changes with tags and desired properties.
    #[must_use]
    pub fn twin_etag(&self) -> &str {
        &self.record.twin_etag
    }

    /// The document.
    #[must_use]
    pub fn document(&self, connected: bool) -> Value {
        let mut document = self.record.state(connected);
        let identity = &self.record.identity;
        let more = json!({
            "deviceId": identity.device,
            "etag": self.record.twin_etag,
            "version": self.record.twin_version,
            "deviceEtag": self.record.etag,
            "tags": self.tags.properties,
            "properties": {
                "desired": self.desired.for_service(),
                "reported": self.reported.for_service(),
            },
        });
        if let (Value::Object(document), Value::Object(more)) = (&mut document, more) {
            document.extend(more);
            if let Some(module) = &identity.module {
                document.insert("moduleId".into(), json!(module));
            }
        }
        document
    }
}

/// Applies an operator's document with `tags` and `properties.desired`.
///
/// # Errors
/// Missing identity, etag, limits.
pub fn change(
    connection: &Connection,
    identity: &Identity,
    document: &Value,
    how: How,
    if_match: &IfMatch,
    limits: &Limits,
    at: &str,
) -> Result<(Twin, Option<Notice>), Error> {
    let record = registry::read(connection, identity)?;
    if_match.allows(&record.twin_etag)?;
    let tags = document.get("tags").filter(|v| !v.is_null());
    let desired = document
        .pointer("/properties/desired")
        .filter(|v| !v.is_null());
    let apply = |name, given: &Value, limits: &Limits| -> Result<Change, Error> {
        let old = section(connection, identity, name)?;
        let change = match how {
            How::Patch => old.patch(given, limits, at),
            How::Replace => old.replace(given, limits, at),
        }?;
        write(connection, identity, name, &change.section)?;
        Ok(change)
    };
    if let Some(tags) = tags {
        apply(Name::Tags, tags, &Limits::TAGS)?;
    }
    let notice = match desired {
        Some(desired) => Some(notice(identity, &apply(Name::Desired, desired, limits)?)),
        None => None,
    };
    if tags.is_some() || desired.is_some() {
        raise(connection, identity)?;
    }
    Ok((Twin::read(connection, identity)?, notice))
}

/// Replaces desired properties, if that changes anything.
///
/// # Errors
/// Missing identity, limits.
pub fn set_desired(
    connection: &Connection,
    identity: &Identity,
    content: &Members,
    limits: &Limits,
    at: &str,
) -> Result<Option<Notice>, Error> {
    let old = section(connection, identity, Name::Desired)?;
    if old.holds(content) {
        return Ok(None);
    }
    let change = old.replace(&Value::Object(content.clone()), limits, at)?;
    write(connection, identity, Name::Desired, &change.section)?;
    raise(connection, identity)?;
    Ok(Some(notice(identity, &change)))
}

/// Applies a device's patch of its reported properties and gives the new version.
///
/// # Errors
/// Missing identity, limits.
pub fn report(
    connection: &Connection,
    identity: &Identity,
    patch: &Value,
    limits: &Limits,
    at: &str,
) -> Result<i64, Error> {
    let change = section(connection, identity, Name::Reported)?.patch(patch, limits, at)?;
    write(connection, identity, Name::Reported, &change.section)?;
    Ok(change.section.version)
}

fn notice(identity: &Identity, change: &Change) -> Notice {
    Notice {
        identity: identity.clone(),
        version: change.section.version,
        body: change.notification(),
    }
}

fn raise(connection: &Connection, identity: &Identity) -> Result<(), Error> {
    connection
        .prepare_cached(
            "UPDATE identity SET twin_version = twin_version + 1, twin_etag = ?3
             WHERE device = ?1 AND module = ?2",
        )?
        .execute(params![
            identity.device.as_str(),
            identity.module_text(),
            random::etag()
        ])?;
    Ok(())
}
