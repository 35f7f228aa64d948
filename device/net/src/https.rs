//! One HTTPS request at a time, with limits on everything that comes back.
//!
//! HTTP itself is `ureq`, a well-kept synchronous client, with all of its TLS, proxy, cookie and
//! decompression features off: connections come from [`crate::tls`], so there is one TLS stack
//! and one policy. It never follows a redirect, never reads a proxy from the environment (R79),
//! never keeps a connection, and ends at its deadline however slowly the peer feeds it.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fmt, io};

use ureq::config::{AutoHeaderValue, Config};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};

use crate::backoff;
use crate::tls::{self, Target, TlsError};

/// The largest reply body.
pub const MAX_BODY: u64 = 4 * 1024 * 1024;
/// The largest block of reply headers.
pub const MAX_HEADERS: usize = 16 * 1024;
/// The most headers in a reply.
pub const MAX_HEADER_COUNT: usize = 64;
/// Connect, handshake, request and reply together.
pub const DEADLINE: Duration = Duration::from_secs(70);

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum HttpsError {
    /// No connection that we trust.
    #[error("no connection to {peer}")]
    Connect {
        /// Whom we dialled.
        peer: String,
        /// Why not.
        #[source]
        cause: TlsError,
    },
    /// The whole exchange took longer than allowed.
    #[error("{peer} did not answer in {seconds} s")]
    Deadline {
        /// Whom we asked.
        peer: String,
        /// How long we waited.
        seconds: u64,
    },
    /// The reply is larger than a limit (A67).
    #[error("the reply of {peer} has too much {what}")]
    TooLarge {
        /// Whom we asked.
        peer: String,
        /// Body or headers.
        what: &'static str,
    },
    /// The connection broke.
    #[error("the connection to {peer} broke")]
    Broken {
        /// Whom we asked.
        peer: String,
        /// How.
        #[source]
        cause: io::Error,
    },
    /// The reply, or our own request, is not HTTP.
    #[error("not HTTP/1.1 with {peer}")]
    Protocol {
        /// Whom we asked.
        peer: String,
        /// What is wrong.
        #[source]
        cause: Box<ureq::Error>,
    },
}

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Read.
    Get,
    /// Create or replace.
    Put,
    /// Act.
    Post,
    /// Remove.
    Delete,
}

/// One request. The path is on the wire as given: the caller has percent-encoded it.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// What to do.
    pub method: Method,
    /// Path and query, beginning with a slash.
    pub path: &'a str,
    /// A whole SAS token.
    pub authorization: Option<&'a str>,
    /// For requests that replace what is there.
    pub if_match: Option<&'a str>,
    /// A JSON body.
    pub json: Option<&'a [u8]>,
}

impl<'a> Request<'a> {
    /// A request with nothing but a path.
    pub fn new(method: Method, path: &'a str) -> Self {
        Self {
            method,
            path,
            authorization: None,
            if_match: None,
            json: None,
        }
    }
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The token and the body may be secrets.
        write!(f, "{:?} {}", self.method, self.path)
    }
}

/// A complete reply within the limits.
#[derive(Clone, PartialEq, Eq)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The content type, if any.
    pub content_type: Option<String>,
    /// How long the server wants us to wait.
    pub retry_after: Option<Duration>,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    /// Whether the body may be read as JSON: a reply says so, or says nothing.
    pub fn is_json(&self) -> bool {
        self.content_type.as_deref().is_none_or(|t| {
            t.split(';')
                .next()
                .unwrap_or(t)
                .trim()
                .eq_ignore_ascii_case("application/json")
        })
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reply({}, {} bytes)", self.status, self.body.len())
    }
}

/// A client for one peer.
pub struct Https {
    agent: ureq::Agent,
    target: Target,
    deadline: Duration,
    refused: Arc<Mutex<Option<TlsError>>>,
}

impl Https {
    /// A client for `target`, with the usual deadline.
    pub fn new(tls: tls::Client, target: Target) -> Self {
        Self::with_deadline(tls, target, DEADLINE)
    }

    /// A client whose every exchange ends within `deadline`.
    pub fn with_deadline(tls: tls::Client, target: Target, deadline: Duration) -> Self {
        let config = Config::builder()
            .https_only(true)
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_idle_connections(0)
            .max_response_header_size(MAX_HEADERS)
            .user_agent(AutoHeaderValue::None)
            .accept(AutoHeaderValue::None)
            .accept_encoding(AutoHeaderValue::None)
            .timeout_global(Some(deadline))
            .build();
        let refused = Arc::new(Mutex::new(None));
        let door = Door {
            tls,
            target: target.clone(),
            deadline,
            refused: Arc::clone(&refused),
        };
        let agent = ureq::Agent::with_parts(config, door, DefaultResolver::default());
        Self {
            agent,
            target,
            deadline,
            refused,
        }
    }

