//! What our numbers are compared with: our own server doing nothing, somebody else's least server,
//! and the bare operations of the crypto library and of the disk.

use std::fs::File;
use std::hint::black_box;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::digest::{Digest, SHA256};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _,
    UnparsedPublicKey,
};
use aws_lc_rs::{digest, hmac};
use contract::endpoint::{Api, Ask, Callers, Empty, Endpoint, Method};
use contract::names::ModuleName;
use contract::refusal::Refusal;
use local::peer::{Caller, KernelFacts, Require};
use local::routes::{Gate, Routes};
use local::server::{Limits, Listener, Server};
use serde::{Deserialize, Serialize};

use super::Failure;
use crate::load;

struct EchoApi;

impl Api for EchoApi {
    const NAME: &'static str = "echo";
    const VERSIONS: &'static [&'static str] = &["1"];
    const CURRENT: &'static str = "1";
}

/// Answers the same, whatever was sent.
struct Echo;

#[derive(Serialize, Deserialize)]
struct Fixed {
    signature: String,
}

impl Endpoint for Echo {
    type Api = EchoApi;
    const METHOD: Method = Method::Post;
    const PATH: &'static str = "/echo";
    const CALLERS: Callers = Callers::Anyone;
    const LIMIT: usize = 64 * 1024;
    type Target = ();
    type Request = Empty;
    type Response = Fixed;
}

struct Anyone;

impl Gate for Anyone {
    type Principal = ();
    fn admit(&self, _: Callers, _: Option<&ModuleName>, _: &Caller) -> Result<(), Refusal> {
        Ok(())
    }
}

fn echo(_: &Anyone, (): &(), _: Ask<Echo>) -> Result<Fixed, Refusal> {
    Ok(Fixed {
        signature: "A".repeat(44),
    })
}

/// Serves the echo with the daemons' own server, for ever.
///
/// # Errors
/// When it cannot listen.
pub fn serve(socket: &Path, connections: usize) -> Result<(), Failure> {
    let server = Server::new(KernelFacts::probe(), Require::Best)?;
    let limits = Limits {
        per_user: connections,
        per_socket: connections,
        ..Limits::default()
    };
    let routes = Routes::<EchoApi, Anyone>::new(Arc::new(Anyone)).on::<Echo>(echo);
    server.open(Listener::bind(socket, 0o666)?, Arc::new(routes), limits)?;
    server.run();
    Ok(())
}

/// Serves the least a server can do: a thread per connection, one read, one write. For ever.
///
/// # Errors
/// When it cannot listen.
pub fn serve_least(socket: &Path) -> Result<(), Failure> {
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
    #[expect(
        clippy::disallowed_methods,
        reason = "what our own listener is compared with"
    )]
    let listener = UnixListener::bind(socket)?;
    for stream in listener.incoming() {
        let mut stream = stream?;
        std::thread::spawn(move || {
            let mut buffer = [0; 64 * 1024];
            while stream.read(&mut buffer).is_ok_and(|read| read > 0) {
                if stream.write_all(answer).is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}

/// A request of the echo, as long as another. Its type is not JSON, so nothing looks at it.
#[must_use]
pub fn request(as_long_as: &[u8]) -> Vec<u8> {
    let head = "POST /echo?api-version=1 HTTP/1.1\r\nHost: bench\r\nContent-Type: text/plain\r\n";
    let least = head.len() + "Content-Length: 0000\r\n\r\n".len();
    let body = "x".repeat(as_long_as.len().saturating_sub(least).max(1));
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// The bare operations, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub struct Bare {
    /// HMAC over a short message.
    pub hmac: f64,
    /// A P-256 signature over a digest.
    pub ecdsa: f64,
    /// AES-256-GCM over 1 KiB.
    pub aead: f64,
    /// A P-256 verification.
    pub verify: f64,
    /// One small file made durable.
    pub fsync: f64,
}

impl Bare {
    /// Measures them.
    ///
    /// # Errors
    /// When an operation fails.
    pub fn measure(folder: &Path) -> Result<Self, Failure> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]);
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)?;
        let of = digest::digest(&SHA256, b"bench");
        let of = Digest::import_less_safe(of.as_ref(), &SHA256)?;
        let sealing = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32])?);
        let random = SystemRandom::new();
        let signed = pair.sign(&random, b"bench")?;
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, pair.public_key().as_ref());
        let mut data = vec![0; 1024];
        Ok(Self {
            hmac: time(20_000, || {
                black_box(hmac::sign(&key, black_box(b"bench")));
                true
            })?,
            ecdsa: time(2_000, || pair.sign_digest(&of).is_ok())?,
            aead: time(20_000, || {
                let nonce = Nonce::assume_unique_for_key([1; 12]);
                let sealed = sealing.seal_in_place_separate_tag(nonce, Aad::empty(), &mut data);
                sealed.is_ok()
            })?,
            verify: time(2_000, || public.verify(b"bench", signed.as_ref()).is_ok())?,
            fsync: fsync(folder)?,
        })
    }
}

fn time(times: u32, mut run: impl FnMut() -> bool) -> Result<f64, Failure> {
    let begin = Instant::now();
    for _ in 0..times {
        if !run() {
            return Err("a bare operation failed".into());
        }
    }
    Ok(begin.elapsed().as_secs_f64() * 1e9 / f64::from(times))
}

fn fsync(folder: &Path) -> io::Result<f64> {
    let path = folder.join("fsync");
    let mut nanos = Vec::new();
    for _ in 0..100 {
        let begin = Instant::now();
        let mut file = File::create(&path)?;
        file.write_all(&[7; 1024])?;
        file.sync_all()?;
        nanos.push(u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    Ok(super::median(&mut nanos))
}

/// From the start of a process to its first answer: what is waited for.
///
/// # Errors
/// When none comes in time.
pub fn first_answer(socket: &Path) -> Result<(), Failure> {
    // No version, so any API refuses it, and has answered.
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        match load::latencies(socket, &load::request("GET", "/", ""), 1, true) {
            Err(error) if error.to_string().starts_with("HTTP/1.1 400") => return Ok(()),
            _ => std::thread::park_timeout(Duration::from_micros(50)),
        }
    }
    Err("no answer".into())
}
