//! Key files: what other programs read and wrote, damage, and files placed by an administrator.
//! The `openssl` command line is the second opinion.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests damage files and ask another program, and fail by panicking"
)]

mod world;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use contract::api::key::{CipherAlgorithm, KeyHandle, Parameter};
use keyd::daemon::User;
use world::World;

const ALICE: User = User { uid: 1000 };
const POLICY: &str = "[[principal]]\nuid = 1000\nkeys = ['*']\n";

/// Runs `openssl`; its output, or a panic with what it said.
fn openssl(arguments: &[&str], dir: &Path) -> Vec<u8> {
    let run = Command::new("openssl")
        .args(arguments)
        .current_dir(dir)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(run.status.success(), "openssl {arguments:?}: {said}");
    run.stdout
}

fn number(world: &World, handle: &KeyHandle, parameter: Parameter) -> Vec<u8> {
    STANDARD
        .decode(world.parameter(ALICE, handle, parameter).unwrap())
        .unwrap()
}

/// DER with a definite length.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&[tag, 0x82], &length[..], content].concat()
}

/// A public key made of nothing but the answers of `/parameters`.
fn public_key(world: &World, handle: &KeyHandle) -> Vec<u8> {
    let (algorithm, key) = match world
        .parameter(ALICE, handle, Parameter::Algorithm)
        .unwrap()
        .as_str()
    {
        "ECDSA" => {
            let ec = [0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
            let curve = number(world, handle, Parameter::EcCurveOid);
            (
                [&ec[..], &curve].concat(),
                number(world, handle, Parameter::EcPoint),
            )
        }
        _ => {
            let rsa = [
                0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
            ];
            let integer = |bytes: Vec<u8>| der(0x02, &[&[0], &bytes[..]].concat());
            let modulus = number(world, handle, Parameter::RsaModulus);
            assert!(
                modulus[0] & 0x80 != 0,
                "unsigned, and as long as the modulus"
            );
            let exponent = number(world, handle, Parameter::RsaExponent);
            assert_eq!(exponent, [1, 0, 1]);
            let exponent = der(0x02, &exponent);
            (
                rsa.to_vec(),
                der(0x30, &[integer(modulus), exponent].concat()),
            )
        }
    };
    let bits = der(0x03, &[&[0], &key[..]].concat());
    der(0x30, &[der(0x30, &algorithm), bits].concat())
}

#[test]
fn openssl_reads_the_files_and_verifies_the_signatures() {
    let world = World::new(POLICY);
    let dir = world.home.as_path();
    std::fs::write(dir.join("message"), b"message").unwrap();
    for (id, algorithm) in [("ec", "ec-p256"), ("rsa", "rsa-2048"), ("big", "rsa-4096")] {
        let handle = world.pair(ALICE, id, algorithm).unwrap();
        let file = world.key_file(id);
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        let file = file.to_str().unwrap();
        let text = openssl(&["pkey", "-in", file, "-noout", "-text", "-check"], dir);
        assert!(String::from_utf8(text).unwrap().contains("Key is valid"));
        // The same text that openssl would write.
        let again = openssl(&["pkey", "-in", file], dir);
        assert_eq!(std::fs::read(file).unwrap(), again);
        // The parameters are those of the file.
        std::fs::write(dir.join("public.der"), public_key(&world, &handle)).unwrap();
        let from_parameters = [
            "pkey",
            "-pubin",
            "-inform",
            "DER",
            "-in",
            "public.der",
            "-noout",
            "-text_pub",
        ];
        let from_file = ["pkey", "-in", file, "-noout", "-text_pub"];
        if id != "ec" {
            assert_eq!(openssl(&from_parameters, dir), openssl(&from_file, dir));
        }
        let signature = if id == "ec" {
            world
                .ecdsa(ALICE, &handle, &contract::audit::hash(b"message"))
                .unwrap()
        } else {
            world
                .encrypt(
                    ALICE,
                    &handle,
                    CipherAlgorithm::RsaPkcs1,
                    &world::digest_info(),
                )
                .unwrap()
        };
        std::fs::write(dir.join("signature"), signature).unwrap();
        let verified = openssl(
            &[
                "dgst",
                "-sha256",
                "-verify",
                "public.der",
                "-keyform",
                "DER",
                "-signature",
                "signature",
                "message",
            ],
            dir,
        );
        assert_eq!(verified, b"Verified OK\n");
    }
}

#[test]
fn an_existing_installation_is_taken_over() {
    let mut world = World::new(POLICY);
    let dir = world.home.clone();
    world.put_key_file("master", &[5; 32]);
    let made = [
        (
            "pkcs8-ec",
            &[
                "genpkey",
                "-algorithm",
                "EC",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
            ][..],
            "ECDSA",
        ),
        (
            "sec1-ec",
            &["ecparam", "-name", "prime256v1", "-genkey"],
            "ECDSA",
        ),
        (
            "pkcs8-rsa",
            &[
                "genpkey",
                "-algorithm",
                "RSA",
                "-pkeyopt",
                "rsa_keygen_bits:2048",
            ],
            "RSA",
        ),
        ("pkcs1-rsa", &["genrsa", "-traditional", "3072"], "RSA"),
    ];
    for (id, arguments, _) in made {
        world.put_key_file(id, &openssl(arguments, &dir));
    }
    let before = world.files();
    for (id, _, algorithm) in made {
        let handle = world.load_pair(ALICE, id).unwrap();
        assert_eq!(
            world
                .parameter(ALICE, &handle, Parameter::Algorithm)
                .unwrap(),
            algorithm
        );
        assert_eq!(
            world.pair(ALICE, id, "*").unwrap(),
            handle,
            "it is there, so it is given"
        );
    }
    let master = world.load_key(ALICE, "master").unwrap();
    assert_eq!(
        world.key(ALICE, "master", "derive,encrypt,sign").unwrap(),
        master
    );
    world.hmac(ALICE, &master, b"m").unwrap();
    world
        .encrypt(ALICE, &master, CipherAlgorithm::Aead, b"m")
        .unwrap();
    assert_eq!(world.files(), before, "nothing was written");
    world.restart();
    world.hmac(ALICE, &master, b"m").unwrap();
    // Deleted and made again, an old handle is void here too (A40).
    world.delete_key(ALICE, &master).unwrap();
    world.key(ALICE, "master", "sign").unwrap();
    assert!(world.hmac(ALICE, &master, b"m").is_err());
}

#[test]
fn a_file_that_holds_nothing_is_absent_to_create_and_an_error_to_load() {
    let world = World::new(POLICY);
    for (id, bytes) in [
        ("empty", &b""[..]),
        ("broken", b"-----BEGIN PRIVATE KEY-----\nAA\n"),
    ] {
        world.put_key_file(id, bytes);
        assert_eq!(world.load_key(ALICE, id).unwrap_err().class.status(), 500);
        assert_eq!(world.load_pair(ALICE, id).unwrap_err().class.status(), 500);
        world.pair(ALICE, id, "ec-p256").unwrap();
        world.load_pair(ALICE, id).unwrap();
    }
}

#[test]
fn a134_a_damaged_key_of_ours_is_the_one_before_it_or_a_typed_stop() {
    let mut world = World::new("[[principal]]\nuid = 1000\nkeys = ['*']\nreplace = true\n");
    let handle = world.import(ALICE, "key", &[1; 32]).unwrap();
    let old = world.hmac(ALICE, &handle, b"m").unwrap();
    world.import(ALICE, "key", &[2; 32]).unwrap();
    let record = world.key_file("key").with_extension("rec");
    let whole = std::fs::read(&record).unwrap();
    for damage in [&b""[..], &[0; 32], &[1; 31], &[3; 32]] {
        world.put_key_file("key", damage);
        world.restart();
        assert_eq!(world.hmac(ALICE, &handle, b"m").unwrap(), old);
    }
    // Without a previous generation there is no guess, and nothing is made anew.
    let lone = world.key(ALICE, "lone", "sign").unwrap();
    for damage in [&b""[..], &[0; 32], &[1; 31]] {
        world.put_key_file("lone", damage);
        world.restart();
        assert_eq!(
            world.hmac(ALICE, &lone, b"m").unwrap_err().class.status(),
            500
        );
        assert_eq!(
            world.key(ALICE, "lone", "sign").unwrap_err().class.status(),
            500
        );
    }
    // A damaged record: its own previous generation, which knows the same issue of the key.
    std::fs::write(&record, &whole[..whole.len() / 2]).unwrap();
    world.restart();
    assert_eq!(world.hmac(ALICE, &handle, b"m").unwrap(), old);
    assert!(!world.audit("store.damaged").is_empty());
}

#[test]
fn a135_a_key_directory_or_file_open_to_others_is_refused_by_name() {
    let mut world = World::new(POLICY);
    let key = world.key(ALICE, "key", "sign").unwrap();
    let (dir, file) = (world.key_dir(), world.key_file("key"));
    for mode in [0o702, 0o720, 0o777] {
        world::chmod(&dir, mode);
        let refused = world.try_restart().unwrap_err();
        assert!(refused.contains(dir.to_str().unwrap()), "{refused}");
    }
    world::chmod(&dir, 0o700);
    world.restart();
    world::chmod(&file, 0o622);
    assert_eq!(
        world.hmac(ALICE, &key, b"m").unwrap_err().class.status(),
        500
    );
    let refused = world.try_restart().unwrap_err();
    assert!(refused.contains(file.to_str().unwrap()), "{refused}");
    // What others could only have read, below a directory that they cannot enter, is taken over.
    world::chmod(&file, 0o644);
    world::chmod(&dir, 0o755);
    world.restart();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&dir), mode(&file)), (0o700, 0o600));
    world.hmac(ALICE, &key, b"m").unwrap();
    std::os::unix::fs::symlink("elsewhere", dir.join("link.key")).unwrap();
    let refused = world.try_restart().unwrap_err();
    assert!(refused.contains("link.key"), "{refused}");
}

