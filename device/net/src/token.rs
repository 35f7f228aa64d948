//! Tokens for the services, signed by whoever holds the key.
//!
//! The key is in keyd, behind identityd or the workload API; here is only a [`TokenSigner`]. A
//! token is made fresh for each use and lives as short as its use allows. Where the clock cannot
//! be trusted no token is made (R72): the wall clock is asked through a function that may say so.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use contract::sas::{Audience, Claim, SasError};
use zeroize::Zeroizing;

/// What a signer could not do, in its own words.
pub type SignError = Box<dyn Error + Send + Sync>;

/// Makes HMAC-SHA256 under the key of one identity.
pub trait TokenSigner {
    /// Signs exactly these bytes.
    fn sign(&self, data: &[u8]) -> Result<[u8; 32], SignError>;
}

impl<F: Fn(&[u8]) -> Result<[u8; 32], SignError>> TokenSigner for F {
    fn sign(&self, data: &[u8]) -> Result<[u8; 32], SignError> {
        self(data)
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The wall clock is not known to be right (R72).
    #[error("the clock cannot be trusted yet, so no token is made")]
    Clock,
    /// The claim cannot be made.
    #[error("the token cannot be described")]
    Claim(#[source] SasError),
    /// The holder of the key did not sign.
    #[error("the token was not signed")]
    Sign(#[source] SignError),
}

/// Whom a token speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A device at its hub.
    Device {
        /// The hub's own name; a port in it is left out of the token.
        hub: String,
        /// The device id.
        device: String,
    },
    /// A module at its hub.
    Module {
        /// The hub's own name; a port in it is left out of the token.
        hub: String,
        /// The device id.
        device: String,
        /// The module id, with the `$` of a system module.
        module: String,
    },
    /// A registration at the provisioning service.
    Registration {
        /// The id scope.
        scope: String,
        /// The registration id.
        registration: String,
    },
}

impl Owner {
    fn audience(&self) -> Audience<'_> {
        match self {
            Self::Device { hub, device } => Audience::Device {
                host: bare(hub),
                device,
            },
            Self::Module {
                hub,
                device,
                module,
            } => Audience::Module {
                host: bare(hub),
                device,
                module,
            },
            Self::Registration {
                scope,
                registration,
            } => Audience::Registration {
                scope,
                registration,
            },
        }
    }
}

/// A hub's name without the port that an assignment may carry (reference/cloud.md 0.1).
pub(crate) fn bare(hub: &str) -> &str {
    match hub.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !host.contains(':') => {
            host
        }
        _ => hub,
    }
}

/// A token and how long it may be used.
pub struct Minted {
    /// The text for an `Authorization` header or an MQTT password.
    pub text: Zeroizing<String>,
    /// From now until it ends.
    pub lifetime: Duration,
}

impl fmt::Debug for Minted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Minted({:?})", self.lifetime)
    }
}

/// Makes tokens for one owner.
pub struct Source {
    owner: Owner,
    lifetime: u32,
    signer: Box<dyn TokenSigner + Send + Sync>,
    wall: Box<dyn Fn() -> Option<i64> + Send + Sync>,
}

impl Source {
    /// Tokens of `lifetime` seconds; `wall` is the time in Unix seconds, or `None` while it
    /// cannot be trusted.
    pub fn new(
        owner: Owner,
        lifetime: u32,
        signer: impl TokenSigner + Send + Sync + 'static,
        wall: impl Fn() -> Option<i64> + Send + Sync + 'static,
    ) -> Self {
        Self {
            owner,
            lifetime,
            signer: Box::new(signer),
            wall: Box::new(wall),
        }
    }

    /// Makes a fresh token.
    pub fn mint(&self) -> Result<Minted, TokenError> {
        let now = (self.wall)().ok_or(TokenError::Clock)?;
        let claim = Claim::new(&self.owner.audience(), now, i64::from(self.lifetime))
            .map_err(TokenError::Claim)?;
        let text = claim
            .sign(|data| self.signer.sign(data))
            .map_err(TokenError::Sign)?;
        Ok(Minted {
            text,
            lifetime: Duration::from_secs(u64::from(self.lifetime)),
        })
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "token::Source({:?})", self.owner)
    }
}

#[cfg(test)]
mod tests {
    use contract::sas::Token;

    use super::*;

    fn source(owner: Owner, wall: Option<i64>) -> Source {
        Source::new(owner, 30, |_: &[u8]| Ok([7; 32]), move || wall)
    }

    #[test]
    fn a_token_names_the_hub_without_its_port_and_ends_soon() {
        let owner = Owner::Device {
            hub: "hub.test:8443".into(),
            device: "d1".into(),
        };
        let minted = source(owner, Some(1000)).mint().unwrap();
        let token = Token::parse(&minted.text).unwrap();
        assert_eq!(token.resource(), "hub.test%2Fdevices%2Fd1");
        assert_eq!(token.closes(), 1030 + contract::sas::LEEWAY);
        assert_eq!(bare("::1"), "::1");
    }

    #[test]
    fn no_token_is_made_while_the_clock_cannot_be_trusted() {
        let owner = Owner::Registration {
            scope: "s".into(),
            registration: "r".into(),
        };
        assert!(matches!(source(owner, None).mint(), Err(TokenError::Clock)));
    }

    #[test]
    fn debug_forms_show_no_token() {
        let owner = Owner::Module {
            hub: "h".into(),
            device: "d".into(),
            module: "m".into(),
        };
        let minted = source(owner, Some(1)).mint().unwrap();
        assert_eq!(format!("{minted:?}"), "Minted(30s)");
    }
}
