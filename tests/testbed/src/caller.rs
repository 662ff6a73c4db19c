//! A client that talks to the controller by hand, with whatever keys it has.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use muster_protocol::api::{self, Problem, ProblemCode};
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::Sha256;
use muster_protocol::keys::{self, SecretKey, Signer};
use muster_protocol::operator::{Request, RequestSignature, Session};
use reqwest::Method;
use serde::de::DeserializeOwned;

/// A response.
#[derive(Debug, Clone)]
pub struct Answered {
    pub status: u16,
    pub body: Vec<u8>,
    pub retry_after: Option<u64>,
}

impl Answered {
    pub fn is_good(&self) -> bool {
        (200..300).contains(&self.status)
    }
    pub fn read<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body).with_context(|| self.text())
    }
    pub fn text(&self) -> String {
        format!("{}: {}", self.status, String::from_utf8_lossy(&self.body))
    }
    /// Why it was refused.
    pub fn code(&self) -> Option<ProblemCode> {
        serde_json::from_slice::<Problem>(&self.body).ok().map(|problem| problem.code)
    }
}

/// A client of one controller, with its own connections.
pub struct Caller {
    base: String,
    fleet: Sha256,
    client: reqwest::Client,
    runtime: tokio::runtime::Runtime,
}

impl Caller {
    /// `address` is where the controller listens; `first_root` is the file whose hash is the fleet's ID.
    pub fn new(address: &str, first_root: &Path) -> Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Self {
            base: format!("http://{address}"),
            fleet: Sha256::of(&std::fs::read(first_root)?),
            client: reqwest::Client::builder()
                .timeout(Duration::from_secs(60))
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .build()?,
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?,
        })
    }

    pub fn fleet(&self) -> Sha256 {
        self.fleet
    }

    pub fn ask(
        &self,
        method: &Method,
        path: &str,
        headers: &[(&str, String)],
        body: Vec<u8>,
    ) -> Result<Answered> {
        let mut request = self.client.request(method.clone(), format!("{}{path}", self.base)).body(body);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        self.runtime.block_on(async {
            let response = request.send().await?;
            let retry_after =
                response.headers().get("retry-after").and_then(|v| v.to_str().ok()?.parse().ok());
            let status = response.status().as_u16();
            Ok(Answered { status, retry_after, body: response.bytes().await?.to_vec() })
        })
    }

    pub fn get(&self, path: &str, bearer: Option<&str>) -> Result<Answered> {
        let headers: Vec<_> =
            bearer.map(|bearer| ("authorization", format!("Bearer {bearer}"))).into_iter().collect();
        self.ask(&Method::GET, path, &headers, Vec::new())
    }

    /// The header of a request signed by `key`, now or `off` seconds from now.
    pub fn signature(
        &self,
        key: &dyn Signer,
        method: &Method,
        path: &str,
        body: &[u8],
        off: i64,
    ) -> Result<String> {
        let request = Request { audience: &self.fleet, method: method.as_str(), path, body };
        let at = SystemClock::new().unix_seconds() + off;
        let signed = RequestSignature::make_with(key, request, at, muster_protocol::random::bytes()?)?;
        Ok(serde_json::to_string(&signed)?)
    }

    /// A request signed by an operator, or by someone posing as one.
    pub fn operate(&self, key: &SecretKey, method: &Method, path: &str, body: Vec<u8>) -> Result<Answered> {
        let signature = self.signature(key, method, path, &body, 0)?;
        self.ask(method, path, &[(api::OPERATOR_SIGNATURE, signature)], body)
    }

    /// A body signed by a machine, or by someone posing as one.
    pub fn post_as(
        &self,
        key: &SecretKey,
        context: keys::Context,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Answered> {
        let signature = key.sign(context, &body).hex();
        self.ask(&Method::POST, path, &[(api::MACHINE_SIGNATURE, signature)], body)
    }

    /// An operator's bearer for the cache.
    pub fn session(&self, key: &SecretKey) -> Result<String> {
        let session: Session =
            self.operate(key, &Method::POST, api::OPERATOR_SESSION, b"null".to_vec())?.read()?;
        Ok(session.bearer)
    }
}

/// A private key without a passphrase.
pub fn key_in(file: &Path) -> Result<SecretKey> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    Ok(SecretKey::from_pem(&text)?)
}
