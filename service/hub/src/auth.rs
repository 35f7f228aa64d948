//! Who calls, and what that reaches (reference/cloud.md 0.4, 3.1; A129). Pure.
//!
//! A token is judged for one target: a policy's token by its rights and by the resource it names,
//! an entity's token only for the entity itself. There is no caller without a target, so a valid
//! token of device A is nothing at device B.

use std::collections::BTreeMap;

use contract::sas::{Audience, SasKey, Token};
use serde::Deserialize;

use crate::error::Error;
use crate::record::{Identity, Record};

/// What an operation needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// Read identities.
    RegistryRead,
    /// Write identities and deployments.
    RegistryWrite,
    /// Twins, methods, messages.
    ServiceConnect,
    /// Act as a device.
    DeviceConnect,
    /// Enrolments and registrations.
    Provisioning,
}

/// A shared access policy. The set is fixed; the keys are the operator's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Policy {
    /// All rights at the hub.
    #[serde(rename = "iothubowner")]
    Owner,
    /// Twins, methods, messages.
    Service,
    /// Acts as any device.
    Device,
    /// Reads identities.
    RegistryRead,
    /// Reads and writes identities.
    RegistryReadWrite,
    /// Enrolments.
    #[serde(rename = "provisioningserviceowner")]
    Provisioning,
}

impl Policy {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Owner,
        Self::Service,
        Self::Device,
        Self::RegistryRead,
        Self::RegistryReadWrite,
        Self::Provisioning,
    ];

    /// Its name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Owner => "iothubowner",
            Self::Service => "service",
            Self::Device => "device",
            Self::RegistryRead => "registryRead",
            Self::RegistryReadWrite => "registryReadWrite",
            Self::Provisioning => "provisioningserviceowner",
        }
    }

    fn grants(self, right: Right) -> bool {
        use Right::{DeviceConnect, RegistryRead, RegistryWrite, ServiceConnect};
        match self {
            Self::Owner => {
                matches!(
                    right,
                    RegistryRead | RegistryWrite | ServiceConnect | DeviceConnect
                )
            }
            Self::Service => right == ServiceConnect,
            Self::Device => right == DeviceConnect,
            Self::RegistryRead => right == RegistryRead,
            Self::RegistryReadWrite => matches!(right, RegistryRead | RegistryWrite),
            Self::Provisioning => right == Right::Provisioning,
        }
    }
}

/// The policies' keys and the hub's own names.
#[derive(Debug)]
pub struct Authority {
    /// Names that a token may name as the hub, the first being the hub's own.
    pub hosts: Vec<String>,
    /// Keys by policy.
    pub policies: BTreeMap<Policy, SasKey>,
}

/// A caller that was proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// The holder of a policy key.
    Policy(Policy),
    /// The device itself, speaking for itself or one of its modules.
    Device,
    /// The module itself.
    Module,
}

impl Authority {
    /// Judges a policy's token: made with the policy's key, for the hub or the part of it where
    /// the target is, with the right.
    ///
    /// # Errors
    /// [`Error::Unauthorized`], [`Error::Reach`].
    pub fn policy(
        &self,
        token: &Token,
        right: Right,
        target: Option<&Identity>,
        now: i64,
    ) -> Result<Principal, Error> {
        let named = token.policy().ok_or(Error::Reach("it needs a policy"))?;
        let (policy, key) = Policy::ALL
            .into_iter()
            .find(|policy| policy.name() == named)
            .and_then(|policy| Some((policy, self.policies.get(&policy)?)))
            .ok_or(Error::Unauthorized("unknown policy"))?;
        self.first(|host| {
            token.verify(&Audience::Service { host }, &[key], now)?;
            let whole = Audience::Service { host }.is_within(token.resource());
            let part = target.is_some_and(|target| {
                let audience = target.audience(host);
                audience.is_within(token.resource()) || audience.covers(token.resource())
            });
            if whole || part {
                Ok(())
            } else {
                Err(Error::Reach("token is for another resource"))
            }
        })?;
        if policy.grants(right) {
            Ok(Principal::Policy(policy))
        } else {
            Err(Error::Reach("the policy lacks the right"))
        }
    }

