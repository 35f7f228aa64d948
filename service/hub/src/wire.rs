//! MQTT 3.1.1 packets on the wire: bytes to [`Packet`] and back.
//!
//! The form of each packet is read by `mqtt-protocol-core`; what that leaves open (reserved bits,
//! packet id zero, flags that belong to version 5) is refused here, so that the rest of the hub
//! sees only what the standard allows. Sessions, topics and acknowledgements are not its affair.

use mqtt_protocol_core::mqtt::common::Cursor;
use mqtt_protocol_core::mqtt::connection::{PacketBuildResult, PacketBuilder, RawPacket};
use mqtt_protocol_core::mqtt::packet::{Qos, v3_1_1};
use mqtt_protocol_core::mqtt::result_code::{ConnectReturnCode, MqttError, SubackReturnCode};

use crate::topic::MAX_TOPIC;

/// The largest packet before the client is known: names and a token, and room for a will.
pub const MAX_CONNECT: u32 = 64 << 10;
/// The largest packet afterwards: the message limit, and its topic.
pub const MAX_PACKET: u32 = (256 << 10) + 2048;

/// Bytes that are no MQTT 3.1.1, or a packet that a client may not send.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WireError(&'static str);

impl From<MqttError> for WireError {
    fn from(bad: MqttError) -> Self {
        Self(match bad {
            MqttError::PacketTooLarge => "packet too large",
            MqttError::UnsupportedProtocolVersion => UNSUPPORTED,
            _ => "malformed packet",
        })
    }
}

const UNSUPPORTED: &str = "unsupported protocol version";

impl WireError {
    /// Whether the client speaks another version, which has an answer of its own.
    #[must_use]
    pub fn is_version(&self) -> bool {
        self.0 == UNSUPPORTED
    }
}

/// What a client can send.
#[derive(Debug)]
pub enum Packet {
    /// The first packet.
    Connect(Box<Connect>),
    /// A message.
    Publish(Publish),
    /// An acknowledgement of ours.
    Puback,
    /// Filters with the QoS wanted.
    Subscribe {
        /// To be echoed.
        id: u16,
        /// In order.
        filters: Vec<(String, u8)>,
    },
    /// Filters.
    Unsubscribe {
        /// To be echoed.
        id: u16,
        /// In order.
        filters: Vec<String>,
    },
    /// Keep-alive.
    Ping,
    /// An orderly end.
    Disconnect,
}

/// The first packet of a client.
#[derive(Debug)]
pub struct Connect {
    /// Client id.
    pub client: String,
    /// User name.
    pub user: String,
    /// Password; a token.
    pub password: Option<zeroize::Zeroizing<String>>,
    /// Forget the session.
    pub clean: bool,
    /// Seconds; 0 for none.
    pub keep_alive: u16,
    /// To be sent if the connection breaks.
    pub will: Option<(String, Vec<u8>)>,
}

/// A message of a client.
#[derive(Debug)]
pub struct Publish {
    /// Its topic.
    pub topic: String,
    /// Its body.
    pub body: Vec<u8>,
    /// QoS 1: to be acknowledged.
    pub id: Option<u16>,
    /// The retain flag.
    pub retain: bool,
}

/// Reads packets from a stream of bytes.
pub struct Reader {
    builder: PacketBuilder,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            builder: PacketBuilder::with_maximum_packet_size(MAX_CONNECT),
        }
    }
}

impl Reader {
    /// Allows full packets, once the client is known.
    pub fn welcome(&mut self) {
        self.builder.set_maximum_packet_size(MAX_PACKET);
    }

    /// Takes bytes; gives the next packet, if it is whole, and how many bytes that took.
    ///
    /// # Errors
    /// [`WireError`]; the connection must be closed.
    pub fn next(&mut self, bytes: &[u8]) -> Result<(Option<Packet>, usize), WireError> {
        let mut cursor = Cursor::new(bytes);
        let built = self.builder.feed(&mut cursor);
        let used = usize::try_from(cursor.position()).unwrap_or(bytes.len());
        match built {
            PacketBuildResult::Complete(raw) => Ok((Some(packet(raw)?), used)),
            PacketBuildResult::Incomplete => Ok((None, used)),
            PacketBuildResult::Error(bad) => Err(bad.into()),
        }
    }
}

