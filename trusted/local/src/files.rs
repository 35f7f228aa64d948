//! The one way to write a file (R74), and to read one that must not be someone else's (A135).
//!
//! A [`Dir`] is a directory held by its descriptor and checked for owner and mode when it was
//! opened; every file in it is reached from there, by one path component, without following links.
//! [`Dir::replace`] writes a temporary file, makes it durable, exchanges it with the old one and
//! keeps that as the previous generation. After a power cut there is the old or the new file, never
//! neither, and never half of one. A failed fsync is final for the file it concerned: that file is
//! removed, and a new attempt writes a new one.
//!
//! The effects are a small trait, [`Disk`]: the real one is below, and `sim` has one that loses
//! power. Records of our own, with version and checksum, are in [`crate::records`].

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

/// What went wrong with a file, and which.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Owner, mode or kind is not what it must be; nothing was read or changed (A135).
    #[error("{path} is refused: {why}")]
    Unsafe {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Longer than its reader allows.
    #[error("{path} is longer than {limit} bytes")]
    TooLong {
        /// The file.
        path: PathBuf,
        /// What was allowed.
        limit: usize,
    },
    /// Not one plain path component.
    #[error("{name:?} cannot be a file name here")]
    Name {
        /// The text.
        name: String,
    },
    /// The operating system refused.
    #[error("cannot {operation} {path}: {cause}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Its answer.
        #[source]
        cause: io::Error,
    },
    /// A record of ours, and its previous generation, cannot be trusted (R75).
    #[error("{path} is damaged ({why}), and so is its previous generation, or there is none")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A record of ours from a later release.
    #[error("{path} was written by a later release (version {version})")]
    Later {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
}

impl FileError {
    /// Whether there was no space (event `store.full`); worth another try later.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { cause, .. } if matches!(
            cause.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        ))
    }
}

/// Whose a file must be, and what others may not do with it.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// The owner.
    uid: u32,
    /// Whether root may own it instead.
    root_too: bool,
    /// Permission bits that must not be set.
    forbidden: u32,
}

impl Rules {
    /// State of one daemon: its own, and nobody else's to read.
    #[must_use]
    pub const fn private(uid: u32) -> Self {
        Self {
            uid,
            root_too: false,
            forbidden: 0o077,
        }
    }

    /// Configuration: root's or the daemon's own, not writable by others (R78).
    #[must_use]
    pub const fn guarded(uid: u32) -> Self {
        Self {
            uid,
            root_too: true,
            forbidden: 0o022,
        }
    }

    /// A secret placed by an administrator: root's or the daemon's own, not readable by all.
    #[must_use]
    pub const fn secret(uid: u32) -> Self {
        Self {
            uid,
            root_too: true,
            forbidden: 0o027,
        }
    }

    fn check(&self, stat: &Stat, kind: FileType) -> Result<(), &'static str> {
        if FileType::from_raw_mode(stat.st_mode) != kind {
            return Err(if kind == FileType::Directory {
                "not a directory"
            } else {
                "not a regular file"
            });
        }
        if stat.st_uid != self.uid && !(self.root_too && stat.st_uid == 0) {
            return Err("owned by another user");
        }
        if stat.st_mode & self.forbidden != 0 {
            return Err("others have more access than they may");
        }
        if kind == FileType::RegularFile && stat.st_nlink > 1 {
            return Err("it has a second name (hard link)");
        }
        Ok(())
    }
}