    /// Judges an entity's own token.
    ///
    /// # Errors
    /// [`Error::Unauthorized`], [`Error::Reach`].
    pub fn entity(&self, token: &Token, record: &Record, now: i64) -> Result<(), Error> {
        self.first(|host| Ok(token.verify(&record.identity.audience(host), &record.keys(), now)?))
    }

    /// The first of our names under which it holds, else why it does not under the nearest.
    fn first(&self, holds: impl Fn(&str) -> Result<(), Error>) -> Result<(), Error> {
        let mut why = Error::Reach("token is for another resource");
        for host in &self.hosts {
            match holds(host) {
                Ok(()) => return Ok(()),
                Err(Error::Reach(_)) => {}
                Err(other) => why = other,
            }
        }
        Err(why)
    }
}

impl Identity {
    /// What its tokens are for.
    #[must_use]
    pub fn audience<'a>(&'a self, host: &'a str) -> Audience<'a> {
        let device = self.device.as_str();
        match &self.module {
            None => Audience::Device { host, device },
            Some(module) => Audience::Module {
                host,
                device,
                module: module.as_str(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

    fn authority() -> Authority {
        let policies = Policy::ALL.map(|p| (p, SasKey::from_base64(KEY).unwrap()));
        Authority {
            hosts: vec!["hub".into(), "127.0.0.1:8443".into()],
            policies: policies.into(),
        }
    }

    fn token(resource: &str, policy: &str) -> Token {
        let key = SasKey::from_base64(KEY).unwrap();
        let sig = key.sign(format!("{resource}\n100").as_bytes());
        let sig = contract::sas::encode(&base64::Engine::encode(
            &base64::engine::general_purpose::STANDARD,
            sig,
        ));
        Token::parse(&format!(
            "SharedAccessSignature sr={resource}&sig={sig}&se=100&skn={policy}"
        ))
        .unwrap()
    }

    #[test]
    fn a129_each_policy_has_its_rights_and_no_other() {
        use Right::{DeviceConnect, Provisioning, RegistryRead, RegistryWrite, ServiceConnect};
        let rights = [
            RegistryRead,
            RegistryWrite,
            ServiceConnect,
            DeviceConnect,
            Provisioning,
        ];
        for (policy, granted) in [
            ("iothubowner", [true, true, true, true, false]),
            ("service", [false, false, true, false, false]),
            ("device", [false, false, false, true, false]),
            ("registryRead", [true, false, false, false, false]),
            ("registryReadWrite", [true, true, false, false, false]),
            (
                "provisioningserviceowner",
                [false, false, false, false, true],
            ),
        ] {
            for (right, granted) in rights.into_iter().zip(granted) {
                let got = authority().policy(&token("hub", policy), right, None, 0);
                assert_eq!(got.is_ok(), granted, "{policy} {right:?}");
            }
        }
    }

    #[test]
    fn a129_a_policy_token_for_one_device_stays_there() {
        let own = Identity::new("dev-1", Some("m")).unwrap();
        let other = Identity::new("dev-2", None).unwrap();
        let token = token("HUB%2Fdevices%2Fdev-1", "registryRead");
        let judge = |target| authority().policy(&token, Right::RegistryRead, target, 0);
        assert!(judge(Some(&own)).is_ok());
        assert!(judge(Some(&other)).is_err());
        assert!(judge(None).is_err(), "not the list of all devices");
    }

    #[test]
    fn tokens_may_name_any_of_our_names() {
        for (resource, good) in [
            ("127.0.0.1:8443", true),
            ("Hub", true),
            ("127.0.0.1", false),
        ] {
            let token = token(resource, "registryRead");
            let got = authority().policy(&token, Right::RegistryRead, None, 0);
            assert_eq!(got.is_ok(), good, "{resource}");
        }
        let expired =
            authority().policy(&token("hub", "service"), Right::ServiceConnect, None, 401);
        assert!(matches!(expired, Err(Error::Unauthorized("token expired"))));
        assert!(
            authority()
                .policy(&token("hub", "evil"), Right::ServiceConnect, None, 0)
                .is_err()
        );
    }
}
