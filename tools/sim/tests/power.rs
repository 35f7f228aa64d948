//! Power cuts and failing disks at every step of every store: A131, A132, A134, A142.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use contract::api::key::{self as api, KeyHandle, SignAlgorithm, SignParameters, Usage};
use contract::audit::{Decision, Entry, Event};
use contract::bytes::{Bytes, Secret};
use contract::endpoint::{Ask, Empty};
use contract::names::KeyId;
use contract::policy::{Policy, Purposes, Row};
use contract::refusal::{Class, Refusal};
use contract::time::{ClockSource, ClockTrust, Now, Reading};
use keyd::daemon::{Keyd, User};
use keyd::store::Store;
use keyd::{keys, pairs, sign};
use local::audit::{Audit, Limits, verify_dir};
use local::clock::Clock;
use local::files::Dir;
use local::records::{self, Record};
use serde::{Deserialize, Serialize};
use sim::disk::{Fault, Times, VirtualDisk, every_cut, every_fault};

fn dir(disk: &VirtualDisk) -> Dir {
    Dir::over(disk.dir("state")).unwrap()
}

#[test]
fn a131_a132_a_replaced_file_is_the_old_or_the_new_one() {
    let old = |disk: &VirtualDisk| {
        dir(disk).replace("f", b"older", 0o600).unwrap();
        dir(disk).replace("f", b"old content", 0o600).unwrap();
    };
    let act = |disk: &VirtualDisk| {
        Dir::over(disk.dir("state")).is_ok_and(|d| d.replace("f", b"new", 0o600).is_ok())
    };
    let check = |disk: &VirtualDisk, acknowledged: bool| {
        let dir = dir(disk);
        let now = dir.read("f", 100).unwrap().unwrap();
        assert!(
            now == b"new" || (!acknowledged && now == b"old content"),
            "{now:?}"
        );
        let before = dir.read_previous("f", 100).unwrap().unwrap();
        // After a failed attempt and another one it is the failed one's, which is the same.
        let known = [&b"older"[..], b"old content", b"new"];
        assert!(known.contains(&&before[..]), "{before:?}");
        assert_eq!(dir.list().unwrap().len(), 1);
    };
    assert!(every_cut(old, act, check) >= 6);
    every_fault(old, act, check);
    // The first of its name: absent or whole.
    let check = |disk: &VirtualDisk, acknowledged: bool| match dir(disk).read("f", 100).unwrap() {
        Some(now) => assert_eq!(now, b"new"),
        None => assert!(!acknowledged),
    };
    every_cut(|_| {}, act, check);
    every_fault(|_| {}, act, check);
}

