//! A cgroup for each module in the unified hierarchy, found also where it is mounted beside the
//! older ones and has no controllers: it serves attestation (R4), and to end leftovers.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use contract::names::ModuleName;
use contract::warden::Cgroup;
use local::log;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, fstat, mkdirat, openat, unlinkat};
use rustix::io::Errno;

/// Marks a directory as one of ours: no other is ever emptied or removed.
const MARK: &str = ".holdfast";

/// Our part of the hierarchy, locked against a second warden of the same name.
pub(crate) struct Cgroups {
    directory: OwnedFd,
    path: String,
}

/// How long leftovers may take to go.
const PATIENCE: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};

const FILE: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC);
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
        self.clear(&name)?;
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

    /// Ends what a killed warden left behind, and removes its directories. One that resists is
    /// refused again when its module is to start.
    pub(crate) fn end_leftovers(&self) -> io::Result<()> {
        for entry in rustix::fs::Dir::read_from(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy();
            if name.ends_with(MARK)
                && let Err(cause) = self.clear(&name)
            {
                log::warn(format_args!("leftover cgroup {name}: {cause}"));
            }
        }
        Ok(())
    }

    /// Removes a leftover, after ending what is in it: processes of a warden that was killed are
    /// ended by the kernel, but may not yet have gone.
    fn clear(&self, name: &str) -> io::Result<()> {
        let Ok(events) = openat(
            &self.directory,
            format!("{name}/cgroup.events"),
            FILE,
            Mode::empty(),
        ) else {
            return Ok(());
        };
        let kill = openat(
            &self.directory,
            format!("{name}/cgroup.kill"),
            OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        if let Ok(kill) = kill {
            rustix::io::write(&kill, b"1")?;
        }
        let mut text = [0; 128];
        loop {
            let length = rustix::io::pread(&events, &mut text, 0)?;
            if text[..length].starts_with(b"populated 0") {
                break;
            }
            let mut changed = [PollFd::new(&events, PollFlags::PRI)];
            if poll(&mut changed, Some(&PATIENCE))? == 0 {
                return Err(io::ErrorKind::ResourceBusy.into());
            }
        }
        Ok(unlinkat(&self.directory, name, AtFlags::REMOVEDIR)?)
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
