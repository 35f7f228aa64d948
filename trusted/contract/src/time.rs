//! Time as a value: what we know about now, how far to trust it, and times as text (R70-R73).
//!
//! Nothing here reads a clock. `local::clock` turns readings into a [`Now`], and every decision
//! takes that as an argument, so wrong clocks, jumps and long sleeps are rows of a table here.
//! The floor is the latest moment known to have passed; only evidence that someone answers for
//! raises it (R71), so a forged network time can neither poison it nor lower it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How far the wall clock is believed (R70).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClockTrust {
    /// The wall clock is known to be wrong, or cannot be told from a clock that was never set.
    Floor,
    /// Not known to be wrong.
    Network,
    /// Confirmed within a day by a verified peer or a signed document.
    Authenticated,
}

impl ClockTrust {
    /// The word used in status, logs and audit records.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Network => "network",
            Self::Authenticated => "authenticated",
        }
    }
}

impl fmt::Display for ClockTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a decision knows about time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since boot, sleep included. For durations; never goes back.
    pub monotonic_ms: i64,
    /// Unix seconds. Never below the floor: when the clock is, this is the floor itself.
    pub wall: i64,
    /// How far to believe `wall`.
    pub trust: ClockTrust,
}

/// Whether something that is good until a moment is still good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Its end has not come.
    Good,
    /// Its end has passed; certain even with a wrong clock, because the floor is behind it.
    Over,
    /// The clock cannot tell. Neither renew nor refuse for ever: wait for time (R72).
    Unknown,
}

impl Now {
    /// Whether a token may be minted (R72): never on a clock known to be wrong.
    #[must_use]
    pub fn may_mint(&self) -> bool {
        self.trust != ClockTrust::Floor
    }

    /// Whether something with its last good second at `until` is still good.
    #[must_use]
    pub fn standing(&self, until: i64) -> Standing {
        if self.wall > until {
            Standing::Over
        } else if self.trust == ClockTrust::Floor {
            Standing::Unknown
        } else {
            Standing::Good
        }
    }
}

/// What the hardware offers after a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockSource {
    /// A clock that runs while the device is off.
    Kept,
    /// None: the wall clock starts at some build time on each boot.
    Unset,
}

/// One look at both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Milliseconds since boot, sleep included.
    pub monotonic_ms: i64,
    /// Unix seconds of the wall clock, whatever it says.
    pub wall: i64,
    /// What the hardware offers.
    pub source: ClockSource,
}

/// A moment at which someone who answers for it told us the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confirmation {
    /// Unix seconds, as told.
    pub wall: i64,
    /// Our monotonic clock at that moment.
    pub monotonic_ms: i64,
}

/// How long a confirmation holds.
const CONFIRMED_FOR_MS: i64 = 24 * 3600 * 1000;
/// Beyond this the wall clock has jumped (R73), or does not agree with a confirmation.
const JUMP_S: i64 = 60;
/// The floor is written at most this often (R71).
const FLOOR_WRITE_MS: i64 = 3600 * 1000;

/// The latest moment known to have passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Floor(i64);

/// Where a time comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// The floor as it was persisted.
    Persisted(i64),
    /// A verified TLS peer, or our clock while a confirmation holds.
    Authenticated(i64),
    /// Issue time of a verified signed document.
    Document(i64),
    /// A time server without proof: never raises the floor.
    Network(i64),
}

impl Floor {
    /// The floor of a fresh device: when this program was released.
    #[must_use]
    pub const fn new(build: i64) -> Self {
        Self(build)
    }

    /// Unix seconds.
    #[must_use]
    pub const fn at(self) -> i64 {
        self.0
    }

    /// The floor after a piece of evidence: never lower (R71, A137).
    #[must_use]
    pub fn raised(self, by: Evidence) -> Self {
        match by {
            Evidence::Persisted(at) | Evidence::Authenticated(at) | Evidence::Document(at) => {
                Self(self.0.max(at))
            }
            Evidence::Network(_) => self,
        }
    }

