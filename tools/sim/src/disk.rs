//! A disk that loses power, fails and lies, at a chosen step (A131, A132, A134).
//!
//! It holds directories of files in memory and counts every step that a real disk takes. When the
//! power is cut, what was made durable is kept; of the rest, any combination of name changes and,
//! for content, the old, the new, half of the new, or zeros. [`VirtualDisk::after_power_cut`] gives
//! every disk that may be found afterwards. A failed fsync loses the data for good while later ones
//! claim success, as Linux does, so that whoever trusts a second fsync is caught.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use local::files::{Disk, FileError};

/// What a step can be made to fail with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A medium that does not answer.
    Eio,
    /// No space, said by any step at all.
    Enospc,
    /// No space, said by steps that need some: new names and content. What is there stays usable.
    Full,
}

/// How often it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// At this step only.
    Once,
    /// At this step and from then on.
    Always,
}

/// A disk with directories.
#[derive(Clone, Default)]
pub struct VirtualDisk(Arc<Mutex<State>>);

/// Runs an act with the power going off before each of its steps in turn, and once afterwards, and
/// shows every disk that may be found. `act` says whether it was acknowledged. Answers how many steps
/// there were to cut.
///
/// # Panics
/// When there was none, and whenever `check` does.
pub fn every_cut(
    prepare: impl Fn(&VirtualDisk),
    act: impl Fn(&VirtualDisk) -> bool,
    check: impl Fn(&VirtualDisk, bool),
) -> u64 {
    let mut cuts = 0;
    loop {
        let disk = VirtualDisk::default();
        prepare(&disk);
        disk.cut_power_at(disk.steps() + cuts);
        let acknowledged = act(&disk);
        let complete = !disk.is_off();
        disk.cut_power();
        for found in disk.after_power_cut() {
            check(&found, acknowledged);
        }
        if complete {
            assert!(cuts > 0, "there was a step to cut");
            return cuts;
        }
        cuts += 1;
    }
}

/// Runs an act with each of its steps failing in turn, in each way. An acknowledged act must hold
/// even if the power goes off next; a failed one must succeed when it is tried again.
///
/// # Panics
/// When an act fails on a disk that does not, and whenever `check` does.
pub fn every_fault(
    prepare: impl Fn(&VirtualDisk),
    act: impl Fn(&VirtualDisk) -> bool,
    check: impl Fn(&VirtualDisk, bool),
) {
    let whole = VirtualDisk::default();
    prepare(&whole);
    let before = whole.steps();
    assert!(act(&whole));
    for step in before..whole.steps() {
        for fault in [Fault::Eio, Fault::Enospc] {
            for times in [Times::Once, Times::Always] {
                let disk = VirtualDisk::default();
                prepare(&disk);
                disk.fail_at(step, fault, times);
                let acknowledged = act(&disk);
                for found in disk.after_power_cut() {
                    check(&found, acknowledged);
                }
                disk.heal();
                assert!(
                    act(&disk),
                    "{fault:?} {times:?} at {step}: the next try is clean"
                );
                for found in disk.after_power_cut() {
                    check(&found, true);
                }
            }
        }
    }
}

#[derive(Clone, Default)]
struct State {
    inodes: Vec<Inode>,
    /// `directory/name` to inode.
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    pending: Vec<Change>,
    steps: u64,
    cut_at: Option<u64>,
    off: bool,
    fault: Option<(u64, Fault, Times)>,
}

#[derive(Clone, Default)]
struct Inode {
    content: Vec<u8>,
    durable: Vec<u8>,
    /// An fsync of it failed: the data is lost, and nobody will say so again.
    lost: bool,
}

/// A change of names, all of it or nothing of it.
#[derive(Clone)]
struct Change {
    set: Vec<(String, usize)>,
    unset: Vec<String>,
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        for name in &self.unset {
            names.remove(name);
        }
        for (name, inode) in &self.set {
            names.insert(name.clone(), *inode);
        }
    }
}

impl VirtualDisk {
    /// A directory of it.
    #[must_use]
    pub fn dir(&self, path: &str) -> Arc<dyn Disk> {
        Arc::new(VirtualDir {
            disk: self.clone(),
            path: PathBuf::from(path),
        })
    }

