//! What SPECIFICATION.md promises, measured: each number beside its floor from the same run.
//!
//! A row is a promise, what was measured, and what it is compared with. Rounds alternate between
//! ours and the floor, so that what the machine does meanwhile meets both; the medians and their
//! spread are printed. Never part of a test: time on a busy machine proves nothing.

pub mod floor;
pub mod road;
pub mod weight;

/// Why something could not be measured.
pub type Failure = crate::stage::Failure;

/// How long it may take.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Rounds of each measurement.
    pub rounds: usize,
    /// Requests in a round.
    pub requests: usize,
    /// How long throughput is counted in a round, in milliseconds.
    pub millis: u64,
    /// Seconds of rest before memory is looked at.
    pub rest: u64,
}

/// Medians of the rounds.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    /// In the middle.
    pub median: f64,
    /// The lowest.
    pub low: f64,
    /// The highest.
    pub high: f64,
}

impl Figure {
    /// Of the rounds' values.
    #[must_use]
    pub fn of(mut rounds: Vec<f64>) -> Self {
        rounds.sort_by(f64::total_cmp);
        let at = |index: usize| rounds.get(index).copied().unwrap_or(f64::NAN);
        Self {
            median: at(rounds.len() / 2),
            low: at(0),
            high: at(rounds.len().saturating_sub(1)),
        }
    }

    /// A value that has no spread.
    #[must_use]
    pub fn exact(value: f64) -> Self {
        Self {
            median: value,
            low: value,
            high: value,
        }
    }
}

/// One line of the table.
#[derive(Debug, Clone)]
pub struct Row {
    /// What.
    pub what: String,
    /// Of what kind the numbers are.
    pub unit: &'static str,
    /// Ours.
    pub ours: Figure,
    /// What it is compared with, and how that is made up; none for a plain limit.
    pub floor: Option<(Figure, String)>,
    /// At most so many times the floor, or at most this.
    pub limit: f64,
    /// Whether more is better, as for rates.
    pub rate: bool,
}

impl Row {
    /// Ours in floors; for a plain limit, ours.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        match &self.floor {
            None => self.ours.median,
            Some((floor, _)) if self.rate => floor.median / self.ours.median,
            Some((floor, _)) => self.ours.median / floor.median,
        }
    }

    /// Whether the promise is kept.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.ratio() <= self.limit
    }
}

/// The table, as SPECIFICATION.md has it.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut out = String::from(
        "| what | ours (lowest to highest round) | floor | at most | is | |\n|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let Figure { median, low, high } = row.ours;
        let spread = if low < high {
            format!(" ({} to {})", number(low), number(high))
        } else {
            String::new()
        };
        let (floor, limit, is) = match &row.floor {
            Some((floor, how)) => (
                format!("{} {} = {how}", number(floor.median), row.unit),
                format!("{} x", row.limit),
                format!("{:.2} x", row.ratio()),
            ),
            None => (
                "-".to_owned(),
                format!("{} {}", number(row.limit), row.unit),
                number(row.ratio()),
            ),
        };
        let verdict = if row.holds() { "ok" } else { "MISS" };
        out.push_str(&format!(
            "| {} | {} {}{spread} | {floor} | {limit} | {is} | {verdict} |\n",
            row.what,
            number(median),
            row.unit
        ));
    }
    out
}

fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The value in the middle, as it is.
#[must_use]
#[expect(
    clippy::cast_precision_loss,
    reason = "nanoseconds of a request are far below what a double holds exactly"
)]
pub fn median(values: &mut [u64]) -> f64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_is_kept_by_its_ratio() {
        let row = |ours: f64, floor: Option<f64>, limit: f64, rate: bool| Row {
            what: "w".to_owned(),
            unit: "us",
            ours: Figure::of(vec![ours, ours * 2.0, ours / 2.0]),
            floor: floor.map(|f| (Figure::exact(f), "f".to_owned())),
            limit,
            rate,
        };
        assert!(row(13.0, Some(10.0), 1.3, false).holds());
        assert!(!row(14.0, Some(10.0), 1.3, false).holds());
        assert!(row(100.0, Some(120.0), 1.3, true).holds());
        assert!(!row(100.0, Some(140.0), 1.3, true).holds());
        assert!(row(3.0, None, 3.0, false).holds());
        assert!(table(&[row(14.0, Some(10.0), 1.3, false)]).contains("| MISS |"));
    }
}
