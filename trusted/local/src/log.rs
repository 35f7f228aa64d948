//! Log lines in the compatible form, on standard error (identity-service.md 1.1).
//!
//! `<6>2026-11-24T23:21:58.123Z [INFO] - text`: syslog priority, time, level, text. One event is
//! one line: whatever could begin another or move a terminal's cursor is written as an escape
//! (A36). Secrets have no `Display`, so they cannot be passed here. A line that cannot be written
//! is lost; logging never fails its caller. What must not be lost goes to [`crate::audit`].

use std::fmt::{self, Display, Write as _};
use std::io::Write as _;
use std::sync::atomic::{AtomicU8, Ordering};

use contract::time::rfc3339_ms;

/// How important, and so how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Something failed and somebody must look.
    Error = 0,
    /// Something is odd.
    Warn = 1,
    /// What happens.
    Info = 2,
    /// Why it happens.
    Debug = 3,
    /// Each step.
    Trace = 4,
}

impl Level {
    const ALL: [(Self, &'static str, &'static str, u8); 5] = [
        (Self::Error, "error", "ERR!", 3),
        (Self::Warn, "warn", "WARN", 4),
        (Self::Info, "info", "INFO", 6),
        (Self::Debug, "debug", "DBUG", 7),
        (Self::Trace, "trace", "TRCE", 7),
    ];

    /// Reads the word of a configuration or command line.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        let found = Self::ALL.iter().find(|(_, name, _, _)| *name == word);
        found.map(|(level, ..)| *level)
    }
}

static LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8);

/// Lines up to this level are written from now on; `info` until it is called.
pub fn set_level(level: Level) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

/// Whether lines of this level are written: asked before costly text is made.
#[must_use]
pub fn is_on(level: Level) -> bool {
    level as u8 <= LEVEL.load(Ordering::Relaxed)
}

/// Something failed and somebody must look: `log::error(format_args!("cannot start: {e}"))`.
pub fn error(text: impl Display) {
    write(Level::Error, &text);
}

/// Something is odd.
pub fn warn(text: impl Display) {
    write(Level::Warn, &text);
}

/// What happens.
pub fn info(text: impl Display) {
    write(Level::Info, &text);
}

/// Why it happens.
pub fn debug(text: impl Display) {
    write(Level::Debug, &text);
}

/// Each step.
pub fn trace(text: impl Display) {
    write(Level::Trace, &text);
}

/// An error and its causes, one line each, as the compatible daemons write them.
pub fn failure(level: Level, error: &dyn std::error::Error) {
    let mut next = Some(error);
    while let Some(cause) = next {
        write(level, &format_args!("!!! {cause}"));
        next = cause.source();
    }
}

fn write(level: Level, text: &dyn Display) {
    if !is_on(level) {
        return;
    }
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let millis = now.tv_sec.saturating_mul(1000) + now.tv_nsec / 1_000_000;
    let line = line(level, millis, text);
    // One write, so that lines of several threads do not mix; see above for why errors are lost.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Longest text of a line; the rest is cut off.
const MAX_TEXT: usize = 8 * 1024;

fn line(level: Level, millis: i64, text: &dyn Display) -> String {
    let (_, _, tag, priority) = Level::ALL[level as usize];
    let mut out = format!("<{priority}>{} [{tag}] - ", rfc3339_ms(millis));
    let start = out.len();
    // An error here is our own: the text is full.
    let _ = write!(Escaping(&mut out, start + MAX_TEXT), "{text}");
    out.push('\n');
    out
}

/// Text for a terminal or a log: what would begin a line, move the cursor or turn the direction
/// of writing is shown as an escape instead (A36, A145).
pub struct Escaped<'a>(pub &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::with_capacity(self.0.len());
        Escaping(&mut out, usize::MAX).write_str(self.0)?;
        f.write_str(&out)
    }
}

struct Escaping<'a>(&'a mut String, usize);

impl fmt::Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if self.0.len() >= self.1 {
                return Err(fmt::Error);
            }
            if is_plain(c) {
                self.0.push(c);
            } else {
                self.0.extend(c.escape_unicode());
            }
        }
        Ok(())
    }
}

fn is_plain(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_compatible_form() {
        for (level, want) in [
            (Level::Error, "<3>2026-11-24T23:21:58.007Z [ERR!] - a b\n"),
            (Level::Warn, "<4>2026-11-24T23:21:58.007Z [WARN] - a b\n"),
            (Level::Info, "<6>2026-11-24T23:21:58.007Z [INFO] - a b\n"),
            (Level::Debug, "<7>2026-11-24T23:21:58.007Z [DBUG] - a b\n"),
            (Level::Trace, "<7>2026-11-24T23:21:58.007Z [TRCE] - a b\n"),
        ] {
            assert_eq!(line(level, 1_795_562_518_007, &"a b"), want);
        }
    }

    #[test]
    fn a36_nothing_in_a_text_begins_another_line_or_reaches_the_terminal() {
        let nasty = "a\r\n<3>forged\u{1b}[2J\u{9b}1m\u{202e}\0\u{7f}\u{2028}é";
        let line = line(Level::Info, 0, &nasty);
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.ends_with("é\n"));
        assert!(line.trim_end().chars().all(is_plain), "{line:?}");
        assert!(line.contains("\\u{a}<3>forged\\u{1b}[2J"));
    }

    #[test]
    fn a_line_is_bounded() {
        let long = line(Level::Info, 0, &"\n".repeat(100_000));
        assert!(long.len() < MAX_TEXT + 64);
        assert_eq!(long.matches('\n').count(), 1);
    }

    #[test]
    fn levels_are_ordered_and_named() {
        assert_eq!(Level::parse("debug"), Some(Level::Debug));
        assert_eq!(Level::parse("DEBUG"), None);
        assert!(is_on(Level::Error));
    }
}
