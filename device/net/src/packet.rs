//! The packets of MQTT 3.1.1 that a client of the hub sends and receives, byte for byte (A125).
//!
//! Five kinds are read and six written; quality of service 2, wills and unsubscribing are not
//! among them, because a hub session has no use for them. Every packet is read to its last byte
//! or refused. Pure. This is our own code because the ready-made state machine we tried accepts
//! messages before the login, ignores reserved bits and panics on a packet id of zero.

use zeroize::Zeroizing;

use crate::frame::Frame;

/// A packet from the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// The answer to a login; zero is yes.
    Login(u8),
    /// A message; one with an id has to be acknowledged.
    Message {
        /// Where it was published.
        topic: String,
        /// Its id, if it is to be acknowledged.
        id: Option<u16>,
        /// What it says.
        body: Vec<u8>,
    },
    /// A message of ours is in the hub's hands.
    Acknowledged(u16),
    /// The answer to a subscription.
    Subscribed {
        /// The id of the request.
        id: u16,
        /// Whether it was granted.
        granted: bool,
    },
    /// The answer to a ping.
    Pong,
}

/// What is wrong with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("packet {kind:#04x}: {what}")]
pub struct PacketError {
    /// Its first byte.
    pub kind: u8,
    /// What is wrong.
    pub what: &'static str,
}

/// A ping.
pub const PING: [u8; 2] = [0xc0, 0];
/// The end of a session in good order.
pub const GOODBYE: [u8; 2] = [0xe0, 0];

/// Reads a whole packet.
pub fn read(frame: &Frame) -> Result<Packet, PacketError> {
    let fail = |what| PacketError {
        kind: frame.first,
        what,
    };
    match (frame.first >> 4, frame.body.as_slice()) {
        (2, &[flags, code]) => match (flags, code) {
            (0, 0..=5) | (1, 0) => Ok(Packet::Login(code)),
            (0 | 1, _) => Err(fail("unknown answer to a login")),
            _ => Err(fail("reserved bits are set")),
        },
        (3, body) => message(frame.first, body).map_err(fail),
        (4, &[high, low]) => Ok(Packet::Acknowledged(id(high, low).map_err(fail)?)),
        (9, &[high, low, code]) => {
            let id = id(high, low).map_err(fail)?;
            match code {
                0..=2 => Ok(Packet::Subscribed { id, granted: true }),
                0x80 => Ok(Packet::Subscribed { id, granted: false }),
                _ => Err(fail("unknown answer to a subscription")),
            }
        }
        (13, []) => Ok(Packet::Pong),
        _ => Err(fail("not a packet of this length")),
    }
}

fn message(first: u8, body: &[u8]) -> Result<Packet, &'static str> {
    let (length, rest) = body.split_first_chunk::<2>().ok_or("no topic")?;
    let length = usize::from(u16::from_be_bytes(*length));
    let (topic, rest) = rest
        .split_at_checked(length)
        .ok_or("the topic is cut off")?;
    let topic = std::str::from_utf8(topic).map_err(|_| "the topic is not UTF-8")?;
    if topic.is_empty() || topic.contains(['\0', '+', '#']) {
        return Err("not a topic of a message");
    }
    let (id, rest) = match (first >> 1) & 3 {
        0 => (None, rest),
        _ => match rest {
            [high, low, rest @ ..] => (Some(id(*high, *low)?), rest),
            _ => return Err("no packet id"),
        },
    };
    Ok(Packet::Message {
        topic: topic.to_owned(),
        id,
        body: rest.to_vec(),
    })
}

fn id(high: u8, low: u8) -> Result<u16, &'static str> {
    match u16::from_be_bytes([high, low]) {
        0 => Err("a packet id of zero"),
        id => Ok(id),
    }
}

/// A text for a packet, with its length in front; nothing if it does not fit.
fn text(out: &mut Vec<u8>, text: &[u8]) -> Option<()> {
    out.extend(u16::try_from(text.len()).ok()?.to_be_bytes());
    out.extend(text);
    Some(())
}

/// The first byte and the length of a packet of at most 2^28 bytes.
fn header(first: u8, length: usize) -> Vec<u8> {
    let mut out = vec![first];
    let mut left = length;
    while left > 0x7f {
        out.push(0x80 | u8::try_from(left & 0x7f).unwrap_or(0));
        left >>= 7;
    }
    out.push(u8::try_from(left).unwrap_or(0));
    out
}

/// A login that keeps the session of last time. `None`: a part is longer than a packet can hold.
pub fn connect(
    client: &str,
    user: &str,
    password: &str,
    keep_alive: u16,
) -> Option<Zeroizing<Vec<u8>>> {
    // Sized at once: growing would leave copies of the password behind.
    let length = 16 + client.len() + user.len() + password.len();
    let mut out = Zeroizing::new(Vec::with_capacity(length + 5));
    out.extend(header(0x10, length));
    text(&mut out, b"MQTT")?;
    out.extend([4, 0b1100_0000]);
    out.extend(keep_alive.to_be_bytes());
    for part in [client, user, password] {
        text(&mut out, part.as_bytes())?;
    }
    Some(out)
}

