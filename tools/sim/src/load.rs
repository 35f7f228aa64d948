//! The blocking client that measures: the same bytes again and again, each answer timed.
//!
//! One client for everything that is compared, the floors included, so that what it costs itself
//! is on both sides. It does no more to an answer than find its end and see that it is no refusal.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

/// How long each of `times` exchanges took, in nanoseconds.
///
/// # Errors
/// As the connection fails, or when the answer is a refusal.
pub fn latencies(socket: &Path, request: &[u8], times: usize, fresh: bool) -> io::Result<Vec<u64>> {
    let mut nanos = Vec::with_capacity(times);
    let mut buffer = vec![0; 64 * 1024];
    let mut kept = None;
    for _ in 0..times {
        let begin = Instant::now();
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => UnixStream::connect(socket)?,
        };
        exchange(&mut stream, request, &mut buffer)?;
        if fresh {
            drop(stream);
        } else {
            kept = Some(stream);
        }
        nanos.push(u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    Ok(nanos)
}

/// Exchanges per second over this many connections, each with a thread of its own.
///
/// # Errors
/// As the first connection that fails.
pub fn throughput(
    socket: &Path,
    request: &[u8],
    connections: usize,
    time: Duration,
) -> io::Result<f64> {
    let ready = Barrier::new(connections);
    let one = || -> io::Result<f64> {
        let mut buffer = vec![0; 64 * 1024];
        let mut stream = UnixStream::connect(socket)?;
        let first = exchange(&mut stream, request, &mut buffer);
        ready.wait();
        first?;
        let begin = Instant::now();
        let mut count = 0_u32;
        while begin.elapsed() < time {
            exchange(&mut stream, request, &mut buffer)?;
            count += 1;
        }
        Ok(f64::from(count) / begin.elapsed().as_secs_f64())
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..connections).map(|_| scope.spawn(one)).collect();
        clients
            .into_iter()
            .map(|client| {
                client
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("a client ended")))
            })
            .sum()
    })
}

/// Where a process and its threads may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On one core with everything else that takes part: whether two processes happen to share a
    /// core decides by a factor of four how long a wake-up takes, and nothing about our code.
    OneCore,
    /// On every core.
    EveryCore,
}

/// Puts every thread of a process there; those it makes later follow.
///
/// # Errors
/// When the process is gone or not ours.
pub fn place(process: u32, place: Place) -> io::Result<()> {
    let mut set = CpuSet::new();
    let count = match place {
        Place::OneCore => 1,
        Place::EveryCore => CpuSet::MAX_CPU,
    };
    (0..count).for_each(|core| set.set(core));
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))?.flatten() {
        let number = thread.file_name().to_string_lossy().parse().ok();
        // A thread that has ended meanwhile needs no place.
        let _ = sched_setaffinity(number.and_then(Pid::from_raw), &set);
    }
    Ok(())
}

/// A request as our own client would write it.
#[must_use]
pub fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: bench\r\n");
    if !body.is_empty() {
        text.push_str("Content-Type: application/json\r\n");
    }
    text.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
    text.into_bytes()
}

fn exchange(stream: &mut UnixStream, request: &[u8], buffer: &mut [u8]) -> io::Result<()> {
    stream.write_all(request)?;
    let mut have = 0;
    loop {
        let read = stream.read(&mut buffer[have..])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        have += read;
        if let Some(length) = length(&buffer[..have])
            && have >= length
        {
            return match buffer.get(9) {
                Some(b'2') => Ok(()),
                _ => Err(io::Error::other(
                    String::from_utf8_lossy(&buffer[..have]).into_owned(),
                )),
            };
        }
    }
}

/// The length of the whole answer, once its head is there.
fn length(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let name = b"content-length: ";
    let at = bytes[..end]
        .windows(name.len())
        .position(|word| word.eq_ignore_ascii_case(name));
    let body = at.map_or(0, |at| {
        bytes[at + name.len()..end]
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0'))
    });
    Some(end + body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answers_length_is_its_head_and_its_body() {
        assert_eq!(length(b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n"), None);
        let text = b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n";
        assert_eq!(length(text), Some(text.len() + 12));
        let none = b"HTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(length(none), Some(none.len()));
    }
}
