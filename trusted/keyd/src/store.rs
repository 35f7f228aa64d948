//! The software store: compatible files (identity-service.md 2.5) and a record of ours beside each.
//!
//! A key is `keys/<A>-<H>.key`: raw bytes, or a key pair in PKCS#8 PEM. The record beside it says
//! which issue of the key this is, what it may do, and the digest of what the file must hold; a
//! file without a record was there before us and may do everything. Each change has one commit
//! point, the key file: the record is written first and names both the old and the new content, so
//! a power cut between the two leaves a pair that fits (R77, A131). Reading is a look into memory;
//! files are read once. Changes go one after the other, uses never wait for them.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use contract::api::key::Usage;
use contract::audit::{hash, hex};
use contract::names::KeyId;
use local::files::{Dir, FileError, Rules, read_at};
use local::log;
use local::records::{self, Generation, Record};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error::KeyError;
use crate::material::{MAX_FILE, Material, Pair, Symmetric};
use crate::pem;

/// A key that can be used.
pub struct Entry {
    /// Which issue of it; handles of another issue are void (A40).
    pub epoch: u64,
    /// What it may do, if symmetric.
    pub usage: Usage,
    /// The key.
    pub material: Material,
    digest: String,
}

/// May do everything: a key that was there before us.
pub const ANY_USAGE: Usage = Usage {
    sign: true,
    encrypt: true,
};

/// What is kept beside a key file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyRecord {
    id: KeyId,
    epoch: u64,
    usage: Usage,
    /// SHA-256 of the file; two while one content replaces another.
    digests: Vec<String>,
}

impl Record for KeyRecord {
    const KIND: &'static str = "key";
    const VERSION: u32 = 1;
}

/// All keys of this device that are in files.
pub struct Store {
    dir: Dir,
    preloaded: BTreeMap<KeyId, PathBuf>,
    uid: u32,
    known: RwLock<HashMap<KeyId, Arc<Entry>>>,
    changes: Mutex<()>,
}

impl Store {
    /// Opens the store; finishes or forgets what a power cut interrupted.
    ///
    /// # Errors
    /// [`FileError`] when the directory cannot be read or cleaned.
    pub fn open(
        dir: Dir,
        preloaded: BTreeMap<KeyId, PathBuf>,
        uid: u32,
    ) -> Result<Self, FileError> {
        let store = Self {
            dir,
            preloaded,
            uid,
            known: RwLock::default(),
            changes: Mutex::new(()),
        };
        store.repair()?;
        Ok(store)
    }

    /// The key with this id; `None` when there is none.
    ///
    /// # Errors
    /// [`KeyError`] when its file cannot be trusted.
    pub fn load(&self, id: &KeyId) -> Result<Option<Arc<Entry>>, KeyError> {
        if let Some(entry) = self.recall(id) {
            return Ok(Some(entry));
        }
        self.change().load(id)
    }

    /// The right to change keys; there is one.
    pub fn change(&self) -> Change<'_> {
        let lock = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        Change {
            store: self,
            _lock: lock,
        }
    }

    fn recall(&self, id: &KeyId) -> Option<Arc<Entry>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(id).cloned()
    }

    fn remember(&self, id: &KeyId, entry: Option<Arc<Entry>>) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        match entry {
            Some(entry) => known.insert(id.clone(), entry),
            None => known.remove(id),
        };
    }

    /// Records whose key was never written, or was moved away, go; previous generations of keys
    /// stay only until this start (R24).
    fn repair(&self) -> Result<(), FileError> {
        let names = self.dir.list()?;
        for name in &names {
            let Some(stem) = name.strip_suffix(RECORD) else {
                continue;
            };
            if names.contains(&format!("{stem}{KEY}")) {
                continue;
            }
            let record = records::read::<KeyRecord>(&self.dir, name);
            let preloaded = |r: &KeyRecord| self.preloaded.contains_key(&r.id);
            if !matches!(&record, Ok(Some((r, _))) if preloaded(r)) {
                self.dir.delete(name)?;
            }
        }
        for name in self.dir.kept()?.iter().filter(|n| n.ends_with(KEY)) {
            let stem = name.strip_suffix(KEY).unwrap_or(name);
            let record = records::read::<KeyRecord>(&self.dir, &format!("{stem}{RECORD}"));
            let current = self.dir.read(name, MAX_FILE)?.map(|b| digest(&b));
            if let (Ok(Some((record, _))), Some(current)) = (record, current)
                && record.digests.contains(&current)
            {
                self.dir.forget_previous(name)?;
            }
        }
        Ok(())
    }
}

/// The store while it is being changed, by one.
pub struct Change<'a> {
    store: &'a Store,
    _lock: MutexGuard<'a, ()>,
}