/// The user whose files are ours.
#[must_use]
pub fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// What happens to files, one durable step each, in one directory. Names are single components.
///
/// An implementation may lose what was not made durable, in any combination, and nothing else.
pub trait Disk: Send + Sync {
    /// Where it is, for messages.
    fn path(&self) -> &Path;
    /// The whole file; `None` when there is none.
    ///
    /// # Errors
    /// [`FileError`], also when the file breaks the directory's rules.
    fn read(&self, name: &str, limit: usize) -> Result<Option<Vec<u8>>, FileError>;
    /// Every name in it, dot files included, in no order.
    ///
    /// # Errors
    /// Of the operating system.
    fn names(&self) -> io::Result<Vec<String>>;
    /// Creates a file that must not exist, writes it, and makes its content durable.
    ///
    /// # Errors
    /// Of the operating system; the file may then exist in part.
    fn create(&self, name: &str, bytes: &[u8], mode: u32) -> io::Result<()>;
    /// Appends to a file, creating it if absent, and makes its content durable if asked.
    ///
    /// # Errors
    /// Of the operating system; a part may then have been written.
    fn append(&self, name: &str, bytes: &[u8], mode: u32, durable: bool) -> io::Result<()>;
    /// Cuts a file to a length and makes that durable.
    ///
    /// # Errors
    /// Of the operating system.
    fn truncate(&self, name: &str, length: u64) -> io::Result<()>;
    /// Gives a file another name, replacing what has it; not durable before [`Self::sync`].
    ///
    /// # Errors
    /// Of the operating system.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Exchanges the names of two files, in one step; not durable before [`Self::sync`].
    ///
    /// # Errors
    /// Of the operating system; [`io::ErrorKind::Unsupported`] where it cannot.
    fn exchange(&self, one: &str, other: &str) -> io::Result<()>;
    /// Removes a name; not durable before [`Self::sync`].
    ///
    /// # Errors
    /// Of the operating system.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes names durable.
    ///
    /// # Errors
    /// Of the operating system.
    fn sync(&self) -> io::Result<()>;
}

/// What the previous generation of a file is called.
const PREVIOUS: &str = ".prev";
/// Longest name, so that its previous generation still has one.
const MAX_NAME: usize = 255 - PREVIOUS.len();
/// What a file is called until it is complete.
const TEMPORARY: &str = ".new";

/// A directory of files that are written whole. Clones share it.
#[derive(Clone)]
pub struct Dir {
    disk: Arc<dyn Disk>,
    temporary: Arc<AtomicU64>,
    /// Names may be shown that the disk does not hold yet: nobody knows what happened before us,
    /// and after a failed sync.
    unsure: Arc<AtomicBool>,
}

impl fmt::Debug for Dir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Dir").field(&self.disk.path()).finish()
    }
}

impl Dir {
    /// Opens a directory by path; what an interrupted write left in it is removed.
    ///
    /// # Errors
    /// [`FileError::Unsafe`] when it is a link, or its owner or mode is not what `rules` ask.
    pub fn open(path: &Path, rules: Rules) -> Result<Self, FileError> {
        Self::over(Arc::new(RealDisk::open(path, rules)?))
    }

