//! Writes the audit log: segments of records, each durable before its answer where that is asked
//! (R37), counted where decisions come fast, and continued after any end.
//!
//! A segment is a file named by its first sequence number. A line that a power cut left without
//! its end is removed at the next start, and the record [`Event::AuditGap`] says so; a damaged
//! line that has its end stays for the verifier to name. When the disk or the quota is full, a
//! reserve is given up to say so and every [`Audit::record`] fails until there is space again, so
//! that privileged changes are refused (R38). What a record is and how a log is verified is in
//! [`contract::audit`]; heads are signed by whoever holds the audit key.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use contract::audit::{
    Decision, Entry, Event, GENESIS, Hash, Head, MAX_RECORD, Record, Report, SignedHead, hash, hex,
    unhex, verify,
};
use contract::bytes::Bytes;
use contract::refusal::{Class, Refusal};
use contract::time::{Now, rfc3339};

use crate::files::{Dir, FileError};
use crate::log;

/// How much a log may take (security.md section 7).
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// One segment.
    pub segment: u64,
    /// All segments.
    pub total: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            segment: 1024 * 1024,
            total: 64 * 1024 * 1024,
        }
    }
}

/// Why a record could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// No space on the disk, or the oldest segments may not be dropped yet.
    #[error("the audit log is full")]
    Full,
    /// The log cannot be written.
    #[error("the audit log cannot be written")]
    Write(#[source] FileError),
    /// The log cannot be read.
    #[error("the audit log cannot be read")]
    Read(#[source] FileError),
}

/// Why a head was not signed.
#[derive(Debug, thiserror::Error)]
pub enum HeadError<E> {
    /// The signature was not made.
    #[error("the head of the audit log was not signed: {0}")]
    Sign(E),
    /// It was not kept, or what it covers is not durable.
    #[error("the head of the audit log was not kept")]
    Log(#[from] AuditError),
}

impl From<AuditError> for Refusal {
    /// 503: what must be recorded and cannot be is not done (R38).
    fn from(error: AuditError) -> Self {
        let mut refusal = Self::new(Class::Unavailable, "audit log unavailable");
        let cause = std::error::Error::source(&error);
        refusal.cause = Some(cause.map_or_else(|| error.to_string(), ToString::to_string));
        refusal
    }
}

/// The file of signed heads.
const HEADS: &str = "heads";
/// Space that is given up to say that there is none.
const RESERVE: &str = "reserve";
const RESERVE_SIZE: usize = 32 * 1024;
/// A new head is worth a signature after so many records or so long (R36).
const HEAD_RECORDS: u64 = 256;
const HEAD_MS: i64 = 60_000;
/// Like decisions within this time are counted.
const COUNT_MS: i64 = 60_000;
/// Most principals counted at a time.
const COUNTED: usize = 1024;
/// Longest heads file: one head for each segment and some more.
const HEADS_LIMIT: usize = 256 * 1024;

/// A daemon's audit log.
pub struct Audit {
    dir: Dir,
    boot: String,
    limits: Limits,
    state: Mutex<State>,
}

struct State {
    sequence: u64,
    last: Hash,
    /// First sequence and size of each segment, oldest first.
    segments: VecDeque<(u64, u64)>,
    /// Lines of the newest segment that are not known to be durable.
    loose: bool,
    /// The newest segment may have more bytes than its size: the last append failed.
    torn: bool,
    /// The newest segment was written by a process before this one.
    inherited: bool,
    full: bool,
    counts: HashMap<(Event, String), Count>,
    heads: Vec<SignedHead>,
    /// Ends of segments that wait for a signature, so that they can be dropped one day.
    ends: VecDeque<Head>,
    head_ms: i64,
}

struct Count {
    since_ms: i64,
    more: u64,
    last: Option<Entry>,
}

impl Audit {
    /// Opens the log in its own directory, repairs an unfinished end, and continues the chain.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn open(dir: Dir, boot: &str, limits: Limits, now: &Now) -> Result<Self, AuditError> {
        let mut state = State {
            sequence: 0,
            last: GENESIS,
            segments: VecDeque::new(),
            loose: false,
            torn: false,
            inherited: true,
            full: false,
            counts: HashMap::new(),
            heads: read_heads(&dir)?,
            ends: VecDeque::new(),
            head_ms: now.monotonic_ms,
        };
        let gap = resume(&dir, limits, &mut state)?;
        let audit = Self {
            dir,
            boot: boot.to_owned(),
            limits,
            state: Mutex::new(state),
        };
        if audit.reserve().is_err() {
            audit.lock().full = true;
        }
        if let Some(reason) = gap {
            log::warn(format_args!("audit log: {reason}"));
            audit.note(now, gap_entry(reason));
        }
        Ok(audit)
    }

    /// Keeps a record; durable when this returns. Called before the answer to a privileged change
    /// is sent, and before the change where it can be undone by not doing it.
    ///
    /// # Errors
    /// [`AuditError`]: the change must be refused then.
    pub fn record(&self, now: &Now, entry: Entry) -> Result<(), AuditError> {
        let mut state = self.lock();
        self.recover(&mut state, now)?;
        let kept = self.append(&mut state, now, entry, 1, true);
        if let Err(error) = &kept {
            self.give_way(&mut state, now, error);
        }
        kept
    }

    /// Counts a decision: the first of a minute and the last are kept in full, the others as a
    /// number (R37). Never fails its caller; what cannot be written is counted as a gap.
    pub fn note(&self, now: &Now, entry: Entry) {
        let mut state = self.lock();
        self.end_minutes(&mut state, now, false);
        let key = (entry.event, entry.principal.clone());
        if let Some(count) = state.counts.get_mut(&key) {
            count.more += 1;
            count.last = Some(entry);
            return;
        }
        if state.counts.len() >= COUNTED {
            self.end_minutes(&mut state, now, true);
        }
        let count = Count {
            since_ms: now.monotonic_ms,
            more: 0,
            last: None,
        };
        state.counts.insert(key, count);
        self.append_loosely(&mut state, now, entry, 1);
    }

    /// Writes counts whose minute is over, and makes everything durable. Called once a minute.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn settle(&self, now: &Now) -> Result<(), AuditError> {
        let mut state = self.lock();
        self.end_minutes(&mut state, now, false);
        self.make_durable(&mut state)
    }

    /// Writes all counts, and makes everything durable. Called at stop.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn close(&self, now: &Now) -> Result<(), AuditError> {
        let mut state = self.lock();
        self.end_minutes(&mut state, now, true);
        self.make_durable(&mut state)
    }

    /// A head that is worth a signature now: the end of a finished segment first, then the end of
    /// the log when enough records or time have passed, or at stop.
    ///
    /// # Errors
    /// [`AuditError`] when what it covers cannot be made durable.
    pub fn head_to_sign(&self, now: &Now, at_stop: bool) -> Result<Option<Head>, AuditError> {
        let mut state = self.lock();
        if let Some(end) = state.ends.front() {
            return Ok(Some(end.clone()));
        }
        let signed = state.heads.iter().map(|h| h.head.sequence).max();
        let more = state.sequence - signed.unwrap_or(0).min(state.sequence);
        let due = more >= HEAD_RECORDS || now.monotonic_ms - state.head_ms >= HEAD_MS || at_stop;
        if more == 0 || !due {
            return Ok(None);
        }
        self.make_durable(&mut state)?;
        Ok(Some(Head {
            sequence: state.sequence,
            hash: hex(&state.last),
            time: rfc3339(now.wall),
        }))
    }

    /// Keeps a signed head.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn keep_head(&self, now: &Now, signed: SignedHead) -> Result<(), AuditError> {
        let mut state = self.lock();
        state.ends.retain(|end| *end != signed.head);
        state.heads.push(signed);
        let newest = state.heads.iter().map(|h| h.head.sequence).max();
        let ends: Vec<u64> = state.segments.iter().map(|(first, _)| first - 1).collect();
        state
            .heads
            .retain(|h| Some(h.head.sequence) == newest || ends.contains(&h.head.sequence));
        state.head_ms = now.monotonic_ms;
        let mut text = Vec::new();
        for head in &state.heads {
            // Our own plain type: this cannot fail, and an empty line would be noticed.
            text.extend(serde_json::to_vec(head).unwrap_or_default());
            text.push(b'\n');
        }
        self.dir
            .replace(HEADS, &text, 0o600)
            .map_err(AuditError::Write)
    }

    /// Signs and keeps every head that is due: `sign` makes an ECDSA signature in DER over the
    /// given bytes, with a key that signs nothing else. Nothing waits for it meanwhile.
    ///
    /// # Errors
    /// [`HeadError`]; the log itself is complete all the same.
    pub fn sign_heads<E>(
        &self,
        now: &Now,
        at_stop: bool,
        mut sign: impl FnMut(&[u8]) -> Result<Vec<u8>, E>,
    ) -> Result<(), HeadError<E>> {
        while let Some(head) = self.head_to_sign(now, at_stop)? {
            let signature = Bytes(sign(&head.signed_bytes()).map_err(HeadError::Sign)?);
            self.keep_head(now, SignedHead { head, signature })?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends what a failure left behind, before anything is appended.
    fn recover(&self, state: &mut State, now: &Now) -> Result<(), AuditError> {
        if state.full {
            self.reserve().map_err(|_| AuditError::Full)?;
            state.full = false;
            let entry = gap_entry("there is space again; refused changes were not recorded");
            self.append(state, now, entry, 1, true)?;
        }
        Ok(())
    }

    fn end_minutes(&self, state: &mut State, now: &Now, all: bool) {
        let over = |c: &Count| all || now.monotonic_ms - c.since_ms >= COUNT_MS;
        let ended = state.counts.extract_if(|_, count| over(count));
        let mut ended: Vec<(i64, u64, Entry)> = ended
            .filter_map(|(_, c)| c.last.map(|last| (c.since_ms, c.more, last)))
            .collect();
        ended.sort_by_key(|(since, ..)| *since);
        for (_, more, last) in ended {
            self.append_loosely(state, now, last, more);
        }
    }

    fn append_loosely(&self, state: &mut State, now: &Now, entry: Entry, count: u64) {
        let event = entry.event;
        if state.full {
            return;
        }
        if let Err(error) = self.append(state, now, entry, count, false) {
            log::error(format_args!(
                "audit record {} is lost: {error}",
                event.as_str()
            ));
            self.give_way(state, now, &error);
        }
    }

    /// Appends one record to the newest segment, or to a new one.
    fn append(
        &self,
        state: &mut State,
        now: &Now,
        entry: Entry,
        count: u64,
        durable: bool,
    ) -> Result<(), AuditError> {
        self.mend(state)?;
        self.adopt(state)?;
        let record = Record {
            sequence: state.sequence + 1,
            boot: self.boot.clone(),
            now: *now,
            count,
            entry,
            previous: state.last,
        };
        let mut line = record.line();
        let this = hash(line.as_bytes());
        line.push('\n');
        let length = line.len() as u64;
        let fits = |size: u64| size + length <= self.limits.segment;
        if !state.segments.back().is_some_and(|(_, size)| fits(*size)) {
            self.begin_segment(state, now)?;
        }
        let (first, size) = match state.segments.back() {
            Some(segment) => *segment,
            None => return Err(AuditError::Full),
        };
        let name = segment_name(first);
        let done = self.dir.append(&name, line.as_bytes(), durable);
        let done = match size {
            0 => done.and_then(|()| self.dir.sync()),
            _ => done,
        };
        if let Err(cause) = done {
            state.torn = true;
            return Err(match cause.is_full() {
                true => AuditError::Full,
                false => AuditError::Write(cause),
            });
        }
        if let Some((_, size)) = state.segments.back_mut() {
            *size += length;
        }
        state.sequence += 1;
        state.last = this;
        state.loose = !durable;
        Ok(())
    }

    /// After a failed append: cuts the newest segment to what is known to be in it, and never
    /// trusts that file for another record, since its fsync may have failed (R74).
    fn mend(&self, state: &mut State) -> Result<(), AuditError> {
        if !state.torn {
            return Ok(());
        }
        if let Some((first, size)) = state.segments.back().copied() {
            let name = segment_name(first);
            if size == 0 {
                self.dir.delete(&name).map_err(AuditError::Write)?;
                state.segments.pop_back();
            } else {
                self.dir.truncate(&name, size).map_err(AuditError::Write)?;
                state.segments.push_back((state.sequence + 1, 0));
            }
        }
        state.torn = false;
        Ok(())
    }

    /// Before the first record: writes the newest segment anew. If the process before this one saw
    /// an fsync fail, what is read may not be what the disk holds, and no later fsync of that file
    /// would say so (R74); a chain is not continued on that.
    fn adopt(&self, state: &mut State) -> Result<(), AuditError> {
        if !state.inherited {
            return Ok(());
        }
        if let Some((first, size)) = state.segments.back().copied() {
            let name = segment_name(first);
            let limit = usize::try_from(size).unwrap_or(usize::MAX);
            let text = self.dir.read(&name, limit).map_err(AuditError::Read)?;
            let renewed = self
                .dir
                .replace(&name, &text.unwrap_or_default(), 0o600)
                .and_then(|()| self.dir.forget_previous(&name));
            renewed.map_err(|cause| match cause.is_full() {
                true => AuditError::Full,
                false => AuditError::Write(cause),
            })?;
        }
        state.inherited = false;
        Ok(())
    }

    /// Begins a segment; drops the oldest when the quota is used and a signed head covers them.
    fn begin_segment(&self, state: &mut State, now: &Now) -> Result<(), AuditError> {
        let used: u64 = state.segments.iter().map(|(_, size)| size).sum();
        if used + self.limits.segment > self.limits.total {
            let Some((first, _)) = state.segments.get(1).copied() else {
                return Err(AuditError::Full);
            };
            let covered = state.heads.iter().any(|h| h.head.sequence == first - 1);
            if !covered {
                return Err(AuditError::Full);
            }
            if let Some((oldest, _)) = state.segments.pop_front() {
                self.dir
                    .delete(&segment_name(oldest))
                    .map_err(AuditError::Write)?;
            }
        }
        if state.sequence > 0 {
            self.make_durable(state)?;
            state.ends.push_back(Head {
                sequence: state.sequence,
                hash: hex(&state.last),
                time: rfc3339(now.wall),
            });
        }
        state.segments.push_back((state.sequence + 1, 0));
        Ok(())
    }

    fn make_durable(&self, state: &mut State) -> Result<(), AuditError> {
        if !state.loose {
            return Ok(());
        }
        if let Some((first, _)) = state.segments.back() {
            self.dir
                .append(&segment_name(*first), b"", true)
                .map_err(AuditError::Write)?;
        }
        state.loose = false;
        Ok(())
    }

    /// When full: gives up the reserve to say so, once (R38).
    fn give_way(&self, state: &mut State, now: &Now, error: &AuditError) {
        if state.full || !matches!(error, AuditError::Full) {
            return;
        }
        state.full = true;
        let _ = self.dir.delete(RESERVE);
        let mut entry = Entry::new(Event::AuditFull, Decision::Noted, "audit");
        entry.reason = "privileged changes are refused".to_owned();
        if let Err(error) = self.append(state, now, entry, 1, true) {
            log::error(format_args!(
                "cannot even record that the audit log is full: {error}"
            ));
        }
    }

    fn reserve(&self) -> Result<(), FileError> {
        if self.dir.list()?.contains(RESERVE) {
            return Ok(());
        }
        self.dir.replace(RESERVE, &vec![0x5a; RESERVE_SIZE], 0o600)
    }
}

fn gap_entry(reason: &str) -> Entry {
    let mut entry = Entry::new(Event::AuditGap, Decision::Noted, "audit");
    entry.reason = reason.to_owned();
    entry
}

fn segment_name(first: u64) -> String {
    format!("audit-{first:020}.log")
}

fn segment_first(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("audit-")?.strip_suffix(".log")?;
    (digits.len() == 20).then(|| digits.parse().ok())?
}

/// Finds where the log ended; what had to be done about its end, if anything.
fn resume(
    dir: &Dir,
    limits: Limits,
    state: &mut State,
) -> Result<Option<&'static str>, AuditError> {
    let names = dir.list().map_err(AuditError::Read)?;
    let limit = usize::try_from(limits.segment).unwrap_or(usize::MAX) + MAX_RECORD;
    let mut gap = None;
    for first in names.iter().filter_map(|n| segment_first(n)) {
        let name = segment_name(first);
        let text = dir.read(&name, limit).map_err(AuditError::Read)?;
        let mut text = text.unwrap_or_default();
        let whole = text.iter().rposition(|&b| b == b'\n').map_or(0, |n| n + 1);
        if whole < text.len() {
            dir.truncate(&name, whole as u64)
                .map_err(AuditError::Write)?;
            text.truncate(whole);
            gap = Some("a line without its end was removed");
        }
        if text.is_empty() {
            dir.delete(&name).map_err(AuditError::Write)?;
            continue;
        }
        if state.segments.is_empty() {
            state.sequence = first - 1;
        }
        if let Some(head) = boundary(&text, first)
            && !state.heads.iter().any(|h| h.head.sequence == head.sequence)
        {
            state.ends.push_back(head);
        }
        for line in text.split(|&b| b == b'\n').filter(|l| !l.is_empty()) {
            match Record::parse(line) {
                Some(record) => state.sequence = record.sequence,
                None => {
                    state.sequence += 1;
                    gap = Some("a damaged line was left for the verifier");
                }
            }
            state.last = hash(line);
        }
        state.segments.push_back((first, whole as u64));
    }
    Ok(gap)
}

