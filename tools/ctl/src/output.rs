//! How results are shown: text for people, one JSON object per line for programs.

use std::io::Write as _;

use clap::ValueEnum;
use serde_json::Value;

/// The form of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Lines for people.
    Text,
    /// JSON.
    Json,
}

/// Exit codes: what a script may rely on. 2, wrong usage, is clap's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Fine.
    Fine = 0,
    /// A problem was found.
    Problem = 1,
    /// A daemon cannot be reached.
    Unreachable = 3,
    /// The caller may not do this.
    NotPermitted = 4,
}

impl Exit {
    /// The exit for a call that failed.
    #[must_use]
    pub fn of(error: &local::client::CallError) -> Self {
        use local::client::CallError;
        match error {
            CallError::Connect { cause, .. }
                if cause.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                Self::NotPermitted
            }
            CallError::Connect { .. } | CallError::Broken { .. } => Self::Unreachable,
            CallError::Refused {
                status: 401 | 403, ..
            } => Self::NotPermitted,
            _ => Self::Problem,
        }
    }
}

/// Prints a line; what a device or a hub wrote is shown with its control characters escaped (A145).
pub fn line(text: &str) {
    let safe: String = text
        .chars()
        .flat_map(|c| {
            let shown: Box<dyn Iterator<Item = char>> = if c.is_control() {
                Box::new(c.escape_default())
            } else {
                Box::new(std::iter::once(c))
            };
            shown
        })
        .collect();
    // Nobody reading is no reason to fail.
    let _ = writeln!(std::io::stdout(), "{safe}");
}

/// Prints a JSON object.
pub fn json(value: &Value) {
    let _ = writeln!(std::io::stdout(), "{value}");
}

/// An error with its causes, for people.
pub fn complain(error: &dyn std::error::Error) {
    let mut text = format!("holdfast: {error}");
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!("\n\tcaused by: {cause}"));
        next = cause.source();
    }
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a145_terminal_escapes_are_shown_not_sent() {
        let shown: String = "a\u{1b}[2Jb\n"
            .chars()
            .flat_map(char::escape_default)
            .collect();
        assert!(!shown.contains('\u{1b}'));
        assert_eq!(
            Exit::of(&local::client::CallError::Refused {
                status: 403,
                message: String::new(),
            }),
            Exit::NotPermitted
        );
    }
}