    /// Opens a directory for reading only: nothing in it is touched.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn look(path: &Path, rules: Rules) -> Result<Self, FileError> {
        Ok(Self {
            disk: Arc::new(RealDisk::open(path, rules)?),
            temporary: Arc::default(),
            unsure: Arc::new(AtomicBool::new(false)),
        })
    }

    /// As [`Self::open`], creating the directory (0700) when it is absent; its parent must exist.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_or_create(path: &Path, rules: Rules) -> Result<Self, FileError> {
        match rustix::fs::mkdir(path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => Self::open(path, rules),
            Err(cause) => Err(FileError::Io {
                operation: "create directory",
                path: path.to_owned(),
                cause: cause.into(),
            }),
        }
    }

    /// A directory over another disk.
    ///
    /// # Errors
    /// [`FileError::Io`] when what an interrupted write left cannot be removed.
    pub fn over(disk: Arc<dyn Disk>) -> Result<Self, FileError> {
        let dir = Self {
            disk,
            temporary: Arc::default(),
            unsure: Arc::new(AtomicBool::new(true)),
        };
        let leftover = |n: &&String| n.starts_with('.') && n.ends_with(TEMPORARY);
        for name in dir.names()?.iter().filter(leftover) {
            dir.io("remove", name, dir.disk.remove(name))?;
        }
        Ok(dir)
    }

    /// Where it is, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.disk.path()
    }

    /// The whole file; `None` when there is none.
    ///
    /// # Errors
    /// [`FileError`] when it is too long, not ours, or cannot be read.
    pub fn read(&self, name: &str, limit: usize) -> Result<Option<Vec<u8>>, FileError> {
        self.disk.read(checked(name)?, limit)
    }

    /// The generation before the current one, while it is kept.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_previous(&self, name: &str, limit: usize) -> Result<Option<Vec<u8>>, FileError> {
        self.disk
            .read(&format!("{}{PREVIOUS}", checked(name)?), limit)
    }

    /// Writes the whole file. When this returns, the new content is durable and the old one is
    /// the previous generation; on an error the old content is in place, or, if only the last
    /// step failed, possibly the new one.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn replace(&self, name: &str, bytes: &[u8], mode: u32) -> Result<(), FileError> {
        let name = checked(name)?;
        let number = self.temporary.fetch_add(1, Ordering::Relaxed);
        let temporary = format!(".{}.{number}{TEMPORARY}", std::process::id());
        let done = self
            .io("write", name, self.disk.create(&temporary, bytes, mode))
            .and_then(|()| self.put_in_place(&temporary, name));
        if done.is_err() {
            // The attempt is over; what is left of it is removed now or at the next start.
            let _ = self.disk.remove(&temporary);
        }
        done
    }

    fn put_in_place(&self, temporary: &str, name: &str) -> Result<(), FileError> {
        match self.disk.exchange(temporary, name) {
            Ok(()) => {
                let previous = format!("{name}{PREVIOUS}");
                self.io("keep", &previous, self.disk.rename(temporary, &previous))?;
            }
            // No file yet, or a file system that cannot exchange and so keeps no generation.
            Err(cause)
                if matches!(
                    cause.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::Unsupported
                        | io::ErrorKind::InvalidInput
                ) =>
            {
                self.io("rename", name, self.disk.rename(temporary, name))?;
            }
            Err(cause) => return self.io("exchange", name, Err(cause)),
        }
        self.sync_names(name)
    }

    /// Removes a file and its previous generation; one that is not there is no error.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn delete(&self, name: &str) -> Result<(), FileError> {
        let name = checked(name)?;
        self.forget(name)?;
        self.io("remove", name, absent_is_fine(self.disk.remove(name)))?;
        self.sync_names(name)
    }

    /// Removes the previous generation only.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn forget_previous(&self, name: &str) -> Result<(), FileError> {
        let name = checked(name)?;
        self.forget(name)?;
        self.sync_names(name)
    }

    fn forget(&self, name: &str) -> Result<(), FileError> {
        let previous = format!("{name}{PREVIOUS}");
        let gone = absent_is_fine(self.disk.remove(&previous));
        self.io("remove", &previous, gone)
    }

    /// Gives a file another name, replacing what has it. Previous generations of both go.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn rename(&self, from: &str, to: &str) -> Result<(), FileError> {
        let (from, to) = (checked(from)?, checked(to)?);
        self.io("move", from, self.disk.rename(from, to))?;
        self.forget(from)?;
        self.forget(to)?;
        self.sync_names(to)
    }

    /// Appends to a file; durable when this returns, if asked.
    ///
    /// # Errors
    /// [`FileError::Io`]; a part may have been written.
    pub fn append(&self, name: &str, bytes: &[u8], durable: bool) -> Result<(), FileError> {
        let name = checked(name)?;
        self.io(
            "append to",
            name,
            self.disk.append(name, bytes, 0o600, durable),
        )
    }

    /// Makes new names durable: after the first [`Self::append`] to a file.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn sync(&self) -> Result<(), FileError> {
        self.sync_names("")
    }

    /// Makes sure that what is read here is what the disk holds, before something is promised on
    /// the strength of it. Costs nothing unless a sync failed, or nothing was synced yet.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn settle(&self) -> Result<(), FileError> {
        if self.unsure.load(Ordering::Acquire) {
            return self.sync();
        }
        Ok(())
    }

    fn sync_names(&self, name: &str) -> Result<(), FileError> {
        // Unsure until it has succeeded, and again for whoever changes a name meanwhile.
        self.unsure.store(true, Ordering::Release);
        self.io("sync the directory of", name, self.disk.sync())?;
        self.unsure.store(false, Ordering::Release);
        Ok(())
    }

    /// Cuts a file.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn truncate(&self, name: &str, length: u64) -> Result<(), FileError> {
        let name = checked(name)?;
        self.io("truncate", name, self.disk.truncate(name, length))
    }

    /// Names of the files, sorted, without previous generations and unfinished ones.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn list(&self) -> Result<BTreeSet<String>, FileError> {
        let own = |n: &String| !n.starts_with('.') && !n.ends_with(PREVIOUS);
        Ok(self.names()?.into_iter().filter(own).collect())
    }

    /// Names of the files whose previous generation is kept.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn kept(&self) -> Result<BTreeSet<String>, FileError> {
        let names = self.names()?;
        let kept = names.iter().filter_map(|n| n.strip_suffix(PREVIOUS));
        Ok(kept.map(ToOwned::to_owned).collect())
    }

    fn names(&self) -> Result<Vec<String>, FileError> {
        self.io("list", "", self.disk.names())
    }

    fn io<T>(
        &self,
        operation: &'static str,
        name: &str,
        done: io::Result<T>,
    ) -> Result<T, FileError> {
        done.map_err(|cause| {
            self.unsure.store(true, Ordering::Release);
            FileError::Io {
                operation,
                path: self.path().join(name),
                cause,
            }
        })
    }
}

