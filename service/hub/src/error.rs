//! Everything that can be wrong with a request, and the one place that maps it to the wire.
//!
//! The variants say what happened; status, number and name follow in `wire`, and the two
//! body shapes (hub, provisioning service) in [`Error::hub_body`] and [`Error::dps_body`]
//! (reference/cloud.md 0.3). An answer never carries a key, a token or a path.

use contract::json::JsonError;
use contract::names::BadName;
use contract::sas::SasError;
use contract::twin::TwinError;
use serde_json::{Value, json};

use crate::random;
use crate::store::StoreError;

/// A request that is not carried out.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The caller sent something that makes no sense.
    #[error("{0}")]
    Argument(String),
    /// The document is no strict JSON or lacks a member.
    #[error("document: {0}")]
    Document(String),
    /// The document or message is too large.
    #[error("larger than {0} bytes")]
    TooLarge(usize),
    /// It may not be done to this object.
    #[error("{0}")]
    Operation(&'static str),
    /// No valid credential for this target.
    #[error("unauthorized: {0}")]
    Unauthorized(&'static str),
    /// A valid credential without the right.
    #[error("the credential does not reach this: {0}")]
    Reach(&'static str),
    /// No such device.
    #[error("device {0} is not registered")]
    NoDevice(String),
    /// No such module.
    #[error("module {module} of device {device} is not registered")]
    NoModule {
        /// The device.
        device: String,
        /// The module.
        module: String,
    },
    /// Not connected, or not subscribed to methods.
    #[error("{0} is not online")]
    NotOnline(String),
    /// No such enrolment, group or registration.
    #[error("{0} not found")]
    NoEnrolment(&'static str),
    /// Creation of a device that exists.
    #[error("device {0} exists")]
    DeviceExists(String),
    /// Creation of a module that exists.
    #[error("module {0} exists on the device")]
    ModuleExists(String),
    /// Creation of an enrolment that exists.
    #[error("enrolment exists; send If-Match to update it")]
    EnrolmentExists,
    /// The etag given is not the current one.
    #[error("the etag does not match")]
    Etag,
    /// No answer to a direct method in time.
    #[error("no answer from the device in time")]
    Timeout,
    /// No such route, or not with this method.
    #[error("no such operation")]
    NoRoute(u16),
    /// The store failed; nothing was changed.
    #[error("the store failed, nothing was changed")]
    Store(#[from] StoreError),
}

/// What an [`Error`] is on the wire.
struct Wire {
    status: u16,
    /// Appended to the status to give the number.
    minor: u16,
    name: &'static str,
}

impl Error {
    fn wire(&self) -> Wire {
        let (status, minor, name) = match self {
            Self::Argument(_) => (400, 4, "ArgumentInvalid"),
            Self::Document(_) => (400, 6, "IotHubFormatError"),
            Self::Operation(_) => (400, 7, "InvalidOperation"),
            Self::TooLarge(_) => (413, 1, "MessageTooLarge"),
            Self::Unauthorized(_) => (401, 3, "IotHubUnauthorized"),
            Self::Reach(_) => (401, 3, "IotHubUnauthorizedAccess"),
            Self::NoDevice(_) => (404, 1, "DeviceNotFound"),
            Self::NoModule { .. } => (404, 10, "ModuleNotFound"),
            Self::NotOnline(_) => (404, 103, "DeviceNotOnline"),
            Self::NoEnrolment(_) => (404, 201, "EnrollmentNotFound"),
            Self::DeviceExists(_) => (409, 1, "DeviceAlreadyExists"),
            Self::ModuleExists(_) => (409, 301, "ModuleAlreadyExistsOnDevice"),
            Self::EnrolmentExists => (409, 201, "EnrollmentAlreadyExists"),
            Self::Etag => (412, 1, "PreconditionFailed"),
            Self::Timeout => (504, 101, "GatewayTimeout"),
            Self::NoRoute(status) => (*status, 0, "InvalidOperation"),
            Self::Store(_) => (500, 1, "ServerError"),
        };
        Wire {
            status,
            minor,
            name,
        }
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.wire().status
    }

    /// The name for the header `iothub-errorcode`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.wire().name
    }

    /// The body that hub clients read.
    #[must_use]
    pub fn hub_body(&self, at: &str) -> Value {
        let tracking = random::guid();
        json!({
            "Message": format!("ErrorCode:{};{self}", self.wire().name),
            "ExceptionMessage": format!("Tracking ID:{tracking}-TimeStamp:{at}"),
        })
    }

    /// The body that provisioning clients read. They know one number for a bad credential.
    #[must_use]
    pub fn dps_body(&self, at: &str) -> Value {
        let Wire { status, minor, .. } = self.wire();
        let minor = if status == 401 { 2 } else { minor };
        json!({
            "errorCode": u32::from(status) * 1000 + u32::from(minor),
            "trackingId": random::guid(),
            "message": self.to_string(),
            "timestampUtc": at,
        })
    }
}

impl From<BadName> for Error {
    fn from(bad: BadName) -> Self {
        Self::Argument(bad.to_string())
    }
}

impl From<TwinError> for Error {
    fn from(bad: TwinError) -> Self {
        Self::Argument(bad.to_string())
    }
}

impl From<JsonError> for Error {
    fn from(bad: JsonError) -> Self {
        match bad {
            JsonError::TooLong { limit, .. } => Self::TooLarge(limit),
            bad => Self::Document(bad.to_string()),
        }
    }
}

impl From<serde_json::Error> for Error {
    fn from(bad: serde_json::Error) -> Self {
        Self::Document(bad.to_string())
    }
}

impl From<SasError> for Error {
    fn from(bad: SasError) -> Self {
        match bad {
            SasError::Key => Self::Argument(bad.to_string()),
            SasError::Expired => Self::Unauthorized("token expired"),
            SasError::Signature => Self::Unauthorized("signature does not verify"),
            SasError::Audience => Self::Reach("token is for another resource"),
            _ => Self::Unauthorized("malformed token"),
        }
    }
}

impl From<rusqlite::Error> for Error {
    fn from(bad: rusqlite::Error) -> Self {
        Self::Store(StoreError::from(bad))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_the_members_that_clients_read() {
        let error = Error::NoModule {
            device: "d".into(),
            module: "m".into(),
        };
        let body = error.hub_body("t");
        assert_eq!(error.status(), 404);
        assert_eq!(
            body["Message"],
            "ErrorCode:ModuleNotFound;module m of device d is not registered"
        );
        assert!(
            body["ExceptionMessage"]
                .as_str()
                .unwrap()
                .ends_with("-TimeStamp:t")
        );
        for (error, number) in [
            (Error::Unauthorized("x"), 401_002),
            (Error::Reach("x"), 401_002),
            (Error::NoEnrolment("enrolment"), 404_201),
            (Error::Etag, 412_001),
        ] {
            let body = error.dps_body("t");
            assert_eq!(body["errorCode"], number);
            assert!(!body["message"].as_str().unwrap().is_empty());
            assert_eq!(body["timestampUtc"], "t");
        }
    }
}
