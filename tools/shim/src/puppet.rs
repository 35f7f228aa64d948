//! A process that does what a test tells it, so that the test decides who does what, and when.
//!
//! [`Puppet`] is the test's end, [`serve`] the process. A connection is called by its descriptor's
//! number, which stays the same in a forked child and after executing another program: that is
//! what most of the tests are about.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::MemfdFlags;
use rustix::io::{FdFlags, fcntl_setfd};

use crate::channel::Channel;
use crate::process;

/// Where a module's puppet reports; its label is the module's name.
pub const CONTROL: &str = "PUPPET_CONTROL";

/// A puppet, as its test holds it. Dropping it ends the process.
#[derive(Debug)]
pub struct Puppet {
    channel: Channel,
    /// What it was started as.
    pub label: String,
    /// Its number as the test sees it.
    pub pid: i32,
}

/// A connection that a puppet has, by its descriptor's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection(i32);

/// What a puppet read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status; 0 without an answer.
    pub status: u16,
    /// Everything that came.
    pub text: String,
    /// Whether the other side closed afterwards.
    pub closed: bool,
}

impl Puppet {
    /// Meets a puppet that has announced itself.
    ///
    /// # Errors
    /// As the channel says.
    pub fn meet(pid: i32, channel: Channel) -> io::Result<Self> {
        let (hello, _) = channel
            .receive(false)?
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        let label = String::from_utf8_lossy(&hello).into_owned();
        Ok(Self {
            channel,
            label,
            pid,
        })
    }

    /// Has it connect to a socket.
    ///
    /// # Errors
    /// As the puppet's system says.
    pub fn connect(&self, path: impl AsRef<Path>) -> io::Result<Connection> {
        let path = path.as_ref().display().to_string();
        let (number, _) = self.ask("connect", &path, &[], None)?;
        number.parse().map(Connection).map_err(io::Error::other)
    }

    /// Has it write.
    ///
    /// # Errors
    /// As the puppet's system says.
    pub fn write(&self, connection: Connection, bytes: &[u8]) -> io::Result<()> {
        self.ask("write", &connection.0.to_string(), bytes, None)
            .map(drop)
    }

    /// Has it read one answer, and see whether the connection is closed after a refusal.
    ///
    /// # Errors
    /// As the puppet's system says.
    pub fn read(&self, connection: Connection) -> io::Result<Answer> {
        let (text, _) = self.ask("read", &connection.0.to_string(), &[], None)?;
        let (closed, text) = text.split_at(1);
        Ok(Answer {
            status: status(text),
            text: text.to_owned(),
            closed: closed == "c",
        })
    }

    /// One request on this connection.
    ///
    /// # Errors
    /// As the puppet's system says.
    pub fn exchange(&self, connection: Connection, bytes: &[u8]) -> io::Result<Answer> {
        self.write(connection, bytes)?;
        self.read(connection)
    }

    /// One request on a connection of its own.
    ///
    /// # Errors
    /// As the puppet's system says.
    pub fn call(&self, path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<Answer> {
        let connection = self.connect(path)?;
        let answer = self.exchange(connection, bytes);
        self.close(connection)?;
        answer
    }

    /// Has it hand out a copy of a connection.
    ///
    /// # Errors
    /// As the puppet's system says.
    pub fn give(&self, connection: Connection) -> io::Result<OwnedFd> {
        let (_, beside) = self.ask("give", &connection.0.to_string(), &[], None)?;
        beside.ok_or_else(|| io::Error::other("no descriptor came"))
    }

    /// Hands it a connection.
    ///
    /// # Errors
    /// As the puppet's system says.
    pub fn take(&self, connection: &OwnedFd) -> io::Result<Connection> {
        let (number, _) = self.ask("take", "", &[], Some(connection))?;
        number.parse().map(Connection).map_err(io::Error::other)
    }

    /// Has it close a connection.
    ///
    /// # Errors
    /// As the puppet's system says.
    pub fn close(&self, connection: Connection) -> io::Result<()> {
        self.ask("close", &connection.0.to_string(), &[], None)
            .map(drop)
    }

    /// Has it fork: the child has all its connections and announces itself as `label`.
    ///
    /// # Errors
    /// As the puppet's system says.
    pub fn fork(&self, label: &str) -> io::Result<()> {
        self.ask("fork", label, &[], None).map(drop)
    }

    /// Has it become another program, which announces itself anew with all its connections.
    ///
    /// # Errors
    /// As the channel says; what fails afterwards shows by nobody announcing himself.
    pub fn execute(self, program: &Path) -> io::Result<()> {
        let program = program.display().to_string();
        self.ask("execute", &program, &[], None).map(drop)
    }

    /// Has it become a copy of its own program that lies in memory only.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn execute_from_memory(self) -> io::Result<()> {
        self.ask("execute", "", &[], None).map(drop)
    }

