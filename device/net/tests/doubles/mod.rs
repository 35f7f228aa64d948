//! Servers on loopback that tests tell how to misbehave.
//!
//! Each runs on a thread of its own, serves the connections its script asks for, and is joined
//! when it goes out of scope, so that a failed assertion in a script fails the test.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use net::tls::{Client, Roots, Target};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A server's side of one connection.
pub(crate) type Peer = StreamOwned<ServerConnection, TcpStream>;

/// A certificate authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// A certificate for a name, good for client and server.
    pub(crate) fn leaf(&self, name: &str) -> Leaf {
        self.leaf_between(name, 2020, 2090)
    }

    pub(crate) fn leaf_between(&self, name: &str, from: i32, to: i32) -> Leaf {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(to, 1, 1);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let chain = params.signed_by(&key, &self.issuer).unwrap().pem();
        Leaf {
            chain,
            key: key.serialize_pem(),
        }
    }

    pub(crate) fn roots(&self) -> Roots {
        Roots::from_pem(self.pem.as_bytes()).unwrap()
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.roots()).unwrap()
    }
}

/// A certificate and its key, as PEM.
pub(crate) struct Leaf {
    pub(crate) chain: String,
    pub(crate) key: String,
}

/// A server that runs a script for each of some connections.
pub(crate) struct Double {
    port: u16,
    thread: Option<JoinHandle<()>>,
}

impl Double {
    /// TLS connections; a handshake that fails counts as a connection.
    pub(crate) fn tls(
        leaf: &Leaf,
        connections: usize,
        mut script: impl FnMut(usize, &mut Peer) + Send + 'static,
    ) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = Arc::new(
            ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(
                    vec![CertificateDer::from_pem_slice(leaf.chain.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap(),
                )
                .unwrap(),
        );
        Self::tcp(connections, move |at, tcp| {
            let mut connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut tcp = tcp;
            if connection.complete_io(&mut tcp).is_ok() {
                script(at, &mut StreamOwned::new(connection, tcp));
            }
        })
    }

    /// Plain TCP connections.
    pub(crate) fn tcp(
        connections: usize,
        mut script: impl FnMut(usize, TcpStream) + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let thread = std::thread::spawn(move || {
            for at in 0..connections {
                let (tcp, _) = listener.accept().unwrap();
                // A double never outlives its test, even when the client does not come back.
                tcp.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                script(at, tcp);
            }
        });
        Self {
            port,
            thread: Some(thread),
        }
    }

    /// Where it is, by the name it is to prove.
    pub(crate) fn target(&self, name: &str) -> Target {
        Target::parse(&format!("127.0.0.1:{}", self.port), 443)
            .unwrap()
            .named(name)
            .unwrap()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Waits for the script to end.
    pub(crate) fn join(mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Far enough for a machine under load; no test waits for it.
pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

/// Reads a request of HTTP to its end; says its head and body.
pub(crate) fn http_request(peer: &mut Peer) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        peer.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head
        .lines()
        .find_map(|l| {
            l.to_ascii_lowercase()
                .strip_prefix("content-length:")
                .map(str::to_owned)
        })
        .map_or(0, |l| l.trim().parse().unwrap());
    let mut body = vec![0; length];
    peer.read_exact(&mut body).unwrap();
    (head, body)
}

/// Answers with JSON and ends the connection in order.
pub(crate) fn http_reply(peer: &mut Peer, status: &str, more: &str, body: &str) {
    let text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{more}\r\n{body}",
        body.len()
    );
    peer.write_all(text.as_bytes()).unwrap();
    goodbye(peer);
}

/// Ends a connection in order.
pub(crate) fn goodbye(peer: &mut Peer) {
    peer.conn.send_close_notify();
    let _ = peer.flush();
    let _ = peer.sock.shutdown(std::net::Shutdown::Write);
}
