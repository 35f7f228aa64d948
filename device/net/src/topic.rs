//! The topics a client of the hub sends and receives, as text (reference/cloud.md 2.1-2.3).
//!
//! Pure, and in one place, so that an id, a version or a property can never become a level of a
//! topic: everything that is not a plain character is percent-encoded on the way out, and a topic
//! from the hub is read whole or not at all.

/// The filter of all answers to twin requests.
pub const TWIN_ANSWERS: &str = "$iothub/twin/res/#";
/// The filter of all changes to desired properties.
pub const DESIRED: &str = "$iothub/twin/PATCH/properties/desired/#";

const API: &str = "2021-04-12";

/// A message from the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromHub<'a> {
    /// An answer to a request about the twin.
    Answer {
        /// A status as in HTTP.
        status: u16,
        /// The id the request had.
        request: &'a str,
        /// The new version of the reported properties.
        version: Option<i64>,
    },
    /// A change of the desired properties.
    Desired {
        /// The version it leads to.
        version: i64,
    },
}

/// The client id of an identity.
pub fn client_id(device: &str, module: Option<&str>) -> String {
    match module {
        Some(module) => format!("{device}/{module}"),
        None => device.to_owned(),
    }
}

/// The user name of an identity. Ids are sent as they are, the product name is encoded.
pub fn user_name(hub: &str, device: &str, module: Option<&str>, product: &str) -> String {
    let id = client_id(device, module);
    format!(
        "{hub}/{id}/?api-version={API}&DeviceClientType={}",
        encode(product)
    )
}

/// Where a device or module publishes a message with these properties.
pub fn events(device: &str, module: Option<&str>, properties: &[(&str, &str)]) -> String {
    let mut topic = match module {
        Some(module) => format!("devices/{device}/modules/{module}/messages/events/"),
        None => format!("devices/{device}/messages/events/"),
    };
    for (at, (name, value)) in properties.iter().enumerate() {
        if at > 0 {
            topic.push('&');
        }
        topic.push_str(&encode(name));
        topic.push('=');
        topic.push_str(&encode(value));
    }
    topic
}

/// Where a twin is asked for.
pub fn twin_get(request: &str) -> String {
    format!("$iothub/twin/GET/?$rid={request}")
}

/// Where reported properties are patched.
pub fn twin_report(request: &str) -> String {
    format!("$iothub/twin/PATCH/properties/reported/?$rid={request}")
}

/// Reads a topic the hub published to. `None`: not one we asked for, or not well formed.
pub fn parse(topic: &str) -> Option<FromHub<'_>> {
    if let Some(rest) = topic.strip_prefix("$iothub/twin/res/") {
        let (status, bag) = rest.split_once("/?")?;
        return Some(FromHub::Answer {
            status: number(status)
                .filter(|s| (100..1000).contains(s))?
                .try_into()
                .ok()?,
            request: member(bag, "$rid")?,
            version: match member(bag, "$version") {
                Some(text) => Some(number(text)?),
                None => None,
            },
        });
    }
    let bag = topic.strip_prefix("$iothub/twin/PATCH/properties/desired/?")?;
    Some(FromHub::Desired {
        version: number(member(bag, "$version")?)?,
    })
}

fn member<'a>(bag: &'a str, name: &str) -> Option<&'a str> {
    bag.split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(n, _)| *n == name)
        .map(|(_, v)| v)
}

/// Decimal digits only: no sign, no space, at most eighteen of them.
fn number(text: &str) -> Option<i64> {
    let plain = (1..=18).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

/// Percent-encodes everything but the unreserved characters of RFC 3986.
pub(crate) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            const HEX: &[u8; 16] = b"0123456789ABCDEF";
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_the_hub_expects() {
        assert_eq!(client_id("d", Some("$edgeAgent")), "d/$edgeAgent");
        assert_eq!(
            user_name("h.test", "d", Some("$edgeAgent"), "a b/1"),
            "h.test/d/$edgeAgent/?api-version=2021-04-12&DeviceClientType=a%20b%2F1"
        );
        assert_eq!(
            user_name("h", "d", None, "x"),
            "h/d/?api-version=2021-04-12&DeviceClientType=x"
        );
    }

    #[test]
    fn a_property_cannot_become_a_level_or_another_property() {
        assert_eq!(events("d", None, &[]), "devices/d/messages/events/");
        assert_eq!(
            events(
                "d",
                Some("m"),
                &[
                    ("$.ct", "application/json"),
                    ("a&b", "c=d/#+ \u{e9}"),
                    ("e", "")
                ]
            ),
            "devices/d/modules/m/messages/events/%24.ct=application%2Fjson&a%26b=c%3Dd%2F%23%2B%20%C3%A9&e="
        );
    }

    #[test]
    fn a125_topics_of_the_hub_are_read_whole_or_not_at_all() {
        for (topic, expected) in [
            (
                "$iothub/twin/res/200/?$rid=7",
                Some(FromHub::Answer {
                    status: 200,
                    request: "7",
                    version: None,
                }),
            ),
            (
                "$iothub/twin/res/204/?$rid=a-b&$version=12",
                Some(FromHub::Answer {
                    status: 204,
                    request: "a-b",
                    version: Some(12),
                }),
            ),
            (
                "$iothub/twin/res/204/?$version=12&$rid=x",
                Some(FromHub::Answer {
                    status: 204,
                    request: "x",
                    version: Some(12),
                }),
            ),
            (
                "$iothub/twin/PATCH/properties/desired/?$version=3",
                Some(FromHub::Desired { version: 3 }),
            ),
            ("$iothub/twin/res/200/", None),
            ("$iothub/twin/res/200/?$version=1", None),
            ("$iothub/twin/res//?$rid=7", None),
            ("$iothub/twin/res/20/?$rid=7", None),
            ("$iothub/twin/res/+200/?$rid=7", None),
            ("$iothub/twin/res/99999999999999999999/?$rid=7", None),
            ("$iothub/twin/res/200/?$rid=7&$version=-1", None),
            ("$iothub/twin/PATCH/properties/desired/?$version=", None),
            ("$iothub/twin/PATCH/properties/desired/", None),
            ("$iothub/twin/PATCH/properties/reported/?$version=3", None),
            ("devices/d/messages/devicebound/x", None),
            ("", None),
        ] {
            assert_eq!(parse(topic), expected, "{topic}");
        }
    }
}
