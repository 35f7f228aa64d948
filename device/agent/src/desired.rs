//! Reads a deployment from the agent's desired properties (reference/module-runtime.md 7.4).
//!
//! What decides about modules is read strictly, and a deployment is taken whole or not at all;
//! members nobody knows are ignored, because newer tools write them. Each error has the code that
//! the agent reports. Pure.

use std::collections::BTreeMap;

use contract::json;
use contract::names::ModuleName;
use contract::twin::Members;
use serde_json::{Map, Value, json};

/// Longest piece of createOptions in a twin; a relic that tools rely on.
const PIECE: usize = 512;
/// The most pieces.
const PIECES: usize = 100;
/// Started last, unordered among equals.
const LAST: u32 = u32::MAX;

/// Why a deployment is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DesiredError {
    /// There is none.
    #[error("the desired properties are empty")]
    Empty,
    /// It is of a version we do not know.
    #[error("schema version {0} is not supported")]
    Schema(String),
    /// It is not what a deployment is.
    #[error("{at}: {what}")]
    Format {
        /// The path of the member.
        at: String,
        /// What is wrong.
        what: String,
    },
}

impl DesiredError {
    /// The code reported for it.
    pub fn code(&self) -> u16 {
        match self {
            Self::Empty => 417,
            Self::Schema(_) => 412,
            Self::Format { .. } => 400,
        }
    }
}

/// Whether a module is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// It is.
    Running,
    /// It is to exist, but not to run.
    Stopped,
}

/// When a module is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Whenever it does not run.
    Always,
    /// Never.
    Never,
    /// When it failed.
    OnFailure,
    /// When it failed or is not healthy.
    OnUnhealthy,
}

impl Restart {
    fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Never => "never",
            Self::OnFailure => "on-failure",
            Self::OnUnhealthy => "on-unhealthy",
        }
    }
}

/// One module of a deployment.
#[derive(Clone, PartialEq)]
pub struct Module {
    /// Its name, without `$`.
    pub name: ModuleName,
    /// Its engine: `docker` or `host`.
    pub kind: String,
    /// Whether it is to run.
    pub wanted: Wanted,
    /// When it is started again.
    pub restart: Restart,
    /// `on-create` or `never`.
    pub pull: String,
    /// Free text.
    pub version: String,
    /// Lower starts earlier.
    pub order: u32,
    /// Its own environment.
    pub env: BTreeMap<String, String>,
    /// What it runs.
    pub image: String,
    /// Container options.
    pub options: Option<Map<String, Value>>,
    /// Carried, not used.
    pub digest: Option<String>,
}

impl std::fmt::Debug for Module {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Environment and options may hold secrets (R48).
        write!(f, "{}({} {})", self.name, self.kind, self.image)
    }
}

impl Module {
    /// The module as a twin shows it: what is reported, and what is compared to tell a change.
    pub fn describe(&self) -> Map<String, Value> {
        let mut settings = Map::new();
        settings.insert("image".into(), self.image.clone().into());
        let options = self
            .options
            .as_ref()
            .map(|o| Value::Object(o.clone()).to_string());
        for (at, piece) in pieces(options.as_deref().unwrap_or(""))
            .into_iter()
            .enumerate()
        {
            settings.insert(piece_name(at), piece.into());
        }
        if let Some(digest) = &self.digest {
            settings.insert("digest".into(), digest.clone().into());
        }
        let env: Map<String, Value> = self
            .env
            .iter()
            .map(|(k, v)| (k.clone(), json!({ "value": v })))
            .collect();
        let mut shown = Map::new();
        shown.insert("type".into(), self.kind.clone().into());
        shown.insert("settings".into(), settings.into());
        shown.insert("env".into(), env.into());
        shown.insert("imagePullPolicy".into(), self.pull.clone().into());
        if self.name.plain() != "edgeAgent" {
            let wanted = if self.wanted == Wanted::Running {
                "running"
            } else {
                "stopped"
            };
            shown.insert("status".into(), wanted.into());
            shown.insert("restartPolicy".into(), self.restart.as_str().into());
            shown.insert("version".into(), self.version.clone().into());
            shown.insert("startupOrder".into(), self.order.into());
        }
        shown
    }
}

