//! Issuing and storing, judged by openssl, with keys that never leave the key service.

use std::sync::Arc;

use aws_lc_rs::rsa::KeySize;
use contract::api::certificate::Issuer;
use contract::api::key::KeyHandle;
use contract::names::CertId;
use contract::time::{ClockTrust, Now};
use identityd::certs::{Certs, CertsError};
use identityd::config::Certificates;
use identityd::csr::Request;
use identityd::keys::{Keys, RemoteKey};
use local::files::{Dir, Rules};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};

use crate::support::{self, Folder, SoftKeys, openssl};

/// 2026-11-24.
pub(crate) const NOW: i64 = 1_795_478_400;
const DAY: i64 = 86_400;

pub(crate) struct World {
    folder: Folder,
    pub(crate) keys: Arc<SoftKeys>,
    pub(crate) certs: Certs,
}

impl World {
    pub(crate) fn new(name: &str, config: &str) -> Self {
        Self::at(name, config, NOW)
    }

    fn at(name: &str, config: &str, now: i64) -> Self {
        let folder = Folder::new(name);
        let keys = Arc::new(SoftKeys::default());
        let certs = open(&folder, &keys, config, now);
        Self {
            folder,
            keys,
            certs,
        }
    }

    /// The same folder and keys at another time.
    pub(crate) fn later(&self, config: &str, now: i64) -> Certs {
        open(&self.folder, &self.keys, config, now)
    }

    /// An Edge CA as the module runtime asks for one.
    fn edge_ca(&self) -> KeyHandle {
        let handle = self.keys.ec("aziot-edged-ca");
        let csr = authority_request(&self.keys, &handle, "edge CA");
        self.certs.issue(&id("aziot-edged-ca"), &csr, None).unwrap();
        handle
    }

    fn openssl_verify(&self, chain: &str, purpose: &str) {
        let leaf = self.folder.put("leaf.pem", chain);
        let root = self.certs.read(&id("aziot-edged-ca")).unwrap().to_pem();
        let root = self.folder.put("root.pem", &root);
        let at = (NOW + DAY).to_string();
        let (ok, text) = openssl(&[
            "verify",
            "-x509_strict",
            "-attime",
            &at,
            "-purpose",
            purpose,
            "-CAfile",
            root.to_str().unwrap(),
            leaf.to_str().unwrap(),
        ]);
        assert!(ok, "{text}");
    }

    fn text(&self, pem: &str) -> String {
        let path = self.folder.put("text.pem", pem);
        let (ok, text) = openssl(&["x509", "-noout", "-text", "-in", path.to_str().unwrap()]);
        assert!(ok, "{text}");
        text
    }
}

fn open(folder: &Folder, keys: &Arc<SoftKeys>, config: &str, now: i64) -> Certs {
    let config = format!("homedir_path = \"/nowhere\"\n{config}");
    let config: Certificates = toml::from_str(&config).unwrap();
    let rules = Rules::guarded(support::uid());
    let dir = Dir::open_or_create(&folder.path().join("certs"), rules).unwrap();
    let clock = move || Now {
        monotonic_ms: 0,
        wall: now,
        trust: ClockTrust::Network,
    };
    let keys: Arc<dyn Keys> = Arc::<SoftKeys>::clone(keys);
    Certs::new(
        config,
        dir,
        rules,
        keys,
        Arc::new(clock),
        Arc::new(|_, _| {}),
    )
}

const QUICKSTART: &str = r#"
[cert_issuance.aziot-edged-ca]
method = "self_signed"
expiry_days = 90
common_name = "my-device quickstart"
"#;

fn id(text: &str) -> CertId {
    CertId::new(text).unwrap()
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

pub(crate) fn authority_request(keys: &SoftKeys, handle: &KeyHandle, common: &str) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(common);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
    ];
    let key = RemoteKey::new(keys, handle, keys.public(handle));
    params.serialize_request(&key).unwrap().pem().unwrap()
}

fn leaf_params(common: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = name(common);
    params
}

fn request(params: &CertificateParams) -> String {
    params
        .serialize_request(&KeyPair::generate().unwrap())
        .unwrap()
        .pem()
        .unwrap()
}

fn by(handle: &KeyHandle) -> Issuer {
    Issuer {
        cert_id: id("aziot-edged-ca"),
        private_key_handle: handle.clone(),
    }
}

