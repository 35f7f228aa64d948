//! SHA-256 of programs, by descriptor, remembered while the file stays the same.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use aws_lc_rs::digest::{Context, SHA256};
use contract::warden::Executable;
use rustix::time::{ClockId, clock_gettime};

/// Largest program that is measured; a larger one would hold up everybody else.
const MAX_PROGRAM: u64 = 512 << 20;
/// Most programs remembered.
const MAX_REMEMBERED: usize = 256;
/// A file changed this recently is not remembered: within one tick of the file system's clock a
/// second change would not show.
const SETTLED_SECONDS: i64 = 2;

/// Why a program has no digest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DigestError {
    #[error("cannot read the program")]
    Read(#[from] io::Error),
    #[error("the program is larger than 512 MiB")]
    TooLarge,
    #[error("the program changed while it was measured")]
    Changed,
}

/// What identifies one state of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Stamp {
    dev: u64,
    ino: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let m = file.metadata()?;
        let changed = (m.ctime(), m.ctime_nsec());
        Ok(Self {
            dev: m.dev(),
            ino: m.ino(),
            size: m.size(),
            changed,
        })
    }
}

/// Digests already taken, and the files that warden has started.
#[derive(Default)]
pub(crate) struct Digests {
    known: HashMap<Stamp, [u8; 32]>,
    started: HashSet<(u64, u64)>,
}

impl Digests {
    /// Measures a program that is about to be started; its file is read for callers from now on.
    pub(crate) fn measure_granted(
        &mut self,
        file: &File,
    ) -> Result<(Executable, Stamp), DigestError> {
        let (executable, stamp) = self.measure(file)?;
        if self.started.len() >= MAX_REMEMBERED {
            self.started.clear();
        }
        self.started.insert((stamp.dev, stamp.ino));
        Ok((executable, stamp))
    }

    /// Measures the program of a caller; `None` for a file that warden has never started: it is
    /// no module's program whatever its bytes, and reading what a stranger offers would let a large
    /// file of theirs hold up everybody else.
    pub(crate) fn measure_caller(
        &mut self,
        file: &File,
    ) -> Result<(Executable, bool), DigestError> {
        let Stamp { dev, ino, .. } = Stamp::of(file)?;
        if self.started.contains(&(dev, ino)) {
            return Ok((self.measure(file)?.0, true));
        }
        let digest = [0; 32];
        Ok((Executable { dev, ino, digest }, false))
    }

    fn measure(&mut self, file: &File) -> Result<(Executable, Stamp), DigestError> {
        let stamp = Stamp::of(file)?;
        let digest = match self.known.get(&stamp) {
            Some(digest) => *digest,
            None => {
                let digest = hash(file, stamp.size)?;
                if Stamp::of(file)? != stamp {
                    return Err(DigestError::Changed);
                }
                self.remember(stamp, digest);
                digest
            }
        };
        Ok((
            Executable {
                dev: stamp.dev,
                ino: stamp.ino,
                digest,
            },
            stamp,
        ))
    }

    fn remember(&mut self, stamp: Stamp, digest: [u8; 32]) {
        let now = clock_gettime(ClockId::RealtimeCoarse).tv_sec;
        if now.saturating_sub(stamp.changed.0) < SETTLED_SECONDS {
            return;
        }
        if self.known.len() >= MAX_REMEMBERED {
            self.known.clear();
        }
        self.known.insert(stamp, digest);
    }
}

fn hash(file: &File, size: u64) -> Result<[u8; 32], DigestError> {
    if size > MAX_PROGRAM {
        return Err(DigestError::TooLarge);
    }
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 64 * 1024];
    let mut at = 0;
    while at < size {
        match file.read_at(&mut buffer, at)? {
            0 => return Err(DigestError::Changed),
            read => {
                context.update(&buffer[..read]);
                at += read as u64;
            }
        }
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    Ok(digest)
}
