//! The throw-away folder, the users in it, and its removal.
//!
//! As root each daemon and module has a numeric user of its own from a high range that nobody
//! uses; no account is made. As an ordinary user everything is that user. A marker that is locked
//! while quickstart lives tells the next run which folders a killed one has left.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Where folders are made.
const PLACE: &str = "/tmp";
/// How their names begin; also how the control groups of their modules are called.
pub(super) const PREFIX: &str = "holdfast-quickstart-";
const MARKER: &str = "marker";
/// Where free users are looked for: above what distributions and containers give out.
const FIRST_UID: u32 = 0x6f00_0000;

/// User numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Users {
    /// Whether each has its own.
    pub(super) separate: bool,
    /// The group of the daemons, which may open each other's sockets.
    pub(super) services: u32,
    /// Keys.
    pub(super) keyd: u32,
    /// Certificates and identities.
    pub(super) identityd: u32,
    /// Modules.
    pub(super) runtimed: u32,
    /// The hub.
    pub(super) hub: u32,
    /// The modules: agent, first, second.
    pub(super) modules: [u32; 3],
}

impl Users {
    fn choose() -> io::Result<Self> {
        let own = rustix::process::geteuid().as_raw();
        if own != 0 {
            let group = rustix::process::getegid().as_raw();
            return Ok(Self {
                separate: false,
                services: group,
                keyd: own,
                identityd: own,
                runtimed: own,
                hub: own,
                modules: [own; 3],
            });
        }
        let taken = taken_users()?;
        let free = |start: &u32| (*start..*start + 16).all(|uid| !taken.contains(&uid));
        let first = (FIRST_UID..FIRST_UID + 0x10_0000).step_by(16).find(free);
        let first = first.ok_or_else(|| io::Error::other("no free range of user numbers"))?;
        Ok(Self {
            separate: true,
            services: first,
            keyd: first + 1,
            identityd: first + 2,
            runtimed: first + 3,
            hub: first + 4,
            modules: [first + 5, first + 6, first + 7],
        })
    }
}

/// Users that have an account or a process.
fn taken_users() -> io::Result<BTreeSet<u32>> {
    let mut taken: BTreeSet<u32> = fs::read_to_string("/etc/passwd")?
        .lines()
        .filter_map(|line| line.split(':').nth(2)?.parse().ok())
        .collect();
    for entry in fs::read_dir("/proc")?.flatten() {
        use std::os::unix::fs::MetadataExt as _;
        taken.extend(entry.metadata().ok().map(|process| process.uid()));
    }
    Ok(taken)
}

/// A folder of a run.
#[derive(Debug)]
pub(super) struct World {
    /// The folder.
    pub(super) folder: PathBuf,
    /// Who is who.
    pub(super) users: Users,
    _marker: File,
}

impl World {
    /// Makes a fresh folder.
    ///
    /// # Errors
    /// As the system says.
    pub(super) fn new() -> io::Result<Self> {
        let folder = Path::new(PLACE).join(format!("{PREFIX}{}", std::process::id()));
        fs::DirBuilder::new().mode(0o755).create(&folder)?;
        set_mode(&folder, 0o755)?;
        let marker = File::options()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(folder.join(MARKER))?;
        flock(&marker, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self {
            folder,
            users: Users::choose()?,
            _marker: marker,
        })
    }

    /// The name of this run, also of its control group.
    #[must_use]
    pub(super) fn name(&self) -> String {
        self.folder
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }

    /// A path in the folder.
    #[must_use]
    pub(super) fn path(&self, below: &str) -> PathBuf {
        self.folder.join(below)
    }

    /// Makes a folder of a user; group `services` may pass where the mode lets it.
    ///
    /// # Errors
    /// As the system says.
    pub(super) fn dir(&self, below: &str, uid: u32, mode: u32) -> io::Result<PathBuf> {
        let path = self.path(below);
        fs::DirBuilder::new().mode(mode).create(&path)?;
        set_mode(&path, mode)?;
        self.give(&path, uid)?;
        Ok(path)
    }

    /// Writes a file of a user.
    ///
    /// # Errors
    /// As the system says.
    pub(super) fn file(
        &self,
        below: &str,
        uid: u32,
        mode: u32,
        text: &[u8],
    ) -> io::Result<PathBuf> {
        use std::io::Write as _;
        let path = self.path(below);
        let mut file = File::options()
            .create_new(true)
            .write(true)
            .mode(mode)
            .open(&path)?;
        file.write_all(text)?;
        set_mode(&path, mode)?;
        self.give(&path, uid)?;
        Ok(path)
    }

    fn give(&self, path: &Path, uid: u32) -> io::Result<()> {
        if self.users.separate {
            let group = if uid == 0 { 0 } else { self.users.services };
            chown(path, Some(uid), Some(group))?;
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        remove(&self.folder);
    }
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Removes what earlier runs of this user have left: those whose marker nobody holds.
///
/// # Errors
/// When the place cannot be read.
pub(super) fn remove_leftovers() -> io::Result<Vec<String>> {
    use std::os::unix::fs::MetadataExt as _;
    let mut removed = Vec::new();
    let own = rustix::process::geteuid().as_raw();
    for entry in fs::read_dir(PLACE)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = name.starts_with(PREFIX)
            && entry
                .metadata()
                .is_ok_and(|folder| folder.is_dir() && folder.uid() == own);
        if !ours {
            continue;
        }
        let free = File::open(entry.path().join(MARKER))
            .is_ok_and(|marker| flock(&marker, FlockOperation::NonBlockingLockExclusive).is_ok());
        if free {
            remove(&entry.path());
            removed.push(name);
        }
    }
    Ok(removed)
}

/// Removes a folder and the control groups named after it.
fn remove(folder: &Path) {
    #[expect(
        clippy::disallowed_methods,
        reason = "a folder of our own making, in a sticky place"
    )]
    let removed = fs::remove_dir_all(folder);
    if let Err(error) = removed
        && error.kind() != io::ErrorKind::NotFound
    {
        local::log::warn(format_args!("{} is left: {error}", folder.display()));
    }
    let Some(name) = folder.file_name() else {
        return;
    };
    let Some(groups) = control_groups() else {
        return;
    };
    let parent = groups.join(name);
    for entry in fs::read_dir(&parent).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
    let _ = fs::remove_dir(parent);
}

/// Where the second version of control groups is mounted.
fn control_groups() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    Some(PathBuf::from(line.split(' ').nth(4)?))
}
