//! The agent between the real hub and a runtime that only pretends: the whole loop, once around.

#![expect(
    clippy::unwrap_used,
    reason = "a test program: its helpers fail as its tests do"
)]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use agent::config::Config;
use contract::bytes::Secret;
use contract::names::{DeviceId, ModuleId, RegistrationId};
use contract::sas::{Audience, Claim, SasKey};
use local::clock::Clock;
use net::dps::{Dps, HubRule, Limits};
use net::https::{Https, Method, Request};
use net::registry::Registry;
use net::tls::{Client, Roots, Target};
use net::token::{Owner, Source};
use serde_json::{Value, json};

const NAME: &str = "127.0.0.1";

fn wall() -> i64 {
    Clock::open(None).unwrap().now().wall
}

fn key(byte: u8) -> Arc<SasKey> {
    Arc::new(SasKey::new(zeroize::Zeroizing::new(vec![byte; 32])).unwrap())
}

/// Asks until the answer is there; a guard ends it, nothing is measured.
fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let guard = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(Instant::now() < guard, "waiting for {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// What the pretended runtime has, and what it was asked for.
#[derive(Default)]
struct State {
    modules: BTreeMap<String, Value>,
    identities: BTreeMap<String, u32>,
    made: u32,
    calls: Vec<String>,
    /// Creating this module fails.
    refused: String,
}

impl State {
    fn answer(&mut self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let words: Vec<&str> = path.trim_matches('/').split('/').collect();
        let name = words
            .get(1)
            .map(|name| name.replace("%24", "$"))
            .unwrap_or_default();
        if method != "GET" && !path.ends_with("/sign") {
            let of = body["name"]
                .as_str()
                .or(body["moduleId"].as_str())
                .unwrap_or(&name);
            self.calls
                .push(format!("{method} {} {of}", words.first().unwrap()));
        }
        let refused = (400, json!({ "message": "invalid host config" }));
        match (method, words.as_slice()) {
            ("GET", ["modules"]) => (
                200,
                json!({ "modules": self.modules.values().collect::<Vec<_>>() }),
            ),
            ("GET", ["identities"]) => {
                let shown: Vec<Value> = self.identities.iter().map(identity).collect();
                (200, json!({ "identities": shown }))
            }
            ("GET", ["systeminfo"]) => (
                200,
                json!({"osType": "Linux", "architecture": "x86_64",
                "cpus": 2, "virtualized": "no", "version": "0.1.0", "provisioning": {"type": "x",
                "dynamicReprovisioning": false, "alwaysReprovisionOnStartup": false}}),
            ),
            ("POST", ["identities"]) => {
                self.made += 1;
                let id = body["moduleId"].as_str().unwrap().to_owned();
                self.identities.insert(id.clone(), self.made);
                (200, identity((&id, &self.made)))
            }
            ("PUT", ["identities", _]) => (200, identity((&name, &self.identities[&name]))),
            ("DELETE", ["identities", _]) => {
                self.identities.remove(&name);
                (204, Value::Null)
            }
            ("POST", ["modules", _, "prepareupdate"]) => (204, Value::Null),
            ("POST", ["modules"]) | ("PUT", ["modules", _]) => {
                let name = body["name"].as_str().unwrap().to_owned();
                if name == self.refused {
                    return refused;
                }
                let env = body["config"]["env"].as_array().unwrap();
                assert!(
                    env.iter()
                        .any(|p| p["key"] == "IOTEDGE_MODULEID" && p["value"] == *name)
                );
                let mut settings = body["config"]["settings"].clone();
                settings["createOptions"] = json!({"Labels": {
                    "net.azure-devices.edge.owner": "Microsoft.Azure.Devices.Edge.Agent"}});
                let details = json!({ "id": "id", "name": name, "type": body["type"],
                    "config": {"settings": settings, "env": []},
                    "status": {"runtimeStatus": {"status": "stopped"}}});
                self.modules.insert(name, details.clone());
                (201, details)
            }
            ("DELETE", ["modules", _]) => {
                self.modules.remove(&name);
                (204, Value::Null)
            }
            ("POST", ["modules", _, action]) => {
                let status = if *action == "stop" {
                    "stopped"
                } else {
                    "running"
                };
                let module = self.modules.get_mut(&name).unwrap();
                module["status"] = json!({"startTime": "2026-11-24T00:00:00Z",
                    "runtimeStatus": {"status": status}});
                (204, Value::Null)
            }
            _ => (404, json!({ "message": "not found" })),
        }
    }

    fn runs(&self, name: &str) -> bool {
        let module = self.modules.get(name);
        module.is_some_and(|module| module["status"]["runtimeStatus"]["status"] == "running")
    }
}

fn identity((id, generation): (&String, &u32)) -> Value {
    json!({ "moduleId": id, "managedBy": "iotedge", "generationId": generation.to_string(),
        "authType": "sas" })
}

/// Serves both APIs on one socket until the program ends.
fn pretend(socket: &Path, key: Arc<SasKey>) -> Arc<Mutex<State>> {
    let state = Arc::new(Mutex::new(State::default()));
    #[expect(
        clippy::disallowed_methods,
        reason = "the pretended runtime proves no callers"
    )]
    let listener = UnixListener::bind(socket).unwrap();
    let shared = Arc::clone(&state);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (state, key) = (Arc::clone(&shared), Arc::clone(&key));
            std::thread::spawn(move || serve(stream.unwrap(), &state, &key));
        }
    });
    state
}

