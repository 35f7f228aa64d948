//! `holdfast`: a person's hand on the device. Talks to the daemons' sockets, holds no secret.
//!
//! Exit codes: 0 fine, 1 problem, 2 usage, 3 cannot reach a daemon, 4 not permitted.

pub mod audit;
pub mod output;
pub mod quickstart;
pub mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::output::Output;

/// Holdfast: keys, identities and modules of an edge device.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// How results are printed.
    #[arg(long, global = true, value_enum, default_value = "text")]
    output: Output,
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Start a hub and a device in a throw-away folder and prove each step.
    Quickstart(quickstart::Options),
    /// Show each daemon.
    Status(status::Sockets),
    /// Check an audit log.
    Audit {
        #[command(subcommand)]
        task: audit::Task,
    },
    /// Look at modules.
    Module {
        #[command(subcommand)]
        task: ModuleTask,
    },
}

#[derive(Debug, Subcommand)]
enum ModuleTask {
    /// List them.
    List {
        /// Management socket of runtimed.
        #[arg(long, default_value = "/var/run/iotedge/mgmt.sock")]
        management: PathBuf,
    },
}

/// Reads the arguments and does what they say.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let form = arguments.output;
    let exit = match arguments.task {
        Task::Quickstart(options) => quickstart::run(options, form),
        Task::Status(sockets) => status::run(&sockets, form),
        Task::Audit { task } => audit::run(task, form),
        Task::Module {
            task: ModuleTask::List { management },
        } => status::modules(&management, form),
    };
    ExitCode::from(exit as u8)
}
