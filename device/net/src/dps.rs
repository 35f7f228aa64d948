//! Registration with the provisioning service by symmetric key (reference/identity-service.md
//! 6.5, reference/cloud.md 1.1).
//!
//! [`Registration`] decides, from replies and a monotonic `now`, what to do next: it holds the
//! pace and the total time against a server that never answers, asks for no wait at all or for a
//! century (R56, A73). [`HubRule`] says which hubs may be assigned (R54, A72). [`Dps`] is the
//! thin shell that sends and waits. What to do with the assigned hub is identityd's decision.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use contract::json;
use contract::names::{DeviceId, HostName, RegistrationId};
use serde::Deserialize;
use serde_json::Value;

use crate::backoff::Backoff;
use crate::https::{Https, HttpsError, Method, Reply, Request};
use crate::tls;
use crate::token::{self, TokenError};

const API: &str = "2021-06-01";
const MAX_REPLY: usize = 64 * 1024;

/// Why a registration ended without a hub.
#[derive(Debug, thiserror::Error)]
pub enum DpsError {
    /// The id scope is not one.
    #[error("the id scope is not 1 to 64 letters and digits")]
    BadScope,
    /// No token could be made.
    #[error("the registration has no token")]
    Token(#[from] TokenError),
    /// The service could not be reached within the total time.
    #[error("the provisioning service cannot be reached")]
    Unreachable(#[source] HttpsError),
    /// The service refused; trying again will not help.
    #[error("the provisioning service refuses with {status}: {code} {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The service's own number.
        code: i64,
        /// The service's words, shortened.
        message: String,
    },
    /// The service decided against the device.
    #[error("the provisioning service did not assign a hub ({status}): {code} {message}")]
    NotAssigned {
        /// failed, unassigned, disabled or a word we do not know.
        status: String,
        /// The service's own number.
        code: i64,
        /// The service's words, shortened.
        message: String,
    },
    /// A reply that is not what the protocol says (A67).
    #[error("the provisioning service's reply is malformed: {0}")]
    Malformed(&'static str),
    /// The assigned hub is not one this device may use (A72).
    #[error(
        "the provisioning service assigned the hub {0}, which the configuration does not allow"
    )]
    ForeignHub(String),
    /// The total time is over (A73).
    #[error("no hub was assigned in {} s, last status {last}", .total.as_secs())]
    Exhausted {
        /// The time allowed.
        total: Duration,
        /// What the last reply said.
        last: u16,
    },
    /// The caller's wait was ended from outside.
    #[error("the registration was stopped")]
    Stopped,
}

impl DpsError {
    /// Whether the same attempt can succeed later without anyone changing anything.
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Token(_) | Self::Unreachable(_) | Self::Exhausted { .. } | Self::Stopped
        )
    }
}

/// Which hubs the provisioning service may assign (R54).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubRule(Vec<String>);

impl HubRule {
    /// Each entry is a whole host name, or begins with a dot and means every name below it.
    pub fn new(entries: impl IntoIterator<Item = String>) -> Self {
        Self(
            entries
                .into_iter()
                .map(|e| e.to_ascii_lowercase())
                .collect(),
        )
    }

    /// Whether a host may be used. A port does not matter; an address must be listed as such.
    pub fn allows(&self, host: &HostName) -> bool {
        let host = token::bare(host.as_str()).to_ascii_lowercase();
        let label = |l: &str| {
            !l.is_empty()
                && l.len() <= 63
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        if !address && !host.split('.').all(label) {
            return false;
        }
        self.0.iter().any(|entry| {
            if entry.starts_with('.') {
                !address && host.len() > entry.len() && host.ends_with(entry.as_str())
            } else {
                host == *entry
            }
        })
    }
}

/// How patient a registration is.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the first request to the assigned hub.
    pub total: Duration,
    /// Between two looks at an assignment that is being made.
    pub poll: Backoff,
    /// After an error that may pass.
    pub retry: Backoff,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            total: Duration::from_secs(600),
            poll: Backoff {
                first: Duration::from_millis(500),
                cap: Duration::from_secs(10),
                server_cap: Duration::from_secs(60),
            },
            retry: Backoff {
                first: Duration::from_secs(2),
                cap: Duration::from_secs(60),
                server_cap: Duration::from_secs(120),
            },
        }
    }
}

/// The hub and device id a device was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// The hub, perhaps with a port.
    pub hub: HostName,
    /// The device's id there, which may differ from the registration id.
    pub device: DeviceId,
}

