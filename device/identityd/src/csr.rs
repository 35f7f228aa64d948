//! What a certificate request asks for, checked, before anyone decides whether it may have it.
//!
//! The self-signature is verified, weak keys and unknown extensions are refused, and of all that a
//! request may say only three things come out: a public key, a subject, and the names and role it
//! would like. Key usages and constraints are never taken over: [`crate::issue`] chooses them from
//! its table (R57, A64).

use std::collections::HashSet;
use std::net::IpAddr;

use rcgen::string::Ia5String;
use rcgen::{DistinguishedName, DnType, DnValue, SanType, SubjectPublicKeyInfo};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::der_parser::asn1_rs::{Oid, Tag};
use x509_parser::der_parser::oid;
use x509_parser::extensions::{ExtendedKeyUsage, GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::{SubjectPublicKeyInfo as WireKey, X509Name};

use crate::pem::{self, PemError};

/// The longest request looked at, in DER.
const MAX_REQUEST: usize = 16 * 1024;
/// The most alternative names one certificate gets (A63).
const MAX_NAMES: usize = 32;
/// The most parts of a subject.
const MAX_PARTS: usize = 16;
/// The longest common name, in characters.
pub const MAX_COMMON_NAME: usize = 64;

/// Why a request is refused. Each text is for the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Not one PEM block.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// Not PKCS#10.
    #[error("not a PKCS#10 request")]
    Syntax,
    /// Its self-signature does not verify.
    #[error("its own signature does not verify")]
    Signature,
    /// A key we do not certify.
    #[error("key is not certified: {0}")]
    Key(&'static str),
    /// A subject we do not certify.
    #[error("subject is not certified: {0}")]
    Subject(#[from] NameError),
    /// A name we do not certify (A63).
    #[error("alternative name is not certified: {0}")]
    Name(&'static str),
    /// An extension no table has (A64).
    #[error("extension is not certified: {0}")]
    Extension(&'static str),
}

/// Why a distinguished name is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// None.
    #[error("it is empty")]
    Empty,
    /// Too many parts.
    #[error("it has too many parts")]
    Parts,
    /// One part with two values, or one kind of part twice.
    #[error("a part is there more than once")]
    Twice,
    /// Encoded in a way we do not write.
    #[error("a part is no UTF-8, printable or IA5 text")]
    Encoding,
    /// Empty, too long, or with control characters.
    #[error("a part is empty, too long or has control characters")]
    Text,
}

/// What the requester would like to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// An issuer.
    Issuer,
    /// A leaf, perhaps for one or both sides of TLS.
    Leaf {
        /// TLS server.
        server: bool,
        /// TLS client.
        client: bool,
    },
}

/// A request whose self-signature verified.
#[derive(Debug)]
pub struct Request {
    /// The key to certify.
    pub key: SubjectPublicKeyInfo,
    /// The key as it stands in the request, for comparison.
    pub key_der: Vec<u8>,
    /// Whether it is an RSA key.
    pub rsa: bool,
    /// Whom it names; `None` when it names nobody.
    pub subject: Option<DistinguishedName>,
    /// Names that fit their grammar.
    pub names: Vec<SanType>,
    /// What it would like to be.
    pub wish: Wish,
}

impl Request {
    /// Reads and verifies a request in PEM.
    ///
    /// # Errors
    /// [`CsrError`] with the first thing that is wrong.
    pub fn parse(text: &str) -> Result<Self, CsrError> {
        let der = pem::request(text)?;
        if der.len() > MAX_REQUEST {
            return Err(CsrError::Syntax);
        }
        let (rest, csr) = X509CertificationRequest::from_der(&der).map_err(|_| CsrError::Syntax)?;
        if !rest.is_empty() {
            return Err(CsrError::Syntax);
        }
        let info = &csr.certification_request_info;
        let rsa = check_key(&info.subject_pki)?;
        // SHA-1 would verify; a request of today has no reason to use it.
        let algorithm = &csr.signature_algorithm.algorithm;
        if [oid!(1.2.840.113549.1.1.5), oid!(1.3.14.3.2.29)].contains(algorithm) {
            return Err(CsrError::Signature);
        }
        csr.verify_signature().map_err(|_| CsrError::Signature)?;
        let subject = match info.subject.iter_rdn().next() {
            Some(_) => Some(distinguished_name(&info.subject)?),
            None => None,
        };
        let key = SubjectPublicKeyInfo::from_der(info.subject_pki.raw)
            .map_err(|_| CsrError::Key("unknown algorithm"))?;
        let mut request = Self {
            key,
            key_der: info.subject_pki.raw.to_vec(),
            rsa,
            subject,
            names: Vec::new(),
            wish: Wish::Leaf {
                server: false,
                client: false,
            },
        };
        request.read_extensions(&csr)?;
        Ok(request)
    }

    fn read_extensions(&mut self, csr: &X509CertificationRequest<'_>) -> Result<(), CsrError> {
        let mut lists = 0;
        let mut seen = HashSet::new();
        for attribute in csr.certification_request_info.iter_attributes() {
            let ParsedCriAttribute::ExtensionRequest(list) = attribute.parsed_attribute() else {
                continue;
            };
            lists += 1;
            if lists > 1 {
                return Err(CsrError::Extension("two lists of extensions"));
            }
            for extension in &list.extensions {
                if !seen.insert(extension.oid.to_id_string()) {
                    return Err(CsrError::Extension("one is there twice"));
                }
                self.read_extension(extension.parsed_extension())?;
            }
        }
        Ok(())
    }

    fn read_extension(&mut self, extension: &ParsedExtension<'_>) -> Result<(), CsrError> {
        match extension {
            // Chosen by us, whatever is asked: the key's id, its usages.
            ParsedExtension::KeyUsage(_) | ParsedExtension::SubjectKeyIdentifier(_) => {}
            ParsedExtension::BasicConstraints(constraints) => {
                if constraints.ca {
                    self.wish = match self.wish {
                        Wish::Leaf {
                            server: false,
                            client: false,
                        } => Wish::Issuer,
                        _ => return Err(CsrError::Extension("issuer and leaf at once")),
                    };
                }
            }
            ParsedExtension::ExtendedKeyUsage(usage) => {
                let (server, client) = check_usage(usage)?;
                if self.wish == Wish::Issuer {
                    return Err(CsrError::Extension("issuer and leaf at once"));
                }
                self.wish = Wish::Leaf { server, client };
            }
            ParsedExtension::SubjectAlternativeName(list) => {
                if list.general_names.len() > MAX_NAMES {
                    return Err(CsrError::Name("too many names"));
                }
                for name in &list.general_names {
                    let name = check_name(name)?;
                    if !self.names.contains(&name) {
                        self.names.push(name);
                    }
                }
            }
            ParsedExtension::ParseError { .. } => return Err(CsrError::Extension("broken")),
            _ => return Err(CsrError::Extension("not in the table")),
        }
        Ok(())
    }
}

/// Whether the key is RSA; a weak or odd one is refused (A64, security.md 7).
fn check_key(key: &WireKey<'_>) -> Result<bool, CsrError> {
    match key
        .parsed()
        .map_err(|_| CsrError::Key("it does not parse"))?
    {
        PublicKey::RSA(rsa) => {
            let modulus = rsa.modulus.iter().skip_while(|b| **b == 0).count();
            if !(256..=512).contains(&modulus) || rsa.modulus.last().is_none_or(|b| b % 2 == 0) {
                return Err(CsrError::Key("an RSA key has 2048 to 4096 bits"));
            }
            match rsa.try_exponent() {
                Ok(e) if e % 2 == 1 && (65_537..=1 << 32).contains(&e) => Ok(true),
                _ => Err(CsrError::Key("an RSA exponent is odd, 65537 to 2^32")),
            }
        }
        PublicKey::EC(_) => {
            let curve = key
                .algorithm
                .parameters
                .as_ref()
                .and_then(|p| p.as_oid().ok());
            match curve {
                Some(curve)
                    if curve == oid!(1.2.840.10045.3.1.7) || curve == oid!(1.3.132.0.34) =>
                {
                    Ok(false)
                }
                _ => Err(CsrError::Key("only the curves P-256 and P-384")),
            }
        }
        _ => Err(CsrError::Key("only RSA and elliptic curves")),
    }
}

fn check_usage(usage: &ExtendedKeyUsage<'_>) -> Result<(bool, bool), CsrError> {
    let others = usage.any
        || usage.code_signing
        || usage.email_protection
        || usage.time_stamping
        || usage.ocsp_signing
        || !usage.other.is_empty();
    if others {
        return Err(CsrError::Extension("only server and client authentication"));
    }
    Ok((usage.server_auth, usage.client_auth))
}

/// Takes a name over if it fits the grammar of its kind; nothing is cleaned (R16).
fn check_name(name: &GeneralName<'_>) -> Result<SanType, CsrError> {
    match name {
        GeneralName::DNSName(text) => match text.strip_prefix("URI: ") {
            // The reference's module runtime writes a URI as text of a DNS name
            // (module-runtime.md 3). What it means is a URI, and that is what it gets.
            Some(uri) => check_uri(uri).map(SanType::URI),
            None if is_dns_name(text) => ia5(text).map(SanType::DnsName),
            None => Err(CsrError::Name("a DNS name is out of its grammar")),
        },
        GeneralName::URI(text) => check_uri(text).map(SanType::URI),
        GeneralName::IPAddress(bytes) => {
            match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
                (Ok(v4), _) => Ok(SanType::IpAddress(IpAddr::from(v4))),
                (_, Ok(v6)) => Ok(SanType::IpAddress(IpAddr::from(v6))),
                _ => Err(CsrError::Name("an address has 4 or 16 bytes")),
            }
        }
        _ => Err(CsrError::Name("only DNS names, addresses and URIs")),
    }
}

/// Letters, digits, `-` and `_` in labels of 1 to 63; no wildcard, no dot at an end (A63).
fn is_dns_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    text.len() <= 253 && text.split('.').all(label)
}

