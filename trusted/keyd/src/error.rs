//! Why a request is refused, and what the caller reads (identity-service.md 1.4, 2.3). One table
//! from cause to status and text; causes of our own trouble go to the log only.

use contract::audit::Event;
use contract::names::KeyId;
use contract::refusal::{Class, Refusal};
use local::audit::AuditError;
use local::files::FileError;

/// A refused operation.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Policy says no (R17).
    #[error("user {uid} is not authorized to access the key {id}")]
    Unauthorized {
        /// The user.
        uid: u32,
        /// The key.
        id: KeyId,
    },
    /// Not a handle, or not this user's, or of a key that is gone (R18): one answer for all.
    #[error("invalid handle")]
    Handle,
    /// A good handle for another kind of key.
    #[error("{0}")]
    HandleKind(&'static str),
    /// A handle or key cannot do what is asked.
    #[error("{0}")]
    Mechanism(&'static str),
    /// A named parameter does not fit.
    #[error("{name}: {why}")]
    Parameter {
        /// Its name.
        name: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// What the compatible key library says when a key is not there or an input has no sense.
    #[error("a parameter has an invalid value")]
    Invalid,
    /// Members that do not belong together.
    #[error("{0}")]
    Unprocessable(&'static str),
    /// The key exists with other properties or bytes (R24).
    #[error("key {id} exists {how}")]
    Conflict {
        /// The key.
        id: KeyId,
        /// In what way it is another.
        how: &'static str,
    },
    /// The audit log cannot take the record, so nothing was changed (R38).
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The store failed.
    #[error("key store")]
    Store(#[from] FileError),
    /// A key file holds no key, or not the one that was stored.
    #[error("key file of {id}: {why}")]
    Damaged {
        /// The key.
        id: KeyId,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A decryption that did not verify: one answer whatever the reason (A45).
    #[error("decryption failed")]
    Decrypt,
    /// The crypto library failed.
    #[error("{0} failed")]
    Crypto(&'static str),
}

impl KeyError {
    /// The audit event, where a refusal is one.
    #[must_use]
    pub fn event(&self) -> Option<Event> {
        match self {
            Self::Unauthorized { .. } => Some(Event::KeyDenied),
            Self::Handle => Some(Event::KeyHandle),
            Self::Conflict { .. } => Some(Event::KeyConflict),
            Self::Damaged { .. } | Self::Store(FileError::Damaged { .. }) => {
                Some(Event::StoreDamaged)
            }
            Self::Store(file) if file.is_full() => Some(Event::StoreFull),
            Self::Decrypt => Some(Event::KeyDenied),
            _ => None,
        }
    }
}

impl From<KeyError> for Refusal {
    fn from(error: KeyError) -> Self {
        let event = error.event();
        let text = error.to_string();
        let mut refusal = match error {
            KeyError::Unauthorized { .. } => Self::new(Class::Unauthorized, text),
            KeyError::Handle | KeyError::HandleKind(_) => Self::parameter("handle", text),
            KeyError::Mechanism(_) => Self::parameter("mechanism", text),
            KeyError::Parameter { name, why } => Self::parameter(name, why),
            KeyError::Invalid => Self::new(Class::BadRequest, text),
            KeyError::Unprocessable(_) => Self::new(Class::Unprocessable, text),
            KeyError::Conflict { .. } => Self::new(Class::Conflict, text),
            KeyError::Audit(cause) => cause.into(),
            // Ours, and only for now: the caller may come back when there is space (P24).
            KeyError::Store(cause) if cause.is_full() => {
                let mut refusal = Self::new(Class::Unavailable, "key store is full");
                refusal.cause = Some(cause.to_string());
                refusal
            }
            KeyError::Store(cause) => Self::internal(cause),
            KeyError::Damaged { .. } | KeyError::Decrypt | KeyError::Crypto(_) => {
                Self::internal(text)
            }
        };
        refusal.event = event.or(refusal.event);
        refusal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_and_texts_are_the_compatible_ones() {
        let id = KeyId::new("k").unwrap();
        let internal = "internal error";
        for (error, status, message) in [
            (
                KeyError::Unauthorized {
                    uid: 7,
                    id: id.clone(),
                },
                401,
                "user 7 is not authorized to access the key k",
            ),
            (
                KeyError::Handle,
                400,
                "parameter \"handle\" has an invalid value\ncaused by: invalid handle",
            ),
            (
                KeyError::HandleKind("handle is not for a key pair"),
                400,
                "parameter \"handle\" has an invalid value\ncaused by: handle is not for a key pair",
            ),
            (KeyError::Invalid, 400, "a parameter has an invalid value"),
            (
                KeyError::Conflict {
                    id: id.clone(),
                    how: "with another algorithm",
                },
                409,
                "key k exists with another algorithm",
            ),
            (KeyError::Damaged { id, why: "empty" }, 500, internal),
            (KeyError::Decrypt, 500, internal),
            (KeyError::Crypto("key generation"), 500, internal),
            (
                KeyError::Audit(AuditError::Full),
                503,
                "audit log unavailable",
            ),
        ] {
            let refusal = Refusal::from(error);
            assert_eq!(
                (refusal.class.status(), refusal.message.as_str()),
                (status, message)
            );
        }
    }
}