/// What is compared to tell a change: everything described but the wish to run.
pub fn fingerprint(described: &Map<String, Value>) -> Map<String, Value> {
    let known = |name: &str| {
        matches!(
            name,
            "type" | "env" | "imagePullPolicy" | "restartPolicy" | "version" | "startupOrder"
        )
    };
    let mut kept: Map<String, Value> = described
        .iter()
        .filter(|(n, _)| known(n))
        .map(|(n, v)| (n.clone(), v.clone()))
        .collect();
    if let Some(Value::Object(settings)) = described.get("settings") {
        let known =
            |name: &str| name == "image" || name == "digest" || name.starts_with("createOptions");
        let settings: Map<String, Value> = settings
            .iter()
            .filter(|(n, _)| known(n))
            .map(|(n, v)| (n.clone(), v.clone()))
            .collect();
        kept.insert("settings".into(), settings.into());
    }
    kept
}

/// A deployment.
#[derive(Clone, Debug, PartialEq)]
pub struct Deployment {
    /// The runtime's engine, as written.
    pub runtime_kind: String,
    /// The runtime's settings without registry logins, which are not to be reported.
    pub runtime_settings: Map<String, Value>,
    /// The agent itself, if the deployment says what it should be.
    pub agent: Option<Module>,
    /// All other modules by name, the hub of the device among them.
    pub modules: BTreeMap<String, Module>,
}

/// Reads a deployment.
///
/// # Errors
/// [`DesiredError`] for the first thing that is wrong.
pub fn parse(properties: &Members) -> Result<Deployment, DesiredError> {
    if properties.is_empty() {
        return Err(DesiredError::Empty);
    }
    schema(text(properties, "", "schemaVersion")?)?;
    let runtime = object(properties, "", "runtime")?;
    let runtime_kind = text(runtime, "runtime", "type")?.to_owned();
    let mut runtime_settings = match runtime.get("settings") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(settings)) => settings.clone(),
        Some(_) => return Err(format("runtime.settings", "not an object")),
    };
    runtime_settings.remove("registryCredentials");
    let mut agent = None;
    let mut modules = BTreeMap::new();
    if let Some(system) = optional_object(properties, "", "systemModules")? {
        for (name, value) in system {
            let at = format!("systemModules.{name}");
            match name.as_str() {
                "edgeAgent" => agent = Some(module(&at, name, value, Role::Agent)?),
                "edgeHub" => {
                    drop(modules.insert(name.clone(), module(&at, name, value, Role::Hub)?))
                }
                _ => return Err(format(&at, "no such system module")),
            }
        }
    }
    if let Some(user) = optional_object(properties, "", "modules")? {
        for (name, value) in user {
            let at = format!("modules.{name}");
            if name.starts_with('$') || matches!(name.as_str(), "edgeAgent" | "edgeHub") {
                return Err(format(&at, "the name of a system module"));
            }
            modules.insert(name.clone(), module(&at, name, value, Role::User)?);
        }
    }
    Ok(Deployment {
        runtime_kind,
        runtime_settings,
        agent,
        modules,
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Agent,
    Hub,
    User,
}

fn module(at: &str, name: &str, value: &Value, role: Role) -> Result<Module, DesiredError> {
    let Value::Object(members) = value else {
        return Err(format(at, "not an object"));
    };
    let under = |name: &str| format!("{at}.{name}");
    let name = ModuleName::new(name).map_err(|error| format(at, &error.to_string()))?;
    let kind = text(members, at, "type")?;
    if !matches!(kind, "docker" | "host") {
        return Err(format(&under("type"), "neither docker nor host"));
    }
    let settings = object(members, at, "settings")?;
    let image = text(settings, &under("settings"), "image")?.trim();
    if image.is_empty() {
        return Err(format(&under("settings.image"), "empty"));
    }
    let (wanted, restart, order) = match role {
        Role::Agent => (Wanted::Running, Restart::Always, 0),
        _ => (
            match text(members, at, "status")? {
                word if word.eq_ignore_ascii_case("running") => Wanted::Running,
                word if word.eq_ignore_ascii_case("stopped") => Wanted::Stopped,
                _ => return Err(format(&under("status"), "neither running nor stopped")),
            },
            match optional_text(members, at, "restartPolicy")? {
                None if role == Role::Hub => Restart::Always,
                None => Restart::OnUnhealthy,
                Some(word) => restart(word)
                    .ok_or_else(|| format(&under("restartPolicy"), "no such policy"))?,
            },
            match members.get("startupOrder") {
                None | Some(Value::Null) => LAST,
                Some(value) => value
                    .as_u64()
                    .and_then(|order| u32::try_from(order).ok())
                    .ok_or_else(|| format(&under("startupOrder"), "not a number below 2^32"))?,
            },
        ),
    };
    let pull = match optional_text(members, at, "imagePullPolicy")? {
        None => "on-create",
        Some(word) => ["on-create", "never"]
            .into_iter()
            .find(|known| word.eq_ignore_ascii_case(known))
            .ok_or_else(|| format(&under("imagePullPolicy"), "no such policy"))?,
    };
    Ok(Module {
        name,
        kind: kind.to_owned(),
        wanted,
        restart,
        pull: pull.to_owned(),
        version: optional_text(members, at, "version")?
            .unwrap_or_default()
            .to_owned(),
        order,
        env: env(members, at)?,
        image: image.to_owned(),
        options: options(settings, &under("settings"))?,
        digest: optional_text(settings, &under("settings"), "digest")?.map(str::to_owned),
    })
}

fn restart(word: &str) -> Option<Restart> {
    [
        Restart::Always,
        Restart::Never,
        Restart::OnFailure,
        Restart::OnUnhealthy,
    ]
    .into_iter()
    .find(|policy| word.eq_ignore_ascii_case(policy.as_str()))
}

fn env(members: &Members, at: &str) -> Result<BTreeMap<String, String>, DesiredError> {
    let Some(env) = optional_object(members, at, "env")? else {
        return Ok(BTreeMap::new());
    };
    let mut found = BTreeMap::new();
    for (name, value) in env {
        let at = format!("{at}.env.{name}");
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(format(&at, "not a name of a variable"));
        }
        let value = match value.get("value") {
            Some(Value::String(text)) => text.clone(),
            // Tools write numbers and truth values without quotes.
            Some(plain @ (Value::Number(_) | Value::Bool(_))) => plain.to_string(),
            _ => return Err(format(&at, "no value")),
        };
        if value.contains('\0') {
            return Err(format(&at, "a zero byte in the value"));
        }
        found.insert(name.clone(), value);
    }
    Ok(found)
}

