//! Twins: merge patch, versions and limits of one section (reference/cloud.md 2.5 and 6).
//!
//! A twin has sections: tags, desired, reported. Each is a [`Section`]: properties, a version that
//! grows by one for every accepted change, and the times of last change. Everything here takes the
//! old section and gives the new one, or refuses; nothing is changed in place, so a refused change
//! leaves no trace. Storing and sending are the hub's affair, applying is the agent's.

use serde_json::{Map, Value};

/// An object's members.
pub type Members = Map<String, Value>;

/// What one section may be at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes as compact JSON, without metadata.
    pub size: usize,
    /// Levels of nesting.
    pub depth: usize,
    /// Bytes of a member name.
    pub key: usize,
    /// Bytes of a string.
    pub string: usize,
}

impl Limits {
    /// Desired and reported properties.
    pub const PROPERTIES: Self = Self {
        size: 32 << 10,
        depth: 10,
        key: 1024,
        string: 4096,
    };
    /// Tags.
    pub const TAGS: Self = Self {
        size: 8 << 10,
        ..Self::PROPERTIES
    };
}

/// The largest integer that every client keeps exactly.
pub const MAX_INTEGER: i64 = 4_503_599_627_370_495;

/// Why a change is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TwinError {
    /// The document is not an object.
    #[error("a twin section must be a JSON object")]
    NotAnObject,
    /// Too many levels.
    #[error("nested deeper than {0} levels")]
    TooDeep(usize),
    /// The section would become too large.
    #[error("section of {size} bytes is larger than {limit}")]
    TooLarge {
        /// What it would be.
        size: usize,
        /// What is allowed.
        limit: usize,
    },
    /// A member name is not allowed.
    #[error("a member name is empty, too long, or has '.', '$', a blank or a control character")]
    Key,
    /// A string is too long.
    #[error("a string is longer than {0} bytes")]
    TooLongString(usize),
    /// An integer that some clients cannot hold.
    #[error("an integer is beyond +-{MAX_INTEGER}")]
    Integer,
    /// The version cannot grow any more.
    #[error("version overflow")]
    Version,
}

/// One section of a twin at one version.
#[derive(Debug, Clone, PartialEq)]
pub struct Section {
    /// The properties, without `$version` and `$metadata`.
    pub properties: Members,
    /// Starts at 1, grows by 1.
    pub version: i64,
    /// `$lastUpdated` and `$lastUpdatedVersion` of the section and of each member, down to leaves.
    pub metadata: Members,
}

impl Section {
    /// An empty section at version 1.
    #[must_use]
    pub fn new(at: &str) -> Self {
        Self {
            properties: Members::new(),
            version: 1,
            metadata: mark(at, 1),
        }
    }

    /// The section after a merge patch: objects merge, `null` deletes, the rest replaces.
    ///
    /// # Errors
    /// When the patch or the result breaks a limit.
    pub fn patch(&self, patch: &Value, limits: &Limits, at: &str) -> Result<Change, TwinError> {
        let patch = checked(patch, limits)?;
        let version = self.version.checked_add(1).ok_or(TwinError::Version)?;
        let mut properties = self.properties.clone();
        merge(&mut properties, &patch);
        fits(&properties, limits)?;
        let mut metadata = self.metadata.clone();
        stamp(&mut metadata, &patch, at, version);
        Ok(Change {
            section: Self {
                properties,
                version,
                metadata,
            },
            notice: patch,
        })
    }

    /// The section with other content.
    ///
    /// The notice has a `null` for each member that vanished, so that a client that merges ends
    /// with the same content.
    ///
    /// # Errors
    /// When the content breaks a limit.
    pub fn replace(&self, content: &Value, limits: &Limits, at: &str) -> Result<Change, TwinError> {
        let content = checked(content, limits)?;
        let version = self.version.checked_add(1).ok_or(TwinError::Version)?;
        let mut properties = Members::new();
        merge(&mut properties, &content);
        fits(&properties, limits)?;
        let notice = difference(&self.properties, &properties);
        let mut metadata = Members::new();
        stamp(&mut metadata, &properties, at, version);
        Ok(Change {
            section: Self {
                properties,
                version,
                metadata,
            },
            notice,
        })
    }