#[test]
fn openssl_accepts_an_edge_ca_and_the_leaves_of_both_roles() {
    let world = World::new("roles", QUICKSTART);
    let handle = world.edge_ca();
    let ca = world.certs.read(&id("aziot-edged-ca")).unwrap().to_pem();
    let text = world.text(&ca);
    for want in [
        "CN = my-device quickstart",
        "X509v3 Basic Constraints: critical\n                CA:TRUE, pathlen:0",
        "X509v3 Key Usage: critical\n                Digital Signature, Certificate Sign",
        "X509v3 Subject Key Identifier",
        "Not Before: Nov 23 23:55:00 2026 GMT",
        "Not After : Feb 22 00:00:00 2027 GMT",
    ] {
        assert!(text.contains(want), "{want}\n{text}");
    }
    assert!(!text.contains("Authority Key Identifier"), "{text}");

    let mut server = leaf_params("edge-hub", &["edge-hub", "192.168.7.1"]);
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let server_id = id("aziot-edged/module/edgeHub:637:server");
    let chain = world
        .certs
        .issue(&server_id, &request(&server), Some(&by(&handle)))
        .unwrap()
        .to_pem();
    assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), 2);
    assert!(
        chain.ends_with(&ca),
        "the chain is the leaf and then the issuer"
    );
    let text = world.text(&chain);
    for want in [
        "CA:FALSE",
        "TLS Web Server Authentication",
        "DNS:edge-hub, IP Address:192.168.7.1",
        "Authority Key Identifier",
        "Key Usage: critical\n                Digital Signature\n",
    ] {
        assert!(text.contains(want), "{want}\n{text}");
    }
    assert!(!text.contains("Client Auth"), "{text}");
    world.openssl_verify(&chain, "sslserver");
    assert_eq!(world.certs.read(&server_id).unwrap().to_pem(), chain);

    let mut client = leaf_params("mod", &[]);
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let uri = "URI: azureiot://hub.test/devices/d/modules/mod";
    client.subject_alt_names = vec![rcgen::SanType::DnsName(uri.try_into().unwrap())];
    let client_id = id("aziot-edged/module/mod:identity");
    let chain = world
        .certs
        .issue(&client_id, &request(&client), Some(&by(&handle)))
        .unwrap()
        .to_pem();
    assert!(
        world
            .text(&chain)
            .contains("URI:azureiot://hub.test/devices/d/modules/mod")
    );
    world.openssl_verify(&chain, "sslclient");
}

#[test]
fn rsa_keys_sign_and_are_signed() {
    let world = World::new("rsa", QUICKSTART);
    let handle = world.keys.rsa("aziot-edged-ca", KeySize::Rsa2048);
    let csr = authority_request(&world.keys, &handle, "edge CA");
    world
        .certs
        .issue(&id("aziot-edged-ca"), &csr, None)
        .unwrap();
    let leaf = world.keys.rsa("leaf", KeySize::Rsa2048);
    let mut params = leaf_params("leaf", &["leaf"]);
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let key = RemoteKey::new(&*world.keys, &leaf, world.keys.public(&leaf));
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    let chain = world
        .certs
        .issue(&id("leaf"), &csr, Some(&by(&handle)))
        .unwrap()
        .to_pem();
    let text = world.text(&chain);
    assert!(
        text.contains("Digital Signature, Key Encipherment"),
        "{text}"
    );
    assert!(text.contains("sha256WithRSAEncryption"), "{text}");
    world.openssl_verify(&chain, "sslserver");
    world.openssl_verify(&chain, "sslclient");
}

#[test]
fn the_devices_own_authority_issues_an_edge_ca_below_it() {
    let world = World::new(
        "local-ca",
        r#"
        [cert_issuance]
        local_ca = { cert = "local-ca", pk = "local-ca" }
        [cert_issuance.local-ca]
        method = "self_signed"
        subject = { CN = "home CA", O = "Home", C = "de" }
        [cert_issuance.aziot-edged-ca]
        method = "local_ca"
        "#,
    );
    let authority = world.keys.ec("local-ca");
    let csr = authority_request(&world.keys, &authority, "ignored");
    let root = world
        .certs
        .issue(&id("local-ca"), &csr, None)
        .unwrap()
        .to_pem();
    let text = world.text(&root);
    assert!(
        text.contains("CA:TRUE, pathlen:1") && text.contains("CN = home CA"),
        "{text}"
    );
    let edge = world.keys.ec("aziot-edged-ca");
    let csr = authority_request(&world.keys, &edge, "edge CA");
    let chain = world
        .certs
        .issue(&id("aziot-edged-ca"), &csr, None)
        .unwrap();
    assert_eq!(chain.count(), 2);
    let mut params = leaf_params("m", &["m"]);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let leaf = world
        .certs
        .issue(&id("m"), &request(&params), Some(&by(&edge)))
        .unwrap();
    let (root, leaf) = (
        world.folder.put("local.pem", &root),
        world.folder.put("chain.pem", &leaf.to_pem()),
    );
    let (root, leaf) = (root.to_str().unwrap(), leaf.to_str().unwrap());
    let at = NOW.to_string();
    let (ok, text) = openssl(&[
        "verify",
        "-x509_strict",
        "-attime",
        &at,
        "-CAfile",
        root,
        "-untrusted",
        leaf,
        leaf,
    ]);
    assert!(ok, "{text}");
}

