//! The desired properties as this client knows them (reference/cloud.md 2.5, A127).
//!
//! The hub sends one patch per version. A patch that follows what we know is merged; anything
//! else means that one was missed, and the twin has to be read again. The user is shown whole
//! documents only, each version once. Pure: reading the twin is the session's business.

use contract::json;
use contract::twin::{Members, merge};
use serde_json::Value;

/// The largest document kept; a twin larger than one packet could not have been read either.
const MAX_DOCUMENT: usize = 256 * 1024;

/// Desired properties, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The properties, without version and metadata.
    pub properties: Members,
    /// Their version.
    pub version: i64,
}

/// Both halves of a twin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Twin {
    /// What the operator wants.
    pub desired: Desired,
    /// What we reported last.
    pub reported: Desired,
}

/// Reads the answer to a request for the twin. `None`: it is not one.
pub fn parse(body: &[u8]) -> Option<Twin> {
    let Value::Object(mut twin) = document(body)? else {
        return None;
    };
    let mut half = |name| match twin.remove(name) {
        Some(Value::Object(members)) => section(members),
        _ => None,
    };
    Some(Twin {
        desired: half("desired")?,
        reported: half("reported")?,
    })
}

/// Reads the body of a change to desired properties: a patch. `None`: it is not one.
pub fn parse_patch(body: &[u8]) -> Option<Members> {
    let Value::Object(mut patch) = document(body)? else {
        return None;
    };
    patch.remove("$version");
    patch.remove("$metadata");
    Some(patch)
}

fn document(body: &[u8]) -> Option<Value> {
    json::check(body, json::Limits::document(2 * MAX_DOCUMENT)).ok()?;
    serde_json::from_slice(body).ok()
}

fn section(mut members: Members) -> Option<Desired> {
    let version = members.remove("$version")?.as_i64().filter(|v| *v >= 0)?;
    members.remove("$metadata");
    Some(Desired {
        properties: members,
        version,
    })
}

/// Follows the desired properties.
#[derive(Debug)]
pub struct Tracker {
    known: Option<Desired>,
    stale: bool,
    changed: bool,
}

impl Default for Tracker {
    fn default() -> Self {
        Self {
            known: None,
            stale: true,
            changed: false,
        }
    }
}

impl Tracker {
    /// Whether the twin has to be read.
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    /// Something may have been missed: a connection ended, or a notification made no sense.
    pub fn missed(&mut self) {
        self.stale = true;
    }

    /// A change was notified.
    pub fn notice(&mut self, version: i64, patch: &Members) {
        let Some(known) = &mut self.known else {
            self.stale = true;
            return;
        };
        if version <= known.version {
            return; // Sent twice, or older than what was read.
        }
        if version != known.version + 1 {
            self.stale = true;
            return;
        }
        merge(&mut known.properties, patch);
        known.version = version;
        let size = serde_json::to_string(&known.properties).map_or(usize::MAX, |text| text.len());
        if size > MAX_DOCUMENT {
            self.known = None;
            self.stale = true;
            return;
        }
        self.changed = true;
    }

    /// The twin was read. The hub is believed even when the version went back: then the identity
    /// was created anew.
    pub fn read(&mut self, desired: Desired) {
        self.stale = false;
        if self.known.as_ref() != Some(&desired) {
            self.known = Some(desired);
            self.changed = true;
        }
    }

    /// The whole document, once for each change, and never while something is missing.
    pub fn take(&mut self) -> Option<Desired> {
        if self.stale || !self.changed {
            return None;
        }
        self.changed = false;
        self.known.clone()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn members(value: Value) -> Members {
        let Value::Object(members) = value else {
            panic!("{value}")
        };
        members
    }

    fn desired(version: i64, value: Value) -> Desired {
        Desired {
            properties: members(value),
            version,
        }
    }

    #[test]
    fn a_patch_that_follows_is_merged_and_shown_once() {
        let mut tracker = Tracker::default();
        assert!(tracker.is_stale() && tracker.take().is_none());
        tracker.read(desired(4, json!({"a": 1, "b": {"c": 2}})));
        assert_eq!(
            tracker.take(),
            Some(desired(4, json!({"a": 1, "b": {"c": 2}})))
        );
        assert_eq!(tracker.take(), None);
        tracker.notice(5, &members(json!({"a": null, "b": {"d": 3}})));
        tracker.notice(6, &members(json!({"e": 4})));
        assert_eq!(
            tracker.take(),
            Some(desired(6, json!({"b": {"c": 2, "d": 3}, "e": 4})))
        );
    }

    #[test]
    fn a127_a_gap_or_an_old_version_never_changes_what_is_known() {
        let mut tracker = Tracker::default();
        tracker.read(desired(4, json!({"a": 1})));
        tracker.take();
        for old in [4, 3, 0, -7] {
            tracker.notice(old, &members(json!({"a": 9})));
            assert!(!tracker.is_stale() && tracker.take().is_none(), "{old}");
        }
        for gap in [6, 7, i64::MAX] {
            tracker.notice(gap, &members(json!({"a": 9})));
            assert!(tracker.is_stale() && tracker.take().is_none(), "{gap}");
        }
        tracker.read(desired(7, json!({"a": 2})));
        assert_eq!(tracker.take(), Some(desired(7, json!({"a": 2}))));
        tracker.missed();
        tracker.read(desired(7, json!({"a": 2})));
        assert_eq!(tracker.take(), None, "read again, and nothing new");
        tracker.read(desired(1, json!({})));
        assert_eq!(tracker.take(), Some(desired(1, json!({}))), "created anew");
    }

    #[test]
    fn a127_patches_cannot_grow_a_document_without_end() {
        let mut tracker = Tracker::default();
        tracker.read(desired(0, json!({})));
        for version in 1..10 {
            let patch = json!({ format!("m{version}"): "x".repeat(100_000) });
            tracker.notice(version, &members(patch));
        }
        assert!(tracker.is_stale() && tracker.known.is_none());
        let mut storm = Members::new();
        storm.extend((0..10_000).map(|n| (format!("m{n}"), Value::Null)));
        tracker.read(desired(1, json!({"m5": 1, "x": 1})));
        tracker.notice(2, &storm);
        assert_eq!(tracker.take(), Some(desired(2, json!({"x": 1}))));
    }

    #[test]
    fn twins_and_patches_are_read_strictly() {
        let twin =
            parse(br#"{"desired":{"a":1,"$version":3,"$metadata":{}},"reported":{"$version":1}}"#);
        assert_eq!(twin.unwrap().desired, desired(3, json!({"a": 1})));
        for bad in [
            &b""[..],
            b"[]",
            b"{}",
            br#"{"desired":{"$version":1}}"#,
            br#"{"desired":{},"reported":{"$version":1}}"#,
            br#"{"desired":{"$version":"1"},"reported":{"$version":1}}"#,
            br#"{"desired":{"$version":-1},"reported":{"$version":1}}"#,
            br#"{"desired":{"a":1,"a":2,"$version":1},"reported":{"$version":1}}"#,
        ] {
            assert_eq!(parse(bad), None, "{}", String::from_utf8_lossy(bad));
        }
        assert_eq!(
            parse_patch(br#"{"a":null,"$version":3}"#),
            Some(members(json!({"a": null})))
        );
        for bad in [&b"null"[..], b"[1]", b"{", b"{\"a\":1,\"a\":2}"] {
            assert_eq!(parse_patch(bad), None);
        }
    }
}
