//! A strict HTTP/1.1 reader and writer (R12). Pure: bytes in, values out.
//!
//! Exactly one framing, CRLF only, no folding, no upgrade, no trailers, one `Host`. What two
//! readers could read differently is refused with 400 and the connection is closed; nothing is
//! ever resynchronised, and bytes after a complete request end the connection after its answer.

use contract::endpoint::percent_decode;

/// Longest request line, in bytes (security.md section 7).
pub const LINE: usize = 4 * 1024;
/// Longest header block with the line, in bytes.
pub const BLOCK: usize = 16 * 1024;
/// Most headers.
pub const HEADERS: usize = 64;

/// Why a request is refused before anybody looks at what it asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// Two readers could read it differently, or it is no HTTP/1.1 at all.
    #[error("{0}")]
    Ambiguous(&'static str),
    /// The request line is over its limit.
    #[error("request line too long")]
    LineTooLong,
    /// The header block is over its limit.
    #[error("header block too long")]
    BlockTooLong,
    /// An expectation other than `100-continue`.
    #[error("unknown expectation")]
    Expectation,
    /// The body is over the endpoint's limit.
    #[error("request body too long")]
    BodyTooLong,
}

impl HttpError {
    /// The status of the answer; the connection is closed after it.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::Ambiguous(_) => 400,
            Self::LineTooLong => 414,
            Self::BlockTooLong => 431,
            Self::Expectation => 417,
            Self::BodyTooLong => 413,
        }
    }
}

/// How long a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// This many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
}

/// Line and headers of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The method's word.
    pub method: String,
    /// The path, still encoded.
    pub path: String,
    /// Query members, decoded, in their order.
    pub query: Vec<(String, String)>,
    /// The body's length.
    pub framing: Framing,
    /// The content type without its parameters, in lower case.
    pub content_type: Option<String>,
    /// Whether the client waits for `100 Continue`.
    pub expects_continue: bool,
    /// Whether the connection stays open.
    pub keep_alive: bool,
    /// Bytes of line and headers.
    pub length: usize,
}

/// Reads line and headers; `None` when they are not complete yet.
///
/// # Errors
/// [`HttpError`], as soon as it is certain.
pub fn read_head(input: &[u8]) -> Result<Option<Head>, HttpError> {
    let Some(lines) = split_block(input)? else {
        return Ok(None);
    };
    let (method, path, query) = request_line(lines.first)?;
    let mut headers = Headers::default();
    for line in &lines.rest {
        headers.add(line)?;
    }
    if headers.hosts != 1 {
        return Err(HttpError::Ambiguous("exactly one Host is needed"));
    }
    Ok(Some(Head {
        method,
        path,
        query,
        framing: headers.framing()?,
        content_type: headers.content_type,
        expects_continue: headers.expects_continue,
        keep_alive: !headers.close,
        length: lines.length,
    }))
}

struct Block<'a> {
    first: &'a [u8],
    rest: Vec<&'a [u8]>,
    length: usize,
}

/// Cuts the block into lines at CRLF; a bare CR or LF is refused the moment it is seen.
fn split_block(input: &[u8]) -> Result<Option<Block<'_>>, HttpError> {
    let mut lines = Vec::new();
    let mut start = 0;
    for (at, byte) in input.iter().enumerate() {
        if lines.is_empty() && at >= LINE {
            return Err(HttpError::LineTooLong);
        }
        if at >= BLOCK {
            return Err(HttpError::BlockTooLong);
        }
        match byte {
            b'\r' => match input.get(at + 1) {
                Some(b'\n') | None => {}
                Some(_) => return Err(HttpError::Ambiguous("bare CR")),
            },
            b'\n' => {
                if at == 0 || input[at - 1] != b'\r' {
                    return Err(HttpError::Ambiguous("bare LF"));
                }
                let line = &input[start..at - 1];
                start = at + 1;
                if line.is_empty() {
                    if lines.is_empty() {
                        return Err(HttpError::Ambiguous("empty request line"));
                    }
                    let first = lines.remove(0);
                    return Ok(Some(Block {
                        first,
                        rest: lines,
                        length: start,
                    }));
                }
                lines.push(line);
                if lines.len() > HEADERS + 1 {
                    return Err(HttpError::BlockTooLong);
                }
            }
            _ => {}
        }
    }
    Ok(None)
}

type RequestLine = (String, String, Vec<(String, String)>);

