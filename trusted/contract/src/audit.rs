//! The audit log as data: records, their one encoding, the chain, the signed head, the verifier
//! (R35, R36, R39).
//!
//! A record is one line of JSON with a fixed order of members, ASCII only, and carries the hash of
//! the line before it; so deleting, editing, swapping or repeating a line breaks the chain at that
//! place, and cutting lines off the end contradicts a signed head (A141). This file reads no file
//! and holds no key: `local::audit` writes lines, whoever owns the audit key signs heads, and
//! [`verify`] needs only lines, heads and the public key.

use std::fmt::Write as _;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::time::{ClockTrust, Now, parse_rfc3339, rfc3339};

/// Longest record in bytes, its line end included.
pub const MAX_RECORD: usize = 4096;
/// Longest text of one member, as written with its escapes; five of them and the rest fit a record.
const MAX_TEXT: usize = 640;

/// Defines the events of security.md section 8 with their words.
macro_rules! events {
    ($($(#[$doc:meta])* $name:ident = $word:literal),+ $(,)?) => {
        /// What happened: a closed list (security.md 8).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Event {
            $($(#[$doc])* #[serde(rename = $word)] $name),+
        }

        impl Event {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Its word.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word),+ }
            }
        }
    };
}

events!(
    /// A caller that is not who it must be.
    PeerRefused = "peer.refused",
    /// A caller that is no longer there.
    PeerStale = "peer.stale",
    /// Another process wrote into a connection.
    PeerWriterChanged = "peer.writer-changed",
    /// A name that only resembles a module's.
    PeerAlias = "peer.alias",
    /// Proof by fewer facts than a new kernel offers.
    PeerWeak = "peer.weak",
    /// A management operation refused.
    ManagementDenied = "mgmt.denied",
    /// A management operation done.
    ManagementDone = "mgmt.done",
    /// A request with two readings.
    HttpAmbiguous = "http.ambiguous",
    /// Input that is not what it must be.
    InputMalformed = "input.malformed",
    /// Input over a limit.
    InputLimit = "input.limit",
    /// Key policy refused.
    KeyDenied = "key.denied",
    /// A handle that is none, or another's.
    KeyHandle = "key.handle",
    /// A key created, imported or replaced.
    KeyCreated = "key.created",
    /// A key deleted.
    KeyDeleted = "key.deleted",
    /// A key given another id.
    KeyMoved = "key.moved",
    /// A derived key's bytes handed out (R19).
    KeyExported = "key.exported",
    /// The key policy in force, at start and when it changes.
    KeyPolicy = "key.policy",
    /// A key exists with other properties.
    KeyConflict = "key.conflict",
    /// Hardware trouble.
    HardwareFault = "hw.fault",
    /// Hardware made a wrong signature.
    HardwareBadSignature = "hw.badsig",
    /// Hardware refused a PIN.
    HardwarePin = "hw.pin",
    /// A certificate refused.
    CertRefused = "cert.refused",
    /// A certificate issued.
    CertIssued = "cert.issued",
    /// An enrolment server's answer refused.
    EstRefused = "est.refused",
    /// Another identity or hub.
    ProvisioningChanged = "prov.changed",
    /// A provisioning answer refused.
    ProvisioningRefused = "prov.refused",
    /// A TLS peer refused.
    TlsRefused = "tls.refused",
    /// An image or executable is not the one named.
    ImageMismatch = "image.mismatch",
    /// A module not created as asked.
    ContainerDenied = "container.denied",
    /// A module is not what was registered.
    ContainerDrift = "container.drift",
    /// An extension refused.
    ExtensionDenied = "ext.denied",
    /// An extension ended.
    ExtensionKilled = "ext.killed",
    /// The integrity monitor is silent.
    MonitorLost = "monitor.lost",
    /// A measured file changed.
    IntegrityDrift = "integrity.drift",
    /// An update's signature refused.
    UpdateSignature = "upd.signature",
    /// An update signed by a disabled key.
    UpdateKeyDisabled = "upd.key-disabled",
    /// An older update.
    UpdateRollback = "upd.rollback",
    /// No fresh word from the service.
    UpdateFreeze = "upd.freeze",
    /// Parts of different updates.
    UpdateMix = "upd.mix",
    /// An update for another device.
    UpdateIncompatible = "upd.incompatible",
    /// A payload of another size.
    UpdateSize = "upd.size",
    /// A download too slow.
    UpdateSlow = "upd.slow",
    /// A payload with another hash.
    UpdateHash = "upd.hash",
    /// An update installed.
    UpdateInstalled = "upd.installed",
    /// An update undone.
    UpdateReverted = "upd.reverted",
    /// A root-key package accepted.
    RootAccepted = "root.accepted",
    /// An older root-key package.
    RootRollback = "root.rollback",
    /// Two root-key packages of one version.
    RootEquivocation = "root.equivocation",
    /// A root-key package far ahead.
    RootJump = "root.jump",
    /// The wall clock jumped.
    TimeJump = "time.jump",
    /// The wall clock is below the floor, or above it again.
    TimeFloor = "time.floor",
    /// A stored object damaged.
    StoreDamaged = "store.damaged",
    /// No space.
    StoreFull = "store.full",
    /// A stored object older than its counter.
    StoreRolledBack = "store.rolledback",
    /// Records are missing here, and why.
    AuditGap = "audit.gap",
    /// The log is full.
    AuditFull = "audit.full",
    /// Configuration refused.
    ConfigRefused = "config.refused",
    /// A broken frame from the other world.
    TeeProtocol = "tee.protocol",
    /// Two devices with one identity.
    CloneSuspected = "clone.suspected",
);