/// The end of the segment before this one, as this one's first record names it.
fn boundary(text: &[u8], first: u64) -> Option<Head> {
    let line = text.split(|&b| b == b'\n').next()?;
    let record = Record::parse(line)?;
    (record.sequence == first && first > 1).then(|| Head {
        sequence: first - 1,
        hash: hex(&record.previous),
        time: rfc3339(record.now.wall),
    })
}

fn read_heads(dir: &Dir) -> Result<Vec<SignedHead>, AuditError> {
    let text = dir.read(HEADS, HEADS_LIMIT).map_err(AuditError::Read)?;
    let text = text.unwrap_or_default();
    let lines = text.split(|&b| b == b'\n').filter(|l| !l.is_empty());
    // A head that cannot be read covers nothing; the next one does.
    Ok(lines
        .filter_map(|l| serde_json::from_slice::<SignedHead>(l).ok())
        .filter(|h| unhex(&h.head.hash).is_some())
        .collect())
}

/// Verifies a log in a directory that is only looked at (R39).
///
/// # Errors
/// [`AuditError::Read`].
pub fn verify_dir(dir: &Dir, public_key: Option<&[u8]>) -> Result<Report, AuditError> {
    let heads = read_heads(dir)?;
    let mut text = Vec::new();
    for first in dir
        .list()
        .map_err(AuditError::Read)?
        .iter()
        .filter_map(|n| segment_first(n))
    {
        let limit = 2 * 1024 * 1024;
        let segment = dir.read(&segment_name(first), limit);
        text.extend(segment.map_err(AuditError::Read)?.unwrap_or_default());
    }
    let text = text.strip_suffix(b"\n").unwrap_or(&text);
    let lines = text.split(|&b| b == b'\n').filter(|_| !text.is_empty());
    Ok(verify(lines, &heads, public_key))
}

