//! Provisioning, module identities and their keys, over a cloud that the test decides.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use contract::api::identity::{Identity, LocalIdentity, LocalOptions};
use contract::audit::{Decision, Entry, Event};
use contract::bytes::Secret;
use contract::names::{CertId, DeviceId, Generation, HostName, ModuleId};
use contract::refusal::{Class, Refusal};
use contract::time::{ClockTrust, Now};
use identityd::certs::CertsError;
use identityd::cloud::{Cloud, CloudError, Hub, Known, Network};
use identityd::config;
use identityd::error::IdentityError;
use identityd::identities::{Identities, Issuing, Parts};
use identityd::keys::Keys;
use identityd::provision::Device;
use identityd::store::Store;
use local::files::{Dir, Rules};
use net::dps::{Assigned, DpsError};
use net::registry::RegistryError;
use net::token::TokenError;

use crate::certificates;
use crate::support::{self, Folder, SoftKeys};

/// Hubs and a provisioning service, as one test wants them.
#[derive(Default)]
struct Sky {
    /// What is assigned; nothing: the service is away.
    assigned: Option<(&'static str, &'static str)>,
    /// Hubs that answer, with their modules: generation and keys.
    hubs: BTreeMap<String, BTreeMap<String, Stored>>,
    /// What every hub that is not away says no to.
    refuses: Option<u16>,
    /// Every call, in order.
    calls: Vec<String>,
    generation: u32,
}

#[derive(Clone, Default, PartialEq, Debug)]
struct Stored {
    generation: String,
    keys: Option<[Vec<u8>; 2]>,
}

#[derive(Clone, Default)]
struct Above(Arc<Mutex<Sky>>);

fn away() -> CloudError {
    RegistryError::Unavailable {
        status: 503,
        message: "away".to_owned(),
    }
    .into()
}

fn says(status: u16) -> CloudError {
    RegistryError::Hub {
        status,
        message: "no".to_owned(),
    }
    .into()
}

impl Cloud for Above {
    fn register(&self) -> Result<Assigned, CloudError> {
        let mut sky = self.0.lock().unwrap();
        sky.calls.push("register".to_owned());
        let (hub, device) = sky.assigned.ok_or(DpsError::Stopped)?;
        Ok(Assigned {
            hub: HostName::new(hub).unwrap(),
            device: DeviceId::new(device).unwrap(),
        })
    }

    fn hub(&self, device: &Device) -> Box<dyn Hub> {
        Box::new(At {
            sky: self.clone(),
            hub: device.hub.to_string(),
        })
    }
}

struct At {
    sky: Above,
    hub: String,
}

impl At {
    fn with<T>(
        &self,
        call: &str,
        work: impl FnOnce(&mut u32, &mut BTreeMap<String, Stored>) -> Result<T, CloudError>,
    ) -> Result<T, CloudError> {
        let sky = &mut *self.sky.0.lock().unwrap();
        sky.calls.push(format!("{call} at {}", self.hub));
        let refuses = sky.refuses;
        let modules = sky.hubs.get_mut(&self.hub).ok_or_else(away)?;
        match refuses {
            Some(status) => Err(says(status)),
            None => work(&mut sky.generation, modules),
        }
    }
}

fn known(id: &str, stored: &Stored) -> Known {
    Known {
        id: ModuleId::new(id).unwrap(),
        generation: Some(Generation::new(stored.generation.clone()).unwrap()),
        managed_by: None,
    }
}

impl Hub for At {
    fn list(&self) -> Result<Vec<Known>, CloudError> {
        self.with("list", |_, all| {
            Ok(all.iter().map(|(id, one)| known(id, one)).collect())
        })
    }

    fn read(&self, id: &ModuleId) -> Result<Known, CloudError> {
        self.with(&format!("read {id}"), |_, all| {
            all.get(id.as_str())
                .map(|one| known(id.as_str(), one))
                .ok_or_else(|| says(404))
        })
    }

    fn create(&self, id: &ModuleId) -> Result<Known, CloudError> {
        self.with(&format!("create {id}"), |next, all| {
            *next += 1;
            let one = Stored {
                generation: format!("g{next}"),
                keys: None,
            };
            all.insert(id.to_string(), one.clone());
            Ok(known(id.as_str(), &one))
        })
    }

