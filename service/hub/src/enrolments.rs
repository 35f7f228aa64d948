//! Enrolments, and what a registration makes of them (reference/cloud.md 1.1-1.5).
//!
//! An individual enrolment shadows groups, also when it is disabled. A member of a group proves
//! itself with a key derived from the group's, so a group key never leaves hub and factory. The
//! decision is immediate; the answer to a registration is nevertheless "assigning" and the result
//! is polled, because that is what devices understand. Ids are compared without case.

use contract::names::{DeviceId, RegistrationId};
use contract::sas::{Audience, REGISTRATION, SasKey, Token};
use contract::twin::{Limits, Section};
use rusqlite::{Connection, OptionalExtension as _, params};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::Error;
use crate::random;
use crate::record::Identity;
use crate::registry::{self, Capabilities, IfMatch, Live, SymmetricKey};
use crate::store::StoreError;
use crate::twins::{self, How};

/// For one device, or for all that hold a derived key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One registration id.
    Individual,
    /// A group.
    Group,
}

impl Kind {
    fn text(self) -> &'static str {
        match self {
            Self::Individual => "individual",
            Self::Group => "group",
        }
    }

    /// The member that holds the id.
    fn member(self) -> &'static str {
        match self {
            Self::Individual => "registrationId",
            Self::Group => "enrollmentGroupId",
        }
    }
}

/// The part of an enrolment that decides something.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Terms {
    device_id: Option<String>,
    #[serde(default)]
    capabilities: Option<Capabilities>,
    initial_twin: Option<Value>,
    provisioning_status: Option<String>,
    attestation: Option<Attestation>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Attestation {
    #[serde(rename = "type")]
    kind: String,
    symmetric_key: Option<SymmetricKey>,
}

/// One enrolment as stored.
struct Enrolment {
    record: Value,
    primary: SasKey,
    secondary: SasKey,
    enabled: bool,
    etag: String,
    created: String,
    updated: String,
}

impl Enrolment {
    /// As operators see it, without keys.
    fn document(&self) -> Value {
        let mut document = self.record.clone();
        document["attestation"] = json!({"type": "symmetricKey"});
        document["provisioningStatus"] = if self.enabled { "enabled" } else { "disabled" }.into();
        document["etag"] = self.etag.clone().into();
        document["createdDateTimeUtc"] = self.created.clone().into();
        document["lastUpdatedDateTimeUtc"] = self.updated.clone().into();
        document
    }

    fn terms(&self) -> Result<Terms, Error> {
        serde_json::from_value(self.record.clone())
            .map_err(|_| StoreError::Value("enrolment").into())
    }
}

fn find(connection: &Connection, kind: Kind, id: &str) -> Result<Option<Enrolment>, Error> {
    let row = connection
        .prepare_cached(
            "SELECT record, primary_key, secondary_key, enabled, etag, created, updated
             FROM enrolment WHERE kind = ?1 AND id = ?2",
        )?
        .query_row(params![kind.text(), id.to_ascii_lowercase()], |row| {
            Ok(enrolment(row))
        })
        .optional()?;
    row.transpose()
}

fn enrolment(row: &rusqlite::Row<'_>) -> Result<Enrolment, Error> {
    let key = |text: String| {
        SasKey::from_base64(&text).map_err(|_| Error::from(StoreError::Value("enrolment key")))
    };
    let record: String = row.get(0)?;
    Ok(Enrolment {
        record: serde_json::from_str(&record).map_err(|_| StoreError::Value("enrolment"))?,
        primary: key(row.get(1)?)?,
        secondary: key(row.get(2)?)?,
        enabled: row.get(3)?,
        etag: row.get(4)?,
        created: row.get(5)?,
        updated: row.get(6)?,
    })
}

