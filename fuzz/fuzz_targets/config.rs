//! Configuration files (A139).
//!
//! Invariant: whatever stands around it, a secret value never comes back in an error, not even
//! where a number, a list or a word of a closed set was expected; and every error about a value
//! that the text holds names the file. The fuzzer writes what is before the secret and, behind a
//! line `%%`, what is after it.
#![no_main]

use contract::names::KeyId;
use local::config::Sources;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "what is read is not looked at")]
struct Config {
    secret: Option<String>,
    number: Option<Holder<u8>>,
    word: Option<Holder<Word>>,
    #[serde(default)]
    list: Vec<Holder<KeyId>>,
    pair: Option<Holder<(u8, bool)>>,
    inner: Option<Holder<Holder<bool>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "what is read is not looked at")]
struct Holder<T> {
    secret: T,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    One,
    Two,
}

libfuzzer_sys::fuzz_target!(|text: &str| {
    let (before, after) = text.split_once("\n%%\n").unwrap_or((text, ""));
    for (secret, value) in [
        ("48151623421", "48151623421"),
        ("-481516.2342", "-481516.2342"),
        ("pa55word", "\"pa55word\""),
        ("pa55word", "\"x, expected \\n`pa55word`\""),
        ("pa55word", "[\"pa55word\"]"),
    ] {
        let text = format!("{before}\nsecret = {value}\n{after}");
        if text.matches(secret).count() != value.matches(secret).count() {
            return;
        }
        for files in [
            vec![("a.toml", &text[..])],
            vec![("a.toml", before), ("b.toml", &text)],
        ] {
            let Err(error) = Sources::of(&files).parse::<Config>() else {
                continue;
            };
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains(secret), "{shown}");
            assert!(
                shown.contains("toml") || shown.contains("configuration"),
                "{shown}"
            );
        }
    }
});