    fn set_keys(&self, id: &ModuleId, keys: &[Secret; 2]) -> Result<Known, CloudError> {
        self.with(&format!("keys {id}"), |_, all| {
            let one = all.get_mut(id.as_str()).ok_or_else(|| says(404))?;
            one.keys = Some([keys[0].expose().to_vec(), keys[1].expose().to_vec()]);
            Ok(known(id.as_str(), one))
        })
    }

    fn delete(&self, id: &ModuleId) -> Result<(), CloudError> {
        self.with(&format!("delete {id}"), |_, all| {
            all.remove(id.as_str()).map(drop).ok_or_else(|| says(404))
        })
    }
}

struct NoIssuing;

impl Issuing for NoIssuing {
    fn issue(&self, _: &CertId, _: &str) -> Result<String, IdentityError> {
        Err(IdentityError::NoModule)
    }
}

struct World {
    folder: Folder,
    keys: Arc<SoftKeys>,
    above: Above,
    entries: Arc<Mutex<Vec<Entry>>>,
    issuing: Arc<dyn Issuing>,
    /// The audit log takes nothing more.
    full: bool,
}

impl World {
    fn new(name: &str) -> Self {
        let world = Self {
            folder: Folder::new(name),
            keys: Arc::new(SoftKeys::default()),
            above: Above::default(),
            entries: Arc::default(),
            issuing: Arc::new(NoIssuing),
            full: false,
        };
        world.keys.put("device-id", &[7; 32]);
        world
    }

    /// The daemon, started with this configuration; each call is a restart.
    fn start(&self, config: &str) -> Identities {
        let config = format!("hostname = \"dev\"\nhomedir = \"/nowhere\"\n{config}");
        let config: config::Identities = toml::from_str(&config).unwrap();
        let rules = Rules::guarded(support::uid());
        let (entries, full) = (Arc::clone(&self.entries), self.full);
        let identities = Identities::new(Parts {
            config,
            store: Store::new(
                Dir::open(self.folder.path(), rules).unwrap(),
                rules,
                Arc::new(|_, _| {}),
            ),
            keys: Arc::<SoftKeys>::clone(&self.keys),
            cloud: Box::new(self.above.clone()),
            issuing: Arc::clone(&self.issuing),
            journal: Arc::new(move |entry| -> Result<(), Refusal> {
                if full && entry.decision == Decision::Allowed {
                    return Err(Refusal::new(Class::Unavailable, "full"));
                }
                entries.lock().unwrap().push(entry);
                Ok(())
            }),
            rules,
        });
        identities.start().unwrap();
        identities
    }

    fn hub_appears(&self, hub: &str) {
        self.above
            .0
            .lock()
            .unwrap()
            .hubs
            .entry(hub.to_owned())
            .or_default();
    }

    fn hub_vanishes(&self, hub: &str) -> BTreeMap<String, Stored> {
        self.above.0.lock().unwrap().hubs.remove(hub).unwrap()
    }

    fn assigns(&self, hub: &'static str) {
        self.above.0.lock().unwrap().assigned = Some((hub, "d1"));
    }

    fn at_hub(&self, hub: &str) -> BTreeMap<String, Stored> {
        self.above.0.lock().unwrap().hubs[hub].clone()
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.above.0.lock().unwrap().calls)
    }

    fn events(&self) -> Vec<(Event, Decision)> {
        let entries = std::mem::take(&mut *self.entries.lock().unwrap());
        entries.into_iter().map(|e| (e.event, e.decision)).collect()
    }
}

const DPS: &str = r#"
    [provisioning]
    source = "dps"
    global_endpoint = "https://dps.test"
    scope_id = "0ne1"
    allowed_hubs = [".hubs.test"]
    [provisioning.attestation]
    method = "symmetric_key"
    registration_id = "reg-1"
    symmetric_key = "device-id"
"#;

fn with_modules(names: &[&str]) -> String {
    let rows: Vec<String> = names
        .iter()
        .enumerate()
        .map(|(n, name)| {
            format!(
                "{{ uid = {}, name = \"{name}\", idtype = [\"module\"] }}",
                n + 10
            )
        })
        .collect();
    format!("principal = [{}]\n{DPS}", rows.join(", "))
}

fn hub_of(identities: &Identities) -> Option<String> {
    match identities.device() {
        Ok(Identity::Aziot(device)) => Some(device.hub_name),
        _ => None,
    }
}

fn id(text: &str) -> ModuleId {
    ModuleId::new(text).unwrap()
}

