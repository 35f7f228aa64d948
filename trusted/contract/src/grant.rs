//! The grant: what root allows one host-level module to be (R49, A89).
//!
//! A grant file names an executable by path *and* digest, the ids it runs with, and everything
//! it may reach. `warden` reads it anew for each start; whoever asks for the start names only
//! the grant. The file's form and every judgement over it are here as pure functions; reading
//! it safely is warden's affair.

use serde::Deserialize;

pub use crate::names::GrantName;

/// Most arguments, paths of one kind, and bytes of one text in a grant.
const MAX_ITEMS: usize = 64;
const MAX_TEXT: usize = 4096;

/// Why a grant is not in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// A member does not have its form.
    #[error("{member}: {why}")]
    Member {
        /// The member of the file.
        member: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The file or a directory above it could be changed by someone not trusted (R78).
    #[error("{path} {why}")]
    Unguarded {
        /// The entry that is not safe.
        path: String,
        /// Who could change it.
        why: &'static str,
    },
    /// The ids it names may not be given.
    #[error("ids {uid}:{gid}: {why}")]
    Ids {
        /// Its user id.
        uid: u32,
        /// Its group id.
        gid: u32,
        /// Why not.
        why: &'static str,
    },
}

/// What of the network a module sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// The host's network.
    #[default]
    Host,
    /// A network namespace of its own with nothing in it; Unix sockets by path still work.
    None,
}

/// One grant, its form checked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "GrantFile")]
pub struct Grant {
    /// The program, an absolute path.
    pub executable: String,
    /// SHA-256 of the program's bytes.
    pub digest: [u8; 32],
    /// Arguments after the program's own name.
    pub args: Vec<String>,
    /// User id it runs with.
    pub uid: u32,
    /// Group id it runs with.
    pub gid: u32,
    /// Files and trees it may read, besides the system's libraries.
    pub read: Vec<String>,
    /// Files and trees it may read and change.
    pub write: Vec<String>,
    /// Files and trees it may read and execute, besides its own program.
    pub execute: Vec<String>,
    /// Most processes of this uid at once.
    pub processes: Option<u32>,
    /// Most bytes of data memory for each of its processes.
    pub process_memory: Option<u64>,
    /// Most bytes of one file that it writes, its log included.
    pub file_size: u64,
    /// What of the network it sees.
    pub network: Network,
}

/// Without a line in the grant: enough for a log, too little to fill a disk with it.
const FILE_SIZE: u64 = 64 << 20;

/// The file as written. Unknown keys are refused and the known ones named (R78).
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantFile {
    executable: String,
    sha256: String,
    #[serde(default)]
    args: Vec<String>,
    uid: u32,
    gid: u32,
    #[serde(default)]
    read: Vec<String>,
    #[serde(default)]
    write: Vec<String>,
    #[serde(default)]
    execute: Vec<String>,
    processes: Option<u32>,
    process_memory: Option<u64>,
    file_size: Option<u64>,
    #[serde(default)]
    network: Network,
}

impl TryFrom<GrantFile> for Grant {
    type Error = GrantError;

    fn try_from(file: GrantFile) -> Result<Self, GrantError> {
        let member = |member, why| GrantError::Member { member, why };
        plain_path(&file.executable).map_err(|why| member("executable", why))?;
        let digest =
            digest(&file.sha256).ok_or(member("sha256", "not 64 lower-case hex digits"))?;
        items(&file.args, text).map_err(|why| member("args", why))?;
        items(&file.read, plain_path).map_err(|why| member("read", why))?;
        items(&file.write, plain_path).map_err(|why| member("write", why))?;
        items(&file.execute, plain_path).map_err(|why| member("execute", why))?;
        if file.processes.is_some_and(|most| most < 2) {
            return Err(member("processes", "below 2: its reaper and itself"));
        }
        if file.process_memory.is_some_and(|most| most < 1 << 20) {
            return Err(member("process_memory", "below one MiB"));
        }
        Ok(Self {
            executable: file.executable,
            digest,
            args: file.args,
            uid: file.uid,
            gid: file.gid,
            read: file.read,
            write: file.write,
            execute: file.execute,
            processes: file.processes,
            process_memory: file.process_memory,
            file_size: file.file_size.unwrap_or(FILE_SIZE),
            network: file.network,
        })
    }
}

