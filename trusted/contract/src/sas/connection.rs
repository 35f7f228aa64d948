//! Connection strings: the text that tools show for a device, module or policy.

use zeroize::Zeroizing;

use super::{Audience, Claim, SasError, SasKey};

/// The longest connection string looked at.
const MAX_CONNECTION_STRING: usize = 4096;

/// Where and as whom to connect: the text that tools show for a device, module or policy.
#[derive(Debug, Clone)]
pub struct ConnectionString {
    /// The hub's own name.
    pub host: String,
    /// Another name to connect to.
    pub gateway: Option<String>,
    /// Whose key it is.
    pub holder: Holder,
    /// The key.
    pub key: SasKey,
}

/// Whose key a connection string carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A device's.
    Device(String),
    /// A module's: device id, module id.
    Module(String, String),
    /// A shared access policy's.
    Policy(String),
}

impl ConnectionString {
    /// Reads `Name=value;...`; names in any case, each once.
    ///
    /// # Errors
    /// [`SasError::ConnectionString`] or [`SasError::Key`].
    pub fn parse(text: &str) -> Result<Self, SasError> {
        let fail = SasError::ConnectionString;
        if text.len() > MAX_CONNECTION_STRING {
            return Err(fail("longer than 4096 bytes"));
        }
        if text.bytes().any(|byte| byte.is_ascii_control()) {
            // A token for such a name could be made, and nobody would accept it.
            return Err(fail("a control character"));
        }
        let (mut host, mut gateway, mut device, mut module) = (None, None, None, None);
        let (mut policy, mut key) = (None, None);
        for field in text.trim_end_matches(';').split(';') {
            let (name, value) = field.split_once('=').ok_or(fail("a field without value"))?;
            let place = match name.to_ascii_lowercase().as_str() {
                "hostname" => &mut host,
                "gatewayhostname" => &mut gateway,
                "deviceid" => &mut device,
                "moduleid" => &mut module,
                "sharedaccesskeyname" => &mut policy,
                "sharedaccesskey" => &mut key,
                _ => return Err(fail("an unknown field")),
            };
            if value.is_empty() {
                return Err(fail("an empty field"));
            }
            if place.replace(value).is_some() {
                return Err(fail("a field given twice"));
            }
        }
        let key = SasKey::from_base64(key.ok_or(fail("no SharedAccessKey"))?)?;
        let holder = match (device, module, policy) {
            (Some(device), None, None) => Holder::Device(device.to_owned()),
            (Some(device), Some(module), None) => {
                Holder::Module(device.to_owned(), module.to_owned())
            }
            (None, None, Some(policy)) => Holder::Policy(policy.to_owned()),
            _ => return Err(fail("names neither a device nor a policy")),
        };
        let host = host.ok_or(fail("no HostName"))?.to_owned();
        Ok(Self {
            host,
            gateway: gateway.map(str::to_owned),
            holder,
            key,
        })
    }

    /// What tokens made from it are for.
    #[must_use]
    pub fn audience(&self) -> Audience<'_> {
        let host = &self.host;
        match &self.holder {
            Holder::Device(device) => Audience::Device { host, device },
            Holder::Module(device, module) => Audience::Module {
                host,
                device,
                module,
            },
            Holder::Policy(_) => Audience::Service { host },
        }
    }

    /// A token made with the key of this string.
    ///
    /// # Errors
    /// [`SasError::Lifetime`].
    pub fn token(&self, now: i64, lifetime: i64) -> Result<Zeroizing<String>, SasError> {
        let claim = Claim::new(&self.audience(), now, lifetime)?;
        let claim = match &self.holder {
            Holder::Policy(name) => claim.policy(name),
            _ => claim,
        };
        claim.sign(|text| Ok(self.key.sign(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sas::Token;

    const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    const NOW: i64 = 1_700_000_000;

    fn verify(text: &str, audience: &Audience<'_>, now: i64) -> Result<(), SasError> {
        Token::parse(text)?.verify(audience, &[&SasKey::from_base64(KEY).unwrap()], now)
    }

    #[test]
    fn connection_strings_name_a_holder() {
        let parse = ConnectionString::parse;
        let device = parse(&format!("HostName=h;DeviceId=d;SharedAccessKey={KEY}")).unwrap();
        assert_eq!(device.holder, Holder::Device("d".into()));
        let module = parse(&format!(
            "hostname=h;DeviceId=d;ModuleId=m;SharedAccessKey={KEY};GatewayHostName=g"
        ))
        .unwrap();
        assert_eq!(module.holder, Holder::Module("d".into(), "m".into()));
        assert_eq!(module.gateway.as_deref(), Some("g"));
        let policy = parse(&format!(
            "HostName=h;SharedAccessKeyName=iothubowner;SharedAccessKey={KEY}"
        ))
        .unwrap();
        let text = policy.token(NOW, 60).unwrap();
        assert_eq!(verify(&text, &Audience::Service { host: "H" }, NOW), Ok(()));
        assert_eq!(Token::parse(&text).unwrap().policy(), Some("iothubowner"));
        for bad in [
            "".to_owned(),
            "HostName=h;DeviceId=d".into(),
            format!("DeviceId=d;SharedAccessKey={KEY}"),
            format!("HostName=h;SharedAccessKey={KEY}"),
            format!("HostName=h;ModuleId=m;SharedAccessKey={KEY}"),
            format!("HostName=h;DeviceId=d;SharedAccessKeyName=p;SharedAccessKey={KEY}"),
            format!("HostName=h;HostName=i;DeviceId=d;SharedAccessKey={KEY}"),
            format!("HostName=h;DeviceId=;SharedAccessKey={KEY}"),
            format!("HostName=h;DeviceId=d;x509=true;SharedAccessKey={KEY}"),
            "HostName=h;DeviceId=d;SharedAccessKey=short".into(),
            format!("HostName=h;SharedAccessKeyName=a\nb;SharedAccessKey={KEY}"),
        ] {
            assert!(parse(&bad).is_err(), "{bad}");
        }
    }
}