fn generation(identity: &Identity) -> Option<&str> {
    match identity {
        Identity::Aziot(one) => one.gen_id.as_deref(),
        Identity::Local(_) => None,
    }
}

#[test]
fn a_device_enrols_once_and_serves_from_its_record_ever_after() {
    let world = World::new("enrol");
    let first = world.start(DPS);
    assert!(matches!(first.device(), Err(IdentityError::NotYet)));
    assert!(first.settle().is_err(), "the service is away");
    assert_eq!(
        world.events(),
        [(Event::ProvisioningRefused, Decision::Refused)]
    );

    world.hub_appears("a.hubs.test");
    world.assigns("a.hubs.test");
    first.settle().unwrap();
    assert_eq!(hub_of(&first).as_deref(), Some("a.hubs.test"));
    assert_eq!(
        world.events(),
        [(Event::ProvisioningChanged, Decision::Allowed)]
    );
    world.calls();

    // Everything is away; the next start needs none of it.
    world.hub_vanishes("a.hubs.test");
    let second = world.start(DPS);
    assert_eq!(hub_of(&second).as_deref(), Some("a.hubs.test"));
    assert!(world.calls().is_empty());
    let Identity::Aziot(device) = second.device().unwrap() else {
        panic!("not aziot")
    };
    assert_eq!(
        (device.device_id.as_str(), device.gateway_host.as_str()),
        ("d1", "a.hubs.test")
    );
    let handle = device.auth.unwrap().key_handle.unwrap();
    assert!(world.keys.hmac(&handle, b"x").is_ok());
}

#[test]
fn a72_a_new_hub_replaces_the_old_one_only_after_it_answered() {
    let world = World::new("a72");
    world.hub_appears("a.hubs.test");
    world.assigns("a.hubs.test");
    let identities = world.start(DPS);
    identities.settle().unwrap();
    world.events();

    world.assigns("b.hubs.test");
    assert!(matches!(
        identities.reprovision("uid 0"),
        Err(IdentityError::Hub(_))
    ));
    assert_eq!(
        hub_of(&identities).as_deref(),
        Some("a.hubs.test"),
        "b is silent"
    );
    let want = [
        (Event::ManagementDone, Decision::Allowed),
        (Event::ProvisioningRefused, Decision::Refused),
    ];
    assert_eq!(world.events(), want);
    assert_eq!(
        hub_of(&world.start(DPS)).as_deref(),
        Some("a.hubs.test"),
        "and so is the record"
    );

    world.hub_appears("b.hubs.test");
    identities.reprovision("uid 0").unwrap();
    assert_eq!(hub_of(&identities).as_deref(), Some("b.hubs.test"));
    assert_eq!(hub_of(&world.start(DPS)).as_deref(), Some("b.hubs.test"));

    world.above.0.lock().unwrap().assigned = None;
    assert!(matches!(
        identities.reprovision("uid 0"),
        Err(IdentityError::Dps(_))
    ));
    assert_eq!(
        hub_of(&identities).as_deref(),
        Some("b.hubs.test"),
        "no answer changes nothing"
    );
}

#[test]
fn host_processes_get_modules_and_losing_the_record_rotates_none() {
    let world = World::new("reconcile");
    world.hub_appears("a.hubs.test");
    world.assigns("a.hubs.test");
    world
        .start(&with_modules(&["one", "two"]))
        .settle()
        .unwrap();
    let before = world.at_hub("a.hubs.test");
    assert_eq!(before.len(), 2);
    let base = world
        .keys
        .create_key(&contract::names::KeyId::new("aziot_identityd_master_id").unwrap())
        .unwrap();
    let text = format!("one:{}:primary", before["one"].generation);
    let derived = world.keys.derive(&base, text.as_bytes()).unwrap();
    let key = world.keys.export(&derived).unwrap();
    assert_eq!(before["one"].keys.as_ref().unwrap()[0], key.expose());

    // prev_state is gone: the same generations, keys set again.
    std::fs::remove_file(world.folder.path().join("prev_state")).unwrap();
    world.calls();
    world
        .start(&with_modules(&["one", "two"]))
        .settle()
        .unwrap();
    assert_eq!(world.at_hub("a.hubs.test"), before);
    assert!(
        !world
            .calls()
            .iter()
            .any(|call| call.starts_with("delete") || call.starts_with("create"))
    );

    // A process taken out of the configuration loses its module; nobody else's is touched.
    let theirs = Stored {
        generation: "x".to_owned(),
        keys: None,
    };
    let at = |sky: &Above| {
        sky.0
            .lock()
            .unwrap()
            .hubs
            .get_mut("a.hubs.test")
            .unwrap()
            .insert("agent".to_owned(), theirs.clone())
    };
    at(&world.above);
    world.start(&with_modules(&["one"])).settle().unwrap();
    let after = world.at_hub("a.hubs.test");
    assert_eq!(after.keys().collect::<Vec<_>>(), ["agent", "one"]);
    assert_eq!(after["agent"], theirs);

    // Another hub: what was ours at the old one is no reason to delete anything at the new one.
    world.hub_appears("b.hubs.test");
    world
        .above
        .0
        .lock()
        .unwrap()
        .hubs
        .get_mut("b.hubs.test")
        .unwrap()
        .insert("one".to_owned(), theirs.clone());
    world.assigns("b.hubs.test");
    world
        .start(&with_modules(&[]))
        .reprovision("uid 0")
        .unwrap();
    assert_eq!(world.at_hub("b.hubs.test")["one"], theirs);
}

