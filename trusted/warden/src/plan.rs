//! What a module's process will be, as a value: namespaces, ids, environment, file rules.
//!
//! Pure: from a grant, a request and what the kernel offers to a [`Plan`] that `child` performs
//! step by step. Whatever is decided about a sandbox is decided here.

use std::ffi::CString;

use contract::grant::{Grant, Network, Standing, is_loader_variable};
use contract::warden::{Reason, Refusal, Start, Weaker};
use rustix::process::Resource;

/// The search path of every module (R29).
const PATH: &str = "PATH=/usr/local/bin:/usr/bin:/bin";

/// What any dynamically linked program needs to come to life. No grant has to name it, and it
/// is the same for all modules: the system's libraries to read, the loaders to execute, the
/// devices that hold no data, its own processes, its own sockets.
const BASELINE: &[(&str, Access)] = &[
    ("/usr", Access::Read),
    ("/lib", Access::Read),
    ("/lib64", Access::Read),
    ("/bin", Access::Read),
    ("/etc/ld.so.cache", Access::Read),
    ("/etc/localtime", Access::Read),
    ("/lib64/ld-linux-x86-64.so.2", Access::Execute),
    ("/lib/ld-linux-aarch64.so.1", Access::Execute),
    ("/lib/ld-linux-armhf.so.3", Access::Execute),
    ("/lib/ld-musl-x86_64.so.1", Access::Execute),
    ("/lib/ld-musl-aarch64.so.1", Access::Execute),
    ("/dev/null", Access::Write),
    ("/dev/zero", Access::Read),
    ("/dev/urandom", Access::Read),
    ("/proc", Access::Read),
    ("/run/iotedge", Access::Read),
];

/// Kinds of access to a file or a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Execute,
}

/// Bits of `linux/landlock.h`.
mod bits {
    pub(super) const EXECUTE: u64 = 1;
    pub(super) const WRITE_FILE: u64 = 1 << 1;
    pub(super) const READ_FILE: u64 = 1 << 2;
    pub(super) const READ_DIR: u64 = 1 << 3;
    /// Everything up to making symbolic links, of the first version.
    pub(super) const V1: u64 = (1 << 13) - 1;
    /// Making character and block devices: nobody's.
    pub(super) const MAKE_DEVICES: u64 = (1 << 6) | (1 << 11);
    pub(super) const REFER: u64 = 1 << 13;
    pub(super) const TRUNCATE: u64 = 1 << 14;
    pub(super) const IOCTL_DEV: u64 = 1 << 15;
    /// What a rule on a file that is no directory may contain.
    pub(super) const OF_FILE: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;
    /// Abstract sockets and signals to processes outside.
    pub(super) const SCOPES: u64 = 0b11;
}

/// Version of Landlock from which nothing known here is missing.
const FULL_ABI: u32 = 6;

/// Limits on files for one version of Landlock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sandbox {
    /// File accesses that need a rule.
    pub(crate) handled: u64,
    /// What may not cross the border.
    pub(crate) scoped: u64,
    /// The rules.
    pub(crate) rules: Vec<Rule>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) path: String,
    pub(crate) access: Access,
    /// Whether a path that does not exist ends the start: so for each path of the grant.
    pub(crate) presence: Presence,
}

/// Whether a path must exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    Required,
    Optional,
}

impl Sandbox {
    /// The bits of one kind of access, on a directory or on a single file.
    pub(crate) fn access(&self, access: Access, on_directory: bool) -> u64 {
        let wanted = match access {
            Access::Read => bits::READ_FILE | bits::READ_DIR,
            Access::Execute => bits::READ_FILE | bits::READ_DIR | bits::EXECUTE,
            Access::Write => !(bits::EXECUTE | bits::MAKE_DEVICES | bits::IOCTL_DEV),
        };
        wanted & self.handled & if on_directory { !0 } else { bits::OF_FILE }
    }
}

/// Everything about a module's process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Flags of the namespaces it gets.
    pub(crate) namespaces: libc::c_int,
    /// Whether ids change or a user namespace maps the own ones to themselves.
    pub(crate) standing: Standing,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) argv: Vec<CString>,
    pub(crate) envp: Vec<CString>,
    pub(crate) sandbox: Option<Sandbox>,
    pub(crate) limits: Vec<(Resource, u64)>,
    pub(crate) weaker: Weaker,
}

/// Plans a start.
pub(crate) fn plan(
    grant: &Grant,
    start: &Start,
    standing: Standing,
    landlock_abi: Option<u32>,
) -> Result<Plan, Refusal> {
    let refuse = |reason, detail: String| Refusal { reason, detail };
    grant
        .check_ids(standing)
        .map_err(|e| refuse(Reason::InvalidGrant, e.to_string()))?;
    if let Some(pair) = start
        .env
        .iter()
        .find(|pair| is_loader_variable(pair.name()))
    {
        let detail = format!("{} changes which code the program loads", pair.name());
        return Err(refuse(Reason::Setup, detail));
    }
    let text = |text: String| {
        CString::new(text).map_err(|_| refuse(Reason::InvalidGrant, "a NUL in a text".into()))
    };
    let argv = std::iter::once(&grant.executable)
        .chain(&grant.args)
        .cloned()
        .map(text);
    let given = start.env.iter().filter(|pair| pair.name() != "PATH");
    let envp = std::iter::once(PATH.to_owned())
        .chain(given.map(|pair| format!("{}={}", pair.name(), pair.value())))
        .map(text);
    let own = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    let user = matches!(standing, Standing::User { .. });
    let namespaces = own
        | if user { libc::CLONE_NEWUSER } else { 0 }
        | if grant.network == Network::None {
            libc::CLONE_NEWNET
        } else {
            0
        };
    let limits = [
        (Resource::Core, Some(0)),
        (Resource::Nproc, grant.processes.map(u64::from)),
        (Resource::Data, grant.process_memory),
        (Resource::Fsize, Some(grant.file_size)),
    ];
    Ok(Plan {
        namespaces,
        standing,
        uid: grant.uid,
        gid: grant.gid,
        argv: argv.collect::<Result<_, _>>()?,
        envp: envp.collect::<Result<_, _>>()?,
        sandbox: landlock_abi.map(|abi| sandbox(grant, abi)),
        limits: limits
            .into_iter()
            .filter_map(|(kind, most)| Some((kind, most?)))
            .collect(),
        weaker: Weaker::default()
            .with(Weaker::UID_SHARED, user)
            .with(Weaker::LANDLOCK_ABSENT, landlock_abi.is_none())
            .with(
                Weaker::LANDLOCK_PARTIAL,
                landlock_abi.is_some_and(|abi| abi < FULL_ABI),
            ),
    })
}