/// A name from our own code: one component that is not hidden and no generation of another.
fn checked(name: &str) -> Result<&str, FileError> {
    let fits = !name.is_empty()
        && name.len() <= MAX_NAME
        && !name.starts_with('.')
        && !name.ends_with(PREVIOUS)
        && !name.bytes().any(|b| b == b'/' || b == 0);
    if fits {
        return Ok(name);
    }
    Err(FileError::Name {
        name: name.to_owned(),
    })
}

fn absent_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Takes a directory over that another program may have filled: access that others do not need is
/// taken away, and what others could have changed is refused. Call it before [`Dir::open`], for a
/// directory below one that is already private, so that nobody could reach it meanwhile. The names
/// of files whose mode was changed are given back.
///
/// # Errors
/// [`FileError::Unsafe`] for the first file that is a link, has a second name, is another user's,
/// or could be written by others (A135).
pub fn take_over(path: &Path, uid: u32) -> Result<Vec<String>, FileError> {
    let rules = Rules {
        uid,
        root_too: false,
        forbidden: 0o022,
    };
    let dir = match RealDisk::open(path, rules) {
        Err(FileError::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {
            return Ok(Vec::new());
        }
        opened => opened?,
    };
    let failed = |name: &str| {
        let path = path.join(name);
        move |cause: Errno| FileError::Io {
            operation: "take over",
            path,
            cause: cause.into(),
        }
    };
    rustix::fs::fchmod(&dir.fd, Mode::RWXU).map_err(failed(""))?;
    let names = dir.names().map_err(|cause| FileError::Io {
        operation: "list",
        path: path.to_owned(),
        cause,
    })?;
    let mut changed = Vec::new();
    for name in names {
        let refused = |why| FileError::Unsafe {
            path: path.join(&name),
            why,
        };
        let file = match rustix::fs::openat(&dir.fd, name.as_str(), READ, Mode::empty()) {
            Err(Errno::LOOP) => return Err(refused("a symbolic link")),
            opened => opened.map_err(failed(&name))?,
        };
        let stat = rustix::fs::fstat(&file).map_err(failed(&name))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            continue;
        }
        rules.check(&stat, FileType::RegularFile).map_err(refused)?;
        if stat.st_mode & 0o077 != 0 {
            let own = Mode::from_raw_mode(stat.st_mode & 0o600);
            rustix::fs::fchmod(&file, own).map_err(failed(&name))?;
            changed.push(name);
        }
    }
    Ok(changed)
}

/// Reads one file outside any directory of ours, such as a key placed by an administrator. The
/// last component is not followed if it is a link; what leads there is the administrator's.
///
/// # Errors
/// [`FileError`]; an absent file is `None`.
pub fn read_at(path: &Path, rules: Rules, limit: usize) -> Result<Option<Vec<u8>>, FileError> {
    let opened = rustix::fs::open(path, READ, Mode::empty());
    read_checked(opened, path, rules, limit)
}

const READ: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);