#[test]
fn a131_a132_a_deleted_file_is_there_or_gone_and_a_moved_one_at_one_place() {
    let prepare = |disk: &VirtualDisk| {
        dir(disk).replace("f", b"older", 0o600).unwrap();
        dir(disk).replace("f", b"old", 0o600).unwrap();
        dir(disk).replace("g", b"target", 0o600).unwrap();
    };
    let delete =
        |disk: &VirtualDisk| Dir::over(disk.dir("state")).is_ok_and(|d| d.delete("f").is_ok());
    let check = |disk: &VirtualDisk, acknowledged: bool| {
        let now = dir(disk).read("f", 100).unwrap();
        assert!(now.is_none() || (!acknowledged && now.as_deref() == Some(b"old")));
        let previous = dir(disk).read_previous("f", 100).unwrap();
        assert!(!acknowledged || previous.is_none());
    };
    every_cut(prepare, delete, check);
    every_fault(prepare, delete, check);
    let rename = |disk: &VirtualDisk| {
        Dir::over(disk.dir("state")).is_ok_and(|d| match d.read("f", 100) {
            Ok(None) => d.sync().is_ok(),
            _ => d.rename("f", "g").is_ok(),
        })
    };
    let check = |disk: &VirtualDisk, acknowledged: bool| {
        let read = |name| dir(disk).read(name, 100).unwrap();
        match (read("f").as_deref(), read("g").as_deref()) {
            (None, Some(b"old")) => {}
            (Some(b"old"), Some(b"target")) => assert!(!acknowledged),
            other => panic!("{other:?}"),
        }
    };
    every_cut(prepare, rename, check);
    every_fault(prepare, rename, check);
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Counter {
    value: u64,
}

impl Record for Counter {
    const KIND: &'static str = "counter";
    const VERSION: u32 = 1;
}

#[test]
fn a131_a132_a_record_never_starts_empty() {
    let prepare = |disk: &VirtualDisk| {
        records::write(&dir(disk), "c", &Counter { value: 1 }).unwrap();
    };
    let act = |disk: &VirtualDisk| {
        Dir::over(disk.dir("state"))
            .is_ok_and(|d| records::write(&d, "c", &Counter { value: 2 }).is_ok())
    };
    let check = |disk: &VirtualDisk, acknowledged: bool| {
        let (record, _) = records::read::<Counter>(&dir(disk), "c").unwrap().unwrap();
        assert!(record.value == 2 || (!acknowledged && record.value == 1));
    };
    every_cut(prepare, act, check);
    every_fault(prepare, act, check);
}

const NOW: Now = Now {
    monotonic_ms: 1000,
    wall: 1_795_000_000,
    trust: ClockTrust::Network,
};

fn audit(disk: &VirtualDisk) -> Option<Audit> {
    let limits = Limits {
        segment: 1500,
        total: 1_000_000,
    };
    Audit::open(Dir::over(disk.dir("audit")).ok()?, "boot", limits, &NOW).ok()
}

#[test]
fn a142_acknowledged_records_are_kept_and_the_chain_goes_on() {
    let entry = |object: &str| Entry {
        object: object.to_owned(),
        ..Entry::new(Event::KeyCreated, Decision::Allowed, "uid 1")
    };
    // Some records, over the end of a segment.
    let prepare = |disk: &VirtualDisk| {
        let log = audit(disk).unwrap();
        for n in 0..5 {
            log.record(&NOW, entry(&format!("before {n}"))).unwrap();
        }
    };
    let act = |disk: &VirtualDisk| {
        audit(disk)
            .is_some_and(|log| (0..4).all(|n| log.record(&NOW, entry(&format!("new {n}"))).is_ok()))
    };
    let count = |disk: &VirtualDisk, word: &str| {
        let dir = Dir::over(disk.dir("audit")).unwrap();
        let names = dir.list().unwrap();
        let texts = names
            .iter()
            .map(|n| dir.read(n, 1_000_000).unwrap().unwrap());
        let all = texts.map(|t| String::from_utf8_lossy(&t).matches(word).count());
        all.sum::<usize>()
    };
    let check = |disk: &VirtualDisk, acknowledged: bool| {
        let log = audit(disk).unwrap();
        log.record(&NOW, entry("after")).unwrap();
        let report = verify_dir(&Dir::over(disk.dir("audit")).unwrap(), None).unwrap();
        assert_eq!(report.problem, None);
        assert_eq!(count(disk, "before"), 5);
        assert!(!acknowledged || count(disk, "new") >= 4);
        assert_eq!(count(disk, "after"), 1);
    };
    every_cut(prepare, act, check);
    every_fault(prepare, act, check);
}

const ALICE: User = User { uid: 1000 };

fn id(text: &str) -> KeyId {
    KeyId::new(text).unwrap()
}

fn open(disk: &VirtualDisk) -> Option<Keyd> {
    let dir = |name| Dir::over(disk.dir(name)).ok();
    let source = || Reading {
        monotonic_ms: 1000,
        wall: 1_795_000_000,
        source: ClockSource::Kept,
    };
    let clock = Clock::with_source(dir("home"), Box::new(source)).ok()?;
    let audit = Audit::open(dir("audit")?, "boot", Limits::default(), &clock.now()).ok()?;
    let store = Store::open(dir("keys")?, std::collections::BTreeMap::new(), 1000).ok()?;
    let policy = Policy {
        rows: vec![Row {
            uid: 1000,
            keys: vec!["*".to_owned()],
            purposes: Purposes::USUAL,
            delegates: vec![],
            replace: true,
        }],
        root_may_use_keys: false,
    };
    Keyd::new(dir("home")?, store, policy, audit, clock).ok()
}

fn import(keyd: &Keyd, key: &str, bytes: Option<&[u8]>) -> Result<KeyHandle, Refusal> {
    let body = api::CreateKeyRequest {
        key_id: id(key),
        usage: Usage::try_from("sign".to_owned()).unwrap(),
        key_bytes: bytes.map(|b| Secret::new(b.to_vec())),
    };
    keys::create(keyd, &ALICE, Ask { target: (), body }).map(|r| r.key_handle)
}

fn hmac(keyd: &Keyd, handle: &KeyHandle) -> Result<Vec<u8>, Refusal> {
    let body = api::SignRequest {
        key_handle: handle.clone(),
        algorithm: SignAlgorithm::HmacSha256,
        parameters: SignParameters::Message(Bytes(b"m".to_vec())),
    };
    sign::sign(keyd, &ALICE, Ask { target: (), body }).map(|r| r.signature.0)
}

fn load(keyd: &Keyd, key: &str) -> Result<KeyHandle, Refusal> {
    let ask = Ask {
        target: id(key),
        body: Empty,
    };
    keys::load(keyd, &ALICE, ask).map(|r| r.key_handle)
}

fn mac(bytes: &[u8]) -> Vec<u8> {
    use aws_lc_rs::hmac;
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, bytes), b"m")
        .as_ref()
        .to_vec()
}