#[test]
fn modules_are_read_from_the_record_while_the_hub_is_away() {
    let world = World::new("offline");
    world.hub_appears("a.hubs.test");
    world.assigns("a.hubs.test");
    let identities = world.start(DPS);
    identities.settle().unwrap();
    let made = identities
        .create_module("uid 0", &id("$edgeAgent"))
        .unwrap();
    let first = generation(&made).unwrap().to_owned();
    let Identity::Aziot(agent) = made else {
        panic!("not aziot")
    };
    let handle = agent.auth.unwrap().key_handle.unwrap();
    let stored = world.at_hub("a.hubs.test")["$edgeAgent"].clone();
    assert_eq!(
        world.keys.export(&handle).unwrap().expose(),
        stored.keys.unwrap()[0]
    );

    let modules = world.hub_vanishes("a.hubs.test");
    for restarted in [false, true] {
        let identities = if restarted {
            &world.start(DPS)
        } else {
            &identities
        };
        let read = identities.module(&id("$edgeAgent")).unwrap();
        assert_eq!(generation(&read), Some(first.as_str()));
        assert_eq!(identities.modules().unwrap().len(), 1);
        assert!(matches!(
            identities.module(&id("other")),
            Err(IdentityError::Hub(_))
        ));
        for failed in [
            identities.create_module("uid 0", &id("other")).map(drop),
            identities
                .update_module("uid 0", &id("$edgeAgent"))
                .map(drop),
            identities.delete_module("uid 0", &id("$edgeAgent")),
        ] {
            assert!(matches!(failed, Err(IdentityError::Hub(_))));
        }
    }
    // It is back, and the module is not: the hub's word counts.
    world
        .above
        .0
        .lock()
        .unwrap()
        .hubs
        .insert("a.hubs.test".to_owned(), modules);
    identities
        .delete_module("uid 0", &id("$edgeAgent"))
        .unwrap();
    assert!(matches!(
        identities.module(&id("$edgeAgent")),
        Err(IdentityError::Hub(_))
    ));
    assert!(identities.modules().unwrap().is_empty());
}

#[test]
fn the_cache_comes_first_where_it_is_preferred() {
    let world = World::new("prefer");
    world.hub_appears("a.hubs.test");
    world.assigns("a.hubs.test");
    let identities = world.start(&format!("prefer_module_identity_cache = true\n{DPS}"));
    identities.settle().unwrap();
    identities.create_module("uid 0", &id("m")).unwrap();
    world.calls();
    identities.module(&id("m")).unwrap();
    identities.modules().unwrap();
    assert!(world.calls().is_empty(), "no call to the hub");
    assert!(identities.module(&id("n")).is_err());
    assert_eq!(world.calls(), ["read n at a.hubs.test"]);
}

#[test]
fn a_hub_that_refuses_the_device_is_asked_for_again_at_the_service() {
    let world = World::new("refused");
    world.hub_appears("a.hubs.test");
    world.assigns("a.hubs.test");
    world.start(DPS).settle().unwrap();
    world.calls();
    world.above.0.lock().unwrap().refuses = Some(401);
    let identities = world.start(DPS);
    assert!(identities.settle().is_err());
    assert!(world.calls().contains(&"register".to_owned()));
    assert_eq!(hub_of(&identities).as_deref(), Some("a.hubs.test"));
    // Away is not refused: the record goes on, and nobody is asked.
    world.above.0.lock().unwrap().refuses = Some(500);
    let _ = world.hub_vanishes("a.hubs.test");
    let identities = world.start(DPS);
    world.calls();
    assert!(identities.settle().is_err());
    assert_eq!(world.calls(), ["list at a.hubs.test"]);
}

