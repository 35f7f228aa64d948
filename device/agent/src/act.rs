//! Performs the calls of a plan through the management API.
//!
//! Each call is one request. A call that fails is an error of its module: the plan goes on with
//! the other modules, and the next round plans again from what is there then.

use std::collections::BTreeMap;
use std::time::Duration;

use contract::api::management::{
    self as api, Action, ActionTarget, CreateIdentityRequest, Identity, OneIdentity, SystemInfo,
    UpdateIdentityRequest, UpdateTarget,
};
use contract::endpoint::{Empty, Maybe};
use contract::names::{BadName, ModuleId, ModuleName};
use local::client::{CallError, Client};

use crate::config::Config;
use crate::desired::{Deployment, Module};
use crate::plan::{Call, Current};
use crate::spec::{self, Reserved};

/// The longest a call may take: an engine may have to fetch an image.
const PATIENCE: Duration = Duration::from_secs(300);
const MANAGED_BY: &str = "iotedge";

/// Why a call had no effect.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    /// The runtime did not do it.
    #[error("the runtime does not {doing}")]
    Runtime {
        /// What it was asked for.
        doing: String,
        /// What it says.
        #[source]
        cause: CallError,
    },
    /// The deployment asks for what it may not.
    #[error("module {module} cannot be created")]
    Spec {
        /// Which.
        module: ModuleName,
        /// Why.
        #[source]
        cause: Reserved,
    },
    /// The identity has no generation yet.
    #[error("module {0} has no identity")]
    NoIdentity(ModuleName),
    /// The plan names a module that the deployment does not.
    #[error("module {0} is not in the deployment")]
    Unknown(ModuleName),
    /// The name cannot be an identity.
    #[error("the name cannot be that of an identity")]
    Name(#[from] BadName),
}

/// The runtime, as the agent can reach it.
pub struct Runtime {
    management: Client,
}

impl Runtime {
    /// Over the socket of the configuration.
    pub fn new(config: &Config) -> Self {
        Self {
            management: Client::new(&config.management).with_timeout(PATIENCE),
        }
    }

    /// What is there.
    ///
    /// # Errors
    /// When the runtime does not say.
    pub fn current(&self) -> Result<Current, ActError> {
        let modules = self
            .management
            .call::<api::ListModules>(&(), &Empty)
            .map_err(during("list modules"))?
            .modules
            .into_iter()
            .filter(api::ModuleDetails::is_the_agents)
            .map(|details| (details.name.trim_start_matches('$').to_owned(), details))
            .collect();
        let identities = self
            .management
            .call::<api::ListIdentities>(&(), &Empty)
            .map_err(during("list identities"))?
            .identities
            .into_iter()
            .map(|identity| (identity.module_id.clone(), identity))
            .collect();
        Ok(Current {
            modules,
            identities,
        })
    }

    /// The machine.
    ///
    /// # Errors
    /// When the runtime does not say.
    pub fn system(&self) -> Result<SystemInfo, ActError> {
        self.management
            .call::<api::ReadSystemInfo>(&(), &Empty)
            .map_err(during("describe the machine"))
    }