/// Creates an enrolment, or updates it if `If-Match` allows.
///
/// # Errors
/// Bad id, another attestation, exists, etag.
pub fn put(
    connection: &Connection,
    kind: Kind,
    id: &str,
    document: &Value,
    if_match: &IfMatch,
    at: &str,
) -> Result<Value, Error> {
    let id = RegistrationId::new(id)?;
    let given = document.get(kind.member()).and_then(Value::as_str);
    if given.is_some_and(|given| !given.eq_ignore_ascii_case(id.as_str())) {
        return Err(Error::Argument(
            "the id in the body is not the one in the path".into(),
        ));
    }
    let terms: Terms = serde_json::from_value(document.clone())?;
    let enabled = match terms.provisioning_status.as_deref() {
        None | Some("enabled") => true,
        Some("disabled") => false,
        Some(_) => {
            return Err(Error::Argument(
                "provisioningStatus is enabled or disabled".into(),
            ));
        }
    };
    match (&terms.device_id, kind) {
        (Some(device), Kind::Individual) => drop(DeviceId::new(device.as_str())?),
        (Some(_), Kind::Group) => {
            return Err(Error::Argument("a group gives no device id".into()));
        }
        (None, _) => {}
    }
    let old = find(connection, kind, id.as_str())?;
    match (&old, if_match) {
        (Some(_), IfMatch::Absent) => return Err(Error::EnrolmentExists),
        (Some(old), tag) => tag.allows(&old.etag)?,
        (None, IfMatch::Absent) => {}
        (None, _) => return Err(Error::Etag),
    }
    if let Some(twin) = &terms.initial_twin {
        // Now, not when the first device registers.
        check_twin(twin)?;
    }
    let attestation = terms.attestation.as_ref();
    if attestation.is_some_and(|a| a.kind != "symmetricKey") {
        return Err(Error::Argument(
            "this hub knows attestation type symmetricKey".into(),
        ));
    }
    let pair = attestation.and_then(|a| a.symmetric_key.as_ref());
    let key = |text: Option<&String>, old: Option<&SasKey>| match text {
        Some(text) if !text.is_empty() => SasKey::from_base64(text),
        _ => Ok(old.cloned().unwrap_or_else(random::key)),
    };
    let primary = pair.and_then(|p| p.primary_key.as_ref());
    let secondary = pair.and_then(|p| p.secondary_key.as_ref());
    let mut record = document.clone();
    if let Value::Object(members) = &mut record {
        for ours in [
            "attestation",
            "registrationState",
            "etag",
            "provisioningStatus",
        ] {
            members.remove(ours);
        }
        members.insert(kind.member().into(), id.as_str().into());
    }
    let enrolment = Enrolment {
        record,
        primary: key(primary, old.as_ref().map(|o| &o.primary))?,
        secondary: key(secondary, old.as_ref().map(|o| &o.secondary))?,
        enabled,
        etag: random::etag(),
        created: old.map_or_else(|| at.to_owned(), |o| o.created),
        updated: at.to_owned(),
    };
    connection
        .prepare_cached("INSERT OR REPLACE INTO enrolment VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9)")?
        .execute(params![
            kind.text(),
            id.as_str().to_ascii_lowercase(),
            enrolment.record.to_string(),
            enrolment.primary.to_base64().as_str(),
            enrolment.secondary.to_base64().as_str(),
            enrolment.enabled,
            enrolment.etag,
            enrolment.created,
            enrolment.updated,
        ])?;
    Ok(enrolment.document())
}

fn check_twin(twin: &Value) -> Result<(), Error> {
    for (pointer, limits) in [
        ("/tags", Limits::TAGS),
        ("/properties/desired", Limits::PROPERTIES),
    ] {
        if let Some(section) = twin.pointer(pointer) {
            Section::new("").patch(section, &limits, "")?;
        }
    }
    Ok(())
}

/// Reads an enrolment, without keys.
///
/// # Errors
/// [`Error::NoEnrolment`].
pub fn read(connection: &Connection, kind: Kind, id: &str) -> Result<Value, Error> {
    Ok(find(connection, kind, id)?
        .ok_or(Error::NoEnrolment("enrolment"))?
        .document())
}

/// Reads the keys of an enrolment.
///
/// # Errors
/// [`Error::NoEnrolment`].
pub fn attestation(connection: &Connection, kind: Kind, id: &str) -> Result<Value, Error> {
    let found = find(connection, kind, id)?.ok_or(Error::NoEnrolment("enrolment"))?;
    Ok(json!({"type": "symmetricKey", "symmetricKey": {
        "primaryKey": found.primary.to_base64().as_str(),
        "secondaryKey": found.secondary.to_base64().as_str(),
    }}))
}

/// Deletes an enrolment. Devices that it enrolled stay; they cannot register again.
///
/// # Errors
/// [`Error::NoEnrolment`], etag.
pub fn delete(
    connection: &Connection,
    kind: Kind,
    id: &str,
    if_match: &IfMatch,
) -> Result<(), Error> {
    let found = find(connection, kind, id)?.ok_or(Error::NoEnrolment("enrolment"))?;
    if_match.allows(&found.etag)?;
    connection.execute(
        "DELETE FROM enrolment WHERE kind = ?1 AND id = ?2",
        params![kind.text(), id.to_ascii_lowercase()],
    )?;
    Ok(())
}

/// A proved registration id, with what its enrolment gives.
pub struct Proved {
    registration: RegistrationId,
    keys: (SasKey, SasKey),
    terms: Terms,
    group: Option<String>,
}