#[test]
fn a134_damaged_records_fall_back_or_are_survived() {
    let world = World::new("a134-records");
    world.hub_appears("a.hubs.test");
    world.hub_appears("b.hubs.test");
    world.assigns("a.hubs.test");
    let identities = world.start(&with_modules(&["one"]));
    identities.settle().unwrap();
    world.assigns("b.hubs.test");
    identities.reprovision("uid 0").unwrap();
    let before = world.at_hub("b.hubs.test");
    for damaged in ["", "\0\0\0\0\0\0", "hub_name = \"a.hu"] {
        world.folder.put("device_info", damaged);
        let previous = hub_of(&world.start(&with_modules(&["one"])));
        assert_eq!(
            previous.as_deref(),
            Some("a.hubs.test"),
            "the previous generation"
        );
    }
    world.folder.put("device_info.prev", "");
    world.folder.put("prev_state", "?");
    world.folder.put("prev_state.prev", "?");
    let identities = world.start(&with_modules(&["one"]));
    assert!(matches!(identities.device(), Err(IdentityError::NotYet)));
    identities.settle().unwrap();
    assert_eq!(hub_of(&identities).as_deref(), Some("b.hubs.test"));
    assert_eq!(world.at_hub("b.hubs.test"), before, "no module was rotated");
    // One damaged module file is one absent module, not an empty list.
    identities.create_module("uid 0", &id("two")).unwrap();
    let dir = newest_modules(world.folder.path(), 2);
    let broken = dir.iter().find(|name| name.contains("/one-")).unwrap();
    world.folder.put(broken, "{");
    world.hub_vanishes("b.hubs.test");
    let identities = world.start(&with_modules(&["one"]));
    assert_eq!(identities.modules().unwrap().len(), 1);
}

/// Names of the module files of the device with that many of them, relative to the folder.
fn newest_modules(folder: &Path, count: usize) -> Vec<String> {
    let names = |path: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(path).unwrap();
        entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    let all = folder.join("modules");
    for device in names(&all) {
        let files = names(&all.join(&device));
        if files.iter().filter(|f| !f.ends_with(".prev")).count() == count {
            return files
                .iter()
                .map(|file| format!("modules/{device}/{file}"))
                .collect();
        }
    }
    panic!("no device with {count} modules")
}

#[test]
fn manual_and_no_provisioning_need_no_network() {
    let world = World::new("manual");
    let manual = r#"
        [provisioning]
        source = "manual"
        iothub_hostname = "hub.test:8443"
        local_gateway_hostname = "parent"
        device_id = "d9"
        [provisioning.authentication]
        method = "sas"
        device_id_pk = "device-id"
    "#;
    let identities = world.start(manual);
    let Identity::Aziot(device) = identities.device().unwrap() else {
        panic!("not aziot")
    };
    assert_eq!(
        (
            device.hub_name.as_str(),
            device.gateway_host.as_str(),
            device.device_id.as_str()
        ),
        ("hub.test:8443", "parent", "d9")
    );
    let none = world.start("[provisioning]\nsource = \"none\"");
    assert!(matches!(none.device(), Err(IdentityError::NoDevice)));
    none.settle().unwrap();
    assert!(world.calls().is_empty());
}

/// Whoever runs this keeps certificates under two names, and one of them is an issuer's.
fn certificates_config() -> String {
    let uid = support::uid();
    format!("{CERTIFICATES}\n[[principal]]\nuid = {uid}\ncerts = [\"server\", \"local-ca\"]")
}

const CERTIFICATES: &str = r#"
    [cert_issuance]
    local_ca = { cert = "local-ca", pk = "local-ca" }
    [cert_issuance.local-ca]
    method = "self_signed"
    [cert_issuance.server]
    method = "local_ca"
"#;

