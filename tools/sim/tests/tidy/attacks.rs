//! The attacks each release must prove itself against, and the tests that do.
//!
//! A test that proves an attack begins with its number: `a26_two_lengths_are_refused`. The numbers
//! are never reused, so a list of them can be kept here without their words.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use sim::tidy;

use super::none;

/// Attacks that have at least one test. A release adds to this list and never takes away.
const REQUIRED: [RangeInclusive<u16>; 12] = [
    1..=7,
    9..=10,
    12..=12,
    14..=14,
    16..=18,
    26..=37,
    38..=42,
    47..=47,
    63..=65,
    131..=135,
    139..=141,
    144..=145,
];
/// The highest number there is.
const LAST: u16 = 145;

#[test]
fn each_required_attack_has_a_test() {
    let tests = by_number();
    let missing = REQUIRED
        .into_iter()
        .flatten()
        .filter(|number| !tests.contains_key(number))
        .map(|number| format!("A{number}"))
        .collect::<Vec<_>>();
    none("no test begins with these numbers", &missing);
}

#[test]
fn attack_numbers_are_written_one_way() {
    let mut findings = Vec::new();
    for source in tidy::sources().unwrap() {
        for name in tidy::tests(&source) {
            for digits in numbers(&name) {
                let number: u16 = digits.parse().unwrap_or(0);
                let long = digits.len() == 2 || digits.len() == 3 && !digits.starts_with('0');
                if !long || number == 0 || number > LAST {
                    findings.push(format!("{}: {name}", source.path));
                }
            }
        }
    }
    none(
        "a, two or three digits, underscore; numbers that exist",
        &findings,
    );
}

/// Names of the tests by the numbers they begin with.
fn by_number() -> BTreeMap<u16, Vec<String>> {
    let mut tests: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for source in tidy::sources().unwrap() {
        for name in tidy::tests(&source) {
            for number in numbers(&name).filter_map(|digits| digits.parse().ok()) {
                tests.entry(number).or_default().push(name.clone());
            }
        }
    }
    tests
}

/// The digits of `a26_...`, and of each number that follows at once: `a131_a132_...`.
fn numbers(name: &str) -> impl Iterator<Item = &str> {
    name.split('_').map_while(|word| {
        let digits = word.strip_prefix('a')?;
        (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then_some(digits)
    })
}