fn packet(raw: RawPacket) -> Result<Packet, WireError> {
    // Only PUBLISH has flags of its own; SUBSCRIBE and UNSUBSCRIBE carry a fixed 2.
    match (raw.packet_type(), raw.flags()) {
        (1, 0) => connect(&raw),
        (3, flags) => publish(flags, raw),
        (4, 0) if raw.remaining_length() == 2 => {
            raw.parse_exact(v3_1_1::Puback::parse)?;
            Ok(Packet::Puback)
        }
        (8, 2) => {
            let packet = raw.parse_exact(v3_1_1::Subscribe::parse)?;
            let filters = packet
                .entries()
                .iter()
                .map(|entry| match entry.sub_opts().to_buffer() {
                    [qos @ 0..=2] => Ok((text(entry.topic_filter())?, *qos)),
                    _ => Err(WireError("reserved bits in a subscription")),
                });
            Ok(Packet::Subscribe {
                id: nonzero(packet.packet_id())?,
                filters: filters.collect::<Result<_, _>>()?,
            })
        }
        (10, 2) => {
            let packet = raw.parse_exact(v3_1_1::Unsubscribe::parse)?;
            let filters = packet.entries().iter().map(|entry| text(entry.as_str()));
            Ok(Packet::Unsubscribe {
                id: nonzero(packet.packet_id())?,
                filters: filters.collect::<Result<_, _>>()?,
            })
        }
        (12, 0) if raw.remaining_length() == 0 => Ok(Packet::Ping),
        (14, 0) if raw.remaining_length() == 0 => Ok(Packet::Disconnect),
        _ => Err(WireError("a packet that a client may not send")),
    }
}

fn connect(raw: &RawPacket) -> Result<Packet, WireError> {
    let packet = raw.parse_exact(v3_1_1::Connect::parse)?;
    // Bytes 0..6 are the protocol name, 6 its level, 7 the flags.
    let flags = raw.data_as_slice().get(7).copied().unwrap_or(1);
    let (reserved, will, will_flags) = (flags & 1, flags & 4, flags & 0b11_1000);
    if reserved != 0 || (will == 0 && will_flags != 0) || flags & 0b1_0000 != 0 {
        return Err(WireError("connect flags"));
    }
    let password = |bytes: &[u8]| {
        String::from_utf8(bytes.to_vec()).map_err(|_| WireError("password is not text"))
    };
    let will = match (packet.will_topic(), packet.will_payload()) {
        (Some(topic), Some(body)) => Some((text(topic)?, body.to_vec())),
        _ => None,
    };
    Ok(Packet::Connect(Box::new(Connect {
        client: text(packet.client_id())?,
        user: text(packet.user_name().unwrap_or_default())?,
        password: packet
            .password()
            .map(password)
            .transpose()?
            .map(zeroize::Zeroizing::new),
        clean: packet.clean_session(),
        keep_alive: packet.keep_alive(),
        will,
    })))
}

fn publish(flags: u8, raw: RawPacket) -> Result<Packet, WireError> {
    use mqtt_protocol_core::mqtt::connection::PacketData;
    let PacketData::Publish(data) = raw.data else {
        return Err(WireError("malformed packet"));
    };
    let (packet, _) = v3_1_1::Publish::parse(flags, data)?;
    let id = match packet.qos() {
        Qos::AtMostOnce => None,
        Qos::AtLeastOnce => Some(nonzero(packet.packet_id().unwrap_or(0))?),
        Qos::ExactlyOnce => return Err(WireError("QoS 2")),
    };
    if packet.topic_name().len() > MAX_TOPIC {
        return Err(WireError("topic too long"));
    }
    Ok(Packet::Publish(Publish {
        topic: text(packet.topic_name())?,
        body: packet.payload().as_slice().to_vec(),
        id,
        retain: packet.retain(),
    }))
}

/// A text of a packet; the standard has none with U+0000, and no device takes one from us.
fn text(text: &str) -> Result<String, WireError> {
    if text.contains('\0') {
        Err(WireError("U+0000 in a text"))
    } else {
        Ok(text.to_owned())
    }
}

fn nonzero(id: u16) -> Result<u16, WireError> {
    if id == 0 {
        Err(WireError("packet id 0"))
    } else {
        Ok(id)
    }
}

/// Why a client may or may not connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Welcome {
    /// Come in.
    Accepted {
        /// Its session was kept.
        session: bool,
    },
    /// Another protocol version.
    Version,
    /// A client id that does not fit.
    ClientId,
    /// Our trouble, not the client's.
    Unavailable,
    /// Any trouble with its credential.
    NotAuthorized,
}