#[test]
fn local_identities_come_with_a_key_and_a_certificate_of_their_role() {
    let issuing = certificates::World::new("local-certs", &certificates_config());
    let root = issuing.keys.ec("local-ca");
    let csr = certificates::authority_request(&issuing.keys, &root, "home CA");
    issuing
        .certs
        .issue(&CertId::new("local-ca").unwrap(), &csr, None)
        .unwrap();
    let mut world = World::new("local");
    world.issuing = Arc::new(issuing.later(&certificates_config(), certificates::NOW));
    let identities = world.start(
        r#"
        localid = { domain = "home.lan" }
        principal = [{ uid = 9, name = "server", idtype = ["local"], localid = { type = "x509", attributes = "server" } }]
        [provisioning]
        source = "none"
        "#,
    );
    let Identity::Local(LocalIdentity { module_id, auth }) =
        identities.local("uid 9", &id("server")).unwrap()
    else {
        panic!("not local")
    };
    assert_eq!(module_id.as_str(), "server");
    assert!(
        auth.private_key
            .expose()
            .starts_with("-----BEGIN PRIVATE KEY-----")
    );
    let path = world.folder.put("local.pem", &auth.certificate);
    let (ok, text) = support::openssl(&["x509", "-noout", "-text", "-in", path.to_str().unwrap()]);
    assert!(ok && text.contains("CN = server.dev.home.lan"), "{text}");
    assert!(
        text.contains("TLS Web Server Authentication, TLS Web Client Authentication"),
        "{text}"
    );
    assert_eq!(auth.certificate.matches("BEGIN CERTIFICATE").count(), 2);
    assert_eq!(auth.expiration, "2026-12-24T00:00:00+00:00");
    let options: Option<&LocalOptions> = None;
    assert!(matches!(
        identities.create_local("uid 9", &id("server"), options),
        Err(IdentityError::LocalExists(_))
    ));
    assert!(matches!(
        identities.local("uid 9", &id("other")),
        Err(IdentityError::NoModule)
    ));
    for name in ["local-ca", "not-listed"] {
        let refused = identities.create_local("uid 9", &id(name), options);
        let own = support::uid() == 0 && name == "not-listed";
        match refused {
            Err(IdentityError::NotOurs(_)) => assert!(!own, "{name}"),
            // Root may write everywhere; nobody is configured to issue it.
            Err(IdentityError::Certs(CertsError::NoIssuance { .. })) => assert!(own, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

const LOCAL: &str = r#"
    localid = { domain = "home.lan" }
    principal = [{ uid = 9, name = "server", idtype = ["local"], localid = { type = "x509", attributes = "server" } }]
    [provisioning]
    source = "none"
"#;

/// Issues nothing, and says how much was on record when it was asked.
struct Watching(Arc<Mutex<Vec<Entry>>>, Arc<Mutex<Vec<usize>>>);

impl Issuing for Watching {
    fn issue(&self, _: &CertId, _: &str) -> Result<String, IdentityError> {
        self.1.lock().unwrap().push(self.0.lock().unwrap().len());
        Err(IdentityError::BadCertificate)
    }
}

#[test]
fn a_local_identity_is_on_record_before_it_is_issued_and_again_when_it_fails() {
    let mut world = World::new("local-record");
    let asked = Arc::new(Mutex::new(Vec::new()));
    world.issuing = Arc::new(Watching(Arc::clone(&world.entries), Arc::clone(&asked)));
    let identities = world.start(LOCAL);
    let failed = identities.create_local("uid 5", &id("m"), None);
    assert!(matches!(failed, Err(IdentityError::BadCertificate)));
    assert_eq!(*asked.lock().unwrap(), [1]);
    let who: Vec<String> = world
        .entries
        .lock()
        .unwrap()
        .iter()
        .map(|e| e.principal.clone())
        .collect();
    assert_eq!(who, ["uid 5", "uid 5"]);
    let want = [
        (Event::CertIssued, Decision::Allowed),
        (Event::CertRefused, Decision::Refused),
    ];
    assert_eq!(world.events(), want);
    // Nothing is issued that cannot be recorded.
    world.full = true;
    let refused = world.start(LOCAL).local("uid 9", &id("server"));
    assert!(matches!(refused, Err(IdentityError::Audit(_))));
    assert_eq!(asked.lock().unwrap().len(), 1);
}

#[test]
fn provisioning_and_module_changes_are_on_record_before_they_are_made() {
    let mut world = World::new("records");
    world.hub_appears("a.hubs.test");
    world.assigns("a.hubs.test");
    let identities = world.start(DPS);
    identities.settle().unwrap();
    let changed = (Event::ProvisioningChanged, Decision::Allowed);
    assert_eq!(world.events(), [changed]);
    identities.create_module("uid 5", &id("m")).unwrap();
    identities.update_module("uid 5", &id("m")).unwrap();
    identities.delete_module("uid 5", &id("m")).unwrap();
    assert_eq!(world.events(), [changed; 3]);
    // The answer is the hub it has: only that somebody asked is new.
    identities.reprovision("uid 5").unwrap();
    assert_eq!(world.events(), [(Event::ManagementDone, Decision::Allowed)]);
    world.full = true;
    let identities = world.start(DPS);
    world.calls();
    let refused = [
        identities.create_module("uid 5", &id("m")).map(drop),
        identities.update_module("uid 5", &id("m")).map(drop),
        identities.delete_module("uid 5", &id("m")),
        identities.reprovision("uid 5"),
    ];
    for answer in refused {
        assert!(matches!(answer, Err(IdentityError::Audit(_))), "{answer:?}");
    }
    assert_eq!(world.calls(), [""; 0]);
}

#[test]
fn changed_principals_are_taken_without_a_restart() {
    let world = World::new("reload");
    world.hub_appears("a.hubs.test");
    world.assigns("a.hubs.test");
    let identities = world.start(&with_modules(&["one"]));
    identities.settle().unwrap();
    let config = |text: &str| -> config::Identities {
        toml::from_str(&format!(
            "hostname = \"dev\"\nhomedir = \"/nowhere\"\n{text}"
        ))
        .unwrap()
    };
    identities.reconfigure(config(&with_modules(&["two"])));
    identities.settle().unwrap();
    let modules = world.at_hub("a.hubs.test");
    assert_eq!(modules.keys().collect::<Vec<_>>(), ["two"]);
    assert!(matches!(identities.who(10), config::Who::Host(p) if p.name == id("two")));
    // The settings that a record belongs to wait for a restart.
    identities.reconfigure(config("[provisioning]\nsource = \"none\""));
    assert_eq!(hub_of(&identities).as_deref(), Some("a.hubs.test"));
    assert_eq!(hub_of(&world.start(DPS)).as_deref(), Some("a.hubs.test"));
}

#[test]
fn no_token_is_made_on_a_clock_known_to_be_wrong() {
    let folder = Folder::new("clock");
    let key = rcgen::KeyPair::generate().unwrap();
    let root = rcgen::CertificateParams::default()
        .self_signed(&key)
        .unwrap();
    let roots = folder.put("roots.pem", &root.pem());
    let roots = format!(
        "trusted_certs = {:?}\nscope_id",
        roots.display().to_string()
    );
    let text = DPS
        .replace("dps.test", "127.0.0.1:1")
        .replace("scope_id", &roots);
    let text = format!("hostname = \"dev\"\nhomedir = \"/nowhere\"\n{text}");
    let config: config::Identities = toml::from_str(&text).unwrap();
    let keys = Arc::new(SoftKeys::default());
    keys.put("device-id", &[7; 32]);
    let network = |trust| {
        let clock = move || Now {
            monotonic_ms: 0,
            wall: certificates::NOW,
            trust,
        };
        let rules = Rules::guarded(support::uid());
        // Nobody has patience here: a call that finds nobody is not made again.
        let wait = Arc::new(|_| false);
        Network::new(
            config.clone(),
            Arc::<SoftKeys>::clone(&keys),
            Arc::new(clock),
            rules,
            wait,
        )
    };
    let floor = network(ClockTrust::Floor);
    assert!(matches!(
        floor.register(),
        Err(CloudError::Dps(DpsError::Token(TokenError::Clock)))
    ));
    let hub = HostName::new("127.0.0.1:1").unwrap();
    let device = Device {
        gateway: hub.clone(),
        hub,
        id: DeviceId::new("d1").unwrap(),
    };
    let refused = floor.hub(&device).list();
    assert!(matches!(
        refused,
        Err(CloudError::Hub(RegistryError::Token(TokenError::Clock)))
    ));
    assert!(
        refused.unwrap_err().is_offline(),
        "the last record counts meanwhile"
    );
    let network = network(ClockTrust::Network);
    assert!(matches!(
        network.hub(&device).list(),
        Err(CloudError::Hub(RegistryError::Network(_)))
    ));
}