#[test]
fn a63_names_a_certificate_must_not_carry_are_refused_before_anything_is_signed() {
    let world = World::new("a63", QUICKSTART);
    let handle = world.edge_ca();
    let many: Vec<String> = (0..1000).map(|n| format!("n{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for names in [&["*"][..], &["*.home.lan"], &["a..b"], &[" "], &many] {
        let csr = request(&leaf_params("m", names));
        let refused = world.certs.issue(
            &id("aziot-edged/module/m:1:server"),
            &csr,
            Some(&by(&handle)),
        );
        assert!(
            matches!(refused, Err(CertsError::Csr(_))),
            "{:?}",
            names.first()
        );
    }
    let mut nobody = leaf_params("m", &["m"]);
    nobody.distinguished_name = DistinguishedName::new();
    let refused = world
        .certs
        .issue(&id("m"), &request(&nobody), Some(&by(&handle)));
    assert!(matches!(refused, Err(CertsError::Asked(_))));
    let impostor = leaf_params("my-device quickstart", &["m"]);
    let refused = world
        .certs
        .issue(&id("m"), &request(&impostor), Some(&by(&handle)));
    assert!(
        matches!(refused, Err(CertsError::Asked(_))),
        "a leaf with the issuer's name"
    );
    assert!(matches!(
        world.certs.read(&id("m")),
        Err(CertsError::NotFound)
    ));
}

#[test]
fn a64_a_request_gets_what_the_table_says_and_never_its_own_extensions() {
    let world = World::new("a64", QUICKSTART);
    let handle = world.edge_ca();
    let module = id("aziot-edged/module/m:1:server");
    let issue = |csr: &str| world.certs.issue(&module, csr, Some(&by(&handle)));

    let mut authority = leaf_params("m", &[]);
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    assert!(
        matches!(issue(&request(&authority)), Err(CertsError::Asked(_))),
        "CA:TRUE"
    );

    let mut usages = leaf_params("m", &["m"]);
    usages.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let text = world.text(&issue(&request(&usages)).unwrap().to_pem());
    assert!(
        !text.contains("Sign, C") && !text.contains("CRL Sign"),
        "{text}"
    );
    assert!(
        text.contains("Digital Signature") && text.contains("CA:FALSE"),
        "{text}"
    );

    for usage in [
        ExtendedKeyUsagePurpose::Any,
        ExtendedKeyUsagePurpose::CodeSigning,
    ] {
        let mut params = leaf_params("m", &["m"]);
        params.extended_key_usages = vec![usage, ExtendedKeyUsagePurpose::ServerAuth];
        assert!(matches!(issue(&request(&params)), Err(CertsError::Csr(_))));
    }

    for length in [2, 60_000] {
        let mut params = leaf_params("m", &["m"]);
        let mut content = vec![0x04, 0x82];
        content.extend(u16::try_from(length).unwrap().to_be_bytes());
        content.resize(4 + length, 0);
        params.custom_extensions = vec![CustomExtension::from_oid_content(
            &[1, 3, 6, 1, 4, 1, 99_999, 1],
            content,
        )];
        assert!(
            matches!(issue(&request(&params)), Err(CertsError::Csr(_))),
            "{length}"
        );
    }

    let good = request(&leaf_params("m", &["m"]));
    let other = request(&leaf_params("m", &["m"]));
    let (lines, others): (Vec<&str>, Vec<&str>) = (good.lines().collect(), other.lines().collect());
    let mut mixed = lines.clone();
    let end = lines.len() - 2;
    mixed[end] = others[end];
    assert!(
        matches!(issue(&mixed.join("\n")), Err(CertsError::Csr(_))),
        "bad self-signature"
    );
    for not_one in ["", "no PEM", &format!("{good}{good}")] {
        assert!(matches!(issue(not_one), Err(CertsError::Csr(_))));
    }

    let (key, csr) = (world.folder.put("k", ""), world.folder.put("weak.csr", ""));
    let (key, csr) = (key.to_str().unwrap(), csr.to_str().unwrap());
    for algorithm in ["rsa:1024", "rsa:1536"] {
        let (ok, text) = openssl(&[
            "req", "-new", "-newkey", algorithm, "-nodes", "-subj", "/CN=m", "-keyout", key,
            "-out", csr,
        ]);
        assert!(ok, "{text}");
        let weak = std::fs::read_to_string(csr).unwrap();
        assert!(
            matches!(issue(&weak), Err(CertsError::Csr(_))),
            "{algorithm}"
        );
    }
    let (ok, text) = openssl(&[
        "req", "-new", "-newkey", "rsa:2048", "-sha1", "-nodes", "-subj", "/CN=m", "-keyout", key,
        "-out", csr,
    ]);
    assert!(ok, "{text}");
    let sha1 = std::fs::read_to_string(csr).unwrap();
    assert!(matches!(issue(&sha1), Err(CertsError::Csr(_))), "SHA-1");
}

#[test]
fn a64_a_request_altered_anywhere_is_refused_or_says_the_same() {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    let text = request(&leaf_params("m", &["m", "192.168.7.1"]));
    let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    let der = STANDARD.decode(body).unwrap();
    let armoured = |der: &[u8]| {
        let body = STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n")
    };
    let said = |r: Request| (r.key_der, r.rsa, r.subject, r.names, r.wish);
    let whole = said(Request::parse(&armoured(&der)).unwrap());
    for at in 0..der.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut altered = der.clone();
            altered[at] ^= flip;
            // The wrapping around what is signed has more than one spelling.
            if let Ok(request) = Request::parse(&armoured(&altered)) {
                assert_eq!(said(request), whole, "byte {at} ^ {flip:#x}");
            }
        }
        assert!(
            Request::parse(&armoured(&der[..at])).is_err(),
            "cut at {at}"
        );
    }
    let longer = [der.as_slice(), &[0]].concat();
    assert!(Request::parse(&armoured(&longer)).is_err());
}

