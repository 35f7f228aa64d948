//! What MQTT topics mean (reference/cloud.md 2.2, 2.3). Pure.
//!
//! There is no general matching of filters: five filters exist, and a topic names either the
//! connection itself or the authenticated identity. Anything else has no meaning and the caller
//! closes the connection (A129).

use contract::sas::{decode, encode, unescape};
use serde_json::{Map, Value};

use crate::record::Identity;

/// The longest topic, in bytes.
pub const MAX_TOPIC: usize = 1024;

/// What a client can subscribe to. The number is its bit in a stored session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Messages to the device.
    DeviceBound = 1,
    /// Inputs of a module. The hub itself never sends there.
    Inputs = 2,
    /// Answers to twin requests.
    TwinAnswers = 4,
    /// Changes of desired properties.
    Desired = 8,
    /// Direct methods.
    Methods = 16,
}

impl Filter {
    /// Reads a filter; `None` for one that the identity may not have.
    #[must_use]
    pub fn parse(text: &str, identity: &Identity) -> Option<Self> {
        match text {
            "$iothub/twin/res/#" => Some(Self::TwinAnswers),
            "$iothub/twin/PATCH/properties/desired/#" => Some(Self::Desired),
            "$iothub/methods/POST/#" => Some(Self::Methods),
            _ => match (own(text, identity)?, identity.module.is_some()) {
                ("messages/devicebound/#", false) => Some(Self::DeviceBound),
                ("#" | "inputs/#", true) => Some(Self::Inputs),
                _ => None,
            },
        }
    }

    /// Its bit.
    #[must_use]
    pub fn bit(self) -> u8 {
        self as u8
    }
}

/// What a client can publish.
#[derive(Debug, Clone, PartialEq)]
pub enum Publish<'a> {
    /// Telemetry with its property bag.
    Telemetry(Bag),
    /// Read the twin.
    TwinGet {
        /// Echoed as it came.
        rid: &'a str,
    },
    /// Patch the reported properties.
    TwinPatch {
        /// Echoed as it came.
        rid: &'a str,
    },
    /// The answer to a direct method.
    MethodAnswer {
        /// Of the hub's request.
        rid: &'a str,
        /// The method's own status.
        status: i32,
    },
}

impl<'a> Publish<'a> {
    /// Reads a topic; `None` for one that the identity may not publish to.
    #[must_use]
    pub fn parse(topic: &'a str, identity: &Identity) -> Option<Self> {
        if let Some(rid) = topic.strip_prefix("$iothub/twin/GET/") {
            return Some(Self::TwinGet { rid: rid_of(rid)? });
        }
        if let Some(rid) = topic.strip_prefix("$iothub/twin/PATCH/properties/reported/") {
            return Some(Self::TwinPatch { rid: rid_of(rid)? });
        }
        if let Some(rest) = topic.strip_prefix("$iothub/methods/res/") {
            let (status, rid) = rest.split_once('/')?;
            return Some(Self::MethodAnswer {
                rid: rid_of(rid)?,
                status: status.parse().ok()?,
            });
        }
        let events = own(topic, identity)?.strip_prefix("messages/events")?;
        match events.strip_prefix('/') {
            Some(bag) => Some(Self::Telemetry(Bag::parse(bag)?)),
            None if events.is_empty() => Some(Self::Telemetry(Bag::default())),
            None => None,
        }
    }
}

/// The part of a topic behind the identity's own prefix; ids may be percent-encoded.
fn own<'a>(topic: &'a str, identity: &Identity) -> Option<&'a str> {
    let same = |text: &str, id: &str| text == id || decode(text).is_some_and(|t| t == id);
    let (device, rest) = topic.strip_prefix("devices/")?.split_once('/')?;
    if !same(device, identity.device.as_str()) {
        return None;
    }
    let Some(own) = &identity.module else {
        return Some(rest);
    };
    let (module, rest) = rest.strip_prefix("modules/")?.split_once('/')?;
    same(module, own.as_str()).then_some(rest)
}

fn rid_of(query: &str) -> Option<&str> {
    let rid = query
        .strip_prefix('?')?
        .split('&')
        .find_map(|field| field.strip_prefix("$rid="))?;
    (!rid.is_empty()).then_some(rid)
}

/// The properties of a message, told apart by who defined their names.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bag {
    /// Names of the protocol, spelled out.
    pub system: Map<String, Value>,
    /// Names of the application.
    pub application: Map<String, Value>,
}

/// System property: on the wire, spelled out.
const SYSTEM: [(&str, &str); 14] = [
    ("$.mid", "messageId"),
    ("$.cid", "correlationId"),
    ("$.uid", "userId"),
    ("$.to", "to"),
    ("$.ct", "contentType"),
    ("$.ce", "contentEncoding"),
    ("$.exp", "absoluteExpiryTime"),
    ("$.on", "outputName"),
    ("$.ctime", "creationTimeUtc"),
    ("$.schema", "messageSchema"),
    ("$.ifid", "interfaceId"),
    ("$.sub", "dt-subject"),
    ("$.cdid", "connectionDeviceId"),
    ("$.cmid", "connectionModuleId"),
];

impl Bag {
    /// Reads `k=v&...`, percent-encoded; the last of two equal keys wins. `None` if it is broken.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('?').unwrap_or(text);
        let text = text.strip_suffix('/').unwrap_or(text);
        let mut bag = Self::default();
        for field in text.split('&').filter(|field| !field.is_empty()) {
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key, Value::String(unescape(value)?)),
                None => (field, Value::Null),
            };
            let key = decode(key).filter(|key| !key.is_empty())?;
            if let Some((_, name)) = SYSTEM.iter().find(|(wire, _)| *wire == key) {
                bag.system.insert((*name).into(), value);
            } else if !is_stamp(&key) {
                bag.application.insert(key, value);
            }
        }
        Some(bag)
    }
}

