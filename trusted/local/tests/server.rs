//! The socket server with real sockets: wire attacks A26-A37 against one small API.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use contract::endpoint::{Api, Ask, Callers, Empty, Endpoint, Method};
use contract::names::{KeyId, ModuleName};
use contract::refusal::Refusal;
use local::client::{CallError, Client};
use local::peer::{Caller, KernelFacts, Require};
use local::routes::{Gate, Routes};
use local::server::{Limits, Listener, Server};

struct Test;

impl Api for Test {
    const NAME: &'static str = "test";
    const VERSIONS: &'static [&'static str] = &["2020-01-01", "2021-01-01"];
    const CURRENT: &'static str = "2021-01-01";
}

struct Echo;

impl Endpoint for Echo {
    type Api = Test;
    const METHOD: Method = Method::Post;
    const PATH: &'static str = "/echo/{id}";
    const CALLERS: Callers = Callers::KeyUsers;
    const LIMIT: usize = 1024;
    type Target = KeyId;
    type Request = Vec<String>;
    type Response = Vec<String>;
}

struct Newer;

impl Endpoint for Newer {
    type Api = Test;
    const METHOD: Method = Method::Get;
    const PATH: &'static str = "/newer";
    const SINCE: &'static str = "2021-01-01";
    const CALLERS: Callers = Callers::Anyone;
    const LIMIT: usize = 0;
    type Target = ();
    type Request = Empty;
    type Response = Empty;
}

struct Big;

impl Endpoint for Big {
    type Api = Test;
    const METHOD: Method = Method::Get;
    const PATH: &'static str = "/big";
    const CALLERS: Callers = Callers::Anyone;
    const LIMIT: usize = 0;
    type Target = ();
    type Request = Empty;
    type Response = String;
}

struct Parts;

impl Gate for Parts {
    type Principal = u32;
    fn admit(&self, _: Callers, _: Option<&ModuleName>, caller: &Caller) -> Result<u32, Refusal> {
        Ok(caller.uid())
    }
}

fn echo(_: &Parts, _: &u32, ask: Ask<Echo>) -> Result<Vec<String>, Refusal> {
    let mut words = vec![ask.target.to_string()];
    words.extend(ask.body);
    Ok(words)
}

fn newer(_: &Parts, _: &u32, _: Ask<Newer>) -> Result<Empty, Refusal> {
    Ok(Empty)
}

fn big(_: &Parts, _: &u32, _: Ask<Big>) -> Result<String, Refusal> {
    Ok("x".repeat(3 * 1024 * 1024))
}

struct Running {
    path: PathBuf,
    _server: Arc<Server>,
}

impl Running {
    fn new(name: &str, limits: Limits) -> Self {
        let path = std::env::temp_dir().join(format!("hf-{name}-{}.sock", std::process::id()));
        let server = Server::new(KernelFacts::probe(), Require::Best).unwrap();
        let routes = Routes::<Test, Parts>::new(Arc::new(Parts))
            .on(echo)
            .on(newer)
            .on(big);
        let listener = Listener::bind(&path, 0o600).unwrap();
        server.open(listener, Arc::new(routes), limits).unwrap();
        server.start().unwrap();
        Self {
            path,
            _server: server,
        }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
    }

