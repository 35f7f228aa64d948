//! Shared access signatures: the tokens of hub and provisioning service (reference/cloud.md 0.4).
//!
//! A [`Claim`] says what a token is for and is signed by a closure, because the key usually lives
//! in another process. A [`Token`] is a text from outside; nothing in it counts before
//! [`Token::verify`] has compared audience, expiry and signature. The signature covers the
//! resource exactly as it was sent, so the text is never decoded and encoded again (A76).
//! No clock is read here: `now` is an argument, in Unix seconds.

use std::fmt;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

mod connection;

pub use connection::{ConnectionString, Holder};

/// How far a verifier's clock may be ahead of the signer's, in seconds.
pub const LEEWAY: i64 = 300;
/// The longest lifetime we ask for ourselves, in seconds; a longer one is a mistake (A76).
pub const MAX_LIFETIME: i64 = 24 * 3600;
/// The longest token text looked at.
pub const MAX_TOKEN: usize = 4096;
/// The policy name of tokens made with an enrolment's key.
pub const REGISTRATION: &str = "registration";

const SCHEME: &str = "SharedAccessSignature ";

/// Why a token, key or connection string is not accepted. Says nothing about the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SasError {
    /// The text is not a token.
    #[error("malformed token: {0}")]
    Malformed(&'static str),
    /// The lifetime asked for is not positive or too long (A76).
    #[error("lifetime of {0} s is not between 1 and {MAX_LIFETIME}")]
    Lifetime(i64),
    /// It was made for something else.
    #[error("token is for another resource")]
    Audience,
    /// Its time is over.
    #[error("token expired")]
    Expired,
    /// No key of the entity made it.
    #[error("signature does not verify")]
    Signature,
    /// Not a symmetric key in base64.
    #[error("key is not base64 of 16 to 64 bytes")]
    Key,
    /// The connection string is not understood.
    #[error("connection string: {0}")]
    ConnectionString(&'static str),
}

/// A symmetric key of a device, module, policy or enrolment. Wiped on drop, never printed.
///
/// `Clone` because a record of two keys is copied out of a store as a whole; each copy wipes.
#[derive(Clone)]
pub struct SasKey(Zeroizing<Vec<u8>>);

impl SasKey {
    /// Takes raw bytes.
    ///
    /// # Errors
    /// [`SasError::Key`] unless there are 16 to 64 of them.
    pub fn new(bytes: Zeroizing<Vec<u8>>) -> Result<Self, SasError> {
        if (16..=64).contains(&bytes.len()) {
            Ok(Self(bytes))
        } else {
            Err(SasError::Key)
        }
    }

    /// Reads the form used in documents and connection strings.
    ///
    /// # Errors
    /// [`SasError::Key`] unless it is padded standard base64 of 16 to 64 bytes.
    pub fn from_base64(text: &str) -> Result<Self, SasError> {
        Self::new(Zeroizing::new(
            STANDARD.decode(text).map_err(|_| SasError::Key)?,
        ))
    }

    /// The form used in documents and connection strings.
    #[must_use]
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(&*self.0))
    }

    /// HMAC-SHA256 under this key.
    #[must_use]
    pub fn sign(&self, text: &[u8]) -> [u8; 32] {
        let tag = hmac::sign(&self.hmac(), text);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(tag.as_ref());
        bytes
    }

    /// Whether `signature` is this key's over `text`, in constant time.
    #[must_use]
    pub fn made(&self, signature: &[u8; 32], text: &[u8]) -> bool {
        hmac::verify(&self.hmac(), text, signature).is_ok()
    }

    /// The device key that a group key gives to one registration id, taken exactly as written.
    #[must_use]
    pub fn derive(&self, registration: &str) -> Self {
        Self(Zeroizing::new(self.sign(registration.as_bytes()).to_vec()))
    }

    fn hmac(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.0)
    }
}

impl fmt::Debug for SasKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SasKey(..)")
    }
}

