//! Names from outside and the paths they travel in (A14, A33, A42).
//!
//! Invariant: an accepted name has only the bytes and the length of its grammar, written down
//! here a second time. Round trip: a name through percent-encoding, through a path and back is
//! itself; and what a path's placeholders were read as, written again, reads the same.
#![no_main]

use contract::endpoint::{Parts, Target, match_path, percent_decode, percent_encode, write_path};
use contract::grant::GrantName;
use contract::names::*;

const PATTERN: &str = "/modules/{name}/genid/{generation}/sign";

libfuzzer_sys::fuzz_target!(|text: &str| {
    let is = |most, more: &str| {
        let fits = |b: u8| b.is_ascii_alphanumeric() || more.as_bytes().contains(&b);
        (1..=most).contains(&text.len()) && text.bytes().all(fits)
    };
    let printable = is(256, " !\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~");
    assert_eq!(KeyId::new(text).is_ok(), printable);
    assert_eq!(CertId::new(text).is_ok(), printable);
    assert_eq!(DeviceId::new(text).is_ok(), is(128, "-.%_*?!(),:=@$'+#"));
    assert_eq!(ModuleId::new(text).is_ok(), is(128, "-.%_*?!(),:=@$'"));
    assert_eq!(HostName::new(text).is_ok(), is(261, "-._:[]"));
    assert_eq!(Generation::new(text).is_ok(), {
        printable && is(128, "!\"#$%&'()*+,-.:;<=>?@[\\]^_`{|}~")
    });
    assert!(RegistrationId::new(text).is_err() || is(128, "-._:"));
    let system = ["$edgeAgent", "$edgeHub"].contains(&text);
    let plain = is(128, "_.-") && !text.starts_with(['_', '.', '-']);
    assert_eq!(ModuleName::new(text).is_ok(), plain || system);
    assert_eq!(GrantName::new(text).is_ok(), plain);

    let mut encoded = String::new();
    percent_encode(text, &mut encoded);
    assert_eq!(percent_decode(&encoded).as_deref(), Some(text));
    if let Ok(name) = ModuleName::new(text) {
        let target = (name, Generation::new("7").unwrap());
        assert_eq!(there_and_back(&target.write()), Some(target.write()));
        let parts = there_and_back(&target.write()).unwrap();
        assert_eq!(<(ModuleName, Generation)>::read(&parts).unwrap(), target);
    }
    for pattern in ["/keys/{id}", PATTERN] {
        if let Some(path) = match_path(pattern, text) {
            let parts = Parts {
                path,
                query: Vec::new(),
            };
            let again = write_path(pattern, &parts, "1");
            let again = again.split('?').next().unwrap_or_default();
            let fits = parts.path.iter().all(|value| !value.is_empty());
            assert!(fits && match_path(pattern, again) == Some(parts.path));
        }
    }
});

fn there_and_back(parts: &Parts) -> Option<Parts> {
    let target = write_path(PATTERN, parts, "1");
    let path = match_path(PATTERN, target.split('?').next()?)?;
    Some(Parts {
        path,
        query: Vec::new(),
    })
}
