//! What the agent does with modules (module-runtime.md 2, operations 1 to 9).
//!
//! Each change is in the audit log before it is made. A module's spec is a record on disk, so that
//! a restart of this daemon knows what it was asked for.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use contract::api::management::{
    self as api, Action, EnvVar, ModuleConfig, ModuleDetails, ModuleList, ModuleSpec, Settings,
};
use contract::audit::{Decision, Entry, Event};
use contract::endpoint::{Ask, Empty};
use contract::grant::GrantName;
use contract::names::ModuleName;
use contract::refusal::{Class, Refusal};
use local::log;
use local::records::{self, Record};
use serde::{Deserialize, Serialize};

use crate::gate::{ManagementSocket, Manager};
use crate::module::{Keeper, Module};
use crate::runtime::{Runtime, failed};

/// A module's spec on disk.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    spec: ModuleSpec,
}

impl Record for Stored {
    const KIND: &'static str = "module";
    const VERSION: u32 = 1;
    const LIMIT: usize = 1024 * 1024;
}

/// All modules.
///
/// # Errors
/// None.
pub fn list(
    socket: &ManagementSocket,
    _: &Manager,
    _: Ask<api::ListModules>,
) -> Result<ModuleList, Refusal> {
    let modules = socket.runtime.modules();
    Ok(ModuleList {
        modules: modules.iter().map(|module| module.details()).collect(),
    })
}

/// One module.
///
/// # Errors
/// 404.
pub fn read(
    socket: &ManagementSocket,
    _: &Manager,
    ask: Ask<api::ReadModule>,
) -> Result<ModuleDetails, Refusal> {
    Ok(find(&socket.runtime, &ask.target, "get")?.details())
}

/// Create a module, not started.
///
/// # Errors
/// 400 for a spec that does not fit, 403 for power it may not ask for, 409 for a taken name.
pub fn create(
    socket: &ManagementSocket,
    who: &Manager,
    ask: Ask<api::CreateModule>,
) -> Result<ModuleDetails, Refusal> {
    let runtime = &socket.runtime;
    let module = checked(runtime, ask.body)?;
    runtime.record(&who.to_string(), "create", module.name.plain())?;
    let echo = module.spec.clone();
    let module = add(runtime, module)?;
    Ok(echoed(&module, echo))
}

/// Replace a module: stop, remove, create, and start where asked. A spec that does not fit leaves
/// the old module running.
///
/// # Errors
/// As [`create`], and 404.
pub fn update(
    socket: &ManagementSocket,
    who: &Manager,
    ask: Ask<api::UpdateModule>,
) -> Result<ModuleDetails, Refusal> {
    let runtime = &socket.runtime;
    let old = changeable(find(runtime, &ask.target.name, "stop")?)?;
    let module = checked(runtime, ask.body)?;
    if !module.name.same_module(&old.name) {
        return Err(Refusal::new(
            Class::BadRequest,
            "module name in spec does not match URI",
        ));
    }
    runtime.record(&who.to_string(), "update", old.name.plain())?;
    let echo = module.spec.clone();
    if old.name.plain() == "edgeAgent" {
        // The agent is who asks: it is answered before it ends (module-runtime.md 2.2).
        let (runtime, start) = (Arc::clone(runtime), ask.target.start);
        let answer = echoed(&module, echo);
        std::thread::Builder::new()
            .spawn(move || {
                if let Err(refusal) = replace(&runtime, &old, module, start) {
                    log::warn(format_args!("updating the agent failed: {refusal}"));
                }
            })
            .map_err(Refusal::internal)?;
        return Ok(answer);
    }
    let module = replace(runtime, &old, module, ask.target.start)?;
    Ok(echoed(&module, echo))
}

/// Remove a module, also while it runs.
///
/// # Errors
/// 500, also for a missing module: the compatible answer (module-runtime.md 1.4).
pub fn delete(
    socket: &ManagementSocket,
    who: &Manager,
    ask: Ask<api::DeleteModule>,
) -> Result<Empty, Refusal> {
    let runtime = &socket.runtime;
    let module = find(runtime, &ask.target, "remove").map_err(|mut refusal| {
        refusal.class = Class::Internal;
        refusal
    })?;
    let module = changeable(module)?;
    runtime.record(&who.to_string(), "delete", module.name.plain())?;
    remove(runtime, &module)?;
    runtime.end_local_generation(&module.name)?;
    Ok(Empty)
}