/// Whom a token speaks for, or what it is presented to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience<'a> {
    /// A hub or provisioning service as a whole; only for policies.
    Service {
        /// Its own name, whatever name was used to connect.
        host: &'a str,
    },
    /// A device at a hub.
    Device {
        /// The hub's own name.
        host: &'a str,
        /// The device id.
        device: &'a str,
    },
    /// A module at a hub.
    Module {
        /// The hub's own name.
        host: &'a str,
        /// The device id.
        device: &'a str,
        /// The module id, with the `$` of a system module.
        module: &'a str,
    },
    /// A registration at a provisioning service.
    Registration {
        /// The id scope.
        scope: &'a str,
        /// The registration id.
        registration: &'a str,
    },
}

impl Audience<'_> {
    /// The plain path, with nothing encoded.
    #[must_use]
    pub fn path(&self) -> String {
        match self {
            Self::Service { host } => (*host).to_owned(),
            Self::Device { host, device } => format!("{host}/devices/{device}"),
            Self::Module {
                host,
                device,
                module,
            } => {
                format!("{host}/devices/{device}/modules/{module}")
            }
            Self::Registration {
                scope,
                registration,
            } => {
                format!("{scope}/registrations/{registration}")
            }
        }
    }

    /// The resource text of a new token, encoded once as the SDKs do.
    #[must_use]
    pub fn resource(&self) -> String {
        encode(&self.path())
    }

    /// Whether a token with this resource text may be presented here: the same path or one below
    /// it. Clients send ids unencoded, encoded once or twice, in any case of letters.
    #[must_use]
    pub fn covers(&self, resource: &str) -> bool {
        let path = self.path();
        spellings(resource).iter().any(|text| is_below(text, &path))
    }

    /// Whether a policy's token with this resource text reaches as far as this audience: the same
    /// path or one above it.
    #[must_use]
    pub fn is_within(&self, resource: &str) -> bool {
        let path = self.path();
        spellings(resource).iter().any(|text| is_below(&path, text))
    }
}

/// A token that is still to be signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    resource: String,
    expiry: i64,
    policy: Option<String>,
}

impl Claim {
    /// A claim that lives `lifetime` seconds from `now`.
    ///
    /// # Errors
    /// [`SasError::Lifetime`] when the lifetime is not positive or beyond [`MAX_LIFETIME`].
    pub fn new(audience: &Audience<'_>, now: i64, lifetime: i64) -> Result<Self, SasError> {
        if !(1..=MAX_LIFETIME).contains(&lifetime) {
            return Err(SasError::Lifetime(lifetime));
        }
        let policy = match audience {
            Audience::Registration { .. } => Some(REGISTRATION.to_owned()),
            _ => None,
        };
        Ok(Self {
            resource: audience.resource(),
            expiry: now.saturating_add(lifetime),
            policy,
        })
    }

    /// The same claim made with the key of a shared access policy.
    #[must_use]
    pub fn policy(mut self, name: &str) -> Self {
        self.policy = Some(name.to_owned());
        self
    }

    /// When it ends, in Unix seconds.
    #[must_use]
    pub fn expiry(&self) -> i64 {
        self.expiry
    }

    /// The bytes to put under HMAC-SHA256.
    #[must_use]
    pub fn string_to_sign(&self) -> String {
        format!("{}\n{}", self.resource, self.expiry)
    }

    /// The token, in the field order `sr`, `sig`, `se`, `skn`.
    ///
    /// # Errors
    /// Whatever the signer says.
    pub fn sign<E>(
        &self,
        signer: impl FnOnce(&[u8]) -> Result<[u8; 32], E>,
    ) -> Result<Zeroizing<String>, E> {
        let signature = signer(self.string_to_sign().as_bytes())?;
        let signature = encode(&STANDARD.encode(signature));
        let mut text = Zeroizing::new(format!(
            "{SCHEME}sr={}&sig={signature}&se={}",
            self.resource, self.expiry
        ));
        if let Some(policy) = &self.policy {
            text.push_str("&skn=");
            text.push_str(&encode(policy));
        }
        Ok(text)
    }
}

