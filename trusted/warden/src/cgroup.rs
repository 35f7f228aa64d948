//! A cgroup for each module in the unified hierarchy, found also where it is mounted beside the
//! older ones and has no controllers: it serves attestation (R4), and to end leftovers.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use contract::names::ModuleName;
use contract::warden::Cgroup;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, fstat, mkdirat, openat, unlinkat};
use rustix::io::Errno;

/// Marks a directory as one of ours: no other is ever emptied or removed.
const MARK: &str = ".holdfast";

/// Our part of the hierarchy, locked against a second warden of the same name.
pub(crate) struct Cgroups {
    directory: OwnedFd,
    path: String,
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

impl Cgroups {
    /// Makes or takes over `parent` at the root of the hierarchy.
    pub(crate) fn open(parent: &str) -> io::Result<Self> {
        let root = mount_point()?.ok_or(io::ErrorKind::NotFound)?;
        let root = rustix::fs::open(root, DIRECTORY, Mode::empty())?;
        match mkdirat(&root, parent, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(cause) => return Err(cause.into()),
        }
        let directory = openat(&root, parent, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
        if fstat(&directory)?.st_uid != rustix::process::geteuid().as_raw() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self {
            directory,
            path: format!("/{parent}"),
        })
    }

    /// A fresh cgroup for a module.
    pub(crate) fn create(&self, module: &ModuleName) -> io::Result<(OwnedFd, Cgroup)> {
        let name = format!("{}{MARK}", module.plain());
        // A leftover could not be removed while something was in it: then this fails too.
        match unlinkat(&self.directory, name.as_str(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(cause) => return Err(cause.into()),
        }
        mkdirat(&self.directory, name.as_str(), Mode::from_raw_mode(0o755))?;
        let fd = openat(&self.directory, name.as_str(), DIRECTORY, Mode::empty())?;
        let cgroup = Cgroup {
            id: fstat(&fd)?.st_ino,
            path: format!("{}/{name}", self.path),
        };
        Ok((fd, cgroup))
    }

    /// Removes an ended module's cgroup. One that stays is removed by the next start.
    pub(crate) fn remove(&self, module: &ModuleName) {
        let name = format!("{}{MARK}", module.plain());
        let _ = unlinkat(&self.directory, name, AtFlags::REMOVEDIR);
    }

    /// Ends what a killed warden left behind, and removes its directories.
    pub(crate) fn end_leftovers(&self) -> io::Result<()> {
        for entry in rustix::fs::Dir::read_from(&self.directory)? {
            let entry = entry?;
            let Some(name) = entry
                .file_name()
                .to_str()
                .ok()
                .filter(|name| name.ends_with(MARK))
            else {
                continue;
            };
            if let Ok(kill) = openat(
                &self.directory,
                format!("{name}/cgroup.kill"),
                OFlags::WRONLY | OFlags::CLOEXEC,
                Mode::empty(),
            ) {
                rustix::io::write(&kill, b"1")?;
            }
            let _ = unlinkat(&self.directory, name, AtFlags::REMOVEDIR);
        }
        Ok(())
    }

    /// Removes our directory, if nothing is left in it.
    pub(crate) fn close(self) {
        let Ok(Some(root)) = mount_point() else {
            return;
        };
        if let Ok(root) = rustix::fs::open(root, DIRECTORY, Mode::empty()) {
            let _ = unlinkat(root.as_fd(), &self.path[1..], AtFlags::REMOVEDIR);
        }
    }
}

/// The cgroup of a process from the text of its `/proc/<pid>/cgroup`.
pub(crate) fn of_process(text: &str) -> Option<Cgroup> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let directory = mount_point().ok()??.join(path.strip_prefix('/')?);
    let id = rustix::fs::stat(directory).ok()?.st_ino;
    Some(Cgroup {
        id,
        path: path.to_owned(),
    })
}

fn mount_point() -> io::Result<Option<PathBuf>> {
    Ok(find_mount_point(&std::fs::read_to_string(
        "/proc/self/mountinfo",
    )?))
}

/// Where the unified hierarchy is mounted, as `/proc/self/mountinfo` tells.
fn find_mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        // A part of the hierarchy mounted alone would shift every path.
        (kind.starts_with("cgroup2 ") && root == "/").then(|| Path::new(at).to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_hierarchy_is_found_alone_and_beside_the_older_ones() {
        let pure = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        let mixed = "39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                     41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
        let part = "41 31 0:38 /user /mnt rw - cgroup2 cgroup2 rw";
        let at = |text| find_mount_point(text).map(|path| path.display().to_string());
        assert_eq!(at(pure).as_deref(), Some("/sys/fs/cgroup"));
        assert_eq!(at(mixed).as_deref(), Some("/sys/fs/cgroup/unified"));
        assert_eq!(at(part), None);
    }
}