/// Check what an update will need: for the host engine, that the spec fits.
///
/// # Errors
/// As [`create`]; 400 when path and spec name different modules.
pub fn prepare(
    socket: &ManagementSocket,
    _: &Manager,
    ask: Ask<api::PrepareUpdate>,
) -> Result<Empty, Refusal> {
    let module = checked(&socket.runtime, ask.body)?;
    if !module.name.same_module(&ask.target) {
        return Err(Refusal::new(
            Class::BadRequest,
            "module name in spec does not match URI",
        ));
    }
    Ok(Empty)
}

/// Start, stop or restart.
///
/// # Errors
/// 404, or the engine's reason.
pub fn act(
    socket: &ManagementSocket,
    who: &Manager,
    ask: Ask<api::ActOnModule>,
) -> Result<Empty, Refusal> {
    let runtime = &socket.runtime;
    let action = ask.target.action;
    let module = find(runtime, &ask.target.name, action.as_str())?;
    runtime.record(&who.to_string(), action.as_str(), module.name.plain())?;
    let _work = module.work.lock().unwrap_or_else(PoisonError::into_inner);
    module.halt(action == Action::Stop);
    match action {
        Action::Start => runtime.start(&module)?,
        Action::Stop => runtime.stop(&module)?,
        Action::Restart => {
            runtime.stop(&module)?;
            runtime.start(&module)?;
        }
    }
    Ok(Empty)
}

/// Modules that a former run of this daemon was asked for.
///
/// # Errors
/// When a record can be read in no generation: nothing is guessed.
pub fn restore(runtime: &Arc<Runtime>) -> Result<(), Refusal> {
    for file in runtime.store.list().map_err(Refusal::internal)? {
        let Some(name) = file.strip_prefix("module-") else {
            continue;
        };
        let found = records::read::<Stored>(&runtime.store, &file).map_err(Refusal::internal)?;
        let Some((stored, generation)) = found else {
            continue;
        };
        if generation == records::Generation::Previous {
            let entry = Entry::new(Event::StoreDamaged, Decision::Noted, "daemon:runtimed");
            runtime.audit.note(
                &runtime.clock.now(),
                Entry {
                    object: file.clone(),
                    ..entry
                },
            );
        }
        match checked(runtime, stored.spec) {
            Ok(module) => drop(runtime.add(module)?),
            Err(refusal) => log::warn(format_args!("module {name} is left out: {refusal}")),
        }
    }
    Ok(())
}

/// The spec of a module of the configuration.
#[must_use]
pub fn configured(
    name: &ModuleName,
    grant: &GrantName,
    env: &BTreeMap<String, String>,
) -> ModuleSpec {
    let pair = |(key, value): (&String, &String)| EnvVar {
        key: key.clone(),
        value: value.clone(),
    };
    ModuleSpec {
        name: name.plain().to_owned(),
        kind: "host".to_owned(),
        image_pull_policy: None,
        config: ModuleConfig {
            settings: Settings {
                image: grant.to_string(),
                image_hash: None,
                create_options: None,
                digest: None,
                auth: None,
            },
            env: env.iter().map(pair).collect(),
        },
    }
}

fn find(runtime: &Runtime, name: &ModuleName, verb: &str) -> Result<Arc<Module>, Refusal> {
    runtime.module(name).ok_or_else(|| {
        let text = format!("runtime operation error: {verb} module {:?}", name.plain());
        Refusal::new(Class::NotFound, text)
    })
}

/// A module of the device's own configuration is not the agent's to replace or remove.
fn changeable(module: Arc<Module>) -> Result<Arc<Module>, Refusal> {
    if module.keeper == Keeper::Us && module.name.plain() != "edgeAgent" {
        let text = format!(
            "module {:?} belongs to the device's configuration",
            module.name.plain()
        );
        return Err(Refusal::new(Class::Conflict, text));
    }
    Ok(module)
}

fn add(runtime: &Runtime, module: Module) -> Result<Arc<Module>, Refusal> {
    let module = runtime.add(module)?;
    // What cannot be recorded did not happen.
    store(runtime, &module).inspect_err(|_| runtime.remove(&module))?;
    Ok(module)
}