fn request_line(line: &[u8]) -> Result<RequestLine, HttpError> {
    let bad = HttpError::Ambiguous("request line");
    let line = std::str::from_utf8(line).map_err(|_| bad)?;
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(bad);
    };
    if method.is_empty() || !method.bytes().all(is_token) {
        return Err(HttpError::Ambiguous("method"));
    }
    if version != "HTTP/1.1" {
        return Err(HttpError::Ambiguous("HTTP version"));
    }
    // Only the origin form: CONNECT, `*` and absolute targets are for proxies (A35).
    if !target.starts_with('/') || !target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        return Err(HttpError::Ambiguous("request target"));
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Ok((method.to_owned(), path.to_owned(), read_query(query)?))
}

fn read_query(text: &str) -> Result<Vec<(String, String)>, HttpError> {
    let mut members = Vec::new();
    for pair in text.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decode = |text: &str| {
            percent_decode(&text.replace('+', " ")).ok_or(HttpError::Ambiguous("query escape"))
        };
        members.push((decode(name)?, decode(value)?));
    }
    Ok(members)
}

#[derive(Default)]
struct Headers {
    hosts: usize,
    length: Option<u64>,
    chunked: bool,
    content_type: Option<String>,
    expects_continue: bool,
    close: bool,
}

impl Headers {
    fn add(&mut self, line: &[u8]) -> Result<(), HttpError> {
        let (name, value) = header(line)?;
        match name.as_str() {
            "host" => self.hosts += 1,
            "content-length" => {
                if self.length.is_some() {
                    return Err(HttpError::Ambiguous("two lengths"));
                }
                self.length = Some(digits(value)?);
            }
            "transfer-encoding" => {
                if self.chunked || value != "chunked" {
                    return Err(HttpError::Ambiguous("transfer encoding"));
                }
                self.chunked = true;
            }
            "content-type" => {
                if self.content_type.is_some() {
                    return Err(HttpError::Ambiguous("two content types"));
                }
                let kind = value.split(';').next().unwrap_or_default().trim();
                self.content_type = Some(kind.to_ascii_lowercase());
            }
            "expect" if value.eq_ignore_ascii_case("100-continue") => self.expects_continue = true,
            "expect" => return Err(HttpError::Expectation),
            "connection" => {
                for word in value.split(',').map(str::trim) {
                    self.close |= word.eq_ignore_ascii_case("close");
                    if word.eq_ignore_ascii_case("upgrade") {
                        return Err(HttpError::Ambiguous("upgrade"));
                    }
                }
            }
            "upgrade" | "trailer" => return Err(HttpError::Ambiguous("upgrade or trailer")),
            _ => {}
        }
        Ok(())
    }

    fn framing(&self) -> Result<Framing, HttpError> {
        match (self.length, self.chunked) {
            (Some(_), true) => Err(HttpError::Ambiguous("both length and chunked")),
            (None, true) => Ok(Framing::Chunked),
            (length, false) => Ok(Framing::Length(length.unwrap_or(0))),
        }
    }
}

/// Name in lower case, and value without the space around it.
fn header(line: &[u8]) -> Result<(String, &str), HttpError> {
    let bad = HttpError::Ambiguous("header");
    let colon = line.iter().position(|b| *b == b':').ok_or(bad)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    // A folded line begins with a blank, and a blank before the colon is no token: both end here.
    if name.is_empty() || !name.iter().copied().all(is_token) {
        return Err(HttpError::Ambiguous("header name"));
    }
    if value
        .iter()
        .any(|b| *b == 0x7f || (*b < 0x20 && *b != b'\t'))
    {
        return Err(HttpError::Ambiguous("control byte in a header"));
    }
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    let value = std::str::from_utf8(value).map_err(|_| bad)?;
    Ok((name, value.trim_matches([' ', '\t'])))
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn digits(text: &str) -> Result<u64, HttpError> {
    if text.is_empty() || text.len() > 18 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(HttpError::Ambiguous("content length"));
    }
    text.parse()
        .map_err(|_| HttpError::Ambiguous("content length"))
}

/// What a body read so far amounts to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodyState {
    /// More must come.
    Partial,
    /// Complete: the bytes, and how many of the input they took.
    Complete {
        /// The body.
        body: Vec<u8>,
        /// Input bytes used.
        used: usize,
    },
}

/// Reads a body from the bytes after the head; called again with more until it is complete.
///
/// # Errors
/// [`HttpError`]; a body over `limit` is refused by its declared length, before it is read.
pub fn read_body(input: &[u8], framing: Framing, limit: usize) -> Result<BodyState, HttpError> {
    match framing {
        Framing::Length(length) => {
            let length = usize::try_from(length).map_err(|_| HttpError::BodyTooLong)?;
            if length > limit {
                return Err(HttpError::BodyTooLong);
            }
            Ok(match input.get(..length) {
                Some(body) => BodyState::Complete {
                    body: body.to_vec(),
                    used: length,
                },
                None => BodyState::Partial,
            })
        }
        Framing::Chunked => read_chunks(input, limit),
    }
}

