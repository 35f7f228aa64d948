//! One endpoint, one type (D2): path, versions, caller class, limit, request and response are said
//! once, on a type that implements [`Endpoint`]. The server's routes, the client's call, the caller
//! table in `docs/callers.md` and the conformance cases all come from that type.
//!
//! An endpoint without a caller class does not compile: the default is deny.

use std::fmt::Write as _;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::names::{BadName, CertId, Generation, KeyId, ModuleName};

/// The methods the compatible APIs use; any other is refused with 400 (identity-service.md 1.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Read.
    Get,
    /// Create or do.
    Post,
    /// Replace.
    Put,
    /// Remove.
    Delete,
}

impl Method {
    /// The word on the request line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
        }
    }

    /// Reads the word on the request line.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Get, Self::Post, Self::Put, Self::Delete]
            .into_iter()
            .find(|m| m.as_str() == word)
    }
}

/// Who may call an endpoint; each daemon's gate turns a proven caller into a principal or refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callers {
    /// Whoever can open the socket.
    Anyone,
    /// Users of `keyd`; key policy then judges principal, key and purpose (R17).
    KeyUsers,
    /// Users of the certificate API; writes are judged by certificate id.
    CertUsers,
    /// Root and the daemons named in `identityd`'s configuration.
    Services,
    /// As [`Self::Services`], and host processes for their own identity.
    Identities,
    /// The module named in the path, attested (R1-R11).
    Module,
    /// The attested agent module, and nobody else (P4).
    Agent,
    /// The attested agent, uid 0, and host principals named in the configuration (P4).
    Operators,
    /// As [`Self::Operators`], and members of the socket's group.
    Readers,
}

/// One wire API: its accepted versions and the one our own client sends.
pub trait Api: 'static {
    /// Its name in documents and logs.
    const NAME: &'static str;
    /// Every accepted `api-version`, oldest first.
    const VERSIONS: &'static [&'static str];
    /// What our client sends.
    const CURRENT: &'static str;
}

/// One operation of a wire API.
pub trait Endpoint: 'static {
    /// The API it belongs to.
    type Api: Api;
    /// Request method.
    const METHOD: Method;
    /// Path with `{placeholders}`, one per segment.
    const PATH: &'static str;
    /// First version that has it; empty for all.
    const SINCE: &'static str = "";
    /// Who may call it.
    const CALLERS: Callers;
    /// Longest request body in bytes.
    const LIMIT: usize;
    /// Status of success; 204 when the response is [`Empty`].
    const SUCCESS: u16 = 200;
    /// What a request without the body it needs is told.
    const NO_BODY: &'static str = "missing request body";
    /// What path and query name.
    type Target: Target;
    /// The request body.
    type Request: Body;
    /// The response body.
    type Response: Body;
}

/// A request as a handler receives it: parsed, complete, and its caller admitted.
pub struct Ask<E: Endpoint> {
    /// What path and query name.
    pub target: E::Target,
    /// The request body.
    pub body: E::Request,
}

/// Values of a path's placeholders in their order, and of its query, percent-decoded.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Parts {
    /// One value per placeholder.
    pub path: Vec<String>,
    /// Query members in their order, without `api-version`.
    pub query: Vec<(String, String)>,
}

impl Parts {
    /// Value of the placeholder at `index`; the router has matched the path, so it is there.
    #[must_use]
    pub fn at(&self, index: usize) -> &str {
        self.path.get(index).map_or("", String::as_str)
    }

    /// The last query member with this name.
    #[must_use]
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .rev()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// A target of one placeholder.
    #[must_use]
    pub fn one(value: &str) -> Self {
        Self {
            path: vec![value.to_owned()],
            query: Vec::new(),
        }
    }
}

/// Path or query value that does not fit; the text is the message of the 400 answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTarget {
    /// A name in the path.
    #[error("{0}")]
    Name(#[from] BadName),
    /// A query member.
    #[error("invalid parameter: {0}")]
    Query(&'static str),
    /// A word of the path: there is nothing of that name.
    #[error("not found")]
    NotFound,
    /// A query member that must be there.
    #[error("missing parameter: {0}")]
    Missing(&'static str),
}

/// What a request's path and query name, as types.
pub trait Target: Sized {
    /// Reads it.
    ///
    /// # Errors
    /// [`BadTarget`] when a name or query value does not fit its grammar.
    fn read(parts: &Parts) -> Result<Self, BadTarget>;
    /// Writes it, for the client.
    fn write(&self) -> Parts;
    /// The module the request speaks for, where the caller class asks for it.
    fn module(&self) -> Option<&ModuleName> {
        None
    }
}

impl Target for () {
    fn read(_: &Parts) -> Result<Self, BadTarget> {
        Ok(())
    }
    fn write(&self) -> Parts {
        Parts::default()
    }
}

impl Target for KeyId {
    fn read(parts: &Parts) -> Result<Self, BadTarget> {
        Ok(Self::new(parts.at(0))?)
    }
    fn write(&self) -> Parts {
        Parts::one(self.as_str())
    }
}

impl Target for CertId {
    fn read(parts: &Parts) -> Result<Self, BadTarget> {
        Ok(Self::new(parts.at(0))?)
    }
    fn write(&self) -> Parts {
        Parts::one(self.as_str())
    }
}

impl Target for ModuleName {
    fn read(parts: &Parts) -> Result<Self, BadTarget> {
        Ok(Self::new(parts.at(0))?)
    }
    fn write(&self) -> Parts {
        Parts::one(self.as_str())
    }
    fn module(&self) -> Option<&ModuleName> {
        Some(self)
    }
}

impl Target for (ModuleName, Generation) {
    fn read(parts: &Parts) -> Result<Self, BadTarget> {
        Ok((ModuleName::new(parts.at(0))?, Generation::new(parts.at(1))?))
    }
    fn write(&self) -> Parts {
        Parts {
            path: vec![self.0.to_string(), self.1.to_string()],
            query: Vec::new(),
        }
    }
    fn module(&self) -> Option<&ModuleName> {
        Some(&self.0)
    }
}

/// A request or response body.
pub trait Body: Sized {
    /// Whether a request without body is refused with 400 `missing request body`.
    const NEEDED: bool;
    /// Reads it; `None` when the request has none.
    ///
    /// # Errors
    /// The parser's words, for the 422 answer.
    fn read(text: Option<&[u8]>) -> Result<Self, serde_json::Error>;
    /// Writes it; `None` for no body at all.
    fn write(&self) -> Option<Vec<u8>>;
}

/// No body: what a client sends all the same is not looked at; as a response, 204.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Empty;

impl Body for Empty {
    const NEEDED: bool = false;
    fn read(_: Option<&[u8]>) -> Result<Self, serde_json::Error> {
        Ok(Self)
    }
    fn write(&self) -> Option<Vec<u8>> {
        None
    }
}

/// A body that may be left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maybe<T>(pub Option<T>);

impl<T: Serialize + DeserializeOwned> Body for Maybe<T> {
    const NEEDED: bool = false;
    fn read(text: Option<&[u8]>) -> Result<Self, serde_json::Error> {
        text.map(serde_json::from_slice).transpose().map(Self)
    }
    fn write(&self) -> Option<Vec<u8>> {
        self.0.as_ref().and_then(Body::write)
    }
}

impl<T: Serialize + DeserializeOwned> Body for T {
    const NEEDED: bool = true;
    fn read(text: Option<&[u8]>) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text.unwrap_or_default())
    }
    fn write(&self) -> Option<Vec<u8>> {
        // Our types hold no maps with other keys than strings and no fallible serializer, so
        // this does not fail; an empty body would be refused by the reader if it ever did.
        Some(serde_json::to_vec(self).unwrap_or_default())
    }
}