/// What happened since the last step.
#[derive(Debug)]
pub enum Event<'a> {
    /// The registration begins.
    Begin,
    /// A reply came.
    Reply(&'a Reply),
    /// No reply came.
    NoReply,
    /// The wait is over.
    Waited,
}

/// What to do next.
#[derive(Debug)]
pub enum Step {
    /// Send the registration.
    Register,
    /// Look at the assignment.
    Poll {
        /// The name the service gave to it; safe in a path.
        operation: String,
    },
    /// Do nothing for this long.
    Wait(Duration),
    /// A hub was assigned.
    Done(Assigned),
    /// It is over. `None`: the service could not be reached.
    Failed(Option<DpsError>),
}

/// One registration, as a state machine over replies and time.
#[derive(Debug)]
pub struct Registration {
    rule: HubRule,
    limits: Limits,
    began: Duration,
    operation: Option<String>,
    polls: u32,
    failures: u32,
    last: u16,
}

impl Registration {
    /// A registration that begins `now`, on a clock that never jumps.
    pub fn new(rule: HubRule, limits: Limits, now: Duration) -> Self {
        Self {
            rule,
            limits,
            began: now,
            operation: None,
            polls: 0,
            failures: 0,
            last: 0,
        }
    }

    /// Takes what happened and says what to do.
    pub fn next(&mut self, event: &Event<'_>, now: Duration, random: u64) -> Step {
        match event {
            Event::Begin => Step::Register,
            Event::Waited => match &self.operation {
                Some(operation) => Step::Poll {
                    operation: operation.clone(),
                },
                None => Step::Register,
            },
            Event::NoReply => {
                self.last = 0;
                self.retry(None, now, random)
            }
            Event::Reply(reply) => {
                self.last = reply.status;
                match self.read(reply) {
                    Ok(Answer::Assigned(assigned)) => Step::Done(assigned),
                    Ok(Answer::Assigning(operation)) => {
                        self.operation = Some(operation);
                        self.failures = 0;
                        self.polls = self.polls.saturating_add(1);
                        let asked = reply.retry_after.unwrap_or_default();
                        let wait = self.limits.poll.delay_asked(self.polls, asked, random);
                        self.wait(wait, now)
                    }
                    Ok(Answer::Later) => self.retry(reply.retry_after, now, random),
                    Err(error) => Step::Failed(Some(error)),
                }
            }
        }
    }

    fn retry(&mut self, asked: Option<Duration>, now: Duration, random: u64) -> Step {
        self.failures = self.failures.saturating_add(1);
        let asked = asked.unwrap_or_default();
        let wait = self.limits.retry.delay_asked(self.failures, asked, random);
        self.wait(wait, now)
    }

    fn wait(&self, wait: Duration, now: Duration) -> Step {
        let spent = now.saturating_sub(self.began);
        if spent.saturating_add(wait) > self.limits.total {
            return Step::Failed(match self.last {
                0 => None,
                last => Some(DpsError::Exhausted {
                    total: self.limits.total,
                    last,
                }),
            });
        }
        Step::Wait(wait)
    }

    fn read(&self, reply: &Reply) -> Result<Answer, DpsError> {
        match reply.status {
            200..=202 => {}
            429 | 500..=599 => return Ok(Answer::Later),
            status => return Err(refusal(status, reply)),
        }
        if !reply.is_json() {
            return Err(DpsError::Malformed("the content type is not JSON"));
        }
        json::check(&reply.body, json::Limits::document(MAX_REPLY))
            .map_err(|_| DpsError::Malformed("not JSON, or JSON beyond the limits"))?;
        let answer: WireAnswer = serde_json::from_slice(&reply.body)
            .map_err(|_| DpsError::Malformed("not a registration answer"))?;
        let state = answer.registration_state.unwrap_or_default();
        match answer.status.as_deref().or(state.status.as_deref()) {
            Some("assigned") => {
                let hub = state
                    .assigned_hub
                    .ok_or(DpsError::Malformed("no assignedHub"))?;
                let device = state.device_id.ok_or(DpsError::Malformed("no deviceId"))?;
                let hub = HostName::new(hub)
                    .map_err(|_| DpsError::Malformed("assignedHub is not a host name"))?;
                let device = DeviceId::new(device)
                    .map_err(|_| DpsError::Malformed("deviceId is not a device id"))?;
                if !self.rule.allows(&hub) {
                    return Err(DpsError::ForeignHub(hub.to_string()));
                }
                Ok(Answer::Assigned(Assigned { hub, device }))
            }
            Some("assigning") => {
                let operation = answer
                    .operation_id
                    .or_else(|| self.operation.clone())
                    .ok_or(DpsError::Malformed("no operationId"))?;
                let safe = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
                if operation.is_empty() || operation.len() > 128 || !operation.bytes().all(safe) {
                    return Err(DpsError::Malformed("operationId does not fit in a path"));
                }
                Ok(Answer::Assigning(operation))
            }
            Some(status) => Err(DpsError::NotAssigned {
                status: shorten(status),
                code: state.error.code(),
                message: state.error.message(),
            }),
            None => Err(DpsError::Malformed("no status")),
        }
    }
}

