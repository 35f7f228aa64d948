//! The key API against a real store in a scratch directory: attacks A38-A42, A46, A47, and what
//! installations rely on.

mod world;

use contract::api::key::{CipherAlgorithm, KeyHandle, Parameter};
use contract::refusal::Refusal;
use keyd::daemon::User;
use world::World;

const ALICE: User = User { uid: 1000 };
const BOB: User = User { uid: 1001 };
const DELEGATE: User = User { uid: 1002 };
const ROOT: User = User { uid: 0 };

const POLICY: &str = r#"
[[principal]]
uid = 1000
keys = ["*"]
delegates = [1002]
[[principal]]
uid = 1001
keys = ["bob-*", "shared"]
"#;

fn status<T>(answer: Result<T, Refusal>) -> u16 {
    match answer {
        Ok(_) => 200,
        Err(refusal) => refusal.class.status(),
    }
}

fn message<T>(answer: Result<T, Refusal>) -> String {
    match answer {
        Ok(_) => panic!("not refused"),
        Err(refusal) => refusal.message,
    }
}

const INVALID: &str = "parameter \"handle\" has an invalid value\ncaused by: invalid handle";

/// Every operation that takes a handle, with input that a right handle would accept.
fn every_use(world: &World, who: User, handle: &KeyHandle) -> [(&'static str, u16); 13] {
    let digest_info = world::digest_info();
    let ciphertext = [2; 40];
    [
        ("hmac", status(world.hmac(who, handle, b"m"))),
        ("ecdsa", status(world.ecdsa(who, handle, &[7; 32]))),
        (
            "rsa",
            status(world.encrypt(who, handle, CipherAlgorithm::RsaPkcs1, &digest_info)),
        ),
        (
            "raw rsa",
            status(world.encrypt(who, handle, CipherAlgorithm::RsaNoPadding, &[1; 256])),
        ),
        (
            "encrypt",
            status(world.encrypt(who, handle, CipherAlgorithm::Aead, b"p")),
        ),
        (
            "decrypt",
            status(world.decrypt(who, handle, CipherAlgorithm::Aead, &ciphertext)),
        ),
        (
            "rsa decrypt",
            status(world.decrypt(who, handle, CipherAlgorithm::RsaPkcs1, &[1; 256])),
        ),
        ("derive", status(world.derive(who, handle, b"d"))),
        ("export", status(world.export(who, handle))),
        (
            "algorithm",
            status(world.parameter(who, handle, Parameter::Algorithm)),
        ),
        (
            "point",
            status(world.parameter(who, handle, Parameter::EcPoint)),
        ),
        (
            "modulus",
            status(world.parameter(who, handle, Parameter::RsaModulus)),
        ),
        (
            "exponent",
            status(world.parameter(who, handle, Parameter::RsaExponent)),
        ),
    ]
}

#[test]
fn a38_a_copied_handle_is_invalid_for_everybody_else() {
    let world = World::new(POLICY);
    let key = world.key(ALICE, "shared", "derive,encrypt,sign").unwrap();
    let pair = world.pair(ALICE, "pair", "ec-p256").unwrap();
    let derived = world.derive(ALICE, &key, b"d").unwrap();
    for handle in [&key, &pair, &derived] {
        for stranger in [BOB, ROOT, User { uid: 4242 }] {
            for (what, status) in every_use(&world, stranger, handle) {
                assert_eq!(status, 400, "{what}");
            }
            assert_eq!(message(world.delete_key(stranger, handle)), INVALID);
            assert_eq!(message(world.delete_pair(stranger, handle)), INVALID);
            assert_eq!(message(world.hmac(stranger, handle, b"m")), INVALID);
        }
    }
    // The issuer's delegate may use, and may not administer.
    assert_eq!(status(world.hmac(DELEGATE, &key, b"m")), 200);
    assert_eq!(status(world.hmac(DELEGATE, &derived, b"m")), 200);
    assert_eq!(status(world.delete_key(DELEGATE, &key)), 401);
    assert_eq!(status(world.load_key(DELEGATE, "shared")), 401);
}

#[test]
fn a38_a_row_taken_away_takes_effect_at_once() {
    let world = World::new(POLICY);
    let key = world.key(ALICE, "k", "sign").unwrap();
    assert_eq!(status(world.hmac(ALICE, &key, b"m")), 200);
    world.set_policy("[[principal]]\nuid = 1000\nkeys = ['other']\n");
    assert_eq!(status(world.hmac(ALICE, &key, b"m")), 401);
    assert_eq!(status(world.hmac(DELEGATE, &key, b"m")), 401);
}

#[test]
fn a39_an_altered_handle_is_invalid() {
    let world = World::new(POLICY);
    let key = world.key(ALICE, "k", "sign").unwrap();
    for at in 0..key.0.len() {
        let mut bytes = key.0.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let bent = KeyHandle(String::from_utf8(bytes).unwrap());
        assert_eq!(message(world.hmac(ALICE, &bent, b"m")), INVALID, "{at}");
    }
    // A handle of another device.
    let other = World::new(POLICY);
    other.key(ALICE, "k", "sign").unwrap();
    assert_eq!(message(other.hmac(ALICE, &key, b"m")), INVALID);
}

#[test]
fn a40_a_handle_of_a_deleted_key_stays_void_when_the_id_is_used_again() {
    let mut world = World::new(POLICY);
    let key = world.key(ALICE, "k", "sign").unwrap();
    let derived = world.derive(ALICE, &key, b"d").unwrap();
    let pair = world.pair(ALICE, "p", "ec-p256").unwrap();
    world.delete_key(ALICE, &key).unwrap();
    world.delete_pair(ALICE, &pair).unwrap();
    for again in [false, true] {
        for handle in [&key, &derived, &pair] {
            for (what, status) in every_use(&world, ALICE, handle) {
                assert_eq!(status, 400, "{what}");
            }
        }
        if !again {
            // Deleting what is gone is no error.
            world.delete_key(ALICE, &key).unwrap();
            world.delete_pair(ALICE, &pair).unwrap();
            world.key(ALICE, "k", "sign").unwrap();
            world.pair(ALICE, "p", "ec-p256").unwrap();
            world.restart();
        }
    }
    assert_eq!(message(world.delete_key(ALICE, &key)), INVALID);
}

#[test]
fn a41_each_kind_of_handle_does_what_its_kind_does_and_nothing_else() {
    let world = World::new(POLICY);
    let sign = world.key(ALICE, "sign", "sign").unwrap();
    let encrypt = world.key(ALICE, "encrypt", "encrypt").unwrap();
    let both = world.key(ALICE, "both", "derive,encrypt").unwrap();
    let ec = world.pair(ALICE, "ec", "ec-p256").unwrap();
    let rsa = world.pair(ALICE, "rsa", "rsa-2048").unwrap();
    let derived = world.derive(ALICE, &sign, b"d").unwrap();
    for (handle, name, can) in [
        (&sign, "sign", &["hmac", "derive"][..]),
        (&encrypt, "encrypt", &["encrypt"]),
        (&both, "both", &["hmac", "derive", "encrypt"]),
        (&ec, "ec", &["ecdsa", "algorithm", "point"]),
        (&rsa, "rsa", &["rsa", "algorithm", "modulus", "exponent"]),
        (&derived, "derived", &["hmac", "encrypt"]),
    ] {
        for (what, status) in every_use(&world, ALICE, handle) {
            let want = match what {
                _ if can.contains(&what) => 200,
                // Made-up ciphertext does not verify: the operation itself was permitted.
                "decrypt" if can.contains(&"encrypt") => 500,
                // Export is not among the usual purposes (R19).
                "export" if name == "derived" => 401,
                _ => 400,
            };
            assert_eq!(status, want, "{name} {what}");
        }
    }
    assert_eq!(status(world.delete_pair(ALICE, &sign)), 400);
    assert_eq!(status(world.delete_key(ALICE, &ec)), 400);
    assert_eq!(status(world.delete_key(ALICE, &derived)), 400);
    assert_eq!(status(world.load_key(ALICE, "ec")), 400);
    assert_eq!(status(world.load_pair(ALICE, "sign")), 400);
}

#[test]
fn a41_a_purpose_that_was_not_granted_is_refused_for_every_handle() {
    for (purpose, can) in [
        ("sign-token", &["hmac"][..]),
        ("sign-cert", &["ecdsa", "rsa"]),
        ("tls", &["ecdsa", "rsa"]),
        ("derive", &["derive"]),
        ("encrypt", &["encrypt"]),
        ("decrypt", &["decrypt"]),
        ("export-derived", &["export"]),
    ] {
        let world = World::new(POLICY);
        world.key(ALICE, "key", "derive,encrypt,sign").unwrap();
        world.pair(ALICE, "ec", "ec-p256").unwrap();
        world.pair(ALICE, "rsa", "rsa-2048").unwrap();
        world.set_policy(&format!(
            "[[principal]]\nuid = 1000\nkeys = ['*']\npurposes = ['derive', '{purpose}']\n"
        ));
        let key = world.load_key(ALICE, "key").unwrap();
        let derived = world.derive(ALICE, &key, b"d").unwrap();
        world.set_policy(&format!(
            "[[principal]]\nuid = 1000\nkeys = ['*']\npurposes = ['{purpose}']\n"
        ));
        let key = world.load_key(ALICE, "key").unwrap();
        let ec = world.load_pair(ALICE, "ec").unwrap();
        let rsa = world.load_pair(ALICE, "rsa").unwrap();
        for (handle, kind, does) in [
            (&key, "key", &["hmac", "encrypt", "decrypt", "derive"][..]),
            (
                &derived,
                "derived",
                &["hmac", "encrypt", "decrypt", "export"],
            ),
            (&ec, "ec", &["ecdsa"]),
            (&rsa, "rsa", &["rsa"]),
        ] {
            for (what, status) in every_use(&world, ALICE, handle) {
                if !does.contains(&what) {
                    continue;
                }
                let want = match what {
                    "decrypt" if can.contains(&what) => 500,
                    _ if can.contains(&what) => 200,
                    _ => 401,
                };
                assert_eq!(status, want, "{purpose}: {kind} {what}");
            }
        }
    }
}

#[test]
fn a42_ids_outside_a_users_patterns_are_refused_and_open_no_other_file() {
    let world = World::new(POLICY);
    world.key(ALICE, "alice", "sign").unwrap();
    let before = world.files();
    for id in [
        "alice", "ALICE", "*", "bob", "xbob-", "Bob-1", "../bob-1", "bo?-1",
    ] {
        let text = format!("user 1001 is not authorized to access the key {id}");
        assert_eq!(message(world.load_key(BOB, id)), text);
        assert_eq!(message(world.key(BOB, id, "sign")), text);
        assert_eq!(message(world.import(BOB, id, b"bytes")), text);
        assert_eq!(message(world.pair(BOB, id, "*")), text);
        assert_eq!(message(world.rename(BOB, id, "bob-1")), text);
        assert_eq!(message(world.rename(BOB, "bob-1", id)), text);
    }
    assert_eq!(world.files(), before);
    // Slashes and dots are bytes of an id, and never of a path.
    world.key(BOB, "bob-../../../etc/passwd", "sign").unwrap();
    assert!(
        world.load_key(BOB, "bob-*").is_err(),
        "a star in an id is not a pattern"
    );
}

#[test]
fn the_key_that_seals_handles_is_nobodys() {
    let world = World::new("root_may_use_keys = true\n[[principal]]\nuid = 1000\nkeys = ['*']\n");
    for who in [ALICE, ROOT] {
        assert_eq!(status(world.load_key(who, "handle-validation-key")), 401);
        assert_eq!(status(world.key(who, "handle-validation-key", "sign")), 401);
        assert_eq!(
            status(world.import(who, "handle-validation-key", &[1; 32])),
            401
        );
    }
}

#[test]
fn root_administers_and_uses_only_where_the_switch_says_so() {
    let world = World::new(POLICY);
    let key = world.key(ROOT, "k", "derive,encrypt,sign").unwrap();
    world.pair(ROOT, "p", "ec-p256").unwrap();
    let pair = world.load_pair(ROOT, "p").unwrap();
    assert_eq!(status(world.hmac(ROOT, &key, b"m")), 401);
    assert_eq!(status(world.derive(ROOT, &key, b"m")), 401);
    assert_eq!(status(world.ecdsa(ROOT, &pair, &[1; 32])), 401);
    assert_eq!(
        status(world.parameter(ROOT, &pair, Parameter::EcPoint)),
        200
    );
    world.set_policy("root_may_use_keys = true");
    let key = world.load_key(ROOT, "k").unwrap();
    assert_eq!(status(world.hmac(ROOT, &key, b"m")), 200);
    world.delete_key(ROOT, &key).unwrap();
}

#[test]
fn a47_creating_over_another_key_is_a_conflict_and_changes_nothing() {
    let world = World::new(POLICY);
    let key = world.key(ALICE, "key", "sign").unwrap();
    let ec = world.pair(ALICE, "ec", "ec-p256").unwrap();
    world.pair(ALICE, "rsa", "rsa-2048").unwrap();
    let before = world.files();
    assert_eq!(status(world.key(ALICE, "key", "encrypt")), 409);
    assert_eq!(status(world.key(ALICE, "key", "derive,encrypt")), 409);
    assert_eq!(status(world.key(ALICE, "ec", "sign")), 409);
    assert_eq!(status(world.import(ALICE, "key", b"other bytes")), 409);
    assert_eq!(status(world.import(ALICE, "ec", b"other bytes")), 409);
    assert_eq!(status(world.pair(ALICE, "key", "*")), 409);
    assert_eq!(status(world.pair(ALICE, "ec", "rsa-2048:rsa-4096")), 409);
    assert_eq!(status(world.pair(ALICE, "rsa", "ec-p256")), 409);
    assert_eq!(status(world.pair(ALICE, "none", "")), 400);
    // What satisfies the request is given, whatever comes first in the list.
    assert_eq!(world.key(ALICE, "key", "derive").unwrap(), key);
    assert_eq!(world.pair(ALICE, "ec", "rsa-2048:*").unwrap(), ec);
    assert_eq!(status(world.pair(ALICE, "rsa", "ec-p256:rsa-2048")), 200);
    assert_eq!(world.files(), before);
    let refused = world.audit("key.conflict");
    assert!(!refused.is_empty());
}

#[test]
fn an_import_replaces_other_bytes_only_with_the_right_to_and_keeps_the_old_ones_for_a_while() {
    let mut world = World::new(POLICY);
    let key = world.import(ALICE, "key", &[1; 32]).unwrap();
    assert_eq!(world.import(ALICE, "key", &[1; 32]).unwrap(), key);
    assert_eq!(status(world.import(ALICE, "key", b"")), 400);
    let old = world.hmac(ALICE, &key, b"m").unwrap();
    world.set_policy("[[principal]]\nuid = 1000\nkeys = ['*']\nreplace = true\n");
    world.import(ALICE, "key", &[2; 32]).unwrap();
    let new = world.hmac(ALICE, &key, b"m").unwrap();
    assert_ne!(old, new, "the handle means the new bytes");
    assert_eq!(world.files_ending(".key.prev").len(), 1);
    world.restart();
    assert!(world.files_ending(".key.prev").is_empty());
    assert_eq!(world.hmac(ALICE, &key, b"m").unwrap(), new);
}

#[test]
fn a_moved_pair_takes_over_the_handles_of_its_new_id() {
    let mut world = World::new(POLICY);
    let target = world.pair(ALICE, "device-id", "ec-p256").unwrap();
    let temporary = world.pair(ALICE, "device-id-temp", "ec-p256").unwrap();
    let point = |world: &World, handle| world.parameter(ALICE, handle, Parameter::EcPoint);
    let old = point(&world, &target).unwrap();
    let new = point(&world, &temporary).unwrap();
    world.rename(ALICE, "device-id-temp", "device-id").unwrap();
    for _ in 0..2 {
        assert_eq!(point(&world, &target).unwrap(), new);
        assert_ne!(point(&world, &target).unwrap(), old);
        assert_eq!(message(point(&world, &temporary)), INVALID);
        assert_eq!(status(world.load_pair(ALICE, "device-id-temp")), 400);
        world.restart();
    }
    // A new temporary key has nothing to do with the old handle.
    world.pair(ALICE, "device-id-temp", "ec-p256").unwrap();
    assert_eq!(message(point(&world, &temporary)), INVALID);
    let text = message(world.rename(ALICE, "device-id", "device-id"));
    assert!(
        text.ends_with("source and destination for move are identical"),
        "{text}"
    );
    assert_eq!(status(world.rename(ALICE, "absent", "device-id")), 400);
    world.key(ALICE, "key", "sign").unwrap();
    assert_eq!(status(world.rename(ALICE, "key", "other")), 400);
    assert_eq!(status(world.rename(ALICE, "device-id", "key")), 409);
    assert!(message(world.rename_key(ALICE, "key", "other")).contains("invalid type \"key\""));
}

#[test]
fn handles_and_keys_survive_a_restart() {
    let mut world = World::new(POLICY);
    let key = world.key(ALICE, "key", "derive,encrypt,sign").unwrap();
    let derived = world.derive(ALICE, &key, b"d").unwrap();
    let signature = world.hmac(ALICE, &derived, b"m").unwrap();
    let ciphertext = world
        .encrypt(ALICE, &key, CipherAlgorithm::Aead, b"plain")
        .unwrap();
    world.restart();
    assert_eq!(world.hmac(ALICE, &derived, b"m").unwrap(), signature);
    let plain = world
        .decrypt(ALICE, &key, CipherAlgorithm::Aead, &ciphertext)
        .unwrap();
    assert_eq!(plain, b"plain");
    assert_eq!(world.load_key(ALICE, "key").unwrap(), key);
}

#[test]
fn a41_a_delegate_uses_a_derived_key_and_never_takes_its_bytes() {
    let world = World::new(
        "[[principal]]\nuid = 1000\nkeys = ['*']\ndelegates = [1002]\npurposes = ['sign-token','derive','export-derived']\n",
    );
    let key = world.import(ALICE, "key", &[9; 32]).unwrap();
    let own = world.derive(ALICE, &key, b"mod:1:primary").unwrap();
    let lent_on = world.derive(DELEGATE, &key, b"mod:1:primary").unwrap();
    for handle in [&own, &lent_on] {
        assert_eq!(status(world.hmac(DELEGATE, handle, b"m")), 200);
        assert_eq!(status(world.export(DELEGATE, handle)), 401);
    }
    assert!(world.audit("key.exported").is_empty());
    assert_eq!(status(world.export(ALICE, &own)), 200);
}

#[test]
fn values_are_those_of_the_protocol() {
    let world = World::new(
        "[[principal]]\nuid = 1000\nkeys = ['*']\npurposes = ['sign-token','derive','encrypt','decrypt','export-derived']\n",
    );
    let key = world.import(ALICE, "key", &[9; 32]).unwrap();
    let mac = |key: &[u8], text: &[u8]| {
        use aws_lc_rs::hmac;
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text)
            .as_ref()
            .to_vec()
    };
    assert_eq!(world.hmac(ALICE, &key, b"m").unwrap(), mac(&[9; 32], b"m"));
    let derived = world.derive(ALICE, &key, b"mod:1:primary").unwrap();
    let bytes = mac(&[9; 32], b"mod:1:primary");
    assert_eq!(
        world.hmac(ALICE, &derived, b"m").unwrap(),
        mac(&bytes, b"m")
    );
    assert_eq!(world.export(ALICE, &derived).unwrap(), bytes);
    assert!(message(world.export(ALICE, &key)).ends_with("handle is not for a derived key"));
    let nested = message(world.derive(ALICE, &derived, b"x"));
    assert!(
        nested.ends_with("nested derived keys not supported"),
        "{nested}"
    );
    assert_eq!(world.audit("key.exported").len(), 1);
    // AEAD: version byte, ciphertext, tag; other nonce lengths are refused in words.
    let sealed = world
        .encrypt(ALICE, &derived, CipherAlgorithm::Aead, b"abc")
        .unwrap();
    assert_eq!((sealed[0], sealed.len()), (2, 1 + 3 + 16));
    let refused = message(world.encrypt_with(ALICE, &key, &[0; 16], b"", b"abc"));
    assert!(
        refused.contains("\"iv\"") && refused.contains("12 bytes"),
        "{refused}"
    );
    assert_eq!(status(world.ecdsa(ALICE, &key, &[0; 32])), 400);
    // A symmetric key of another length signs and does not encrypt.
    let odd = world.import(ALICE, "odd", b"short").unwrap();
    assert_eq!(world.hmac(ALICE, &odd, b"m").unwrap(), mac(b"short", b"m"));
}