/// Decides whether a token proves a registration id. Every refusal looks the same from outside.
///
/// # Errors
/// [`Error::Unauthorized`].
pub fn prove(
    connection: &Connection,
    scope: &str,
    registration: &RegistrationId,
    token: &Token,
    now: i64,
) -> Result<Proved, Error> {
    const REFUSED: Error = Error::Unauthorized("registration refused");
    if token.policy() != Some(REGISTRATION) {
        return Err(REFUSED);
    }
    let audience = Audience::Registration {
        scope,
        registration: registration.as_str(),
    };
    let made = |keys: &[&SasKey]| token.verify(&audience, keys, now).is_ok();
    if let Some(own) = find(connection, Kind::Individual, registration.as_str())? {
        if !own.enabled || !made(&[&own.primary, &own.secondary]) {
            return Err(REFUSED);
        }
        let terms = own.terms()?;
        let keys = (own.primary, own.secondary);
        return Ok(Proved {
            registration: registration.clone(),
            keys,
            terms,
            group: None,
        });
    }
    let mut statement = connection.prepare_cached(
        "SELECT record, primary_key, secondary_key, enabled, etag, created, updated
         FROM enrolment WHERE kind = 'group' AND enabled ORDER BY id",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let group = enrolment(row)?;
        for id in [
            registration.as_str().to_owned(),
            registration.as_str().to_ascii_lowercase(),
        ] {
            let keys = (group.primary.derive(&id), group.secondary.derive(&id));
            if made(&[&keys.0, &keys.1]) {
                let terms = group.terms()?;
                let group = group
                    .record
                    .get("enrollmentGroupId")
                    .and_then(Value::as_str)
                    .map(Into::into);
                return Ok(Proved {
                    registration: registration.clone(),
                    keys,
                    terms,
                    group,
                });
            }
        }
    }
    Err(REFUSED)
}

/// What a registration did.
pub struct Registered {
    /// To be polled.
    pub operation: String,
    /// The device, and whether its connection must close.
    pub device: (Identity, Live),
}

/// Carries out a registration: device, twin, and the record to be polled.
///
/// # Errors
/// [`Error::Store`]; twin limits.
pub fn register(connection: &Connection, proved: Proved, at: &str) -> Result<Registered, Error> {
    let Proved {
        registration,
        keys,
        terms,
        group,
    } = proved;
    let id = registration.as_str().to_ascii_lowercase();
    let last: Option<(String, String)> = connection
        .prepare_cached("SELECT device, created FROM registration WHERE id = ?1")?
        .query_row(params![id], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    // The case in which a device first wrote its id stays its device id. A name that another
    // enrolment once gave it does not.
    let first = last
        .iter()
        .map(|(device, _)| device)
        .find(|device| device.eq_ignore_ascii_case(&id));
    let device = terms
        .device_id
        .unwrap_or_else(|| first.cloned().unwrap_or_else(|| registration.to_string()));
    let identity = Identity::new(&device, None)?;
    let is_new = registry::find(connection, &identity)?.is_none();
    let capabilities = terms.capabilities.unwrap_or_default();
    let (_, live) = registry::provision(connection, &identity, keys, capabilities, at)?;
    if let (true, Some(twin)) = (is_new, terms.initial_twin) {
        let limits = Limits::PROPERTIES;
        twins::change(
            connection,
            &identity,
            &twin,
            How::Patch,
            &IfMatch::Any,
            &limits,
            at,
        )?;
    }
    let substatus = match (is_new, &last) {
        (true, Some(_)) => "reprovisionedToInitialAssignment",
        _ => "initialAssignment",
    };
    let operation = format!("4.{}.{}", random::etag(), random::guid());
    let created = last.map_or_else(|| at.to_owned(), |(_, created)| created);
    connection
        .prepare_cached("INSERT OR REPLACE INTO registration VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9)")?
        .execute(params![
            id,
            registration.as_str(),
            operation,
            device,
            group,
            substatus,
            random::etag(),
            created,
            at
        ])?;
    Ok(Registered {
        operation,
        device: (identity, live),
    })
}

/// The state of the last registration, for the device that proved to be it. With `operation`,
/// only if that is the one.
///
/// # Errors
/// [`Error::NoEnrolment`].
pub fn state(
    connection: &Connection,
    proved: &Proved,
    operation: Option<&str>,
    hub: &str,
) -> Result<Value, Error> {
    let row = connection
        .prepare_cached(
            "SELECT shown, operation, device, enrolment_group, substatus, etag, created, updated
             FROM registration WHERE id = ?1",
        )?
        .query_row(
            params![proved.registration.as_str().to_ascii_lowercase()],
            |row| {
                let known: String = row.get(1)?;
                let state = json!({
                    "registrationId": row.get::<_, String>(0)?,
                    "createdDateTimeUtc": row.get::<_, String>(6)?,
                    "lastUpdatedDateTimeUtc": row.get::<_, String>(7)?,
                    "status": "assigned",
                    "substatus": row.get::<_, String>(4)?,
                    "assignedHub": hub,
                    "deviceId": row.get::<_, String>(2)?,
                    "etag": row.get::<_, String>(5)?,
                    "symmetricKey": {"enrollmentGroupId": row.get::<_, Option<String>>(3)?},
                });
                Ok((known, state))
            },
        )
        .optional()?;
    match row {
        Some((known, state)) if operation.is_none_or(|asked| asked == known) => Ok(state),
        _ => Err(Error::NoEnrolment("registration")),
    }
}
