//! MQTT packets, read by the device and by the hub (A125).
//!
//! Invariant: however the bytes are cut, the packets and the verdict are the same, and frames are
//! no larger than what was sent. Round trip: frames and messages written again are the same bytes.
//! Differential: device and hub, two codecs, read each other's messages.
#![no_main]

use hub::wire::{self, Reader};
use net::frame::{Frame, Frames};
use net::packet::{self, Packet};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let (found, whole) = frames(data, data.len().max(1));
    for step in [1, 3] {
        assert_eq!(frames(data, step), (found.clone(), whole));
    }
    let mut again = Vec::new();
    for frame in &found {
        again.push(frame.first);
        length(frame.body.len(), &mut again);
        again.extend_from_slice(&frame.body);
        if let Ok(Packet::Message { topic, id, body }) = packet::read(frame) {
            let sent = packet::publish(&topic, id, &body).unwrap();
            // Copies and kept messages have flags of their own.
            assert!(frame.first & 0b1001 != 0 || sent.ends_with(&frame.body));
            hub_reads(&sent, &topic, id, &body);
        }
    }
    assert!(data.starts_with(&again));
    assert_eq!(hub_packets(data, data.len().max(1)), hub_packets(data, 1));
});

fn frames(data: &[u8], step: usize) -> (Vec<Frame>, bool) {
    let (mut frames, mut found) = (Frames::default(), Vec::new());
    for part in data.chunks(step) {
        frames.push(part);
        loop {
            match frames.take() {
                Ok(Some(frame)) => found.push(frame),
                Ok(None) => break,
                Err(_) => return (found, false),
            }
        }
    }
    (found, true)
}

fn length(mut left: usize, out: &mut Vec<u8>) {
    while left > 127 {
        out.push(u8::try_from(left % 128).unwrap() | 128);
        left /= 128;
    }
    out.push(u8::try_from(left).unwrap());
}

/// What the hub's reader makes of a stream, as text; the last line is how it ended.
fn hub_packets(data: &[u8], step: usize) -> Vec<String> {
    let (mut reader, mut seen) = (Reader::default(), Vec::new());
    for mut part in data.chunks(step) {
        while !part.is_empty() {
            match reader.next(part) {
                Ok((packet, used)) => {
                    if let Some(wire::Packet::Publish(p)) = &packet
                        && let Ok(bytes) = wire::message(&p.topic, &p.body)
                    {
                        device_reads(&bytes, &p.topic, &p.body);
                    }
                    seen.extend(packet.map(|packet| format!("{packet:?}")));
                    part = &part[used..];
                }
                Err(bad) => return [seen, vec![bad.to_string()]].concat(),
            }
        }
    }
    seen
}

fn hub_reads(sent: &[u8], topic: &str, id: Option<u16>, body: &[u8]) {
    match Reader::default().next(sent) {
        Ok((Some(wire::Packet::Publish(p)), used)) => {
            assert_eq!(
                (p.topic.as_str(), p.id, &p.body[..], used),
                (topic, id, body, sent.len())
            );
        }
        // Only the hub has a limit on topics, and one on the first packet.
        other => assert!(
            topic.len() > hub::topic::MAX_TOPIC || sent.len() > 60_000,
            "{other:?}"
        ),
    }
}

fn device_reads(sent: &[u8], topic: &str, body: &[u8]) {
    let frame = frames(&[&[0x20, 2, 0, 0], sent].concat(), usize::MAX)
        .0
        .remove(1);
    let expected = Packet::Message {
        topic: topic.to_owned(),
        id: None,
        body: body.to_vec(),
    };
    assert_eq!(packet::read(&frame), Ok(expected));
}