fn sandbox(grant: &Grant, abi: u32) -> Sandbox {
    let since = |version, bits| if abi >= version { bits } else { 0 };
    let handled =
        bits::V1 | since(2, bits::REFER) | since(3, bits::TRUNCATE) | since(5, bits::IOCTL_DEV);
    let system = BASELINE.iter().map(|(path, access)| Rule {
        path: (*path).to_owned(),
        access: *access,
        presence: Presence::Optional,
    });
    let granted = |paths: &[String], access| {
        let rule = |path: &String| Rule {
            path: path.clone(),
            access,
            presence: Presence::Required,
        };
        paths.iter().map(rule).collect::<Vec<_>>()
    };
    let rules = system
        .chain(granted(&grant.read, Access::Read))
        .chain(granted(&grant.write, Access::Write))
        .chain(granted(&grant.execute, Access::Execute))
        .collect();
    Sandbox {
        handled,
        scoped: since(6, bits::SCOPES),
        rules,
    }
}

#[cfg(test)]
mod tests {
    use contract::warden::{EnvPair, SocketDir};

    use super::*;

    fn grant() -> Grant {
        toml::from_str(&format!(
            "executable = '/bin/x'\nsha256 = '{}'\nuid = 2000\ngid = 2001\nargs = ['-v']\n\
             write = ['/data']\nnetwork = 'none'\nprocesses = 8",
            "0".repeat(64)
        ))
        .unwrap()
    }

    fn start(env: &[(&str, &str)]) -> Start {
        Start {
            module: contract::names::ModuleName::new("m").unwrap(),
            grant: contract::grant::GrantName::new("g").unwrap(),
            env: env
                .iter()
                .map(|(name, value)| EnvPair::new(*name, *value).unwrap())
                .collect(),
            sockets: SocketDir::Absent,
        }
    }

    const ROOT: Standing = Standing::Root { minimum_uid: 1000 };

    #[test]
    fn the_environment_is_a_fixed_path_and_what_was_given() {
        let made = plan(
            &grant(),
            &start(&[("PATH", "/evil"), ("A", "1")]),
            ROOT,
            Some(7),
        )
        .unwrap();
        let envp: Vec<_> = made
            .envp
            .iter()
            .map(|text| text.to_str().unwrap())
            .collect();
        assert_eq!(envp, [PATH, "A=1"]);
        assert_eq!(made.argv, [c"/bin/x".to_owned(), c"-v".to_owned()]);
        assert!(made.weaker.is_empty());
    }

    #[test]
    fn variables_the_loader_obeys_are_refused() {
        for name in ["LD_PRELOAD", "LD_LIBRARY_PATH", "GLIBC_TUNABLES"] {
            let refusal = plan(&grant(), &start(&[(name, "x")]), ROOT, None).unwrap_err();
            assert_eq!(refusal.reason, Reason::Setup, "{name}");
        }
    }

    #[test]
    fn an_ordinary_user_gets_a_user_namespace_and_says_what_is_weaker() {
        let user = Standing::User {
            uid: 2000,
            gid: 2001,
        };
        let made = plan(&grant(), &start(&[]), user, Some(3)).unwrap();
        assert_ne!(made.namespaces & libc::CLONE_NEWUSER, 0);
        let weaker: Vec<_> = made.weaker.names().collect();
        assert_eq!(weaker, ["UID_SHARED", "LANDLOCK_PARTIAL"]);
    }

    #[test]
    fn no_tree_is_both_changed_and_executed_and_old_kernels_get_only_bits_they_know() {
        for abi in 1..=7 {
            let sandbox = sandbox(&grant(), abi);
            let write = sandbox.access(Access::Write, true);
            assert_eq!(write & (bits::EXECUTE | bits::MAKE_DEVICES), 0);
            assert_eq!(
                sandbox.access(Access::Read, true),
                bits::READ_FILE | bits::READ_DIR
            );
            assert_eq!(sandbox.access(Access::Write, false) & bits::READ_DIR, 0);
            assert_eq!(sandbox.handled >> 13 == 0, abi == 1, "abi {abi}");
            assert_eq!(sandbox.scoped == 0, abi < 6);
        }
        let required = sandbox(&grant(), 7).rules.into_iter();
        let required: Vec<_> = required
            .filter(|r| r.presence == Presence::Required)
            .collect();
        assert_eq!(required.len(), 1);
        assert_eq!(required[0].path, "/data");
    }
}
