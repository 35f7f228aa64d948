//! Refusals: whose fault it is, which status that is on the wire, and what the log may add.
//!
//! The caller sees status and message; the cause goes to the log only (R10).

use std::fmt;

use crate::audit::Event;

/// What kind of refusal; one table maps it to the compatible status (security.md 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A value that does not fit.
    BadRequest,
    /// Key, certificate or identity policy says no.
    Unauthorized,
    /// Attestation or caller class says no; the connection is closed after the answer.
    Forbidden,
    /// No such thing, or a service behind us said so.
    NotFound,
    /// The request did not arrive in time.
    Timeout,
    /// Something else has this name.
    Conflict,
    /// Longer than the limit.
    TooLarge,
    /// A PUT body of another content type.
    Unsupported,
    /// Not JSON, or not the members asked for.
    Unprocessable,
    /// Over the limit of requests.
    TooMany,
    /// Ours: storage, a bug, a broken reply of a service behind us.
    Internal,
    /// For the time being: the audit log is full, the hub is away.
    Unavailable,
}

impl Class {
    /// The HTTP status.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Timeout => 408,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::Unsupported => 415,
            Self::Unprocessable => 422,
            Self::TooMany => 429,
            Self::Internal => 500,
            Self::Unavailable => 503,
        }
    }
}

/// A refused request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What kind.
    pub class: Class,
    /// What the caller reads, as member `message`.
    pub message: String,
    /// What only the log reads.
    pub cause: Option<String>,
    /// The audit event, where the refusal is one.
    pub event: Option<Event>,
}

impl Refusal {
    /// A refusal with its message.
    #[must_use]
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Self {
            class,
            message: message.into(),
            cause: None,
            event: None,
        }
    }

    /// 403 without detail (R10).
    #[must_use]
    pub fn forbidden(cause: impl fmt::Display) -> Self {
        Self {
            class: Class::Forbidden,
            message: "forbidden".to_owned(),
            cause: Some(cause.to_string()),
            event: Some(Event::PeerRefused),
        }
    }

    /// 500 with the compatible text; the cause is for the log (identity-service.md 1.4).
    #[must_use]
    pub fn internal(cause: impl fmt::Display) -> Self {
        Self {
            class: Class::Internal,
            message: "internal error".to_owned(),
            cause: Some(cause.to_string()),
            event: None,
        }
    }

    /// The same refusal, recorded as this event.
    #[must_use]
    pub fn recorded_as(mut self, event: Event) -> Self {
        self.event = Some(event);
        self
    }

    /// 400 in the compatible form of a named parameter (identity-service.md 1.4).
    #[must_use]
    pub fn parameter(name: &str, why: impl fmt::Display) -> Self {
        Self::new(
            Class::BadRequest,
            format!("parameter \"{name}\" has an invalid value\ncaused by: {why}"),
        )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.class.status(), self.message)
    }
}

impl std::error::Error for Refusal {}