/// CONNACK.
///
/// # Errors
/// None in practice; the library's builder has a fallible signature.
pub fn connack(welcome: Welcome) -> Result<Vec<u8>, WireError> {
    let (code, session) = match welcome {
        Welcome::Accepted { session } => (ConnectReturnCode::Accepted, session),
        Welcome::Version => (ConnectReturnCode::UnacceptableProtocolVersion, false),
        Welcome::ClientId => (ConnectReturnCode::IdentifierRejected, false),
        Welcome::Unavailable => (ConnectReturnCode::ServerUnavailable, false),
        Welcome::NotAuthorized => (ConnectReturnCode::NotAuthorized, false),
    };
    let packet = v3_1_1::Connack::builder()
        .return_code(code)
        .session_present(session)
        .build()?;
    Ok(packet.to_continuous_buffer())
}

/// PUBACK.
///
/// # Errors
/// As [`connack`].
pub fn puback(id: u16) -> Result<Vec<u8>, WireError> {
    Ok(v3_1_1::Puback::builder()
        .packet_id(id)
        .build()?
        .to_continuous_buffer())
}

/// SUBACK; `None` refuses a filter.
///
/// # Errors
/// As [`connack`].
pub fn suback(id: u16, granted: &[Option<u8>]) -> Result<Vec<u8>, WireError> {
    let codes = granted.iter().map(|qos| match qos {
        Some(0) => SubackReturnCode::SuccessMaximumQos0,
        Some(_) => SubackReturnCode::SuccessMaximumQos1,
        None => SubackReturnCode::Failure,
    });
    let packet = v3_1_1::Suback::builder()
        .packet_id(id)
        .return_codes(codes.collect())
        .build()?;
    Ok(packet.to_continuous_buffer())
}

/// UNSUBACK.
///
/// # Errors
/// As [`connack`].
pub fn unsuback(id: u16) -> Result<Vec<u8>, WireError> {
    Ok(v3_1_1::Unsuback::builder()
        .packet_id(id)
        .build()?
        .to_continuous_buffer())
}

/// PINGRESP.
///
/// # Errors
/// As [`connack`].
pub fn pong() -> Result<Vec<u8>, WireError> {
    Ok(v3_1_1::Pingresp::builder().build()?.to_continuous_buffer())
}

