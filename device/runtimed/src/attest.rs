//! Attestation: does this process belong to that module? (R3-R9, promise P1)
//!
//! [`judge`] decides over plain facts: what was registered when the module started, and what
//! `warden` has measured of the caller by its process descriptor. [`Registration`] remembers the
//! answer per process for as long as the registration lives, so a request usually costs no
//! question to anybody; its key is the descriptor's inode, which is never reused, never a pid.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use contract::warden::{ExecutableFlags, Facts, Measured};
use serde::Deserialize;

/// How much of the caller must be as registered (R8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strictness {
    /// Namespace and control group.
    Container,
    /// Also: the program was verified when the module started, which the host engine always does.
    #[default]
    Image,
    /// Also: the calling program is the granted one, now, for each request.
    Measured,
}

/// By which facts a caller was matched (R4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// Control group and pid namespace.
    Both,
    /// The pid namespace alone: there is no control group of its own.
    Namespace,
}

impl Evidence {
    /// The word in decision records.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Both => "cgroup+namespace",
            Self::Namespace => "namespace",
        }
    }
}

/// Why a process is not the module. Goes to the audit log, never to the caller (R10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stranger {
    /// Its control group is not the registered one.
    #[error("its control group is not the module's")]
    ControlGroup,
    /// Its pid namespace is neither the registered one nor below it.
    #[error("its pid namespace is not the module's")]
    Namespace,
    /// Its program is not the granted one.
    #[error("its program is not the granted one")]
    Program,
    /// Its program has no name, or lies in memory.
    #[error("its program is deleted or lies in memory")]
    Nameless,
}

/// Whether the measured process belongs to the registered module.
///
/// # Errors
/// The first fact that does not match.
pub fn judge(
    registered: &Facts,
    seen: &Measured,
    strictness: Strictness,
) -> Result<Evidence, Stranger> {
    let evidence = match (&registered.cgroup, &seen.cgroup) {
        (None, _) => Evidence::Namespace,
        // Ids, never names: anybody may call a folder as he likes (K9, A9).
        (Some(own), Some(its)) if own.id == its.id => Evidence::Both,
        _ => return Err(Stranger::ControlGroup),
    };
    if registered.pid_ns == 0 || !seen.pid_namespaces.contains(&registered.pid_ns) {
        return Err(Stranger::Namespace);
    }
    if strictness == Strictness::Measured {
        if seen.flags.contains(ExecutableFlags::MEMFD)
            || seen.flags.contains(ExecutableFlags::DELETED)
        {
            return Err(Stranger::Nameless);
        }
        if seen.executable.digest != registered.executable.digest {
            return Err(Stranger::Program);
        }
    }
    Ok(evidence)
}

/// A module's present life: from its start to the end of its first process.
#[derive(Debug)]
pub struct Registration {
    /// What was measured at the start.
    pub facts: Facts,
    /// Its first process; readable at its end, which ends this registration (R3).
    pub pidfd: OwnedFd,
    seen: Mutex<HashMap<u64, Evidence>>,
}

/// Most processes of one module that are remembered; then all are asked about anew.
const REMEMBERED: usize = 1024;

impl Registration {
    /// A registration without callers yet.
    #[must_use]
    pub fn new(facts: Facts, pidfd: OwnedFd) -> Self {
        Self {
            facts,
            pidfd,
            seen: Mutex::new(HashMap::new()),
        }
    }

    /// Whether the module's first process still lives.
    #[must_use]
    pub fn alive(&self) -> bool {
        local::os::pidfd::alive(&self.pidfd)
    }

    /// What is remembered of a process, by its descriptor's inode (R9); nothing where the kernel
    /// gives it none of its own.
    #[must_use]
    pub fn known(&self, inode: Option<u64>) -> Option<Evidence> {
        let inode = inode?;
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&inode)
            .copied()
    }

    /// Remembers a match. Refusals are not remembered: they are rare and may be mended.
    pub fn remember(&self, inode: Option<u64>, evidence: Evidence) {
        let Some(inode) = inode else { return };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= REMEMBERED {
            seen.clear();
        }
        seen.insert(inode, evidence);
    }
}