/// How a decision ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// Done.
    Allowed,
    /// Not done.
    Refused,
    /// No decision: something was seen.
    Noted,
}

impl Decision {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused => "refused",
            Self::Noted => "noted",
        }
    }
}

/// What a daemon has to say about one decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What happened.
    pub event: Event,
    /// On whose behalf: a principal, never a bare pid.
    pub principal: String,
    /// Which operation.
    pub operation: String,
    /// On what.
    pub object: String,
    /// How it ended.
    pub decision: Decision,
    /// Why, or what else is worth knowing. Never a secret (R27).
    pub reason: String,
}

impl Entry {
    /// An entry with the least there is to say; set the rest with the fields.
    #[must_use]
    pub fn new(event: Event, decision: Decision, principal: impl Into<String>) -> Self {
        Self {
            event,
            principal: principal.into(),
            operation: String::new(),
            object: String::new(),
            decision,
            reason: String::new(),
        }
    }
}

/// SHA-256 of a line without its line end.
pub type Hash = [u8; 32];

/// What the first record of a log names as its predecessor.
pub const GENESIS: Hash = [0; 32];

/// One record of the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number, from 1, without holes.
    pub sequence: u64,
    /// The boot it was made in.
    pub boot: String,
    /// When.
    pub now: Now,
    /// How many decisions it stands for; more than one ends a minute of like decisions (R37).
    pub count: u64,
    /// What it says.
    pub entry: Entry,
    /// Hash of the record before it.
    pub previous: Hash,
}

impl Record {
    /// The one encoding: a line without its line end.
    #[must_use]
    pub fn line(&self) -> String {
        let e = &self.entry;
        let mut out = String::with_capacity(512);
        // Writing to a String does not fail.
        let _ = write!(
            out,
            "{{\"seq\":{},\"boot\":\"{}\",\"mono\":{},\"time\":\"{}\",\"trust\":\"{}\"",
            self.sequence,
            escaped(&self.boot),
            self.now.monotonic_ms,
            rfc3339(self.now.wall),
            self.now.trust,
        );
        let _ = write!(
            out,
            ",\"event\":\"{}\",\"decision\":\"{}\",\"count\":{}",
            e.event.as_str(),
            e.decision.as_str(),
            self.count,
        );
        for (name, text) in [
            ("who", &e.principal),
            ("op", &e.operation),
            ("object", &e.object),
            ("reason", &e.reason),
        ] {
            let _ = write!(out, ",\"{name}\":\"{}\"", escaped(text));
        }
        let _ = write!(out, ",\"prev\":\"{}\"}}", hex(&self.previous));
        out
    }

    /// Reads a line; `None` unless it is exactly what [`Self::line`] would write.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        if line.len() >= MAX_RECORD {
            return None;
        }
        let wire: Wire = serde_json::from_slice(line).ok()?;
        let record = Self {
            sequence: wire.seq,
            boot: wire.boot,
            now: Now {
                monotonic_ms: wire.mono,
                wall: parse_rfc3339(&wire.time)?,
                trust: wire.trust,
            },
            count: wire.count,
            entry: Entry {
                event: wire.event,
                principal: wire.who,
                operation: wire.op,
                object: wire.object,
                decision: wire.decision,
                reason: wire.reason,
            },
            previous: unhex(&wire.prev)?,
        };
        (record.line().as_bytes() == line).then_some(record)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    seq: u64,
    boot: String,
    mono: i64,
    time: String,
    trust: ClockTrust,
    event: Event,
    decision: Decision,
    count: u64,
    who: String,
    op: String,
    object: String,
    reason: String,
    prev: String,
}

