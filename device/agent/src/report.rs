//! What the agent reports about itself and the modules (reference/module-runtime.md 7.5).
//!
//! The report says of each module what it was last asked to be and how it is. So it is also the
//! agent's memory: read again after a restart, it tells which configuration a running module has
//! ([`remembered`]). Only the difference to the last report is sent. Registry logins are never in
//! it. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use contract::api::management::{ModuleDetails, State, SystemInfo};
use contract::names::ModuleName;
use contract::twin::Members;
use serde_json::{Map, Value, json};

use crate::desired::{Deployment, Wanted, fingerprint};
use crate::plan::{Applied, Current, History, Revival, revival};

/// The time of what never happened.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// How the last deployment went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its version.
    pub version: i64,
    /// 200, or why not.
    pub code: u16,
    /// In words.
    pub description: String,
}

/// Everything a report is made of.
pub struct Facts<'a> {
    /// The last deployment that was taken.
    pub deployment: Option<&'a Deployment>,
    /// What is there.
    pub current: &'a Current,
    /// What was asked for.
    pub applied: &'a Applied,
    /// Restarts.
    pub histories: &'a BTreeMap<String, History>,
    /// The machine.
    pub system: Option<&'a SystemInfo>,
    /// How it went.
    pub outcome: Option<&'a Outcome>,
    /// On the clock of the histories.
    pub now: Duration,
}

/// The whole report.
pub fn report(facts: &Facts<'_>) -> Members {
    let mut all = Members::new();
    all.insert("schemaVersion".into(), "1.0".into());
    let version = env!("CARGO_PKG_VERSION");
    all.insert(
        "version".into(),
        json!({ "version": version, "build": "", "commit": "" }),
    );
    if let Some(outcome) = facts.outcome {
        all.insert("lastDesiredVersion".into(), outcome.version.into());
        all.insert(
            "lastDesiredStatus".into(),
            json!({ "code": outcome.code, "description": outcome.description }),
        );
    }
    let mut runtime = Map::new();
    if let Some(deployment) = facts.deployment {
        runtime.insert("type".into(), deployment.runtime_kind.clone().into());
        runtime.insert(
            "settings".into(),
            deployment.runtime_settings.clone().into(),
        );
    }
    if let Some(system) = facts.system {
        let platform = json!({
            "os": system.os_type, "architecture": system.architecture, "version": system.version,
        });
        runtime.insert("platform".into(), platform);
    }
    all.insert("runtime".into(), runtime.into());
    let (mut system, mut modules) = (Map::new(), Map::new());
    for (name, details) in &facts.current.modules {
        let shown = module(name, details, facts).into();
        match name.as_str() {
            "edgeAgent" | "edgeHub" => system.insert(name.clone(), shown),
            _ => modules.insert(name.clone(), shown),
        };
    }
    all.insert("systemModules".into(), system.into());
    all.insert("modules".into(), modules.into());
    all
}

fn module(name: &str, details: &ModuleDetails, facts: &Facts<'_>) -> Map<String, Value> {
    let mut shown = facts.applied.get(name).cloned().unwrap_or_default();
    shown.insert("type".into(), details.kind.clone().into());
    let settings = shown.entry("settings").or_insert_with(|| json!({}));
    settings["image"] = details.config.settings.image.clone().into();
    if let Some(hash) = &details.config.settings.image_hash {
        settings["imageHash"] = hash.clone().into();
    }
    let exit = details.status.exit_status.as_ref();
    let code: i64 = exit
        .and_then(|exit| exit.status_code.parse().ok())
        .unwrap_or(0);
    let time = |time: Option<&String>| time.cloned().unwrap_or_else(|| NEVER.to_owned());
    shown.insert("exitCode".into(), code.into());
    let description = details
        .status
        .runtime_status
        .description
        .clone()
        .unwrap_or_default();
    shown.insert("statusDescription".into(), description.into());
    shown.insert(
        "lastStartTimeUtc".into(),
        time(details.status.start_time.as_ref()).into(),
    );
    shown.insert(
        "lastExitTimeUtc".into(),
        time(exit.map(|exit| &exit.exit_time)).into(),
    );
    shown.insert(
        "runtimeStatus".into(),
        runtime_status(name, details, facts).into(),
    );
    if name != "edgeAgent" {
        let fresh = History::default();
        let history = facts.histories.get(name).unwrap_or(&fresh);
        shown.insert("restartCount".into(), history.restarts.into());
        shown.insert(
            "lastRestartTimeUtc".into(),
            time(history.last_restart.as_ref()).into(),
        );
    }
    shown
}

