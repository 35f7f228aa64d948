//! Configuration: a base file and a directory of additions, merged as the compatible daemons merge
//! them (identity-service.md 1.6), checked as ours must be (R78, A139).
//!
//! Tables merge, arrays add up, scalars replace; additions are sorted by name, links among them
//! are skipped. The result is taken as a whole or not at all. An error names file and line and
//! what was expected, never a value: values may be secrets. [`Watch`] reloads after a quiet time,
//! so that a half-written file is not looked at (A140).

use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use crate::files::{self, FileError, Rules};

/// Longest file.
const MAX_FILE: usize = 1024 * 1024;
/// Most additions.
const MAX_FILES: usize = 64;
/// How long files must not have changed before they are read again.
const QUIET_MS: i64 = 10_000;

/// Why a configuration is refused; the last good one stays in force (P28).
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file is unsafe or cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A directory on the way lets others replace the file.
    #[error("{path} is refused: {why}, so others could replace what is below it")]
    Parent {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Too many additions.
    #[error("{path} has more than {MAX_FILES} files")]
    TooMany {
        /// The directory.
        path: PathBuf,
    },
    /// Not TOML.
    #[error("{path}, line {line}: {why}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where.
        line: usize,
        /// What the parser expected.
        why: String,
    },
    /// A key that means nothing here.
    #[error("{place}: unknown key `{key}`{hint}")]
    UnknownKey {
        /// File and line.
        place: String,
        /// The key.
        key: String,
        /// `, did you mean ...?`, or empty.
        hint: String,
    },
    /// A value that does not fit, or is missing.
    #[error("{place}: {key}{why}")]
    Value {
        /// File and line.
        place: String,
        /// `` `the.key`:  ``, or empty.
        key: String,
        /// What was expected.
        why: String,
    },
    /// A value that its daemon refuses.
    #[error("configuration: {0}")]
    Meaning(String),
}

/// The texts of a configuration, in the order in which they are merged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sources {
    files: Vec<(PathBuf, String)>,
}

/// Reads and checks a configuration. Both paths may be absent; both must be absolute.
///
/// # Errors
/// [`ConfigError`]; nothing of it is to be applied then.
pub fn load<T: DeserializeOwned>(base: &Path, dir: &Path, uid: u32) -> Result<T, ConfigError> {
    Sources::read(base, dir, uid)?.parse()
}

impl Sources {
    /// Sources from texts, with names for messages.
    #[must_use]
    pub fn of(texts: &[(&str, &str)]) -> Self {
        let files = texts
            .iter()
            .map(|(n, t)| (PathBuf::from(n), (*t).to_owned()));
        Self {
            files: files.collect(),
        }
    }

    /// Reads base file and additions; `uid` is whose they may be besides root's.
    ///
    /// # Errors
    /// [`ConfigError`] when one is unsafe, too long, or not text.
    pub fn read(base: &Path, dir: &Path, uid: u32) -> Result<Self, ConfigError> {
        let mut sources = Self::default();
        for path in std::iter::once(base.to_owned()).chain(additions(dir)?) {
            check_parents(&path, uid)?;
            let Some(bytes) = files::read_at(&path, Rules::guarded(uid), MAX_FILE)? else {
                continue;
            };
            let text = String::from_utf8(bytes).map_err(|_| ConfigError::Syntax {
                path: path.clone(),
                line: 0,
                why: "not UTF-8".to_owned(),
            })?;
            sources.files.push((path, text));
        }
        Ok(sources)
    }

