//! Recorded cases of the wire APIs (`conformance/`), and the comparison with what a device answers.
//!
//! A case says what is sent, byte for byte where that matters, and what must come back. The
//! expectations are written from the reference, never from our own answers. This file knows
//! nothing of our endpoint types on purpose: a fact that is wrong there must show here.
//! `conformance/README.md` says how a case is written.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::puppet::Reply;

/// The cases of one file, in their order.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cases {
    /// Whose socket they go to.
    pub api: String,
    /// On which device.
    #[serde(default)]
    pub device: Device,
    /// The cases.
    #[serde(rename = "case")]
    pub cases: Vec<Case>,
}

/// How the device is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// Not provisioned; modules run.
    #[default]
    None,
    /// Provisioned by its configuration at a hub that does not answer.
    Manual,
}

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Who {
    /// A process of the host with the device's user: operator, and user of every socket.
    #[default]
    Host,
    /// A process of the host with another user.
    Stranger,
    /// The module whose socket it is.
    Module,
    /// The attested agent.
    Agent,
}

/// One request and its answer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// A sentence.
    pub name: String,
    /// One line: what of the reference this shows.
    pub why: String,
    /// The API, where it is not the file's: to get at what a case needs.
    pub api: Option<String>,
    /// Who sends; the host's process unless said.
    #[serde(default)]
    pub callers: Vec<Who>,
    /// Method and target; the rest of the request is written around it.
    pub send: Option<String>,
    /// Further header lines.
    #[serde(default)]
    pub headers: Vec<String>,
    /// The content type; JSON unless said, empty for none.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The body.
    pub body: Option<String>,
    /// The whole request, instead.
    pub raw: Option<String>,
    /// The status.
    pub status: u16,
    /// The message of a refusal; `*` stands for any run of characters.
    pub message: Option<String>,
    /// Members that must be there, by dotted path.
    #[serde(default)]
    pub has: Vec<String>,
    /// Members with their values; `*` in a text stands for any run of characters.
    #[serde(default)]
    pub equals: BTreeMap<String, Value>,
    /// Members that must not be there.
    #[serde(default)]
    pub lacks: Vec<String>,
    /// Whether the connection ends with the answer; not looked at unless said.
    pub closes: Option<bool>,
    /// Values kept for later cases of the file, by name: a dotted path.
    #[serde(default)]
    pub capture: BTreeMap<String, String>,
    /// The row of security.md section 13 by which Holdfast differs from the reference here.
    pub stricter: Option<String>,
    /// Why it cannot run yet.
    pub skip: Option<String>,
}

/// Reads one file.
///
/// # Errors
/// As the file or its form is.
pub fn read(path: &Path) -> io::Result<Cases> {
    let text = std::fs::read_to_string(path)?;
    let bad = |error| io::Error::other(format!("{}: {error}", path.display()));
    toml::from_str(&text).map_err(bad)
}

/// Values that cases refer to as `{{name}}`. `{{repeat:TEXT:COUNT}}` is a text many times over.
#[derive(Debug, Clone, Default)]
pub struct Names(pub BTreeMap<String, String>);

impl Names {
    /// The text with every name replaced.
    ///
    /// # Errors
    /// A sentence, for a name that nothing has captured.
    pub fn fill(&self, text: &str) -> Result<String, String> {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (name, after) = after.split_once("}}").ok_or("an open {{")?;
            out.push_str(before);
            match name
                .strip_prefix("repeat:")
                .and_then(|r| r.rsplit_once(':'))
            {
                Some((text, count)) => {
                    let count = count.parse().map_err(|_| format!("{name}: not a number"))?;
                    out.push_str(&text.repeat(count));
                }
                None => out.push_str(
                    self.0
                        .get(name)
                        .ok_or_else(|| format!("{{{{{name}}}}} was not captured"))?,
                ),
            }
            rest = after;
        }
        out.push_str(rest);
        Ok(out)
    }
}

impl Case {
    /// Who sends it.
    #[must_use]
    pub fn senders(&self) -> Vec<Who> {
        if self.callers.is_empty() {
            vec![Who::Host]
        } else {
            self.callers.clone()
        }
    }

