//! Who may do what on the runtime's sockets (R6, P4). Boundary B1.

use std::sync::Arc;

use contract::audit::Event;
use contract::endpoint::Callers;
use contract::names::ModuleName;
use contract::refusal::Refusal;
use local::peer::{Caller, Credentials};
use local::routes::Gate;

use crate::module::Module;
use crate::runtime::Runtime;

/// A module's own socket: it serves that module and no other.
pub struct WorkloadSocket {
    /// The runtime.
    pub runtime: Arc<Runtime>,
    /// Whose socket it is.
    pub module: Arc<Module>,
}

/// The module, or somebody who may only read what everybody may.
pub struct Member {
    /// Whose socket was used.
    pub module: Arc<Module>,
    /// The start it belongs to; `None` for a caller that was not attested.
    epoch: Option<u64>,
}

impl PartialEq for Member {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.module, &other.module) && self.epoch == other.epoch
    }
}

impl Gate for WorkloadSocket {
    type Principal = Member;

    fn admit(
        &self,
        callers: Callers,
        module: Option<&ModuleName>,
        caller: &Caller,
    ) -> Result<Member, Refusal> {
        let member = |epoch| Member {
            module: Arc::clone(&self.module),
            epoch,
        };
        match callers {
            Callers::Anyone => Ok(member(None)),
            Callers::Module => {
                if !module.is_some_and(|name| name.same_module(&self.module.name)) {
                    let other = Refusal::forbidden("the socket is another module's");
                    return Err(other.recorded_as(Event::PeerAlias));
                }
                let (registration, _) = self.runtime.attest(&self.module, caller)?;
                Ok(member(Some(registration.facts.epoch)))
            }
            _ => Err(Refusal::forbidden("not for callers of a workload socket")),
        }
    }

    fn refused(&self, who: Credentials, refusal: &Refusal) {
        self.runtime.refused(who, self.module.name.plain(), refusal);
    }
}

/// The management socket.
pub struct ManagementSocket {
    /// The runtime.
    pub runtime: Arc<Runtime>,
}

/// Who manages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manager {
    /// The attested agent, in this life of it.
    Agent(u64),
    /// A host principal named in the configuration.
    Operator(u32),
    /// Somebody who can open the socket.
    Reader(u32),
}

impl std::fmt::Display for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Agent(_) => f.write_str("module:edgeAgent"),
            Self::Operator(uid) => write!(f, "operator:{uid}"),
            Self::Reader(uid) => write!(f, "uid:{uid}"),
        }
    }
}

impl ManagementSocket {
    fn agent(&self, caller: &Caller) -> Result<Manager, Refusal> {
        let agent = ModuleName::new("edgeAgent").map_err(Refusal::internal)?;
        let module = self
            .runtime
            .module(&agent)
            .ok_or_else(|| Refusal::forbidden("there is no agent"))?;
        let (registration, _) = self.runtime.attest(&module, caller)?;
        Ok(Manager::Agent(registration.facts.epoch))
    }

    /// An operator is a process of the host itself: one that lives in a namespace below ours is a
    /// module's, whatever its user.
    fn operator(&self, caller: &Caller) -> Option<Manager> {
        let named = self.runtime.config.operators.contains(&caller.uid());
        (named && !caller.is_nested()).then(|| Manager::Operator(caller.uid()))
    }
}

impl Gate for ManagementSocket {
    type Principal = Manager;

    fn admit(
        &self,
        callers: Callers,
        _: Option<&ModuleName>,
        caller: &Caller,
    ) -> Result<Manager, Refusal> {
        let denied = |refusal: Refusal| refusal.recorded_as(Event::ManagementDenied);
        match callers {
            Callers::Agent => self.agent(caller).map_err(denied),
            Callers::Operators => match self.agent(caller) {
                Ok(agent) => Ok(agent),
                Err(refusal) => self.operator(caller).ok_or_else(|| denied(refusal)),
            },
            Callers::Readers | Callers::Anyone => Ok(Manager::Reader(caller.uid())),
            _ => Err(Refusal::forbidden(
                "not for callers of the management socket",
            )),
        }
    }

    fn refused(&self, who: Credentials, refusal: &Refusal) {
        self.runtime.refused(who, "management", refusal);
    }
}