    /// Merges and reads them as a daemon's own type, which must deny unknown fields.
    ///
    /// # Errors
    /// [`ConfigError`] naming file and line.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        let mut merged = Table::new();
        for (path, text) in &self.files {
            let table = text.parse::<Table>().map_err(|error| ConfigError::Syntax {
                path: path.clone(),
                line: line_at(text, error.span().map_or(0, |s| s.start)),
                why: error.message().to_owned(),
            })?;
            merge(&mut merged, table);
        }
        merged.try_into().map_err(|error| self.explain(&error))
    }

    /// Turns serde's words, which repeat values, into ours, which do not.
    fn explain(&self, error: &toml::de::Error) -> ConfigError {
        let message = error.message();
        let shown = error.to_string();
        let keys: Vec<&str> = shown
            .rsplit_once("\nin `")
            .and_then(|(_, keys)| keys.trim_end().strip_suffix('`'))
            .map_or_else(Vec::new, |keys| keys.split('.').collect());
        let mut quoted = message.split('`').skip(1).step_by(2);
        if message.starts_with("unknown field `") {
            let key = quoted.next().unwrap_or_default();
            let hint = nearest(key, quoted)
                .map_or_else(String::new, |near| format!(", did you mean `{near}`?"));
            return ConfigError::UnknownKey {
                place: self.place(&[&keys[..], &[key]].concat()),
                key: key.to_owned(),
                hint,
            };
        }
        let repeats_the_value = [
            "invalid type: ",
            "invalid value: ",
            "invalid length ",
            "unknown variant `",
        ];
        let why = match message.rsplit_once(", expected ") {
            Some((_, expected)) if repeats_the_value.iter().any(|p| message.starts_with(p)) => {
                format!("expected {expected}")
            }
            _ => message.to_owned(),
        };
        ConfigError::Value {
            place: self.place(&keys),
            key: if keys.is_empty() {
                String::new()
            } else {
                format!("`{}`: ", keys.join("."))
            },
            why,
        }
    }

    /// File and line of a key; the last file that has it, since that one decided.
    fn place(&self, keys: &[&str]) -> String {
        for (path, text) in self.files.iter().rev() {
            if let Ok(table) = DeTable::parse(text)
                && let Some(at) = find(table.get_ref(), keys)
            {
                return format!("{}, line {}", path.display(), line_at(text, at));
            }
        }
        match &self.files[..] {
            [(path, _)] => path.display().to_string(),
            [] => "configuration (no file)".to_owned(),
            _ => "configuration".to_owned(),
        }
    }
}

/// Tables merge, arrays add up, the rest replaces.
fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (Some(Value::Array(old)), Value::Array(new)) => old.extend(new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

/// Regular files with the right extension, sorted; links are skipped (identity-service.md 1.6).
fn additions(dir: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let io = |cause| FileError::Io {
        operation: "list",
        path: dir.to_owned(),
        cause,
    };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(cause) => return Err(io(cause).into()),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io)?;
        let path = entry.path();
        let regular = entry.file_type().map_err(io)?.is_file();
        if regular && path.extension().is_some_and(|e| e == "toml") {
            paths.push(path);
        }
    }
    if paths.len() > MAX_FILES {
        return Err(ConfigError::TooMany {
            path: dir.to_owned(),
        });
    }
    paths.sort();
    Ok(paths)
}

/// No directory above a file may let others put another file in its place; one like `/tmp`, in
/// which only the owner may replace a name, does not.
fn check_parents(path: &Path, uid: u32) -> Result<(), ConfigError> {
    let refused = |path: &Path, why| ConfigError::Parent {
        path: path.to_owned(),
        why,
    };
    if !path.is_absolute() {
        return Err(refused(path, "not an absolute path"));
    }
    for parent in path.ancestors().skip(1) {
        let Ok(stat) = rustix::fs::stat(parent) else {
            // It does not exist, so neither does the file.
            continue;
        };
        let sticky = stat.st_mode & 0o1000 != 0;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Err(refused(parent, "not a directory"));
        }
        if stat.st_uid != 0 && stat.st_uid != uid {
            return Err(refused(parent, "owned by another user"));
        }
        if stat.st_mode & 0o022 != 0 && !sticky {
            return Err(refused(parent, "writable by others"));
        }
    }
    Ok(())
}

/// Line number of a byte, from 1.
fn line_at(text: &str, at: usize) -> usize {
    let before = text.as_bytes().iter().take(at);
    1 + before.filter(|&&b| b == b'\n').count()
}

/// Where the last key of a path is written; any element of an array may have it.
fn find(table: &DeTable<'_>, keys: &[&str]) -> Option<usize> {
    let (first, rest) = keys.split_first()?;
    let (key, value) = table.iter().find(|(k, _)| k.get_ref() == first)?;
    let here = key.span().start;
    if rest.is_empty() {
        return Some(here);
    }
    match value.get_ref() {
        DeValue::Table(inner) => find(inner, rest),
        DeValue::Array(items) => items.iter().find_map(|item| match item.get_ref() {
            DeValue::Table(inner) => find(inner, rest),
            _ => None,
        }),
        _ => Some(here),
    }
}

