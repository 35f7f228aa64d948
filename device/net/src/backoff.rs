//! How long to wait before the next attempt (R56).
//!
//! Exponential with jitter and a cap. A server may ask for more time, within bounds: it can set
//! the wait neither to nothing nor to years (A73). Pure: the randomness is an argument.

use std::time::Duration;

/// The shape of a series of attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The wait after the first failure.
    pub first: Duration,
    /// The longest wait we choose ourselves.
    pub cap: Duration,
    /// The longest wait a server may ask for.
    pub server_cap: Duration,
}

impl Backoff {
    /// The wait before attempt `failures + 1`, where `random` spreads a fleet that failed at the
    /// same moment over the upper half of the interval.
    pub fn delay(&self, failures: u32, random: u64) -> Duration {
        let doubled = self
            .first
            .checked_mul(
                2_u32
                    .checked_pow(failures.saturating_sub(1))
                    .unwrap_or(u32::MAX),
            )
            .unwrap_or(self.cap)
            .min(self.cap);
        let half = doubled / 2;
        half + spread(half, random)
    }

    /// As [`Backoff::delay`], when the server named a wait: never shorter than ours, never
    /// longer than the bound.
    pub fn delay_asked(&self, failures: u32, asked: Duration, random: u64) -> Duration {
        self.delay(failures, random).max(asked.min(self.server_cap))
    }
}

/// Reads a `Retry-After` header. Only the form in seconds is understood; a date would need a
/// clock that may be wrong, so it counts as absent. A number too big to read is a very long wait.
pub fn retry_after(text: &str) -> Option<Duration> {
    let text = text.trim();
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)))
}

/// A part of `span`, chosen by `random` in 1/1024 steps.
fn spread(span: Duration, random: u64) -> Duration {
    let part = u32::from((random & 0x3ff) as u16);
    span / 1024 * part
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERIES: Backoff = Backoff {
        first: Duration::from_secs(4),
        cap: Duration::from_secs(60),
        server_cap: Duration::from_secs(300),
    };

    #[test]
    fn waits_double_up_to_the_cap_and_jitter_only_shortens_them() {
        for (failures, longest) in [
            (0, 4),
            (1, 4),
            (2, 8),
            (3, 16),
            (5, 60),
            (40, 60),
            (u32::MAX, 60),
        ] {
            let longest = Duration::from_secs(longest);
            for random in [0, 1, 512, 1023, u64::MAX] {
                let delay = SERIES.delay(failures, random);
                assert!(
                    delay <= longest && delay >= longest / 2,
                    "{failures} {random}: {delay:?}"
                );
            }
        }
        assert_ne!(SERIES.delay(3, 0), SERIES.delay(3, 1023));
    }

    #[test]
    fn a73_a_server_can_ask_neither_for_nothing_nor_for_a_century() {
        let zero = SERIES.delay_asked(1, Duration::ZERO, 0);
        assert_eq!(zero, Duration::from_secs(2));
        let century = SERIES.delay_asked(1, Duration::from_secs(100 * 365 * 86_400), 0);
        assert_eq!(century, SERIES.server_cap);
        assert_eq!(
            SERIES.delay_asked(1, Duration::from_secs(17), 0),
            Duration::from_secs(17)
        );
    }

    #[test]
    fn retry_after_is_read_in_seconds_only() {
        for (text, expected) in [
            ("0", Some(0)),
            (" 12 ", Some(12)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ] {
            assert_eq!(
                retry_after(text),
                expected.map(Duration::from_secs),
                "{text}"
            );
        }
    }
}