fn is_not_there<T>(answer: &Result<T, Refusal>) -> bool {
    matches!(answer, Err(r) if r.class == Class::BadRequest)
}

/// What took effect was recorded, and the log is whole.
fn recorded(disk: &VirtualDisk, word: &str) -> bool {
    let dir = Dir::over(disk.dir("audit")).unwrap();
    assert_eq!(verify_dir(&dir, None).unwrap().problem, None);
    let names = dir.list().unwrap();
    names.iter().any(|n| {
        let text = dir.read(n, 2_000_000).unwrap().unwrap();
        String::from_utf8_lossy(&text).contains(word)
    })
}

#[test]
fn a131_a132_a_first_start_interrupted_anywhere_starts_again() {
    let act = |disk: &VirtualDisk| open(disk).is_some();
    let check = |disk: &VirtualDisk, _| {
        let keyd = open(disk).unwrap();
        let handle = import(&keyd, "k", None).unwrap();
        let signature = hmac(&keyd, &handle).unwrap();
        assert_eq!(hmac(&open(disk).unwrap(), &handle).unwrap(), signature);
    };
    every_cut(|_| {}, act, check);
    every_fault(|_| {}, act, check);
}

#[test]
fn a131_a132_a_created_key_is_absent_or_whole() {
    let prepare = |disk: &VirtualDisk| drop(open(disk).unwrap());
    let act =
        |disk: &VirtualDisk| open(disk).is_some_and(|k| import(&k, "k", Some(&[7; 32])).is_ok());
    let check = |disk: &VirtualDisk, acknowledged: bool| {
        let keyd = open(disk).unwrap();
        match load(&keyd, "k") {
            Ok(handle) => {
                assert_eq!(hmac(&keyd, &handle).unwrap(), mac(&[7; 32]));
                assert!(recorded(disk, "key.created"));
            }
            answer => assert!(is_not_there(&answer) && !acknowledged, "{answer:?}"),
        }
        // The id is usable, whatever happened (A48 for files).
        import(&keyd, "k", Some(&[7; 32])).unwrap();
    };
    assert!(every_cut(prepare, act, check) > 10);
    every_fault(prepare, act, check);
}

#[test]
fn a131_a132_a_replaced_key_is_the_old_or_the_new_one_and_its_handles_hold() {
    let handle = std::cell::RefCell::new(None);
    let prepare = |disk: &VirtualDisk| {
        let keyd = open(disk).unwrap();
        *handle.borrow_mut() = Some(import(&keyd, "k", Some(&[1; 32])).unwrap());
    };
    let act =
        |disk: &VirtualDisk| open(disk).is_some_and(|k| import(&k, "k", Some(&[2; 32])).is_ok());
    let check = |disk: &VirtualDisk, acknowledged: bool| {
        let keyd = open(disk).unwrap();
        let handle = handle.borrow().clone().unwrap();
        let signature = hmac(&keyd, &handle).unwrap();
        let new = signature == mac(&[2; 32]);
        assert!(new || (!acknowledged && signature == mac(&[1; 32])));
        assert!(!new || recorded(disk, "replaces other bytes"));
    };
    every_cut(prepare, act, check);
    every_fault(prepare, act, check);
}

