//! The caller's side: a typed call to another daemon on a pooled connection (D2).

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use contract::endpoint::{Api, Body, Endpoint, Target, write_path};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zeroize::Zeroizing;

use crate::http::{self, BodyState, HttpError};

/// Most bytes of an answer.
const ANSWER: usize = 4 * 1024 * 1024;
/// Most calls at a time, so that our callers together cannot use up what a daemon allows one user;
/// as many connections are kept open for the next ones.
const CALLS: usize = 8;

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The daemon cannot be reached.
    #[error("{api} API at {path}: cannot connect; is the daemon running?")]
    Connect {
        /// Which API.
        api: &'static str,
        /// Its socket.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The connection broke or was too slow.
    #[error("{api} API: the connection broke before the answer")]
    Broken {
        /// Which API.
        api: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The answer is no answer.
    #[error("{api} API: unreadable answer: {why}")]
    Answer {
        /// Which API.
        api: &'static str,
        /// What was wrong with it.
        why: String,
    },
    /// The daemon refused.
    #[error("{message}")]
    Refused {
        /// The status.
        status: u16,
        /// Its words.
        message: String,
    },
}

impl CallError {
    /// The status of a refusal.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// A daemon's socket, with connections kept open between calls.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    timeout: Duration,
    pool: Mutex<Pool>,
    /// Signalled when a call has ended.
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Pool {
    kept: Vec<UnixStream>,
    calls: usize,
}

impl Client {
    /// A client of the socket at this path; nothing is opened yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            timeout: Duration::from_secs(30),
            pool: Mutex::default(),
            ended: Condvar::new(),
        }
    }

    /// The longest wait for an answer; 30 s unless set.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Where the daemon listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One call.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn call<E: Endpoint>(
        &self,
        target: &E::Target,
        body: &E::Request,
    ) -> Result<E::Response, CallError> {
        let api = E::Api::NAME;
        let path = write_path(E::PATH, &target.write(), E::Api::CURRENT);
        let request = request(E::METHOD.as_str(), &path, body.write());
        let (status, text) = self.exchange(api, &request)?;
        let text = if text.is_empty() {
            None
        } else {
            Some(text.as_slice())
        };
        if status >= 400 {
            return Err(CallError::Refused {
                status,
                message: refusal(status, text),
            });
        }
        E::Response::read(text).map_err(|error| CallError::Answer {
            api,
            why: error.to_string(),
        })
    }

    /// Waits for its turn and sends the request. A kept connection that the other side has ended
    /// while it was idle is seen before it is used; what was sent once is never sent again, since
    /// nobody can tell whether it was done.
    fn exchange(
        &self,
        api: &'static str,
        request: &[u8],
    ) -> Result<(u16, Zeroizing<Vec<u8>>), CallError> {
        let turn = self
            .ended
            .wait_while(self.lock(), |pool| pool.calls >= CALLS);
        turn.unwrap_or_else(PoisonError::into_inner).calls += 1;
        let open = loop {
            match self.lock().kept.pop() {
                Some(stream) if is_open(&stream) => break Some(stream),
                Some(_) => {}
                None => break None,
            }
        };
        let answer = match open {
            Some(stream) => Ok(stream),
            None => self.connect(api),
        }
        .and_then(|stream| self.once(api, stream, request));
        self.lock().calls -= 1;
        self.ended.notify_one();
        answer
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, stream: UnixStream) {
        let mut pool = self.lock();
        if pool.kept.len() < CALLS {
            pool.kept.push(stream);
        }
    }

    fn connect(&self, api: &'static str) -> Result<UnixStream, CallError> {
        let open = || {
            let stream = UnixStream::connect(&self.path)?;
            stream.set_read_timeout(Some(self.timeout))?;
            stream.set_write_timeout(Some(self.timeout))?;
            Ok(stream)
        };
        open().map_err(|cause| CallError::Connect {
            api,
            path: self.path.clone(),
            cause,
        })
    }

    fn once(
        &self,
        api: &'static str,
        mut stream: UnixStream,
        request: &[u8],
    ) -> Result<(u16, Zeroizing<Vec<u8>>), CallError> {
        let mut input = Zeroizing::new(Vec::with_capacity(4096));
        let broken = |cause| CallError::Broken { api, cause };
        let unread = |why: HttpError| CallError::Answer {
            api,
            why: why.to_string(),
        };
        stream.write_all(request).map_err(broken)?;
        let head = loop {
            if let Some(head) = http::read_response_head(&input).map_err(unread)? {
                if head.status >= 200 {
                    break head;
                }
                input.drain(..head.length);
                continue;
            }
            match fill(&mut stream, &mut input) {
                Ok(0) => return Err(broken(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(cause) => return Err(broken(cause)),
            }
        };
        let Some(framing) = head.framing else {
            // Without a length the body ends with the connection.
            while fill(&mut stream, &mut input).map_err(broken)? > 0 {
                if input.len() - head.length > ANSWER {
                    return Err(unread(HttpError::BodyTooLong));
                }
            }
            return Ok((head.status, Zeroizing::new(input[head.length..].to_vec())));
        };
        loop {
            let rest = &input[head.length..];
            match http::read_body(rest, framing, ANSWER).map_err(unread)? {
                BodyState::Complete { body, used } => {
                    if head.keep_alive && rest.len() == used {
                        self.keep(stream);
                    }
                    return Ok((head.status, Zeroizing::new(body)));
                }
                BodyState::Partial => {
                    if fill(&mut stream, &mut input).map_err(broken)? == 0 {
                        return Err(broken(io::ErrorKind::UnexpectedEof.into()));
                    }
                }
            }
        }
    }
}

/// Whether nothing has come on an idle connection: its end shows here, and so would an answer that
/// nobody asked for.
fn is_open(stream: &UnixStream) -> bool {
    let mut wait = [PollFd::new(stream, PollFlags::IN)];
    matches!(
        poll(
            &mut wait,
            Some(&Timespec {
                tv_sec: 0,
                tv_nsec: 0
            })
        ),
        Ok(0)
    )
}

fn fill(stream: &mut UnixStream, input: &mut Vec<u8>) -> io::Result<usize> {
    let start = input.len();
    input.resize(start + 4096, 0);
    let read = loop {
        match stream.read(&mut input[start..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => break read,
        }
    };
    input.truncate(start + read.as_ref().copied().unwrap_or(0));
    read
}

fn request(method: &str, path: &str, body: Option<Vec<u8>>) -> Zeroizing<Vec<u8>> {
    let body = Zeroizing::new(body.unwrap_or_default());
    let mut out = Zeroizing::new(Vec::with_capacity(body.len() + path.len() + 128));
    // Writing to a vector does not fail.
    let _ = write!(out, "{method} {path} HTTP/1.1\r\nHost: holdfast\r\n");
    if !body.is_empty() {
        out.extend_from_slice(b"Content-Type: application/json\r\n");
    }
    if !body.is_empty() || method != "GET" {
        let _ = write!(out, "Content-Length: {}\r\n", body.len());
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(&body);
    out
}

fn refusal(status: u16, text: Option<&[u8]>) -> String {
    #[derive(serde::Deserialize)]
    struct Message {
        message: String,
    }
    text.and_then(|text| serde_json::from_slice::<Message>(text).ok())
        .map_or_else(|| format!("HTTP error {status}"), |m| m.message)
}