    /// Performs one call. Identities that are made on the way are kept for the calls after it.
    ///
    /// # Errors
    /// [`ActError`]; nothing was changed, or the next look will show what was.
    pub fn perform(
        &self,
        call: &Call,
        deployment: &Deployment,
        config: &Config,
        identities: &mut BTreeMap<String, Identity>,
    ) -> Result<(), ActError> {
        let find = |name: &ModuleName| {
            let found = deployment.modules.get(name.plain());
            found.ok_or_else(|| ActError::Unknown(name.clone()))
        };
        match call {
            Call::UpdateAgent => {
                let agent = deployment
                    .agent
                    .as_ref()
                    .ok_or_else(|| ActError::Unknown(config.module.clone()))?;
                let spec =
                    spec::build(agent, config.generation.as_str(), config).map_err(|cause| {
                        ActError::Spec {
                            module: agent.name.clone(),
                            cause,
                        }
                    })?;
                self.update(agent, &spec, true)
            }
            Call::Stop(name) => self.act(name, Action::Stop),
            Call::Start(name) | Call::Restart(name) => self.act(name, Action::Start),
            Call::Delete(name) => self
                .management
                .call::<api::DeleteModule>(name, &Empty)
                .map(|_| ())
                .map_err(during(format!("remove {name}"))),
            Call::DeleteIdentity(name) => {
                let id = ModuleId::new(name.identity())?;
                self.management
                    .call::<api::DeleteIdentity>(&OneIdentity(id), &Empty)
                    .map(|_| ())
                    .map_err(during(format!("remove the identity of {name}")))
            }
            Call::CreateIdentity(name) => {
                let request = CreateIdentityRequest {
                    module_id: ModuleId::new(name.identity())?,
                    managed_by: Some(MANAGED_BY.to_owned()),
                };
                let made = self
                    .management
                    .call::<api::CreateIdentity>(&(), &request)
                    .map_err(during(format!("create the identity of {name}")))?;
                identities.insert(name.identity(), made);
                Ok(())
            }
            Call::RefreshIdentity(name) => {
                let id = ModuleId::new(name.identity())?;
                let request = UpdateIdentityRequest {
                    generation_id: generation(name, identities)?.to_owned(),
                    managed_by: Some(MANAGED_BY.to_owned()),
                };
                let made = self
                    .management
                    .call::<api::UpdateIdentity>(&OneIdentity(id), &request)
                    .map_err(during(format!("refresh the identity of {name}")))?;
                identities.insert(name.identity(), made);
                Ok(())
            }
            Call::Prepare(name) => {
                let spec = self.spec(find(name)?, config, identities)?;
                self.management
                    .call::<api::PrepareUpdate>(name, &spec)
                    .map(|_| ())
                    .map_err(during(format!("prepare {name}")))
            }
            Call::Create(name) => {
                let spec = self.spec(find(name)?, config, identities)?;
                self.management
                    .call::<api::CreateModule>(&(), &spec)
                    .map(|_| ())
                    .map_err(during(format!("create {name}")))
            }
            Call::Update(name) => {
                let module = find(name)?;
                let spec = self.spec(module, config, identities)?;
                self.update(module, &spec, false)
            }
        }
    }

    fn spec(
        &self,
        module: &Module,
        config: &Config,
        identities: &BTreeMap<String, Identity>,
    ) -> Result<api::ModuleSpec, ActError> {
        spec::build(module, generation(&module.name, identities)?, config).map_err(|cause| {
            ActError::Spec {
                module: module.name.clone(),
                cause,
            }
        })
    }

    fn update(&self, module: &Module, spec: &api::ModuleSpec, start: bool) -> Result<(), ActError> {
        let target = UpdateTarget {
            name: module.name.clone(),
            start,
        };
        self.management
            .call::<api::UpdateModule>(&target, spec)
            .map(|_| ())
            .map_err(during(format!("update {}", module.name)))
    }

    fn act(&self, name: &ModuleName, action: Action) -> Result<(), ActError> {
        let target = ActionTarget {
            name: name.clone(),
            action,
        };
        self.management
            .call::<api::ActOnModule>(&target, &Maybe(None))
            .map(|_| ())
            .map_err(during(format!("{} {name}", action.as_str())))
    }
}

fn generation<'a>(
    name: &ModuleName,
    identities: &'a BTreeMap<String, Identity>,
) -> Result<&'a str, ActError> {
    identities
        .get(&name.identity())
        .map(|identity| identity.generation_id.as_str())
        .ok_or_else(|| ActError::NoIdentity(name.clone()))
}

fn during(doing: impl Into<String>) -> impl FnOnce(CallError) -> ActError {
    let doing = doing.into();
    move |cause| ActError::Runtime { doing, cause }
}
