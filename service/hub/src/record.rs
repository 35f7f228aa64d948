//! Who an identity is, and its record as it is stored and shown.
//!
//! The document is the public hub's, so that any tool can read it; the word for the credential is
//! one of those that an identity daemon can read (reference/cloud.md 3.2). Verbs are in `registry`.

use contract::names::{DeviceId, ModuleId};
use contract::sas::SasKey;
use rusqlite::{Connection, Row, params};
use serde_json::{Value, json};

use crate::error::Error;
use crate::store::StoreError;

/// A device, or a module of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The device.
    pub device: DeviceId,
    /// The module, if it is one.
    pub module: Option<ModuleId>,
}

impl Identity {
    /// Checks both ids.
    ///
    /// # Errors
    /// [`Error::Argument`].
    pub fn new(device: &str, module: Option<&str>) -> Result<Self, Error> {
        Ok(Self {
            device: DeviceId::new(device)?,
            module: module.map(ModuleId::new).transpose()?,
        })
    }

    /// The device that it is or belongs to.
    #[must_use]
    pub fn of_device(&self) -> Self {
        Self {
            device: self.device.clone(),
            module: None,
        }
    }

    /// The module's column: empty for the device itself, which no module id can be.
    #[must_use]
    pub fn module_text(&self) -> &str {
        self.module.as_ref().map_or("", ModuleId::as_str)
    }

    /// The MQTT client id.
    #[must_use]
    pub fn client_id(&self) -> String {
        match &self.module {
            Some(module) => format!("{}/{module}", self.device),
            None => self.device.to_string(),
        }
    }

    /// The error that says it does not exist.
    #[must_use]
    pub fn missing(&self) -> Error {
        match &self.module {
            Some(module) => Error::NoModule {
                device: self.device.to_string(),
                module: module.to_string(),
            },
            None => Error::NoDevice(self.device.to_string()),
        }
    }

    /// The error that says it exists already.
    pub(crate) fn exists(&self) -> Error {
        match &self.module {
            Some(module) => Error::ModuleExists(module.to_string()),
            None => Error::DeviceExists(self.device.to_string()),
        }
    }
}

/// How an identity proves itself.
#[derive(Debug, Clone)]
pub enum Credential {
    /// Not at all: it cannot connect.
    None,
    /// By a token made with one of two keys.
    Sas {
        /// The first key.
        primary: SasKey,
        /// The second, so that the first can be replaced without a gap.
        secondary: SasKey,
    },
}

/// One record.
#[derive(Debug, Clone)]
pub struct Record {
    /// Whose.
    pub identity: Identity,
    /// The name of this life of the identity.
    pub generation: String,
    /// Changes with each update.
    pub etag: String,
    /// Whether it may connect.
    pub enabled: bool,
    pub(crate) reason: Option<String>,
    /// Its credential.
    pub credential: Credential,
    /// Whether modules can be deployed to it.
    pub edge: bool,
    pub(crate) scope: Option<String>,
    pub(crate) managed_by: Option<String>,
    pub(crate) status_at: String,
    pub(crate) active_at: String,
    pub(crate) twin_version: i64,
    pub(crate) twin_etag: String,
}

/// The columns of a record, in order.
pub(crate) const COLUMNS: &str = "device, module, generation, etag, status, reason, primary_key, \
    secondary_key, edge, scope, managed_by, status_at, active_at, twin_version, twin_etag";
/// A time that has not come.
pub(crate) const NEVER: &str = "0001-01-01T00:00:00Z";

impl Record {
    /// Reads a row of [`COLUMNS`].
    pub(crate) fn read(row: &Row<'_>) -> Result<Self, Error> {
        let bad = |what| Error::Store(StoreError::Value(what));
        let device: String = row.get(0)?;
        let module: String = row.get(1)?;
        let module = (!module.is_empty()).then_some(module);
        let key = |text: Option<String>| -> Result<Option<SasKey>, Error> {
            text.map(|t| SasKey::from_base64(&t).map_err(|_| bad("key")))
                .transpose()
        };
        let credential = match (key(row.get(6)?)?, key(row.get(7)?)?) {
            (Some(primary), Some(secondary)) => Credential::Sas { primary, secondary },
            _ => Credential::None,
        };
        Ok(Self {
            identity: Identity::new(&device, module.as_deref()).map_err(|_| bad("identity"))?,
            generation: row.get(2)?,
            etag: row.get(3)?,
            enabled: row.get::<_, String>(4)? == "enabled",
            reason: row.get(5)?,
            credential,
            edge: row.get(8)?,
            scope: row.get(9)?,
            managed_by: row.get(10)?,
            status_at: row.get(11)?,
            active_at: row.get(12)?,
            twin_version: row.get(13)?,
            twin_etag: row.get(14)?,
        })
    }