fn runtime_status(name: &str, details: &ModuleDetails, facts: &Facts<'_>) -> &'static str {
    let wanted = facts
        .deployment
        .and_then(|deployment| deployment.modules.get(name))
        .filter(|module| module.wanted == Wanted::Running);
    if let Some(module) = wanted {
        let fresh = History::default();
        let history = facts.histories.get(name).unwrap_or(&fresh);
        match revival(module.restart, details, history, facts.now) {
            Revival::Backoff => return "backoff",
            Revival::GiveUp => return "failed",
            Revival::Leave | Revival::Start | Revival::Restart => {}
        }
    }
    match details.status.runtime_status.status {
        State::Unknown => "unknown",
        State::Running => "running",
        State::Stopped => "stopped",
        State::Failed => "failed",
        State::Dead => "dead",
    }
}

/// The last words: nobody keeps the report true from now on.
pub fn farewell(mut report: Members, version: i64) -> Members {
    report.insert("lastDesiredVersion".into(), version.into());
    report.insert(
        "lastDesiredStatus".into(),
        json!({ "code": 406, "description": "Agent is not running" }),
    );
    for part in ["systemModules", "modules"] {
        let Some(Value::Object(modules)) = report.get_mut(part) else {
            continue;
        };
        for module in modules.values_mut() {
            module["runtimeStatus"] = "unknown".into();
        }
    }
    report
}

/// What a former run of the agent asked modules to be, from its last report.
pub fn remembered(reported: &Members) -> Applied {
    let mut applied = Applied::new();
    for part in ["systemModules", "modules"] {
        let Some(Value::Object(modules)) = reported.get(part) else {
            continue;
        };
        for (name, module) in modules {
            let (Ok(name), Value::Object(module)) = (ModuleName::new(name.as_str()), module) else {
                continue;
            };
            // A module that was only seen, never asked for, has no more than its image.
            if module.contains_key("imagePullPolicy") {
                applied.insert(name.plain().to_owned(), fingerprint(module));
            }
        }
    }
    applied
}

/// The merge patch from one report to the next; `None` when there is nothing to say.
pub fn difference(old: &Members, new: &Members) -> Option<Members> {
    let mut patch = Members::new();
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    for (name, value) in new {
        match (old.get(name), value) {
            (Some(Value::Object(old)), Value::Object(new)) => {
                if let Some(inner) = difference(old, new) {
                    patch.insert(name.clone(), inner.into());
                }
            }
            (Some(old), new) if old == new => {}
            (_, new) => drop(patch.insert(name.clone(), new.clone())),
        }
    }
    if patch.is_empty() { None } else { Some(patch) }
}

#[cfg(test)]
mod tests {
    use contract::twin::merge;

    use super::*;
    use crate::desired::tests::{document, read};
    use crate::plan::tests::details;

    fn members(value: Value) -> Members {
        let Value::Object(members) = value else {
            panic!("{value}")
        };
        members
    }

    fn facts<'a>(
        deployment: &'a Deployment,
        current: &'a Current,
        applied: &'a Applied,
        histories: &'a BTreeMap<String, History>,
        outcome: &'a Outcome,
    ) -> Facts<'a> {
        Facts {
            deployment: Some(deployment),
            current,
            applied,
            histories,
            system: None,
            outcome: Some(outcome),
            now: Duration::from_secs(1),
        }
    }

    #[test]
    fn a_report_says_what_was_asked_for_and_how_it_is_and_is_remembered() {
        let deployment = read(&document(
            &json!({"m": {"type": "host", "status": "running",
            "version": "3", "settings": {"image": "i"}, "env": {"A": {"value": "b"}}}}),
        ))
        .unwrap();
        let mut current = Current::default();
        current
            .modules
            .insert("m".into(), details("m", "i", State::Failed));
        current.modules.insert(
            "edgeAgent".into(),
            details("edgeAgent", "agent", State::Running),
        );
        let applied = Applied::from([("m".to_owned(), deployment.modules["m"].describe())]);
        let mut history = History::default();
        history.observe(State::Failed, Duration::ZERO);
        let histories = BTreeMap::from([("m".to_owned(), history)]);
        let outcome = Outcome {
            version: 7,
            code: 200,
            description: String::new(),
        };
        let all = report(&facts(
            &deployment,
            &current,
            &applied,
            &histories,
            &outcome,
        ));
        let m = &all["modules"]["m"];
        for (pointer, value) in [
            ("/env/A/value", json!("b")),
            ("/version", json!("3")),
            ("/status", json!("running")),
            ("/settings/imageHash", json!("sha256:x")),
            ("/exitCode", json!(1)),
            ("/runtimeStatus", json!("backoff")),
            ("/lastExitTimeUtc", json!("2026-11-24T00:01:00Z")),
            ("/lastRestartTimeUtc", json!(NEVER)),
            ("/restartCount", json!(0)),
        ] {
            assert_eq!(m.pointer(pointer), Some(&value), "{pointer}: {m}");
        }
        let agent = &all["systemModules"]["edgeAgent"];
        assert_eq!(agent["runtimeStatus"], "running");
        assert!(agent.get("restartCount").is_none() && agent.get("status").is_none());
        assert_eq!(all["lastDesiredVersion"], 7);
        assert!(
            all["runtime"]["settings"]
                .get("registryCredentials")
                .is_none()
        );

        let remembered = remembered(&all);
        assert_eq!(remembered.len(), 1, "the agent was never asked for");
        assert_eq!(
            remembered["m"],
            fingerprint(&deployment.modules["m"].describe())
        );

        let last = farewell(all, 7);
        assert_eq!(last["lastDesiredStatus"]["code"], 406);
        assert_eq!(last["modules"]["m"]["runtimeStatus"], "unknown");
    }

    #[test]
    fn only_the_difference_is_sent_and_it_leads_to_the_new_report() {
        for (old, new, expected) in [
            (json!({"a": 1}), json!({"a": 1}), None),
            (json!({}), json!({"a": {}}), Some(json!({"a": {}}))),
            (
                json!({"a": 1, "b": {"c": 1, "d": [1]}}),
                json!({"b": {"c": 2, "d": [1]}}),
                Some(json!({"a": null, "b": {"c": 2}})),
            ),
            (
                json!({"a": {"x": 1}}),
                json!({"a": 2}),
                Some(json!({"a": 2})),
            ),
            (
                json!({"a": {"x": 1}}),
                json!({"a": {}}),
                Some(json!({"a": {"x": null}})),
            ),
        ] {
            let (old, new) = (members(old), members(new));
            let patch = difference(&old, &new);
            assert_eq!(patch.clone().map(Value::Object), expected);
            let mut merged = old;
            merge(&mut merged, &patch.unwrap_or_default());
            assert_eq!(merged, new);
        }
    }

    #[test]
    fn a_report_of_somebody_else_is_not_remembered() {
        for reported in [
            json!({}),
            json!({"modules": 1}),
            json!({"modules": {"m": 1}}),
            json!({"modules": {"../x": {"imagePullPolicy": "never"}}}),
            json!({"modules": {"m": {"settings": {"image": "i"}}}}),
        ] {
            assert!(remembered(&members(reported)).is_empty());
        }
    }
}