/// Hash of a line, which the next record names.
#[must_use]
pub fn hash(line: &[u8]) -> Hash {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, line).as_ref());
    out
}

/// Text inside JSON quotes, in ASCII without control characters (A36), and cut when too long.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let start = out.len();
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            ' '..='~' => out.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
        if out.len() > MAX_TEXT {
            out.truncate(start);
            // The mark is within the limit when it is read and written again.
            while out.len() > MAX_TEXT - 3 {
                let cut = last_char(&out);
                out.truncate(cut);
            }
            out.push_str("...");
            break;
        }
    }
    out
}

/// Where the last written character begins, its escape included.
fn last_char(out: &str) -> usize {
    let mut at = 0;
    let bytes = out.as_bytes();
    let mut start = 0;
    while at < bytes.len() {
        start = at;
        at += match (bytes[at], bytes.get(at + 1)) {
            (b'\\', Some(b'u')) => {
                let high = out
                    .get(at + 2..at + 4)
                    .is_some_and(|h| ("d8".."dc").contains(&h));
                if high { 12 } else { 6 }
            }
            (b'\\', _) => 2,
            _ => 1,
        };
    }
    start
}

/// Lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// Reads 64 lower-case hex digits.
#[must_use]
pub fn unhex(text: &str) -> Option<Hash> {
    let mut out = [0; 32];
    if text.len() != 64 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

/// Where the log stood at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Sequence of the last record.
    pub sequence: u64,
    /// Its hash in hex.
    pub hash: String,
    /// When, RFC 3339.
    pub time: String,
}

impl Head {
    /// What is signed: with SHA-256 and ECDSA on P-256, by a key that signs nothing else.
    #[must_use]
    pub fn signed_bytes(&self) -> Vec<u8> {
        format!(
            "holdfast audit head v1\n{}\n{}\n{}\n",
            self.sequence, self.hash, self.time
        )
        .into_bytes()
    }
}

/// A head with its signature; one line of the heads file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedHead {
    /// The head.
    pub head: Head,
    /// ECDSA signature in DER.
    pub signature: Bytes,
}

impl SignedHead {
    /// Whether the signature is good under this public key (an SEC1 point).
    #[must_use]
    pub fn is_signed_by(&self, public_key: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, public_key)
            .verify(&self.head.signed_bytes(), &self.signature.0)
            .is_ok()
    }
}

/// What is wrong with a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not a record, or not in the one encoding.
    #[error("the line is not a record")]
    Malformed,
    /// The number is not the next one: records were removed, repeated or swapped.
    #[error("the sequence does not continue")]
    Sequence,
    /// The hash of the line before is another: it was edited, or this one was put in.
    #[error("the hash does not continue the line before")]
    Chain,
    /// The log begins in the middle and no signed head says so.
    #[error("the beginning is missing and no signed head covers it")]
    Beginning,
    /// A signed head names another hash for this record.
    #[error("a signed head names another hash for this record")]
    Head,
    /// A signed head names a record beyond the end: the log was cut.
    #[error("a signed head names a later record: the end was cut off")]
    Truncated,
    /// A head whose signature is not good.
    #[error("the signature of a head is not good")]
    Signature,
}

/// The first bad place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Problem {
    /// Line number from 1; 0 for heads and for what is not there.
    pub line: usize,
    /// The sequence expected or named there.
    pub sequence: u64,
    /// What is wrong.
    pub fault: Fault,
}

/// What the verifier found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Good records, from the first on.
    pub records: u64,
    /// Sequence of the first record; 0 for an empty log.
    pub first: u64,
    /// Sequence of the last good record.
    pub last: u64,
    /// Hash of the last good record.
    pub last_hash: Hash,
    /// Last sequence that a good signature covers.
    pub signed_through: Option<u64>,
    /// The first bad place; none in a log that is whole.
    pub problem: Option<Problem>,
}