impl Change<'_> {
    /// As [`Store::load`].
    ///
    /// # Errors
    /// As [`Store::load`].
    pub fn load(&self, id: &KeyId) -> Result<Option<Arc<Entry>>, KeyError> {
        if let Some(entry) = self.store.recall(id) {
            return Ok(Some(entry));
        }
        // Whoever is told that a key is there, or is not, may rely on it (R74).
        self.store.dir.settle()?;
        let record = self.record(id)?;
        let Some(bytes) = self.read(id)? else {
            return Ok(None);
        };
        let bytes = self.trusted(id, bytes, record.as_ref())?;
        let damaged = |why| KeyError::Damaged {
            id: id.clone(),
            why,
        };
        let entry = Arc::new(Entry {
            epoch: record.as_ref().map_or(0, |r| r.epoch),
            usage: record.as_ref().map_or(ANY_USAGE, |r| r.usage),
            digest: digest(&bytes),
            material: parse(bytes).map_err(damaged)?,
        });
        self.store.remember(id, Some(Arc::clone(&entry)));
        Ok(Some(entry))
    }

    /// Whether the id is free: no file, or, as in the compatible service, one that holds nothing
    /// and that we have not written.
    ///
    /// # Errors
    /// As [`Store::load`].
    pub fn free(&self, id: &KeyId) -> Result<bool, KeyError> {
        match self.load(id) {
            Ok(entry) => Ok(entry.is_none()),
            Err(KeyError::Damaged { .. }) if self.record(id)?.is_none() => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Stores a key: under a new epoch where the id is free, under the same one where it replaces
    /// other bytes.
    ///
    /// # Errors
    /// [`KeyError`]; the old key is then in place.
    pub fn put(
        &self,
        id: &KeyId,
        bytes: Zeroizing<Vec<u8>>,
        usage: Usage,
    ) -> Result<Arc<Entry>, KeyError> {
        let old = if self.free(id)? { None } else { self.load(id)? };
        let new = digest(&bytes);
        let mut digests = vec![new.clone()];
        digests.extend(old.as_ref().map(|o| o.digest.clone()));
        let record = KeyRecord {
            id: id.clone(),
            epoch: old.map_or_else(fresh_epoch, |o| Ok(o.epoch))?,
            usage,
            digests,
        };
        // Read before it is written: what could not be read back is never stored.
        let material = parse(Zeroizing::new(bytes.to_vec())).map_err(|_| KeyError::Invalid)?;
        records::write(&self.store.dir, &name(id, RECORD)?, &record)?;
        let (dir, file) = self.place(id)?;
        dir.replace(&file, &bytes, 0o600)?;
        let entry = Arc::new(Entry {
            epoch: record.epoch,
            usage,
            digest: new,
            material,
        });
        self.store.remember(id, Some(Arc::clone(&entry)));
        Ok(entry)
    }

    /// Removes a key. What used it keeps it until it is done; nothing finds it any more.
    ///
    /// # Errors
    /// [`KeyError`]; the key is then in place, or gone if only the last step failed.
    pub fn delete(&self, id: &KeyId) -> Result<(), KeyError> {
        let (dir, file) = self.place(id)?;
        self.store.remember(id, None);
        dir.delete(&file)?;
        Ok(self.store.dir.delete(&name(id, RECORD)?)?)
    }

    /// Gives the key `from` the id `to`, in place of what has it; handles for `to` stay valid and
    /// mean the new key (R18), handles for `from` are void.
    ///
    /// # Errors
    /// [`KeyError`]; both are then as before.
    pub fn rename(&self, from: &KeyId, to: &KeyId) -> Result<(), KeyError> {
        let preloaded = &self.store.preloaded;
        if preloaded.contains_key(from) || preloaded.contains_key(to) {
            // They have their places outside; a move across places is not atomic.
            return Err(KeyError::Invalid);
        }
        let Some(moved) = self.load(from)? else {
            return Err(KeyError::Invalid);
        };
        let old = if self.free(to)? { None } else { self.load(to)? };
        let mut digests = vec![moved.digest.clone()];
        digests.extend(old.as_ref().map(|o| o.digest.clone()));
        let record = KeyRecord {
            id: to.clone(),
            epoch: old.map_or_else(fresh_epoch, |o| Ok(o.epoch))?,
            usage: moved.usage,
            digests,
        };
        let dir = &self.store.dir;
        records::write(dir, &name(to, RECORD)?, &record)?;
        self.store.remember(from, None);
        self.store.remember(to, None);
        dir.rename(&name(from, KEY)?, &name(to, KEY)?)?;
        Ok(dir.delete(&name(from, RECORD)?)?)
    }

    fn record(&self, id: &KeyId) -> Result<Option<KeyRecord>, KeyError> {
        let file = name(id, RECORD)?;
        let Some((record, generation)) = records::read::<KeyRecord>(&self.store.dir, &file)? else {
            return Ok(None);
        };
        if generation == Generation::Previous {
            log::warn(format_args!(
                "the record of key {id} was damaged; the one before it is used"
            ));
        }
        if record.id != *id {
            return Err(KeyError::Damaged {
                id: id.clone(),
                why: "its record is another key's",
            });
        }
        Ok(Some(record))
    }

    fn read(&self, id: &KeyId) -> Result<Option<Zeroizing<Vec<u8>>>, KeyError> {
        let bytes = match self.store.preloaded.get(id) {
            Some(path) => read_at(path, Rules::secret(self.store.uid), MAX_FILE)?,
            None => self.store.dir.read(&name(id, KEY)?, MAX_FILE)?,
        };
        Ok(bytes.map(Zeroizing::new))
    }

    /// The file's content if its record agrees, else the previous generation if that does. Files
    /// placed by an administrator are the administrator's to change.
    fn trusted(
        &self,
        id: &KeyId,
        bytes: Zeroizing<Vec<u8>>,
        record: Option<&KeyRecord>,
    ) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let Some(record) = record.filter(|_| !self.store.preloaded.contains_key(id)) else {
            return Ok(bytes);
        };
        let fits = |b: &Zeroizing<Vec<u8>>| record.digests.contains(&digest(b));
        if fits(&bytes) {
            return Ok(bytes);
        }
        let previous = self.store.dir.read_previous(&name(id, KEY)?, MAX_FILE)?;
        if let Some(previous) = previous.map(Zeroizing::new).filter(fits) {
            log::warn(format_args!(
                "the file of key {id} was damaged; the one before it is used"
            ));
            return Ok(previous);
        }
        Err(KeyError::Damaged {
            id: id.clone(),
            why: "its content is not what its record says; if another program wrote it on \
                  purpose, remove the record",
        })
    }

    /// Directory and name of a key's file.
    fn place(&self, id: &KeyId) -> Result<(Dir, String), KeyError> {
        let Some(path) = self.store.preloaded.get(id) else {
            return Ok((self.store.dir.clone(), name(id, KEY)?));
        };
        let file = path.file_name().and_then(|n| n.to_str());
        let parent = path.parent().unwrap_or(Path::new("/"));
        let dir = Dir::open(parent, Rules::secret(self.store.uid))?;
        Ok((dir, file.ok_or(KeyError::Invalid)?.to_owned()))
    }
}

