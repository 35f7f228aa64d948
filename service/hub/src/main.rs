//! `holdfast-hub`: `init` makes a folder, `--config` serves from it. Prints nothing but errors.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use hub::config::Config;
use hub::{Running, init};

const USAGE: &str = "usage: holdfast-hub --config FILE [--parent PID]
       holdfast-hub init --state DIR --hostname NAME [--hostname NAME]...";

enum Task {
    /// With a parent, the hub ends with it.
    Serve(PathBuf, Option<i32>),
    Init(PathBuf, Vec<String>),
}

fn main() -> ExitCode {
    let Some(task) = task(std::env::args().skip(1)) else {
        complain(USAGE);
        return ExitCode::from(2);
    };
    let result = match task {
        Task::Init(folder, names) => init::init(&folder, &names).map_err(|bad| bad.to_string()),
        Task::Serve(file, parent) => bind_to(parent).and_then(|()| serve(&file)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            complain(&format!("holdfast-hub: {why}"));
            ExitCode::FAILURE
        }
    }
}

fn task(mut words: impl Iterator<Item = String>) -> Option<Task> {
    match words.next()?.as_str() {
        "--config" => {
            let file = words.next()?;
            let parent = match words.next().as_deref() {
                None => None,
                Some("--parent") => Some(words.next()?.parse().ok()?),
                Some(_) => return None,
            };
            words
                .next()
                .is_none()
                .then(|| Task::Serve(file.into(), parent))
        }
        "init" => {
            let (mut folder, mut names) = (None, Vec::new());
            while let Some(word) = words.next() {
                match word.as_str() {
                    "--state" => drop(folder.replace(words.next()?)),
                    "--hostname" => names.push(words.next()?),
                    _ => return None,
                }
            }
            (!names.is_empty()).then_some(Task::Init(folder?.into(), names))
        }
        _ => None,
    }
}

/// Ends this process with its parent, which may have gone already.
fn bind_to(parent: Option<i32>) -> Result<(), String> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    let Some(parent) = parent else { return Ok(()) };
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|bad| format!("parent: {bad}"))?;
    let there = getppid().is_some_and(|now| now.as_raw_nonzero().get() == parent);
    if there {
        Ok(())
    } else {
        Err("the parent process is gone".to_owned())
    }
}

fn serve(file: &std::path::Path) -> Result<(), String> {
    let config = Config::read(file).map_err(|bad| bad.to_string())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|bad| format!("runtime: {bad}"))?;
    runtime.block_on(async {
        let mut running = Running::start(config)
            .await
            .map_err(|bad| bad.to_string())?;
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
            .map_err(|bad| format!("signal: {bad}"))?;
        tokio::select! {
            () = running.wait() => Err("a listener or the store ended".to_owned()),
            _ = term.recv() => Ok(()),
            _ = tokio::signal::ctrl_c() => Ok(()),
        }
    })
}

fn complain(text: &str) {
    // If even that fails there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{text}");
}
