//! What the programs weigh: on disk, in memory, in crates, and until their first answer.

use std::fs;
use std::path::Path;
use std::time::Instant;

use super::{Effort, Failure, Figure, Row, floor};
use crate::crates;
use crate::stage::Stage;

/// What is installed on a device by this release; the command is listed beside them.
const PROGRAMS: [&str; 5] = ["keyd", "warden", "identityd", "runtimed", "agent"];

/// Processors that this process may use.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The machine in a line.
#[must_use]
pub fn machine() -> String {
    let kernel = rustix::system::uname();
    let model = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, model)| model);
    format!(
        "{} cores of {model}, {} {}",
        cores(),
        kernel.sysname().to_string_lossy(),
        kernel.release().to_string_lossy()
    )
}

/// What else runs: the load of the last minute, as the kernel says it.
#[must_use]
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}

/// From a process's start to its first answer. The last start is left running.
///
/// # Errors
/// When a daemon does not start.
pub fn starts(stage: &mut Stage, effort: Effort) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for (name, api, limit) in [
        ("keyd", "key", 3.0),
        ("identityd", "identity", 5.0),
        ("runtimed", "management", 10.0),
    ] {
        let mut rounds = Vec::new();
        for _ in 0..effort.rounds {
            stage.stop_daemon(name);
            let begin = Instant::now();
            stage.start_daemon(name)?;
            floor::first_answer(&stage.socket(api))?;
            rounds.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        rows.push(plain(
            format!("{name}: start to first answer"),
            "ms",
            Figure::of(rounds),
            limit,
        ));
    }
    Ok(rows)
}

/// Private memory of the daemons that differs from their files.
#[must_use]
pub fn memory(stage: &Stage, when: &str) -> Vec<Row> {
    let daemons = [
        ("keyd", 1.0),
        ("identityd", 2.0),
        ("runtimed", 2.0),
        ("warden", 1.0),
    ];
    daemons
        .into_iter()
        .filter_map(|(name, limit)| {
            let mib = private_dirty(stage.pid(name)?)? / 1024.0;
            let what = format!("{name}: private dirty memory, {when}");
            Some(plain(what, "MiB", Figure::exact(mib), limit))
        })
        .collect()
}

/// In KiB; none where the kernel does not show it to us.
fn private_dirty(pid: u32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Private_Dirty:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Sizes of the programs as they are built for release, stripped.
///
/// # Errors
/// When one is missing.
pub fn sizes(programs: &Path) -> Result<Vec<Row>, Failure> {
    let size = |name: &str| -> Result<f64, Failure> {
        let length = fs::metadata(programs.join(name))?.len();
        Ok(f64::from(u32::try_from(length)?) / f64::from(1 << 20))
    };
    let mut sum = 0.0;
    let mut each = Vec::new();
    for name in PROGRAMS {
        let one = size(&format!("holdfast-{name}"))?;
        sum += one;
        each.push(format!("{name} {one:.2}"));
    }
    let command = size("holdfast")?;
    let what = format!(
        "size of the device programs ({}; the command `holdfast` {command:.2} beside them)",
        each.join(", ")
    );
    Ok(vec![plain(what, "MiB", Figure::exact(sum), 16.0)])
}

/// External crates linked into the two smallest programs.
///
/// # Errors
/// When cargo cannot be asked.
pub fn linked() -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for (name, limit) in [("keyd", 45.0), ("warden", 25.0)] {
        let count = u32::try_from(crates::linked(name)?.len())?;
        let what = format!("crates linked into {name}");
        rows.push(plain(what, "crates", Figure::exact(count.into()), limit));
    }
    Ok(rows)
}

fn plain(what: String, unit: &'static str, ours: Figure, limit: f64) -> Row {
    Row {
        what,
        unit,
        ours,
        floor: None,
        limit,
        rate: false,
    }
}
