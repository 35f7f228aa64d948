//! Tokens and connection strings (A76).
//!
//! Invariant: an accepted token verifies under no key that the fuzzer does not have, and its
//! fields are in its text. Round trip: a connection string written again reads the same, and the
//! token made from it is accepted for what it names, until its time is over, under its own key.
#![no_main]

use std::sync::LazyLock;

use contract::sas::{Audience, decode, encode, unescape};
use contract::sas::{ConnectionString, Holder, LEEWAY, MAX_TOKEN, SasError, SasKey, Token};

const NOW: i64 = 1_700_000_000;
static OTHER: LazyLock<SasKey> = LazyLock::new(|| SasKey::new(vec![0xa5; 32].into()).unwrap());

libfuzzer_sys::fuzz_target!(|text: &str| {
    assert_eq!(unescape(&encode(text)).as_deref(), Some(text));
    if let Some(plain) = decode(text) {
        assert!(!plain.bytes().any(|byte| byte.is_ascii_control()));
    }
    if let Ok(token) = Token::parse(text) {
        assert!(text.contains(&format!("={}", token.resource())) && !token.resource().is_empty());
        assert!(token.closes() >= LEEWAY && text.contains(&(token.closes() - LEEWAY).to_string()));
        for (host, device) in [("hub", "dev"), (token.resource(), "dev")] {
            for audience in [
                Audience::Service { host },
                Audience::Device { host, device },
            ] {
                assert!(token.verify(&audience, &[&OTHER], NOW).is_err());
            }
        }
    }
    if let Ok(connection) = ConnectionString::parse(text) {
        connect(&connection);
    }
});

fn connect(connection: &ConnectionString) {
    let holder = match &connection.holder {
        Holder::Device(device) => format!("DeviceId={device}"),
        Holder::Module(device, module) => format!("DeviceId={device};ModuleId={module}"),
        Holder::Policy(policy) => format!("SharedAccessKeyName={policy}"),
    };
    let (host, key) = (&connection.host, connection.key.to_base64());
    let text = format!("HostName={host};{holder};SharedAccessKey={}", key.as_str());
    // The first form may be the shorter one only by an optional semicolon at its end.
    let again = ConnectionString::parse(&text).unwrap();
    assert!(again.holder == connection.holder && again.host == *host);
    let audience = connection.audience();
    let token = connection.token(NOW, 60).unwrap();
    if token.len() > MAX_TOKEN {
        return;
    }
    let token = Token::parse(&token).unwrap();
    let verify = |key, now| token.verify(&audience, &[key], now);
    assert_eq!(verify(&connection.key, NOW), Ok(()));
    assert_eq!(
        verify(&connection.key, NOW + 61 + LEEWAY),
        Err(SasError::Expired)
    );
    assert_eq!(verify(&OTHER, NOW), Err(SasError::Signature));
}
