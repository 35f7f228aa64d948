//! The strict JSON scanner before every parser (A32).
//!
//! Differential against serde_json with a walk of its own that refuses duplicate members: what the
//! scanner accepts, the walk accepts; what the walk accepts, the scanner refuses only for its own
//! limits; and a duplicate that one of them names is not accepted by the other.
#![no_main]

use std::collections::BTreeSet;
use std::fmt;

use contract::json::{JsonError, Limits, check};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let limits = Limits::document(4096);
    let walk = serde_json::from_slice::<Single>(data).map_err(|error| error.to_string());
    match (check(data, limits), walk) {
        (Ok(()), walk) => assert_eq!(walk.err(), None),
        (Err(JsonError::Duplicate { .. }), walk) => assert!(walk.is_err()),
        (Err(JsonError::Syntax { what, .. }), Ok(_)) => assert_eq!(what, "number out of range"),
        _ => {}
    }
});

/// Any document in which no object names a member twice.
struct Single;

impl<'de> Deserialize<'de> for Single {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Single {
    type Value = Self;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a document")
    }
    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(Self)
    }
    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(Self)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(Self)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(Self)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(Self)
    }
    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(Self)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self, A::Error> {
        while seq.next_element::<Self>()?.is_some() {}
        Ok(Self)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        let mut names = BTreeSet::new();
        while let Some((name, _)) = map.next_entry::<String, Self>()? {
            if !names.insert(name) {
                return Err(A::Error::custom("a member twice"));
            }
        }
        Ok(Self)
    }
}