fn remove(runtime: &Runtime, module: &Module) -> Result<(), Refusal> {
    let _work = module.work.lock().unwrap_or_else(PoisonError::into_inner);
    runtime.stop(module)?;
    let name = record(&module.name);
    runtime
        .store
        .delete(&name)
        .map_err(|error| failed("remove", module, &error))?;
    runtime.remove(module);
    Ok(())
}

/// The new spec is on disk before the old module ends, so that no failure leaves none.
fn replace(
    runtime: &Arc<Runtime>,
    old: &Arc<Module>,
    new: Module,
    start: bool,
) -> Result<Arc<Module>, Refusal> {
    let module = {
        let _work = old.work.lock().unwrap_or_else(PoisonError::into_inner);
        if !runtime.has(old) {
            let text = format!(
                "runtime operation error: stop module {:?}",
                old.name.plain()
            );
            return Err(Refusal::new(Class::NotFound, text));
        }
        store(runtime, &new)?;
        runtime.stop(old)?;
        runtime.remove(old);
        runtime.add(new)?
    };
    if start {
        let _work = module.work.lock().unwrap_or_else(PoisonError::into_inner);
        // The compatible answer is the module all the same; its state tells.
        if let Err(refusal) = runtime.start(&module) {
            log::warn(format_args!(
                "module {} did not start: {refusal}",
                module.name
            ));
        }
    }
    Ok(module)
}

fn store(runtime: &Runtime, module: &Module) -> Result<(), Refusal> {
    let stored = Stored {
        spec: module.spec.clone(),
    };
    records::write(&runtime.store, &record(&module.name), &stored)
        .map_err(|error| failed("record", module, &error))
}

fn record(name: &ModuleName) -> String {
    format!("module-{}", name.plain())
}

/// The answer echoes the request's settings, but no login and no environment (R48).
fn echoed(module: &Module, spec: ModuleSpec) -> ModuleDetails {
    let mut details = module.details();
    let hash = details.config.settings.image_hash.take();
    details.config.settings = Settings {
        image_hash: hash,
        auth: None,
        ..spec.config.settings
    };
    details
}

/// A module from what the agent asks for (P10: nothing is dropped from it silently).
fn checked(runtime: &Runtime, spec: ModuleSpec) -> Result<Module, Refusal> {
    let bad = |text: &str| Refusal::new(Class::BadRequest, text);
    if spec.name.is_empty() {
        return Err(bad("module name cannot be empty"));
    }
    if spec.kind.is_empty() {
        return Err(bad("module type cannot be empty"));
    }
    let name = ModuleName::new(spec.name.clone()).map_err(|error| bad(&error.to_string()))?;
    if spec.kind != "host" {
        let text = format!("invalid module type: {:?}", spec.kind);
        return Err(Refusal::new(Class::Internal, text));
    }
    let policy = spec.image_pull_policy.as_deref().unwrap_or("on-create");
    if !["on-create", "never"]
        .iter()
        .any(|known| policy.eq_ignore_ascii_case(known))
    {
        return Err(bad("invalid imagePullPolicy"));
    }
    if let Some(options) = &spec.config.settings.create_options
        && let Some((member, _)) = options.iter().next()
    {
        // A host module's powers are in its grant; what asks for others is not created (A79).
        let mut entry = Entry::new(
            Event::ContainerDenied,
            Decision::Refused,
            "module:edgeAgent",
        );
        entry.object = name.plain().to_owned();
        entry.reason = format!("createOptions.{member}");
        runtime.audit.note(&runtime.clock.now(), entry);
        return Err(bad(&format!(
            "invalid host config: createOptions.{member} is not possible"
        )));
    }
    let mut keys: Vec<&str> = spec
        .config
        .env
        .iter()
        .map(|pair| pair.key.as_str())
        .collect();
    keys.sort_unstable();
    if let Some(twice) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(bad(&format!("duplicate env var key: {}", twice[0])));
    }
    let grant = GrantName::new(spec.config.settings.image.clone())
        .map_err(|error| bad(&format!("invalid host config: {error}")))?;
    let keeper = if name.plain() == "edgeAgent" {
        Keeper::Us
    } else {
        Keeper::Agent
    };
    let strictness = runtime.config.attestation.of(&name);
    Ok(Module::new(name, spec, grant, keeper, strictness))
}