    /// The keys that its tokens may be made with.
    #[must_use]
    pub fn keys(&self) -> Vec<&SasKey> {
        match &self.credential {
            Credential::Sas { primary, secondary } if self.enabled => vec![primary, secondary],
            _ => Vec::new(),
        }
    }

    /// The word for its credential: one of those that the identity daemon reads.
    #[must_use]
    pub fn credential_type(&self) -> &'static str {
        match self.credential {
            Credential::None => "none",
            Credential::Sas { .. } => "sas",
        }
    }

    /// `enabled` or `disabled`.
    #[must_use]
    pub fn status(&self) -> &'static str {
        if self.enabled { "enabled" } else { "disabled" }
    }

    /// The members that twins show too.
    #[must_use]
    pub fn state(&self, connected: bool) -> Value {
        json!({
            "status": self.status(),
            "statusUpdateTime": self.status_at,
            "connectionState": connection_state(connected),
            "lastActivityTime": self.active_at,
            "cloudToDeviceMessageCount": 0,
            "authenticationType": self.credential_type(),
            "x509Thumbprint": {"primaryThumbprint": null, "secondaryThumbprint": null},
            "deviceScope": self.scope,
            "capabilities": {"iotEdge": self.edge},
        })
    }

    /// The document.
    #[must_use]
    pub fn document(&self, connected: bool) -> Value {
        let symmetric = match &self.credential {
            Credential::None => json!({"primaryKey": null, "secondaryKey": null}),
            Credential::Sas { primary, secondary } => json!({
                "primaryKey": primary.to_base64().as_str(),
                "secondaryKey": secondary.to_base64().as_str(),
            }),
        };
        let mut document = json!({
            "deviceId": self.identity.device,
            "generationId": self.generation,
            "etag": self.etag,
            "connectionState": connection_state(connected),
            "connectionStateUpdatedTime": self.active_at,
            "lastActivityTime": self.active_at,
            "cloudToDeviceMessageCount": 0,
            "authentication": {
                "symmetricKey": symmetric,
                "x509Thumbprint": {"primaryThumbprint": null, "secondaryThumbprint": null},
                "type": self.credential_type(),
            },
        });
        let more = match &self.identity.module {
            Some(module) => json!({"moduleId": module, "managedBy": self.managed_by}),
            None => json!({
                "status": self.status(),
                "statusReason": self.reason,
                "statusUpdatedTime": self.status_at,
                "capabilities": {"iotEdge": self.edge},
                "deviceScope": self.scope,
            }),
        };
        if let (Value::Object(document), Value::Object(more)) = (&mut document, more) {
            document.extend(more);
        }
        document
    }

    /// Stores it: a new row, or what an update may change.
    pub(crate) fn write(&self, connection: &Connection) -> Result<(), Error> {
        let keys = match &self.credential {
            Credential::None => (None, None),
            Credential::Sas { primary, secondary } => {
                (Some(primary.to_base64()), Some(secondary.to_base64()))
            }
        };
        connection
            .prepare_cached(&format!(
                "INSERT INTO identity ({COLUMNS})
                 VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15)
                 ON CONFLICT DO UPDATE SET etag=?4, status=?5, reason=?6, primary_key=?7,
                 secondary_key=?8, edge=?9, scope=?10, managed_by=?11, status_at=?12"
            ))?
            .execute(params![
                self.identity.device.as_str(),
                self.identity.module_text(),
                self.generation,
                self.etag,
                self.status(),
                self.reason,
                keys.0.as_deref(),
                keys.1.as_deref(),
                self.edge,
                self.scope,
                self.managed_by,
                self.status_at,
                self.active_at,
                self.twin_version,
                self.twin_etag,
            ])?;
        Ok(())
    }
}

fn connection_state(connected: bool) -> &'static str {
    if connected {
        "Connected"
    } else {
        "Disconnected"
    }
}
