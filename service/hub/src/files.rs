//! The few files of the service: written whole and durably, readable by their owner only.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// The largest configuration, key or certificate file that is read.
const MAX_FILE: u64 = 1 << 20;

/// Makes a folder that only its owner can enter; one that exists must be like that.
///
/// # Errors
/// Of the file system, or `PermissionDenied` when others can enter it.
pub(crate) fn private_folder(folder: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(bad) if bad.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    let found = fs::symlink_metadata(folder)?;
    if !found.is_dir() || found.mode() & 0o077 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "not a folder that only its owner can enter (mode 0700)",
        ));
    }
    Ok(())
}

/// Writes a file: whole and on the disk, or not at all.
///
/// # Errors
/// Of the file system.
pub(crate) fn replace(folder: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let temporary = folder.join(format!(".{name}.new"));
    // Left by an earlier run that was cut off.
    remove(folder, &format!(".{name}.new"))?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the service's write primitive (R74)"
    )]
    fs::rename(&temporary, folder.join(name))?;
    File::open(folder)?.sync_all()
}

/// Removes a file; one that is not there is as good.
///
/// # Errors
/// Of the file system.
pub(crate) fn remove(folder: &Path, name: &str) -> io::Result<()> {
    match fs::remove_file(folder.join(name)) {
        Err(bad) if bad.kind() != io::ErrorKind::NotFound => Err(bad),
        _ => Ok(()),
    }
}

/// What a file holds, and so who may read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holds {
    /// A key: its owner only.
    Secret,
    /// Anyone may read it, nobody else may write it.
    Public,
}

/// Reads a file of the operator.
///
/// # Errors
/// Of the file system, or `PermissionDenied` when others could write (or read) it.
pub(crate) fn read(file: &Path, holds: Holds) -> io::Result<Vec<u8>> {
    let mut open = File::open(file)?;
    let found = open.metadata()?;
    let (forbidden, why) = match holds {
        Holds::Secret => (0o077, "must have mode 0600"),
        Holds::Public => (0o022, "must not be writable by others"),
    };
    if !found.is_file() || found.mode() & forbidden != 0 {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    if found.len() > MAX_FILE {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "larger than 1 MiB",
        ));
    }
    let mut content = Vec::new();
    Read::by_ref(&mut open)
        .take(MAX_FILE)
        .read_to_end(&mut content)?;
    Ok(content)
}