    /// Ends it, and waits until the kernel says that it has ended.
    ///
    /// # Errors
    /// As the system says.
    pub fn exit(self) -> io::Result<()> {
        use rustix::process::{Pid, PidfdFlags, pidfd_open};
        let pid = Pid::from_raw(self.pid).ok_or(io::ErrorKind::InvalidInput)?;
        let ended = pidfd_open(pid, PidfdFlags::empty())?;
        drop(self.channel);
        let mut wait = [rustix::event::PollFd::new(
            &ended,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut wait, None)?;
        Ok(())
    }

    fn ask(
        &self,
        verb: &str,
        about: &str,
        bytes: &[u8],
        beside: Option<&OwnedFd>,
    ) -> io::Result<(String, Option<OwnedFd>)> {
        let mut order = format!("{verb} {about}\n").into_bytes();
        order.extend(bytes);
        self.channel.send(&order, beside.map(|fd| fd.as_fd()))?;
        let (reply, beside) = self
            .channel
            .receive(false)?
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        let reply = String::from_utf8_lossy(&reply).into_owned();
        match reply.strip_prefix("ok ") {
            Some(text) => Ok((text.to_owned(), beside)),
            None => Err(io::Error::other(format!("{verb} {about}: {reply}"))),
        }
    }
}

/// The process's end.
struct Strings {
    control: PathBuf,
    channel: Channel,
    connections: BTreeMap<i32, UnixStream>,
}

/// Does as told until nobody pulls any more.
///
/// # Errors
/// As the channel says.
pub fn serve(control: &Path, label: &str, inherited: &[i32]) -> io::Result<()> {
    process::forget_children();
    let mut connections = BTreeMap::new();
    for number in inherited {
        connections.insert(*number, process::inherited(*number)?.into());
    }
    let channel = Channel::connect(control)?;
    channel.send(label.as_bytes(), None)?;
    let mut strings = Strings {
        control: control.to_owned(),
        channel,
        connections,
    };
    while let Some((order, beside)) = strings.channel.receive(true)? {
        let end = order.iter().position(|byte| *byte == b'\n').unwrap_or(0);
        let line = String::from_utf8_lossy(&order[..end]).into_owned();
        let (verb, about) = line.split_once(' ').unwrap_or((&line, ""));
        let done = strings.act(verb, about, &order[end + 1..], beside);
        let (reply, beside) = match done {
            Ok((text, beside)) => (format!("ok {text}"), beside),
            Err(error) => (format!("error {error}"), None),
        };
        let beside = beside.as_ref().map(|fd| fd.as_fd());
        strings.channel.send(reply.as_bytes(), beside)?;
    }
    Ok(())
}

type Reply = (String, Option<OwnedFd>);

impl Strings {
    fn act(
        &mut self,
        verb: &str,
        about: &str,
        bytes: &[u8],
        beside: Option<OwnedFd>,
    ) -> io::Result<Reply> {
        match verb {
            "connect" => Ok((self.keep(UnixStream::connect(about)?), None)),
            "take" => {
                let taken = beside.ok_or(io::ErrorKind::InvalidInput)?;
                Ok((self.keep(taken.into()), None))
            }
            "write" => {
                match self.connection(about)?.write_all(bytes) {
                    // The other side has seen enough, and its answer can still be read.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                    written => written?,
                }
                Ok(done())
            }
            "read" => Ok((read(self.connection(about)?)?, None)),
            "give" => Ok((
                String::new(),
                Some(self.connection(about)?.try_clone()?.into()),
            )),
            "close" => {
                let number = about.parse().map_err(io::Error::other)?;
                self.connections.remove(&number);
                Ok(done())
            }
            "fork" => {
                let (control, label) = (self.control.clone(), about.to_owned());
                let numbers: Vec<i32> = self.connections.keys().copied().collect();
                // In the child these are inherited descriptors, which `serve` takes over; the
                // parent's values are never dropped there.
                process::fork(|| i32::from(serve(&control, &label, &numbers).is_err()))?;
                Ok(done())
            }
            "execute" => {
                self.channel.send(b"ok ", None)?;
                Err(self.execute(about))
            }
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn keep(&mut self, connection: UnixStream) -> String {
        let number = connection.as_raw_fd();
        self.connections.insert(number, connection);
        number.to_string()
    }

    fn connection(&self, number: &str) -> io::Result<&UnixStream> {
        let number = number.parse().map_err(io::Error::other)?;
        self.connections
            .get(&number)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Becomes the program at this path, or without a path a copy of its own program in memory.
    fn execute(&self, path: &str) -> io::Error {
        let become_it = || -> io::Result<io::Error> {
            let mut numbers = Vec::new();
            for (number, connection) in &self.connections {
                fcntl_setfd(connection, FdFlags::empty())?;
                numbers.push(number.to_string());
            }
            let memory;
            let program = if path.is_empty() {
                let flags = MemfdFlags::EXEC | MemfdFlags::CLOEXEC;
                let file = File::from(rustix::fs::memfd_create("program", flags)?);
                io::copy(&mut File::open("/proc/self/exe")?, &mut &file)?;
                memory = file;
                format!("/proc/self/fd/{}", memory.as_raw_fd())
            } else {
                path.to_owned()
            };
            #[expect(clippy::disallowed_methods, reason = "becomes another program")]
            let mut command = Command::new(program);
            command.arg("be").arg(&self.control).arg("executed");
            Ok(command.arg(numbers.join(",")).exec())
        };
        become_it().unwrap_or_else(|error| error)
    }
}

fn done() -> Reply {
    (String::new(), None)
}

/// Above the server's own deadline of five seconds for a request.
const PATIENCE: Duration = Duration::from_secs(10);

/// One answer, with a word in front that says whether the connection was closed after it.
fn read(mut connection: &UnixStream) -> io::Result<String> {
    connection.set_read_timeout(Some(PATIENCE))?;
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let whole = whole(&bytes);
        let text = || String::from_utf8_lossy(&bytes).into_owned();
        // An answer that announces its end is followed by it.
        if whole && !text().contains("\r\nconnection: close\r\n") {
            return Ok(format!("o{}", text()));
        }
        match connection.read(&mut chunk) {
            Ok(0) => return Ok(format!("c{}", text())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Ok(format!("c{}", text()));
            }
            Ok(length) => bytes.extend(&chunk[..length]),
            Err(error) => return Err(error),
        }
    }
}

/// Whether these bytes are a whole answer.
fn whole(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    body.len() >= length.and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn status(text: &str) -> u16 {
    let status = text
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3));
    status.and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_with_its_body() {
        for (text, want) in [
            ("", false),
            ("HTTP/1.1 204 No Content\r\n", false),
            ("HTTP/1.1 204 No Content\r\n\r\n", true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{", false),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", true),
        ] {
            assert_eq!(whole(text.as_bytes()), want, "{text:?}");
        }
        assert_eq!(status("HTTP/1.1 403 Forbidden\r\n"), 403);
        assert_eq!(status(""), 0);
    }
}