fn serve(stream: UnixStream, state: &Mutex<State>, key: &SasKey) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let (method, rest) = line.split_once(' ').unwrap();
        let (path, _) = rest.split_once('?').unwrap();
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).unwrap();
            if header.trim().is_empty() {
                break;
            }
            if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let (status, answer) = if path.ends_with("/sign") {
            assert!(path.starts_with("/modules/%24edgeAgent/genid/1/"), "{path}");
            let data: contract::bytes::Bytes =
                serde_json::from_value(body["data"].clone()).unwrap();
            let digest = contract::bytes::Bytes(key.sign(&data.0).to_vec());
            (200, json!({ "digest": digest }))
        } else {
            state.lock().unwrap().answer(method, path, &body)
        };
        let text = if answer.is_null() {
            String::new()
        } else {
            answer.to_string()
        };
        let head = format!(
            "HTTP/1.1 {status} Reason\r\nContent-Length: {}\r\n",
            text.len()
        );
        let kind = if text.is_empty() {
            ""
        } else {
            "Content-Type: application/json\r\n"
        };
        writer
            .write_all(format!("{head}{kind}\r\n{text}").as_bytes())
            .ok()?;
    }
}

/// A hub with a device, its agent's identity, and a pretended runtime.
struct World {
    folder: PathBuf,
    tokio: tokio::runtime::Runtime,
    running: Option<hub::Running>,
    owner: SasKey,
    state: Arc<Mutex<State>>,
}

