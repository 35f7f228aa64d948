//! A session over MQTT against a scripted hub on loopback, well-behaved and not.

#![expect(
    clippy::unwrap_used,
    reason = "a test program: its helpers fail as its tests do"
)]

#[expect(dead_code, reason = "each test program uses a part of the doubles")]
mod doubles;

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use doubles::{Authority, Double, Peer, soon};
use net::backoff::Backoff;
use net::mqtt::{Event, Identity, MqttError, Refusal, Session, Settings};
use net::token::Source;
use serde_json::json;

const TWIN: &str = r#"{"desired":{"a":1,"$version":4},"reported":{"$version":1}}"#;

/// For tests that lose a connection on the way.
const AT_ONCE: Backoff = every(Duration::from_millis(1));
/// For tests of what ends a connection: there is no second attempt within a deadline.
const NEVER: Backoff = every(Duration::from_secs(3600));

const fn every(pause: Duration) -> Backoff {
    Backoff {
        first: pause,
        cap: pause,
        server_cap: pause,
    }
}

fn session(ours: &Authority, double: &Double) -> Session {
    session_with(ours, double, 3600, Arc::default(), AT_ONCE)
}

fn session_with(
    ours: &Authority,
    double: &Double,
    lifetime: u32,
    minted: Arc<AtomicU32>,
    retry: Backoff,
) -> Session {
    let identity = Identity {
        hub: "hub.test:8883".into(),
        device: "dev1".into(),
        module: Some("$edgeAgent".into()),
    };
    let signer = move |_: &[u8]| {
        minted.fetch_add(1, Ordering::SeqCst);
        Ok([7; 32])
    };
    let tokens = Source::new(identity.owner(), lifetime, signer, || Some(1_800_000_000));
    Session::new(Settings {
        identity,
        product: "test/1".into(),
        target: double.target("hub.test"),
        tls: ours.client(),
        tokens,
        retry,
    })
}