    /// Whether this floor is worth a write: higher than the stored one, and an hour has passed.
    #[must_use]
    pub fn write_due(self, stored: Self, last_write_ms: Option<i64>, now_ms: i64) -> bool {
        self > stored && last_write_ms.is_none_or(|last| now_ms - last >= FLOOR_WRITE_MS)
    }
}

/// What we know, from one look at the clocks (R70).
#[must_use]
pub fn judge(reading: &Reading, floor: Floor, build: i64, confirmed: Option<&Confirmation>) -> Now {
    let uptime = reading.monotonic_ms.div_euclid(1000);
    let never_set = reading.source == ClockSource::Unset
        && reading
            .wall
            .saturating_sub(uptime)
            .saturating_sub(build)
            .abs()
            <= JUMP_S;
    let trust = if reading.wall < floor.at() || (never_set && confirmed.is_none()) {
        ClockTrust::Floor
    } else if confirmed.is_some_and(|c| agrees(reading, c)) {
        ClockTrust::Authenticated
    } else {
        ClockTrust::Network
    };
    Now {
        monotonic_ms: reading.monotonic_ms,
        wall: reading.wall.max(floor.at()),
        trust,
    }
}

/// Whether a confirmation is fresh and the wall clock has kept to it since.
fn agrees(reading: &Reading, confirmed: &Confirmation) -> bool {
    let age = reading.monotonic_ms.saturating_sub(confirmed.monotonic_ms);
    let expected = confirmed.wall.saturating_add(age.div_euclid(1000));
    (0..=CONFIRMED_FOR_MS).contains(&age)
        && reading.wall.saturating_sub(expected).saturating_abs() <= JUMP_S
}

/// Seconds the wall clock has jumped between two readings, if it has (R73). A device that slept
/// for weeks has not: the monotonic clock counts sleep.
#[must_use]
pub fn jump(before: &Reading, after: &Reading) -> Option<i64> {
    let elapsed = after
        .monotonic_ms
        .saturating_sub(before.monotonic_ms)
        .div_euclid(1000);
    let moved = after
        .wall
        .saturating_sub(before.wall)
        .saturating_sub(elapsed);
    (moved.saturating_abs() > JUMP_S).then_some(moved)
}

/// Writes Unix seconds as `2026-11-24T23:21:58Z`. Years outside 0 to 9999 are clipped.
#[must_use]
pub fn rfc3339(seconds: i64) -> String {
    let (date, clock) = split(seconds);
    format!("{date}T{clock}Z")
}

/// Writes Unix milliseconds as `2026-11-24T23:21:58.123Z`.
#[must_use]
pub fn rfc3339_ms(millis: i64) -> String {
    let (date, clock) = split(millis.div_euclid(1000));
    format!("{date}T{clock}.{:03}Z", millis.rem_euclid(1000))
}

const DAY: i64 = 86_400;
/// 0000-01-01 and 9999-12-31T23:59:59 in Unix seconds.
const YEARS: (i64, i64) = (-62_167_219_200, 253_402_300_799);

fn split(seconds: i64) -> (String, String) {
    let seconds = seconds.clamp(YEARS.0, YEARS.1);
    let (year, month, day) = civil(seconds.div_euclid(DAY));
    let s = seconds.rem_euclid(DAY);
    (
        format!("{year:04}-{month:02}-{day:02}"),
        format!("{:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60),
    )
}

/// Year, month and day of a day number, in the proleptic Gregorian calendar: eras of 400 years,
/// years that begin in March, so that the leap day is the last of its year.
#[must_use]
pub fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, day)
}

/// Day number of a date; the inverse of [`civil`].
#[must_use]
pub fn days(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let yoe = y.rem_euclid(400);
    let doy = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
}