/// With which powers the starter runs, hence which ids it can give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Root: any ids from a minimum upwards, never 0.
    Root {
        /// Lowest id it gives.
        minimum_uid: u32,
    },
    /// An ordinary user: its own ids and no others.
    User {
        /// Its user id.
        uid: u32,
        /// Its group id.
        gid: u32,
    },
}

impl Standing {
    /// The user whose files are trusted besides root's.
    #[must_use]
    pub fn owner(&self) -> u32 {
        match *self {
            Self::Root { .. } => 0,
            Self::User { uid, .. } => uid,
        }
    }
}

impl Grant {
    /// Whether a starter of this standing may give the grant's ids.
    ///
    /// # Errors
    /// [`GrantError::Ids`].
    pub fn check_ids(&self, standing: Standing) -> Result<(), GrantError> {
        let refuse = |why| {
            Err(GrantError::Ids {
                uid: self.uid,
                gid: self.gid,
                why,
            })
        };
        // u32::MAX means "leave unchanged" to the kernel: it would keep root.
        let impossible = |id: u32| id == 0 || id == u32::MAX;
        if impossible(self.uid) || impossible(self.gid) {
            return refuse("root's and the kernel's reserved id are never given");
        }
        match standing {
            Standing::Root { minimum_uid } if self.uid < minimum_uid || self.gid < minimum_uid => {
                refuse("below the configured minimum")
            }
            Standing::User { uid, gid } if (self.uid, self.gid) != (uid, gid) => {
                refuse("an ordinary user can give only its own ids")
            }
            _ => Ok(()),
        }
    }
}

/// One entry on the way from `/` to a file: what `fstat` says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path, for the message.
    pub path: String,
    /// Its owner.
    pub uid: u32,
    /// Its mode, with the type bits.
    pub mode: u32,
}

/// Whether only root and `owner` can change the last entry or put another in its place (R78).
///
/// A sticky directory such as `/tmp` may lie further up: nobody can move aside what another
/// owns in it. The directory right above must not be writable by others at all, since whoever
/// can write there could add a file of a name not yet taken.
///
/// # Errors
/// [`GrantError::Unguarded`] with the first entry that is not safe.
pub fn check_guarded(chain: &[Entry], owner: u32) -> Result<(), GrantError> {
    const STICKY: u32 = 0o1000;
    for (above, entry) in chain.iter().rev().enumerate() {
        let refuse = |why| {
            Err(GrantError::Unguarded {
                path: entry.path.clone(),
                why,
            })
        };
        if entry.uid != 0 && entry.uid != owner {
            return refuse("belongs to a user who is not trusted with it");
        }
        let sticky_ancestor = above > 1 && entry.mode & STICKY != 0;
        if entry.mode & 0o022 != 0 && !sticky_ancestor {
            return refuse("is writable by its group or by everybody");
        }
    }
    Ok(())
}

/// Absolute, without `.`, `..`, empty components or NUL.
///
/// # Errors
/// What is wrong with it.
pub fn plain_path(path: &str) -> Result<(), &'static str> {
    text(path)?;
    let Some(rest) = path.strip_prefix('/') else {
        return Err("not an absolute path");
    };
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    if rest.is_empty() || rest.split('/').all(plain) {
        Ok(())
    } else {
        Err("a path with empty, '.' or '..' components")
    }
}

fn text(text: &str) -> Result<(), &'static str> {
    if text.len() > MAX_TEXT {
        return Err("longer than 4096 bytes");
    }
    if text.contains('\0') {
        Err("contains a NUL")
    } else {
        Ok(())
    }
}

fn items(
    items: &[String],
    check: fn(&str) -> Result<(), &'static str>,
) -> Result<(), &'static str> {
    if items.len() > MAX_ITEMS {
        return Err("more than 64 items");
    }
    items.iter().try_for_each(|item| check(item))
}

/// A digest as the grant writes it.
fn digest(hex: &str) -> Option<[u8; 32]> {
    let hex = hex.as_bytes();
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let mut out = [0u8; 32];
    if hex.len() != 64 {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = (digit(pair[0])? << 4) | digit(pair[1])?;
    }
    Some(out)
}

