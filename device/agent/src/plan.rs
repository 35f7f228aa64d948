//! Compares a deployment with what is there, and says what to do in which order
//! (reference/module-runtime.md 7.2, 7.6).
//!
//! Pure: modules as the runtime lists them, what was asked for last time, a memory of restarts on
//! a clock that never jumps. A plan repeated on its own result is empty. Modules that the
//! deployment does not name are removed, with their identities; identities that never belonged to
//! a module of ours are left alone, because the runtime lists those of others as well.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use contract::api::management::{Identity, ModuleDetails, State};
use contract::names::ModuleName;
use serde_json::{Map, Value};

use crate::desired::{Deployment, Module, Restart, Wanted, fingerprint};

/// The first wait before a restart; it doubles up to [`LONGEST_WAIT`].
const COOL_OFF: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// After so many restarts a module stays as it is.
const MAX_RESTARTS: u32 = 20;
/// A module that runs this long has recovered.
const RECOVERED: Duration = Duration::from_secs(600);

/// What is there.
#[derive(Clone, Debug, Default)]
pub struct Current {
    /// Modules by name, without `$`.
    pub modules: BTreeMap<String, ModuleDetails>,
    /// Identities by their name at the hub.
    pub identities: BTreeMap<String, Identity>,
}

/// What each module was last asked to be, as [`Module::describe`] shows it.
pub type Applied = BTreeMap<String, Map<String, Value>>;

/// What the agent remembers of a module while it runs itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Restarts in a row.
    pub restarts: u32,
    /// When the last one was, as RFC 3339.
    pub last_restart: Option<String>,
    down_since: Option<Duration>,
    up_since: Option<Duration>,
}

impl History {
    /// Takes note of a module's state.
    pub fn observe(&mut self, state: State, now: Duration) {
        if state == State::Running {
            self.down_since = None;
            let up_since = *self.up_since.get_or_insert(now);
            if now.saturating_sub(up_since) >= RECOVERED {
                self.restarts = 0;
            }
        } else {
            self.up_since = None;
            self.down_since.get_or_insert(now);
        }
    }

    /// Takes note of a restart.
    pub fn restarted(&mut self, at: String) {
        self.restarts = self.restarts.saturating_add(1);
        self.last_restart = Some(at);
        self.down_since = None;
    }
}

/// One call to the runtime. Modules are named without `$`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Replace ourselves. Nothing follows it.
    UpdateAgent,
    /// Stop a module.
    Stop(ModuleName),
    /// Remove a module.
    Delete(ModuleName),
    /// Remove a module's identity.
    DeleteIdentity(ModuleName),
    /// Create a module's identity.
    CreateIdentity(ModuleName),
    /// Have the keys of a module's identity made anew at the hub.
    RefreshIdentity(ModuleName),
    /// Fetch what a module needs.
    Prepare(ModuleName),
    /// Create a module.
    Create(ModuleName),
    /// Replace a module.
    Update(ModuleName),
    /// Start a module.
    Start(ModuleName),
    /// Start a module that ended by itself.
    Restart(ModuleName),
}

impl Call {
    /// The module it is about; `None` for ourselves.
    pub fn module(&self) -> Option<&ModuleName> {
        self.parts().1
    }

    fn parts(&self) -> (&'static str, Option<&ModuleName>) {
        match self {
            Self::UpdateAgent => ("replacing this agent", None),
            Self::Stop(name) => ("stopping", Some(name)),
            Self::Delete(name) => ("removing", Some(name)),
            Self::DeleteIdentity(name) => ("removing the identity of", Some(name)),
            Self::CreateIdentity(name) => ("creating the identity of", Some(name)),
            Self::RefreshIdentity(name) => ("refreshing the identity of", Some(name)),
            Self::Prepare(name) => ("preparing", Some(name)),
            Self::Create(name) => ("creating", Some(name)),
            Self::Update(name) => ("updating", Some(name)),
            Self::Start(name) => ("starting", Some(name)),
            Self::Restart(name) => ("restarting", Some(name)),
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parts() {
            (doing, Some(module)) => write!(f, "{doing} {module}"),
            (doing, None) => f.write_str(doing),
        }
    }
}

/// What to do about a module that should run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revival {
    /// It runs, or its policy says to leave it.
    Leave,
    /// Start it, for the first time.
    Start,
    /// Start it again.
    Restart,
    /// Wait, it ended only just now.
    Backoff,
    /// It ended too often.
    GiveUp,
}