#[test]
fn a131_a132_a_deleted_key_is_there_or_gone_and_its_handles_are_void_when_made_again() {
    let handle = std::cell::RefCell::new(None);
    let prepare = |disk: &VirtualDisk| {
        let keyd = open(disk).unwrap();
        *handle.borrow_mut() = Some(import(&keyd, "k", Some(&[1; 32])).unwrap());
    };
    let delete = |keyd: &Keyd| {
        let key_handle = handle.borrow().clone().unwrap();
        let body = api::HandleRequest { key_handle };
        keys::delete(keyd, &ALICE, Ask { target: (), body }).is_ok()
    };
    let act = |disk: &VirtualDisk| open(disk).is_some_and(|k| delete(&k));
    let check = |disk: &VirtualDisk, acknowledged: bool| {
        let keyd = open(disk).unwrap();
        let old = handle.borrow().clone().unwrap();
        match load(&keyd, "k") {
            Ok(_) => return assert!(!acknowledged),
            answer => assert!(is_not_there(&answer), "{answer:?}"),
        }
        assert!(recorded(disk, "key.deleted"));
        import(&keyd, "k", Some(&[1; 32])).unwrap();
        assert!(is_not_there(&hmac(&keyd, &old)), "A40");
    };
    every_cut(prepare, act, check);
    every_fault(prepare, act, check);
}

#[test]
fn a131_a132_a_moved_pair_is_at_one_place_and_the_handles_of_the_target_hold() {
    let handle = std::cell::RefCell::new(None);
    let points = std::cell::RefCell::new((String::new(), String::new()));
    let make = |keyd: &Keyd, key: &str| {
        let body = api::CreateKeyPairRequest {
            key_id: id(key),
            preferred_algorithms: None,
        };
        pairs::create(keyd, &ALICE, Ask { target: (), body })
            .unwrap()
            .key_handle
    };
    let point = |keyd: &Keyd, key_handle: &KeyHandle| {
        let body = api::HandleRequest {
            key_handle: key_handle.clone(),
        };
        let target = api::Parameter::EcPoint;
        pairs::parameter(keyd, &ALICE, Ask { target, body }).map(|r| r.value)
    };
    let load = |keyd: &Keyd, key: &str| {
        let ask = Ask {
            target: id(key),
            body: Empty,
        };
        pairs::load(keyd, &ALICE, ask).map(|r| r.key_handle)
    };
    let prepare = |disk: &VirtualDisk| {
        let keyd = open(disk).unwrap();
        let (to, from) = (make(&keyd, "id"), make(&keyd, "temp"));
        *points.borrow_mut() = (point(&keyd, &to).unwrap(), point(&keyd, &from).unwrap());
        *handle.borrow_mut() = Some(to);
    };
    let act = |disk: &VirtualDisk| {
        open(disk).is_some_and(|keyd| {
            let body = api::MoveRequest { from: id("temp") };
            let moved = pairs::rename(
                &keyd,
                &ALICE,
                Ask {
                    target: id("id"),
                    body,
                },
            );
            // A second try may find it moved already, if only the last step had failed; any next
            // change then makes it durable.
            moved.is_ok()
                || (is_not_there(&load(&keyd, "temp")) && import(&keyd, "next", None).is_ok())
        })
    };
    let check = |disk: &VirtualDisk, acknowledged: bool| {
        let keyd = open(disk).unwrap();
        let (old, new) = points.borrow().clone();
        let now = point(&keyd, handle.borrow().as_ref().unwrap()).unwrap();
        match load(&keyd, "temp") {
            Ok(temp) => {
                assert!(!acknowledged);
                assert_eq!((now, point(&keyd, &temp).unwrap()), (old, new));
            }
            answer => {
                assert!(is_not_there(&answer), "{answer:?}");
                assert_eq!(now, new);
                assert!(recorded(disk, "key.moved"));
            }
        }
    };
    every_cut(prepare, act, check);
    every_fault(prepare, act, check);
}

#[test]
fn a133_on_a_full_disk_keys_are_used_changes_are_refused_and_space_is_enough_to_recover() {
    let disk = VirtualDisk::default();
    let handle = import(&open(&disk).unwrap(), "k", Some(&[1; 32])).unwrap();
    disk.fail_at(disk.steps(), Fault::Full, Times::Always);
    // Also across a start: a full disk must not keep a device without its keys.
    let keyd = open(&disk).unwrap();
    assert_eq!(hmac(&keyd, &handle).unwrap(), mac(&[1; 32]));
    for _ in 0..3 {
        let refused = import(&keyd, "new", None).unwrap_err();
        assert_eq!(refused.class, Class::Unavailable);
        assert_eq!(hmac(&keyd, &handle).unwrap(), mac(&[1; 32]));
    }
    disk.heal();
    assert!(is_not_there(&load(&keyd, "new")), "nothing of it was kept");
    import(&keyd, "new", None).unwrap();
    assert!(recorded(&disk, "there is space again"));
}