    /// Whom this client speaks to.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Sends one request and reads its whole reply.
    pub fn call(&self, request: &Request<'_>) -> Result<Reply, HttpsError> {
        let uri = format!("https://{}{}", self.target.authority(), request.path);
        let result = match (request.method, request.json) {
            (Method::Get, _) => self.agent.get(&uri).with(request).call(),
            (Method::Delete, _) => self.agent.delete(&uri).with(request).call(),
            (Method::Put, body) => self.agent.put(&uri).with(request).send(body.unwrap_or(&[])),
            (Method::Post, body) => self
                .agent
                .post(&uri)
                .with(request)
                .send(body.unwrap_or(&[])),
        };
        let response = result.map_err(|cause| self.failure(cause))?;
        let (head, body) = response.into_parts();
        if head.headers.len() > MAX_HEADER_COUNT {
            return Err(self.too_large("headers"));
        }
        let text = |name: &str| {
            head.headers
                .get(name)
                .and_then(|v| v.to_str().ok())
                .map(str::to_owned)
        };
        let reply = Reply {
            status: head.status.as_u16(),
            content_type: text("content-type"),
            retry_after: text("retry-after")
                .as_deref()
                .and_then(backoff::retry_after),
            body: body
                .into_with_config()
                .limit(MAX_BODY)
                .read_to_vec()
                .map_err(|cause| self.failure(cause))?,
        };
        Ok(reply)
    }

    fn failure(&self, cause: ureq::Error) -> HttpsError {
        let peer = self.target.authority();
        if let Some(cause) = self
            .refused
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            return HttpsError::Connect { peer, cause };
        }
        match cause {
            ureq::Error::Timeout(_) => self.too_slow(),
            ureq::Error::Io(e) if e.kind() == io::ErrorKind::TimedOut => self.too_slow(),
            ureq::Error::Io(cause) => HttpsError::Broken { peer, cause },
            ureq::Error::BodyExceedsLimit(_) => self.too_large("body"),
            ureq::Error::LargeResponseHeader(..) => self.too_large("headers"),
            ureq::Error::HostNotFound => HttpsError::Connect {
                peer,
                cause: TlsError::Resolve {
                    host: self.target.host().to_owned(),
                    cause: io::ErrorKind::NotFound.into(),
                },
            },
            cause => HttpsError::Protocol {
                peer,
                cause: Box::new(cause),
            },
        }
    }

    fn too_slow(&self) -> HttpsError {
        HttpsError::Deadline {
            peer: self.target.authority(),
            seconds: self.deadline.as_secs(),
        }
    }

    fn too_large(&self, what: &'static str) -> HttpsError {
        HttpsError::TooLarge {
            peer: self.target.authority(),
            what,
        }
    }
}

impl fmt::Debug for Https {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Https({})", self.target.authority())
    }
}

trait With {
    fn with(self, request: &Request<'_>) -> Self;
}

impl<B> With for ureq::RequestBuilder<B> {
    fn with(mut self, request: &Request<'_>) -> Self {
        if let Some(token) = request.authorization {
            self = self.header("Authorization", token);
        }
        if let Some(tag) = request.if_match {
            self = self.header("If-Match", tag);
        }
        if request.json.is_some() {
            self = self.header("Content-Type", "application/json");
        }
        self.header("Connection", "close")
    }
}

/// Gives ureq connections made under our policy. It keeps the reason of a refusal, which ureq's
/// error type could only carry as text.
struct Door {
    tls: tls::Client,
    target: Target,
    deadline: Duration,
    refused: Arc<Mutex<Option<TlsError>>>,
}

impl Connector for Door {
    type Out = Pipe;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _chained: Option<()>,
    ) -> Result<Option<Pipe>, ureq::Error> {
        let deadline = at(details.timeout, self.deadline);
        match self.tls.connect_to(&details.addrs, &self.target, deadline) {
            Ok(stream) => {
                let buffers = LazyBuffers::new(16 * 1024, 16 * 1024);
                Ok(Some(Pipe {
                    stream,
                    buffers,
                    cap: self.deadline,
                    open: true,
                }))
            }
            Err(cause) => {
                *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(cause);
                Err(ureq::Error::ConnectionFailed)
            }
        }
    }
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Door")
    }
}

struct Pipe {
    stream: tls::Stream,
    buffers: LazyBuffers,
    cap: Duration,
    open: bool,
}

impl Transport for Pipe {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.set_deadline(at(timeout, self.cap));
        self.stream.write_all(&self.buffers.output()[..amount])?;
        self.stream.flush()?;
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.stream.set_deadline(at(timeout, self.cap));
        let read = match self.stream.read(self.buffers.input_append_buf()) {
            // ureq takes some kinds of error for the end of a body without length, so that a cut
            // connection would pass for a whole reply (A70).
            Err(e) if e.kind() != io::ErrorKind::TimedOut => return Err(io::Error::other(e).into()),
            other => other?,
        };
        self.buffers.input_appended(read);
        self.open = read > 0;
        Ok(self.open)
    }

    fn is_open(&mut self) -> bool {
        self.open
    }

    fn is_tls(&self) -> bool {
        true
    }
}

impl fmt::Debug for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pipe")
    }
}

fn at(timeout: NextTimeout, cap: Duration) -> Instant {
    Instant::now() + (*timeout.after).min(cap)
}