#[cfg(test)]
mod tests {
    use contract::grant::{GrantName, Network};
    use contract::names::ModuleName;
    use contract::warden::{Cgroup, Executable, Weaker};

    use super::*;

    const PROGRAM: Executable = Executable {
        dev: 1,
        ino: 2,
        digest: [7; 32],
    };

    fn registered(cgroup: Option<u64>) -> Facts {
        Facts {
            module: ModuleName::new("m").unwrap(),
            grant: GrantName::new("g").unwrap(),
            epoch: 1,
            pid: 10,
            pid_ns: 100,
            mount_ns: 200,
            cgroup: cgroup.map(|id| Cgroup {
                id,
                path: "/holdfast/m".to_owned(),
            }),
            executable: PROGRAM,
            uid: 1000,
            gid: 1000,
            network: Network::Host,
            weaker: Weaker::default(),
        }
    }

    fn seen(cgroup: Option<u64>, pid_namespaces: &[u64]) -> Measured {
        Measured {
            pid: 11,
            tgid: 11,
            uid: 1000,
            gid: 1000,
            pid_namespaces: pid_namespaces.to_vec(),
            mount_ns: 200,
            cgroup: cgroup.map(|id| Cgroup {
                id,
                path: "/anything".to_owned(),
            }),
            executable: PROGRAM,
            flags: ExecutableFlags::default(),
        }
    }

    #[test]
    fn every_fact_the_platform_offers_must_match() {
        use Strictness::Image;
        for (own, its, namespaces, want) in [
            (Some(5), Some(5), vec![100, 1], Ok(Evidence::Both)),
            (Some(5), Some(5), vec![300, 100, 1], Ok(Evidence::Both)),
            (Some(5), Some(5), vec![1], Err(Stranger::Namespace)),
            (Some(5), Some(6), vec![100, 1], Err(Stranger::ControlGroup)),
            (Some(5), None, vec![100, 1], Err(Stranger::ControlGroup)),
            (None, Some(5), vec![100, 1], Ok(Evidence::Namespace)),
            (None, None, vec![1], Err(Stranger::Namespace)),
            (None, None, vec![], Err(Stranger::Namespace)),
        ] {
            assert_eq!(
                judge(&registered(own), &seen(its, &namespaces), Image),
                want
            );
        }
    }

    #[test]
    fn a07_under_policy_measured_the_program_itself_must_be_the_granted_file() {
        let mut other = seen(Some(5), &[100, 1]);
        other.executable.digest = [8; 32];
        let own = registered(Some(5));
        assert_eq!(
            judge(&own, &other, Strictness::Measured),
            Err(Stranger::Program)
        );
        assert_eq!(
            judge(&own, &other, Strictness::Container),
            Ok(Evidence::Both)
        );
        for flag in [ExecutableFlags::MEMFD, ExecutableFlags::DELETED] {
            let mut nameless = seen(Some(5), &[100, 1]);
            nameless.flags = ExecutableFlags::default().with(flag, true);
            assert_eq!(
                judge(&own, &nameless, Strictness::Measured),
                Err(Stranger::Nameless)
            );
        }
    }

    #[test]
    fn a09_a_group_of_the_same_name_is_another_group() {
        let mut own = registered(Some(5));
        let mut its = seen(Some(6), &[100, 1]);
        own.cgroup = Some(Cgroup {
            id: 5,
            path: "/holdfast/m".to_owned(),
        });
        its.cgroup = Some(Cgroup {
            id: 6,
            path: "/holdfast/m".to_owned(),
        });
        assert_eq!(
            judge(&own, &its, Strictness::Image),
            Err(Stranger::ControlGroup)
        );
    }
}
