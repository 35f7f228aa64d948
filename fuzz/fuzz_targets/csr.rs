//! Certificate requests (A64, A63).
//!
//! The fuzzer writes the inside of a request and this target signs it, so that what lies behind
//! the check of the signature is reached. Invariant: what is accepted carries the signer's key,
//! and no longer when a bit of the signature turns. Round trip: subject and names of an accepted
//! request, written by rcgen into another one, are read as the same.
#![no_main]

use std::sync::LazyLock;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use identityd::csr::{CsrError, Request};
use rcgen::{CertificateParams, KeyPair};

/// The private key is the number one: its public key, which the seeds hold, is the base point.
static SIGNER: LazyLock<EcdsaKeyPair> = LazyLock::new(|| {
    let (mut one, seed) = ([0; 32], include_bytes!("../seeds/csr/plain"));
    one[31] = 1;
    let point = seed
        .windows(65)
        .find(|w| w.starts_with(&[4, 0x6b, 0x17, 0xd1]))
        .unwrap();
    EcdsaKeyPair::from_private_key_and_public_key(&ECDSA_P256_SHA256_ASN1_SIGNING, &one, point)
        .unwrap()
});
static WRITER: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate().unwrap());

libfuzzer_sys::fuzz_target!(|info: &[u8]| {
    let signature = SIGNER.sign(&SystemRandom::new(), info).unwrap();
    let mut signature = [&[0], signature.as_ref()].concat();
    let Ok(request) = Request::parse(&pem(info, &signature)) else {
        return;
    };
    assert!(request.key_der.ends_with(SIGNER.public_key().as_ref()) && !request.rsa);
    *signature.last_mut().unwrap() ^= 1;
    let bent = Request::parse(&pem(info, &signature));
    assert!(matches!(bent, Err(CsrError::Signature)), "{bent:?}");

    let mut params = CertificateParams::default();
    params.distinguished_name = request.subject.clone().unwrap_or_default();
    params.subject_alt_names = request.names.clone();
    let again = params.serialize_request(&*WRITER).unwrap().pem().unwrap();
    let again = Request::parse(&again).unwrap();
    assert_eq!(
        (again.subject, again.names),
        (request.subject, request.names)
    );
});

fn pem(info: &[u8], signature: &[u8]) -> String {
    // ecdsa-with-SHA256
    let algorithm = [0x30, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
    let body = [info, &algorithm, &tagged(3, signature)].concat();
    let text = STANDARD.encode(tagged(0x30, &body));
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n")
}

fn tagged(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let start = length.iter().take_while(|b| **b == 0).count().min(3);
    let long = u8::try_from(4 - start).unwrap() | 0x80;
    let head = if body.len() < 128 {
        vec![tag]
    } else {
        vec![tag, long]
    };
    [&head, &length[start..], body].concat()
}
