//! One connection: read, check who wrote, answer, again.

use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use contract::audit::Event;
use contract::refusal::{Class, Refusal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zeroize::{Zeroize as _, Zeroizing};

use super::{Limits, Reach, Slot};
use crate::http::{self, BodyState, Framing, Head, HttpError};
use crate::os::socket::{self, Read};
use crate::peer::{Caller, KernelFacts, PeerError, Require};
use crate::routes::{Answer, Service, message};

/// Room for a usual request; longer ones grow up to the endpoint's limit.
const BUFFER: usize = 8 * 1024;

/// Most processes that may write parts of one request; each holds a descriptor of ours.
const WRITERS: usize = 8;

/// A connection with its connector and whoever else has written.
pub(super) struct Connection {
    stream: UnixStream,
    connector: Caller,
    /// Writers of the present request that are not the connector.
    others: Vec<Caller>,
    slot: Arc<Slot>,
    input: Zeroizing<Vec<u8>>,
    facts: KernelFacts,
    require: Require,
    reach: Reach,
}

/// Why a connection ends.
enum End {
    /// Nothing more to say: the other side closed, or was idle for too long.
    Quiet,
    /// An answer, then close.
    Answer(u16, String),
    /// Over a limit of this server.
    Limit(&'static str),
    /// A writer that cannot be proved.
    Peer(PeerError),
}

impl From<HttpError> for End {
    fn from(error: HttpError) -> Self {
        Self::Answer(error.status(), error.to_string())
    }
}

impl Connection {
    pub(super) fn new(
        stream: UnixStream,
        connector: Caller,
        slot: Arc<Slot>,
        facts: KernelFacts,
        require: Require,
        reach: Reach,
    ) -> Self {
        let input = Zeroizing::new(Vec::with_capacity(BUFFER));
        Self {
            stream,
            connector,
            others: Vec::new(),
            slot,
            input,
            facts,
            require,
            reach,
        }
    }

    /// Serves until one side has enough.
    pub(super) fn serve(mut self, service: &dyn Service, limits: &Limits) {
        let timeouts = self
            .stream
            .set_read_timeout(Some(limits.request))
            .and_then(|()| self.stream.set_write_timeout(Some(limits.request)));
        if timeouts.is_err() {
            return;
        }
        loop {
            match self.one(service, limits) {
                Ok(()) => {}
                Err(End::Quiet) => break,
                Err(End::Answer(status, text)) => {
                    service.refused(self.connector.credentials(), &refusal(status, &text));
                    let _ = self.write(status, Some(&message(&text)), true, limits);
                    break;
                }
                Err(End::Limit(what)) => {
                    let limit = Refusal::forbidden(what).recorded_as(Event::InputLimit);
                    service.refused(self.connector.credentials(), &limit);
                    let _ = self.write(403, Some(&message("forbidden")), true, limits);
                    break;
                }
                Err(End::Peer(error)) => {
                    let event = error.event();
                    let unproved = Refusal::forbidden(error).recorded_as(event);
                    service.refused(self.connector.credentials(), &unproved);
                    let _ = self.write(403, Some(&message("forbidden")), true, limits);
                    break;
                }
            }
        }
        if !self.facts.refuses_descriptors {
            socket::drain(&self.stream);
        }
    }

    fn one(&mut self, service: &dyn Service, limits: &Limits) -> Result<(), End> {
        self.slot.idle();
        let deadline = self.first_byte(limits)?;
        self.slot.active();
        let head = loop {
            match http::read_head(&self.input)? {
                Some(head) => break head,
                None => self.more(deadline)?,
            }
        };
        let plan = match service.plan(&head) {
            Ok(plan) => plan,
            // The body is not read, so the connection cannot go on after the answer.
            Err(refusal) if head.framing != Framing::Length(0) => {
                return Err(End::Answer(refusal.class.status(), refusal.message));
            }
            Err(refusal) => return self.finish(&head, refusal.into(), head.length, limits),
        };
        let (body, used) = self.body(&head, plan.limit, deadline)?;
        let callers: Vec<&Caller> = std::iter::once(&self.connector)
            .chain(self.others.iter())
            .collect();
        let answer = service.answer(plan, &body, &callers);
        self.finish(&head, answer, used, limits)
    }

    /// Waits for a request to begin; the deadline for the rest of it.
    fn first_byte(&mut self, limits: &Limits) -> Result<Instant, End> {
        let idle = Instant::now();
        loop {
            match self.take() {
                Ok(()) => return Ok(Instant::now() + limits.request),
                Err(Take::Later) if idle.elapsed() < limits.idle => {}
                Err(Take::Later) => return Err(End::Quiet),
                Err(Take::End(end)) => return Err(end),
            }
        }
    }

    /// Reads more of a request that has begun.
    fn more(&mut self, deadline: Instant) -> Result<(), End> {
        let late = || End::Answer(Class::Timeout.status(), "request timeout".to_owned());
        let left = deadline
            .checked_duration_since(Instant::now())
            .ok_or_else(late)?;
        let mut wait = [PollFd::new(&self.stream, PollFlags::IN)];
        match poll(&mut wait, Some(&timespec(left))) {
            Ok(0) => Err(late()),
            Ok(_) => match self.take() {
                Ok(()) => Ok(()),
                Err(Take::Later) => Err(late()),
                Err(Take::End(end)) => Err(end),
            },
            Err(_) => Err(End::Quiet),
        }
    }

    fn body(
        &mut self,
        head: &Head,
        limit: usize,
        deadline: Instant,
    ) -> Result<(Zeroizing<Vec<u8>>, usize), End> {
        let mut asked = false;
        loop {
            match http::read_body(&self.input[head.length..], head.framing, limit)? {
                BodyState::Complete { body, used } => {
                    return Ok((Zeroizing::new(body), head.length + used));
                }
                BodyState::Partial if head.expects_continue && !asked => {
                    asked = true;
                    let go_on = b"HTTP/1.1 100 Continue\r\n\r\n";
                    (&self.stream).write_all(go_on).map_err(|_| End::Quiet)?;
                }
                BodyState::Partial => {
                    if self.input.len() - head.length > http::framed_limit(limit) {
                        return Err(HttpError::BodyTooLong.into());
                    }
                    self.more(deadline)?;
                }
            }
        }
    }

    /// One read, with proof of who wrote it. Peeking first tells the writer before the bytes are
    /// taken: if it is not the connector, its own process descriptor comes with them.
    fn take(&mut self) -> Result<(), Take> {
        let mut first = [0];
        let seen = socket::receive(&self.stream, &mut first, Read::Peek).map_err(later)?;
        if seen.length == 0 {
            return Err(Take::End(End::Quiet));
        }
        let writer = seen.writer.ok_or(Take::End(End::Peer(PeerError::Gone)))?;
        let stranger = writer.pid != self.connector.pid();
        if stranger && self.facts.peer_pidfd {
            socket::pass_pidfd(&self.stream).map_err(later)?;
        }
        let start = self.input.len();
        self.input.resize(start + BUFFER, 0);
        let received = socket::receive(&self.stream, &mut self.input[start..], Read::Take);
        let length = received.as_ref().map_or(0, |r| r.length);
        self.input.truncate(start + length);
        let received = received.map_err(later)?;
        let gone = |error| Take::End(End::Peer(error));
        if stranger {
            let who = received.writer.unwrap_or(writer);
            let caller =
                Caller::writer(who, received.pidfd, self.facts, self.require).map_err(gone)?;
            if self.reach == Reach::Host && caller.is_nested() {
                return Err(gone(PeerError::Namespace));
            }
            let known = |other: &Caller| other.inode().is_some() && other.inode() == caller.inode();
            if !self.others.iter().any(known) {
                if self.others.len() >= WRITERS {
                    return Err(Take::End(End::Limit("too many writers")));
                }
                self.others.push(caller);
            }
        }
        // After the read: a connector that has exited may have lent its number to another (A1).
        if self.connector.alive() {
            Ok(())
        } else {
            Err(gone(PeerError::Gone))
        }
    }

    fn finish(
        &mut self,
        head: &Head,
        answer: Answer,
        used: usize,
        limits: &Limits,
    ) -> Result<(), End> {
        // Bytes after the request would have to be read as another one: never resynchronise.
        let close = answer.close || !head.keep_alive || self.input.len() > used;
        let body = answer.body.map(Zeroizing::new);
        self.write(
            answer.status,
            body.as_ref().map(|b| b.as_slice()),
            close,
            limits,
        )
        .map_err(|_| End::Quiet)?;
        // What was received and no more: the rest of the buffer has never held anything.
        self.input.as_mut_slice().zeroize();
        self.input.clear();
        self.others.clear();
        if close { Err(End::Quiet) } else { Ok(()) }
    }

    /// Writes an answer within its deadline; a client that does not read it is left (A31).
    fn write(
        &self,
        status: u16,
        body: Option<&[u8]>,
        close: bool,
        limits: &Limits,
    ) -> io::Result<()> {
        let text = response(status, body, close);
        let deadline = Instant::now() + limits.request;
        let mut rest = text.as_slice();
        while !rest.is_empty() {
            match (&self.stream).write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => rest = &rest[n..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        Ok(())
    }
}

enum Take {
    Later,
    End(End),
}

fn later(error: io::Error) -> Take {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => {
            Take::Later
        }
        _ => Take::End(End::Quiet),
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// Status line, headers and body in one piece, so that one write sends it.
fn response(status: u16, body: Option<&[u8]>, close: bool) -> Zeroizing<Vec<u8>> {
    let length = body.map_or(0, <[u8]>::len);
    let mut out = Zeroizing::new(Vec::with_capacity(length + 160));
    let reason = http::reason(status);
    // Writing to a vector does not fail.
    let _ = write!(out, "HTTP/1.1 {status} {reason}\r\n");
    if let Some(body) = body {
        let _ = write!(
            out,
            "content-type: application/json\r\ncontent-length: {}\r\n",
            body.len()
        );
    }
    if close {
        out.extend_from_slice(b"connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body.unwrap_or_default());
    out
}

/// What the audit log hears of a request that was refused before anybody looked at it.
fn refusal(status: u16, text: &str) -> Refusal {
    let event = match status {
        400 | 417 => Event::HttpAmbiguous,
        _ => Event::InputLimit,
    };
    Refusal::new(Class::BadRequest, text).recorded_as(event)
}

/// Answers a connection that gets no place. What it has sent is read away first: closing on unread
/// bytes would take the answer from it.
pub(super) fn refuse(stream: &UnixStream, status: u16, text: &str) {
    let mut rest = [0; 4096];
    let _ = socket::receive(stream, &mut rest, Read::Take);
    let _ = stream.set_write_timeout(Some(Duration::from_millis(100)));
    let _ = { stream }.write_all(&response(status, Some(&message(text)), true));
    socket::drain(stream);
}