    /// Steps taken so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.lock().steps
    }

    /// The power goes off before this step is taken.
    pub fn cut_power_at(&self, step: u64) {
        self.lock().cut_at = Some(step);
    }

    /// The power goes off now, whatever is going on.
    pub fn cut_power(&self) {
        self.lock().off = true;
    }

    /// Whether it is off.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.lock().off
    }

    /// Steps fail from here on as told.
    pub fn fail_at(&self, step: u64, fault: Fault, times: Times) {
        self.lock().fault = Some((step, fault, times));
    }

    /// Whatever made steps fail is over.
    pub fn heal(&self) {
        self.lock().fault = None;
    }

    /// Every disk that may be found when the power is back.
    #[must_use]
    pub fn after_power_cut(&self) -> Vec<Self> {
        let state = self.lock();
        let mut found = Vec::new();
        for subset in subsets(state.pending.len()) {
            for loss in [Loss::Old, Loss::New, Loss::Half, Loss::Zeros] {
                let mut names = state.durable_names.clone();
                for (index, change) in state.pending.iter().enumerate() {
                    if subset >> index & 1 == 1 {
                        change.apply(&mut names);
                    }
                }
                let inodes: Vec<Inode> = state.inodes.iter().map(|i| i.found(loss)).collect();
                found.push(Self(Arc::new(Mutex::new(State {
                    inodes,
                    durable_names: names.clone(),
                    names,
                    ..State::default()
                }))));
            }
        }
        found
    }

    /// The content of a file, damaged or looked at from outside.
    pub fn edit(&self, path: &str, damage: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.lock();
        if let Some(&inode) = state.names.get(path) {
            let inode = &mut state.inodes[inode];
            damage(&mut inode.content);
            inode.durable.clone_from(&inode.content);
        }
    }

    /// Every path.
    #[must_use]
    pub fn paths(&self) -> BTreeSet<String> {
        self.lock().names.keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All combinations of a few changes; of many, all beginnings and all single losses.
fn subsets(count: usize) -> Vec<u32> {
    if count <= 6 {
        return (0..1 << count).collect();
    }
    let all = (1_u32 << count) - 1;
    let beginnings = (0..=count).map(|n| (1_u32 << n) - 1);
    let holes = (0..count).map(|n| all & !(1 << n));
    beginnings.chain(holes).collect()
}

#[derive(Debug, Clone, Copy)]
enum Loss {
    Old,
    New,
    Half,
    Zeros,
}

impl Inode {
    fn found(&self, loss: Loss) -> Self {
        // What was appended may be lost, not what was durable before it.
        let kept = match self.content.strip_prefix(&self.durable[..]) {
            Some(_) => self.durable.len(),
            None => 0,
        };
        let (kept, new) = self.content.split_at(kept);
        let rest = match loss {
            Loss::Old => return Self::durable(self.durable.clone()),
            Loss::New if !self.lost => new.to_vec(),
            Loss::New | Loss::Zeros => vec![0; new.len()],
            Loss::Half => new[..new.len() / 2].to_vec(),
        };
        Self::durable([kept, &rest].concat())
    }

    fn durable(content: Vec<u8>) -> Self {
        Self {
            durable: content.clone(),
            content,
            lost: false,
        }
    }
}

impl State {
    /// Takes one step, or fails it.
    fn step(&mut self) -> io::Result<()> {
        self.step_of(false)
    }

    fn step_of(&mut self, needs_space: bool) -> io::Result<()> {
        if self.off {
            return Err(io::Error::other("the power is off"));
        }
        let step = self.steps;
        if self.cut_at == Some(step) {
            self.off = true;
            return Err(io::Error::other("the power went off"));
        }
        self.steps += 1;
        match self
            .fault
            .filter(|(_, f, _)| *f != Fault::Full || needs_space)
        {
            Some((at, fault, Times::Once)) if at == step => Err(fault.into()),
            Some((at, fault, Times::Always)) if at <= step => Err(fault.into()),
            _ => Ok(()),
        }
    }

    fn change(&mut self, change: Change) -> io::Result<()> {
        self.step()?;
        change.apply(&mut self.names);
        self.pending.push(change);
        Ok(())
    }

    fn inode(&mut self, name: &str) -> io::Result<usize> {
        let inode = self.names.get(name).copied();
        inode.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn add(&mut self, name: &str) -> io::Result<usize> {
        self.step_of(true)?;
        let inode = self.inodes.len();
        self.inodes.push(Inode::default());
        let change = Change {
            set: vec![(name.to_owned(), inode)],
            unset: vec![],
        };
        change.apply(&mut self.names);
        self.pending.push(change);
        Ok(inode)
    }

    fn write(&mut self, inode: usize, bytes: &[u8]) -> io::Result<()> {
        let done = self.step_of(!bytes.is_empty());
        if self.off {
            return done;
        }
        // A failed write has written something.
        let length = if done.is_ok() {
            bytes.len()
        } else {
            bytes.len() / 2
        };
        self.inodes[inode].content.extend(&bytes[..length]);
        done
    }

    fn fsync(&mut self, inode: usize) -> io::Result<()> {
        let done = self.step();
        let inode = &mut self.inodes[inode];
        match &done {
            Ok(()) if !inode.lost => inode.durable.clone_from(&inode.content),
            Ok(()) => {}
            Err(_) => inode.lost = true,
        }
        done
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Eio => Self::from_raw_os_error(5),
            Fault::Enospc | Fault::Full => Self::from_raw_os_error(28),
        }
    }
}

struct VirtualDir {
    disk: VirtualDisk,
    path: PathBuf,
}

impl VirtualDir {
    fn full(&self, name: &str) -> String {
        format!("{}/{name}", self.path.display())
    }
}

impl Disk for VirtualDir {
    fn path(&self) -> &Path {
        &self.path
    }

    fn read(&self, name: &str, limit: usize) -> Result<Option<Vec<u8>>, FileError> {
        let state = self.disk.lock();
        if state.off {
            return Err(FileError::Io {
                operation: "read",
                path: self.path.join(name),
                cause: io::Error::other("the power is off"),
            });
        }
        let Some(&inode) = state.names.get(&self.full(name)) else {
            return Ok(None);
        };
        let content = &state.inodes[inode].content;
        if content.len() > limit {
            let path = self.path.join(name);
            return Err(FileError::TooLong { path, limit });
        }
        Ok(Some(content.clone()))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let state = self.disk.lock();
        let prefix = self.full("");
        let own = state.names.keys().filter_map(|n| n.strip_prefix(&prefix));
        Ok(own.map(ToOwned::to_owned).collect())
    }

    fn create(&self, name: &str, bytes: &[u8], _: u32) -> io::Result<()> {
        let mut state = self.disk.lock();
        let name = self.full(name);
        if state.names.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = state.add(&name)?;
        state.write(inode, bytes)?;
        state.fsync(inode)
    }

    fn append(&self, name: &str, bytes: &[u8], _: u32, durable: bool) -> io::Result<()> {
        let mut state = self.disk.lock();
        let name = self.full(name);
        let inode = match state.inode(&name) {
            Ok(inode) => inode,
            Err(_) => state.add(&name)?,
        };
        state.write(inode, bytes)?;
        if durable { state.fsync(inode) } else { Ok(()) }
    }

    fn truncate(&self, name: &str, length: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        let inode = state.inode(&self.full(name))?;
        state.step()?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        state.inodes[inode].content.truncate(length);
        state.fsync(inode)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.disk.lock();
        let (from, to) = (self.full(from), self.full(to));
        let inode = state.inode(&from)?;
        state.change(Change {
            set: vec![(to, inode)],
            unset: vec![from],
        })
    }

    fn exchange(&self, one: &str, other: &str) -> io::Result<()> {
        let mut state = self.disk.lock();
        let (one, other) = (self.full(one), self.full(other));
        let (first, second) = (state.inode(&one)?, state.inode(&other)?);
        state.change(Change {
            set: vec![(one, second), (other, first)],
            unset: vec![],
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.disk.lock();
        let name = self.full(name);
        state.inode(&name)?;
        state.change(Change {
            set: vec![],
            unset: vec![name],
        })
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.step()?;
        // One directory is made durable; changes in the others stay open.
        let prefix = self.full("");
        let of_this = |change: &Change| {
            let names = change.set.iter().map(|(n, _)| n).chain(&change.unset);
            names.into_iter().any(|n| n.starts_with(&prefix))
        };
        let (done, open): (Vec<_>, Vec<_>) = state.pending.drain(..).partition(of_this);
        state.pending = open;
        for change in done {
            change.apply(&mut state.durable_names);
        }
        Ok(())
    }
}
