//! `holdfast-puppet`: the tricks of [`shim`] on a command line, one before another.
//!
//! Without words it is a module's puppet and finds its control in the environment. Else:
//! `be CONTROL LABEL [NUMBERS]` is a puppet; `run PROGRAM ...` becomes a program; before either,
//! `place ...` makes the process elsewhere, `old-kernel` forgets process descriptors, `files N`
//! allows so many descriptors, and `odd` leaves closed standard streams, no umask and the widest
//! limits behind.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use rustix::process::{Pid, Resource, Rlimit, WaitOptions, setrlimit, waitpid};
use shim::process::Place;
use shim::{kernel, process, puppet};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // Whoever waits for this process sees by its end that something went wrong.
    match obey(&words) {
        Ok(code) => ExitCode::from(code),
        Err(_) => ExitCode::FAILURE,
    }
}

fn obey(words: &[String]) -> io::Result<u8> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] => {
            let (control, label) = (variable(puppet::CONTROL)?, variable("IOTEDGE_MODULEID")?);
            puppet::serve(Path::new(&control), &label, &[]).map(|()| 0)
        }
        ["be", control, label, numbers @ ..] => {
            let numbers = numbers.iter().flat_map(|list| list.split(','));
            let numbers: Vec<i32> = numbers.filter_map(|number| number.parse().ok()).collect();
            puppet::serve(Path::new(control), label, &numbers).map(|()| 0)
        }
        ["run", program, arguments @ ..] => {
            #[expect(clippy::disallowed_methods, reason = "becomes another program")]
            let error = Command::new(program).args(arguments).exec();
            Err(error)
        }
        ["old-kernel", rest @ ..] => {
            kernel::forget_process_descriptors()?;
            obey(&owned(rest))
        }
        ["odd", rest @ ..] => {
            rustix::process::umask(rustix::fs::Mode::empty());
            for resource in [Resource::Core, Resource::Stack, Resource::Nofile] {
                let maximum = rustix::process::getrlimit(resource).maximum;
                let widest = Rlimit {
                    current: maximum,
                    maximum,
                };
                setrlimit(resource, widest)?;
            }
            process::close_standard_streams();
            obey(&owned(rest))
        }
        ["files", most, rest @ ..] => {
            let limit = Rlimit {
                current: Some(most.parse().map_err(io::Error::other)?),
                maximum: rustix::process::getrlimit(Resource::Nofile).maximum,
            };
            setrlimit(Resource::Nofile, limit)?;
            obey(&owned(rest))
        }
        ["place", rest @ ..] => {
            let (place, rest) = place(rest)?;
            let rest = owned(rest);
            let child = process::put(&place, || obey(&rest).map_or(1, i32::from))?;
            let ended = waitpid(Pid::from_raw(child), WaitOptions::empty())?;
            let code = ended.and_then(|(_, status)| status.exit_status());
            Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
        }
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// `name=value` words, up to the first that is none.
fn place<'a>(words: &'a [&'a str]) -> io::Result<(Place, &'a [&'a str])> {
    let mut place = Place::default();
    let mut outside = None;
    let mut inside = None;
    let mut used = 0;
    while let Some((name, value)) = words.get(used).and_then(|word| word.split_once('=')) {
        let number = || value.parse::<i32>().map_err(io::Error::other);
        let id = || value.parse::<u32>().map_err(io::Error::other);
        match name {
            "pid-namespace" if value == "new" => place.new_pid_namespace = true,
            "pid-namespace" => place.pid_namespace = Some(value.into()),
            "cgroup" => place.cgroup = Some(value.into()),
            "pid" => outside = Some(number()?),
            "inner-pid" => inside = Some(number()?),
            "uid" => place.ids = Some((id()?, place.ids.map_or(0, |ids| ids.1))),
            "gid" => place.ids = Some((place.ids.map_or(0, |ids| ids.0), id()?)),
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
        used += 1;
    }
    place.pid = outside.map(|outside| (outside, inside));
    Ok((place, &words[used..]))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a module is configured by its environment"
)]
fn variable(name: &str) -> io::Result<String> {
    std::env::var(name).map_err(io::Error::other)
}
