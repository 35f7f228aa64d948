//! Key handles (A39).
//!
//! Round trip: a body under a good MAC, which the fuzzer is given and an attacker is not, opens
//! only if sealing what it says gives the same text. Invariant: that text with any bit turned, cut
//! anywhere or under another key is no handle; nor is any text that the fuzzer makes up.
#![no_main]

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use contract::api::key::KeyHandle;
use contract::handle::{HandleError, Sealer};

const KEY: &[u8] = b"handle-validation-key";

libfuzzer_sys::fuzz_target!(|input: (u16, u8, &[u8])| {
    let (at, bit, body) = input;
    let sealer = Sealer::new(KEY);
    let refused = |text: &str| {
        let got = sealer.open(&KeyHandle(text.to_owned()));
        assert_eq!(got, Err(HandleError::Invalid), "{text}");
    };
    if let Ok(text) = std::str::from_utf8(body) {
        refused(text);
        refused(&format!("hf1.{text}"));
    }
    let signed = format!("hf1.{}", URL_SAFE_NO_PAD.encode(body));
    let key = hmac::Key::new(hmac::HMAC_SHA256, KEY);
    let mac = hmac::sign(
        &key,
        &[b"holdfast key handle\0", signed.as_bytes()].concat(),
    );
    let text = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.as_ref()));
    let Ok(handle) = sealer.open(&KeyHandle(text.clone())) else {
        return;
    };
    assert_eq!(sealer.seal(&handle).unwrap().0, text);
    assert!(
        Sealer::new(b"another key")
            .open(&KeyHandle(text.clone()))
            .is_err()
    );
    let at = usize::from(at) % text.len();
    refused(&text[..at]);
    let mut bent = text.into_bytes();
    bent[at] ^= 1 << (bit % 7);
    refused(std::str::from_utf8(&bent).unwrap());
});