/// The kernel's name for this boot; empty when it does not say.
#[must_use]
pub fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Rules;
    use crate::testing::{Scratch, overwrite};
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
    use contract::audit::Fault;
    use contract::time::ClockTrust;

    fn at(ms: i64) -> Now {
        Now {
            monotonic_ms: ms,
            wall: 1_795_000_000,
            trust: ClockTrust::Network,
        }
    }

    fn dir(scratch: &Scratch) -> Dir {
        Dir::open(scratch.path(), Rules::private(scratch.uid())).unwrap()
    }

    fn open(scratch: &Scratch, limits: Limits) -> Audit {
        Audit::open(dir(scratch), "boot", limits, &at(0)).unwrap()
    }

    fn entry(object: &str) -> Entry {
        Entry {
            object: object.to_owned(),
            ..Entry::new(Event::KeyCreated, Decision::Allowed, "uid 1000")
        }
    }

    fn lines(scratch: &Scratch) -> Vec<Record> {
        let dir = dir(scratch);
        let mut records = Vec::new();
        for name in dir
            .list()
            .unwrap()
            .iter()
            .filter(|n| segment_first(n).is_some())
        {
            let text = dir.read(name, 4_000_000).unwrap().unwrap();
            for line in text.split(|&b| b == b'\n').filter(|l| !l.is_empty()) {
                records.extend(Record::parse(line));
            }
        }
        records
    }

    #[test]
    fn a_restart_continues_the_chain() {
        let scratch = Scratch::new();
        for n in 0..3 {
            let audit = open(&scratch, Limits::default());
            audit.record(&at(0), entry(&format!("k{n}"))).unwrap();
        }
        let report = verify_dir(&dir(&scratch), None).unwrap();
        assert_eq!((report.problem, report.records), (None, 3));
    }

    #[test]
    fn a142_a_torn_end_is_removed_and_said_and_a_damaged_line_is_left() {
        let scratch = Scratch::new();
        let audit = open(&scratch, Limits::default());
        for n in 0..3 {
            audit.record(&at(0), entry(&format!("k{n}"))).unwrap();
        }
        let path = scratch.path().join(segment_name(1));
        let whole = std::fs::read(&path).unwrap();
        for cut in 1..200 {
            overwrite(&path, &whole[..whole.len() - cut]);
            let audit = open(&scratch, Limits::default());
            audit.record(&at(0), entry("after")).unwrap();
            let report = verify_dir(&dir(&scratch), None).unwrap();
            assert_eq!((report.problem, report.records), (None, 4), "cut by {cut}");
            assert_eq!(lines(&scratch)[2].entry.event, Event::AuditGap);
        }
        let mut damaged = whole;
        damaged[2] ^= 1;
        overwrite(&path, &damaged);
        open(&scratch, Limits::default())
            .record(&at(0), entry("after"))
            .unwrap();
        let problem = verify_dir(&dir(&scratch), None).unwrap().problem.unwrap();
        assert_eq!((problem.line, problem.fault), (1, Fault::Malformed));
        assert_eq!(
            lines(&scratch).last().unwrap().sequence,
            5,
            "the log goes on"
        );
    }

    #[test]
    fn a143_a_flood_is_counted_with_its_first_and_last_in_full() {
        let scratch = Scratch::new();
        let audit = open(&scratch, Limits::default());
        let refused = |who: &str, object: &str| Entry {
            object: object.to_owned(),
            ..Entry::new(Event::KeyDenied, Decision::Refused, who)
        };
        for n in 0..1000 {
            audit.note(&at(n), refused("uid 1", &format!("k{n}")));
        }
        audit.note(&at(10), refused("uid 2", "once"));
        audit.settle(&at(59_999)).unwrap();
        assert_eq!(lines(&scratch).len(), 2);
        audit.settle(&at(60_000)).unwrap();
        let kept: Vec<_> = lines(&scratch)
            .iter()
            .map(|r| (r.entry.principal.clone(), r.entry.object.clone(), r.count))
            .collect();
        let row = |who: &str, object: &str, count| (who.to_owned(), object.to_owned(), count);
        assert_eq!(
            kept,
            [
                row("uid 1", "k0", 1),
                row("uid 2", "once", 1),
                row("uid 1", "k999", 999)
            ]
        );
        // More principals than are counted at a time: nothing grows, nothing is lost.
        for n in 0..COUNTED * 2 {
            audit.note(&at(70_000), refused(&format!("uid {n}"), "x"));
        }
        assert!(audit.lock().counts.len() <= COUNTED);
        audit.close(&at(70_000)).unwrap();
        assert_eq!(verify_dir(&dir(&scratch), None).unwrap().problem, None);
        assert_eq!(lines(&scratch).len(), 3 + COUNTED * 2);
    }

    #[test]
    fn oldest_segments_go_only_when_a_signed_head_covers_them() {
        let scratch = Scratch::new();
        let limits = Limits {
            segment: 2000,
            total: 8000,
        };
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let audit = open(&scratch, limits);
        let mut failed = None;
        for n in 0..100 {
            failed = audit.record(&at(0), entry(&format!("k{n}"))).err();
            if failed.is_some() {
                break;
            }
        }
        assert!(matches!(failed, Some(AuditError::Full)));
        let refusal = Refusal::from(failed.unwrap());
        assert_eq!(refusal.class.status(), 503);
        // Ends of segments are found again after a restart.
        drop(audit);
        let audit = open(&scratch, limits);
        let sign = |text: &[u8]| {
            let made = key
                .sign(&SystemRandom::new(), text)
                .map_err(|e| e.to_string())?;
            Ok::<_, String>(made.as_ref().to_vec())
        };
        audit.sign_heads(&at(0), true, sign).unwrap();
        assert!(audit.head_to_sign(&at(0), true).unwrap().is_none());
        for n in 0..8 {
            audit.record(&at(0), entry(&format!("later {n}"))).unwrap();
        }
        let report = verify_dir(&dir(&scratch), Some(key.public_key().as_ref())).unwrap();
        assert_eq!(report.problem, None);
        assert!(report.first > 1, "the oldest are gone");
        // Without that head the missing beginning shows.
        overwrite(&scratch.path().join(HEADS), b"");
        let problem = verify_dir(&dir(&scratch), None).unwrap().problem.unwrap();
        assert_eq!(problem.fault, Fault::Beginning);
    }
}
