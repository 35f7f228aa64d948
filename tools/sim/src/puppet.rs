//! A caller that does as it is told: it sends the bytes it gets to a socket and tells what came
//! back. Being a process of the host, a module or the agent is the whole difference between two.
//!
//! Both ends of its string are here: [`serve`] runs in the puppet, [`Puppet`] in whoever pulls.
//! One JSON object per line over loopback; nothing of it is ever shipped.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use contract::bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::load::{self, Place};

/// Who a puppet is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Hello {
    /// Its module's identity; empty outside.
    pub module: String,
    /// The generation of that.
    pub generation: String,
}

/// What to send where.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// The socket's path as the puppet sees it.
    pub socket: String,
    /// What is sent.
    pub send: Bytes,
    /// Whether to go on reading after the answer until the other side closes.
    pub until_close: bool,
    /// Send it again and again, and tell only how long each took.
    #[serde(default)]
    pub repeat: Option<Repeat>,
}

/// How often a request is sent, for the bench.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Repeat {
    /// How often.
    pub times: usize,
    /// Each time on a connection of its own, opening and closing included.
    pub fresh: bool,
    /// More than none: count what so many connections get done at once, for [`Self::millis`].
    #[serde(default)]
    pub connections: usize,
    /// How long to count.
    #[serde(default)]
    pub millis: u64,
}

/// What came back.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Reply {
    /// The bytes.
    pub bytes: Bytes,
    /// Whether the other side closed.
    pub closed: bool,
    /// Why there are no bytes.
    pub error: String,
    /// How long each of the repeated requests took, in nanoseconds.
    #[serde(default)]
    pub nanos: Vec<u64>,
    /// Answers per second.
    #[serde(default)]
    pub rate: f64,
}

/// Longest wait for an answer; above the server's own five seconds for a request.
const PATIENCE: Duration = Duration::from_secs(8);

/// A puppet's string.
pub struct Puppet(BufReader<TcpStream>);

impl Puppet {
    /// Hears who has connected.
    ///
    /// # Errors
    /// As the connection fails.
    pub fn meet(mut stream: BufReader<TcpStream>) -> io::Result<(Hello, Self)> {
        let hello = hear(&mut stream)?;
        Ok((hello, Self(stream)))
    }

    /// Has it send.
    ///
    /// # Errors
    /// As the connection fails.
    pub fn send(&mut self, order: &Order) -> io::Result<Reply> {
        say(self.0.get_mut(), order)?;
        hear(&mut self.0)
    }
}

/// Does as told until nobody pulls any more.
///
/// # Errors
/// As the connection fails.
pub fn serve(port: u16, hello: &Hello) -> io::Result<()> {
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port))?);
    say(stream.get_mut(), hello)?;
    loop {
        let order: Order = hear(&mut stream)?;
        let reply = act(&order).unwrap_or_else(|error| Reply {
            error: error.to_string(),
            ..Reply::default()
        });
        say(stream.get_mut(), &reply)?;
    }
}

fn say(stream: &mut TcpStream, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn hear<T: DeserializeOwned>(stream: &mut BufReader<TcpStream>) -> io::Result<T> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&line)?)
}

fn act(order: &Order) -> io::Result<Reply> {
    if let Some(repeat) = order.repeat {
        let (socket, send) = (order.socket.as_ref(), &order.send.0);
        let mut reply = Reply::default();
        let place = match repeat.connections {
            0 => Place::OneCore,
            _ => Place::EveryCore,
        };
        load::place(std::process::id(), place)?;
        if repeat.connections > 0 {
            let time = Duration::from_millis(repeat.millis);
            reply.rate = load::throughput(socket, send, repeat.connections, time)?;
        } else {
            reply.nanos = load::latencies(socket, send, repeat.times, repeat.fresh)?;
        }
        return Ok(reply);
    }
    let mut stream = UnixStream::connect(&order.socket)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // A server that has seen enough answers and closes before it has read all.
    let _ = stream.write_all(&order.send.0);
    let mut reply = Reply::default();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let answered = complete(&reply.bytes.0);
        if left.is_zero() || (answered && !order.until_close) {
            return Ok(reply);
        }
        // After the answer, a connection that stays open only has to be seen staying open.
        let wait = if answered {
            left.min(Duration::from_millis(200))
        } else {
            left
        };
        stream.set_read_timeout(Some(wait))?;
        let mut chunk = [0; 16 * 1024];
        match stream.read(&mut chunk) {
            Ok(0) => {
                reply.closed = true;
                return Ok(reply);
            }
            Ok(length) => reply.bytes.0.extend(&chunk[..length]),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                reply.closed = true;
                return Ok(reply);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(reply),
            Err(error) => return Err(error),
        }
    }
}

/// Whether these bytes hold a whole answer, after any interim ones.
fn complete(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    if head.starts_with("HTTP/1.1 1") {
        return complete(body.as_bytes());
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().ok())?
    });
    body.len() >= length.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_complete_with_its_body() {
        for (text, want) in [
            ("", false),
            ("HTTP/1.1 204 No Content\r\n", false),
            ("HTTP/1.1 204 No Content\r\n\r\n", true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", true),
            ("HTTP/1.1 100 Continue\r\n\r\n", false),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
                true,
            ),
        ] {
            assert_eq!(complete(text.as_bytes()), want, "{text:?}");
        }
    }
}