enum Answer {
    Assigned(Assigned),
    Assigning(String),
    Later,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireAnswer {
    operation_id: Option<String>,
    status: Option<String>,
    registration_state: Option<WireState>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireState {
    status: Option<String>,
    assigned_hub: Option<String>,
    device_id: Option<String>,
    #[serde(flatten)]
    error: WireError,
}

/// Both spellings are in use; the one of the protocol wins.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireError {
    error_code: Option<i64>,
    code: Option<i64>,
    error_message: Option<String>,
    message: Option<String>,
}

impl WireError {
    fn code(&self) -> i64 {
        self.error_code.or(self.code).unwrap_or(0)
    }

    fn message(&self) -> String {
        shorten(
            self.error_message
                .as_deref()
                .or(self.message.as_deref())
                .unwrap_or("no reason"),
        )
    }
}

fn refusal(status: u16, reply: &Reply) -> DpsError {
    let error: WireError = json::check(&reply.body, json::Limits::document(MAX_REPLY))
        .ok()
        .and_then(|()| serde_json::from_slice(&reply.body).ok())
        .unwrap_or_default();
    DpsError::Refused {
        status,
        code: error.code(),
        message: error.message(),
    }
}

/// A peer's words, fit for a log line.
pub(crate) fn shorten(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(200)
        .collect()
}

/// The shell: sends what [`Registration`] decides.
pub struct Dps {
    https: Https,
    scope: String,
    registration: RegistrationId,
    payload: Option<Value>,
    tokens: token::Source,
}

impl Dps {
    /// A registration at one service. `tokens` must be those of [`token::Owner::Registration`].
    pub fn new(
        https: Https,
        scope: &str,
        registration: RegistrationId,
        payload: Option<Value>,
        tokens: token::Source,
    ) -> Result<Self, DpsError> {
        let fits = (1..=64).contains(&scope.len())
            && scope
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if !fits {
            return Err(DpsError::BadScope);
        }
        Ok(Self {
            https,
            scope: scope.to_owned(),
            registration,
            payload,
            tokens,
        })
    }

    /// Registers, and waits with `wait` between requests; a wait that answers false ends it.
    pub fn register(
        &self,
        rule: HubRule,
        limits: Limits,
        wait: &mut dyn FnMut(Duration) -> bool,
    ) -> Result<Assigned, DpsError> {
        let began = Instant::now();
        let mut machine = Registration::new(rule, limits, Duration::ZERO);
        let mut step = machine.next(&Event::Begin, Duration::ZERO, 0);
        let mut last = None;
        loop {
            let reply;
            let event = match step {
                Step::Done(assigned) => return Ok(assigned),
                Step::Failed(Some(error)) => return Err(error),
                Step::Failed(None) => {
                    return Err(last.map_or(DpsError::Stopped, DpsError::Unreachable));
                }
                Step::Wait(span) => {
                    if !wait(span) {
                        return Err(DpsError::Stopped);
                    }
                    Event::Waited
                }
                Step::Register | Step::Poll { .. } => match self.send(&step)? {
                    Ok(got) => {
                        reply = got;
                        Event::Reply(&reply)
                    }
                    Err(error) => {
                        last = Some(error);
                        Event::NoReply
                    }
                },
            };
            step = machine.next(&event, began.elapsed(), tls::random());
        }
    }