impl World {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("hf-agent-{}", std::process::id()));
        hub::init::init(&folder, &[NAME.to_owned()]).unwrap();
        let file = folder.join("hub.toml");
        let mut text = std::fs::OpenOptions::new()
            .append(true)
            .open(&file)
            .unwrap();
        let enrolment = "\n[[enrolment]]\nregistration = \"dev1\"\nedge = true\nprimary_key = ";
        writeln!(text, "{enrolment}\"{}\"", key(5).to_base64().as_str()).unwrap();
        let config = hub::config::Config::read(&file).unwrap();
        let policies = &config.policies;
        let owner = policies
            .iter()
            .find(|(p, _)| p.name() == "iothubowner")
            .unwrap()
            .1
            .clone();
        let tokio = tokio::runtime::Runtime::new().unwrap();
        let running = tokio.block_on(hub::Running::start(config)).unwrap();
        let state = pretend(&folder.join("runtime.sock"), key(7));
        let world = Self {
            folder,
            tokio,
            running: Some(running),
            owner,
            state,
        };
        world.enrol();
        world
    }

    fn endpoints(&self) -> &hub::Endpoints {
        self.running.as_ref().unwrap().endpoints()
    }

    fn https(&self) -> Https {
        let roots = std::fs::read(self.folder.join("ca.pem")).unwrap();
        let tls = Client::new(&Roots::from_pem(&roots).unwrap()).unwrap();
        Https::new(
            tls,
            Target::parse(&self.endpoints().https.to_string(), 443).unwrap(),
        )
    }

    fn enrol(&self) {
        let tokens = |owner| {
            let sign = |data: &[u8]| Ok(key(5).sign(data));
            Source::new(owner, 60, sign, || Some(wall()))
        };
        let scope = self.endpoints().scope_id.clone();
        let owner = Owner::Registration {
            scope: scope.clone(),
            registration: "dev1".into(),
        };
        let id = RegistrationId::new("dev1").unwrap();
        let dps = Dps::new(self.https(), &scope, id, None, tokens(owner)).unwrap();
        let mut wait = |span| {
            std::thread::park_timeout(span);
            true
        };
        let assigned = dps
            .register(
                HubRule::new([NAME.to_owned()]),
                Limits::default(),
                &mut wait,
            )
            .unwrap();
        let owner = Owner::Device {
            hub: assigned.hub.to_string(),
            device: "dev1".into(),
        };
        let device = DeviceId::new("dev1").unwrap();
        let registry = Registry::new(self.https(), device, tokens(owner));
        // An edge device has its agent's identity from the beginning.
        let keys = [7, 8].map(|byte| Secret::new(vec![byte; 32]));
        registry
            .set_keys(&ModuleId::new("$edgeAgent").unwrap(), &keys[0], &keys[1])
            .unwrap();
    }

    fn operator(&self, method: Method, path: &str, body: &Value) -> (u16, Value) {
        let claim = Claim::new(&Audience::Service { host: NAME }, wall(), 60).unwrap();
        let token = claim
            .policy("iothubowner")
            .sign(|d| Ok::<_, ()>(self.owner.sign(d)))
            .unwrap();
        let (path, body) = (format!("{path}?api-version=2021-04-12"), body.to_string());
        let request = Request {
            authorization: Some(&token),
            json: Some(body.as_bytes()),
            ..Request::new(method, &path)
        };
        let reply = self.https().call(&request).unwrap();
        (
            reply.status,
            serde_json::from_slice(&reply.body).unwrap_or_default(),
        )
    }

    fn deploy(&self, modules: &Value) {
        let content = json!({"modulesContent": {"$edgeAgent": {"properties.desired": {
            "schemaVersion": "1.1", "runtime": {"type": "docker", "settings": {}},
            "systemModules": {}, "modules": modules}}}});
        let path = "/devices/dev1/applyConfigurationContent";
        assert_eq!(self.operator(Method::Post, path, &content).0, 204);
    }

    /// Waits for a report with this code about the newest deployment.
    fn reported(&self, code: u16) -> Value {
        until(&format!("a report of {code}"), || {
            let (_, twin) = self.operator(
                Method::Get,
                "/twins/dev1/modules/%24edgeAgent",
                &Value::Null,
            );
            let (reported, desired) = (
                &twin["properties"]["reported"],
                &twin["properties"]["desired"],
            );
            let newest = reported["lastDesiredVersion"] == desired["$version"];
            (newest && reported["lastDesiredStatus"]["code"] == code).then(|| reported.clone())
        })
    }

    fn agent(&self) -> (Arc<AtomicBool>, JoinHandle<()>) {
        let socket = format!("unix://{}", self.folder.join("runtime.sock").display());
        let config = Config::read(&|name| match name {
            "IOTEDGE_WORKLOADURI" | "IOTEDGE_MANAGEMENTURI" => Some(socket.clone()),
            "IOTEDGE_IOTHUBHOSTNAME" => Some(NAME.to_owned()),
            "IOTEDGE_DEVICEID" => Some("dev1".to_owned()),
            "IOTEDGE_MODULEID" => Some("$edgeAgent".to_owned()),
            "IOTEDGE_MODULEGENERATIONID" => Some("1".to_owned()),
            "HOLDFAST_HUB_MQTT" => Some(self.endpoints().mqtt.to_string()),
            "HOLDFAST_HUB_CA" => Some(self.folder.join("ca.pem").display().to_string()),
            _ => None,
        });
        let config = config.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let run = move || agent::agent::run(config, Clock::open(None).unwrap(), &flag).unwrap();
        (stop, std::thread::spawn(run))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _inside = self.tokio.enter();
        self.running = None;
        #[expect(
            clippy::disallowed_methods,
            reason = "the test made this folder itself"
        )]
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn module(image: &str, env: &Value) -> Value {
    json!({"type": "host", "status": "running", "restartPolicy": "always", "env": env,
        "settings": {"image": image}})
}

