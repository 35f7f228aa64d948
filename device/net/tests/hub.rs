//! The whole of this crate against the real hub: enrol, make identities, speak, follow a twin.

#![expect(
    clippy::unwrap_used,
    reason = "a test program: its helpers fail as its tests do"
)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use contract::bytes::Secret;
use contract::names::{ModuleId, RegistrationId};
use contract::sas::{Audience, Claim, SasKey};
use net::backoff::Backoff;
use net::dps::{Assigned, Dps, DpsError, HubRule, Limits};
use net::https::{Https, Method, Request};
use net::mqtt::{Event, Identity, MqttError, RETRY, Refusal, Session, Settings};
use net::registry::{Registry, RegistryError};
use net::tls::{Client, Roots, Target};
use net::token::{Owner, Source};
use serde_json::{Value, json};

const NAME: &str = "127.0.0.1";

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn wall() -> i64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "the hub of this test has the real clock"
    )]
    let now = std::time::SystemTime::now();
    i64::try_from(now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

/// A hub in this process, in a folder that goes with it.
struct World {
    folder: PathBuf,
    runtime: tokio::runtime::Runtime,
    running: Option<hub::Running>,
    owner: SasKey,
    key: Arc<SasKey>,
}

impl World {
    fn new(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("net-{name}-{}", std::process::id()));
        hub::init::init(&folder, &[NAME.to_owned()]).unwrap();
        let key = SasKey::new(zeroize::Zeroizing::new(vec![5; 32])).unwrap();
        let file = folder.join("hub.toml");
        let mut text = std::fs::OpenOptions::new()
            .append(true)
            .open(&file)
            .unwrap();
        write!(
            text,
            "\n[[enrolment]]\nregistration = \"dev1\"\nedge = true\nprimary_key = \"{}\"\n",
            key.to_base64().as_str()
        )
        .unwrap();
        let config = hub::config::Config::read(&file).unwrap();
        let owner = config
            .policies
            .iter()
            .find(|(p, _)| p.name() == "iothubowner")
            .unwrap()
            .1
            .clone();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let running = runtime.block_on(hub::Running::start(config)).unwrap();
        Self {
            folder,
            runtime,
            running: Some(running),
            owner,
            key: Arc::new(key),
        }
    }

    fn tls(&self) -> Client {
        let roots = std::fs::read(self.folder.join("ca.pem")).unwrap();
        Client::new(&Roots::from_pem(&roots).unwrap()).unwrap()
    }

    fn endpoints(&self) -> &hub::Endpoints {
        self.running.as_ref().unwrap().endpoints()
    }

    fn https(&self) -> Https {
        let target = Target::parse(&self.endpoints().https.to_string(), 443).unwrap();
        Https::new(self.tls(), target)
    }

    fn tokens(owner: Owner, key: &Arc<SasKey>) -> Source {
        let key = Arc::clone(key);
        Source::new(
            owner,
            60,
            move |data: &[u8]| Ok(key.sign(data)),
            || Some(wall()),
        )
    }

    fn register(&self, key: &Arc<SasKey>, rule: &str) -> Result<Assigned, DpsError> {
        let scope = self.endpoints().scope_id.clone();
        let owner = Owner::Registration {
            scope: scope.clone(),
            registration: "dev1".into(),
        };
        let id = RegistrationId::new("dev1").unwrap();
        Dps::new(self.https(), &scope, id, None, Self::tokens(owner, key))
            .unwrap()
            .register(
                HubRule::new([rule.to_owned()]),
                Limits::default(),
                &mut |span| {
                    std::thread::park_timeout(span);
                    true
                },
            )
    }

    /// A call of an operator.
    fn operator(&self, method: Method, path: &str, body: &Value) -> (u16, Vec<u8>) {
        let claim = Claim::new(&Audience::Service { host: NAME }, wall(), 60).unwrap();
        let token = claim
            .policy("iothubowner")
            .sign(|d| Ok::<_, ()>(self.owner.sign(d)))
            .unwrap();
        let body = body.to_string();
        let request = Request {
            authorization: Some(&token),
            json: Some(body.as_bytes()),
            ..Request::new(method, path)
        };
        let reply = self.https().call(&request).unwrap();
        (reply.status, reply.body)
    }

    fn session(&self, module: &str, key: &Arc<SasKey>, retry: Backoff) -> Session {
        let identity = Identity {
            hub: NAME.into(),
            device: "dev1".into(),
            module: Some(module.into()),
        };
        Session::new(Settings {
            product: "net-test/1".into(),
            target: Target::parse(&self.endpoints().mqtt.to_string(), 8883).unwrap(),
            tls: self.tls(),
            tokens: Self::tokens(identity.owner(), key),
            identity,
            retry,
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _inside = self.runtime.enter();
        self.running = None;
        #[expect(
            clippy::disallowed_methods,
            reason = "the test made this folder itself"
        )]
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn a_device_and_its_modules_live_at_the_real_hub() {
    let world = World::new("life");
    let assigned = world.register(&world.key, NAME).unwrap();
    assert_eq!(assigned.device.as_str(), "dev1");
    assert_eq!(
        assigned.hub.to_string(),
        format!("{NAME}:{}", world.endpoints().https.port())
    );

    let owner = Owner::Device {
        hub: assigned.hub.to_string(),
        device: "dev1".into(),
    };
    let tokens = World::tokens(owner, &world.key);
    let registry = Registry::new(world.https(), assigned.device, tokens);
    let pump = ModuleId::new("pump").unwrap();
    let (primary, secondary) = (vec![7; 32], vec![8; 32]);
    let created = registry
        .create(
            &pump,
            &Secret::new(primary.clone()),
            &Secret::new(secondary),
        )
        .unwrap();
    assert!(created.generation_id.is_some());
    let listed = registry.list().unwrap();
    assert!(
        listed
            .iter()
            .any(|m| m.module_id == pump && m.generation_id == created.generation_id)
    );

    let key = Arc::new(SasKey::new(zeroize::Zeroizing::new(primary)).unwrap());
    let mut session = world.session("pump", &key, RETRY);
    session
        .send(
            b"{\"t\":21}",
            &[("$.ct", "application/json"), ("kind", "a b")],
            soon(),
        )
        .unwrap();
    let first = session.next(soon()).unwrap();
    assert!(
        matches!(&first, Event::Desired(d) if d.properties.is_empty()),
        "{first:?}"
    );
    let content = json!({"modulesContent": {
        "$edgeAgent": {"properties.desired": {"schemaVersion": "1.1"}},
        "pump": {"properties.desired": {"speed": 3}}}});
    let (status, body) = world.operator(
        Method::Post,
        "/devices/dev1/applyConfigurationContent?api-version=2021-04-12",
        &content,
    );
    assert_eq!(status, 204, "{}", String::from_utf8_lossy(&body));
    match session.next(soon()).unwrap() {
        Event::Desired(desired) => assert_eq!(desired.properties["speed"], 3),
        Event::Idle => panic!("no change was notified"),
    }
    session.report(&json!({"rpm": 900}), soon()).unwrap();
    let twin = session.twin(soon()).unwrap();
    assert_eq!(twin.reported.properties["rpm"], 900);
    let (status, events) = world.operator(
        Method::Get,
        "/messages/events?api-version=2021-04-12",
        &Value::Null,
    );
    assert_eq!(status, 200);
    let events = String::from_utf8(events).unwrap();
    assert!(
        events.contains("\"a b\"") && events.contains("pump"),
        "{events}"
    );
    session.close();

    registry.delete(&pump).unwrap();
    let gone = registry.get(&pump).unwrap_err();
    assert!(
        matches!(gone, RegistryError::Hub { status: 404, .. }),
        "{gone:?}"
    );
}

#[test]
fn the_real_hub_refuses_a_wrong_key_with_words_we_understand() {
    let world = World::new("wrong");
    let wrong = Arc::new(SasKey::new(zeroize::Zeroizing::new(vec![9; 32])).unwrap());
    let refused = world.register(&wrong, NAME).unwrap_err();
    assert!(
        matches!(refused, DpsError::Refused { status: 401, .. }),
        "{refused:?}"
    );
    let foreign = world.register(&world.key, ".hubs.test").unwrap_err();
    assert!(matches!(foreign, DpsError::ForeignHub(_)), "{foreign:?}");
    // One attempt only: the next would come after the deadline.
    let hour = Duration::from_secs(3600);
    let never = Backoff {
        first: hour,
        cap: hour,
        server_cap: hour,
    };
    let mut session = world.session("$edgeAgent", &wrong, never);
    let Err(MqttError::NotConnected {
        last: Some(last), ..
    }) = session.connect(soon())
    else {
        panic!("a wrong key was accepted");
    };
    assert!(
        matches!(*last, MqttError::Refused(Refusal::Credentials)),
        "{last:?}"
    );
}
