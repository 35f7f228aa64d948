//! Cuts the bytes of a connection into whole MQTT packets (A125).
//!
//! Every length is judged before a byte of the packet is kept, and the fixed header is held to
//! the standard: reserved bits as prescribed, shortest form of the length, nothing before the
//! answer to the login. What is inside a packet is read by [`crate::packet`]. Pure.

/// The largest packet: a message of 256 KiB and its topic.
pub const MAX_PACKET: usize = 257 * 1024;

/// Why the connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length takes more bytes than allowed, or more than needed.
    #[error("the length of a packet is malformed")]
    Length,
    /// The packet is over [`MAX_PACKET`].
    #[error("a packet of {0} bytes is announced")]
    TooLarge(usize),
    /// A packet type or its reserved bits do not exist.
    #[error("the first byte of a packet is {0:#04x}")]
    Header(u8),
}

/// A whole packet, its length taken off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The first byte: type and flags.
    pub first: u8,
    /// Everything behind the length.
    pub body: Vec<u8>,
}

/// Bytes received and not yet taken as packets.
#[derive(Default)]
pub struct Frames {
    bytes: Vec<u8>,
    /// How many of them are taken already.
    taken: usize,
    login: bool,
}

impl Frames {
    /// Adds what was received. The caller takes all whole packets before it adds more, so never
    /// more than one packet and one read are held.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the next whole packet, if it is there.
    pub fn take(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some((&first, rest)) = self.bytes[self.taken..].split_first() else {
            return Ok(None);
        };
        if !may_come(first, self.login) {
            return Err(FrameError::Header(first));
        }
        let Some((length, digits)) = length(rest)? else {
            return Ok(None);
        };
        let whole = 1 + digits + length;
        if whole > MAX_PACKET {
            return Err(FrameError::TooLarge(whole));
        }
        if self.bytes.len() - self.taken < whole {
            return Ok(None);
        }
        let body = self.bytes[self.taken..][1 + digits..whole].to_vec();
        self.taken += whole;
        self.login = true;
        Ok(Some(Frame { first, body }))
    }
}

/// Whether a server may send a packet that begins so: first the answer to the login and never
/// again, then messages of quality 0 or 1 and answers to what we send; reserved bits as the
/// standard wants them.
fn may_come(first: u8, login: bool) -> bool {
    match first >> 4 {
        2 => !login && first & 0x0f == 0,
        // A copy is marked only where copies exist.
        3 => login && matches!(first & 0x0e, 0 | 2 | 0x0a),
        4 | 9 | 13 => login && first & 0x0f == 0,
        _ => false,
    }
}

/// The remaining length and how many bytes it takes; `None` while it is not complete.
fn length(bytes: &[u8]) -> Result<Option<(usize, usize)>, FrameError> {
    let mut value = 0_usize;
    for (at, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            let padded = *byte == 0 && at > 0;
            return if padded {
                Err(FrameError::Length)
            } else {
                Ok(Some((value, at + 1)))
            };
        }
    }
    if bytes.len() >= 4 {
        Err(FrameError::Length)
    } else {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGIN: [u8; 4] = [0x20, 2, 0, 0];

    fn all(bytes: &[u8], step: usize) -> Result<Vec<Frame>, FrameError> {
        let mut frames = Frames::default();
        let mut found = Vec::new();
        for chunk in bytes.chunks(step) {
            frames.push(chunk);
            while let Some(packet) = frames.take()? {
                found.push(packet);
            }
        }
        Ok(found)
    }

    fn after_login(bytes: &[u8], step: usize) -> Result<Vec<Frame>, FrameError> {
        all(&[&LOGIN[..], bytes].concat(), step).map(|mut found| found.split_off(1))
    }

    #[test]
    fn packets_are_found_however_they_are_cut() {
        let mut long = vec![0x30, 0x80, 0x01];
        long.extend([7; 128]);
        let stream = [&[0xd0, 0][..], &long, &[0x40, 2, 0, 1], &[0x40, 2, 0]].concat();
        for step in 1..stream.len() {
            let found = after_login(&stream, step).unwrap();
            let shown: Vec<_> = found.iter().map(|f| (f.first, f.body.len())).collect();
            assert_eq!(shown, [(0xd0, 0), (0x30, 128), (0x40, 2)], "{step}");
        }
    }

    #[test]
    fn a125_malformed_headers_end_the_connection_before_anything_is_kept() {
        for (bytes, expected) in [
            (
                &[0x30, 0xff, 0xff, 0xff, 0x7f][..],
                FrameError::TooLarge(5 + 268_435_455),
            ),
            (&[0x30, 0x80, 0x80, 0x80, 0x80, 0x01], FrameError::Length),
            (&[0x30, 0xff, 0xff, 0xff, 0xff], FrameError::Length),
            (&[0x30, 0x80, 0x00], FrameError::Length),
            (&[0x00], FrameError::Header(0x00)),
            (&[0xf0], FrameError::Header(0xf0)),
            (&[0x10], FrameError::Header(0x10)),
            (&[0x20], FrameError::Header(0x20)),
            (&[0xb0], FrameError::Header(0xb0)),
            (&[0x21], FrameError::Header(0x21)),
            (&[0x42], FrameError::Header(0x42)),
            (&[0xd8], FrameError::Header(0xd8)),
            (&[0x34], FrameError::Header(0x34)),
            (&[0x38], FrameError::Header(0x38)),
            (&[0x36], FrameError::Header(0x36)),
            (&[0xe0], FrameError::Header(0xe0)),
        ] {
            assert_eq!(after_login(bytes, 16), Err(expected), "{bytes:x?}");
            assert_eq!(after_login(bytes, 1), Err(expected), "{bytes:x?}");
        }
    }

    #[test]
    fn a125_the_largest_packet_passes_and_one_more_byte_does_not() {
        let packet = |length: usize| {
            let digits = |shift: usize| u8::try_from((length >> shift) & 0x7f).unwrap();
            let mut bytes = vec![0x30, digits(0) | 0x80, digits(7) | 0x80, digits(14)];
            bytes.resize(4 + length, 0);
            bytes
        };
        assert_eq!(after_login(&packet(MAX_PACKET - 4), 4096).unwrap().len(), 1);
        assert_eq!(
            after_login(&packet(MAX_PACKET - 3), 4096),
            Err(FrameError::TooLarge(MAX_PACKET + 1))
        );
    }

    #[test]
    fn a125_nothing_comes_before_the_login_and_no_login_comes_twice() {
        for (bytes, expected) in [
            (&[0x30, 0][..], FrameError::Header(0x30)),
            (&[0x40, 2, 0, 1], FrameError::Header(0x40)),
            (&[0xd0, 0], FrameError::Header(0xd0)),
            (&[0x21, 2, 0, 0], FrameError::Header(0x21)),
            (&[0x20, 2, 1, 0, 0x20, 2, 0, 0], FrameError::Header(0x20)),
        ] {
            assert_eq!(all(bytes, 16), Err(expected), "{bytes:x?}");
        }
    }
}