#[test]
fn a_deployment_becomes_modules_and_a_report_becomes_memory() {
    let world = World::new();
    let state = Arc::clone(&world.state);
    world.deploy(&json!({"a": module("one", &json!({"X": {"value": "1"}}))}));
    let (stop, agent) = world.agent();
    until("a to run", || state.lock().unwrap().runs("a").then_some(()));
    let reported = world.reported(200);
    assert_eq!(reported["modules"]["a"]["runtimeStatus"], "running");
    assert_eq!(reported["modules"]["a"]["env"]["X"]["value"], "1");
    assert_eq!(reported["runtime"]["platform"]["architecture"], "x86_64");

    // One is replaced by two, and one of those cannot be created: the other is, all the same.
    state.lock().unwrap().refused = "b".into();
    world.deploy(&json!({"b": module("two", &json!({})), "c": module("two", &json!({}))}));
    until("c to run", || state.lock().unwrap().runs("c").then_some(()));
    let reported = world.reported(500);
    let why = reported["lastDesiredStatus"]["description"]
        .as_str()
        .unwrap();
    assert!(
        why.contains("create b") || why.contains("prepare b"),
        "{why}"
    );
    assert!(reported["modules"].get("a").is_none(), "{reported}");
    assert!(!state.lock().unwrap().identities.contains_key("a"));

    // What is no deployment is refused, and nothing is touched.
    world.deploy(&json!({"c": {"type": "vm"}}));
    assert!(
        world.reported(400)["lastDesiredStatus"]["description"]
            .as_str()
            .unwrap()
            .contains("modules.c")
    );
    assert!(state.lock().unwrap().runs("c"));

    state.lock().unwrap().refused.clear();
    world.deploy(&json!({"c": module("two", &json!({}))}));
    world.reported(200);
    stop.store(true, Ordering::Relaxed);
    agent.join().unwrap();
    let last = world.reported(406);
    assert_eq!(last["modules"]["c"]["runtimeStatus"], "unknown");
    assert!(
        state.lock().unwrap().runs("c"),
        "modules outlive their agent"
    );

    // The next agent knows from the report what c was asked to be.
    state.lock().unwrap().calls.clear();
    let (stop, agent) = world.agent();
    world.reported(200);
    assert_eq!(state.lock().unwrap().calls, Vec::<String>::new());
    world.deploy(&json!({"c": module("two", &json!({"X": {"value": "2"}}))}));
    let changed = || {
        state
            .lock()
            .unwrap()
            .calls
            .iter()
            .any(|call| call == "PUT modules c")
            .then_some(())
    };
    until("c to be replaced", changed);
    until("c to run again", || {
        state.lock().unwrap().runs("c").then_some(())
    });
    stop.store(true, Ordering::Relaxed);
    agent.join().unwrap();
}