/// A subscription to one filter, at quality 1.
pub fn subscribe(id: u16, filter: &str) -> Option<Vec<u8>> {
    let mut out = header(0x82, 5 + filter.len());
    out.extend(id.to_be_bytes());
    text(&mut out, filter.as_bytes())?;
    out.push(1);
    Some(out)
}

/// A message; with an id it is of quality 1 and will be acknowledged.
pub fn publish(topic: &str, id: Option<u16>, body: &[u8]) -> Option<Vec<u8>> {
    let (first, extra) = if id.is_some() { (0x32, 2) } else { (0x30, 0) };
    let mut out = header(first, 2 + topic.len() + extra + body.len());
    text(&mut out, topic.as_bytes())?;
    if let Some(id) = id {
        out.extend(id.to_be_bytes());
    }
    out.extend(body);
    Some(out)
}

/// Says that a message arrived.
pub fn acknowledge(id: u16) -> [u8; 4] {
    let [high, low] = id.to_be_bytes();
    [0x40, 2, high, low]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(first: u8, body: &[u8]) -> Frame {
        Frame {
            first,
            body: body.to_vec(),
        }
    }

    #[test]
    fn packets_are_written_as_the_standard_says() {
        assert_eq!(
            *connect("c", "u", "pw", 60).unwrap(),
            *b"\x10\x14\0\x04MQTT\x04\xc0\0\x3c\0\x01c\0\x01u\0\x02pw"
        );
        assert_eq!(subscribe(7, "a/#").unwrap(), b"\x82\x08\0\x07\0\x03a/#\x01");
        assert_eq!(publish("t", None, b"xy").unwrap(), b"\x30\x05\0\x01txy");
        assert_eq!(
            publish("t", Some(258), b"").unwrap(),
            b"\x32\x05\0\x01t\x01\x02"
        );
        assert_eq!(
            publish("t", None, &[0; 125]).unwrap()[..3],
            [0x30, 0x80, 0x01]
        );
        assert_eq!(acknowledge(258), [0x40, 2, 1, 2]);
        let long = "x".repeat(65_536);
        assert!(publish(&long, None, b"").is_none() && subscribe(1, &long).is_none());
        assert!(connect("c", "u", &long, 1).is_none());
    }

    #[test]
    fn packets_are_read() {
        let message = |topic: &str, id, body: &[u8]| Packet::Message {
            topic: topic.to_owned(),
            id,
            body: body.to_vec(),
        };
        for (first, body, expected) in [
            (0x20, &[0, 0][..], Packet::Login(0)),
            (0x20, &[1, 0], Packet::Login(0)),
            (0x20, &[0, 5], Packet::Login(5)),
            (0x30, b"\0\x01t", message("t", None, b"")),
            (0x31, b"\0\x02\xc3\xa9xy", message("\u{e9}", None, b"xy")),
            (0x3a, b"\0\x01t\0\x09x", message("t", Some(9), b"x")),
            (0x40, &[1, 2], Packet::Acknowledged(258)),
            (
                0x90,
                &[0, 1, 1],
                Packet::Subscribed {
                    id: 1,
                    granted: true,
                },
            ),
            (
                0x90,
                &[0, 1, 0x80],
                Packet::Subscribed {
                    id: 1,
                    granted: false,
                },
            ),
            (0xd0, &[], Packet::Pong),
        ] {
            assert_eq!(read(&frame(first, body)), Ok(expected));
        }
    }

    #[test]
    fn a125_packets_with_a_byte_too_many_too_few_or_wrong_are_refused() {
        for (first, body) in [
            (0x20, &[][..]),
            (0x20, &[0]),
            (0x20, &[0, 0, 0]),
            (0x20, &[2, 0]),
            (0x20, &[0, 6]),
            (0x20, &[1, 5]),
            (0x30, b""),
            (0x30, b"\0"),
            (0x30, b"\0\0x"),
            (0x30, b"\0\x02t"),
            (0x30, b"\xff\xfft"),
            (0x30, b"\0\x01\xff"),
            (0x30, b"\0\x01\0"),
            (0x30, b"\0\x03a/#"),
            (0x30, b"\0\x01+"),
            (0x32, b"\0\x01t"),
            (0x32, b"\0\x01t\0"),
            (0x32, b"\0\x01t\0\0"),
            (0x40, b"\0"),
            (0x40, b"\0\0"),
            (0x40, b"\0\x01\0"),
            (0x90, b"\0\x01"),
            (0x90, b"\0\0\x01"),
            (0x90, b"\0\x01\x03"),
            (0x90, b"\0\x01\x01\x01"),
            (0xd0, b"\0"),
            (0xb0, b"\0\x01"),
        ] {
            assert!(read(&frame(first, body)).is_err(), "{first:x} {body:x?}");
        }
    }
}
