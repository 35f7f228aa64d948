//! The hub's registry of module identities, as a device may use it for its own modules
//! (reference/identity-service.md 6.2).
//!
//! Five calls, one request each except creation (two: create, then set keys). Nothing is cached
//! and nothing is retried here. Errors tell a hub that said no from a hub that is out of reach,
//! because the caller then lives on its last record.

use std::fmt;
use std::time::Duration;

use contract::bytes::Secret;
use contract::json;
use contract::names::{DeviceId, Generation, ModuleId};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::dps::shorten;
use crate::https::{Https, HttpsError, MAX_BODY, Method, Reply, Request};
use crate::token::{self, TokenError};
use crate::topic::encode;

const API: &str = "2017-11-08-preview";

/// Why a call to the registry has no result.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No token could be made.
    #[error("the call to the hub has no token")]
    Token(#[from] TokenError),
    /// The hub cannot be reached.
    #[error("the hub cannot be reached")]
    Network(#[from] HttpsError),
    /// The hub says it cannot serve now.
    #[error("the hub cannot serve now ({status}): {message}")]
    Unavailable {
        /// The HTTP status.
        status: u16,
        /// The hub's words, shortened.
        message: String,
    },
    /// The hub wants fewer calls.
    #[error("the hub throttles this device")]
    Throttled {
        /// How long it wants us to wait.
        after: Option<Duration>,
    },
    /// The hub says no.
    #[error("the hub refuses with {status}: {message}")]
    Hub {
        /// The HTTP status.
        status: u16,
        /// The hub's words, shortened.
        message: String,
    },
    /// A reply that is not what the protocol says.
    #[error("the hub's reply is malformed: {0}")]
    Malformed(&'static str),
}

impl RegistryError {
    /// Whether the hub is out of reach, so that the last record counts.
    pub fn is_offline(&self) -> bool {
        matches!(self, Self::Network(_) | Self::Unavailable { .. })
    }
}

/// A module's identity at the hub. Its keys are not read back: we have them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Module {
    /// The module's id, with the `$` of a system module.
    pub module_id: ModuleId,
    /// The device it belongs to.
    pub device_id: DeviceId,
    /// Who created it.
    #[serde(default)]
    pub managed_by: Option<String>,
    /// The hub's id for this creation of it.
    #[serde(default)]
    pub generation_id: Option<Generation>,
}

/// The registry of one device.
pub struct Registry {
    https: Https,
    device: DeviceId,
    tokens: token::Source,
}

impl Registry {
    /// A client for the modules of one device. `tokens` must be those of the device.
    pub fn new(https: Https, device: DeviceId, tokens: token::Source) -> Self {
        Self {
            https,
            device,
            tokens,
        }
    }

    /// Creates a module's identity without keys: its keys are derived from the generation that
    /// the hub gives it, so they follow with [`Registry::set_keys`].
    pub fn create_without_keys(&self, module: &ModuleId) -> Result<Module, RegistryError> {
        let body = self.body(module, None)?;
        let reply = self.send(Method::Put, &self.path(module), None, Some(&body))?;
        self.module(module, &expect(reply, 200)?)
    }

    /// Creates a module's identity and gives it its keys.
    pub fn create(
        &self,
        module: &ModuleId,
        primary: &Secret,
        secondary: &Secret,
    ) -> Result<Module, RegistryError> {
        let body = self.body(module, None)?;
        let reply = self.send(Method::Put, &self.path(module), None, Some(&body))?;
        self.module(module, &expect(reply, 200)?)?;
        self.set_keys(module, primary, secondary)
    }

    /// Gives an existing module new keys, whatever its state is.
    pub fn set_keys(
        &self,
        module: &ModuleId,
        primary: &Secret,
        secondary: &Secret,
    ) -> Result<Module, RegistryError> {
        let keys = WireAuthentication {
            symmetric_key: WireKeys {
                primary_key: primary,
                secondary_key: secondary,
            },
            kind: "sas",
        };
        let body = self.body(module, Some(keys))?;
        let reply = self.send(Method::Put, &self.path(module), Some("*"), Some(&body))?;
        self.module(module, &expect(reply, 200)?)
    }

    /// Reads one module's identity.
    pub fn get(&self, module: &ModuleId) -> Result<Module, RegistryError> {
        let reply = self.send(Method::Get, &self.path(module), None, None)?;
        self.module(module, &expect(reply, 200)?)
    }

    /// Reads all module identities of the device.
    pub fn list(&self) -> Result<Vec<Module>, RegistryError> {
        let path = format!(
            "/devices/{}/modules?api-version={API}",
            encode(self.device.as_str())
        );
        let reply = expect(self.send(Method::Get, &path, None, None)?, 200)?;
        let modules: Vec<Module> = parse(&reply)?;
        if modules.iter().any(|m| m.device_id != self.device) {
            return Err(RegistryError::Malformed(
                "a module of another device is listed",
            ));
        }
        Ok(modules)
    }

    /// Removes a module's identity.
    pub fn delete(&self, module: &ModuleId) -> Result<(), RegistryError> {
        let reply = self.send(Method::Delete, &self.path(module), Some("*"), None)?;
        expect(reply, 204).map(|_| ())
    }

    fn path(&self, module: &ModuleId) -> String {
        let (device, module) = (encode(self.device.as_str()), encode(module.as_str()));
        format!("/devices/{device}/modules/{module}?api-version={API}")
    }

    fn body(
        &self,
        module: &ModuleId,
        authentication: Option<WireAuthentication<'_>>,
    ) -> Result<Zeroizing<Vec<u8>>, RegistryError> {
        // Room for the keys from the start, so that growing leaves no copy of them behind.
        let mut body = Zeroizing::new(Vec::with_capacity(1024));
        let wire = WireModule {
            module_id: module.as_str(),
            device_id: self.device.as_str(),
            authentication,
        };
        serde_json::to_writer(&mut *body, &wire)
            .map_err(|_| RegistryError::Malformed("the request cannot be written"))?;
        Ok(body)
    }

    fn send(
        &self,
        method: Method,
        path: &str,
        if_match: Option<&str>,
        body: Option<&[u8]>,
    ) -> Result<Reply, RegistryError> {
        let token = self.tokens.mint()?;
        let authorization = Some(token.text.as_str());
        Ok(self.https.call(&Request {
            method,
            path,
            authorization,
            if_match,
            json: body,
        })?)
    }

    fn module(&self, module: &ModuleId, reply: &Reply) -> Result<Module, RegistryError> {
        let found: Module = parse(reply)?;
        if found.module_id != *module || found.device_id != self.device {
            return Err(RegistryError::Malformed(
                "the reply is about another module",
            ));
        }
        Ok(found)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registry({:?}, {})", self.https, self.device)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WireModule<'a> {
    module_id: &'a str,
    device_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    authentication: Option<WireAuthentication<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WireAuthentication<'a> {
    symmetric_key: WireKeys<'a>,
    #[serde(rename = "type")]
    kind: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WireKeys<'a> {
    primary_key: &'a Secret,
    secondary_key: &'a Secret,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireError {
    #[serde(rename = "Message")]
    message: Option<String>,
    #[serde(rename = "errorMessage")]
    error_message: Option<String>,
    #[serde(rename = "networkError")]
    network_error: bool,
}

fn parse<T: serde::de::DeserializeOwned>(reply: &Reply) -> Result<T, RegistryError> {
    if !reply.is_json() {
        return Err(RegistryError::Malformed("the content type is not JSON"));
    }
    let limit = usize::try_from(MAX_BODY).unwrap_or(usize::MAX);
    json::check(&reply.body, json::Limits::document(limit))
        .map_err(|_| RegistryError::Malformed("not JSON, or JSON beyond the limits"))?;
    serde_json::from_slice(&reply.body)
        .map_err(|_| RegistryError::Malformed("a member is missing or of the wrong kind"))
}

fn expect(reply: Reply, wanted: u16) -> Result<Reply, RegistryError> {
    if reply.status == wanted {
        return Ok(reply);
    }
    if reply.status == 429 {
        return Err(RegistryError::Throttled {
            after: reply.retry_after,
        });
    }
    let error: WireError = parse(&reply).unwrap_or_default();
    let message = error
        .message
        .or(error.error_message)
        .unwrap_or_else(|| "no reason".to_owned());
    let (status, message) = (reply.status, shorten(&message));
    if error.network_error || matches!(status, 500 | 502..=504) {
        return Err(RegistryError::Unavailable { status, message });
    }
    Err(RegistryError::Hub { status, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, body: &str) -> Reply {
        Reply {
            status,
            content_type: None,
            retry_after: None,
            body: body.as_bytes().to_vec(),
        }
    }

    #[test]
    fn a_hub_that_says_no_is_told_from_one_that_is_away() {
        for (status, body, offline, shown) in [
            (
                404,
                r#"{"Message":"ErrorCode:ModuleNotFound;gone"}"#,
                false,
                "404: ErrorCode:ModuleNotFound",
            ),
            (
                401,
                r#"{"errorMessage":"bad token"}"#,
                false,
                "401: bad token",
            ),
            (500, r#"{"Message":"oops"}"#, true, "oops"),
            (
                400,
                r#"{"Message":"upstream","networkError":true}"#,
                true,
                "upstream",
            ),
            (503, "", true, "no reason"),
            (201, "{}", false, "201"),
            (302, "", false, "302"),
        ] {
            let error = expect(reply(status, body), 200).unwrap_err();
            assert_eq!(error.is_offline(), offline, "{status}");
            assert!(error.to_string().contains(shown), "{error}");
        }
        assert!(expect(reply(200, ""), 200).is_ok());
        assert!(matches!(
            expect(reply(429, ""), 200),
            Err(RegistryError::Throttled { .. })
        ));
    }

    #[test]
    fn modules_are_read_without_their_keys_and_of_any_authentication() {
        let list = reply(
            200,
            r#"[{"moduleId":"$edgeAgent","deviceId":"d","managedBy":null,
            "generationId":"637","etag":"x","connectionState":"Disconnected",
            "authentication":{"type":"selfSigned","symmetricKey":{"primaryKey":"not base64"}}},
            {"moduleId":"m","deviceId":"d"}]"#,
        );
        let modules: Vec<Module> = parse(&list).unwrap();
        assert_eq!(modules[0].module_id.as_str(), "$edgeAgent");
        assert_eq!(
            modules[0].generation_id.as_ref().map(Generation::as_str),
            Some("637")
        );
        assert_eq!(modules[1].generation_id, None);
        for bad in [
            "{}",
            r#"[{"moduleId":"a/b","deviceId":"d"}]"#,
            r#"[{"deviceId":"d"}]"#,
            "[] x",
        ] {
            assert!(parse::<Vec<Module>>(&reply(200, bad)).is_err(), "{bad}");
        }
    }
}