fn check_uri(text: &str) -> Result<Ia5String, CsrError> {
    let scheme = text.split_once("://").map_or("", |(scheme, _)| scheme);
    let fits = text.len() <= 512
        && scheme
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_lowercase())
        && scheme
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
        && text
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&b));
    if fits {
        ia5(text)
    } else {
        Err(CsrError::Name("a URI is out of its grammar"))
    }
}

fn ia5(text: &str) -> Result<Ia5String, CsrError> {
    Ia5String::try_from(text).map_err(|_| CsrError::Name("not ASCII"))
}

/// A name as we write it. It is refused where writing it again would change its meaning, so a
/// chain never breaks over the spelling of an issuer.
///
/// # Errors
/// [`NameError`] with the first part that does not fit.
pub fn distinguished_name(name: &X509Name<'_>) -> Result<DistinguishedName, NameError> {
    let mut out = DistinguishedName::new();
    for (count, rdn) in name.iter_rdn().enumerate() {
        if count == MAX_PARTS {
            return Err(NameError::Parts);
        }
        let mut parts = rdn.iter();
        let (Some(part), None) = (parts.next(), parts.next()) else {
            return Err(NameError::Twice);
        };
        let kind: Vec<u64> = part
            .attr_type()
            .iter()
            .ok_or(NameError::Encoding)?
            .collect();
        // The writer panics over a first arc beyond 2, which our reader makes of arcs like 2.999.
        if kind.first().is_none_or(|arc| *arc > 2)
            || Oid::from(&kind).ok().as_ref() != Some(part.attr_type())
        {
            return Err(NameError::Encoding);
        }
        let kind = DnType::from_oid(&kind);
        if out.get(&kind).is_some() {
            return Err(NameError::Twice);
        }
        let value = part.attr_value();
        let text = std::str::from_utf8(value.data).map_err(|_| NameError::Encoding)?;
        check_part(&kind, text)?;
        let value = match value.tag() {
            Tag::Utf8String => DnValue::Utf8String(text.to_owned()),
            // Printable by the standard, but the writer panics over a question mark.
            Tag::PrintableString if text.contains('?') => return Err(NameError::Encoding),
            Tag::PrintableString => {
                DnValue::PrintableString(text.try_into().map_err(|_| NameError::Encoding)?)
            }
            Tag::Ia5String => DnValue::Ia5String(text.try_into().map_err(|_| NameError::Encoding)?),
            _ => return Err(NameError::Encoding),
        };
        out.push(kind, value);
    }
    if out.iter().next().is_none() {
        return Err(NameError::Empty);
    }
    Ok(out)
}