    /// The bytes of the request.
    ///
    /// # Errors
    /// A sentence, when the case does not say enough.
    pub fn request(&self, names: &Names) -> Result<Vec<u8>, String> {
        if let Some(raw) = &self.raw {
            return Ok(names.fill(raw)?.into_bytes());
        }
        let send = self.send.as_ref().ok_or("neither `send` nor `raw`")?;
        let mut text = format!("{} HTTP/1.1\r\nHost: conformance\r\n", names.fill(send)?);
        let body = names.fill(self.body.as_deref().unwrap_or_default())?;
        let kind = self.kind.as_deref();
        let kind = kind.or((!body.is_empty()).then_some("application/json"));
        if let Some(kind) = kind.filter(|kind| !kind.is_empty()) {
            text.push_str(&format!("Content-Type: {kind}\r\n"));
        }
        for line in &self.headers {
            text.push_str(&format!("{}\r\n", names.fill(line)?));
        }
        text.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
        Ok(text.into_bytes())
    }

    /// How the answer differs from the recorded one; keeps what the case captures.
    pub fn judge(&self, reply: &Reply, names: &mut Names) -> Vec<String> {
        let answer = match Answer::read(&reply.bytes.0) {
            Ok(answer) => answer,
            Err(why) => return vec![format!("{why} ({})", reply.error)],
        };
        let mut found = Vec::new();
        if answer.status != self.status {
            found.push(format!("status {}, not {}", answer.status, self.status));
        }
        found.extend(answer.form());
        if let Some(want) = self.closes
            && want != reply.closed
        {
            let how = if reply.closed { "closed" } else { "left open" };
            found.push(format!("the connection was {how}"));
        }
        let text = |path: &str| {
            answer.member(path).map(|value| match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            })
        };
        let mut same = |path: &str, want: &str| match names.fill(want) {
            Err(why) => found.push(why),
            Ok(want) => match text(path) {
                None => found.push(format!("no member {path}")),
                Some(have) if !fits(&want, &have) => {
                    found.push(format!("{path} is {have:?}, not {want:?}"));
                }
                Some(_) => {}
            },
        };
        if let Some(message) = &self.message {
            same("message", message);
        }
        for (path, want) in &self.equals {
            match want {
                Value::String(want) => same(path, want),
                want => same(path, &want.to_string()),
            }
        }
        for path in &self.has {
            if answer.member(path).is_none() {
                found.push(format!("no member {path}"));
            }
        }
        for path in &self.lacks {
            if answer.member(path).is_some() {
                found.push(format!("a member {path}"));
            }
        }
        for (name, path) in &self.capture {
            match text(path) {
                Some(value) => drop(names.0.insert(name.clone(), value)),
                None => found.push(format!("nothing at {path} to capture")),
            }
        }
        if !found.is_empty() {
            found.push(format!("answer: {}", answer.short()));
        }
        found
    }
}

/// An answer as it came over the wire.
struct Answer {
    status: u16,
    reason: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    json: Option<Value>,
}

impl Answer {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n").ok_or("no answer")?;
        if head.starts_with("HTTP/1.1 100") {
            return Self::read(body.as_bytes());
        }
        let mut lines = head.split("\r\n");
        let first = lines.next().unwrap_or_default();
        let rest = first.strip_prefix("HTTP/1.1 ").ok_or("no status line")?;
        let (status, reason) = rest.split_once(' ').ok_or("no reason phrase")?;
        let headers = lines
            .map(|line| {
                let (name, value) = line.split_once(':').ok_or("a header without colon")?;
                Ok((name.to_ascii_lowercase(), value.trim().to_owned()))
            })
            .collect::<Result<_, String>>()?;
        Ok(Self {
            status: status.parse().map_err(|_| "a status that is no number")?,
            reason: reason.to_owned(),
            headers,
            json: serde_json::from_str(body).ok(),
            body: body.as_bytes().to_vec(),
        })
    }

    fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(one, _)| one == name);
        found.map(|(_, value)| value.as_str())
    }

    fn member(&self, path: &str) -> Option<&Value> {
        let mut at = self.json.as_ref()?;
        for step in path.split('.') {
            at = match step.parse::<usize>() {
                Ok(index) => at.get(index)?,
                Err(_) => at.get(step)?,
            };
        }
        Some(at)
    }

    /// What holds for every answer, whatever the case (identity-service.md 1.4).
    fn form(&self) -> Vec<String> {
        let mut found = Vec::new();
        if self.reason.trim().is_empty() {
            found.push("an empty reason phrase".to_owned());
        }
        if self.status == 204 {
            if !self.body.is_empty() || self.header("content-type").is_some() {
                found.push("204 with a body".to_owned());
            }
            return found;
        }
        if self.header("content-type") != Some("application/json") {
            found.push(format!("content type {:?}", self.header("content-type")));
        }
        let length = self.header("content-length").and_then(|l| l.parse().ok());
        if length != Some(self.body.len()) {
            found.push(format!("content length {length:?} of {}", self.body.len()));
        }
        match &self.json {
            None => found.push("a body that is no JSON".to_owned()),
            Some(json) if self.status >= 400 => {
                let members = json.as_object();
                let only = members.is_some_and(|m| m.len() == 1);
                let text = json["message"].as_str().unwrap_or_default();
                if !only || text.is_empty() {
                    found.push("an error body that is not one message".to_owned());
                }
            }
            Some(_) => {}
        }
        found
    }

    fn short(&self) -> String {
        let body: String = String::from_utf8_lossy(&self.body)
            .chars()
            .take(300)
            .collect();
        format!("{} {} {body}", self.status, self.reason)
    }
}