    /// Sends bytes and reads to the end of the connection.
    fn raw(&self, text: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    fn status(&self, text: &str) -> u16 {
        let answer = self.raw(text);
        let status = answer
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3));
        status
            .and_then(|s| s.parse().ok())
            .unwrap_or_else(|| panic!("{text:?} gave {answer:?}"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn quick() -> Limits {
    Limits {
        request: Duration::from_millis(300),
        ..Limits::default()
    }
}

#[test]
fn a_typed_call_comes_back() {
    let running = Running::new("typed", Limits::default());
    let client = Client::new(&running.path);
    let id = KeyId::new("a/b %").unwrap();
    for _ in 0..3 {
        let words = client.call::<Echo>(&id, &vec!["x".to_owned()]).unwrap();
        assert_eq!(words, ["a/b %", "x"]);
    }
    client.call::<Newer>(&(), &Empty).unwrap();
}

#[test]
fn a_kept_connection_that_was_ended_is_replaced() {
    let limits = Limits {
        idle: Duration::from_millis(1),
        request: Duration::from_millis(50),
        ..quick()
    };
    let running = Running::new("kept", limits);
    let client = Client::new(&running.path);
    let id = KeyId::new("a").unwrap();
    let mut watch = running.connect();
    client.call::<Echo>(&id, &Vec::new()).unwrap();
    // Both connections idle out at the server; the end of ours shows that theirs ended too.
    let _ = watch.read(&mut [0]);
    client.call::<Echo>(&id, &Vec::new()).unwrap();
}

#[test]
fn the_order_of_checks_is_the_compatible_one() {
    let running = Running::new("order", Limits::default());
    let ask = |line: &str, more: &str, body: &str| {
        running.raw(&format!(
            "{line} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n{more}\r\n{body}",
            body.len()
        ))
    };
    let v = "?api-version=2020-01-01";
    for (line, more, body, status, text) in [
        ("POST /echo/a", "", "[]", 400, "api-version not specified"),
        (
            "POST /echo/a?api-version=1999-01-01",
            "",
            "[]",
            400,
            "invalid api-version \\\"1999-01-01\\\"",
        ),
        (
            "POST /nothing?api-version=1999-01-01",
            "",
            "[]",
            400,
            "invalid api-version \\\"1999-01-01\\\"",
        ),
        (&format!("POST /nothing{v}"), "", "[]", 404, "not found"),
        (&format!("GET /newer{v}"), "", "", 404, "not found"),
        (
            &format!("PATCH /echo/a{v}"),
            "",
            "[]",
            400,
            "method not allowed",
        ),
        (
            &format!("GET /echo/a{v}"),
            "",
            "",
            400,
            "method not allowed",
        ),
        (
            &format!("POST /echo/a{v}"),
            "",
            "",
            400,
            "missing request body",
        ),
        (
            &format!("POST /echo/a{v}"),
            "Content-Type: text/plain\r\n",
            "[]",
            400,
            "missing request body",
        ),
        (
            &format!("POST /echo/a{v}"),
            "",
            "{",
            422,
            "string expected at byte 1",
        ),
        (&format!("POST /echo/a{v}"), "", "[1]", 422, "invalid type"),
        (
            &format!("POST /echo/%0a{v}"),
            "",
            "[]",
            400,
            "invalid key id",
        ),
        (
            &format!("POST /echo/a{v}&api-version=2021-01-01"),
            "",
            "[]",
            200,
            "[\"a\"]",
        ),
        (
            &format!("POST /echo/a{v}"),
            "Content-Type: application/json; charset=utf-8\r\n",
            "[]",
            200,
            "[\"a\"]",
        ),
    ] {
        let answer = ask(line, more, body);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{line} {body}: {answer}"
        );
        assert!(answer.contains(text), "{line} {body}: {answer}");
    }
}

#[test]
fn a26_two_lengths_are_refused() {
    let running = Running::new("a26", Limits::default());
    let head = "POST /echo/a?api-version=2020-01-01 HTTP/1.1\r\nHost: a\r\n";
    for more in [
        "Content-Length: 2\r\nContent-Length: 2\r\n\r\n[]",
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n\r\n",
        "Content-Length: 0x2\r\n\r\n[]",
        "Content-Length : 2\r\n\r\n[]",
        "X: a\r\n b\r\nContent-Length: 2\r\n\r\n[]",
        "X: a\nContent-Length: 2\r\n\r\n[]",
    ] {
        assert_eq!(running.status(&format!("{head}{more}")), 400, "{more:?}");
    }
}

#[test]
fn a27_bytes_after_a_request_are_never_a_request() {
    let running = Running::new("a27", Limits::default());
    let one =
        "POST /echo/a?api-version=2020-01-01 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n[]";
    let answer = running.raw(&format!("{one}{one}"));
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
}

#[test]
fn a28_long_heads_are_refused() {
    let running = Running::new("a28", Limits::default());
    let line = format!("GET /{} HTTP/1.1\r\n", "a".repeat(8192));
    assert_eq!(running.status(&line), 414);
    let headers = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(64));
    assert_eq!(running.status(&headers), 431);
}

#[test]
fn a29_long_bodies_are_refused() {
    let running = Running::new("a29", Limits::default());
    let head = "POST /echo/a?api-version=2020-01-01 HTTP/1.1\r\nHost: a\r\n";
    let fits = format!("[\"{}\"]", "a".repeat(1020));
    let request = |body: &str| {
        format!(
            "{head}Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    assert_eq!(running.status(&request(&fits)), 200);
    assert_eq!(
        running.status(&format!("{head}Content-Length: 1025\r\n\r\n")),
        413
    );
    let chunk = format!("200\r\n{}\r\n", "a".repeat(512));
    let streamed = format!(
        "{head}Transfer-Encoding: chunked\r\n\r\n{}",
        chunk.repeat(3)
    );
    assert_eq!(running.status(&streamed), 413);
    let tiny = format!(
        "{head}Transfer-Encoding: chunked\r\n\r\n1;{}",
        "x".repeat(64)
    );
    assert_eq!(running.status(&tiny), 400);
}

#[test]
fn a30_a_request_that_never_ends_is_answered_and_its_slot_freed() {
    let limits = Limits {
        per_user: 1,
        ..quick()
    };
    let running = Running::new("a30", limits);
    for part in [
        "P",
        "POST /echo/a?api-version=2020-01-01 HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n[",
    ] {
        assert_eq!(running.status(part), 408, "{part:?}");
    }
    let client = Client::new(&running.path);
    client.call::<Newer>(&(), &Empty).unwrap();
}

#[test]
fn a30_a_half_closed_connection_ends() {
    let running = Running::new("a30h", Limits::default());
    let mut stream = running.connect();
    stream.write_all(b"POST /echo").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "");
}

#[test]
fn a31_a_client_that_never_reads_is_left() {
    let running = Running::new(
        "a31",
        Limits {
            per_user: 1,
            ..quick()
        },
    );
    let mut stream = running.connect();
    stream
        .write_all(b"GET /big?api-version=2020-01-01 HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    // The slot of the only connection allowed comes free when the write deadline has passed.
    let client = Client::new(&running.path);
    loop {
        match client.call::<Newer>(&(), &Empty) {
            Ok(Empty) => break,
            Err(CallError::Refused { status: 429, .. } | CallError::Broken { .. }) => {
                std::thread::yield_now();
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a32_json_that_two_readers_may_read_differently_is_422() {
    let running = Running::new("a32", Limits::default());
    for body in [
        "[\"a\",]",
        "[\"\\ud800\"]",
        "[] ",
        "\u{feff}[]",
        "[]x",
        "[NaN]",
    ] {
        let text = format!(
            "POST /echo/a?api-version=2020-01-01 HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let want = if body == "[] " { 200 } else { 422 };
        assert_eq!(running.status(&text), want, "{body:?}");
    }
}

#[test]
fn a35_expectations_and_other_protocols_are_refused() {
    let running = Running::new("a35", Limits::default());
    let v = "?api-version=2020-01-01";
    for (text, status) in [
        (
            format!("POST /echo/a{v} HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n"),
            417,
        ),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 400),
        (format!("GET /newer{v}\r\n\r\n"), 400),
        (format!("CONNECT a:1{v} HTTP/1.1\r\nHost: a\r\n\r\n"), 400),
    ] {
        assert_eq!(running.status(&text), status, "{text:?}");
    }
    let mut stream = running.connect();
    let head = format!(
        "POST /echo/a{v} HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: 2\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"[]").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[test]
fn a25_an_idle_connection_gives_its_place_to_an_active_one() {
    let running = Running::new(
        "a25",
        Limits {
            per_user: 2,
            ..Limits::default()
        },
    );
    let mut idle: Vec<UnixStream> = (0..2).map(|_| running.connect()).collect();
    for stream in &mut idle {
        stream
            .write_all(b"GET /newer?api-version=2021-01-01 HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        let mut answer = [0; 14];
        stream.read_exact(&mut answer).unwrap();
    }
    let client = Client::new(&running.path);
    client.call::<Newer>(&(), &Empty).unwrap();
}

/// A process of its own that writes to a connection it has inherited, and lives on until dropped.
struct Writer(std::process::Child);

impl Writer {
    fn new(stream: &UnixStream, text: &str) -> Self {
        use std::process::{Command, Stdio};
        let inherited = std::os::fd::OwnedFd::from(stream.try_clone().unwrap());
        #[expect(
            clippy::disallowed_methods,
            reason = "another process is what the test is about"
        )]
        let mut child = Command::new("/bin/sh")
            .args([
                "-c",
                "printf %s \"$1\" >&0; echo done; exec sleep 600",
                "sh",
                text,
            ])
            .stdin(Stdio::from(inherited))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut [0; 5])
            .unwrap();
        Self(child)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const NEWER: &str =
    "GET /newer?api-version=2021-01-01 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

#[test]
fn a05_another_process_of_the_same_principal_may_write() {
    let running = Running::new("a05", Limits::default());
    let mut stream = running.connect();
    let (first, second) = NEWER.split_at(20);
    stream.write_all(first.as_bytes()).unwrap();
    let _writer = Writer::new(&stream, second);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
}

#[test]
fn a37_a_request_of_many_writers_is_ended_before_it_eats_the_descriptors() {
    let running = Running::new("a37w", Limits::default());
    let mut stream = running.connect();
    let _writers: Vec<Writer> = (0..9)
        .map(|at| Writer::new(&stream, &NEWER[at..=at]))
        .collect();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    let client = Client::new(&running.path);
    client.call::<Newer>(&(), &Empty).unwrap();
}

#[test]
fn a37_descriptors_sent_along_are_refused_or_closed_at_once() {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use std::os::fd::AsFd as _;
    let running = Running::new("a37d", Limits::default());
    let mut stream = running.connect();
    let file = std::fs::File::open("/dev/null").unwrap();
    let inode = |fd: &std::path::Path| std::fs::read_link(fd).unwrap_or_default();
    let open = || {
        let all = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        all.filter(|fd| inode(&fd.path()) == std::path::Path::new("/dev/null"))
            .count()
    };
    let before = open();
    let many = [file.as_fd(); 200];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(200))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    assert!(beside.push(SendAncillaryMessage::ScmRights(&many)));
    let text = std::io::IoSlice::new(NEWER.as_bytes());
    match sendmsg(&stream, &[text], &mut beside, SendFlags::NOSIGNAL) {
        // Since Linux 6.16 the kernel refuses them for us.
        Err(error) => {
            assert_eq!(error, rustix::io::Errno::PERM);
            stream.write_all(NEWER.as_bytes()).unwrap();
        }
        Ok(sent) => assert_eq!(sent, NEWER.len()),
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    assert!(open() <= before, "descriptors stayed open");
}
