//! Names from outside, each with its own type and grammar (R5, R16, A14, A33).
//!
//! A name is checked once, where it enters, and keeps its type to the bottom. Nothing is cleaned
//! or trimmed: a text that does not fit is refused.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A text that is no name of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {kind}: {why}")]
pub struct BadName {
    /// The kind of name.
    pub kind: &'static str,
    /// What was wrong, without the text itself.
    pub why: &'static str,
}

/// Defines a name type: a checked string that serialises as a string.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks the text.
            ///
            /// # Errors
            /// [`BadName`] when it does not fit the grammar.
            pub fn new(text: impl Into<String>) -> Result<Self, BadName> {
                let text = text.into();
                let check: fn(&str) -> Result<(), &'static str> = $check;
                match check(&text) {
                    Ok(()) => Ok(Self(text)),
                    Err(why) => Err(BadName { kind: $kind, why }),
                }
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadName;
            fn try_from(text: String) -> Result<Self, BadName> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    };
}

fn length(text: &str, most: usize) -> Result<(), &'static str> {
    match text.len() {
        0 => Err("empty"),
        n if n > most => Err("too long"),
        _ => Ok(()),
    }
}

fn printable(text: &str) -> Result<(), &'static str> {
    length(text, 256)?;
    let fits = text.bytes().all(|b| (0x20..0x7f).contains(&b));
    if fits {
        Ok(())
    } else {
        Err("only printable ASCII is allowed")
    }
}

fn module(text: &str) -> Result<(), &'static str> {
    // The two system modules exist with and without their dollar sign; nothing else may have one.
    let plain = match text {
        "$edgeAgent" | "$edgeHub" => &text[1..],
        _ => text,
    };
    length(plain, 128)?;
    if !plain.as_bytes()[0].is_ascii_alphanumeric() {
        return Err("must begin with a letter or digit");
    }
    if !plain
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
    {
        return Err("only letters, digits, '_', '.' and '-' are allowed");
    }
    Ok(())
}

fn grant(text: &str) -> Result<(), &'static str> {
    if text.starts_with('$') {
        Err("begins with '$'")
    } else {
        module(text)
    }
}

fn hub_id(text: &str, more: &[u8]) -> Result<(), &'static str> {
    length(text, 128)?;
    let fits =
        |b: u8| b.is_ascii_alphanumeric() || b"-.%_*?!(),:=@$'".contains(&b) || more.contains(&b);
    if text.bytes().all(fits) {
        Ok(())
    } else {
        Err("a character is not allowed")
    }
}

fn registration(text: &str) -> Result<(), &'static str> {
    length(text, 128)?;
    if !text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-._:".contains(&b))
    {
        return Err("only letters, digits, '-', '.', '_' and ':' are allowed");
    }
    let ends = [text.as_bytes()[0], text.as_bytes()[text.len() - 1]];
    if !ends[0].is_ascii_alphanumeric() || !(ends[1].is_ascii_alphanumeric() || ends[1] == b'-') {
        return Err("must begin and end with a letter or digit");
    }
    Ok(())
}

fn host(text: &str) -> Result<(), &'static str> {
    length(text, 261)?;
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
    if text.bytes().all(fits) {
        Ok(())
    } else {
        Err("a character is not allowed in a host name")
    }
}

fn generation(text: &str) -> Result<(), &'static str> {
    length(text, 128)?;
    let fits = text.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
    if fits {
        Ok(())
    } else {
        Err("a character is not allowed")
    }
}

name!(
    /// A key id: 1 to 256 printable bytes, slash included. Never used as a path (R16).
    KeyId, "key id", printable
);
name!(
    /// A certificate id: 1 to 256 printable bytes, slash included. Never used as a path (R16).
    CertId, "certificate id", printable
);
name!(
    /// A module's name, with the `$` of a system module where the caller wrote it.
    ModuleName, "module name", module
);
name!(
    /// Name of a grant: its file's name without `.toml`, in the grammar of a module's plain name.
    GrantName,
    "grant name",
    grant
);
name!(
    /// A device id in the hub's grammar (reference/cloud.md 3.2).
    DeviceId, "device id", |text| hub_id(text, b"+#")
);
name!(
    /// A module id at the hub: wider than [`ModuleName`], since others may create identities.
    ModuleId, "module id", |text| hub_id(text, b"")
);
name!(
    /// A registration id of the provisioning service (reference/cloud.md 1.1).
    RegistrationId, "registration id", registration
);
name!(
    /// A host name or address, with an optional port.
    HostName, "host name", host
);
name!(
    /// The hub's id for one creation of a module identity.
    Generation, "generation id", generation
);

impl ModuleName {
    /// The name without the `$` of a system module: what a process, socket or folder is called.
    #[must_use]
    pub fn plain(&self) -> &str {
        self.0.strip_prefix('$').unwrap_or(&self.0)
    }

    /// The module's identity at the hub: `edgeAgent` and `edgeHub` carry a `$` there.
    #[must_use]
    pub fn identity(&self) -> String {
        match self.plain() {
            system @ ("edgeAgent" | "edgeHub") => format!("${system}"),
            name => name.to_owned(),
        }
    }

    /// Whether both names mean the same module; nothing but one `$` of a system module is
    /// optional (R5).
    #[must_use]
    pub fn same_module(&self, other: &Self) -> bool {
        self.plain() == other.plain()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a14_spellings_of_a_module_name_are_not_aliases() {
        for good in [
            "edgeAgent",
            "$edgeAgent",
            "$edgeHub",
            "a",
            "A.b-c_9",
            &"m".repeat(128),
        ] {
            assert!(ModuleName::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "$",
            "$$edgeAgent",
            "$tempsensor",
            "%24edgeAgent",
            "a\0",
            "a b",
            "a/b",
            "..",
            ".hidden",
            "-a",
            "edgeAgent\u{200b}",
            "\u{ff45}dgeAgent",
            &"m".repeat(129),
        ] {
            assert!(ModuleName::new(bad).is_err(), "{bad}");
        }
        let agent = ModuleName::new("edgeAgent").unwrap();
        assert!(agent.same_module(&ModuleName::new("$edgeAgent").unwrap()));
        assert!(!agent.same_module(&ModuleName::new("EDGEAGENT").unwrap()));
        assert_eq!(agent.identity(), "$edgeAgent");
    }

    #[test]
    fn a42_key_ids_are_bounded_and_printable() {
        assert!(KeyId::new("aziot-edged/module/a:1:server").is_ok());
        assert!(KeyId::new("k".repeat(256)).is_ok());
        for bad in [
            "",
            "a\u{7f}",
            "a\n",
            "\u{e9}",
            &"k".repeat(257),
            &"k".repeat(10_240),
        ] {
            assert!(KeyId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_follow_the_hubs_grammar() {
        assert!(DeviceId::new("dev-1+#").is_ok());
        assert!(ModuleId::new("dev+1").is_err());
        assert!(RegistrationId::new("reg:1.a-").is_ok());
        assert!(RegistrationId::new("-reg").is_err());
        assert!(HostName::new("hub.example.net:8443").is_ok());
        assert!(HostName::new("hub/evil").is_err());
        assert!(Generation::new("637").is_ok());
        assert!(Generation::new("a/b").is_err());
    }
}
