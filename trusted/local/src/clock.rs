//! Reads the clocks and keeps the floor (R70-R73). What the readings mean is decided in
//! [`contract::time`]; this is the shell around it, and the only place that asks what time it is.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use contract::time::{ClockSource, Confirmation, Evidence, Floor, Now, Reading, judge, jump};
use serde::{Deserialize, Serialize};

use crate::files::{Dir, FileError};
use crate::records::{self, Record};

/// When this release was made, 2026-11-01: no time before it is believed. Raised with each release.
pub const RELEASED: i64 = 1_793_491_200;

/// The floor's file.
const NAME: &str = "time-floor";

#[derive(Debug, Serialize, Deserialize)]
struct FloorRecord {
    floor: i64,
}

impl Record for FloorRecord {
    const KIND: &'static str = "time-floor";
    const VERSION: u32 = 1;
}

/// The clocks of this device. Tests and simulations give it another source of readings.
pub struct Clock {
    source: Box<dyn Fn() -> Reading + Send + Sync>,
    dir: Option<Dir>,
    state: Mutex<State>,
}

struct State {
    floor: Floor,
    stored: Floor,
    written_ms: Option<i64>,
    confirmed: Option<Confirmation>,
    before: Option<Reading>,
    jumped: Option<i64>,
}

impl Clock {
    /// The device's clocks, with the floor kept in a file of this directory; without a directory
    /// the floor is this release's and what is learnt.
    ///
    /// # Errors
    /// [`FileError`] when the stored floor cannot be trusted: time is not guessed.
    pub fn open(dir: Option<Dir>) -> Result<Self, FileError> {
        Self::with_source(dir, Box::new(read_clocks))
    }

    /// As [`Self::open`], over other readings.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn with_source(
        dir: Option<Dir>,
        source: Box<dyn Fn() -> Reading + Send + Sync>,
    ) -> Result<Self, FileError> {
        let kept = match &dir {
            Some(dir) => records::read::<FloorRecord>(dir, NAME)?,
            None => None,
        };
        let mut floor = Floor::new(RELEASED);
        if let Some((record, _)) = kept {
            floor = floor.raised(Evidence::Persisted(record.floor));
        }
        let state = State {
            floor,
            stored: floor,
            written_ms: None,
            confirmed: None,
            before: None,
            jumped: None,
        };
        Ok(Self {
            source,
            dir,
            state: Mutex::new(state),
        })
    }

    /// What is known about now.
    pub fn now(&self) -> Now {
        let reading = (self.source)();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(by) = state.before.as_ref().and_then(|b| jump(b, &reading)) {
            state.jumped = Some(by);
        }
        state.before = Some(reading);
        judge(&reading, state.floor, RELEASED, state.confirmed.as_ref())
    }

    /// Seconds of the last jump since this was last asked (R73): recompute timers, mint anew.
    pub fn take_jump(&self) -> Option<i64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.jumped.take()
    }

    /// A verified peer, or a document that was just verified and made, says it is `wall` now. The
    /// wall clock itself is the operating system's: if it disagrees it stays untrusted.
    ///
    /// # Errors
    /// [`FileError`] when the raised floor could not be stored; it holds in memory all the same.
    pub fn confirm(&self, wall: i64) -> Result<(), FileError> {
        let monotonic_ms = (self.source)().monotonic_ms;
        let confirmed = Confirmation { wall, monotonic_ms };
        self.raise(Evidence::Authenticated(wall), Some(confirmed))
    }

    /// A signed document that was verified was issued at `at`, some time ago.
    ///
    /// # Errors
    /// As [`Self::confirm`].
    pub fn issued(&self, at: i64) -> Result<(), FileError> {
        self.raise(Evidence::Document(at), None)
    }

    fn raise(&self, by: Evidence, confirmed: Option<Confirmation>) -> Result<(), FileError> {
        let now_ms = (self.source)().monotonic_ms;
        let floor = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.floor = state.floor.raised(by);
            state.confirmed = confirmed.or(state.confirmed);
            if !state
                .floor
                .write_due(state.stored, state.written_ms, now_ms)
            {
                return Ok(());
            }
            // Claimed before writing, so that no other thread writes the same; a failed write is
            // tried again in an hour.
            state.written_ms = Some(now_ms);
            state.stored = state.floor;
            state.floor
        };
        match &self.dir {
            Some(dir) => records::write(dir, NAME, &FloorRecord { floor: floor.at() }),
            None => Ok(()),
        }
    }
}

/// One look at both clocks.
fn read_clocks() -> Reading {
    use rustix::time::{ClockId, clock_gettime};
    let since_boot = clock_gettime(ClockId::Boottime);
    let wall = clock_gettime(ClockId::Realtime);
    // A clock chip does not come and go while we run, but asking costs a microsecond.
    let source = if Path::new("/sys/class/rtc/rtc0").exists() {
        ClockSource::Kept
    } else {
        ClockSource::Unset
    };
    Reading {
        monotonic_ms: since_boot.tv_sec * 1000 + since_boot.tv_nsec / 1_000_000,
        wall: wall.tv_sec,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Rules;
    use crate::testing::Scratch;
    use contract::time::ClockTrust;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    #[test]
    fn a136_the_floor_survives_a_restart_and_the_right_time_recovers() {
        let scratch = Scratch::new();
        let dir = || Some(Dir::open(scratch.path(), Rules::private(scratch.uid())).unwrap());
        let (ms, wall) = (Arc::new(AtomicI64::new(1000)), Arc::new(AtomicI64::new(0)));
        let clock = || {
            let (ms, wall) = (ms.clone(), wall.clone());
            let read = move || Reading {
                monotonic_ms: ms.load(Ordering::Relaxed),
                wall: wall.load(Ordering::Relaxed),
                source: ClockSource::Kept,
            };
            Clock::with_source(dir(), Box::new(read)).unwrap()
        };
        let first = clock();
        assert_eq!(first.now().trust, ClockTrust::Floor);
        assert!(!first.now().may_mint());
        wall.store(RELEASED + 500, Ordering::Relaxed);
        assert_eq!(first.now().trust, ClockTrust::Network);
        assert_eq!(first.take_jump(), Some(RELEASED + 500));
        first.confirm(RELEASED + 500).unwrap();
        assert_eq!(first.now().trust, ClockTrust::Authenticated);
        // Ten years ahead by an unproven source: not believed, and the floor is not poisoned.
        wall.store(RELEASED + 315_360_000, Ordering::Relaxed);
        assert_eq!(first.now().trust, ClockTrust::Network);
        wall.store(RELEASED + 501, Ordering::Relaxed);
        assert_eq!(first.now().trust, ClockTrust::Authenticated);
        // Within the hour nothing more is written.
        first.confirm(RELEASED + 700).unwrap();
        let second = clock();
        wall.store(RELEASED + 499, Ordering::Relaxed);
        assert_eq!(second.now().trust, ClockTrust::Floor);
        assert_eq!(second.now().wall, RELEASED + 500);
        wall.store(RELEASED + 500, Ordering::Relaxed);
        assert_eq!(second.now().trust, ClockTrust::Network);
    }

    #[test]
    fn the_real_clocks_answer() {
        let clock = Clock::open(None).unwrap();
        let now = clock.now();
        assert!(now.monotonic_ms > 0 && now.wall >= RELEASED);
    }
}
