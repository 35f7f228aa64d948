//! Audit records and the chain (A141, A36).
//!
//! Round trip: a line that is accepted is written again byte for byte, and every record, whatever
//! it says, is written as a line that is accepted. Invariant: the verifier never panics, finds
//! nothing in a whole log, and finds any byte changed, and any line left out or repeated.
#![no_main]

use contract::audit::{Decision, Entry, Event, Fault, GENESIS, Head, Record, SignedHead};
use contract::audit::{hash, hex, verify};
use contract::bytes::Bytes;
use contract::time::{ClockTrust, Now};

libfuzzer_sys::fuzz_target!(|input: (u16, u8, u32, &str)| {
    let (at, change, number, text) = input;
    let made_up: Vec<&[u8]> = text.as_bytes().split(|b| *b == b'\n').collect();
    let report = verify(made_up.iter().copied(), &[], None);
    assert_eq!(
        report.problem.is_none(),
        report.records == made_up.len() as u64
    );
    for line in made_up {
        if let Some(record) = Record::parse(line) {
            assert_eq!(record.line().as_bytes(), line);
        }
    }

    let mut lines: Vec<String> = Vec::new();
    for (index, part) in text.splitn(4, '|').enumerate() {
        let record = record(index, number, part, lines.last());
        assert!(
            Record::parse(record.line().as_bytes()).is_some(),
            "{}",
            record.line()
        );
        lines.push(record.line());
    }
    let last = lines.last().map_or(GENESIS, |line| hash(line.as_bytes()));
    let head = Head {
        sequence: lines.len() as u64,
        hash: hex(&last),
        time: String::new(),
    };
    let heads = [SignedHead {
        head,
        signature: Bytes::default(),
    }];
    let fault = |lines: &[Vec<u8>]| {
        verify(lines.iter().map(Vec::as_slice), &heads, None)
            .problem
            .map(|p| p.fault)
    };
    let whole: Vec<Vec<u8>> = lines.iter().map(|line| line.clone().into_bytes()).collect();
    assert_eq!(fault(&whole), None);
    let (mut edited, mut cut, mut twice) = (whole.clone(), whole.clone(), whole.clone());
    let line = usize::from(at) % whole.len();
    let byte = usize::from(at) % whole[line].len();
    edited[line][byte] ^= change.max(1);
    assert!(fault(&edited).is_some(), "{line} {byte}");
    twice.insert(line, whole[line].clone());
    assert!(fault(&twice).is_some());
    let is_last = line + 1 == whole.len();
    cut.remove(line);
    assert!(fault(&cut).is_some_and(|fault| !is_last || fault == Fault::Truncated));
});

fn record(index: usize, number: u32, text: &str, before: Option<&String>) -> Record {
    let event = Event::ALL[number as usize % Event::ALL.len()];
    let texts = [text, &text.repeat(2), &text.repeat(5), &text.repeat(9)].map(str::to_owned);
    let [principal, operation, object, reason] = texts;
    let decision = Decision::Noted;
    Record {
        sequence: index as u64 + 1,
        boot: text.to_owned(),
        now: Now {
            monotonic_ms: i64::from(number) << 16,
            wall: i64::from(number) * 50,
            trust: ClockTrust::Network,
        },
        count: u64::from(number),
        entry: Entry {
            event,
            principal,
            operation,
            object,
            decision,
            reason,
        },
        previous: before.map_or(GENESIS, |line| hash(line.as_bytes())),
    }
}