/// Most bytes that the chunk frames of a body may add, so that a body of tiny chunks is bounded.
#[must_use]
pub const fn framed_limit(limit: usize) -> usize {
    limit * 2 + 4096
}

fn read_chunks(input: &[u8], limit: usize) -> Result<BodyState, HttpError> {
    let bad = HttpError::Ambiguous("chunk");
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let rest = &input[at..];
        let Some(end) = rest.windows(2).position(|w| w == b"\r\n") else {
            // A size is at most eight digits; anything longer is an extension, and there are none.
            return if rest.len() > 10 {
                Err(bad)
            } else {
                Ok(BodyState::Partial)
            };
        };
        let text = &rest[..end];
        if text.is_empty() || text.len() > 8 || !text.iter().all(u8::is_ascii_hexdigit) {
            return Err(bad);
        }
        let text = std::str::from_utf8(text).map_err(|_| bad)?;
        let size = usize::from_str_radix(text, 16).map_err(|_| bad)?;
        at += end + 2;
        if size > limit - body.len() {
            return Err(HttpError::BodyTooLong);
        }
        let Some(tail) = input.get(at + size..at + size + 2) else {
            return Ok(BodyState::Partial);
        };
        if tail != b"\r\n" {
            return Err(bad);
        }
        if size == 0 {
            return Ok(BodyState::Complete { body, used: at + 2 });
        }
        body.extend_from_slice(&input[at..at + size]);
        at += size + 2;
    }
}

/// The reason phrase; the genuine agent's parser needs one (module-runtime.md 7.1).
#[must_use]
pub const fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Status",
    }
}

/// Status, length and connection of a response, for the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseHead {
    /// The status.
    pub status: u16,
    /// The body's length; without one, the body ends with the connection.
    pub framing: Option<Framing>,
    /// The content type without its parameters, in lower case.
    pub content_type: Option<String>,
    /// Whether the connection may be used again.
    pub keep_alive: bool,
    /// Every header, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Bytes of line and headers.
    pub length: usize,
}

