//! The HTTP reader of every socket (A26-A29, A35).
//!
//! Round trip: an accepted head, written again in one form, reads as the same head. Invariant:
//! a prefix of an accepted head is incomplete, and what is refused stays refused however much
//! follows. Differential: a body equals what a naive second decoder makes of it.
#![no_main]

use contract::endpoint::percent_encode;
use local::http::{BodyState, Framing, Head, HttpError, read_body, read_head};

const LIMIT: usize = 16;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let whole = read_head(data);
    let end = whole.as_ref().map_or(data.len(), |head| {
        head.as_ref().map_or(data.len(), |head| head.length)
    });
    for cut in (0..end).step_by(1 + end / 64) {
        let part = read_head(&data[..cut]);
        assert!(
            part == Ok(None) || (part.is_err() && part == whole),
            "{cut}"
        );
    }
    let Ok(Some(head)) = whole else {
        return body(data, Framing::Chunked);
    };
    body(&data[head.length..], head.framing);
    let mut again = read_head(write(&head).as_bytes());
    if let Ok(Some(again)) = &mut again {
        again.length = head.length;
    }
    let longer = [HttpError::LineTooLong, HttpError::BlockTooLong].map(Err);
    assert!(
        again == Ok(Some(head)) || longer.contains(&again),
        "{again:?}"
    );
});

fn write(head: &Head) -> String {
    let mut out = format!("{} {}", head.method, head.path);
    for (at, (name, value)) in head.query.iter().enumerate() {
        out.push(if at == 0 { '?' } else { '&' });
        percent_encode(name, &mut out);
        out.push('=');
        percent_encode(value, &mut out);
    }
    out += " HTTP/1.1\r\nHost: h\r\n";
    out += &match head.framing {
        Framing::Length(length) => format!("Content-Length: {length}\r\n"),
        Framing::Chunked => "Transfer-Encoding: chunked\r\n".to_owned(),
    };
    if let Some(kind) = &head.content_type {
        out += &format!("Content-Type: {kind}\r\n");
    }
    if head.expects_continue {
        out += "Expect: 100-continue\r\n";
    }
    if !head.keep_alive {
        out += "Connection: close\r\n";
    }
    out + "\r\n"
}

fn body(data: &[u8], framing: Framing) {
    let naive = match framing {
        Framing::Length(length) => usize::try_from(length)
            .ok()
            .filter(|length| *length <= LIMIT)
            .and_then(|length| Some((data.get(..length)?.to_vec(), length))),
        Framing::Chunked => chunks(data),
    };
    let read = match read_body(data, framing, LIMIT) {
        Ok(BodyState::Complete { body, used }) => Some((body, used)),
        Ok(BodyState::Partial) | Err(_) => None,
    };
    assert_eq!(read, naive);
}

/// Counts by hand and cuts pieces off the front: another way than the reader's.
fn chunks(data: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut out, mut rest) = (Vec::new(), data);
    loop {
        let size_end = (1..=8).find(|at| rest.get(*at..at + 2) == Some(b"\r\n"))?;
        let mut size = 0;
        for digit in &rest[..size_end] {
            size = size * 16 + usize::try_from(char::from(*digit).to_digit(16)?).ok()?;
        }
        rest = &rest[size_end + 2..];
        let (chunk, after) = rest.split_at_checked(size)?;
        out.extend_from_slice(chunk);
        rest = after.strip_prefix(b"\r\n")?;
        if out.len() > LIMIT {
            return None;
        }
        if size == 0 {
            return Some((out, data.len() - rest.len()));
        }
    }
}
