//! Reading files that only root or the own user may have written (R78, A89).
//!
//! Each component is opened without following links and judged by what its descriptor says, so
//! what was judged is what is read. The judgement itself is `contract::grant::check_guarded`.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use contract::grant::{Entry, GrantError, check_guarded};
use rustix::fs::{FileType, Mode, OFlags, fstat, open, openat};

/// Longest file read.
const MAX_FILE: u64 = 64 * 1024;

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuardError {
    /// A component cannot be opened; links are not followed.
    #[error("cannot open {path}")]
    Open {
        /// The component.
        path: String,
        /// The system's reason.
        #[source]
        cause: io::Error,
    },
    /// Someone not trusted could change it.
    #[error("unsafe")]
    Unguarded(#[from] GrantError),
    /// It is no plain text file of moderate length.
    #[error("{path} is not a text file of at most 64 KiB")]
    NotText {
        /// The file.
        path: String,
    },
}

impl GuardError {
    /// Whether the last component is simply not there.
    #[must_use]
    pub(crate) fn is_absent(&self, path: &str) -> bool {
        matches!(self, Self::Open { path: at, cause }
            if at == path && cause.kind() == io::ErrorKind::NotFound)
    }
}

/// The text of a guarded file, given by an absolute path without `.` and `..`.
pub(crate) fn read(path: &str, owner: u32) -> Result<String, GuardError> {
    let file = walk(
        path,
        owner,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW,
    )?;
    let not_text = || GuardError::NotText {
        path: path.to_owned(),
    };
    let stat = fstat(&file).map_err(|_| not_text())?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(not_text());
    }
    let mut text = String::new();
    let read = File::from(file)
        .take(MAX_FILE + 1)
        .read_to_string(&mut text);
    match read {
        Ok(length) if length as u64 <= MAX_FILE => Ok(text),
        _ => Err(not_text()),
    }
}

/// A guarded directory.
pub(crate) fn directory(path: &str, owner: u32) -> Result<OwnedFd, GuardError> {
    walk(
        path,
        owner,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW,
    )
}

fn walk(path: &str, owner: u32, last: OFlags) -> Result<OwnedFd, GuardError> {
    let way = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let mut chain = Vec::new();
    let opened = |path: &str, fd: rustix::io::Result<OwnedFd>, chain: &mut Vec<Entry>| {
        let named = |cause: rustix::io::Errno| GuardError::Open {
            path: path.to_owned(),
            cause: cause.into(),
        };
        let fd = fd.map_err(named)?;
        let stat = fstat(&fd).map_err(named)?;
        chain.push(Entry {
            path: path.to_owned(),
            uid: stat.st_uid,
            mode: stat.st_mode,
        });
        Ok::<_, GuardError>(fd)
    };
    let mut at = String::from("/");
    let mut fd = opened(
        &at,
        open("/", way | OFlags::CLOEXEC, Mode::empty()),
        &mut chain,
    )?;
    let mut parts = path.split('/').filter(|part| !part.is_empty()).peekable();
    while let Some(part) = parts.next() {
        if at != "/" {
            at.push('/');
        }
        at.push_str(part);
        let flags = if parts.peek().is_some() { way } else { last };
        let next = openat(&fd, part, flags | OFlags::CLOEXEC, Mode::empty());
        fd = opened(&at, next, &mut chain)?;
    }
    check_guarded(&chain, owner)?;
    Ok(fd)
}