/// Joins the pieces of createOptions.
fn options(settings: &Members, at: &str) -> Result<Option<Map<String, Value>>, DesiredError> {
    let mut joined = String::new();
    let mut pieces = 0;
    while let Some(piece) = optional_text(settings, at, &piece_name(pieces))? {
        joined.push_str(piece);
        pieces += 1;
        if pieces == PIECES {
            break;
        }
    }
    let at = format!("{at}.createOptions");
    let given = settings
        .iter()
        .filter(|(name, value)| name.starts_with("createOptions") && !value.is_null())
        .count();
    if given > pieces {
        return Err(format(&at, "a piece is missing"));
    }
    let joined = joined.trim();
    if joined.is_empty() || joined == "null" {
        return Ok(None);
    }
    json::check(joined.as_bytes(), json::Limits::document(PIECE * PIECES))
        .map_err(|error| format(&at, &error.to_string()))?;
    match serde_json::from_str(joined) {
        Ok(Value::Object(options)) if options.is_empty() => Ok(None),
        Ok(Value::Object(options)) => Ok(Some(options)),
        _ => Err(format(&at, "not an object")),
    }
}

fn piece_name(at: usize) -> String {
    if at == 0 {
        "createOptions".to_owned()
    } else {
        format!("createOptions{at:02}")
    }
}

/// Cuts createOptions at character borders.
fn pieces(text: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    for c in text.chars() {
        if found
            .last()
            .is_some_and(|piece| piece.len() + c.len_utf8() > PIECE)
        {
            found.push(String::new());
        }
        if let Some(piece) = found.last_mut() {
            piece.push(c);
        }
    }
    found
}

