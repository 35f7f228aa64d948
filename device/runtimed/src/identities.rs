//! Module identities for the agent, passed through to `identityd` (operations 11 to 14).

use contract::api::identity as upstream_api;
use contract::api::identity::{CreateModuleRequest, IdentityKind, OfKind, OneModule};
use contract::api::management::{self as api, Identity, IdentityList};
use contract::endpoint::{Ask, Empty};
use contract::refusal::{Class, Refusal};

use crate::gate::{ManagementSocket, Manager};
use crate::identity::upstream;

/// All module identities of the device.
///
/// # Errors
/// 500 with the words of `identityd`.
pub fn list(
    socket: &ManagementSocket,
    _: &Manager,
    _: Ask<api::ListIdentities>,
) -> Result<IdentityList, Refusal> {
    let answer = socket
        .runtime
        .identities
        .call::<upstream_api::ListModules>(&OfKind(IdentityKind::Aziot), &Empty)
        .map_err(|error| upstream(&error))?;
    let identities = answer
        .identities
        .into_iter()
        .map(|one| seen(one, None))
        .collect::<Result<_, _>>()?;
    Ok(IdentityList { identities })
}

/// Create one.
///
/// # Errors
/// As [`list`].
pub fn create(
    socket: &ManagementSocket,
    who: &Manager,
    ask: Ask<api::CreateIdentity>,
) -> Result<Identity, Refusal> {
    let runtime = &socket.runtime;
    runtime.record(
        &who.to_string(),
        "create identity",
        ask.body.module_id.as_str(),
    )?;
    let request = CreateModuleRequest {
        kind: IdentityKind::Aziot,
        module_id: ask.body.module_id,
        local_id_opts: None,
    };
    let answer = runtime
        .identities
        .call::<upstream_api::CreateModule>(&(), &request)
        .map_err(|error| upstream(&error))?;
    seen(answer, ask.body.managed_by)
}

/// Refresh one.
///
/// # Errors
/// As [`list`].
pub fn update(
    socket: &ManagementSocket,
    who: &Manager,
    ask: Ask<api::UpdateIdentity>,
) -> Result<Identity, Refusal> {
    let runtime = &socket.runtime;
    runtime.record(&who.to_string(), "update identity", ask.target.0.as_str())?;
    let answer = runtime
        .identities
        .call::<upstream_api::UpdateModule>(&OneModule::aziot(ask.target.0), &serde_json::json!({}))
        .map_err(|error| upstream(&error))?;
    seen(answer, None)
}

/// Delete one.
///
/// # Errors
/// As [`list`].
pub fn delete(
    socket: &ManagementSocket,
    who: &Manager,
    ask: Ask<api::DeleteIdentity>,
) -> Result<Empty, Refusal> {
    let runtime = &socket.runtime;
    runtime.record(&who.to_string(), "delete identity", ask.target.0.as_str())?;
    runtime
        .identities
        .call::<upstream_api::DeleteModule>(&OneModule::aziot(ask.target.0), &Empty)
        .map_err(|error| upstream(&error))
}

/// An identity as the management API shows it; `managedBy` is `iotedge` unless just given.
fn seen(identity: upstream_api::Identity, managed_by: Option<String>) -> Result<Identity, Refusal> {
    let missing =
        |what: &str| Refusal::new(Class::BadRequest, format!("missing parameter: {what}"));
    let upstream_api::Identity::Aziot(spec) = identity else {
        return Err(Refusal::internal("identityd gave a local identity"));
    };
    Ok(Identity {
        module_id: spec.module_id.ok_or_else(|| missing("module id"))?,
        managed_by: managed_by.unwrap_or_else(|| "iotedge".to_owned()),
        generation_id: spec.gen_id.ok_or_else(|| missing("generation id"))?,
        auth_type: "sas".to_owned(),
    })
}
