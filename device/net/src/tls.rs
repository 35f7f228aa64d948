//! One TLS policy for every connection (R51): TLS 1.2 or later, roots from one configured
//! bundle, the name always checked, and no way to switch any of it off.
//!
//! [`Client`] dials, [`Server`] is for a module that serves its fellow modules and demands a
//! certificate of the same trust bundle. A [`Stream`] blocks, but never beyond its deadline, so
//! a peer which sends one byte an hour costs a deadline, not a thread. Nothing here retries.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};

/// The largest PEM bundle that is read.
pub const MAX_BUNDLE: usize = 256 * 1024;
/// The most certificates one bundle may hold.
pub const MAX_CERTIFICATES: usize = 64;
/// The largest bundle of the operating system that is read.
pub const MAX_SYSTEM_BUNDLE: usize = 1024 * 1024;
/// The most certificates in it.
pub const MAX_SYSTEM_CERTIFICATES: usize = 512;

/// Why a TLS connection, or the trust it needs, could not be had.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A bundle is over [`MAX_BUNDLE`] or holds more than [`MAX_CERTIFICATES`].
    #[error("the certificate bundle has {found} {unit}, the limit is {limit}")]
    BundleTooLarge {
        /// What was counted.
        unit: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// A bundle is not PEM.
    #[error("the certificate bundle is not PEM: {0:?}")]
    BundleSyntax(pem::Error),
    /// A bundle holds something that is no certificate (A78).
    #[error("the certificate bundle holds a {0:?}; only certificates belong there")]
    BundleContent(SectionKind),
    /// A bundle holds no certificate at all.
    #[error("the certificate bundle is empty")]
    BundleEmpty,
    /// One certificate of a bundle cannot be a root.
    #[error("certificate {index} of the bundle cannot be a root")]
    BadRoot {
        /// Counted from one.
        index: usize,
        /// What is wrong with it.
        #[source]
        cause: rustls::Error,
    },
    /// A private key is not PKCS#8 PEM. The text is not repeated here.
    #[error("the private key is not PKCS#8 PEM")]
    BadKey,
    /// Certificate chain, key and policy do not fit together.
    #[error("the TLS configuration cannot be built")]
    Configuration(#[source] rustls::Error),
    /// The roots cannot be used to check client certificates.
    #[error("the roots cannot be used to check client certificates")]
    ClientRoots(#[source] rustls::server::VerifierBuilderError),
    /// An address is not `host` or `host:port`.
    #[error("\"{0}\" is not host or host:port")]
    BadTarget(String),
    /// The name could not be resolved to an address.
    #[error("cannot resolve {host}")]
    Resolve {
        /// The host asked for.
        host: String,
        /// What the resolver said.
        #[source]
        cause: io::Error,
    },
    /// No address of the host accepted a connection in time.
    #[error("cannot connect to {host}")]
    Connect {
        /// The host dialled.
        host: String,
        /// What the last attempt ended with.
        #[source]
        cause: io::Error,
    },
    /// The peer did not prove to be who we wanted, or broke the protocol (A70).
    #[error("the TLS peer {host} is refused")]
    Refused {
        /// The name that was expected.
        host: String,
        /// The check that failed.
        #[source]
        cause: rustls::Error,
    },
    /// The connection broke, or its deadline passed, during the handshake.
    #[error("the TLS handshake with {host} did not finish")]
    Handshake {
        /// The name that was expected.
        host: String,
        /// How it ended.
        #[source]
        cause: io::Error,
    },
}

/// The certificates a peer's chain may end in.
#[derive(Clone)]
pub struct Roots {
    store: Arc<RootCertStore>,
}

impl Roots {
    /// Reads the operating system's bundle: more roots than anybody configures, of which those
    /// that cannot be used are left out, since nobody chose them one by one.
    pub fn from_system(bundle: &[u8]) -> Result<Self, TlsError> {
        let mut store = RootCertStore::empty();
        let all = certificates_within(bundle, MAX_SYSTEM_BUNDLE, MAX_SYSTEM_CERTIFICATES)?;
        let (usable, _) = store.add_parsable_certificates(all);
        if usable == 0 {
            return Err(TlsError::BundleEmpty);
        }
        Ok(Self {
            store: Arc::new(store),
        })
    }

    /// Reads a PEM bundle: certificates only, each of them usable, within the limits.
    pub fn from_pem(bundle: &[u8]) -> Result<Self, TlsError> {
        let mut store = RootCertStore::empty();
        for (at, certificate) in certificates(bundle)?.into_iter().enumerate() {
            store.add(certificate).map_err(|cause| TlsError::BadRoot {
                index: at + 1,
                cause,
            })?;
        }
        Ok(Self {
            store: Arc::new(store),
        })
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Roots({})", self.store.len())
    }
}

/// A certificate chain with its private key, for the side that proves who it is.
pub struct Credentials {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Credentials {
    /// Reads a PEM chain (leaf first) and a PKCS#8 PEM key. The caller wipes its own copies.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let chain = certificates(chain)?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(key).map_err(|_| TlsError::BadKey)?;
        Ok(Self {
            chain,
            key: key.into(),
        })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({} certificates)", self.chain.len())
    }
}

/// Where to connect, and the name the peer must prove there.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    host: String,
    port: u16,
    name: ServerName<'static>,
}

impl Target {
    /// Reads `host`, `host:port` or `[v6]:port`; the peer must prove `host`.
    pub fn parse(text: &str, default_port: u16) -> Result<Self, TlsError> {
        let bad = || TlsError::BadTarget(text.to_owned());
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']').ok_or_else(bad)?;
                (
                    host,
                    if rest.is_empty() {
                        None
                    } else {
                        Some(rest.strip_prefix(':').ok_or_else(bad)?)
                    },
                )
            }
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let port = match port {
            None => default_port,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().map_err(|_| bad())?
            }
            Some(_) => return Err(bad()),
        };
        if port == 0 {
            return Err(bad());
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|_| bad())?;
        Ok(Self {
            host: host.to_owned(),
            port,
            name,
        })
    }

    /// The same place, but the peer must prove another name (a module behind a loopback port).
    pub fn named(mut self, name: &str) -> Result<Self, TlsError> {
        self.name = ServerName::try_from(name.to_owned())
            .map_err(|_| TlsError::BadTarget(name.to_owned()))?;
        Ok(self)
    }

    /// The host to dial.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port to dial.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host:port`, with brackets around an IPv6 address.
    pub fn authority(&self) -> String {
        match self.host.parse::<IpAddr>() {
            Ok(IpAddr::V6(v6)) => format!("[{v6}]:{}", self.port),
            _ => format!("{}:{}", self.host, self.port),
        }
    }

    /// Asks the system's resolver, which has its own time limit (some seconds each server).
    fn resolve(&self) -> Result<Vec<SocketAddr>, TlsError> {
        (self.host.as_str(), self.port)
            .to_socket_addrs()
            .map(Iterator::collect)
            .map_err(|cause| TlsError::Resolve {
                host: self.host.clone(),
                cause,
            })
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.authority())
    }
}