fn read_checked(
    opened: rustix::io::Result<OwnedFd>,
    path: &Path,
    rules: Rules,
    limit: usize,
) -> Result<Option<Vec<u8>>, FileError> {
    let io = |cause: io::Error| FileError::Io {
        operation: "read",
        path: path.to_owned(),
        cause,
    };
    let refused = |why| FileError::Unsafe {
        path: path.to_owned(),
        why,
    };
    let file = match opened {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP) => return Err(refused("a symbolic link")),
        Err(cause) => return Err(io(cause.into())),
    };
    let stat = rustix::fs::fstat(&file).map_err(|cause| io(cause.into()))?;
    rules.check(&stat, FileType::RegularFile).map_err(refused)?;
    let expected = usize::try_from(stat.st_size).unwrap_or(usize::MAX);
    let too_long = || FileError::TooLong {
        path: path.to_owned(),
        limit,
    };
    if expected > limit {
        return Err(too_long());
    }
    // One allocation: a secret that is read leaves no smaller copies behind.
    let mut bytes = Vec::with_capacity(expected.max(64) + 1);
    let room = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    File::from(file)
        .take(room)
        .read_to_end(&mut bytes)
        .map_err(io)?;
    if bytes.len() > limit {
        return Err(too_long());
    }
    Ok(Some(bytes))
}

/// A directory of the file system.
struct RealDisk {
    fd: OwnedFd,
    path: PathBuf,
    rules: Rules,
}

impl RealDisk {
    fn open(path: &Path, rules: Rules) -> Result<Self, FileError> {
        let io = |cause: Errno| FileError::Io {
            operation: "open",
            path: path.to_owned(),
            cause: cause.into(),
        };
        let refused = |why| FileError::Unsafe {
            path: path.to_owned(),
            why,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::LOOP | Errno::NOTDIR) => {
                return Err(refused("a symbolic link, or not a directory"));
            }
            Err(cause) => return Err(io(cause)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(io)?;
        rules.check(&stat, FileType::Directory).map_err(refused)?;
        Ok(Self {
            fd,
            path: path.to_owned(),
            rules,
        })
    }

    fn open_file(&self, name: &str, flags: OFlags, mode: u32) -> io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(mode))?;
        Ok(File::from(fd))
    }
}

impl Disk for RealDisk {
    fn path(&self) -> &Path {
        &self.path
    }

    fn read(&self, name: &str, limit: usize) -> Result<Option<Vec<u8>>, FileError> {
        let opened = rustix::fs::openat(&self.fd, name, READ, Mode::empty());
        read_checked(opened, &self.path.join(name), self.rules, limit)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd)? {
            let entry = entry?;
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry.file_name().to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let mut file = self.open_file(name, flags, 0o600)?;
        file.write_all(bytes)?;
        if mode != 0o600 {
            // Set, not asked for: the mode must not depend on the umask (A144).
            rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        }
        file.sync_all()
    }