/// What to do about a module whose configuration is as it should be and which should run.
pub fn revival(
    policy: Restart,
    details: &ModuleDetails,
    history: &History,
    now: Duration,
) -> Revival {
    let state = details.status.runtime_status.status;
    if state == State::Running {
        return Revival::Leave;
    }
    if details.status.start_time.is_none() && details.status.exit_status.is_none() {
        return Revival::Start;
    }
    let due = match (policy, state) {
        (Restart::Never, _) => false,
        (Restart::Always, _) => true,
        (Restart::OnFailure | Restart::OnUnhealthy, state) => {
            matches!(state, State::Failed | State::Stopped | State::Unknown)
        }
    };
    if !due {
        return Revival::Leave;
    }
    if history.restarts >= MAX_RESTARTS {
        return Revival::GiveUp;
    }
    let down = history
        .down_since
        .map_or(Duration::ZERO, |since| now.saturating_sub(since));
    let wait = COOL_OFF
        .saturating_mul(1 << history.restarts.min(10))
        .min(LONGEST_WAIT);
    // One that was stopped in order is simply started, unless it makes a habit of it.
    if down >= wait || (state == State::Stopped && history.restarts == 0) {
        Revival::Restart
    } else {
        Revival::Backoff
    }
}

/// All calls, in order.
pub fn plan(
    deployment: &Deployment,
    current: &Current,
    applied: &Applied,
    histories: &BTreeMap<String, History>,
    now: Duration,
) -> Vec<Call> {
    if let (Some(agent), Some(details)) = (&deployment.agent, current.modules.get("edgeAgent")) {
        // Without a memory of what we were asked to be, what runs is right if the image is.
        let remembered = applied.get("edgeAgent");
        if differs(agent, details) || remembered.is_some_and(|was| changed(agent, was)) {
            return vec![Call::UpdateAgent];
        }
    }
    let mut calls = Vec::new();
    removals(deployment, current, applied, &mut calls);
    let mut modules: Vec<&Module> = deployment.modules.values().collect();
    modules.sort_by(|a, b| (a.order, a.name.as_str()).cmp(&(b.order, b.name.as_str())));
    for module in modules {
        let name = &module.name;
        let key = name.plain();
        let identity = if current.identities.contains_key(&name.identity()) {
            Call::RefreshIdentity(name.clone())
        } else {
            Call::CreateIdentity(name.clone())
        };
        let details = current.modules.get(key);
        let state = details.map(|details| details.status.runtime_status.status);
        let same = details.is_some_and(|details| {
            !differs(module, details) && applied.get(key).is_some_and(|was| !changed(module, was))
        });
        if !same || state == Some(State::Dead) {
            calls.extend([identity, Call::Prepare(name.clone())]);
            match state {
                None => calls.push(Call::Create(name.clone())),
                Some(State::Dead) => {
                    calls.extend([Call::Delete(name.clone()), Call::Create(name.clone())]);
                }
                Some(state) => {
                    if state == State::Running {
                        calls.push(Call::Stop(name.clone()));
                    }
                    calls.push(Call::Update(name.clone()));
                }
            }
            if module.wanted == Wanted::Running {
                calls.push(Call::Start(name.clone()));
            }
            continue;
        }
        if matches!(identity, Call::CreateIdentity(_)) {
            calls.push(identity);
        }
        let Some(details) = details else { continue };
        match module.wanted {
            Wanted::Stopped if state == Some(State::Running) => {
                calls.push(Call::Stop(name.clone()))
            }
            Wanted::Stopped => {}
            Wanted::Running => {
                let fresh = History::default();
                let history = histories.get(key).unwrap_or(&fresh);
                // A wish that changed is no restart.
                let was = applied.get(key).and_then(|was| was.get("status"));
                if was.is_some_and(|was| was == "stopped") && state != Some(State::Running) {
                    calls.push(Call::Start(name.clone()));
                    continue;
                }
                match revival(module.restart, details, history, now) {
                    Revival::Start => calls.push(Call::Start(name.clone())),
                    Revival::Restart => calls.push(Call::Restart(name.clone())),
                    Revival::Leave | Revival::Backoff | Revival::GiveUp => {}
                }
            }
        }
    }
    calls
}