/// Major version 1, up to 1.1.0.
fn schema(version: &str) -> Result<(), DesiredError> {
    let numbers: Option<Vec<u32>> = version
        .split('.')
        .map(|n| {
            n.parse()
                .ok()
                .filter(|_| n.bytes().all(|b| b.is_ascii_digit()))
        })
        .collect();
    match numbers.as_deref() {
        Some([1] | [1, 0] | [1, 0, _] | [1, 1] | [1, 1, 0]) => Ok(()),
        _ => Err(DesiredError::Schema(version.chars().take(32).collect())),
    }
}

fn format(at: &str, what: &str) -> DesiredError {
    DesiredError::Format {
        at: at.to_owned(),
        what: what.to_owned(),
    }
}

fn path(at: &str, name: &str) -> String {
    if at.is_empty() {
        name.to_owned()
    } else {
        format!("{at}.{name}")
    }
}

fn optional_text<'a>(
    members: &'a Members,
    at: &str,
    name: &str,
) -> Result<Option<&'a str>, DesiredError> {
    match members.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format(&path(at, name), "not a text")),
    }
}

fn text<'a>(members: &'a Members, at: &str, name: &str) -> Result<&'a str, DesiredError> {
    optional_text(members, at, name)?.ok_or_else(|| format(&path(at, name), "missing"))
}

fn optional_object<'a>(
    members: &'a Members,
    at: &str,
    name: &str,
) -> Result<Option<&'a Members>, DesiredError> {
    match members.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(inner)) => Ok(Some(inner)),
        Some(_) => Err(format(&path(at, name), "not an object")),
    }
}