/// Reads line and headers of a response; `None` when they are not complete yet.
///
/// # Errors
/// [`HttpError`], as soon as it is certain.
pub fn read_response_head(input: &[u8]) -> Result<Option<ResponseHead>, HttpError> {
    let bad = HttpError::Ambiguous("status line");
    let Some(lines) = split_block(input)? else {
        return Ok(None);
    };
    let first = std::str::from_utf8(lines.first).map_err(|_| bad)?;
    let status = first
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .ok_or(bad)?;
    let status: u16 = status.parse().map_err(|_| bad)?;
    let mut headers = Headers::default();
    let mut all = Vec::with_capacity(lines.rest.len());
    for line in &lines.rest {
        headers.add(line)?;
        let (name, value) = header(line)?;
        all.push((name, value.to_owned()));
    }
    let framing = match (headers.length, headers.chunked) {
        (None, false) if status == 204 || status == 304 => Some(Framing::Length(0)),
        (None, false) => None,
        _ => Some(headers.framing()?),
    };
    Ok(Some(ResponseHead {
        status,
        framing,
        content_type: headers.content_type,
        keep_alive: !headers.close,
        headers: all,
        length: lines.length,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Result<Option<Head>, HttpError> {
        read_head(text.as_bytes())
    }

    fn status(text: &str) -> u16 {
        match head(text) {
            Err(error) => error.status(),
            Ok(head) => panic!("read {head:?} from {text:?}"),
        }
    }

    #[test]
    fn a_plain_request_is_read() {
        let text = "POST /sign?api-version=2020-09-01&a=%2F+b HTTP/1.1\r\nHost: keyd.sock\r\n\
                    Content-Type: Application/JSON; charset=utf-8\r\nContent-Length: 2\r\n\r\n{}";
        let head = head(text).unwrap().unwrap();
        assert_eq!(
            (head.method.as_str(), head.path.as_str()),
            ("POST", "/sign")
        );
        assert_eq!(head.query[1], ("a".to_owned(), "/ b".to_owned()));
        assert_eq!(head.framing, Framing::Length(2));
        assert_eq!(head.content_type.as_deref(), Some("application/json"));
        assert!(head.keep_alive);
        let body = read_body(&text.as_bytes()[head.length..], head.framing, 64).unwrap();
        assert_eq!(
            body,
            BodyState::Complete {
                body: b"{}".to_vec(),
                used: 2
            }
        );
        for cut in 0..text.len() - 2 {
            assert!(
                matches!(read_head(&text.as_bytes()[..cut]), Ok(None)),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn a26_two_lengths_are_refused() {
        let tail = "\r\n\r\n";
        for headers in [
            "Host: a\r\nContent-Length: 1\r\nContent-Length: 1",
            "Host: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
            "Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Host: a\r\nTransfer-Encoding: gzip, chunked",
            "Host: a\r\nTransfer-Encoding: identity",
            "Host: a\r\nContent-Length: +1",
            "Host: a\r\nContent-Length: -1",
            "Host: a\r\nContent-Length: 0x1",
            "Host: a\r\nContent-Length: 1, 1",
            "Host: a\r\nContent-Length: ",
            "Host: a\r\nContent-Length: 99999999999999999999",
            "Host: a\r\nContent-Length : 1",
            "Host: a\r\nX: 1\r\n folded",
            "Host: a\nX: 1",
            "Host: a\rX: 1",
            "Host: a\r\nX\u{b}: 1",
            "Host: a\r\nX: a\0b",
            "Host: a\r\nHost: b",
            "X: 1",
            "Host: a\r\nnocolon",
            "Host: a\r\n: empty",
        ] {
            assert_eq!(
                status(&format!("POST / HTTP/1.1\r\n{headers}{tail}")),
                400,
                "{headers:?}"
            );
        }
    }

    #[test]
    fn a27_a_request_inside_a_body_stays_body() {
        let inner = "POST /sign HTTP/1.1\r\nHost: a\r\n\r\n";
        let text = format!(
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{inner}",
            inner.len()
        );
        let head = head(&text).unwrap().unwrap();
        let body = read_body(&text.as_bytes()[head.length..], head.framing, 1024).unwrap();
        let whole = BodyState::Complete {
            body: inner.as_bytes().to_vec(),
            used: inner.len(),
        };
        assert_eq!(body, whole);
    }

    #[test]
    fn a28_lines_blocks_and_headers_are_bounded() {
        let line = |n: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(n));
        assert!(head(&line(LINE - 16)).is_ok());
        assert_eq!(status(&line(LINE)), 414);
        let many = |n: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(n));
        assert!(head(&many(HEADERS - 1)).unwrap().is_some());
        assert_eq!(status(&many(HEADERS)), 431);
        let big = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
            "y".repeat(BLOCK)
        );
        assert_eq!(status(&big), 431);
    }

    #[test]
    fn a29_bodies_are_bounded_declared_and_streamed() {
        let read = |text: &str, framing| read_body(text.as_bytes(), framing, 4);
        assert_eq!(read("", Framing::Length(5)), Err(HttpError::BodyTooLong));
        assert_eq!(read("abc", Framing::Length(4)), Ok(BodyState::Partial));
        let chunked = Framing::Chunked;
        assert_eq!(
            read("3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n", chunked),
            Ok(BodyState::Complete {
                body: b"abcd".to_vec(),
                used: 19
            })
        );
        assert_eq!(
            read("3\r\nabc\r\n2\r\n", chunked),
            Err(HttpError::BodyTooLong)
        );
        assert_eq!(read("3\r\nabc\r\n1\r\nd", chunked), Ok(BodyState::Partial));
        for bad in [
            "3;x=y\r\nabc\r\n",
            "3 \r\nabc\r\n",
            "+3\r\nabc\r\n",
            "g\r\n",
            "\r\n",
            "000000003\r\n",
            "3\r\nabcd\r\n",
            "0\r\nTrailer: x\r\n\r\n",
            ";;;;;;;;;;;;;;",
        ] {
            assert!(
                matches!(read(bad, chunked), Err(HttpError::Ambiguous(_))),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn a35_other_forms_of_request_are_refused() {
        for line in [
            "CONNECT a:1 HTTP/1.1",
            "OPTIONS * HTTP/1.1",
            "GET http://a/ HTTP/1.1",
            "GET /",
            "GET / HTTP/1.0",
            "GET / HTTP/2.0",
            "PRI * HTTP/2.0",
            "GET  / HTTP/1.1",
            "GET / HTTP/1.1 ",
            "GET /#a HTTP/1.1",
            "GET /\u{e9} HTTP/1.1",
            " GET / HTTP/1.1",
            "G\u{7f}T / HTTP/1.1",
            "GET /?a=%zz HTTP/1.1",
        ] {
            assert_eq!(
                status(&format!("{line}\r\nHost: a\r\n\r\n")),
                400,
                "{line:?}"
            );
        }
        let with = |header: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{header}\r\n\r\n");
        assert_eq!(status(&with("Expect: 200-ok")), 417);
        assert_eq!(status(&with("Connection: upgrade")), 400);
        assert_eq!(status(&with("Upgrade: h2c")), 400);
        assert_eq!(status("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
        assert!(
            head(&with("Expect: 100-Continue"))
                .unwrap()
                .unwrap()
                .expects_continue
        );
    }
}