    fn send(&self, step: &Step) -> Result<Result<Reply, HttpsError>, DpsError> {
        // A token for each request: one made for the whole registration would end before it.
        let token = self.tokens.mint()?;
        let (scope, id) = (&self.scope, &self.registration);
        let (method, path, body) = match step {
            Step::Poll { operation } => {
                let path =
                    format!("/{scope}/registrations/{id}/operations/{operation}?api-version={API}");
                (Method::Get, path, None)
            }
            _ => {
                let path = format!("/{scope}/registrations/{id}/register?api-version={API}");
                let mut body = serde_json::json!({ "registrationId": id.as_str() });
                if let Some(payload) = &self.payload {
                    body["payload"] = payload.clone();
                }
                (Method::Put, path, Some(body.to_string().into_bytes()))
            }
        };
        Ok(self.https.call(&Request {
            authorization: Some(&token.text),
            json: body.as_deref(),
            ..Request::new(method, &path)
        }))
    }
}

impl fmt::Debug for Dps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dps({}/{})", self.scope, self.registration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, retry_after: Option<u64>, body: &str) -> Reply {
        Reply {
            status,
            content_type: Some("application/json; charset=utf-8".into()),
            retry_after: retry_after.map(Duration::from_secs),
            body: body.as_bytes().to_vec(),
        }
    }

    fn machine() -> Registration {
        let rule = HubRule::new([".hubs.test".to_owned(), "127.0.0.1".to_owned()]);
        Registration::new(rule, Limits::default(), Duration::ZERO)
    }

    const ASSIGNING: &str = r#"{"operationId":"4.ab.c-d","status":"assigning"}"#;

    #[test]
    fn a_registration_is_sent_polled_and_assigned() {
        let mut machine = machine();
        let now = Duration::ZERO;
        assert!(matches!(
            machine.next(&Event::Begin, now, 0),
            Step::Register
        ));
        let step = machine.next(&Event::Reply(&reply(202, Some(3), ASSIGNING)), now, 0);
        assert!(
            matches!(step, Step::Wait(w) if w == Duration::from_secs(3)),
            "{step:?}"
        );
        let step = machine.next(&Event::Waited, now, 0);
        assert!(
            matches!(&step, Step::Poll { operation } if operation == "4.ab.c-d"),
            "{step:?}"
        );
        let body = r#"{"operationId":"4.ab.c-d","status":"assigned","registrationState":
            {"registrationId":"r","assignedHub":"h1.hubs.test:8443","deviceId":"d1","etag":"x"}}"#;
        match machine.next(&Event::Reply(&reply(200, None, body)), now, 0) {
            Step::Done(assigned) => {
                assert_eq!(assigned.hub.as_str(), "h1.hubs.test:8443");
                assert_eq!(assigned.device.as_str(), "d1");
            }
            step => panic!("{step:?}"),
        }
    }

    /// Runs the machine in virtual time against a server that always says the same.
    fn endless(status: u16, retry_after: Option<u64>, body: &str) -> (u32, Duration, Step) {
        let mut machine = machine();
        let mut now = Duration::ZERO;
        let mut requests = 0;
        let answer = reply(status, retry_after, body);
        let mut step = machine.next(&Event::Begin, now, 0);
        loop {
            step = match step {
                Step::Register | Step::Poll { .. } => {
                    requests += 1;
                    machine.next(&Event::Reply(&answer), now, u64::from(requests))
                }
                Step::Wait(wait) => {
                    assert!(wait >= Duration::from_millis(250), "{wait:?}");
                    assert!(wait <= Duration::from_secs(120), "{wait:?}");
                    now += wait;
                    machine.next(&Event::Waited, now, 0)
                }
                end => return (requests, now, end),
            };
        }
    }

    #[test]
    fn a73_endless_assigning_and_mad_waits_are_bounded_in_rate_and_total() {
        let century = 100 * 365 * 86_400;
        for (status, retry_after, body) in [
            (202, None, ASSIGNING),
            (202, Some(0), ASSIGNING),
            (202, Some(century), ASSIGNING),
            (202, Some(u64::MAX), ASSIGNING),
            (429, Some(0), ""),
            (429, Some(century), ""),
            (503, None, "not json"),
        ] {
            let (requests, spent, end) = endless(status, retry_after, body);
            assert!(
                (2..=150).contains(&requests),
                "{status} {retry_after:?}: {requests}"
            );
            assert!(spent <= Limits::default().total);
            assert!(
                matches!(end, Step::Failed(Some(DpsError::Exhausted { last, .. })) if last == status),
                "{end:?}"
            );
        }
    }

    #[test]
    fn a_silent_service_is_given_up_after_the_total_time() {
        let mut machine = machine();
        let mut now = Duration::ZERO;
        loop {
            match machine.next(&Event::NoReply, now, 7) {
                Step::Wait(wait) => {
                    assert!(wait > Duration::ZERO, "time has to pass");
                    now += wait;
                }
                Step::Failed(None) => break,
                step => panic!("{step:?}"),
            }
            assert!(matches!(
                machine.next(&Event::Waited, now, 0),
                Step::Register
            ));
        }
        assert!(now <= Limits::default().total && now >= Duration::from_secs(400));
    }

    #[test]
    fn a72_a_hub_outside_the_rule_is_refused() {
        let rule = HubRule::new([
            ".hubs.test".to_owned(),
            "one.test".to_owned(),
            "127.0.0.1".to_owned(),
        ]);
        for (host, allowed) in [
            ("h1.hubs.test", true),
            ("H1.HUBS.TEST:443", true),
            ("a.b.hubs.test", true),
            ("one.test", true),
            ("127.0.0.1:8443", true),
            ("hubs.test", false),
            (".hubs.test", false),
            ("evilhubs.test", false),
            ("h1.hubs.test.evil.test", false),
            ("a..hubs.test", false),
            ("h_1.hubs.test", false),
            ("h1.hubs.test.", false),
            ("two.one.test", false),
            ("10.0.0.1", false),
            ("[::1]", false),
            ("evil.test:1.hubs.test", false),
        ] {
            let Ok(name) = HostName::new(host) else {
                assert!(!allowed, "{host}");
                continue;
            };
            assert_eq!(rule.allows(&name), allowed, "{host}");
        }
        let body = r#"{"status":"assigned","registrationState":{"assignedHub":"h.evil.test","deviceId":"d"}}"#;
        let step = machine().next(&Event::Reply(&reply(200, None, body)), Duration::ZERO, 0);
        assert!(matches!(&step, Step::Failed(Some(DpsError::ForeignHub(h))) if h == "h.evil.test"));
        assert!(
            !HubRule::new([]).allows(&HostName::new("h").unwrap()),
            "no rule allows nothing"
        );
    }

    #[test]
    fn a67_broken_replies_end_the_registration_with_a_reason() {
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(40), "]".repeat(40));
        for (body, why) in [
            ("", "not JSON"),
            ("[]", "registration answer"),
            ("{}", "no status"),
            (deep.as_str(), "not JSON"),
            (r#"{"status":"assigning"}"#, "operationId"),
            (r#"{"status":"assigning","status":"assigned"}"#, "not JSON"),
            (r#"{"status":"assigning","operationId":"../x"}"#, "path"),
            (r#"{"status":"assigning","operationId":"a/b"}"#, "path"),
            (r#"{"status":"assigned"}"#, "assignedHub"),
            (
                r#"{"status":"assigned","registrationState":{"assignedHub":"h"}}"#,
                "deviceId",
            ),
            (
                r#"{"status":"assigned","registrationState":{"assignedHub":"h/x","deviceId":"d"}}"#,
                "host",
            ),
            (
                r#"{"status":"assigned","registrationState":{"assignedHub":"127.0.0.1","deviceId":"a b"}}"#,
                "device id",
            ),
        ] {
            let step = machine().next(&Event::Reply(&reply(202, None, body)), Duration::ZERO, 0);
            let Step::Failed(Some(error)) = step else {
                panic!("{body}: {step:?}")
            };
            assert!(error.to_string().contains(why), "{body}: {error}");
            assert!(!error.may_pass());
        }
        let mut page = reply(200, None, ASSIGNING);
        page.content_type = Some("text/html".into());
        let step = machine().next(&Event::Reply(&page), Duration::ZERO, 0);
        assert!(
            matches!(step, Step::Failed(Some(DpsError::Malformed(_)))),
            "{step:?}"
        );
    }

    #[test]
    fn refusals_keep_the_services_words_and_are_final() {
        for (status, body, shown) in [
            (
                401,
                r#"{"errorCode":401002,"trackingId":"t","message":"Unauthorized"}"#,
                "401002 Unauthorized",
            ),
            (
                404,
                r#"{"code":404201,"errorMessage":"no\nsuch"}"#,
                "404201 no such",
            ),
            (400, "<html>", "0 no reason"),
            (301, "", "0 no reason"),
            (204, "", "0 no reason"),
        ] {
            let step = machine().next(&Event::Reply(&reply(status, None, body)), Duration::ZERO, 0);
            let Step::Failed(Some(error)) = step else {
                panic!("{step:?}")
            };
            assert!(error.to_string().contains(shown), "{error}");
        }
        for status in ["failed", "disabled", "unassigned"] {
            let body = format!(
                r#"{{"status":"{status}","registrationState":{{"errorCode":400207,"errorMessage":"no"}}}}"#
            );
            let step = machine().next(&Event::Reply(&reply(200, None, &body)), Duration::ZERO, 0);
            assert!(
                matches!(
                    &step,
                    Step::Failed(Some(DpsError::NotAssigned { code: 400207, .. }))
                ),
                "{step:?}"
            );
        }
    }
}