#[test]
fn a64_nobody_signs_with_a_key_that_is_not_the_issuers() {
    let world = World::new("a64-key", QUICKSTART);
    let handle = world.edge_ca();
    let other = world.keys.ec("other");
    let csr = request(&leaf_params("m", &["m"]));
    let refused = world.certs.issue(&id("m"), &csr, Some(&by(&other)));
    assert!(
        matches!(refused, Err(CertsError::NamedIssuer(_))),
        "{refused:?}"
    );
    // Self-signed, for somebody else's key.
    let csr = authority_request(&world.keys, &other, "edge CA");
    let refused = world.certs.issue(&id("aziot-edged-ca"), &csr, None);
    assert!(matches!(refused, Err(CertsError::Asked(_))), "{refused:?}");
    // A leaf is no issuer.
    world
        .certs
        .issue(
            &id("m"),
            &request(&leaf_params("m", &["m"])),
            Some(&by(&handle)),
        )
        .unwrap();
    let leaf = Issuer {
        cert_id: id("m"),
        private_key_handle: handle,
    };
    let refused = world
        .certs
        .issue(&id("n"), &request(&leaf_params("n", &["n"])), Some(&leaf));
    assert!(
        matches!(refused, Err(CertsError::NamedIssuer(_))),
        "{refused:?}"
    );
    let nobody = Issuer {
        cert_id: id("nobody"),
        ..leaf
    };
    let refused = world
        .certs
        .issue(&id("n"), &request(&leaf_params("n", &["n"])), Some(&nobody));
    assert!(
        matches!(refused, Err(CertsError::NamedIssuer("not found"))),
        "{refused:?}"
    );
}

