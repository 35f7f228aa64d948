//! `make bench`: prints the table of SPECIFICATION.md, each number beside its floor.
//!
//! `--quick` takes fewer rounds and rests less before it looks at memory. Runs the real daemons on
//! a stage of its own; run it on a machine that does nothing else.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::Duration;

use sim::bench::floor::{self, Bare};
use sim::bench::road::Road;
use sim::bench::{Effort, Failure, Row, table, weight};
use sim::load::{self, Place};
use sim::stage::{Plan, Stage, programs};

/// Connections a user may have: the load needs more than the ten of the default.
const CONNECTIONS: usize = 80;

const FULL: Effort = Effort {
    rounds: 7,
    requests: 4000,
    millis: 2000,
    rest: 60,
};
const QUICK: Effort = Effort {
    rounds: 3,
    requests: 1000,
    millis: 500,
    rest: 5,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        [] => measure(FULL),
        ["--quick"] => measure(QUICK),
        ["--floor", socket] => floor::serve(Path::new(socket), CONNECTIONS),
        ["--least", socket] => floor::serve_least(Path::new(socket)),
        _ => Err("usage: holdfast-bench [--quick]".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            local::log::failure(local::log::Level::Error, &*error);
            ExitCode::FAILURE
        }
    }
}

/// A floor in a process of its own, ended with us.
struct Floor(Child);

impl Floor {
    fn start(kind: &str, socket: &Path) -> Result<Self, Failure> {
        #[expect(
            clippy::disallowed_methods,
            reason = "the floor is this program again, in a process of its own"
        )]
        let child = Command::new(std::env::current_exe()?)
            .arg(kind)
            .arg(socket)
            .spawn()?;
        let floor = Self(child);
        for _ in 0..1000 {
            if std::os::unix::net::UnixStream::connect(socket).is_ok() {
                return Ok(floor);
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        Err("the floor does not listen".into())
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn measure(effort: Effort) -> Result<(), Failure> {
    let programs = programs()?;
    let mut out = std::io::stdout();
    writeln!(
        out,
        "Machine: {}; load {} at the start. {} rounds of {} requests, {} connections allowed per \
         user.\n\
         One request at a time: everything on one core. Rates: on all of them.\n",
        weight::machine(),
        weight::load(),
        effort.rounds,
        effort.requests,
        CONNECTIONS
    )?;
    let mut rows = unprovisioned(&programs, effort)?;
    rows.extend(manual(&programs, effort)?);
    rows.extend(weight::sizes(&programs)?);
    rows.extend(weight::linked()?);
    write!(out, "{}", table(&rows))?;
    Ok(())
}

/// What runs on a device without a hub, with modules.
fn unprovisioned(programs: &Path, effort: Effort) -> Result<Vec<Row>, Failure> {
    let mut stage = Stage::start(Plan {
        connections: CONNECTIONS,
        ..Plan::unprovisioned(programs.to_owned())
    })?;
    let [(hello, mut module), (_, mut agent)] = stage.module_puppets()?;
    let mut host = stage.host_puppet(false)?;
    rest(effort);
    let mut rows = weight::memory(&stage, &format!("{} s after the start", effort.rest));
    let echo: PathBuf = stage.path("echo.sock");
    let least = stage.path("least.sock");
    let floor = Floor::start("--floor", &echo)?;
    let other = Floor::start("--least", &least)?;
    open(&least)?;
    load::place(other.0.id(), Place::OneCore)?;
    let bare = Bare::measure(&stage.path("log"))?;
    let mut road = Road {
        stage: &stage,
        floor: &echo,
        floor_process: floor.0.id(),
        host: &mut host,
        bare,
        effort,
    };
    rows.push(road.least(&least)?);
    rows.extend(road.keys()?);
    rows.extend(road.attested(&hello, &mut module)?);
    rows.push(road.certificate()?);
    rows.push(road.list(&mut agent)?);
    drop((floor, other));
    rest(effort);
    rows.extend(weight::memory(
        &stage,
        &format!("{} s after the load", effort.rest),
    ));
    drop((module, agent));
    rows.extend(weight::starts(&mut stage, effort)?);
    Ok(rows)
}

/// What needs a provisioned device.
fn manual(programs: &Path, effort: Effort) -> Result<Vec<Row>, Failure> {
    let mut stage = Stage::start(Plan {
        connections: CONNECTIONS,
        remembered: Some("sensor".to_owned()),
        ..Plan::manual(programs.to_owned())
    })?;
    let mut host = stage.host_puppet(false)?;
    let echo = stage.path("echo.sock");
    let floor = Floor::start("--floor", &echo)?;
    let bare = Bare::measure(&stage.path("log"))?;
    let mut road = Road {
        stage: &stage,
        floor: &echo,
        floor_process: floor.0.id(),
        host: &mut host,
        bare,
        effort,
    };
    road.identities()
}

/// The least server binds as its umask says; our puppet has another user.
fn open(socket: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(std::fs::set_permissions(
        socket,
        std::fs::Permissions::from_mode(0o666),
    )?)
}

fn rest(effort: Effort) {
    std::thread::park_timeout(Duration::from_secs(effort.rest));
}
