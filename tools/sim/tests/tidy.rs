//! What we claim about our own sources, as tests: imports, unsafe folders, ceilings, documents.
//!
//! Each invariant of ARCHITECTURE.md names its test here or elsewhere. A rule that fails says which
//! file and line, and what to do instead.

#![expect(clippy::unwrap_used, reason = "a test may fail on what it cannot read")]

#[path = "tidy/attacks.rs"]
mod attacks;
#[path = "tidy/documents.rs"]
mod documents;
#[path = "tidy/imports.rs"]
mod imports;
#[path = "tidy/text.rs"]
mod text;

/// Fails with every finding at once, not with the first.
#[track_caller]
fn none(rule: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{rule}\n  {}", findings.join("\n  "));
}