fn object<'a>(members: &'a Members, at: &str, name: &str) -> Result<&'a Members, DesiredError> {
    optional_object(members, at, name)?.ok_or_else(|| format(&path(at, name), "missing"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn document(modules: &Value) -> Value {
        json!({
            "schemaVersion": "1.1",
            "runtime": {"type": "docker", "settings": {"minDockerVersion": "v1.25",
                "registryCredentials": {"r": {"address": "r", "username": "u", "password": "p"}}}},
            "systemModules": {
                "edgeAgent": {"type": "host", "settings": {"image": "agent"}},
                "edgeHub": {"type": "docker", "status": "running", "settings": {"image": "hub"}}},
            "modules": modules,
        })
    }

    pub(crate) fn read(document: &Value) -> Result<Deployment, DesiredError> {
        parse(document.as_object().unwrap())
    }

    fn edited(pointer: &str, value: Value) -> Value {
        let mut all = document(&json!({"m": {"type": "host", "status": "running",
            "settings": {"image": "sample", "createOptions": ""}, "env": {"A": {"value": "b"}}}}));
        *all.pointer_mut(pointer)
            .unwrap_or_else(|| panic!("{pointer}")) = value;
        all
    }

    #[test]
    fn a_deployment_is_read_with_its_defaults() {
        let deployment = read(&edited("/schemaVersion", json!("1.0"))).unwrap();
        let module = &deployment.modules["m"];
        assert_eq!(
            (module.restart, module.order),
            (Restart::OnUnhealthy, u32::MAX)
        );
        assert_eq!(
            (module.pull.as_str(), module.wanted),
            ("on-create", Wanted::Running)
        );
        assert_eq!(module.env["A"], "b");
        assert_eq!(module.options, None);
        assert_eq!(deployment.modules["edgeHub"].restart, Restart::Always);
        assert_eq!(deployment.agent.unwrap().image, "agent");
        assert!(
            !deployment
                .runtime_settings
                .contains_key("registryCredentials")
        );
    }

    #[test]
    fn the_quickstart_template_of_the_tools_is_read() {
        let template = document(&json!({"tempSensor": {"version": "1.0", "type": "docker",
            "status": "running", "restartPolicy": "always", "unknown": [1],
            "settings": {"image": "r/s:1", "createOptions": "{\"HostConfig\":{}}"}}}));
        let deployment = read(&template).unwrap();
        assert!(deployment.modules["tempSensor"].options.is_some());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_code() {
        assert_eq!(parse(&Members::new()).unwrap_err().code(), 417);
        for version in ["2.0", "1.2", "1.1.1", "0.9", "1.", "+1.0", "", "x"] {
            let error = read(&edited("/schemaVersion", json!(version))).unwrap_err();
            assert_eq!(error.code(), 412, "{version}");
        }
        for (pointer, value, at) in [
            ("/schemaVersion", json!(1), "schemaVersion"),
            ("/runtime", json!([]), "runtime"),
            ("/runtime/type", Value::Null, "runtime.type"),
            ("/modules", json!("x"), "modules"),
            ("/modules/m", json!(1), "modules.m"),
            ("/modules/m/type", json!("vm"), "modules.m.type"),
            ("/modules/m/status", json!("paused"), "modules.m.status"),
            ("/modules/m/status", Value::Null, "modules.m.status"),
            ("/modules/m/settings", Value::Null, "modules.m.settings"),
            (
                "/modules/m/settings/image",
                json!(" "),
                "modules.m.settings.image",
            ),
            (
                "/modules/m/settings/createOptions",
                json!({}),
                "createOptions",
            ),
            (
                "/modules/m/settings/createOptions",
                json!("[1]"),
                "createOptions",
            ),
            (
                "/modules/m/settings/createOptions",
                json!("{\"a\":1,\"a\":2}"),
                "createOptions",
            ),
            ("/modules/m/env/A", json!("b"), "modules.m.env.A"),
            ("/modules/m/env/A/value", json!([]), "modules.m.env.A"),
            ("/modules/m/env/A/value", json!("a\u{0}"), "modules.m.env.A"),
            (
                "/modules/m/env",
                json!({"a=b": {"value": "x"}}),
                "modules.m.env.a=b",
            ),
        ] {
            let error = read(&edited(pointer, value)).unwrap_err();
            assert_eq!(error.code(), 400);
            assert!(error.to_string().contains(at), "{pointer}: {error}");
        }
        for name in ["$edgeHub", "edgeAgent", "../x", "a b", ""] {
            let module = json!({"type": "host", "status": "running", "settings": {"image": "i"}});
            assert_eq!(
                read(&document(&json!({ name: module })))
                    .unwrap_err()
                    .code(),
                400,
                "{name}"
            );
        }
        for (member, value) in [
            ("startupOrder", json!(-1)),
            ("restartPolicy", json!("often")),
        ] {
            let mut module =
                json!({"type": "host", "status": "running", "settings": {"image": "i"}});
            module[member] = value;
            assert_eq!(
                read(&document(&json!({ "m": module }))).unwrap_err().code(),
                400
            );
        }
    }

    #[test]
    fn create_options_are_joined_and_cut_again() {
        let options = json!({"a": "\u{e9}".repeat(700)});
        let text = options.to_string();
        let pieces = pieces(&text);
        assert_eq!(pieces.len(), 3);
        assert_eq!(pieces.concat(), text);
        assert!(pieces.iter().all(|piece| piece.len() <= 512));
        let module = |settings: Value| {
            read(&document(
                &json!({"m": {"type": "docker", "status": "stopped", "settings": settings}}),
            ))
        };
        let read = module(json!({"image": "i", "createOptions": pieces[0],
            "createOptions01": pieces[1], "createOptions02": pieces[2]}));
        let read = read.unwrap().modules["m"].clone();
        assert_eq!(read.options.clone().map(Value::Object), Some(options));
        assert_eq!(read.describe()["settings"]["createOptions02"], pieces[2]);
        let gap = module(json!({"image": "i", "createOptions": "{", "createOptions02": "}"}));
        assert!(gap.unwrap_err().to_string().contains("piece is missing"));
        let none = module(json!({"image": "i", "createOptions": "null"})).unwrap();
        assert_eq!(none.modules["m"].options, None);
    }

    #[test]
    fn a_fingerprint_leaves_out_what_is_not_a_change() {
        let module = read(&edited("/modules/m/status", json!("running")))
            .unwrap()
            .modules["m"]
            .clone();
        let mut reported = module.describe();
        reported.insert("status".into(), "stopped".into());
        reported.insert("exitCode".into(), 0.into());
        reported["settings"]["imageHash"] = "sha256:x".into();
        assert_eq!(fingerprint(&reported), fingerprint(&module.describe()));
        reported.insert("version".into(), "2".into());
        assert_ne!(fingerprint(&reported), fingerprint(&module.describe()));
    }
}