/// A token as it came from outside. Not to be believed before [`Token::verify`].
pub struct Token {
    resource: String,
    expiry_text: String,
    expiry: i64,
    policy: Option<String>,
    signature: [u8; 32],
}

impl Token {
    /// Reads a token: each field once, in any order, names in any case, nothing else.
    ///
    /// # Errors
    /// [`SasError::Malformed`] with the first thing that is wrong.
    pub fn parse(text: &str) -> Result<Self, SasError> {
        if text.len() > MAX_TOKEN {
            return Err(SasError::Malformed("longer than 4096 bytes"));
        }
        let fields = match text.split_at_checked(SCHEME.len()) {
            Some((scheme, fields)) if scheme.eq_ignore_ascii_case(SCHEME) => fields,
            _ => return Err(SasError::Malformed("not a SharedAccessSignature")),
        };
        let (mut resource, mut signature, mut expiry, mut policy) = (None, None, None, None);
        for field in fields.split('&') {
            let Some((name, value)) = field.split_once('=') else {
                return Err(SasError::Malformed("a field without value"));
            };
            let place = match name.to_ascii_lowercase().as_str() {
                "sr" => &mut resource,
                "sig" => &mut signature,
                "se" => &mut expiry,
                "skn" => &mut policy,
                _ => return Err(SasError::Malformed("an unknown field")),
            };
            if place.replace(value).is_some() {
                return Err(SasError::Malformed("a field given twice"));
            }
        }
        let resource = resource
            .filter(|r| !r.is_empty())
            .ok_or(SasError::Malformed("no sr"))?;
        let expiry_text = expiry.ok_or(SasError::Malformed("no se"))?;
        let expiry = seconds(expiry_text).ok_or(SasError::Malformed("se is not a time"))?;
        let signature = signature.ok_or(SasError::Malformed("no sig"))?;
        let signature = decode(signature)
            .and_then(|text| STANDARD.decode(text).ok())
            .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
            .ok_or(SasError::Malformed("sig is not base64 of 32 bytes"))?;
        let policy = match policy {
            // Some SDKs write the field and leave it empty when there is no policy.
            None | Some("") => None,
            Some(text) => Some(decode(text).ok_or(SasError::Malformed("skn is not encoded"))?),
        };
        Ok(Self {
            resource: resource.to_owned(),
            expiry_text: expiry_text.to_owned(),
            expiry,
            policy,
            signature,
        })
    }

    /// The policy whose key it claims, to choose the keys by. `None`: the entity's own keys.
    #[must_use]
    pub fn policy(&self) -> Option<&str> {
        self.policy.as_deref()
    }

    /// The resource text as sent; only for choosing keys, never for deciding.
    #[must_use]
    pub fn resource(&self) -> &str {
        &self.resource
    }

    /// When a connection that was opened with it must close, in Unix seconds.
    #[must_use]
    pub fn closes(&self) -> i64 {
        self.expiry.saturating_add(LEEWAY)
    }