#[test]
fn a46_raw_rsa_and_odd_digests_are_refused() {
    let world = World::new(POLICY);
    let ec = world.pair(ALICE, "ec", "ec-p256").unwrap();
    let rsa = world.pair(ALICE, "rsa", "rsa-2048").unwrap();
    for length in [0, 20, 31, 33, 48, 64] {
        assert_eq!(
            status(world.ecdsa(ALICE, &ec, &vec![1; length])),
            400,
            "{length}"
        );
    }
    for input in [&[0; 256][..], &[1; 36], b"message", b""] {
        let sign = |algorithm| world.encrypt(ALICE, &rsa, algorithm, input);
        assert_eq!(status(sign(CipherAlgorithm::RsaPkcs1)), 400);
        assert_eq!(status(sign(CipherAlgorithm::RsaNoPadding)), 400);
        assert_eq!(
            status(world.decrypt(ALICE, &rsa, CipherAlgorithm::RsaPkcs1, input)),
            400
        );
    }
}

#[test]
fn r25_a_change_that_cannot_be_recorded_is_not_made() {
    let world = World::new(POLICY);
    let key = world.key(ALICE, "key", "sign").unwrap();
    assert_eq!(world.audit("key.created").len(), 1);
    let before = world.keys();
    world.lose_audit_directory();
    assert_eq!(status(world.key(ALICE, "new", "sign")), 503);
    assert_eq!(status(world.import(ALICE, "new", &[1; 32])), 503);
    assert_eq!(status(world.pair(ALICE, "new", "ec-p256")), 503);
    assert_eq!(status(world.delete_key(ALICE, &key)), 503);
    assert_eq!(world.keys(), before);
    // Use goes on (P24).
    assert_eq!(status(world.hmac(ALICE, &key, b"m")), 200);
}