/// Whether a text has the form of a pattern, in which `*` stands for any run of characters.
fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::bytes::Bytes;

    fn case(more: &str) -> Case {
        toml::from_str(&format!("name = 'n'\nwhy = 'w'\n{more}")).unwrap()
    }

    fn judge(more: &str, answer: &str) -> Vec<String> {
        let reply = Reply {
            bytes: Bytes(answer.replace('\n', "\r\n").into_bytes()),
            ..Reply::default()
        };
        case(more).judge(&reply, &mut Names::default())
    }

    #[test]
    fn patterns_stand_for_runs() {
        for (pattern, text, want) in [
            ("", "", true),
            ("", "a", false),
            ("abc", "abc", true),
            ("abc", "abcd", false),
            ("*", "", true),
            ("a*c", "ac", true),
            ("a*c", "abbc", true),
            ("a*c", "abbd", false),
            ("a*b*c", "a-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("ab*ba", "aba", false),
        ] {
            assert_eq!(fits(pattern, text), want, "{pattern} {text}");
        }
    }

    #[test]
    fn a_request_is_written_as_the_case_says() {
        let mut names = Names::default();
        names.0.insert("handle".to_owned(), "h1".to_owned());
        let plain = case(
            "send = 'POST /sign?x'\nbody = '{\"k\":\"{{handle}}{{repeat:ab:2}}\"}'\nstatus = 200",
        );
        let text = String::from_utf8(plain.request(&names).unwrap()).unwrap();
        assert_eq!(
            text,
            "POST /sign?x HTTP/1.1\r\nHost: conformance\r\nContent-Type: application/json\r\n\
             Content-Length: 14\r\n\r\n{\"k\":\"h1abab\"}"
        );
        let bare = case("send = 'GET /'\ntype = ''\nstatus = 200");
        let text = String::from_utf8(bare.request(&names).unwrap()).unwrap();
        assert!(!text.contains("Content-Type"));
        assert!(
            case("raw = '{{other}}'\nstatus = 1")
                .request(&names)
                .is_err()
        );
    }

    #[test]
    fn each_kind_of_difference_is_found() {
        let good = "HTTP/1.1 404 Not Found\ncontent-type: application/json\n\
                    content-length: 23\n\n{\"message\":\"not found\"}";
        let want = "send = 'GET /'\nstatus = 404\nmessage = 'not *'";
        assert_eq!(judge(want, good), Vec::<String>::new());
        for (more, answer) in [
            (want, good.replace("404", "400")),
            (want, good.replace("Not Found", "")),
            (want, good.replace("application/json", "text/plain")),
            (want, good.replace("23", "24")),
            (want, good.replace("not found", "no found!")),
            (want, good.replace("message", "massage")),
            (want, good.replace("HTTP/1.1", "HTTP/1.0")),
            (want, String::new()),
            ("send = 'GET /'\nstatus = 404\nhas = ['a']", good.to_owned()),
            (
                "send = 'GET /'\nstatus = 404\nlacks = ['message']",
                good.to_owned(),
            ),
            (
                "send = 'GET /'\nstatus = 404\ncloses = true",
                good.to_owned(),
            ),
            (
                "send = 'GET /'\nstatus = 204",
                "HTTP/1.1 204 No Content\ncontent-type: x\n\n".to_owned(),
            ),
        ] {
            assert!(!judge(more, &answer).is_empty(), "{more} {answer}");
        }
    }
}