/// Names of environment variables a starter never sets, since the loader obeys them before the
/// measured program runs a single instruction (K11).
#[must_use]
pub fn is_loader_variable(name: &str) -> bool {
    ["LD_", "GLIBC_TUNABLES", "GCONV_PATH", "LOCPATH", "NLSPATH"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(change: impl FnOnce(&mut serde_json::Value)) -> Result<Grant, String> {
        let mut file = serde_json::json!({
            "executable": "/usr/bin/sensor", "sha256": "ab".repeat(32), "uid": 70001, "gid": 70001
        });
        change(&mut file);
        serde_json::from_value(file).map_err(|error| error.to_string())
    }

    #[test]
    fn a_short_grant_gives_nothing_but_its_program() {
        let grant = parse(|_| ()).unwrap();
        assert_eq!(grant.digest, [0xab; 32]);
        assert!(grant.write.is_empty() && grant.execute.is_empty() && grant.read.is_empty());
        assert_eq!(grant.network, Network::Host);
    }

    #[test]
    fn a89_a_grant_with_an_unknown_power_is_refused_and_the_known_ones_named() {
        let error = parse(|file| file["writes"] = serde_json::json!(["/"])).unwrap_err();
        assert!(
            error.contains("unknown field `writes`") && error.contains("`write`"),
            "{error}"
        );
    }

    #[test]
    fn members_out_of_form_are_refused() {
        let cases: [(&str, serde_json::Value); 9] = [
            ("executable", "usr/bin/sensor".into()),
            ("executable", "/usr/../bin/sensor".into()),
            ("executable", "/usr//bin".into()),
            ("sha256", "AB".repeat(32).into()),
            ("sha256", "ab".repeat(31).into()),
            ("args", vec!["a\0b"].into()),
            ("write", vec!["relative"].into()),
            ("read", vec!["/x"; 65].into()),
            ("processes", 1.into()),
        ];
        for (member, value) in cases {
            let error = parse(|file| file[member] = value.clone()).unwrap_err();
            assert!(error.starts_with(member), "{member} {value}: {error}");
        }
    }

    #[test]
    fn ids_are_given_only_as_the_standing_allows() {
        let root = Standing::Root {
            minimum_uid: 60_000,
        };
        let user = Standing::User {
            uid: 1000,
            gid: 1000,
        };
        let cases = [
            (70_001, 70_001, root, true),
            (0, 70_001, root, false),
            (70_001, 0, root, false),
            (u32::MAX, 70_001, root, false),
            (59_999, 70_001, root, false),
            (1000, 1000, user, true),
            (70_001, 1000, user, false),
            (0, 0, Standing::User { uid: 0, gid: 0 }, false),
        ];
        for (uid, gid, standing, allowed) in cases {
            let mut grant = parse(|_| ()).unwrap();
            (grant.uid, grant.gid) = (uid, gid);
            assert_eq!(
                grant.check_ids(standing).is_ok(),
                allowed,
                "{uid}:{gid} {standing:?}"
            );
        }
    }

    #[test]
    fn a89_a_file_others_could_change_is_refused() {
        let chain = |modes: [(u32, u32); 4]| {
            modes.map(|(uid, mode)| Entry {
                path: format!("{uid}:{mode:o}"),
                uid,
                mode,
            })
        };
        let good = [(0, 0o755), (0, 0o1777), (1000, 0o755), (1000, 0o644)];
        assert_eq!(check_guarded(&chain(good), 1000), Ok(()));
        let change = |at: usize, entry| {
            let mut modes = good;
            modes[at] = entry;
            check_guarded(&chain(modes), 1000)
        };
        for (at, entry) in [
            (3, (1000, 0o664)),
            (3, (1000, 0o646)),
            (3, (1001, 0o644)),
            (2, (1000, 0o1777)),
            (2, (1000, 0o775)),
            (2, (1001, 0o755)),
            (1, (0, 0o777)),
            (0, (0, 0o775)),
        ] {
            assert!(change(at, entry).is_err(), "{at} {entry:?}");
        }
        assert!(
            check_guarded(&chain(good), 0).is_err(),
            "root does not trust uid 1000"
        );
    }

    #[test]
    fn grant_names_are_no_paths() {
        assert!(GrantName::new("sensor-1.v2").is_ok());
        for bad in ["", ".", "..", "../x", "a/b", "$edgeAgent", "a b", "a\0"] {
            assert!(GrantName::new(bad).is_err(), "{bad}");
        }
    }
}