/// Reads an RFC 3339 time as Unix seconds; a fraction is cut off. `None` for anything else,
/// dates that do not exist included. A leap second counts as the second after it.
#[must_use]
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    if !text.is_ascii() || text.len() < 20 {
        return None;
    }
    let number = |from: usize, to: usize| {
        let part = text.get(from..to)?;
        part.bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| part.parse::<i64>().ok())?
    };
    let at = |index: usize, wanted: &[u8]| {
        text.as_bytes()
            .get(index)
            .filter(|b| wanted.contains(b))
            .map(|_| ())
    };
    at(4, b"-")?;
    at(7, b"-")?;
    at(10, b"Tt ")?;
    at(13, b":")?;
    at(16, b":")?;
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let number_of_day = days(year, month, day);
    if !(1..=12).contains(&month)
        || civil(number_of_day) != (year, month, day)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    let mut zone = text.get(19..)?;
    if let Some(fraction) = zone.strip_prefix('.') {
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 {
            return None;
        }
        zone = fraction.get(digits..)?;
    }
    Some(number_of_day * DAY + hour * 3600 + minute * 60 + second - offset(zone)?)
}

/// Seconds east of Greenwich.
fn offset(zone: &str) -> Option<i64> {
    let sign = match zone.as_bytes() {
        [b'Z' | b'z'] => return Some(0),
        [b'+', _, _, b':', _, _] => 1,
        [b'-', _, _, b':', _, _] => -1,
        _ => return None,
    };
    let two = |part: &str| {
        part.bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| part.parse::<i64>().ok())?
    };
    let (hours, minutes) = (two(zone.get(1..3)?)?, two(zone.get(4..6)?)?);
    (hours <= 23 && minutes <= 59).then_some(sign * (hours * 3600 + minutes * 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILD: i64 = 1_790_000_000;
    const HOUR_MS: i64 = 3_600_000;

    fn reading(monotonic_ms: i64, wall: i64) -> Reading {
        Reading {
            monotonic_ms,
            wall,
            source: ClockSource::Kept,
        }
    }

    #[test]
    fn a136_the_class_of_a_clock_follows_from_the_facts() {
        let floor = Floor::new(BUILD).raised(Evidence::Persisted(BUILD + 1000));
        let told = Confirmation {
            wall: BUILD + 5000,
            monotonic_ms: 10_000,
        };
        let unset = |monotonic_ms, wall| Reading {
            source: ClockSource::Unset,
            ..reading(monotonic_ms, wall)
        };
        use ClockTrust::{Authenticated, Floor as Low, Network};
        for (what, reading, told, want) in [
            ("1970 at boot", reading(0, 0), None, Low),
            (
                "one second below the floor",
                reading(0, BUILD + 999),
                None,
                Low,
            ),
            ("at the floor", reading(0, BUILD + 1000), None, Network),
            (
                "ten years ahead, unproven",
                reading(0, BUILD + 315_360_000),
                None,
                Network,
            ),
            (
                "no clock, at build time plus uptime",
                unset(4_000_000, BUILD + 4000),
                None,
                Low,
            ),
            (
                "no clock, but set by the network",
                unset(4_000_000, BUILD + 9000),
                None,
                Network,
            ),
            (
                "no clock, confirmed",
                unset(4_000_000, BUILD + 4000),
                Some(told),
                Network,
            ),
            (
                "confirmed just now",
                reading(10_000, BUILD + 5000),
                Some(told),
                Authenticated,
            ),
            (
                "confirmed 24 h ago to the millisecond",
                reading(10_000 + 24 * HOUR_MS, BUILD + 5000 + 86_400),
                Some(told),
                Authenticated,
            ),
            (
                "a millisecond later",
                reading(10_001 + 24 * HOUR_MS, BUILD + 5000 + 86_400),
                Some(told),
                Network,
            ),
            (
                "confirmed, then jumped ten years",
                reading(20_000, BUILD + 315_360_000),
                Some(told),
                Network,
            ),
            (
                "confirmed, then 61 s back",
                reading(10_000, BUILD + 4939),
                Some(told),
                Network,
            ),
            (
                "confirmed, then set to 1970",
                reading(20_000, 0),
                Some(told),
                Low,
            ),
            (
                "slept for three weeks",
                reading(10_000 + 21 * 24 * HOUR_MS, BUILD + 5000 + 21 * 86_400),
                Some(told),
                Network,
            ),
        ] {
            let now = judge(&reading, floor, BUILD, told.as_ref());
            assert_eq!(now.trust, want, "{what}");
            assert_eq!(now.wall, reading.wall.max(floor.at()), "{what}");
        }
    }

    #[test]
    fn a137_network_time_never_raises_the_floor() {
        let floor = Floor::new(BUILD);
        assert_eq!(floor.raised(Evidence::Network(BUILD + 9_999_999)), floor);
        assert_eq!(
            floor.raised(Evidence::Authenticated(BUILD + 5)).at(),
            BUILD + 5
        );
        assert_eq!(floor.raised(Evidence::Document(BUILD + 7)).at(), BUILD + 7);
        assert_eq!(floor.raised(Evidence::Authenticated(5)), floor);
    }

    #[test]
    fn the_floor_is_written_at_most_hourly() {
        let (low, high) = (Floor::new(BUILD), Floor::new(BUILD + 1));
        assert!(high.write_due(low, None, 0));
        assert!(!low.write_due(low, None, 0));
        assert!(!high.write_due(low, Some(0), HOUR_MS - 1));
        assert!(high.write_due(low, Some(0), HOUR_MS));
    }

    #[test]
    fn a138_comparisons_are_exact_around_floor_and_2038() {
        for wall in [
            BUILD,
            i64::from(i32::MAX),
            i64::from(i32::MAX) + 1,
            4_294_967_296,
        ] {
            let now = |trust| Now {
                monotonic_ms: 0,
                wall,
                trust,
            };
            for trust in [ClockTrust::Network, ClockTrust::Authenticated] {
                assert!(now(trust).may_mint());
                assert_eq!(now(trust).standing(wall - 1), Standing::Over);
                assert_eq!(now(trust).standing(wall), Standing::Good);
                assert_eq!(now(trust).standing(wall + 1), Standing::Good);
            }
            let low = now(ClockTrust::Floor);
            assert!(!low.may_mint());
            assert_eq!(low.standing(wall - 1), Standing::Over);
            assert_eq!(low.standing(wall), Standing::Unknown);
            assert_eq!(low.standing(i64::MAX), Standing::Unknown);
        }
    }

    #[test]
    fn a136_a_jump_is_seen_and_a_sleep_is_not() {
        let before = reading(0, BUILD);
        for (after, want) in [
            (reading(1000, BUILD + 1), None),
            (reading(0, BUILD + 60), None),
            (reading(0, BUILD + 61), Some(61)),
            (reading(0, BUILD - 86_400), Some(-86_400)),
            (reading(0, BUILD + 315_360_000), Some(315_360_000)),
            (reading(1_814_400_000, BUILD + 1_814_400), None),
        ] {
            assert_eq!(jump(&before, &after), want, "{after:?}");
        }
    }

    #[test]
    fn times_are_written_and_read() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (2_147_483_647, "2038-01-19T03:14:07Z"),
            (2_147_483_648, "2038-01-19T03:14:08Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (253_402_300_799, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
            assert_eq!(parse_rfc3339(text), Some(seconds));
        }
        assert_eq!(rfc3339_ms(-1), "1969-12-31T23:59:59.999Z");
        assert_eq!(rfc3339(i64::MAX), "9999-12-31T23:59:59Z");
        assert_eq!(
            parse_rfc3339("2026-01-01T00:00:00.9999999+01:30"),
            Some(1_767_220_200)
        );
        assert_eq!(parse_rfc3339("2016-12-31T23:59:60Z"), Some(1_483_228_800));
        for bad in [
            "",
            "2026-01-01",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00+0100",
            "2026-01-01T00:00:00Zx",
            "+026-01-01T00:00:00Z",
            "2026-01-01T00:00:0\u{e9}Z",
        ] {
            assert_eq!(parse_rfc3339(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_day_of_eight_centuries_goes_there_and_back() {
        for day in days(1600, 1, 1)..days(2400, 1, 1) {
            let (y, m, d) = civil(day);
            assert_eq!(days(y, m, d), day);
        }
    }
}