/// PUBLISH at QoS 0, never retained.
///
/// # Errors
/// A topic that cannot be written.
pub fn message(topic: &str, body: &[u8]) -> Result<Vec<u8>, WireError> {
    let packet = v3_1_1::Publish::builder()
        .topic_name(topic)?
        .qos(Qos::AtMostOnce)
        .payload(body)
        .build()?;
    Ok(packet.to_continuous_buffer())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Option<Packet>, WireError> {
        Reader::default().next(bytes).map(|(packet, _)| packet)
    }

    const CONNECT: &[u8] =
        b"\x10\x1c\x00\x04MQTT\x04\xc0\x00\x3c\x00\x03dev\x00\x04user\x00\x05token";

    #[test]
    fn a_connect_is_read_also_byte_by_byte() {
        let mut reader = Reader::default();
        for byte in &CONNECT[..CONNECT.len() - 1] {
            assert!(reader.next(std::slice::from_ref(byte)).unwrap().0.is_none());
        }
        let Some(Packet::Connect(connect)) = reader.next(b"n").unwrap().0 else {
            panic!()
        };
        assert_eq!(
            (connect.client.as_str(), connect.user.as_str()),
            ("dev", "user")
        );
        assert_eq!(connect.password.as_ref().map(|p| p.as_str()), Some("token"));
        assert_eq!((connect.clean, connect.keep_alive), (false, 60));
    }

    #[test]
    fn what_a_client_may_not_send_is_refused() {
        let changed = |at: usize, to: u8| {
            let mut bytes = CONNECT.to_vec();
            bytes[at] = to;
            bytes
        };
        for (what, bytes) in [
            ("reserved connect flag", changed(9, 0xc1)),
            ("will QoS without will", changed(9, 0xc8)),
            ("level 5", changed(8, 5)),
            ("flags on CONNECT", changed(0, 0x11)),
            (
                "trailing bytes",
                [b"\x10\x1d".as_slice(), &CONNECT[2..], b"x"].concat(),
            ),
            ("QoS 2", b"\x34\x05\x00\x01a\x00\x01".to_vec()),
            ("QoS 3", b"\x36\x05\x00\x01a\x00\x01".to_vec()),
            ("packet id 0", b"\x32\x05\x00\x01a\x00\x00".to_vec()),
            ("topic not UTF-8", b"\x30\x03\x00\x01\xff".to_vec()),
            ("U+0000 in a topic", b"\x30\x03\x00\x01\x00".to_vec()),
            (
                "U+0000 in a filter",
                b"\x82\x06\x00\x01\x00\x01\x00\x00".to_vec(),
            ),
            ("U+0000 in a user name", changed(21, 0)),
            ("topic beyond the packet", b"\x30\x03\x00\x09a".to_vec()),
            (
                "SUBSCRIBE without flags",
                b"\x80\x06\x00\x01\x00\x01a\x00".to_vec(),
            ),
            (
                "SUBSCRIBE with bits of version 5",
                b"\x82\x06\x00\x01\x00\x01a\x04".to_vec(),
            ),
            ("SUBSCRIBE of nothing", b"\x82\x02\x00\x01".to_vec()),
            ("PUBACK of version 5", b"\x40\x03\x00\x01\x00".to_vec()),
            ("PUBREC", b"\x50\x02\x00\x01".to_vec()),
            ("CONNACK", b"\x20\x02\x00\x00".to_vec()),
            ("PINGREQ with a body", b"\xc0\x01x".to_vec()),
            ("packet type 0", b"\x00\x00".to_vec()),
            ("AUTH", b"\xf0\x00".to_vec()),
            ("endless length", b"\x30\xff\xff\xff\xff".to_vec()),
            (
                "more than a first packet may have",
                b"\x30\xff\xff\x04".to_vec(),
            ),
        ] {
            assert!(read(&bytes).is_err(), "{what}");
        }
        assert!(read(&changed(8, 5)).unwrap_err().is_version());
    }

    #[test]
    fn packets_and_topics_are_refused_one_beyond_the_limit() {
        let publish = |topic: usize, body: usize| {
            let length = 2 + topic + body;
            let mut bytes = vec![0x30];
            let mut rest = length;
            while rest > 127 {
                bytes.push(u8::try_from(rest & 127).unwrap() | 128);
                rest >>= 7;
            }
            bytes.push(u8::try_from(rest).unwrap());
            bytes.extend(u16::try_from(topic).unwrap().to_be_bytes());
            bytes.extend(vec![b'a'; topic + body]);
            bytes
        };
        let read = |bytes: &[u8]| {
            let mut reader = Reader::default();
            reader.welcome();
            reader.next(bytes)
        };
        assert!(read(&publish(MAX_TOPIC, 10)).is_ok());
        assert!(read(&publish(MAX_TOPIC + 1, 10)).is_err());
        let full = usize::try_from(MAX_PACKET).unwrap() - 4 - 2 - 10;
        assert!(read(&publish(10, full)).is_ok());
        assert!(read(&publish(10, full + 1)).is_err());
    }

    #[test]
    fn broken_packets_never_panic() {
        // Good packets with a few bytes changed by a small generator: always the same ones.
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state >> 33).unwrap() % below
        };
        let seeds: [&[u8]; 6] = [
            CONNECT,
            b"\x10\x20\x00\x04MQTT\x04\xc6\x00\x3c\x00\x03dev\x00\x01t\x00\x01w\x00\x02us\x00\x02to",
            b"\x32\x08\x00\x01a\x00\x01xyz",
            b"\x82\x09\x00\x01\x00\x04a/#b\x01",
            b"\xa2\x08\x00\x01\x00\x04a/#b",
            b"\x40\x02\x00\x01\xc0\x00\xe0\x00",
        ];
        let mut whole = 0;
        for round in 0..200_000 {
            let mut bytes = seeds[round % seeds.len()].to_vec();
            for _ in 0..1 + next(3) {
                let at = next(bytes.len());
                bytes[at] = u8::try_from(next(256)).unwrap();
            }
            bytes.truncate(1 + next(bytes.len()));
            let (mut reader, mut at) = (Reader::default(), 0);
            while at < bytes.len() {
                match reader.next(&bytes[at..]) {
                    Ok((packet, used)) => {
                        whole += usize::from(packet.is_some());
                        at += used;
                    }
                    Err(_) => break,
                }
            }
        }
        assert!(whole > 1000, "the generator reaches the readers");
    }

    #[test]
    fn answers_are_written_as_the_standard_says() {
        assert_eq!(
            connack(Welcome::Accepted { session: true }).unwrap(),
            b"\x20\x02\x01\x00"
        );
        assert_eq!(
            connack(Welcome::NotAuthorized).unwrap(),
            b"\x20\x02\x00\x05"
        );
        assert_eq!(puback(258).unwrap(), b"\x40\x02\x01\x02");
        assert_eq!(
            suback(1, &[Some(0), Some(2), None]).unwrap(),
            b"\x90\x05\x00\x01\x00\x01\x80"
        );
        assert_eq!(unsuback(1).unwrap(), b"\xb0\x02\x00\x01");
        assert_eq!(pong().unwrap(), b"\xd0\x00");
        assert_eq!(message("$a", b"x").unwrap(), b"\x30\x05\x00\x02$ax");
    }
}