    /// Whether other content would change anything: deployments do not raise a version in vain.
    #[must_use]
    pub fn holds(&self, content: &Members) -> bool {
        let mut plain = Members::new();
        merge(&mut plain, content);
        self.properties == plain
    }

    /// The form sent to devices and modules.
    #[must_use]
    pub fn for_device(&self) -> Value {
        with_version(self.properties.clone(), self.version)
    }

    /// The form shown to operators.
    #[must_use]
    pub fn for_service(&self) -> Value {
        let mut members = self.properties.clone();
        members.insert("$metadata".into(), Value::Object(self.metadata.clone()));
        with_version(members, self.version)
    }
}

/// An accepted change.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// What is to be stored.
    pub section: Section,
    /// The merge patch that leads there, without version.
    pub notice: Members,
}

impl Change {
    /// The notification for a subscriber: the patch and the version it leads to.
    #[must_use]
    pub fn notification(&self) -> Value {
        with_version(self.notice.clone(), self.section.version)
    }
}

/// Applies a merge patch (RFC 7396). Its nulls delete; they are never stored.
pub fn merge(target: &mut Members, patch: &Members) {
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.remove(key);
            }
            Value::Object(patch) => {
                let mut inner = match target.remove(key) {
                    Some(Value::Object(inner)) => inner,
                    _ => Members::new(),
                };
                merge(&mut inner, patch);
                target.insert(key.clone(), Value::Object(inner));
            }
            _ => {
                target.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Takes a document as a section's content or patch: without `$version` and `$metadata`, which
/// clients may send back as they got them, and within the limits for names and values.
///
/// # Errors
/// The first limit that is broken.
pub fn checked(document: &Value, limits: &Limits) -> Result<Members, TwinError> {
    let Value::Object(members) = document else {
        return Err(TwinError::NotAnObject);
    };
    let mut members = members.clone();
    members.remove("$version");
    members.remove("$metadata");
    object(&members, limits, 1)?;
    Ok(members)
}

fn object(members: &Members, limits: &Limits, level: usize) -> Result<(), TwinError> {
    for (key, value) in members {
        let bad = |c: char| matches!(c, '.' | '$' | ' ') || c.is_control();
        if key.is_empty() || key.len() > limits.key || key.contains(bad) {
            return Err(TwinError::Key);
        }
        value_fits(value, limits, level)?;
    }
    Ok(())
}

fn value_fits(value: &Value, limits: &Limits, level: usize) -> Result<(), TwinError> {
    if level > limits.depth {
        return Err(TwinError::TooDeep(limits.depth));
    }
    match value {
        Value::Object(members) => object(members, limits, level + 1),
        Value::Array(items) => items
            .iter()
            .try_for_each(|v| value_fits(v, limits, level + 1)),
        Value::String(text) if text.len() > limits.string => {
            Err(TwinError::TooLongString(limits.string))
        }
        Value::Number(number) if !number.is_f64() => match number.as_i64() {
            Some(n) if (-MAX_INTEGER..=MAX_INTEGER).contains(&n) => Ok(()),
            _ => Err(TwinError::Integer),
        },
        _ => Ok(()),
    }
}

fn fits(properties: &Members, limits: &Limits) -> Result<(), TwinError> {
    // Compact JSON, as it would be stored; serialising a map of values cannot fail.
    let size = serde_json::to_string(properties).map_or(usize::MAX, |text| text.len());
    if size > limits.size {
        return Err(TwinError::TooLarge {
            size,
            limit: limits.size,
        });
    }
    object(properties, limits, 1)
}

fn difference(old: &Members, new: &Members) -> Members {
    let mut patch: Members = old
        .keys()
        .filter(|k| !new.contains_key(*k))
        .map(|k| (k.clone(), Value::Null))
        .collect();
    for (key, value) in new {
        let value = match (old.get(key), value) {
            (Some(Value::Object(old)), Value::Object(new)) => Value::Object(difference(old, new)),
            _ => value.clone(),
        };
        patch.insert(key.clone(), value);
    }
    patch
}

fn mark(at: &str, version: i64) -> Members {
    let mut members = Members::new();
    members.insert("$lastUpdated".into(), at.into());
    members.insert("$lastUpdatedVersion".into(), version.into());
    members
}

fn stamp(metadata: &mut Members, patch: &Members, at: &str, version: i64) {
    metadata.extend(mark(at, version));
    for (key, value) in patch {
        match value {
            Value::Null => {
                metadata.remove(key);
            }
            Value::Object(patch) => {
                let mut inner = match metadata.remove(key) {
                    Some(Value::Object(inner)) => inner,
                    _ => Members::new(),
                };
                stamp(&mut inner, patch, at, version);
                metadata.insert(key.clone(), Value::Object(inner));
            }
            _ => {
                metadata.insert(key.clone(), Value::Object(mark(at, version)));
            }
        }
    }
}

fn with_version(mut members: Members, version: i64) -> Value {
    members.insert("$version".into(), version.into());
    Value::Object(members)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LIMITS: Limits = Limits::PROPERTIES;

    fn section(content: &Value) -> Section {
        Section::new("t0")
            .replace(content, &LIMITS, "t1")
            .unwrap()
            .section
    }

    #[test]
    fn a_patch_merges_objects_deletes_nulls_and_replaces_the_rest() {
        for (old, patch, new) in [
            (json!({}), json!({"a": 1}), json!({"a": 1})),
            (json!({"a": 1}), json!({"a": null}), json!({})),
            (json!({"a": 1}), json!({"b": null}), json!({"a": 1})),
            (
                json!({"a": {"b": 1, "c": 2}}),
                json!({"a": {"b": null}}),
                json!({"a": {"c": 2}}),
            ),
            (
                json!({"a": {"b": 1}}),
                json!({"a": {"b": null}}),
                json!({"a": {}}),
            ),
            (json!({"a": {"b": 1}}), json!({"a": 2}), json!({"a": 2})),
            (
                json!({"a": 2}),
                json!({"a": {"b": 1, "n": null}}),
                json!({"a": {"b": 1}}),
            ),
            (json!({"a": [1, 2]}), json!({"a": [3]}), json!({"a": [3]})),
            (json!({"a": 1}), json!({}), json!({"a": 1})),
            (
                json!({"a": 1}),
                json!({"$version": 9, "$metadata": {"x": 1}}),
                json!({"a": 1}),
            ),
        ] {
            let change = section(&old).patch(&patch, &LIMITS, "t2").unwrap();
            assert_eq!(
                Value::Object(change.section.properties),
                new,
                "{old} + {patch}"
            );
            assert_eq!(change.section.version, 3, "also without any change");
        }
    }

    #[test]
    fn a_replacement_is_told_as_a_patch_that_leads_to_the_same() {
        for (old, new) in [
            (
                json!({"a": 1, "b": {"c": 1, "d": 2}}),
                json!({"b": {"d": 3}, "e": []}),
            ),
            (json!({"a": {"b": 1}}), json!({"a": {}})),
            (json!({"a": {"b": 1}}), json!({"a": 5})),
            (json!({"a": [1]}), json!({"a": {"b": {"c": 1}}})),
            (json!({"a": 1}), json!({})),
        ] {
            let before = section(&old);
            let change = before.replace(&new, &LIMITS, "t2").unwrap();
            let mut client = before.properties.clone();
            merge(&mut client, &change.notice);
            assert_eq!(client, change.section.properties, "{old} -> {new}");
            assert_eq!(Value::Object(client), new);
        }
    }

    #[test]
    fn versions_are_shown_and_told() {
        let change = section(&json!({"a": 1}))
            .patch(&json!({"b": 2}), &LIMITS, "t2")
            .unwrap();
        assert_eq!(change.notification(), json!({"b": 2, "$version": 3}));
        assert_eq!(
            change.section.for_device(),
            json!({"a": 1, "b": 2, "$version": 3})
        );
        assert_eq!(
            change.section.for_service(),
            json!({"a": 1, "b": 2, "$version": 3, "$metadata": {
                "$lastUpdated": "t2", "$lastUpdatedVersion": 3,
                "a": {"$lastUpdated": "t1", "$lastUpdatedVersion": 2},
                "b": {"$lastUpdated": "t2", "$lastUpdatedVersion": 3}}})
        );
        let last = Section {
            version: i64::MAX,
            ..Section::new("t")
        };
        assert_eq!(
            last.patch(&json!({}), &LIMITS, "t"),
            Err(TwinError::Version)
        );
    }

    #[test]
    fn equal_content_is_recognised() {
        let now = section(&json!({"a": {"b": 1}}));
        assert!(now.holds(json!({"a": {"b": 1, "c": null}}).as_object().unwrap()));
        assert!(!now.holds(json!({"a": {}}).as_object().unwrap()));
    }

    #[test]
    fn limits_hold_at_the_limit_and_one_beyond() {
        let nested = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!({ "a": inner }));
        let sized = |bytes: usize| {
            // {"0":"..", ...} of strings below their own limit, filled up to the byte.
            let mut members = Members::new();
            for n in 0..9 {
                members.insert(format!("{n}"), "x".repeat(3600).into());
            }
            let base = serde_json::to_string(&members).unwrap().len();
            members.insert("8".into(), "x".repeat(3600 + bytes - base).into());
            Value::Object(members)
        };
        for (document, expected) in [
            (nested(10), Ok(())),
            (nested(11), Err(TwinError::TooDeep(10))),
            (sized(32 << 10), Ok(())),
            (
                sized((32 << 10) + 1),
                Err(TwinError::TooLarge {
                    size: 32769,
                    limit: 32768,
                }),
            ),
            (json!({"k".repeat(1024): 1}), Ok(())),
            (json!({"k".repeat(1025): 1}), Err(TwinError::Key)),
            (json!({"a": "x".repeat(4096)}), Ok(())),
            (
                json!({"a": ["x".repeat(4097)]}),
                Err(TwinError::TooLongString(4096)),
            ),
            (
                json!({"a": MAX_INTEGER, "b": -MAX_INTEGER, "c": 1e300}),
                Ok(()),
            ),
            (json!({"a": MAX_INTEGER + 1}), Err(TwinError::Integer)),
            (json!({"a": [u64::MAX]}), Err(TwinError::Integer)),
            (json!([1]), Err(TwinError::NotAnObject)),
            (json!({"a": {"$version": 1}}), Err(TwinError::Key)),
            (json!({"": 1}), Err(TwinError::Key)),
            (json!({"a.b": 1}), Err(TwinError::Key)),
            (json!({"a b": 1}), Err(TwinError::Key)),
            (json!({"a\u{7f}": 1}), Err(TwinError::Key)),
        ] {
            let mut shown = document.to_string();
            shown.truncate(60);
            let got = Section::new("t").patch(&document, &LIMITS, "t").map(|_| ());
            assert_eq!(got, expected, "{shown}");
        }
    }

    #[test]
    fn a_patch_within_limits_may_not_grow_the_section_beyond_them() {
        let mut now = Section::new("t");
        for n in 0..7 {
            let patch = json!({ n.to_string(): "x".repeat(4096) });
            now = now.patch(&patch, &LIMITS, "t").unwrap().section;
        }
        let patch = json!({"last": "x".repeat(4096)});
        assert!(matches!(
            now.patch(&patch, &LIMITS, "t"),
            Err(TwinError::TooLarge { .. })
        ));
    }
}