    /// Accepts the token for an audience: for it, not over at `now`, made by one of the keys.
    ///
    /// # Errors
    /// The first of the three that does not hold.
    pub fn verify(
        &self,
        audience: &Audience<'_>,
        keys: &[&SasKey],
        now: i64,
    ) -> Result<(), SasError> {
        if !audience.covers(&self.resource) {
            return Err(SasError::Audience);
        }
        if self.closes() < now {
            return Err(SasError::Expired);
        }
        let text = format!("{}\n{}", self.resource, self.expiry_text);
        // Every key is tried, so the time does not tell which of the two was used.
        let hits = keys
            .iter()
            .filter(|key| key.made(&self.signature, text.as_bytes()))
            .count();
        if hits == 0 {
            Err(SasError::Signature)
        } else {
            Ok(())
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("resource", &self.resource)
            .field("expiry", &self.expiry)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

/// Percent-encodes everything but the unreserved characters.
#[must_use]
pub fn encode(text: &str) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    out
}

/// Undoes percent-encoding; a plus stays a plus. `None` for a broken escape, a control character
/// or invalid UTF-8.
#[must_use]
pub fn decode(text: &str) -> Option<String> {
    unescape(text).filter(|text| !text.bytes().any(|byte| byte.is_ascii_control()))
}

/// As [`decode`], but control characters are let through: for values that nothing is compared with.
#[must_use]
pub fn unescape(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let value = if byte == b'%' {
            let high = char::from(*bytes.get(at + 1)?).to_digit(16)?;
            let low = char::from(*bytes.get(at + 2)?).to_digit(16)?;
            at += 2;
            u8::try_from(high * 16 + low).ok()?
        } else {
            byte
        };
        out.push(value);
        at += 1;
    }
    String::from_utf8(out).ok()
}

/// The ways clients write one resource: as it is, encoded once, encoded twice.
fn spellings(resource: &str) -> Vec<String> {
    let once = decode(resource);
    let twice = once.as_deref().and_then(decode);
    std::iter::once(resource.to_owned())
        .chain(once)
        .chain(twice)
        .collect()
}

fn is_below(path: &str, parent: &str) -> bool {
    let Some((head, tail)) = path.split_at_checked(parent.len()) else {
        return false;
    };
    head.eq_ignore_ascii_case(parent) && (tail.is_empty() || tail.starts_with('/'))
}

/// Unix seconds with an optional fraction, which is dropped.
fn seconds(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits =
        |t: &str, most| (1..=most).contains(&t.len()) && t.bytes().all(|b| b.is_ascii_digit());
    if digits(whole, 12) && digits(fraction, 9) {
        whole.parse().ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    const NOW: i64 = 1_700_000_000;
    const DEVICE: Audience<'_> = Audience::Device {
        host: "Hub.example.net",
        device: "Dev-1",
    };
    const AGENT: Audience<'_> = Audience::Module {
        host: "hub.example.net",
        device: "dev-1",
        module: "$edgeAgent",
    };

    fn key() -> SasKey {
        SasKey::from_base64(KEY).unwrap()
    }

    fn signed(resource: &str, expiry: &str) -> String {
        let signature = STANDARD.encode(key().sign(format!("{resource}\n{expiry}").as_bytes()));
        format!(
            "SharedAccessSignature sr={resource}&sig={}&se={expiry}",
            encode(&signature)
        )
    }

    fn verify(text: &str, audience: &Audience<'_>, now: i64) -> Result<(), SasError> {
        Token::parse(text)?.verify(audience, &[&key()], now)
    }

    #[test]
    fn a_token_is_built_as_the_sdks_build_it() {
        // HMAC-SHA256 made with: printf 'hub.example.net%%2Fdevices%%2Fdev-1\n1700003600' |
        // openssl dgst -sha256 -mac HMAC -macopt key:0123456789abcdef0123456789abcdef -binary | base64
        let audience = Audience::Device {
            host: "hub.example.net",
            device: "dev-1",
        };
        let claim = Claim::new(&audience, NOW, 3600).unwrap();
        assert_eq!(
            claim.string_to_sign(),
            "hub.example.net%2Fdevices%2Fdev-1\n1700003600"
        );
        let text = claim.sign(|t| Ok::<_, SasError>(key().sign(t))).unwrap();
        assert_eq!(
            text.as_str(),
            "SharedAccessSignature sr=hub.example.net%2Fdevices%2Fdev-1\
             &sig=kEIltBcFfcEPjbfDvSdNgMaNe5kswp35Szb020YSq8A%3D&se=1700003600"
        );
        assert_eq!(verify(&text, &audience, NOW), Ok(()));
        let policy = claim
            .policy("a b")
            .sign(|t| Ok::<_, SasError>(key().sign(t)))
            .unwrap();
        assert!(policy.ends_with("&se=1700003600&skn=a%20b"));
        assert_eq!(Token::parse(&policy).unwrap().policy(), Some("a b"));
    }

