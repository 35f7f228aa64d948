//! Telemetry: kept durably, stamped, and read out by operators in order of arrival.
//!
//! The store keeps the last so many messages. A reader remembers the sequence number it has seen
//! and asks for what comes after; numbers grow and are never used again.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rusqlite::{Connection, params};
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::record::Identity;
use crate::registry;
use crate::store::StoreError;
use crate::topic::Bag;

/// Stores one message with the stamps of the service.
///
/// # Errors
/// The sender is gone, or [`Error::Store`].
pub fn append(
    connection: &Connection,
    sender: &Identity,
    bag: &Bag,
    body: &[u8],
    kept: i64,
    at: &str,
) -> Result<i64, Error> {
    let record = registry::read(connection, sender)?;
    let scope = if sender.module.is_some() {
        "module"
    } else {
        "device"
    };
    let mut stamps = bag.system.clone();
    stamps.insert("iothub-connection-device-id".into(), json!(sender.device));
    if let Some(module) = &sender.module {
        stamps.insert("iothub-connection-module-id".into(), json!(module));
    }
    stamps.insert(
        "iothub-connection-auth-generation-id".into(),
        json!(record.generation),
    );
    let method = json!({"scope": scope, "type": "sas", "issuer": "iothub"});
    stamps.insert(
        "iothub-connection-auth-method".into(),
        json!(method.to_string()),
    );
    stamps.insert("iothub-enqueuedtime".into(), json!(at));
    stamps.insert("iothub-message-source".into(), json!("Telemetry"));
    let text = |members: &Map<String, Value>| Value::Object(members.clone()).to_string();
    connection
        .prepare_cached(
            "INSERT INTO event (device, module, properties, stamps, body) VALUES (?1,?2,?3,?4,?5)",
        )?
        .execute(params![
            sender.device.as_str(),
            sender.module_text(),
            text(&bag.application),
            text(&stamps),
            body
        ])?;
    let seq = connection.last_insert_rowid();
    connection
        .prepare_cached("DELETE FROM event WHERE seq <= ?1")?
        .execute(params![seq.saturating_sub(kept)])?;
    registry::touch(connection, sender, at)?;
    Ok(seq)
}

/// Bytes of bodies in one answer, unless the first is larger.
const PAGE: usize = 2 << 20;

/// Reads at most `max` messages that came after number `after`, and no more than one answer holds.
///
/// # Errors
/// [`Error::Store`].
pub fn read(connection: &Connection, after: i64, max: u32) -> Result<Vec<Value>, Error> {
    let mut statement = connection.prepare_cached(
        "SELECT seq, device, module, properties, stamps, body FROM event
         WHERE seq > ?1 ORDER BY seq LIMIT ?2",
    )?;
    let mut rows = statement.query(params![after, max])?;
    let (mut events, mut size) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let members = |text: String| -> Result<Value, Error> {
            serde_json::from_str(&text).map_err(|_| StoreError::Value("event").into())
        };
        let module: String = row.get(2)?;
        let body: Vec<u8> = row.get(5)?;
        size += body.len();
        if size > PAGE && !events.is_empty() {
            break;
        }
        events.push(json!({
            "seq": row.get::<_, i64>(0)?,
            "deviceId": row.get::<_, String>(1)?,
            "moduleId": (!module.is_empty()).then_some(module),
            "properties": members(row.get(3)?)?,
            "systemProperties": members(row.get(4)?)?,
            "body": STANDARD.encode(body),
        }));
    }
    Ok(events)
}