/// The known word that is close enough to be meant.
fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let close = word.len().div_ceil(3);
    known
        .map(|k| (distance(word, k), k))
        .filter(|(d, _)| *d <= close)
        .min()
        .map(|(_, k)| k)
}

/// Letters to insert, remove or change.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let change = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// What a file looks like from outside.
type Look = (PathBuf, u64, u64, i64, i64);

/// Notices changed configuration, and reads it when it has been left alone for a while.
#[derive(Debug)]
pub struct Watch {
    base: PathBuf,
    dir: PathBuf,
    uid: u32,
    read: Vec<Look>,
    seen: Vec<Look>,
    since_ms: i64,
}

impl Watch {
    /// Watches what was just read; call it before reading.
    #[must_use]
    pub fn new(base: &Path, dir: &Path, uid: u32) -> Self {
        let mut watch = Self {
            base: base.to_owned(),
            dir: dir.to_owned(),
            uid,
            read: Vec::new(),
            seen: Vec::new(),
            since_ms: 0,
        };
        watch.read = watch.look();
        watch.seen.clone_from(&watch.read);
        watch
    }

    /// New sources, once a change is ten seconds old; called now and then.
    pub fn poll(&mut self, now_ms: i64) -> Option<Result<Sources, ConfigError>> {
        let look = self.look();
        if look != self.seen {
            self.seen = look;
            self.since_ms = now_ms;
        }
        if self.seen == self.read || now_ms - self.since_ms < QUIET_MS {
            return None;
        }
        self.read.clone_from(&self.seen);
        Some(Sources::read(&self.base, &self.dir, self.uid))
    }