/// Dials out.
#[derive(Clone)]
pub struct Client {
    config: Arc<ClientConfig>,
}

impl Client {
    /// A client that shows no certificate.
    pub fn new(roots: &Roots) -> Result<Self, TlsError> {
        let config = Self::policy(roots)?.with_no_client_auth();
        Ok(Self {
            config: Arc::new(config),
        })
    }

    /// A client that shows a certificate when the server asks for one.
    pub fn with_credentials(roots: &Roots, credentials: Credentials) -> Result<Self, TlsError> {
        let config = Self::policy(roots)?
            .with_client_auth_cert(credentials.chain, credentials.key)
            .map_err(TlsError::Configuration)?;
        Ok(Self {
            config: Arc::new(config),
        })
    }

    fn policy(
        roots: &Roots,
    ) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, TlsError>
    {
        Ok(ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .map_err(TlsError::Configuration)?
            .with_root_certificates(Arc::clone(&roots.store)))
    }

    /// Connects and finishes the handshake before the deadline, or says why not.
    pub fn connect(&self, target: &Target, deadline: Instant) -> Result<Stream, TlsError> {
        self.connect_to(&target.resolve()?, target, deadline)
    }

    /// As [`Client::connect`], to addresses already resolved.
    pub(crate) fn connect_to(
        &self,
        addresses: &[SocketAddr],
        target: &Target,
        deadline: Instant,
    ) -> Result<Stream, TlsError> {
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in addresses {
            let left = match remaining(deadline) {
                Ok(left) => left,
                Err(cause) => {
                    last = cause;
                    break;
                }
            };
            match TcpStream::connect_timeout(address, left) {
                Ok(tcp) => {
                    let connection =
                        ClientConnection::new(Arc::clone(&self.config), target.name.clone())
                            .map_err(TlsError::Configuration)?;
                    let mut tls = StreamOwned::new(connection, Socket::new(tcp, deadline));
                    tls.conn
                        .complete_io(&mut tls.sock)
                        .map_err(|cause| handshake(&target.host, cause))?;
                    return Ok(Stream(Side::Client(tls)));
                }
                Err(cause) => last = cause,
            }
        }
        Err(TlsError::Connect {
            host: target.host.clone(),
            cause: last,
        })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tls::Client")
    }
}

/// Accepts peers that show a certificate of the trust bundle.
#[derive(Clone)]
pub struct Server {
    config: Arc<ServerConfig>,
}

impl Server {
    /// A server that refuses a peer without a certificate that ends in `roots`.
    pub fn mutual(roots: &Roots, credentials: Credentials) -> Result<Self, TlsError> {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots.store), provider())
                .build()
                .map_err(TlsError::ClientRoots)?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .map_err(TlsError::Configuration)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(credentials.chain, credentials.key)
            .map_err(TlsError::Configuration)?;
        Ok(Self {
            config: Arc::new(config),
        })
    }

    /// Finishes the handshake on an accepted connection before the deadline.
    pub fn accept(&self, tcp: TcpStream, deadline: Instant) -> Result<Stream, TlsError> {
        let connection =
            ServerConnection::new(Arc::clone(&self.config)).map_err(TlsError::Configuration)?;
        let mut tls = StreamOwned::new(connection, Socket::new(tcp, deadline));
        tls.conn
            .complete_io(&mut tls.sock)
            .map_err(|cause| handshake("peer", cause))?;
        Ok(Stream(Side::Server(tls)))
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tls::Server")
    }
}

