//! A session with the hub over MQTT 3.1.1: messages out, twin in and out.
//!
//! [`Session`] belongs to one thread, which drives it by calling in: each call ends at its
//! deadline, and while it waits it answers, pings, reconnects with back-off (R56) and renews the
//! token before it ends. Bytes become packets in [`crate::frame`] and [`crate::packet`]; one that
//! makes no sense ends the connection, never the process (A125). What a desired property means
//! is the user's business.

use std::fmt;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::backoff::Backoff;
use crate::frame::{FrameError, Frames};
use crate::packet::{self, Packet, PacketError};
use crate::tls::{self, Target, TlsError};
use crate::token::{self, TokenError};
use crate::topic::{self, FromHub};
use crate::twin::{self, Desired, Tracker, Twin};

/// The largest message, with its topic.
pub const MAX_MESSAGE: usize = 256 * 1024;
/// The longest topic.
pub const MAX_TOPIC: usize = 1024;

/// The most messages of ours that the hub may leave unacknowledged.
const MAX_IN_FLIGHT: usize = 64;
/// Connecting and one request, at most.
const PATIENCE: Duration = Duration::from_secs(30);
/// What we promise the hub; we ping after three quarters of it.
const KEEP_ALIVE: u16 = 60;
const PING_AFTER: Duration = Duration::from_secs(45);
const PONG_WITHIN: Duration = Duration::from_secs(30);
/// The usual pace of attempts to connect.
pub const RETRY: Backoff = Backoff {
    first: Duration::from_secs(1),
    cap: Duration::from_secs(120),
    server_cap: Duration::from_secs(120),
};
/// A connection that lasted this long was a good one: the next series of failures starts anew.
const GOOD: Duration = Duration::from_secs(60);