/// Reads one packet: its first byte and what follows the length.
fn packet(peer: &mut Peer) -> (u8, Vec<u8>) {
    let mut byte = [0];
    peer.read_exact(&mut byte).unwrap();
    let first = byte[0];
    let (mut length, mut shift) = (0_usize, 0);
    loop {
        peer.read_exact(&mut byte).unwrap();
        length |= usize::from(byte[0] & 0x7f) << shift;
        shift += 7;
        if byte[0] & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    peer.read_exact(&mut body).unwrap();
    (first, body)
}

fn send(peer: &mut Peer, bytes: &[u8]) {
    // The client may have hung up already.
    let _ = peer.write_all(bytes).and_then(|()| peer.flush());
}

fn publish(topic: &str, id: Option<u16>, body: &[u8]) -> Vec<u8> {
    let mut rest = u16::try_from(topic.len()).unwrap().to_be_bytes().to_vec();
    rest.extend(topic.as_bytes());
    if let Some(id) = id {
        rest.extend(id.to_be_bytes());
    }
    rest.extend(body);
    let mut bytes = vec![if id.is_some() { 0x32 } else { 0x30 }];
    let mut length = rest.len();
    while length > 0x7f {
        bytes.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
        length >>= 7;
    }
    bytes.push(u8::try_from(length).unwrap());
    bytes.extend(rest);
    bytes
}

/// Lets a client in: CONNECT, and its two subscriptions.
fn welcome(peer: &mut Peer) -> Vec<u8> {
    let (first, connect) = packet(peer);
    assert_eq!(first, 0x10);
    send(peer, &[0x20, 2, 0, 0]);
    for _ in 0..2 {
        let (first, body) = packet(peer);
        assert_eq!(first, 0x82);
        send(peer, &[0x90, 3, body[0], body[1], 1]);
    }
    connect
}

/// Reads a request about the twin; says its topic without the id, the id, and its body.
fn request(peer: &mut Peer) -> (String, String, Vec<u8>) {
    let (first, body) = packet(peer);
    assert_eq!(first, 0x30);
    let length = usize::from(u16::from_be_bytes([body[0], body[1]]));
    let topic = String::from_utf8(body[2..2 + length].to_vec()).unwrap();
    let (path, id) = topic.split_once("?$rid=").unwrap();
    (path.to_owned(), id.to_owned(), body[2 + length..].to_vec())
}

fn answer_twin(peer: &mut Peer, twin: &str) {
    let (path, id, _) = request(peer);
    assert_eq!(path, "$iothub/twin/GET/");
    send(
        peer,
        &publish(
            &format!("$iothub/twin/res/200/?$rid={id}"),
            None,
            twin.as_bytes(),
        ),
    );
}

fn desired(version: i64, patch: &str) -> Vec<u8> {
    let topic = format!("$iothub/twin/PATCH/properties/desired/?$version={version}");
    publish(&topic, None, patch.as_bytes())
}

#[test]
fn a_session_logs_in_sends_and_follows_its_twin() {
    let ours = Authority::new("ours");
    let double = Double::tls(&ours.leaf("hub.test"), 1, |_, peer| {
        let connect = welcome(peer);
        assert_eq!(
            &connect[..8],
            b"\0\x04MQTT\x04\xc0",
            "3.1.1, user name, password, old session"
        );
        let text = String::from_utf8_lossy(&connect[10..]).into_owned();
        assert!(text.contains("dev1/$edgeAgent"), "{text}");
        assert!(
            text.contains("hub.test/dev1/$edgeAgent/?api-version=2021-04-12&"),
            "{text}"
        );
        let sr = "SharedAccessSignature sr=hub.test%2Fdevices%2Fdev1%2Fmodules%2F%24edgeAgent&sig=";
        assert!(text.contains(sr), "{text}");

        let (first, body) = packet(peer);
        assert_eq!(first, 0x32, "quality of service 1");
        let topic = b"devices/dev1/modules/$edgeAgent/messages/events/k=a%20b";
        assert_eq!(&body[2..2 + topic.len()], topic);
        let id = &body[2 + topic.len()..][..2];
        assert_eq!(&body[4 + topic.len()..], b"hello");
        // A notification before the acknowledgement is not lost, and one at QoS 1 is answered.
        send(peer, &[0x40, 2, id[0], id[1]]);

        answer_twin(peer, TWIN);
        send(
            peer,
            &publish(
                "$iothub/twin/PATCH/properties/desired/?$version=5",
                Some(77),
                b"{\"b\":2,\"$version\":5}",
            ),
        );
        assert_eq!(packet(peer), (0x40, vec![0, 77]));
        send(peer, &desired(7, "{\"c\":3}"));
        answer_twin(
            peer,
            r#"{"desired":{"d":4,"$version":7},"reported":{"$version":1}}"#,
        );

        let (path, id, body) = request(peer);
        assert_eq!(
            (path.as_str(), &body[..]),
            ("$iothub/twin/PATCH/properties/reported/", &b"{\"x\":1}"[..])
        );
        send(
            peer,
            &publish(
                &format!("$iothub/twin/res/204/?$rid={id}&$version=9"),
                None,
                b"",
            ),
        );
        let (_, id, _) = request(peer);
        send(
            peer,
            &publish("$iothub/twin/res/204/?$rid=other", None, b""),
        );
        send(
            peer,
            &publish(&format!("$iothub/twin/res/429/?$rid={id}"), None, b""),
        );
        assert_eq!(packet(peer), (0xe0, vec![]), "an orderly goodbye");
    });
    let mut session = session(&ours, &double);
    session.send(b"hello", &[("k", "a b")], soon()).unwrap();
    for (version, content) in [
        (4, json!({"a": 1})),
        (5, json!({"a": 1, "b": 2})),
        (7, json!({"d": 4})),
    ] {
        match session.next(soon()).unwrap() {
            Event::Desired(desired) => {
                assert_eq!(desired.version, version);
                assert_eq!(serde_json::Value::Object(desired.properties), content);
            }
            Event::Idle => panic!("nothing came"),
        }
    }
    assert_eq!(session.next(Instant::now()).unwrap(), Event::Idle);
    assert_eq!(session.report(&json!({"x": 1}), soon()).unwrap(), Some(9));
    let refused = session.report(&json!({"x": 2}), soon());
    assert!(matches!(refused, Err(MqttError::Twin(429))), "{refused:?}");
    assert!(session.is_connected());
    session.close();
    double.join();
}

#[test]
fn a_lost_connection_is_made_again_and_the_twin_read_again() {
    let ours = Authority::new("ours");
    let minted = Arc::new(AtomicU32::new(0));
    let double = Double::tls(&ours.leaf("hub.test"), 3, |at, peer| match at {
        0 => {
            welcome(peer);
            answer_twin(peer, TWIN);
        }
        1 => {
            // Gone before the message is acknowledged.
            welcome(peer);
            let _ = packet(peer);
        }
        _ => {
            welcome(peer);
            let (_, body) = packet(peer);
            let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
            send(peer, &[0x40, 2, body[2 + topic], body[3 + topic]]);
            answer_twin(peer, &TWIN.replace(":4", ":6"));
        }
    });
    let mut session = session_with(&ours, &double, 3600, Arc::clone(&minted), AT_ONCE);
    assert!(matches!(session.next(soon()), Ok(Event::Desired(d)) if d.version == 4));
    session.send(b"x", &[], soon()).unwrap();
    assert!(matches!(session.next(soon()), Ok(Event::Desired(d)) if d.version == 6));
    assert_eq!(
        minted.load(Ordering::SeqCst),
        3,
        "a fresh token for each connection"
    );
    session.close();
    double.join();
}

#[test]
fn the_token_is_renewed_by_an_orderly_new_connection() {
    let ours = Authority::new("ours");
    let minted = Arc::new(AtomicU32::new(0));
    let double = Double::tls(&ours.leaf("hub.test"), 2, |at, peer| {
        welcome(peer);
        answer_twin(peer, TWIN);
        if at == 0 {
            assert_eq!(
                packet(peer),
                (0xe0, vec![]),
                "goodbye before the token ends"
            );
        } else {
            send(peer, &desired(5, "{\"renewed\":true}"));
            let _ = packet(peer);
        }
    });
    let mut session = session_with(&ours, &double, 1, Arc::clone(&minted), AT_ONCE);
    assert!(matches!(session.next(soon()), Ok(Event::Desired(d)) if d.version == 4));
    assert!(matches!(session.next(soon()), Ok(Event::Desired(d)) if d.version == 5));
    assert_eq!(minted.load(Ordering::SeqCst), 2);
    session.close();
    double.join();
}

#[test]
fn a_refused_connection_says_why_and_is_not_hammered() {
    let ours = Authority::new("ours");
    for (code, expected) in [
        (5, Refusal::Credentials),
        (4, Refusal::Credentials),
        (3, Refusal::Unavailable),
        (2, Refusal::Client),
        (1, Refusal::Client),
    ] {
        let double = Double::tls(&ours.leaf("hub.test"), 1, move |_, peer| {
            let _ = packet(peer);
            send(peer, &[0x20, 2, 0, code]);
            let _ = peer.read(&mut [0; 1]);
        });
        let mut session = session_with(&ours, &double, 3600, Arc::default(), NEVER);
        let result = session.connect(soon());
        let Err(MqttError::NotConnected {
            failures: 1,
            last: Some(last),
        }) = result
        else {
            panic!("{code}: {result:?}");
        };
        assert!(
            matches!(*last, MqttError::Refused(r) if r == expected),
            "{last:?}"
        );
        double.join();
    }
}

/// Connects to a hub which, once logged in or before, sends these bytes.
fn fed(before_login: bool, bytes: Vec<u8>) -> MqttError {
    let ours = Authority::new("ours");
    let double = Double::tls(&ours.leaf("hub.test"), 1, move |_, peer| {
        if before_login {
            let _ = packet(peer);
        } else {
            welcome(peer);
        }
        send(peer, &bytes);
        doubles::goodbye(peer);
        let _ = peer.read(&mut [0; 4096]);
    });
    let mut session = session_with(&ours, &double, 3600, Arc::default(), NEVER);
    let error = if before_login {
        session.connect(soon()).unwrap_err()
    } else {
        session.next(soon()).unwrap_err()
    };
    drop(session);
    double.join();
    match error {
        MqttError::NotConnected {
            last: Some(last), ..
        } => *last,
        other => other,
    }
}

#[test]
fn a125_malformed_packets_end_the_connection_and_nothing_else() {
    let huge = [0x30, 0xff, 0xff, 0xff, 0x7f];
    for (before_login, bytes) in [
        (true, huge.to_vec()),
        (true, b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        (true, vec![0x20, 1, 0]),
        (true, vec![0x20, 2, 0, 9]),
        (true, vec![0x20, 2, 2, 0]),
        (true, vec![0x20, 3, 0, 0, 0]),
        (true, vec![0x40, 2, 0, 1]),
        (true, publish("$iothub/twin/res/200/?$rid=1", None, b"")),
        (false, huge.to_vec()),
        (false, vec![0x20, 2, 0, 0]),
        (false, vec![0x40, 1, 0]),
        (false, vec![0x40, 2, 0, 0]),
        (false, vec![0x40, 2, 0, 99]),
        (false, vec![0x90, 3, 0, 1, 0x7f]),
        (false, vec![0xd0, 1, 0]),
        (false, vec![0xd1, 0]),
        (false, vec![0x10, 0]),
        (false, vec![0x30, 1, 0]),
        (false, vec![0x30, 3, 0, 9, b'x']),
        (false, vec![0x30, 3, 0, 1, 0xff]),
        (false, vec![0x32, 5, 0, 1, b'x', 0, 0]),
        (false, vec![0x34, 5, 0, 1, b'x', 0, 1]),
        (false, vec![0x36, 5, 0, 1, b'x', 0, 1]),
    ] {
        let shown = format!("{before_login} {bytes:x?}");
        let error = fed(before_login, bytes);
        assert!(
            matches!(
                error,
                MqttError::Frame(_) | MqttError::Packet(_) | MqttError::Protocol(_)
            ),
            "{shown}: {error:?}"
        );
    }
}

#[test]
fn a126_messages_for_others_and_answers_to_nobody_are_ignored() {
    let ours = Authority::new("ours");
    let double = Double::tls(&ours.leaf("hub.test"), 1, |_, peer| {
        welcome(peer);
        for topic in [
            "devices/other/messages/devicebound/x",
            "$iothub/methods/POST/x/?$rid=1",
            "a",
        ] {
            send(peer, &publish(topic, None, b"x"));
        }
        send(peer, &publish("$iothub/twin/res/200/?$rid=1", None, b"{}"));
        answer_twin(peer, TWIN);
        // A patch that is no JSON: the twin is read again.
        send(peer, &desired(5, "{\"a\":"));
        answer_twin(peer, &TWIN.replace(":4", ":5"));
        let _ = packet(peer);
    });
    let mut session = session(&ours, &double);
    assert!(matches!(session.next(soon()), Ok(Event::Desired(d)) if d.version == 4));
    assert!(matches!(session.next(soon()), Ok(Event::Desired(d)) if d.version == 5));
    session.close();
    double.join();
}

#[test]
fn a_flood_does_not_outlive_the_deadline_of_a_request() {
    let ours = Authority::new("ours");
    let double = Double::tls(&ours.leaf("hub.test"), 1, |_, peer| {
        welcome(peer);
        let noise = publish("a", None, b"x").repeat(1000);
        while peer.write_all(&noise).is_ok() {}
    });
    let mut session = session(&ours, &double);
    session.connect(soon()).unwrap();
    let result = session.twin(Instant::now() + Duration::from_millis(100));
    assert!(matches!(result, Err(MqttError::Deadline)), "{result:?}");
    drop(session);
    double.join();
}

#[test]
fn messages_over_the_limit_are_not_sent() {
    let ours = Authority::new("ours");
    let (tell, told) = mpsc::channel();
    let double = Double::tls(&ours.leaf("hub.test"), 1, move |_, peer| {
        welcome(peer);
        let (_, body) = packet(peer);
        let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
        tell.send(body.len() - 4 - topic).unwrap();
        send(peer, &[0x40, 2, body[2 + topic], body[3 + topic]]);
        let _ = packet(peer);
    });
    let mut session = session(&ours, &double);
    let topic = "devices/dev1/modules/$edgeAgent/messages/events/".len();
    let most = 256 * 1024 - topic;
    for (body, property) in [(vec![0; most + 1], 0), (vec![], 1100)] {
        let value = "v".repeat(property);
        let properties: &[(&str, &str)] = if property > 0 { &[("k", &value)] } else { &[] };
        let result = session.send(&body, properties, soon());
        assert!(
            matches!(result, Err(MqttError::TooLarge { .. })),
            "{result:?}"
        );
    }
    session.send(&vec![0; most], &[], soon()).unwrap();
    assert_eq!(told.recv().unwrap(), most);
    session.close();
    double.join();
}

#[test]
fn a125_random_bytes_never_harm_the_process() {
    // A small generator with a fixed seed: the same bytes each time.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..40 {
        // Well-formed headers with random content reach deeper than pure noise.
        let kinds = [0x20, 0x30, 0x32, 0x40, 0x90, 0xb0, 0xd0];
        let mut bytes = Vec::new();
        for _ in 0..8 {
            let length = usize::try_from(random() % 12).unwrap();
            bytes.push(kinds[usize::try_from(random() % 7).unwrap()]);
            bytes.push(u8::try_from(length).unwrap());
            bytes.extend((0..length).map(|_| random().to_le_bytes()[0] & 0x0f));
        }
        let error = fed(round % 2 == 0, bytes);
        assert!(!matches!(error, MqttError::Token(_)), "{error:?}");
    }
}