    fn look(&self) -> Vec<Look> {
        let additions = additions(&self.dir).unwrap_or_default();
        let paths = std::iter::once(self.base.clone()).chain(additions);
        paths
            .filter_map(|path| {
                let stat = rustix::fs::lstat(&path).ok()?;
                let size = u64::try_from(stat.st_size).ok()?;
                let changed = i64::try_from(stat.st_ctime_nsec).ok()?;
                Some((path, stat.st_ino, size, stat.st_ctime, changed))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Scratch, chmod, put};
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        #[serde(default)]
        max_requests: u32,
        #[serde(default)]
        principal: Vec<Principal>,
        #[serde(default)]
        token: Token,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Principal {
        uid: u32,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Token {
        pin: String,
        kind: Option<Kind>,
        slot: u8,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Kind {
        Soft,
    }

    #[test]
    fn tables_merge_arrays_add_up_and_scalars_replace() {
        let config: Config = Sources::of(&[
            (
                "a",
                "max_requests = 1\n[token]\npin = 'x'\n[[principal]]\nuid = 1",
            ),
            (
                "b",
                "max_requests = 2\n[token]\nslot = 3\n[[principal]]\nuid = 2",
            ),
        ])
        .parse()
        .unwrap();
        let uids: Vec<u32> = config.principal.iter().map(|p| p.uid).collect();
        assert_eq!((config.max_requests, uids), (2, vec![1, 2]));
        assert_eq!((config.token.pin.as_str(), config.token.slot), ("x", 3));
    }

    #[test]
    fn a139_refusals_name_file_line_and_expectation_and_no_value() {
        for (text, want) in [
            (
                "max_request = 1",
                "f.toml, line 1: unknown key `max_request`, did you mean `max_requests`?",
            ),
            (
                "\n\n[token]\npim = 'SECRET'",
                "f.toml, line 4: unknown key `pim`, did you mean `pin`?",
            ),
            ("zzz = 'SECRET'", "f.toml, line 1: unknown key `zzz`"),
            (
                "[[principal]]\nuid = 1\n[[principal]]\nuid = 2\nuidd = 1",
                "f.toml, line 5: unknown key `uidd`, did you mean `uid`?",
            ),
            (
                "[token]\npin = 1234",
                "f.toml, line 2: `token.pin`: expected a string",
            ),
            (
                "[token]\nslot = 'SECRET, expected SECRET'",
                "f.toml, line 2: `token.slot`: expected u8",
            ),
            (
                "[token]\nslot = 1234",
                "f.toml, line 2: `token.slot`: expected u8",
            ),
            (
                "[token]\nkind = 'SECRET'",
                "f.toml, line 2: `token.kind`: expected `soft`",
            ),
            (
                "max_requests = 'SECRET'",
                "f.toml, line 1: `max_requests`: expected u32",
            ),
            (
                "[[principal]]",
                "f.toml, line 1: `principal`: missing field `uid`",
            ),
            ("a = 1\na = 'SECRET'", "f.toml, line 2: duplicate key"),
            ("pin = SECRET 1234", "f.toml, line 1: "),
            ("pin = 'SECRET", "f.toml, line 1: "),
        ] {
            let sources = Sources::of(&[("e.toml", "max_requests = 3"), ("f.toml", text)]);
            let message = sources.parse::<Config>().unwrap_err().to_string();
            assert!(message.starts_with(want), "{text}: {message}");
            assert!(
                !message.contains("SECRET") && !message.contains("1234"),
                "{message}"
            );
        }
    }

    fn places(scratch: &Scratch) -> (PathBuf, PathBuf) {
        let dir = scratch.path().join("config.d");
        std::fs::create_dir(&dir).unwrap();
        chmod(&dir, 0o700);
        (scratch.path().join("config.toml"), dir)
    }

    #[test]
    fn additions_are_sorted_and_links_and_other_files_skipped() {
        let scratch = Scratch::new();
        let (base, dir) = places(&scratch);
        let load = || load::<Config>(&base, &dir, scratch.uid());
        assert_eq!(load().unwrap().max_requests, 0, "no file at all");
        put(&base, "max_requests = 1");
        put(&dir.join("20.toml"), "max_requests = 20");
        put(&dir.join("10.toml"), "max_requests = 10");
        put(&dir.join("30.conf"), "max_requests = 30");
        put(&scratch.path().join("40.toml"), "max_requests = 40");
        std::os::unix::fs::symlink("../40.toml", dir.join("40.toml")).unwrap();
        assert_eq!(load().unwrap().max_requests, 20);
    }

    #[test]
    fn a139_unsafe_files_and_directories_are_refused() {
        let scratch = Scratch::new();
        let (base, dir) = places(&scratch);
        let load = || load::<Config>(&base, &dir, scratch.uid());
        let refused = |why: &str| {
            let message = load().unwrap_err().to_string();
            assert!(message.contains(why), "{message}");
        };
        put(&base, "max_requests = 1");
        chmod(&base, 0o644);
        load().unwrap();
        chmod(&base, 0o662);
        refused("more access");
        chmod(&base, 0o600);
        chmod(scratch.path(), 0o720);
        refused("writable by others");
        chmod(scratch.path(), 0o700);
        put(&dir.join("a.toml"), "");
        chmod(&dir, 0o777);
        refused("writable by others");
        chmod(&dir, 0o700);
        std::fs::hard_link(&base, scratch.path().join("second")).unwrap();
        refused("hard link");
        std::fs::remove_file(scratch.path().join("second")).unwrap();
        put(&base, &"#".repeat(MAX_FILE + 1));
        refused("longer than");
        put(&base, &"#".repeat(MAX_FILE));
        load().unwrap();
        for n in 0..=MAX_FILES {
            put(&dir.join(format!("{n}.toml")), "");
        }
        refused("more than 64");
        std::fs::remove_file(&base).unwrap();
        std::os::unix::fs::symlink("config.d/1.toml", &base).unwrap();
        std::fs::remove_file(dir.join("1.toml")).unwrap();
        std::fs::remove_file(dir.join("2.toml")).unwrap();
        refused("symbolic link");
    }

    #[test]
    fn a140_a_file_being_written_is_left_alone_until_it_is_quiet() {
        let scratch = Scratch::new();
        let (base, dir) = places(&scratch);
        put(&base, "max_requests = 1");
        let mut watch = Watch::new(&base, &dir, scratch.uid());
        assert!(watch.poll(100_000).is_none());
        put(&base, "max_requests = 2\n[tok");
        assert!(watch.poll(101_000).is_none());
        assert!(watch.poll(110_999).is_none());
        put(&base, "max_requests = 3\n[token]");
        assert!(
            watch.poll(111_000).is_none(),
            "it changed again: the quiet time begins anew"
        );
        assert!(watch.poll(120_999).is_none());
        let config: Config = watch.poll(121_000).unwrap().unwrap().parse().unwrap();
        assert_eq!(config.max_requests, 3);
        assert!(watch.poll(999_000).is_none(), "read once");
    }
}