/// Checks one part's text, wherever it comes from.
///
/// # Errors
/// [`NameError::Text`].
pub fn check_part(kind: &DnType, text: &str) -> Result<(), NameError> {
    let limit = if *kind == DnType::CommonName {
        MAX_COMMON_NAME
    } else {
        128
    };
    let length = text.chars().count();
    if length == 0 || length > limit || text.chars().any(char::is_control) {
        return Err(NameError::Text);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a63_names_out_of_their_grammar_are_refused() {
        for good in ["a", "edge-hub_1.home.lan", "1.2.3", &"a".repeat(63)] {
            assert!(is_dns_name(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "*",
            "*.home.lan",
            "a b",
            "a\0b",
            "-a",
            "a/b",
            "\u{e9}",
            &"a".repeat(64),
            &"a.".repeat(127).as_str()[..].to_owned().repeat(2),
        ] {
            assert!(!is_dns_name(bad), "{bad}");
        }
        let name = |text: &'static str| check_name(&GeneralName::DNSName(text));
        let uri = name("URI: azureiot://hub.test/devices/d/modules/m").unwrap();
        assert!(matches!(uri, SanType::URI(text) if text.as_str().starts_with("azureiot://hub")));
        for bad in ["URI: ", "URI: x", "URI: ://a", "URI: azureiot://a b"] {
            assert!(name(bad).is_err(), "{bad}");
        }
        assert!(check_name(&GeneralName::IPAddress(&[127, 0, 0, 1])).is_ok());
        assert!(check_name(&GeneralName::IPAddress(&[127, 0, 0])).is_err());
        assert!(check_name(&GeneralName::RFC822Name("a@b.test")).is_err());
    }

    #[test]
    fn a64_a_part_that_cannot_be_written_again_is_refused() {
        let name = |kind: &[u8], value: &[u8]| {
            let tagged =
                |tag: u8, body: &[u8]| [&[tag, u8::try_from(body.len()).unwrap()], body].concat();
            let part = [&tagged(6, kind), value].concat();
            let der = tagged(0x30, &tagged(0x31, &tagged(0x30, &part)));
            distinguished_name(&X509Name::from_der(&der).unwrap().1)
        };
        let common = [0x55, 4, 3];
        assert!(name(&common, b"\x0c\x01?").is_ok());
        assert!(name(&common, b"\x13\x01:").is_ok());
        assert!(name(&[0x55, 4, 0x82, 3], b"\x0c\x01a").is_ok());
        let printable = name(&common, b"\x13\x01?");
        assert_eq!(printable.unwrap_err(), NameError::Encoding);
        for bad in [
            // 2.999 as the standard writes it, and the same with its end missing.
            &[0x88, 0x37][..],
            &[0xae],
            // One arc in more bytes than it needs, or with its end missing.
            &[0x55, 0x80, 4, 3],
            &[0x55, 4, 0x83],
        ] {
            let got = name(bad, b"\x0c\x01a");
            assert_eq!(got.unwrap_err(), NameError::Encoding, "{bad:x?}");
        }
    }
}
