//! Power cuts and failing disks at every step of identityd's stores: A131, A132.
#![expect(
    clippy::unwrap_used,
    reason = "a test stops where its world cannot be built"
)]

use std::collections::BTreeSet;
use std::sync::Arc;

use contract::api::key::KeyHandle;
use contract::bytes::Secret;
use contract::names::{CertId, DeviceId, HostName, KeyId, ModuleId};
use contract::time::{ClockTrust, Now};
use identityd::certs::{Certs, CertsError};
use identityd::config::{Certificates, Identities};
use identityd::keys::{KeyError, Keys};
use identityd::pem::Chain;
use identityd::provision::{Device, Record};
use identityd::store::Store;
use local::files::{Dir, Rules};
use sim::disk::{VirtualDisk, every_cut, every_fault};

/// A key service that is never asked.
struct NoKeys;

const AWAY: KeyError = KeyError::Malformed("nobody is to be asked");

impl Keys for NoKeys {
    fn pair(&self, _: &KeyId) -> Result<KeyHandle, KeyError> {
        Err(AWAY)
    }
    fn key(&self, _: &KeyId) -> Result<KeyHandle, KeyError> {
        Err(AWAY)
    }
    fn create_key(&self, _: &KeyId) -> Result<KeyHandle, KeyError> {
        Err(AWAY)
    }
    fn derive(&self, _: &KeyHandle, _: &[u8]) -> Result<KeyHandle, KeyError> {
        Err(AWAY)
    }
    fn export(&self, _: &KeyHandle) -> Result<Secret, KeyError> {
        Err(AWAY)
    }
    fn hmac(&self, _: &KeyHandle, _: &[u8]) -> Result<[u8; 32], KeyError> {
        Err(AWAY)
    }
    fn ecdsa(&self, _: &KeyHandle, _: &[u8]) -> Result<Vec<u8>, KeyError> {
        Err(AWAY)
    }
    fn rsa(&self, _: &KeyHandle, _: &[u8]) -> Result<Vec<u8>, KeyError> {
        Err(AWAY)
    }
}

fn certs(disk: &VirtualDisk) -> Certs {
    let config: Certificates = toml::from_str("homedir_path = \"/c\"").unwrap();
    let clock = || Now {
        monotonic_ms: 0,
        wall: 0,
        trust: ClockTrust::Floor,
    };
    let dir = Dir::over(disk.dir("/c/certs")).unwrap();
    let rules = Rules::guarded(0);
    let on_damage = Arc::new(|_: &str, _: &str| {});
    Certs::new(
        config,
        dir,
        rules,
        Arc::new(NoKeys),
        Arc::new(clock),
        on_damage,
    )
}

fn certificate() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::default();
    params.self_signed(&key).unwrap().pem()
}

#[test]
fn a131_a132_a_certificate_is_the_old_or_the_new_one() {
    let id = CertId::new("device-id").unwrap();
    let (old, new) = (certificate(), certificate());
    let prepare = |disk: &VirtualDisk| drop(certs(disk).import(&id, &old).unwrap());
    let act = |disk: &VirtualDisk| certs(disk).import(&id, &new).is_ok();
    let check = |disk: &VirtualDisk, acknowledged: bool| {
        let found = certs(disk).read(&id).unwrap().to_pem();
        assert!(
            found == new || (found == old && !acknowledged),
            "{acknowledged}"
        );
    };
    every_cut(prepare, act, check);
    every_fault(prepare, act, check);
}

#[test]
fn a131_a_deleted_certificate_does_not_come_back() {
    let id = CertId::new("device-id").unwrap();
    let old = certificate();
    let prepare = |disk: &VirtualDisk| {
        certs(disk).import(&id, &certificate()).unwrap();
        certs(disk).import(&id, &old).unwrap();
    };
    let act = |disk: &VirtualDisk| certs(disk).delete(&id).is_ok();
    let check = |disk: &VirtualDisk, acknowledged: bool| match certs(disk).read(&id) {
        Ok(found) => assert!(found == Chain::parse(&old).unwrap() && !acknowledged),
        Err(error) => assert!(matches!(error, CertsError::NotFound)),
    };
    every_cut(prepare, act, check);
}

const CONFIG: &str = r#"
    hostname = "dev"
    homedir = "/i"
    principal = [{ uid = 10, name = "one", idtype = ["module"] }]
    [provisioning]
    source = "dps"
    global_endpoint = "https://dps.test"
    scope_id = "0ne1"
    [provisioning.attestation]
    method = "symmetric_key"
    registration_id = "reg-1"
    symmetric_key = "device-id"
"#;

fn store(disk: &VirtualDisk) -> Store {
    let home = Dir::over(disk.dir("/i")).unwrap();
    let below = disk.clone();
    let open = move |names: &[&str]| Dir::over(below.dir(&format!("/i/{}", names.join("/"))));
    Store::over(home, Box::new(open), Arc::new(|_, _| {}))
}

fn device(hub: &str) -> Device {
    let hub = HostName::new(hub).unwrap();
    Device {
        gateway: hub.clone(),
        hub,
        id: DeviceId::new("d1").unwrap(),
    }
}

#[test]
fn a131_a132_a_device_is_at_the_old_or_the_new_hub_and_never_deletes_on_the_others_account() {
    let config: Identities = toml::from_str(CONFIG).unwrap();
    let record = |hub| Record::new(device(hub), &config.provisioning);
    let one: BTreeSet<ModuleId> = [ModuleId::new("one").unwrap()].into();
    let prepare = |disk: &VirtualDisk| {
        let store = store(disk);
        store.put_device(&record("a.test"), false).unwrap();
        store.put_previous(&config).unwrap();
    };
    let act = |disk: &VirtualDisk| store(disk).put_device(&record("b.test"), true).is_ok();
    let check = |disk: &VirtualDisk, acknowledged: bool| {
        let store = store(disk);
        let found = store.device().unwrap().expect("a record").device;
        if found == device("b.test") {
            assert!(
                store.previous().unwrap().is_empty(),
                "modules of the old hub"
            );
        } else {
            assert_eq!(found, device("a.test"));
            assert!(!acknowledged);
            let previous = store.previous().unwrap();
            assert!(previous.is_empty() || previous == one);
        }
    };
    every_cut(prepare, act, check);
    every_fault(prepare, act, check);
}
