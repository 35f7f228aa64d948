//! What an operator does at the hub: enrol a group, set a deployment, read keys and messages.

use std::path::Path;

use contract::sas::{Audience, Claim, SasKey};
use net::https::{Https, Method, Request};
use net::tls::{Client, Roots, Target};
use serde::Deserialize;
use serde_json::Value;

type Failure = Box<dyn std::error::Error>;

/// A hub that one may operate.
pub(super) struct Hub {
    https: Https,
    owner: SasKey,
    enroller: SasKey,
}

/// The part of the hub's configuration that an operator needs.
#[derive(Deserialize)]
struct Settings {
    scope_id: String,
    policies: std::collections::BTreeMap<String, String>,
}

/// The provisioning scope in the hub's configuration.
///
/// # Errors
/// When the file is none.
pub(super) fn scope(config: &Path) -> Result<String, Failure> {
    Ok(toml::from_str::<Settings>(&std::fs::read_to_string(config)?)?.scope_id)
}

impl Hub {
    /// The hub of this configuration, at this port.
    ///
    /// # Errors
    /// When the configuration lacks a policy, or the roots are none.
    pub(super) fn new(config: &Path, roots: &Path, port: u16) -> Result<Self, Failure> {
        let settings: Settings = toml::from_str(&std::fs::read_to_string(config)?)?;
        let key = |name: &str| -> Result<SasKey, Failure> {
            let text = settings
                .policies
                .get(name)
                .ok_or_else(|| format!("no policy {name}"))?;
            Ok(SasKey::from_base64(text)?)
        };
        let tls = Client::new(&Roots::from_pem(&std::fs::read(roots)?)?)?;
        Ok(Self {
            https: Https::new(tls, Target::parse(&format!("localhost:{port}"), 443)?),
            owner: key("iothubowner")?,
            enroller: key("provisioningserviceowner")?,
        })
    }

    /// Enrols a group with a fresh key and returns the key of one device in it.
    ///
    /// # Errors
    /// What the hub answered.
    pub(super) fn enrol(&self, group: &str, device: &str) -> Result<[u8; 32], Failure> {
        let mut bytes = zeroize::Zeroizing::new(vec![0; 64]);
        aws_lc_rs::rand::fill(&mut bytes)?;
        let key = SasKey::new(bytes)?;
        let mut second = zeroize::Zeroizing::new(vec![0; 64]);
        aws_lc_rs::rand::fill(&mut second)?;
        let secondary = SasKey::new(second)?;
        let document = serde_json::json!({
            "enrollmentGroupId": group,
            "attestation": { "type": "symmetricKey", "symmetricKey": {
                "primaryKey": key.to_base64().as_str(),
                "secondaryKey": secondary.to_base64().as_str(),
            } },
            "capabilities": { "iotEdge": true },
            "provisioningStatus": "enabled",
        });
        let path = format!("/enrollmentGroups/{group}?api-version=2021-10-01");
        let policy = ("provisioningserviceowner", &self.enroller);
        self.call(Method::Put, &path, policy, Some(&document))?;
        Ok(key.sign(device.as_bytes()))
    }

    /// Sets the deployment of a device.
    ///
    /// # Errors
    /// What the hub answered.
    pub(super) fn deploy(&self, device: &str, content: &Value) -> Result<(), Failure> {
        let path = format!("/devices/{device}/applyConfigurationContent?api-version=2021-04-12");
        self.call(
            Method::Post,
            &path,
            ("iothubowner", &self.owner),
            Some(content),
        )
        .map(drop)
    }

    /// The primary key that the hub has for a module.
    ///
    /// # Errors
    /// What the hub answered.
    pub(super) fn module_key(&self, device: &str, module: &str) -> Result<SasKey, Failure> {
        let path = format!("/devices/{device}/modules/{module}?api-version=2021-04-12");
        let module = self.call(Method::Get, &path, ("iothubowner", &self.owner), None)?;
        let key = module["authentication"]["symmetricKey"]["primaryKey"].as_str();
        Ok(SasKey::from_base64(
            key.ok_or("the hub has no key for the module")?,
        )?)
    }

    /// Messages that have arrived.
    ///
    /// # Errors
    /// What the hub answered.
    pub(super) fn messages(&self) -> Result<Vec<Value>, Failure> {
        let path = "/messages/events?after=0&max=100&api-version=2021-04-12";
        let answer = self.call(Method::Get, path, ("iothubowner", &self.owner), None)?;
        Ok(match answer {
            Value::Array(all) => all,
            Value::Object(mut one) => match one.remove("events") {
                Some(Value::Array(all)) => all,
                _ => Vec::new(),
            },
            _ => Vec::new(),
        })
    }

    fn call(
        &self,
        method: Method,
        path: &str,
        (name, key): (&str, &SasKey),
        json: Option<&Value>,
    ) -> Result<Value, Failure> {
        let now = local::clock::Clock::open(None)?.now().wall;
        let audience = Audience::Service { host: "localhost" };
        let token = Claim::new(&audience, now, 300)?
            .policy(name)
            .sign(|text| Ok::<_, Failure>(key.sign(text)))?;
        let body = json.map(Value::to_string);
        let mut request = Request::new(method, path);
        request.authorization = Some(&token);
        request.json = body.as_deref().map(str::as_bytes);
        let reply = self.https.call(&request)?;
        if !(200..300).contains(&reply.status) {
            let text = String::from_utf8_lossy(&reply.body).into_owned();
            return Err(format!("the hub answered {} to {path}: {text}", reply.status).into());
        }
        if reply.body.is_empty() {
            return Ok(Value::Null);
        }
        Ok(serde_json::from_slice(&reply.body)?)
    }
}