/// An established connection. Reads and writes end with `TimedOut` at the deadline; a read that
/// timed out may be repeated with a later deadline, a write that did leaves the stream unusable.
/// An end without a proper goodbye is `UnexpectedEof`, never a clean zero (A70).
pub struct Stream(Side);

enum Side {
    Client(StreamOwned<ClientConnection, Socket>),
    Server(StreamOwned<ServerConnection, Socket>),
}

impl Stream {
    /// Moves the deadline of everything that follows.
    pub fn set_deadline(&mut self, deadline: Instant) {
        match &mut self.0 {
            Side::Client(tls) => tls.sock.deadline = deadline,
            Side::Server(tls) => tls.sock.deadline = deadline,
        }
    }

    /// The peer's own certificate, as DER. A verified chain ended in the roots.
    pub fn peer_certificate(&self) -> Option<&[u8]> {
        let chain = match &self.0 {
            Side::Client(tls) => tls.conn.peer_certificates(),
            Side::Server(tls) => tls.conn.peer_certificates(),
        };
        chain.and_then(|chain| chain.first()).map(AsRef::as_ref)
    }

    /// Says goodbye, so that the other side can tell an end from a cut.
    pub fn close(mut self) -> io::Result<()> {
        match &mut self.0 {
            Side::Client(tls) => {
                tls.conn.send_close_notify();
                tls.conn.write_tls(&mut tls.sock)?;
            }
            Side::Server(tls) => {
                tls.conn.send_close_notify();
                tls.conn.write_tls(&mut tls.sock)?;
            }
        }
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Side::Client(tls) => tls.read(buffer),
            Side::Server(tls) => tls.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Side::Client(tls) => tls.write(bytes),
            Side::Server(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Side::Client(tls) => tls.flush(),
            Side::Server(tls) => tls.flush(),
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tls::Stream")
    }
}

/// Random bytes for jitter and request ids. Not for keys: keys are made by keyd.
pub(crate) fn random() -> u64 {
    let mut bytes = [0; 8];
    // Jitter without randomness is a fixed delay, which is still correct.
    match aws_lc_rs::default_provider().secure_random.fill(&mut bytes) {
        Ok(()) => u64::from_le_bytes(bytes),
        Err(_) => 0,
    }
}

static VERSIONS: &[&rustls::SupportedProtocolVersion] =
    &[&rustls::version::TLS13, &rustls::version::TLS12];

/// Named outright: the process-wide default is whatever some other crate installed first.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn certificates(bundle: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    certificates_within(bundle, MAX_BUNDLE, MAX_CERTIFICATES)
}

fn certificates_within(
    bundle: &[u8],
    bytes: usize,
    count: usize,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    if bundle.len() > bytes {
        return Err(TlsError::BundleTooLarge {
            unit: "bytes",
            found: bundle.len(),
            limit: bytes,
        });
    }
    let mut found = Vec::new();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(bundle) {
        match section.map_err(TlsError::BundleSyntax)? {
            (SectionKind::Certificate, der) => found.push(CertificateDer::from(der)),
            (kind, _) => return Err(TlsError::BundleContent(kind)),
        }
        if found.len() > count {
            return Err(TlsError::BundleTooLarge {
                unit: "certificates",
                found: found.len(),
                limit: count,
            });
        }
    }
    if found.is_empty() {
        return Err(TlsError::BundleEmpty);
    }
    Ok(found)
}

/// Tells a refused peer from a broken connection: rustls hides its errors inside `io::Error`.
fn handshake(host: &str, cause: io::Error) -> TlsError {
    let host = host.to_owned();
    match cause.downcast::<rustls::Error>() {
        Ok(cause) => TlsError::Refused { host, cause },
        Err(cause) => TlsError::Handshake { host, cause },
    }
}

/// A TCP connection whose every operation ends at the deadline.
struct Socket {
    tcp: TcpStream,
    deadline: Instant,
}

impl Socket {
    fn new(tcp: TcpStream, deadline: Instant) -> Self {
        // Small packets are whole requests here; a failure costs latency, nothing else.
        let _ = tcp.set_nodelay(true);
        Self { tcp, deadline }
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.tcp.set_read_timeout(Some(remaining(self.deadline)?))?;
            match self.tcp.read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return timed_out(other),
            }
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            self.tcp
                .set_write_timeout(Some(remaining(self.deadline)?))?;
            match self.tcp.write(bytes) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return timed_out(other),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn remaining(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        Err(io::ErrorKind::TimedOut.into())
    } else {
        Ok(left)
    }
}

/// A socket timeout comes as `WouldBlock`, which rustls would take for a non-blocking socket.
fn timed_out(result: io::Result<usize>) -> io::Result<usize> {
    result.map_err(|e| match e.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => e,
    })
}