    #[test]
    fn a_registration_claim_names_its_policy() {
        let audience = Audience::Registration {
            scope: "0ne1",
            registration: "Reg:1",
        };
        let claim = Claim::new(&audience, NOW, 30).unwrap();
        let text = claim.sign(|t| Ok::<_, SasError>(key().sign(t))).unwrap();
        assert!(text.starts_with("SharedAccessSignature sr=0ne1%2Fregistrations%2FReg%3A1&sig="));
        assert!(text.ends_with("&se=1700000030&skn=registration"));
    }

    #[test]
    fn a76_every_spelling_of_the_right_resource_is_accepted_and_no_other() {
        for (resource, audience, good) in [
            ("hub.example.net/devices/dev-1", DEVICE, true),
            ("hub.example.net%2Fdevices%2fdev-1", DEVICE, true),
            ("HUB.example.net%2FDEVICES%2FDEV-1", DEVICE, true),
            (
                "hub.example.net%2Fdevices%2Fdev-1%2F%3Fapi-version%3D2019-10-01",
                DEVICE,
                true,
            ),
            ("hub.example.net/devices/dev-1/modules/m", DEVICE, true),
            (
                "hub.example.net%2Fdevices%2Fdev-1%2Fmodules%2F%2524edgeAgent",
                AGENT,
                true,
            ),
            (
                "hub.example.net%2Fdevices%2Fdev-1%2Fmodules%2F%24edgeAgent",
                AGENT,
                true,
            ),
            (
                "hub.example.net/devices/dev-1/modules/$edgeAgent",
                AGENT,
                true,
            ),
            ("hub.example.net/devices/dev-1", AGENT, false),
            ("hub.example.net/devices/dev-10", DEVICE, false),
            ("hub.example.net/devices/dev-1%252e", DEVICE, false),
            ("hub.example.net/devices/dev-2/../dev-1", DEVICE, false),
            ("hub.example.net", DEVICE, false),
            ("hub.example.net/devices", DEVICE, false),
            ("evil.example.net/devices/dev-1", DEVICE, false),
            ("hub.example.net%252525Fdevices", DEVICE, false),
        ] {
            let expected = if good {
                Ok(())
            } else {
                Err(SasError::Audience)
            };
            assert_eq!(
                verify(&signed(resource, "1700000030"), &audience, NOW),
                expected,
                "{resource}"
            );
        }
    }

    #[test]
    fn a76_a_policy_token_for_one_device_reaches_no_other() {
        for (resource, good) in [
            ("hub.example.net", true),
            ("hub.example.net%2Fdevices", true),
            ("hub.example.net%2Fdevices%2Fdev-1", true),
            ("hub.example.net/dev", false),
            ("hub.example.net/devices/dev", false),
            ("hub.example.net/devices/dev-2", false),
            ("", false),
        ] {
            assert_eq!(AGENT.is_within(resource), good, "{resource}");
        }
    }

    #[test]
    fn a76_an_expired_token_is_refused_after_the_leeway() {
        let text = signed("hub.example.net/devices/dev-1", "1700000000.5");
        assert_eq!(verify(&text, &DEVICE, NOW + LEEWAY), Ok(()));
        assert_eq!(
            verify(&text, &DEVICE, NOW + LEEWAY + 1),
            Err(SasError::Expired)
        );
        let far = signed("hub.example.net/devices/dev-1", "999999999999");
        assert_eq!(verify(&far, &DEVICE, NOW), Ok(()));
        for lifetime in [i64::MIN, -1, 0, MAX_LIFETIME + 1, i64::MAX] {
            assert_eq!(
                Claim::new(&DEVICE, NOW, lifetime),
                Err(SasError::Lifetime(lifetime))
            );
        }
    }

