//! Listeners: TLS, a limit on connections, and HTTP/1.1 with limits on time and size.
//!
//! A handshake runs in a task of its own with a deadline, so a silent peer holds up nobody.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

use crate::StartError;
use crate::config::Config;
use crate::files::{self, Holds};

/// From TCP connection to the end of the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// For the head of a request, also while a kept connection is idle.
const HEAD: Duration = Duration::from_secs(60);
/// Bytes of request line and headers.
const HEAD_BYTES: usize = 20 << 10;
/// Headers.
const HEADERS: usize = 64;

/// Reads chain and key. TLS 1.2 and 1.3, one crypto library.
pub(crate) fn tls(config: &Config) -> Result<TlsAcceptor, StartError> {
    let fail = |file: &std::path::Path, why: String| StartError::Tls {
        file: file.to_owned(),
        why,
    };
    let read = |file: &std::path::Path, holds| {
        files::read(file, holds).map_err(|bad| fail(file, bad.to_string()))
    };
    let chain = CertificateDer::pem_slice_iter(&read(&config.certificate, Holds::Public)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|bad| fail(&config.certificate, bad.to_string()))?;
    let key = zeroize::Zeroizing::new(read(&config.key, Holds::Secret)?);
    let key =
        PrivateKeyDer::from_pem_slice(&key).map_err(|bad| fail(&config.key, bad.to_string()))?;
    let server = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|bad| fail(&config.certificate, bad.to_string()))?;
    Ok(TlsAcceptor::from(Arc::new(server)))
}

pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|cause| StartError::Listen { address, cause })
}

/// One permit per connection, over both listeners.
pub(crate) fn permits(connections: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS)))
}

/// Accepts for ever; the tasks of its connections end with it.
pub(crate) async fn serve<F>(
    listener: TcpListener,
    tls: TlsAcceptor,
    permits: Arc<Semaphore>,
    connection: impl Fn(TlsStream<TcpStream>) -> F + Send + Clone + 'static,
) where
    F: Future<Output = ()> + Send,
{
    let mut tasks = JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        let stream = loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => break stream,
                    // Out of descriptors, or the peer has gone: let others end first.
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                },
                Some(_) = tasks.join_next() => {}
            }
        };
        let (tls, connection) = (tls.clone(), connection.clone());
        tasks.spawn(async move {
            let _permit = permit;
            // Small packets with answers: waiting for more would only delay them.
            let _ = stream.set_nodelay(true);
            if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
                connection(stream).await;
            }
        });
    }
}

/// Serves one HTTP/1.1 connection.
pub(crate) async fn http(router: Router, stream: TlsStream<TcpStream>) {
    let service = TowerToHyperService::new(router);
    // Its errors are the peer's: a broken connection or a head that is no HTTP.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
