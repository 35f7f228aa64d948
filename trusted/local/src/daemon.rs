//! What each daemon does before it serves and when it stops (R26, R79, R80, A144).
//!
//! The environment decides nothing here: where the configuration lies is an argument. Whatever the
//! process was given by its starter (closed standard streams, an odd umask, room for core dumps)
//! is set right before the first file is opened.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::log;
pub use crate::os::landlock::Access;
use crate::os::{landlock, process};

/// The arguments of a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Daemon {
    /// The main configuration file.
    pub config: PathBuf,
    /// The folder of further configuration files.
    pub config_dir: PathBuf,
}

/// Why a daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The arguments.
    #[error("{0}; usage: [--config FILE] [--config-dir DIR] [--parent PID]")]
    Usage(String),
    /// The process cannot be made safe.
    #[error("preparing the process failed: {step}")]
    Prepare {
        /// Which step.
        step: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The process that should be the parent has gone already.
    #[error("the parent process is gone")]
    Orphan,
}

impl Daemon {
    /// Reads the arguments and prepares the process. Call first, before there are threads.
    ///
    /// # Errors
    /// [`StartError`]; the daemon must not go on.
    pub fn prepare(
        arguments: impl IntoIterator<Item = String>,
        config: &str,
    ) -> Result<Self, StartError> {
        let (daemon, parent) = parse(arguments, Path::new(config))?;
        prepare_process(parent)?;
        Ok(daemon)
    }

    /// Waits for the request to stop.
    pub fn wait_for_stop() {
        process::wait_for_stop();
    }
}

fn parse(
    arguments: impl IntoIterator<Item = String>,
    config: &Path,
) -> Result<(Daemon, Option<i32>), StartError> {
    let mut daemon = Daemon {
        config: config.to_owned(),
        config_dir: PathBuf::new(),
    };
    let mut dir = None;
    let mut parent = None;
    let mut arguments = arguments.into_iter();
    while let Some(name) = arguments.next() {
        let value = arguments.next();
        let needed = || StartError::Usage(format!("{name} needs a value"));
        match name.as_str() {
            "--config" => daemon.config = value.ok_or_else(needed)?.into(),
            "--config-dir" => dir = Some(PathBuf::from(value.ok_or_else(needed)?)),
            "--parent" => {
                let text = value.ok_or_else(needed)?;
                let bad = |_| StartError::Usage("--parent needs a process number".to_owned());
                parent = Some(text.parse().map_err(bad)?);
            }
            _ => return Err(StartError::Usage(format!("unknown argument {name:?}"))),
        }
    }
    daemon.config_dir = dir.unwrap_or_else(|| daemon.config.with_file_name("config.d"));
    Ok((daemon, parent))
}

/// Descriptors a daemon may have: more than all connections of all its threads can hold.
const FILES: u64 = 16_384;

fn prepare_process(parent: Option<i32>) -> Result<(), StartError> {
    let step = |step| move |cause: io::Error| StartError::Prepare { step, cause };
    // A file opened on number 0 to 2 would receive what is printed.
    loop {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty())
            .map_err(|e| step("open standard streams")(e.into()))?;
        if std::os::fd::AsRawFd::as_raw_fd(&null) > 2 {
            break;
        }
        std::mem::forget(null);
    }
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(|e| step("forbid core dumps")(e.into()))?;
    // Connections hold a few descriptors each; what the starter left as a soft limit is too few.
    let files = getrlimit(Resource::Nofile);
    let most = files.maximum.unwrap_or(FILES).min(FILES);
    let files = Rlimit {
        current: Some(most),
        maximum: files.maximum,
    };
    setrlimit(Resource::Nofile, files).map_err(|e| step("raise the limit of files")(e.into()))?;
    process::no_new_privileges().map_err(step("forbid new privileges"))?;
    process::no_dumps().map_err(step("forbid dumps"))?;
    if let Some(parent) = parent {
        process::die_with_parent().map_err(step("bind to the parent"))?;
        // It may have gone before the binding took hold.
        if rustix::process::getppid().is_none_or(|now| now.as_raw_nonzero().get() != parent) {
            return Err(StartError::Orphan);
        }
    }
    process::block_stop_signals().map_err(step("block signals"))?;
    process::few_heaps();
    Ok(())
}

/// Limits this process to the listed paths (R80). A kernel without Landlock is reported, not
/// refused: file modes and users still hold.
///
/// # Errors
/// When the kernel has it and refuses.
pub fn confine(paths: &[(&Path, Access)]) -> Result<(), StartError> {
    match landlock::restrict(paths) {
        Ok(()) => Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP)) => {
            log::warn("this kernel has no Landlock: only file modes confine this process");
            Ok(())
        }
        Err(cause) => Err(StartError::Prepare {
            step: "confine to its paths",
            cause,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Result<(Daemon, Option<i32>), StartError> {
        parse(
            words.iter().map(|w| (*w).to_owned()),
            Path::new("/etc/x/config.toml"),
        )
    }

    #[test]
    fn arguments_say_where_the_configuration_is() {
        let (daemon, parent) = read(&[]).unwrap();
        assert_eq!(daemon.config_dir, Path::new("/etc/x/config.d"));
        assert_eq!(parent, None);
        let (daemon, parent) = read(&["--config", "/a/b.toml", "--parent", "7"]).unwrap();
        assert_eq!(daemon.config_dir, Path::new("/a/config.d"));
        assert_eq!(parent, Some(7));
        for bad in [&["--config"][..], &["--parent", "x"], &["-v"], &["x"]] {
            assert!(matches!(read(bad), Err(StartError::Usage(_))), "{bad:?}");
        }
    }
}
