//! Certificates in PEM, from imports and operators' files (A78).
//!
//! Round trip: an accepted chain, written in our one form, reads as the same chain. Invariant:
//! what is written holds certificates and nothing else, within the limits, and a private key in
//! the text is refused by an import and gone from a file.
#![no_main]

use identityd::pem::{Chain, MAX_CERTIFICATES, PemError};

const KEY: &str = "\n-----BEGIN PRIVATE KEY-----\nMC4=\n-----END PRIVATE KEY-----\n";

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok((chain, foreign)) = Chain::parse_file(text) {
        let written = chain.to_pem();
        assert_eq!(Chain::parse(&written).as_ref(), Ok(&chain));
        assert_eq!(Chain::parse(text).is_ok(), foreign.is_none());
        assert!((1..=MAX_CERTIFICATES).contains(&chain.count()));
        assert_eq!(
            written.matches("-----BEGIN CERTIFICATE-----\n").count(),
            chain.count()
        );
        assert_eq!(written.matches("-----").count(), 4 * chain.count());
        for marker in ["-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"] {
            assert!(text.matches(marker).count() >= chain.count());
        }
        let with_key = format!("{KEY}{text}");
        match Chain::parse(&with_key) {
            Err(PemError::Foreign { index: 1 }) => {
                let (kept, _) = Chain::parse_file(&with_key).unwrap();
                assert_eq!(kept, chain);
            }
            other => assert!(matches!(other, Err(PemError::TooMany | PemError::TooLong))),
        }
    }
});
