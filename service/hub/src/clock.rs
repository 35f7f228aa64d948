//! The service's wall clock, and times as documents write them.
//!
//! The hub trusts the clock of its machine; everything that decides takes the time as a value.

use std::time::{SystemTime, UNIX_EPOCH};

/// Unix seconds now.
#[must_use]
pub(crate) fn now() -> i64 {
    i64::try_from(millis() / 1000).unwrap_or(i64::MAX)
}

/// Now, as documents write it.
#[must_use]
pub(crate) fn stamp() -> String {
    iso(millis())
}

fn millis() -> u128 {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where the service reads its clock"
    )]
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis())
}

/// ISO 8601 in UTC with milliseconds.
fn iso(millis: u128) -> String {
    let seconds = millis / 1000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01 in eras of 400 years: the leap day is the last day of a year.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    format!(
        "{:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        era * 400 + year + carry,
        rest / 3600,
        rest / 60 % 60,
        rest % 60,
        millis % 1000
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_700_000_000, "2023-11-14T22:13:20.000Z"),
            (4_102_444_799, "2099-12-31T23:59:59.000Z"),
        ] {
            assert_eq!(iso(seconds * 1000), text);
        }
    }
}
