//! One HTTP/1 connection to the controller, plain or with TLS.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName};
use serde::de::DeserializeOwned;
use tokio::net::TcpSocket;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

/// The longest answer, in bytes: a list of 10,000 machines fits.
const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// How to reach the controller.
#[derive(Clone)]
pub struct Target {
    pub address: SocketAddr,
    pub tls: Option<TlsConnector>,
}

impl Target {
    pub fn plain(address: SocketAddr) -> Self {
        Self { address, tls: None }
    }

    /// With TLS, trusting this certificate alone.
    pub fn tls(address: SocketAddr, certificate: CertificateDer<'static>) -> Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        // Each connection is a machine of its own, which has never been here before.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Self { address, tls: Some(TlsConnector::from(Arc::new(config))) })
    }
}

/// A connection; dropped, it is closed.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    pub async fn open(target: &Target) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        let stream = socket.connect(target.address).await.context("connecting")?;
        stream.set_nodelay(true)?;
        match &target.tls {
            None => Self::over(TokioIo::new(stream)).await,
            Some(tls) => {
                let name = ServerName::try_from("localhost")?;
                let stream = tls.connect(name, stream).await.context("the TLS handshake")?;
                Self::over(TokioIo::new(stream)).await
            }
        }
    }

    async fn over<T>(stream: T) -> Result<Self>
    where
        T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let (sender, connection) = Builder::new().max_buf_size(16 * 1024).handshake(stream).await?;
        // Its error is that of the request that was under way.
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender, driver })
    }

    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Answer> {
        self.sender.ready().await.context("the connection was closed")?;
        let response = self.sender.send_request(request).await.context("no answer came")?;
        Answer::read(response).await
    }
}

/// A whole answer.
pub struct Answer {
    pub status: u16,
    /// In seconds, where the controller asked for it.
    pub retry_after: Option<u64>,
    pub body: Bytes,
}

impl Answer {
    async fn read(response: Response<Incoming>) -> Result<Self> {
        let status = response.status().as_u16();
        let header = response.headers().get(hyper::header::RETRY_AFTER);
        let retry_after = header.and_then(|value| value.to_str().ok()?.parse().ok());
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| anyhow!("the answer broke off: {error}"))?.to_bytes();
        Ok(Self { status, retry_after, body })
    }

    /// Requires success and parses the body.
    pub fn good<T: DeserializeOwned>(&self) -> Result<T> {
        let body = String::from_utf8_lossy(&self.body);
        ensure!(self.status == 200, "{} {}", self.status, body.chars().take(300).collect::<String>());
        Ok(serde_json::from_slice(&self.body)?)
    }
}