    #[test]
    fn a76_a_changed_resource_or_expiry_does_not_verify() {
        let text = signed("hub.example.net%2Fdevices%2Fdev-1", "1700000000");
        for changed in [
            text.replace("1700000000", "1800000000"),
            text.replace("1700000000", "1700000000.0"),
            text.replace("%2F", "%2f"),
            text.replace("%2F", "/"),
            text.replace("dev-1", "Dev-1"),
        ] {
            assert_eq!(
                verify(&changed, &DEVICE, NOW),
                Err(SasError::Signature),
                "{changed}"
            );
        }
        let other = SasKey::from_base64("QUFBQUFBQUFBQUFBQUFBQQ==").unwrap();
        let token = Token::parse(&text).unwrap();
        assert_eq!(
            token.verify(&DEVICE, &[&other], NOW),
            Err(SasError::Signature)
        );
        assert_eq!(token.verify(&DEVICE, &[], NOW), Err(SasError::Signature));
        assert_eq!(token.verify(&DEVICE, &[&other, &key()], NOW), Ok(()));
    }

    #[test]
    fn fields_come_in_any_order_and_case() {
        let text = signed("hub.example.net/devices/dev-1", "1700000000");
        let fields: Vec<&str> = text["SharedAccessSignature ".len()..].split('&').collect();
        let turned = format!(
            "sharedaccesssignature SE{}&Sig{}&sr{}&skn=",
            &fields[2][2..],
            &fields[1][3..],
            &fields[0][2..]
        );
        assert_eq!(verify(&turned, &DEVICE, NOW), Ok(()));
        assert_eq!(Token::parse(&turned).unwrap().policy(), None);
    }

    #[test]
    fn malformed_tokens_are_refused() {
        let good = signed("h/devices/d", "1700000000");
        let sig = good.split('&').nth(1).unwrap();
        for bad in [
            String::new(),
            "SharedAccessSignature".into(),
            "Bearer x".into(),
            good.replace("Signature ", "Signature  "),
            format!("{good}&"),
            format!("{good}&sr=h"),
            format!("{good}&SE=1"),
            format!("{good}&x=1"),
            good.replace("sr=h/devices/d", "sr="),
            good.replace("se=1700000000", "se="),
            good.replace("se=1700000000", "se=-1"),
            good.replace("se=1700000000", "se=+1"),
            good.replace("se=1700000000", "se=1e9"),
            good.replace("se=1700000000", "se=1."),
            good.replace("se=1700000000", "se=1700000000000"),
            good.replace(sig, "sig=AAAA"),
            good.replace(sig, "sig=%zz"),
            good.replace(sig, "sig="),
            format!("{good}&skn=%0A"),
            format!("{good}&skn={}", "a".repeat(MAX_TOKEN)),
        ] {
            assert!(
                matches!(Token::parse(&bad), Err(SasError::Malformed(_))),
                "{bad}"
            );
        }
    }

    #[test]
    fn derived_keys_depend_on_the_spelling_of_the_registration_id() {
        assert_ne!(
            key().derive("Dev").sign(b"x"),
            key().derive("dev").sign(b"x")
        );
        // printf dev | openssl dgst -sha256 -mac HMAC -macopt key:<as above> -binary | base64
        assert_eq!(
            key().derive("dev").to_base64().as_str(),
            "zp0mY7OIzdCglpopbtkQuRnOl9B1J/e+Ddnz9myFB0g="
        );
    }

    #[test]
    fn keys_are_bounded_and_not_printed() {
        assert_eq!(format!("{:?}", key()), "SasKey(..)");
        for bytes in [0, 15, 65] {
            assert!(
                SasKey::new(Zeroizing::new(vec![0; bytes])).is_err(),
                "{bytes}"
            );
        }
        for bytes in [16, 64] {
            assert!(
                SasKey::new(Zeroizing::new(vec![0; bytes])).is_ok(),
                "{bytes}"
            );
        }
        assert!(SasKey::from_base64("not base64").is_err());
    }
}