const KEY: &str = ".key";
const RECORD: &str = ".rec";

/// `<A>-<H>`: the letters and digits of an id, and its hash, which is what makes it unique (R16).
fn name(id: &KeyId, ending: &str) -> Result<String, KeyError> {
    let text = id.as_str();
    let mut out: String = text.chars().filter(char::is_ascii_alphanumeric).collect();
    out.push('-');
    out.push_str(&hex(&hash(text.as_bytes())));
    out.push_str(ending);
    if out.len() > 250 {
        return Err(KeyError::Parameter {
            name: "keyId",
            why: "more letters and digits than a file name holds",
        });
    }
    Ok(out)
}

fn digest(bytes: &[u8]) -> String {
    hex(&hash(bytes))
}

fn parse(bytes: Zeroizing<Vec<u8>>) -> Result<Material, &'static str> {
    if pem::is_pem(&bytes) {
        let pair = Pair::parse(&bytes).ok_or("no private key of a kind that is used here")?;
        return Ok(Material::Pair(pair));
    }
    if bytes.is_empty() {
        return Err("empty");
    }
    Ok(Material::Key(Box::new(Symmetric::new(bytes))))
}

/// Drawn, not counted: there is no counter to lose, and none to roll back. Zero is the epoch of
/// keys that were there before us.
fn fresh_epoch() -> Result<u64, KeyError> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| KeyError::Crypto("random numbers"))?;
    Ok(u64::from_be_bytes(bytes).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_the_compatible_names() {
        let id = KeyId::new("device-id").unwrap();
        // The hash is what `printf device-id | sha256sum` says.
        assert_eq!(
            name(&id, KEY).unwrap(),
            "deviceid-bd732105ef89cf8edd2606a5309c8a26b7b5599a4e124a0fe6199b6b2f60e655.key"
        );
        let path = KeyId::new("../../etc/passwd").unwrap();
        assert!(name(&path, KEY).unwrap().starts_with("etcpasswd-"));
        assert!(name(&KeyId::new("k".repeat(181)).unwrap(), KEY).is_ok());
        assert!(name(&KeyId::new("k".repeat(182)).unwrap(), KEY).is_err());
    }
}