/// Paths that may end in a slash.
const SLASHED: [&str; 2] = ["/modules", "/identities"];

/// Matches a request path against an endpoint's path; the decoded placeholder values on success.
///
/// For two paths a trailing slash is an alias, since generated agent clients and old diagnostics
/// call `/identities/` and `/modules/` (module-runtime.md 2). Values are decoded exactly once, after
/// splitting, so an encoded slash is data (A33).
#[must_use]
pub fn match_path(pattern: &str, path: &str) -> Option<Vec<String>> {
    let mut values = Vec::new();
    let mut want = pattern.split('/');
    let mut have = path.split('/');
    loop {
        match (want.next(), have.next()) {
            (None, None) => return Some(values),
            (None, Some("")) if have.next().is_none() && SLASHED.contains(&pattern) => {
                return Some(values);
            }
            (Some(name), Some(value)) if name.starts_with('{') => {
                if value.is_empty() {
                    return None;
                }
                values.push(percent_decode(value)?);
            }
            (Some(name), Some(value)) if name == value => {}
            _ => return None,
        }
    }
}

/// Writes path and query of a call, for the client.
#[must_use]
pub fn write_path(pattern: &str, parts: &Parts, version: &str) -> String {
    let mut out = String::with_capacity(96);
    let mut values = parts.path.iter();
    for segment in pattern.split('/').skip(1) {
        out.push('/');
        if segment.starts_with('{') {
            percent_encode(values.next().map_or("", String::as_str), &mut out);
        } else {
            out.push_str(segment);
        }
    }
    out.push_str("?api-version=");
    out.push_str(version);
    for (name, value) in &parts.query {
        out.push('&');
        percent_encode(name, &mut out);
        out.push('=');
        percent_encode(value, &mut out);
    }
    out
}

/// Decodes `%XX` once; `None` when an escape is broken or the result is not UTF-8.
#[must_use]
pub fn percent_decode(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        out.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(out).ok()
}

/// Encodes all but the unreserved characters of RFC 3986.
pub fn percent_encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String does not fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_match_segment_by_segment() {
        let one = |value: &str| Some(vec![value.to_owned()]);
        for (pattern, path, want) in [
            ("/key/{id}", "/key/a", one("a")),
            ("/key/{id}", "/key/a%2Fb", one("a/b")),
            ("/key/{id}", "/key/a/b", None),
            ("/key/{id}", "/key/", None),
            ("/key/{id}", "/key", None),
            ("/key/{id}", "/key/%zz", None),
            ("/key/{id}", "/key/%ff", None),
            ("/key/{id}", "/key/a/", None),
            ("/modules", "/modules/", Some(vec![])),
            ("/modules", "/modules//", None),
            ("/keypair", "/keypair/", None),
            ("/modules", "//modules", None),
            ("/modules", "/MODULES", None),
        ] {
            assert_eq!(match_path(pattern, path), want, "{pattern} {path}");
        }
    }

    #[test]
    fn a33_an_encoded_slash_is_data_and_decoded_once() {
        assert_eq!(
            match_path("/key/{id}", "/key/%252e"),
            Some(vec!["%2e".to_owned()])
        );
        assert_eq!(
            match_path("/key/{id}", "/key/..%2F..%2Fetc"),
            Some(vec!["../../etc".to_owned()])
        );
    }

    #[test]
    fn what_the_client_writes_the_server_reads() {
        let parts = Parts {
            path: vec!["a/b %$".to_owned()],
            query: vec![],
        };
        let text = write_path("/key/{id}", &parts, "2020-09-01");
        assert_eq!(text, "/key/a%2Fb%20%25%24?api-version=2020-09-01");
        let path = text.split('?').next().unwrap();
        assert_eq!(match_path("/key/{id}", path), Some(parts.path));
    }
}