#[test]
fn a65_no_leaf_outlives_its_issuer() {
    let config = format!(
        "{QUICKSTART}\n[cert_issuance.m]\nmethod = \"self_signed\"\nexpiry_days = 3000000\n"
    );
    let world = World::new("a65", &config);
    let handle = world.edge_ca();
    let chain = world
        .certs
        .issue(
            &id("m"),
            &request(&leaf_params("m", &["m"])),
            Some(&by(&handle)),
        )
        .unwrap();
    let text = world.text(&chain.to_pem());
    assert!(
        text.contains("Not After : Feb 22 00:00:00 2027 GMT"),
        "clipped to the issuer's: {text}"
    );
    let over = world.later(&config, NOW + 91 * DAY);
    let refused = over.issue(
        &id("m"),
        &request(&leaf_params("m", &["m"])),
        Some(&by(&handle)),
    );
    assert!(
        matches!(refused, Err(CertsError::NamedIssuer("it is expired"))),
        "{refused:?}"
    );
    // By itself, for ever: to the last second a certificate can name.
    let own = world.keys.ec("m");
    let key = RemoteKey::new(&*world.keys, &own, world.keys.public(&own));
    let csr = leaf_params("m", &["m"])
        .serialize_request(&key)
        .unwrap()
        .pem()
        .unwrap();
    let text = world.text(&world.certs.issue(&id("m"), &csr, None).unwrap().to_pem());
    assert!(
        text.contains("Not After : Dec 31 23:59:59 9999 GMT"),
        "{text}"
    );
    for bad in ["0", "-1"] {
        let text = format!(
            "homedir_path = \"/\"\n[cert_issuance.m]\nmethod = \"self_signed\"\nexpiry_days = {bad}\n"
        );
        assert!(toml::from_str::<Certificates>(&text).is_err(), "{bad}");
    }
}

#[test]
fn a134_a_damaged_file_is_answered_from_the_previous_generation() {
    let world = World::new("a134", QUICKSTART);
    world.edge_ca();
    let ca = id("aziot-edged-ca");
    let first = world.certs.read(&ca).unwrap();
    world.edge_ca();
    let second = world.certs.read(&ca).unwrap();
    assert_ne!(first, second);
    let file = format!("certs/{}", identityd::certs::file_name(&ca));
    let whole = second.to_pem();
    for damaged in [
        "",
        "\0\0\0\0",
        &whole[..whole.len() / 2],
        &whole.replace("CERT", "DERT"),
    ] {
        world.folder.put(&file, damaged);
        assert_eq!(world.certs.read(&ca).unwrap(), first, "{damaged:?}");
    }
    world.folder.put(&format!("{file}.prev"), "");
    assert!(
        matches!(world.certs.read(&ca), Err(CertsError::Damaged { .. })),
        "never: not found"
    );
    world.certs.delete(&ca).unwrap();
    assert!(matches!(world.certs.read(&ca), Err(CertsError::NotFound)));
    world.certs.delete(&ca).unwrap();
}

#[test]
fn files_of_the_operator_and_bundles_of_bundles() {
    let folder = Folder::new("bundles-source");
    let brought = World::new("bundles-other", QUICKSTART);
    brought.edge_ca();
    let root = brought.certs.read(&id("aziot-edged-ca")).unwrap().to_pem();
    let key = "-----BEGIN PRIVATE KEY-----\nMC4=\n-----END PRIVATE KEY-----\n";
    let path = folder.put("root.pem", &format!("# ours\n{key}{root}"));
    let config = format!(
        r#"
        [preloaded_certs]
        user = "file://{}"
        absent = "file:///nonexistent/x.pem"
        inner = ["user", "absent", "nothing"]
        bundle = ["aziot-edged-ca", "inner", "user"]
        empty = ["nothing"]
        {QUICKSTART}"#,
        path.display()
    );
    let world = World::new("bundles", &config);
    world.edge_ca();
    assert_eq!(
        world.certs.read(&id("user")).unwrap().to_pem(),
        root,
        "without the private key"
    );
    assert_eq!(world.certs.read(&id("bundle")).unwrap().count(), 3);
    for none in ["empty", "absent", "nothing"] {
        assert!(
            matches!(world.certs.read(&id(none)), Err(CertsError::NotFound)),
            "{none}"
        );
    }
    assert!(matches!(
        world.certs.import(&id("bundle"), &root),
        Err(CertsError::Bundle { .. })
    ));
    assert!(matches!(
        world.certs.delete(&id("inner")),
        Err(CertsError::Bundle { .. })
    ));
    assert!(matches!(
        world.certs.import(&id("x"), key),
        Err(CertsError::Import(_))
    ));
    assert!(matches!(
        world.certs.import(&id("x"), "x"),
        Err(CertsError::Import(_))
    ));
    // Writing to an operator's file replaces it whole, in its place.
    let ca = world.certs.read(&id("aziot-edged-ca")).unwrap().to_pem();
    world.certs.import(&id("user"), &ca).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), ca);
}