    fn append(&self, name: &str, bytes: &[u8], mode: u32, durable: bool) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND;
        let mut file = self.open_file(name, flags, mode)?;
        file.write_all(bytes)?;
        if durable { file.sync_data() } else { Ok(()) }
    }

    fn truncate(&self, name: &str, length: u64) -> io::Result<()> {
        let file = self.open_file(name, OFlags::WRONLY, 0)?;
        file.set_len(length)?;
        file.sync_all()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.fd, from, &self.fd, to)?)
    }

    fn exchange(&self, one: &str, other: &str) -> io::Result<()> {
        let flags = RenameFlags::EXCHANGE;
        Ok(rustix::fs::renameat_with(
            &self.fd, one, &self.fd, other, flags,
        )?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.fd, name, AtFlags::empty())?)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.fd)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Scratch, chmod, put};

    fn private(scratch: &Scratch) -> Rules {
        Rules::private(scratch.uid())
    }

    #[test]
    fn a_file_is_replaced_and_its_previous_generation_kept() {
        let scratch = Scratch::new();
        let dir = Dir::open(scratch.path(), private(&scratch)).unwrap();
        assert_eq!(dir.read("a", 10).unwrap(), None);
        for text in ["one", "two", "three"] {
            dir.replace("a", text.as_bytes(), 0o600).unwrap();
        }
        assert_eq!(dir.read("a", 10).unwrap().unwrap(), b"three");
        assert_eq!(dir.read_previous("a", 10).unwrap().unwrap(), b"two");
        assert!(matches!(dir.read("a", 4), Err(FileError::TooLong { .. })));
        assert_eq!(dir.read("a", 5).unwrap().unwrap(), b"three");
        dir.replace("b", b"b", 0o640).unwrap();
        assert_eq!(Vec::from_iter(dir.list().unwrap()), ["a", "b"]);
        dir.rename("a", "b").unwrap();
        assert_eq!(Vec::from_iter(dir.names().unwrap()), ["b"]);
        assert_eq!(dir.read("b", 10).unwrap().unwrap(), b"three");
        dir.delete("b").unwrap();
        dir.delete("b").unwrap();
        assert!(dir.names().unwrap().is_empty());
    }

    #[test]
    fn a33_a_name_is_one_plain_component() {
        let scratch = Scratch::new();
        let dir = Dir::open(scratch.path(), private(&scratch)).unwrap();
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "/etc/passwd",
            "../x",
            ".hidden",
            "a\0b",
            "a.prev",
        ] {
            assert!(
                matches!(dir.read(bad, 1), Err(FileError::Name { .. })),
                "{bad}"
            );
            assert!(dir.replace(bad, b"", 0o600).is_err(), "{bad}");
            assert!(dir.rename("a", bad).is_err(), "{bad}");
            assert!(dir.delete(bad).is_err(), "{bad}");
        }
        assert!(dir.names().unwrap().is_empty());
    }

    #[test]
    fn a135_what_is_not_ours_alone_is_refused_with_its_path() {
        let scratch = Scratch::new();
        let state = scratch.path().join("state");
        let rules = private(&scratch);
        let dir = Dir::open_or_create(&state, rules).unwrap();
        let refused = |done: Result<(), FileError>, path: &Path| match done {
            Err(FileError::Unsafe { path: named, .. }) => assert_eq!(named, path),
            other => panic!("{other:?}"),
        };
        let read = |name: &str| dir.read(name, 10).map(drop);
        let open = |path: &Path| Dir::open(path, rules).map(drop);
        // Files: mode, link, second name, directory, pipe.
        put(&state.join("file"), "x");
        for mode in [0o604, 0o640, 0o602, 0o620, 0o601] {
            chmod(&state.join("file"), mode);
            refused(read("file"), &state.join("file"));
        }
        chmod(&state.join("file"), 0o600);
        std::os::unix::fs::symlink("file", state.join("link")).unwrap();
        refused(read("link"), &state.join("link"));
        std::os::unix::fs::symlink("nowhere", state.join("dangling")).unwrap();
        refused(read("dangling"), &state.join("dangling"));
        std::fs::create_dir(state.join("dir")).unwrap();
        refused(read("dir"), &state.join("dir"));
        let fifo = state.join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::from_raw_mode(0o600)).unwrap();
        refused(read("pipe"), &fifo);
        std::fs::hard_link(state.join("file"), scratch.path().join("second")).unwrap();
        refused(read("file"), &state.join("file"));
        std::fs::remove_file(scratch.path().join("second")).unwrap();
        read("file").unwrap();
        // The directory: mode, link, another owner.
        for mode in [0o701, 0o710, 0o770, 0o777] {
            chmod(&state, mode);
            refused(open(&state), &state);
        }
        chmod(&state, 0o700);
        let link = scratch.path().join("to-state");
        std::os::unix::fs::symlink(&state, &link).unwrap();
        refused(open(&link), &link);
        let another = Rules::private(scratch.uid() + 1);
        refused(Dir::open(&state, another).map(drop), &state);
        refused(
            read_at(&state.join("file"), another, 10).map(drop),
            &state.join("file"),
        );
    }

    #[test]
    fn what_an_interrupted_write_left_is_removed_at_start() {
        let scratch = Scratch::new();
        put(&scratch.path().join(".key.7.new"), "half");
        let looked = Dir::look(scratch.path(), private(&scratch)).unwrap();
        assert_eq!(looked.names().unwrap().len(), 1);
        let dir = Dir::open(scratch.path(), private(&scratch)).unwrap();
        assert!(dir.names().unwrap().is_empty());
    }
}