/// Names that only the service writes; from a client they are ignored.
fn is_stamp(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    key.starts_with("iothub-connection-")
        || [
            "iothub-enqueuedtime",
            "iothub-message-source",
            "iothub-messagetype",
        ]
        .contains(&key.as_str())
}

/// The topic of an answer to a twin request. .NET wants the `/?`.
#[must_use]
pub fn twin_answer(status: u16, rid: &str, version: Option<i64>) -> String {
    match version {
        Some(version) => format!("$iothub/twin/res/{status}/?$rid={rid}&$version={version}"),
        None => format!("$iothub/twin/res/{status}/?$rid={rid}"),
    }
}

/// The topic of a change of desired properties.
#[must_use]
pub fn desired(version: i64) -> String {
    format!("$iothub/twin/PATCH/properties/desired/?$version={version}")
}

/// The topic of a direct method call.
#[must_use]
pub fn method(name: &str, rid: u64) -> String {
    format!("$iothub/methods/POST/{}/?$rid={rid}", encode(name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn device() -> Identity {
        Identity::new("dev-1", None).unwrap()
    }

    fn agent() -> Identity {
        Identity::new("dev-1", Some("$edgeAgent")).unwrap()
    }

    #[test]
    fn a129_filters_of_another_identity_do_not_exist() {
        for (text, of_device, of_agent) in [
            (
                "$iothub/twin/res/#",
                Some(Filter::TwinAnswers),
                Some(Filter::TwinAnswers),
            ),
            (
                "$iothub/twin/PATCH/properties/desired/#",
                Some(Filter::Desired),
                Some(Filter::Desired),
            ),
            (
                "$iothub/methods/POST/#",
                Some(Filter::Methods),
                Some(Filter::Methods),
            ),
            (
                "devices/dev-1/messages/devicebound/#",
                Some(Filter::DeviceBound),
                None,
            ),
            (
                "devices/dev-1/modules/$edgeAgent/#",
                None,
                Some(Filter::Inputs),
            ),
            (
                "devices/dev-1/modules/%24edgeAgent/inputs/#",
                None,
                Some(Filter::Inputs),
            ),
            ("devices/dev-2/messages/devicebound/#", None, None),
            ("devices/dev-1/modules/other/#", None, None),
            ("devices/+/messages/devicebound/#", None, None),
            ("devices/#", None, None),
            ("#", None, None),
            ("+/#", None, None),
            ("$iothub/#", None, None),
            ("$iothub/twin/#", None, None),
            ("$iothub/twin/PATCH/properties/reported/#", None, None),
            ("", None, None),
        ] {
            assert_eq!(Filter::parse(text, &device()), of_device, "{text}");
            assert_eq!(Filter::parse(text, &agent()), of_agent, "{text}");
        }
    }

    #[test]
    fn a129_topics_of_another_identity_do_not_exist() {
        for foreign in [
            "devices/dev-2/messages/events/",
            "devices/dev-1/modules/m/messages/events/",
            "devices/DEV-1/messages/events/",
            "devices//messages/events/",
            "devices/dev-1/messages/eventsx",
            "devices/dev-1/messages/devicebound/",
            "devices/dev-1/messages/events/%zz",
            "$iothub/twin/GET/",
            "$iothub/twin/GET/?$rid=",
            "$iothub/twin/GET/?rid=1",
            "$iothub/twin/PATCH/properties/desired/?$rid=1",
            "$iothub/methods/res/x/?$rid=1",
            "$iothub/methods/POST/x/?$rid=1",
            "other",
        ] {
            assert_eq!(Publish::parse(foreign, &device()), None, "{foreign}");
        }
        assert_eq!(
            Publish::parse("devices/dev-1/messages/events/", &agent()),
            None
        );
    }

    #[test]
    fn topics_of_the_identity_are_read() {
        let own = |topic| Publish::parse(topic, &device());
        assert_eq!(
            own("$iothub/twin/GET/?$rid=a%20b"),
            Some(Publish::TwinGet { rid: "a%20b" })
        );
        assert_eq!(
            own("$iothub/twin/PATCH/properties/reported/?x=1&$rid=7"),
            Some(Publish::TwinPatch { rid: "7" })
        );
        assert_eq!(
            own("$iothub/methods/res/-1/?$rid=7"),
            Some(Publish::MethodAnswer {
                rid: "7",
                status: -1
            })
        );
        for empty in [
            "devices/dev-1/messages/events",
            "devices/dev-1/messages/events/",
        ] {
            assert_eq!(own(empty), Some(Publish::Telemetry(Bag::default())));
        }
        let topic = "devices/dev-1/modules/%24edgeAgent/messages/events/%24.on=out";
        let Some(Publish::Telemetry(bag)) = Publish::parse(topic, &agent()) else {
            panic!()
        };
        assert_eq!(bag.system["outputName"], "out");
    }

    #[test]
    fn bags_are_read_and_stamps_of_the_client_ignored() {
        let bag = Bag::parse(
            "?%24.mid=m%201&a=1&a=2+3&lines=x%0Ay&flag&empty=&iothub-connection-device-id=evil\
             &IoTHub-EnqueuedTime=x/",
        )
        .unwrap();
        assert_eq!(Value::Object(bag.system), json!({"messageId": "m 1"}));
        assert_eq!(
            Value::Object(bag.application),
            json!({"a": "2+3", "lines": "x\ny", "flag": null, "empty": ""})
        );
        assert_eq!(Bag::parse("=1"), None);
        assert_eq!(Bag::parse("a=%"), None);
        assert_eq!(Bag::parse(""), Some(Bag::default()));
    }
}
