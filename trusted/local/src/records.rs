//! Records of our own: what kind, which version, a checksum, and a body in JSON (R75).
//!
//! ```text
//! holdfast time-floor 1
//! sha256 <64 hex digits of the body>
//! {"floor":1790000000}
//! ```
//! A damaged record is replaced by its previous generation, and the caller is told; if that is
//! damaged too, reading is an error. Nothing ever starts empty because a file was broken.
//! Compatible files (keys, certificates) are plain and do not come through here.

use contract::audit::{hash, hex};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::files::{Dir, FileError};

/// A kind of record.
pub trait Record: Serialize + DeserializeOwned {
    /// Its word, in the first line of the file.
    const KIND: &'static str;
    /// The version that is written.
    const VERSION: u32;
    /// Longest body in bytes.
    const LIMIT: usize = 64 * 1024;

    /// Reads a body of an earlier version; `None` when there is no way.
    #[must_use]
    fn upgrade(version: u32, body: &[u8]) -> Option<Self> {
        let _ = (version, body);
        None
    }
}

/// Where a record came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// The file.
    Current,
    /// The file was damaged; this is the one before (event `store.damaged`).
    Previous,
}

/// The first two lines at most.
const HEADER: usize = 256;

/// Reads a record; `None` when there is no file.
///
/// # Errors
/// [`FileError::Damaged`] when neither generation can be trusted, [`FileError::Later`] when a later
/// release wrote it, and those of reading.
pub fn read<R: Record>(dir: &Dir, name: &str) -> Result<Option<(R, Generation)>, FileError> {
    let path = || dir.path().join(name);
    let why = match dir.read(name, R::LIMIT + HEADER) {
        Ok(None) => return Ok(None),
        Ok(Some(bytes)) => match parse::<R>(&bytes) {
            Ok(record) => return Ok(Some((record, Generation::Current))),
            Err(Trouble::Later(version)) => {
                return Err(FileError::Later {
                    path: path(),
                    version,
                });
            }
            Err(Trouble::Damaged(why)) => why,
        },
        Err(FileError::TooLong { .. }) => "too long",
        Err(other) => return Err(other),
    };
    let previous = dir.read_previous(name, R::LIMIT + HEADER)?;
    match previous.as_deref().map(parse::<R>) {
        Some(Ok(record)) => Ok(Some((record, Generation::Previous))),
        _ => Err(FileError::Damaged { path: path(), why }),
    }
}

/// Writes a record, durably, and keeps the one before.
///
/// # Errors
/// [`FileError`] of writing.
pub fn write<R: Record>(dir: &Dir, name: &str, record: &R) -> Result<(), FileError> {
    let body = serde_json::to_vec(record).map_err(|cause| FileError::Io {
        operation: "write",
        path: dir.path().join(name),
        cause: cause.into(),
    })?;
    let mut text = format!(
        "holdfast {} {}\nsha256 {}\n",
        R::KIND,
        R::VERSION,
        hex(&hash(&body))
    )
    .into_bytes();
    text.extend(body);
    text.push(b'\n');
    dir.replace(name, &text, 0o600)
}

enum Trouble {
    Damaged(&'static str),
    Later(u32),
}

fn parse<R: Record>(text: &[u8]) -> Result<R, Trouble> {
    let broken = |why| move || Trouble::Damaged(why);
    let mut lines = text.splitn(3, |&b| b == b'\n');
    let mut line = || lines.next().and_then(|l| std::str::from_utf8(l).ok());
    let first = line().ok_or_else(broken("no header"))?;
    let second = line().ok_or_else(broken("no checksum"))?;
    let body = lines
        .next()
        .and_then(|b| b.strip_suffix(b"\n"))
        .ok_or_else(broken("cut off"))?;
    let version = first
        .strip_prefix("holdfast ")
        .and_then(|rest| rest.strip_prefix(R::KIND))
        .and_then(|rest| rest.strip_prefix(' '))
        .and_then(|version| version.parse::<u32>().ok())
        .ok_or_else(broken("another header"))?;
    let checksum = second.strip_prefix("sha256 ");
    if checksum != Some(hex(&hash(body)).as_str()) {
        return Err(Trouble::Damaged("its checksum does not match"));
    }
    let parsed = match version {
        v if v == R::VERSION => serde_json::from_slice(body).ok(),
        v if v > R::VERSION => return Err(Trouble::Later(v)),
        v => R::upgrade(v, body),
    };
    parsed.ok_or_else(broken("its members are not those of its version"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Rules;
    use crate::testing::Scratch;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Counter {
        value: u64,
    }

    impl Record for Counter {
        const KIND: &'static str = "counter";
        const VERSION: u32 = 2;
        fn upgrade(version: u32, body: &[u8]) -> Option<Self> {
            (version == 1).then(|| {
                serde_json::from_slice::<u64>(body)
                    .ok()
                    .map(|value| Self { value })
            })?
        }
    }

    fn dir() -> (Scratch, Dir) {
        let scratch = Scratch::new();
        let dir = Dir::open(scratch.path(), Rules::private(scratch.uid())).unwrap();
        (scratch, dir)
    }

    #[test]
    fn a134_damage_falls_back_to_the_previous_generation() {
        let (_scratch, dir) = dir();
        assert_eq!(read::<Counter>(&dir, "c").unwrap(), None);
        write(&dir, "c", &Counter { value: 1 }).unwrap();
        write(&dir, "c", &Counter { value: 2 }).unwrap();
        let whole = dir.read("c", 1000).unwrap().unwrap();
        assert_eq!(
            read(&dir, "c").unwrap(),
            Some((Counter { value: 2 }, Generation::Current))
        );
        let mut damaged: Vec<Vec<u8>> = (0..whole.len()).map(|n| whole[..n].to_vec()).collect();
        damaged.push(vec![0; whole.len()]);
        damaged.push([&whole[..], b"x"].concat());
        damaged.push(vec![b'x'; 100_000]);
        for at in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            damaged.push(flipped);
        }
        for bytes in damaged {
            crate::testing::overwrite(&dir.path().join("c"), &bytes);
            match read::<Counter>(&dir, "c") {
                Ok(Some((Counter { value: 1 }, Generation::Previous))) => {}
                // A flipped bit may say version 3; that is a typed stop, and no loss.
                Err(FileError::Later { .. }) => {}
                other => panic!("{bytes:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn a134_without_an_intact_generation_reading_is_an_error_not_empty() {
        let (_scratch, dir) = dir();
        write(&dir, "c", &Counter { value: 1 }).unwrap();
        crate::testing::overwrite(&dir.path().join("c"), b"");
        let error = read::<Counter>(&dir, "c").unwrap_err();
        assert!(matches!(error, FileError::Damaged { .. }), "{error}");
    }

    #[test]
    fn earlier_versions_are_read_and_later_ones_refused() {
        let (_scratch, dir) = dir();
        for (version, body, want) in [
            (1, "7", Some(7)),
            (2, "{\"value\":8}", Some(8)),
            (3, "{}", None),
        ] {
            let sum = hex(&hash(body.as_bytes()));
            let text = format!("holdfast counter {version}\nsha256 {sum}\n{body}\n");
            dir.replace("v", text.as_bytes(), 0o600).unwrap();
            let got = read::<Counter>(&dir, "v");
            match want {
                Some(value) => assert_eq!(got.unwrap().unwrap().0, Counter { value }),
                None => assert!(matches!(got, Err(FileError::Later { version: 3, .. }))),
            }
        }
    }
}