/// Checks a log offline (R39). Without a public key, heads are compared but prove nothing, and
/// `signed_through` stays empty.
#[must_use]
pub fn verify<'a>(
    lines: impl IntoIterator<Item = &'a [u8]>,
    heads: &[SignedHead],
    public_key: Option<&[u8]>,
) -> Report {
    let mut report = Report {
        records: 0,
        first: 0,
        last: 0,
        last_hash: GENESIS,
        signed_through: None,
        problem: None,
    };
    let bad = |line, sequence, fault| {
        Some(Problem {
            line,
            sequence,
            fault,
        })
    };
    if let Some(key) = public_key
        && let Some(forged) = heads.iter().find(|h| !h.is_signed_by(key))
    {
        report.problem = bad(0, forged.head.sequence, Fault::Signature);
        return report;
    }
    let names = |sequence: u64| heads.iter().filter(move |h| h.head.sequence == sequence);
    for (index, line) in lines.into_iter().enumerate() {
        let expected = report.last + 1;
        report.problem = match Record::parse(line) {
            None => bad(index + 1, expected, Fault::Malformed),
            Some(record) => match follows(&record, &report, &names) {
                Err(fault) => bad(index + 1, expected, fault),
                Ok(()) => {
                    let this = hash(line);
                    if names(record.sequence).any(|h| h.head.hash != hex(&this)) {
                        bad(index + 1, record.sequence, Fault::Head)
                    } else {
                        if report.records == 0 {
                            report.first = record.sequence;
                        }
                        report.records += 1;
                        report.last = record.sequence;
                        report.last_hash = this;
                        None
                    }
                }
            },
        };
        if report.problem.is_some() {
            break;
        }
    }
    let reached = heads.iter().map(|h| h.head.sequence).max();
    if report.problem.is_none()
        && let Some(reached) = reached.filter(|&r| r > report.last)
    {
        report.problem = bad(0, reached, Fault::Truncated);
    }
    if public_key.is_some() {
        let covered = heads.iter().map(|h| h.head.sequence);
        report.signed_through = covered.filter(|&s| s <= report.last).max();
    }
    report
}