#[test]
fn files_placed_by_an_administrator_are_used_where_they_are() {
    let place = World::new("");
    let raw = place.home.join("device-id");
    let open = place.home.join("open");
    std::fs::write(&raw, [7; 32]).unwrap();
    std::fs::write(&open, [7; 32]).unwrap();
    world::chmod(&raw, 0o600);
    world::chmod(&open, 0o644);
    let new = place.home.join("new.pem");
    let mut world = World::new(&format!(
        "{POLICY}[preloaded_keys]\ndevice-id = 'file://{}'\nopen = 'file://{}'\nnew = 'file://{}'\n",
        raw.display(),
        open.display(),
        new.display()
    ));
    let handle = world.load_key(ALICE, "device-id").unwrap();
    let before = world.hmac(ALICE, &handle, b"m").unwrap();
    // A139: a secret that everybody can read is no secret.
    assert_eq!(
        world.load_key(ALICE, "open").unwrap_err().class.status(),
        500
    );
    // What is absent is made there.
    world.pair(ALICE, "new", "ec-p256").unwrap();
    openssl(
        &["pkey", "-in", new.to_str().unwrap(), "-noout"],
        &place.home,
    );
    assert!(!world.key_file("new").exists());
    assert_eq!(
        world
            .rename(ALICE, "new", "elsewhere")
            .unwrap_err()
            .class
            .status(),
        400
    );
    // The administrator may change the file; the handle means the new key after a restart.
    std::fs::write(&raw, [8; 32]).unwrap();
    world.restart();
    assert_ne!(world.hmac(ALICE, &handle, b"m").unwrap(), before);
    let pair = world.load_pair(ALICE, "new").unwrap();
    world.delete_pair(ALICE, &pair).unwrap();
    assert!(!new.exists());
}