/// Whether another image or engine runs than should.
fn differs(module: &Module, details: &ModuleDetails) -> bool {
    module.kind != details.kind || module.image != details.config.settings.image
}

/// Whether a module was last asked to be something else.
fn changed(module: &Module, was: &Map<String, Value>) -> bool {
    fingerprint(&module.describe()) != fingerprint(was)
}

fn removals(deployment: &Deployment, current: &Current, applied: &Applied, calls: &mut Vec<Call>) {
    let known = current.modules.keys().chain(applied.keys());
    let mut gone: Vec<&String> = known
        .filter(|name| *name != "edgeAgent" && !deployment.modules.contains_key(*name))
        .collect();
    gone.sort();
    gone.dedup();
    for key in gone {
        let Ok(name) = ModuleName::new(key.as_str()) else {
            continue;
        };
        if let Some(details) = current.modules.get(key) {
            if details.status.runtime_status.status == State::Running {
                calls.push(Call::Stop(name.clone()));
            }
            calls.push(Call::Delete(name.clone()));
        }
        if current.identities.contains_key(&name.identity()) {
            calls.push(Call::DeleteIdentity(name));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use contract::api::management::{ExitStatus, ModuleConfig, RuntimeStatus, Settings, Status};
    use serde_json::json;

    use super::*;
    use crate::desired::tests::{document, read};

    pub(crate) fn details(name: &str, image: &str, state: State) -> ModuleDetails {
        let ended = matches!(state, State::Failed | State::Stopped);
        ModuleDetails {
            id: "id".into(),
            name: name.into(),
            kind: "host".into(),
            config: ModuleConfig {
                settings: Settings {
                    image: image.into(),
                    image_hash: Some("sha256:x".into()),
                    create_options: None,
                    digest: None,
                    auth: None,
                },
                env: Vec::new(),
            },
            status: Status {
                start_time: Some("2026-11-24T00:00:00Z".into()),
                exit_status: ended.then(|| ExitStatus {
                    exit_time: "2026-11-24T00:01:00Z".into(),
                    status_code: if state == State::Failed { "1" } else { "0" }.into(),
                }),
                runtime_status: RuntimeStatus {
                    status: state,
                    description: None,
                },
            },
        }
    }

    fn identity(name: &str) -> (String, Identity) {
        let identity = Identity {
            module_id: name.into(),
            managed_by: "iotedge".into(),
            generation_id: "1".into(),
            auth_type: "sas".into(),
        };
        (name.to_owned(), identity)
    }

    fn deployment(modules: &Value) -> Deployment {
        let mut all = document(modules);
        all["systemModules"]
            .as_object_mut()
            .unwrap()
            .remove("edgeHub");
        read(&all).unwrap()
    }

    fn module(image: &str, more: &Value) -> Value {
        let mut module = json!({"type": "host", "status": "running", "restartPolicy": "always",
            "settings": {"image": image}});
        module
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        module
    }

    fn current(modules: &[(&str, &str, State)]) -> Current {
        let names = modules.iter().map(|(name, ..)| *name);
        Current {
            modules: modules
                .iter()
                .map(|(n, i, s)| ((*n).to_owned(), details(n, i, *s)))
                .collect(),
            identities: names
                .chain(["$edgeAgent", "host-level"])
                .map(identity)
                .collect(),
        }
    }

    /// Reads `name image state` of each module, as in a table.
    fn there_is(words: &str) -> Current {
        let modules: Vec<(&str, &str, State)> = words
            .split(',')
            .filter_map(|module| {
                let mut words = module.split(' ');
                let (name, image) = (words.next()?, words.next()?);
                let state = serde_json::from_value(words.next()?.into()).unwrap();
                Some((name, image, state))
            })
            .collect();
        current(&modules)
    }

    /// The plan as words, when everything there was asked for as `was` says.
    fn planned(want: &Value, was: &Value, current: &Current) -> Vec<String> {
        let applied = deployment(was)
            .modules
            .iter()
            .map(|(name, module)| (name.clone(), module.describe()))
            .collect();
        let calls = plan(
            &deployment(want),
            current,
            &applied,
            &BTreeMap::new(),
            Duration::ZERO,
        );
        let word = |call: &Call| {
            let word = format!("{call:?}")
                .replace("ModuleName(\"", "")
                .replace("\")", "");
            word.replace("))", ")")
        };
        calls.iter().map(word).collect()
    }

    #[test]
    fn plans_are_what_the_reference_says() {
        let a = json!({"a": module("i", &json!({}))});
        let ab =
            json!({"a": module("i", &json!({})), "b": module("j", &json!({"startupOrder": 1}))});
        let stopped = json!({"a": module("i", &json!({"status": "stopped"}))});
        let other = json!({"a": module("k", &json!({}))});
        let env = json!({"a": module("i", &json!({"env": {"X": {"value": "1"}}}))});
        let none = json!({});
        let new = "RefreshIdentity(a) Prepare(a) Stop(a) Update(a) Start(a)";
        let both = "CreateIdentity(b) Prepare(b) Create(b) Start(b) \
                    CreateIdentity(a) Prepare(a) Create(a) Start(a)";
        for (what, want, was, there, expected) in [
            ("nothing to do", &a, &a, "a i running", ""),
            ("both new, the ordered one first", &ab, &none, "", both),
            ("one added", &ab, &a, "a i running", &both[..47]),
            (
                "all removed",
                &none,
                &a,
                "a i running",
                "Stop(a) Delete(a) DeleteIdentity(a)",
            ),
            (
                "removed while down",
                &none,
                &a,
                "a i failed",
                "Delete(a) DeleteIdentity(a)",
            ),
            ("new image", &other, &a, "a i running", new),
            ("new environment", &env, &a, "a i running", new),
            ("nobody knows what it was", &a, &none, "a i running", new),
            ("to be stopped", &stopped, &a, "a i running", "Stop(a)"),
            ("stopped as it should be", &stopped, &a, "a i stopped", ""),
            (
                "not to run",
                &stopped,
                &none,
                "",
                "CreateIdentity(a) Prepare(a) Create(a)",
            ),
            ("to run again", &a, &stopped, "a i stopped", "Start(a)"),
            ("ended by itself", &a, &a, "a i stopped", "Restart(a)"),
            (
                "dead",
                &a,
                &a,
                "a i dead",
                "RefreshIdentity(a) Prepare(a) Delete(a) Create(a) Start(a)",
            ),
            (
                "ourselves as we should be",
                &a,
                &a,
                "a i running,edgeAgent agent running",
                "",
            ),
            (
                "ourselves first and alone",
                &ab,
                &a,
                "edgeAgent old running",
                "UpdateAgent",
            ),
        ] {
            let calls = planned(want, was, &there_is(there)).join(" ");
            assert_eq!(calls, expected, "{what}");
        }
    }

    #[test]
    fn a_lost_identity_is_made_again_and_those_of_others_are_left_alone() {
        let a = json!({"a": module("i", &json!({}))});
        let mut there = current(&[("a", "i", State::Running)]);
        there.identities.remove("a");
        assert_eq!(planned(&a, &a, &there), ["CreateIdentity(a)"]);
        // One that is gone already leaves its identity, which was ours.
        let mut there = current(&[]);
        there.identities.extend([identity("a")]);
        assert_eq!(planned(&json!({}), &a, &there), ["DeleteIdentity(a)"]);
    }

    #[test]
    fn the_agent_is_replaced_when_it_was_asked_to_be_something_else() {
        let want = deployment(&json!({}));
        let there = current(&[("edgeAgent", "agent", State::Running)]);
        let mut was = want.agent.clone().unwrap();
        let calls =
            |applied: &Applied| plan(&want, &there, applied, &BTreeMap::new(), Duration::ZERO);
        assert_eq!(calls(&Applied::new()), [], "no memory, same image");
        was.env.insert("X".into(), "1".into());
        let applied = Applied::from([("edgeAgent".to_owned(), was.describe())]);
        assert_eq!(calls(&applied), [Call::UpdateAgent]);
    }

    #[test]
    fn restarts_follow_the_policy() {
        use Restart::{Always, Never, OnFailure, OnUnhealthy};
        let long_ago = History {
            down_since: Some(Duration::ZERO),
            ..History::default()
        };
        let now = Duration::from_secs(1000);
        for (policy, state, expected) in [
            (Always, State::Running, Revival::Leave),
            (Always, State::Failed, Revival::Restart),
            (Always, State::Stopped, Revival::Restart),
            (Always, State::Unknown, Revival::Restart),
            (Never, State::Failed, Revival::Leave),
            (Never, State::Stopped, Revival::Leave),
            (OnFailure, State::Failed, Revival::Restart),
            (OnFailure, State::Stopped, Revival::Restart),
            (OnUnhealthy, State::Failed, Revival::Restart),
            (OnUnhealthy, State::Running, Revival::Leave),
        ] {
            let details = details("a", "i", state);
            assert_eq!(
                revival(policy, &details, &long_ago, now),
                expected,
                "{policy:?} {state:?}"
            );
        }
        let mut new = details("a", "i", State::Stopped);
        (new.status.start_time, new.status.exit_status) = (None, None);
        assert_eq!(
            revival(Never, &new, &History::default(), now),
            Revival::Start
        );
    }

    #[test]
    fn a_module_that_fails_again_and_again_waits_longer_and_is_given_up() {
        let failed = details("a", "i", State::Failed);
        let mut history = History::default();
        let mut now = Duration::from_secs(1);
        let mut waits = Vec::new();
        loop {
            history.observe(State::Failed, now);
            let began = now;
            let end = loop {
                match revival(Restart::Always, &failed, &history, now) {
                    Revival::Backoff => now += Duration::from_secs(5),
                    end => break end,
                }
            };
            if end == Revival::GiveUp {
                break;
            }
            waits.push((now - began).as_secs());
            history.restarted("t".into());
        }
        assert_eq!(waits[..7], [10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(waits.len(), 20);
        // Ten minutes of life make it a new module.
        history.observe(State::Running, now);
        history.observe(State::Running, now + Duration::from_secs(599));
        assert_eq!(history.restarts, 20);
        history.observe(State::Running, now + Duration::from_secs(600));
        assert_eq!(history.restarts, 0);
    }

    /// Does to a picture of the runtime what a call would do to the runtime.
    fn pretend(call: &Call, want: &Deployment, there: &mut Current) {
        let Some(name) = call.module() else { return };
        let key = name.plain().to_owned();
        match call {
            Call::CreateIdentity(_) => there.identities.extend([identity(&name.identity())]),
            Call::DeleteIdentity(_) => drop(there.identities.remove(&name.identity())),
            Call::Delete(_) => drop(there.modules.remove(&key)),
            Call::Create(_) | Call::Update(_) => {
                let new = details(&key, &want.modules[&key].image, State::Stopped);
                there.modules.insert(key, new);
            }
            Call::Start(_) | Call::Restart(_) | Call::Stop(_) => {
                let state = if matches!(call, Call::Stop(_)) {
                    State::Stopped
                } else {
                    State::Running
                };
                let details = there
                    .modules
                    .get_mut(&key)
                    .expect("a call for a module that is there");
                details.status.runtime_status.status = state;
            }
            Call::Prepare(_) | Call::RefreshIdentity(_) | Call::UpdateAgent => {}
        }
    }

    #[test]
    fn a_plan_that_was_carried_out_leaves_nothing_to_plan() {
        let images = ["i", "j"];
        for n in 0..81_usize {
            // Four choices of three: how a and b are wanted, and how they are.
            let digit = |at: u32| n / 3_usize.pow(at) % 3;
            let mut modules = json!({});
            let mut there = Vec::new();
            for (at, name) in [(0, "a"), (1, "b")] {
                if digit(at) > 0 {
                    let status = ["", "running", "stopped"][digit(at)];
                    modules[name] = module(images[at as usize], &json!({ "status": status }));
                }
                if digit(at + 2) > 0 {
                    there.push((
                        name,
                        "i",
                        [State::Dead, State::Running, State::Failed][digit(at + 2)],
                    ));
                }
            }
            let want = deployment(&modules);
            let mut there = current(&there);
            let none = BTreeMap::new();
            for call in plan(&want, &there, &Applied::new(), &none, Duration::ZERO) {
                pretend(&call, &want, &mut there);
            }
            let applied: Applied = want
                .modules
                .iter()
                .map(|(name, m)| (name.clone(), m.describe()))
                .collect();
            assert_eq!(
                plan(&want, &there, &applied, &none, Duration::ZERO),
                [],
                "{n}"
            );
            assert_eq!(there.modules.len(), want.modules.len(), "{n}");
            assert!(there.identities.contains_key("host-level"));
        }
    }
}