/// Whether a record continues what was read so far; the first one of a log whose oldest segments
/// were dropped must be covered by a signed head (R38).
fn follows<'a, I: Iterator<Item = &'a SignedHead>>(
    record: &Record,
    so_far: &Report,
    names: &impl Fn(u64) -> I,
) -> Result<(), Fault> {
    if so_far.records == 0 && record.sequence > 1 {
        let before = hex(&record.previous);
        return match names(record.sequence - 1).any(|h| h.head.hash == before) {
            true => Ok(()),
            false => Err(Fault::Beginning),
        };
    }
    if record.sequence != so_far.last + 1 {
        return Err(Fault::Sequence);
    }
    if record.previous != so_far.last_hash {
        return Err(Fault::Chain);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};

    fn entry(text: &str) -> Entry {
        Entry {
            operation: "create".to_owned(),
            object: text.to_owned(),
            ..Entry::new(Event::KeyCreated, Decision::Allowed, "uid 1000")
        }
    }

    fn log(count: u64) -> Vec<String> {
        let mut previous = GENESIS;
        (1..=count)
            .map(|sequence| {
                let record = Record {
                    sequence,
                    boot: "b".to_owned(),
                    now: Now {
                        monotonic_ms: 5,
                        wall: 1_795_000_000,
                        trust: ClockTrust::Network,
                    },
                    count: 1,
                    entry: entry(&format!("key {sequence}")),
                    previous,
                };
                let line = record.line();
                previous = hash(line.as_bytes());
                line
            })
            .collect()
    }

    fn check(lines: &[String], heads: &[SignedHead], key: Option<&[u8]>) -> Report {
        verify(lines.iter().map(String::as_bytes), heads, key)
    }

    fn signed(lines: &[String], sequence: usize, key: &EcdsaKeyPair) -> SignedHead {
        let head = Head {
            sequence: sequence as u64,
            hash: hex(&hash(lines[sequence - 1].as_bytes())),
            time: rfc3339(1_795_000_000),
        };
        let made = key
            .sign(&SystemRandom::new(), &head.signed_bytes())
            .unwrap();
        SignedHead {
            signature: Bytes(made.as_ref().to_vec()),
            head,
        }
    }

    fn key() -> EcdsaKeyPair {
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap()
    }

    fn other_key() -> EcdsaKeyPair {
        key()
    }

    #[test]
    fn a_whole_log_is_found_whole() {
        let lines = log(5);
        let key = key();
        let heads = [signed(&lines, 2, &key), signed(&lines, 4, &key)];
        let report = check(&lines, &heads, Some(key.public_key().as_ref()));
        assert_eq!(report.problem, None);
        assert_eq!((report.first, report.last, report.records), (1, 5, 5));
        assert_eq!(report.signed_through, Some(4));
        assert_eq!(check(&lines, &heads, None).signed_through, None);
        assert_eq!(check(&[], &[], None).problem, None);
    }

    #[test]
    fn a141_the_place_of_every_change_is_named() {
        let lines = log(6);
        let mut deleted = lines.clone();
        deleted.remove(2);
        let mut swapped = lines.clone();
        swapped.swap(2, 3);
        let mut repeated = lines.clone();
        repeated.insert(3, lines[2].clone());
        let mut edited = lines.clone();
        edited[2] = edited[2].replace("uid 1000", "uid 1001");
        let mut spaced = lines.clone();
        spaced[2].push(' ');
        let mut renumbered = lines.clone();
        renumbered.remove(2);
        renumbered[2] = renumbered[2].replace("\"seq\":4", "\"seq\":3");
        for (what, lines, line, fault) in [
            ("deleted", deleted, 3, Fault::Sequence),
            ("swapped", swapped, 3, Fault::Sequence),
            ("repeated", repeated, 4, Fault::Sequence),
            ("edited, seen at the next line", edited, 4, Fault::Chain),
            ("another encoding", spaced, 3, Fault::Malformed),
            ("deleted and renumbered", renumbered, 3, Fault::Chain),
        ] {
            let problem = check(&lines, &[], None).problem.unwrap();
            assert_eq!((problem.line, problem.fault), (line, fault), "{what}");
        }
    }

    #[test]
    fn a141_a_cut_end_an_older_copy_and_a_forged_head_are_found() {
        let lines = log(6);
        let key = key();
        let public = key.public_key().as_ref().to_vec();
        let heads = [signed(&lines, 5, &key)];
        let cut = check(&lines[..4], &heads, Some(&public));
        assert_eq!(
            cut.problem,
            Some(Problem {
                line: 0,
                sequence: 5,
                fault: Fault::Truncated
            })
        );
        // The last line edited: nothing follows it, but a head covers it.
        let mut edited = lines[..5].to_vec();
        edited[4] = edited[4].replace("key 5", "key 6");
        let problem = check(&edited, &heads, Some(&public)).problem.unwrap();
        assert_eq!((problem.line, problem.fault), (5, Fault::Head));
        // The whole log made anew, consistently, with another head.
        let mut other = heads[0].clone();
        other.head.sequence = 4;
        let problem = check(&lines, &[other], Some(&public)).problem.unwrap();
        assert_eq!(problem.fault, Fault::Signature);
        let foreign = [signed(&lines, 5, &other_key())];
        let problem = check(&lines, &foreign, Some(&public)).problem.unwrap();
        assert_eq!(problem.fault, Fault::Signature);
    }

    #[test]
    fn a_log_may_begin_later_only_where_a_head_says_so() {
        let lines = log(6);
        let key = key();
        let public = key.public_key().as_ref().to_vec();
        let heads = [signed(&lines, 3, &key), signed(&lines, 6, &key)];
        let report = check(&lines[3..], &heads, Some(&public));
        assert_eq!((report.problem, report.first), (None, 4));
        let problem = check(&lines[4..], &heads, Some(&public)).problem.unwrap();
        assert_eq!(problem.fault, Fault::Beginning);
    }

    #[test]
    fn a36_control_characters_stay_inside_one_line() {
        let nasty = "a\nb\r\u{1b}[2J\u{0}\"\\\u{7f}\u{85}\u{202e}\u{1f600}";
        let record = Record {
            sequence: 1,
            boot: String::new(),
            now: Now {
                monotonic_ms: -1,
                wall: 0,
                trust: ClockTrust::Floor,
            },
            count: 3,
            entry: entry(nasty),
            previous: GENESIS,
        };
        let line = record.line();
        assert!(line.bytes().all(|b| (b' '..=b'~').contains(&b)));
        assert_eq!(Record::parse(line.as_bytes()), Some(record));
    }

    #[test]
    fn a_record_never_exceeds_its_size_and_stays_readable() {
        for filler in ["a", "\"", "\n", "\u{1f600}", "a\u{1f600}"] {
            for length in [100, 639, 640, 641, 10_000] {
                let long = filler.repeat(length);
                let record = Record {
                    sequence: u64::MAX,
                    boot: long.clone(),
                    now: Now {
                        monotonic_ms: i64::MIN,
                        wall: i64::MAX,
                        trust: ClockTrust::Authenticated,
                    },
                    count: u64::MAX,
                    entry: Entry {
                        principal: long.clone(),
                        operation: long.clone(),
                        reason: long.clone(),
                        ..entry(&long)
                    },
                    previous: [0xff; 32],
                };
                let line = record.line();
                assert!(line.len() < MAX_RECORD, "{} {length}", line.len());
                assert!(Record::parse(line.as_bytes()).is_some(), "{line}");
            }
        }
    }

    #[test]
    fn events_are_words_of_their_own() {
        let mut words: Vec<_> = Event::ALL.iter().map(|e| e.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Event::ALL.len());
        for event in Event::ALL {
            let json = serde_json::to_string(event).unwrap();
            assert_eq!(json, format!("\"{}\"", event.as_str()));
        }
    }
}