/// Why something did not happen.
#[derive(Debug, thiserror::Error)]
pub enum MqttError {
    /// No token for the connection.
    #[error("the connection to the hub has no token")]
    Token(#[from] TokenError),
    /// No TLS connection.
    #[error("no connection to the hub")]
    Tls(#[from] TlsError),
    /// The hub refused the connection.
    #[error("the hub refuses the connection: {0:?}")]
    Refused(Refusal),
    /// The hub did not grant a subscription.
    #[error("the hub does not grant {0}")]
    Subscription(&'static str),
    /// The connection ended.
    #[error("the connection to the hub ended")]
    Lost(#[source] io::Error),
    /// The hub does not answer pings.
    #[error("the hub does not answer")]
    Silent,
    /// The hub sent bytes that are no packet (A125).
    #[error("the hub sent a malformed packet")]
    Frame(#[from] FrameError),
    /// The hub sent a packet that is not what the protocol says (A125).
    #[error("the hub sent a malformed packet")]
    Packet(#[from] PacketError),
    /// The hub sent a packet at the wrong time (A125).
    #[error("the hub broke the protocol: {0}")]
    Protocol(&'static str),
    /// The names of the identity do not fit into a login.
    #[error("the login does not fit into a packet")]
    Login,
    /// A message or topic is over the limit.
    #[error("a message of {size} bytes is over the limit of {limit}")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The hub answered a request about the twin with an error.
    #[error("the hub answers {0} to a request about the twin")]
    Twin(u16),
    /// The hub's answer about the twin cannot be read.
    #[error("the hub's twin cannot be read")]
    TwinSyntax,
    /// The deadline passed first.
    #[error("the hub did not answer in time")]
    Deadline,
    /// The deadline passed before there was a connection.
    #[error("not connected to the hub, after {failures} failed attempts")]
    NotConnected {
        /// Failures in a row.
        failures: u32,
        /// The last one.
        #[source]
        last: Option<Box<MqttError>>,
    },
}

impl MqttError {
    /// Whether the connection cannot be used any more.
    fn ends_connection(&self) -> bool {
        !matches!(
            self,
            Self::TooLarge { .. } | Self::Twin(_) | Self::TwinSyntax | Self::Deadline
        )
    }
}

/// Why the hub refused a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The protocol or the client id.
    Client,
    /// The hub cannot serve now.
    Unavailable,
    /// The identity or its token.
    Credentials,
}

/// Whom a session speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The hub's own name, whatever the address.
    pub hub: String,
    /// The device id.
    pub device: String,
    /// The module id, with the `$` of a system module.
    pub module: Option<String>,
}

impl Identity {
    /// The owner of this identity's tokens.
    pub fn owner(&self) -> token::Owner {
        let (hub, device) = (self.hub.clone(), self.device.clone());
        match &self.module {
            Some(module) => token::Owner::Module {
                hub,
                device,
                module: module.clone(),
            },
            None => token::Owner::Device { hub, device },
        }
    }
}

/// What a session needs.
pub struct Settings {
    /// For whom.
    pub identity: Identity,
    /// A name and version shown to the operator.
    pub product: String,
    /// Where the hub is.
    pub target: Target,
    /// How it is trusted.
    pub tls: tls::Client,
    /// How the hub knows us.
    pub tokens: token::Source,
    /// The pace of attempts, usually [`RETRY`].
    pub retry: Backoff,
}

/// What [`Session::next`] brings.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The desired properties are now these, complete.
    Desired(Desired),
    /// Nothing new until the deadline.
    Idle,
}

/// A session. It connects when it is first used.
pub struct Session {
    settings: Settings,
    link: Option<Link>,
    tracker: Tracker,
    failures: u32,
    attempt: Instant,
    last: Option<MqttError>,
    twin_failures: u32,
    twin_attempt: Instant,
    requests: u64,
}

impl Session {
    /// A session that is not connected yet.
    pub fn new(settings: Settings) -> Self {
        let now = Instant::now();
        Self {
            settings,
            link: None,
            tracker: Tracker::default(),
            failures: 0,
            attempt: now,
            last: None,
            twin_failures: 0,
            twin_attempt: now,
            // A late answer to an earlier process must not look like ours.
            requests: tls::random(),
        }
    }

    /// Whether there is a connection, as far as we know.
    pub fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    /// Connects, if that is not so already.
    pub fn connect(&mut self, deadline: Instant) -> Result<(), MqttError> {
        self.ready(deadline).map(|_| ())
    }

    /// Sends a message and returns when the hub has it for good. When the connection is lost in
    /// between it is sent again, so the hub may have it twice.
    pub fn send(
        &mut self,
        body: &[u8],
        properties: &[(&str, &str)],
        deadline: Instant,
    ) -> Result<(), MqttError> {
        let identity = &self.settings.identity;
        let topic = topic::events(&identity.device, identity.module.as_deref(), properties);
        fits(topic.len(), MAX_TOPIC)?;
        fits(topic.len() + body.len(), MAX_MESSAGE)?;
        self.with_link(deadline, |link, tracker, deadline| {
            let id = link.id()?;
            link.publish(&topic, Some(id), body)?;
            link.until(tracker, deadline, |packet| match packet {
                Packet::Acknowledged(acknowledged) if acknowledged == id => Some(()),
                _ => None,
            })
        })
    }

    /// Reads the whole twin.
    pub fn twin(&mut self, deadline: Instant) -> Result<Twin, MqttError> {
        let request = self.request();
        let body = self
            .ask(&topic::twin_get(&request), &[], &request, deadline)?
            .1;
        let twin = twin::parse(&body).ok_or(MqttError::TwinSyntax)?;
        self.tracker.read(twin.desired.clone());
        Ok(twin)
    }

    /// Patches the reported properties; says their new version, if the hub does.
    pub fn report(&mut self, patch: &Value, deadline: Instant) -> Result<Option<i64>, MqttError> {
        let request = self.request();
        let body = patch.to_string();
        fits(body.len(), MAX_MESSAGE)?;
        let topic = topic::twin_report(&request);
        Ok(self.ask(&topic, body.as_bytes(), &request, deadline)?.0)
    }

    /// Waits for a change of the desired properties, no longer than until the deadline. The
    /// first call brings the properties as they are.
    pub fn next(&mut self, deadline: Instant) -> Result<Event, MqttError> {
        loop {
            self.ready(deadline)?;
            let now = Instant::now();
            if self.tracker.is_stale() && now >= self.twin_attempt {
                if let Err(error) = self.twin(deadline) {
                    self.twin_failures = self.twin_failures.saturating_add(1);
                    self.twin_attempt =
                        now + self.settings.retry.delay(self.twin_failures, tls::random());
                    return Err(error);
                }
                self.twin_failures = 0;
            }
            if let Some(desired) = self.tracker.take() {
                return Ok(Event::Desired(desired));
            }
            if now >= deadline {
                return Ok(Event::Idle);
            }
            let mut until = deadline;
            if self.tracker.is_stale() {
                until = until.min(self.twin_attempt);
            }
            let Some(link) = &mut self.link else { continue };
            let until = until.min(link.renew);
            if let Err(error) = link.receive(&mut self.tracker, until) {
                self.lost(error);
            }
        }
    }

    /// Says goodbye to the hub.
    pub fn close(mut self) {
        if let Some(link) = self.link.take() {
            link.close();
        }
    }

    fn request(&mut self) -> String {
        self.requests = self.requests.wrapping_add(1);
        format!("{:x}", self.requests)
    }

    /// A request about the twin, and its answer.
    fn ask(
        &mut self,
        topic: &str,
        body: &[u8],
        request: &str,
        deadline: Instant,
    ) -> Result<(Option<i64>, Vec<u8>), MqttError> {
        self.with_link(deadline, |link, tracker, deadline| {
            link.publish(topic, None, body)?;
            let (status, version, body) = link.until(tracker, deadline, |packet| {
                let Packet::Message { topic, body, .. } = packet else {
                    return None;
                };
                match topic::parse(&topic) {
                    Some(FromHub::Answer {
                        status,
                        request: r,
                        version,
                    }) if r == request => Some((status, version, body)),
                    _ => None,
                }
            })?;
            if status >= 300 {
                return Err(MqttError::Twin(status));
            }
            Ok((version, body))
        })
    }

    /// Does something with a connection, again when it is lost, until the deadline.
    fn with_link<T>(
        &mut self,
        deadline: Instant,
        mut act: impl FnMut(&mut Link, &mut Tracker, Instant) -> Result<T, MqttError>,
    ) -> Result<T, MqttError> {
        loop {
            self.ready(deadline)?;
            let Some(link) = &mut self.link else { continue };
            match act(link, &mut self.tracker, deadline) {
                Err(error) if error.ends_connection() => self.lost(error),
                other => return other,
            }
        }
    }

    /// Makes sure of a connection with a token that is not about to end.
    fn ready(&mut self, deadline: Instant) -> Result<(), MqttError> {
        loop {
            let now = Instant::now();
            match &self.link {
                Some(link) if now < link.renew => return Ok(()),
                Some(_) => {
                    // In good order, so the next attempt is made at once.
                    if let Some(link) = self.link.take() {
                        link.close();
                    }
                    self.tracker.missed();
                }
                None => {}
            }
            if now >= deadline || self.attempt >= deadline {
                // A failure is told at once, and only once; whoever asks again has to wait.
                let last = self.last.take().map(Box::new);
                if last.is_none() {
                    pause_until(deadline);
                }
                return Err(MqttError::NotConnected {
                    failures: self.failures,
                    last,
                });
            }
            pause_until(self.attempt);
            let patience = (Instant::now() + PATIENCE).min(deadline);
            match Link::open(&self.settings, &mut self.tracker, patience) {
                Ok(link) => self.link = Some(link),
                Err(error) => self.failed(error),
            }
        }
    }

    fn lost(&mut self, error: MqttError) {
        if let Some(link) = self.link.take()
            && link.opened.elapsed() >= GOOD
        {
            self.failures = 0;
        }
        self.tracker.missed();
        self.failed(error);
    }

    fn failed(&mut self, error: MqttError) {
        self.failures = self.failures.saturating_add(1);
        self.attempt = Instant::now() + self.settings.retry.delay(self.failures, tls::random());
        self.last = Some(error);
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("identity", &self.settings.identity)
            .field("connected", &self.is_connected())
            .finish_non_exhaustive()
    }
}

/// When to renew a token: with 15 % of its life left.
fn renewal(lifetime: Duration) -> Duration {
    lifetime * 17 / 20
}

fn fits(size: usize, limit: usize) -> Result<(), MqttError> {
    if size > limit {
        Err(MqttError::TooLarge { size, limit })
    } else {
        Ok(())
    }
}

/// Nothing to read and nobody to ask: only time has to pass.
fn pause_until(moment: Instant) {
    loop {
        let left = moment.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::park_timeout(left);
    }
}

/// One connection.
struct Link {
    stream: tls::Stream,
    frames: Frames,
    /// Ids the hub has yet to answer.
    in_flight: Vec<u16>,
    last_id: u16,
    ping: Instant,
    pong: Option<Instant>,
    opened: Instant,
    renew: Instant,
}

impl Link {
    /// Connects, logs in and subscribes.
    fn open(
        settings: &Settings,
        tracker: &mut Tracker,
        deadline: Instant,
    ) -> Result<Self, MqttError> {
        let token = settings.tokens.mint()?;
        let stream = settings.tls.connect(&settings.target, deadline)?;
        let opened = Instant::now();
        let mut link = Self {
            stream,
            frames: Frames::default(),
            in_flight: Vec::new(),
            last_id: 0,
            ping: opened + PING_AFTER,
            pong: None,
            opened,
            renew: opened + renewal(token.lifetime),
        };
        let Identity {
            hub,
            device,
            module,
        } = &settings.identity;
        let module = module.as_deref();
        let user = topic::user_name(token::bare(hub), device, module, &settings.product);
        let client = topic::client_id(device, module);
        let login =
            packet::connect(&client, &user, &token.text, KEEP_ALIVE).ok_or(MqttError::Login)?;
        link.write(&login)?;
        match link.receive(tracker, deadline)? {
            Some(Packet::Login(code)) => match refusal(code) {
                None => {}
                Some(refusal) => return Err(MqttError::Refused(refusal)),
            },
            Some(_) => return Err(MqttError::Protocol("a packet before the login")),
            None => return Err(MqttError::Deadline),
        }
        for filter in [topic::TWIN_ANSWERS, topic::DESIRED] {
            link.subscribe(filter, tracker, deadline)?;
        }
        Ok(link)
    }

    fn subscribe(
        &mut self,
        filter: &'static str,
        tracker: &mut Tracker,
        deadline: Instant,
    ) -> Result<(), MqttError> {
        let id = self.id()?;
        let subscribe = packet::subscribe(id, filter).ok_or(MqttError::Login)?;
        self.write(&subscribe)?;
        let granted = self.until(tracker, deadline, |packet| match packet {
            Packet::Subscribed {
                id: subscribed,
                granted,
            } if subscribed == id => Some(granted),
            _ => None,
        })?;
        if granted {
            Ok(())
        } else {
            Err(MqttError::Subscription(filter))
        }
    }

    /// An id for something the hub is to answer.
    fn id(&mut self) -> Result<u16, MqttError> {
        if self.in_flight.len() >= MAX_IN_FLIGHT {
            return Err(MqttError::Silent);
        }
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !self.in_flight.contains(&self.last_id) {
                self.in_flight.push(self.last_id);
                return Ok(self.last_id);
            }
        }
    }

    fn publish(&mut self, topic: &str, id: Option<u16>, body: &[u8]) -> Result<(), MqttError> {
        let limit = MAX_TOPIC;
        let publish = packet::publish(topic, id, body).ok_or(MqttError::TooLarge {
            size: topic.len(),
            limit,
        })?;
        self.write(&publish)
    }

    /// Receives until `wanted` finds what it looks for.
    fn until<T>(
        &mut self,
        tracker: &mut Tracker,
        deadline: Instant,
        mut wanted: impl FnMut(Packet) -> Option<T>,
    ) -> Result<T, MqttError> {
        let deadline = deadline.min(Instant::now() + PATIENCE);
        while let Some(packet) = self.receive(tracker, deadline)? {
            if let Some(found) = wanted(packet) {
                return Ok(found);
            }
        }
        Err(MqttError::Deadline)
    }

    /// Receives one packet, if one comes before the deadline. Desired properties go to the
    /// tracker on the way, messages are acknowledged, pings are sent when they are due.
    fn receive(
        &mut self,
        tracker: &mut Tracker,
        deadline: Instant,
    ) -> Result<Option<Packet>, MqttError> {
        let mut buffer = [0; 16 * 1024];
        loop {
            let now = Instant::now();
            if self.pong.is_some_and(|at| now >= at) {
                return Err(MqttError::Silent);
            }
            if now >= self.ping {
                self.write(&packet::PING)?;
                self.pong.get_or_insert(now + PONG_WITHIN);
            }
            if now >= deadline {
                return Ok(None);
            }
            if let Some(frame) = self.frames.take()? {
                let packet = packet::read(&frame)?;
                self.settle(tracker, &packet)?;
                return Ok(Some(packet));
            }
            let until = self.pong.unwrap_or(deadline).min(deadline).min(self.ping);
            self.stream.set_deadline(until);
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(MqttError::Lost(io::ErrorKind::UnexpectedEof.into())),
                Ok(read) => self.frames.push(&buffer[..read]),
                Err(e) if e.kind() == io::ErrorKind::TimedOut => {}
                Err(e) => return Err(MqttError::Lost(e)),
            }
        }
    }

    /// What a packet means for the connection itself, whoever waits for it.
    fn settle(&mut self, tracker: &mut Tracker, packet: &Packet) -> Result<(), MqttError> {
        match packet {
            Packet::Login(_) => {}
            Packet::Pong => self.pong = None,
            Packet::Acknowledged(id) | Packet::Subscribed { id, .. } => {
                let known = self.in_flight.iter().position(|known| known == id);
                let known = known.ok_or(MqttError::Protocol("an answer to nothing"))?;
                self.in_flight.swap_remove(known);
            }
            Packet::Message { topic, id, body } => {
                if let Some(id) = id {
                    self.write(&packet::acknowledge(*id))?;
                }
                if let Some(FromHub::Desired { version }) = topic::parse(topic) {
                    match twin::parse_patch(body) {
                        Some(patch) => tracker.notice(version, &patch),
                        None => tracker.missed(),
                    }
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), MqttError> {
        let now = Instant::now();
        self.stream.set_deadline(now + PATIENCE);
        self.ping = now + PING_AFTER;
        self.stream
            .write_all(bytes)
            .and_then(|()| self.stream.flush())
            .map_err(MqttError::Lost)
    }

    /// Goodbye on both layers. Nothing can be done about a failure, and nothing is lost by it.
    fn close(mut self) {
        let _ = self.write(&packet::GOODBYE);
        let _ = self.stream.close();
    }
}

fn refusal(code: u8) -> Option<Refusal> {
    match code {
        0 => None,
        3 => Some(Refusal::Unavailable),
        4 | 5 => Some(Refusal::Credentials),
        _ => Some(Refusal::Client),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_before_it_ends() {
        assert_eq!(
            renewal(Duration::from_secs(3600)),
            Duration::from_secs(3060)
        );
        assert_eq!(
            renewal(Duration::from_secs(30)),
            Duration::from_millis(25_500)
        );
    }

    #[test]
    fn what_concerns_one_request_does_not_end_the_connection() {
        assert!(!MqttError::Twin(429).ends_connection());
        assert!(!MqttError::Deadline.ends_connection());
        assert!(MqttError::Silent.ends_connection());
        assert!(MqttError::Refused(Refusal::Credentials).ends_connection());
    }
}