#[test]
fn a141_the_audit_log_is_verified_offline_with_the_public_key() {
    let mut world = World::new(POLICY);
    let key = world.key(ALICE, "k", "sign").unwrap();
    let _ = world.hmac(BOB, &key, b"m");
    world.stop();
    world.restart();
    // Root may load it for its public half, and nobody may use or change it.
    let audit = world.load_pair(ROOT, "audit-head-key").unwrap();
    let point = world.parameter(ROOT, &audit, Parameter::EcPoint).unwrap();
    let own = world.load_pair(ALICE, "audit-head-key").unwrap();
    assert_eq!(status(world.ecdsa(ALICE, &own, &[1; 32])), 401);
    assert_eq!(status(world.delete_pair(ROOT, &audit)), 401);
    assert_eq!(status(world.rename(ROOT, "audit-head-key", "x")), 401);
    assert_eq!(status(world.rename(ROOT, "x", "audit-head-key")), 401);
    assert_eq!(status(world.pair(ROOT, "audit-head-key", "*")), 401);
    world.stop();
    let report = world.verify(&point);
    assert_eq!(report.problem, None);
    assert_eq!(report.signed_through, Some(report.last));
    // Cutting off the last record shows.
    world.cut_audit_log();
    let problem = world.verify(&point).problem.unwrap();
    assert_eq!(problem.fault, contract::audit::Fault::Truncated);
}

#[test]
fn a58_no_key_byte_is_in_audit_records_or_answers() {
    let world = World::new(POLICY);
    let canary = b"CANARY-7b1e-CANARY-7b1e-CANARY!!";
    let key = world.import(ALICE, "key", canary).unwrap();
    let _ = world.import(ALICE, "key", b"CANARY-other");
    let _ = world.key(ALICE, "key", "encrypt");
    let _ = world.export(ALICE, &key);
    let everything = world.audit_text();
    for form in [
        String::from_utf8(canary.to_vec()).unwrap(),
        "Q0FOQVJZ".to_owned(),
        contract::audit::hex(b"CANARY"),
    ] {
        assert!(!everything.contains(&form));
        assert!(!key.0.contains(&form));
    }
}
