//! The client of the operators' API: every request is signed, every answer is bounded.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use muster_protocol::api::{
    self, FLEET, OPERATOR_SIGN_IN, OPERATOR_SIGNATURE, Problem, ProblemCode, is_loopback,
};
use muster_protocol::clock::SystemClock;
use muster_protocol::ids::Sha256;
use muster_protocol::keys::{PublicKey, Signer};
use muster_protocol::operator::{FleetView, Request};
use reqwest::{Method, StatusCode, Url};
use rustls::CertificateError;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::signing::{By, Signing};
use super::tls;
use crate::config::Config;
use crate::flake::gate::Cache;
use crate::terminal::error::{Hint, WithHint as _};

/// The largest answer accepted, in bytes: 10,000 machines at 2 KiB, with room to spare.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
const MAX_FLEET_BYTES: usize = 64 * 1024;
const REQUEST_LIMIT: Duration = Duration::from_secs(60);
/// A large body gets another second for every so many bytes.
const PACE: usize = 64 * 1024;
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long all waits asked for by `Retry-After` may take together: a controller that limits requests will
/// take them later; one that cannot serve may not recover, unless its database is moving to another server.
/// Only waits count: before it says that it cannot serve, it tries for a while.
const PATIENCE: Duration = Duration::from_secs(120);
const SHORT_PATIENCE: Duration = Duration::from_secs(60);

/// An answer other than success.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    pub status: StatusCode,
    pub code: ProblemCode,
    pub message: String,
}

pub struct Api {
    http: reqwest::Client,
    url: Url,
    fleet: Sha256,
    signing: Signing,
    pub clock: SystemClock,
}

/// How one request ended.
enum Answer {
    Good(Vec<u8>),
    Refused(anyhow::Error),
    /// The controller asks the client to wait and try again.
    Later {
        status: StatusCode,
        wait: Duration,
        error: anyhow::Error,
    },
}

/// How long a request has waited because the controller asked it to.
#[derive(Default)]
struct Waits(Duration);

impl Waits {
    /// Waits as long as the answer asks for; an error if it asks for nothing, or for more than anybody would
    /// sit out.
    async fn wait(&mut self, status: StatusCode, wait: Option<Duration>, error: anyhow::Error) -> Result<()> {
        let patience = match status {
            StatusCode::TOO_MANY_REQUESTS => PATIENCE,
            StatusCode::SERVICE_UNAVAILABLE => SHORT_PATIENCE,
            _ => return Err(error),
        };
        let Some(wait) = wait.filter(|wait| self.0 + *wait <= patience) else { return Err(error) };
        self.0 += wait;
        tell!("The controller asks for {} s of patience: {error}", wait.as_secs());
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

impl Api {
    /// Opens the operator's key; does not use the network yet.
    pub fn open(config: &Config) -> Result<Self> {
        Self::open_with(config, config.operator_key().open()?)
    }

    /// The same, with a key that is already open.
    pub fn open_with(config: &Config, key: Arc<dyn Signer>) -> Result<Self> {
        Self::make(config, Signing::with(config, key))
    }

    /// For commands that only read: uses a signed-in key where the operator's own would prompt.
    pub fn to_read(config: &Config) -> Result<Self> {
        Self::make(config, Signing::to_read(config)?)
    }

    fn make(config: &Config, signing: Signing) -> Result<Self> {
        let url = parse_url(&config.file.url)?;
        let ca = match &config.file.tls_ca {
            None => None,
            Some(path) => {
                let path = config.path(path);
                let pem = std::fs::read(&path)
                    .with_context(|| format!("cannot read the certificate authority {}", path.display()))
                    .hint(
                        "set tls_ca in muster.toml to the certificate that `muster init` wrote as ca.pem",
                    )?;
                Some(tls::certificate_der(&pem).with_context(|| path.display().to_string())?)
            }
        };
        Ok(Self { http: client(ca)?, url, fleet: config.file.fleet, signing, clock: SystemClock::new() })
    }

    /// The operator's own key, for signatures that last.
    pub fn key(&self) -> Result<Arc<dyn Signer>> {
        self.signing.own()
    }
    /// The operator whose requests these are.
    pub fn public(&self) -> Result<PublicKey> {
        self.signing.public()
    }
    pub fn url(&self) -> &Url {
        &self.url
    }
    /// The controller's cache, accessed with this bearer.
    pub fn cache(&self, bearer: String) -> Cache {
        Cache::new(self.http.clone(), self.url.clone(), bearer)
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(Method::GET, path, Vec::new(), REQUEST_LIMIT).await
    }
    /// A long poll: waits `wait` longer than other requests.
    pub async fn get_waiting<T: DeserializeOwned>(&self, path: &str, wait: Duration) -> Result<T> {
        self.ask(Method::GET, path, Vec::new(), REQUEST_LIMIT + wait).await
    }
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        let body = serde_json::to_vec(body)?;
        let limit = REQUEST_LIMIT + Duration::from_secs((body.len() / PACE) as u64);
        self.ask(Method::POST, path, body, limit).await
    }

    /// The controller's fleet, checked against the operator's.
    pub async fn fleet(&self) -> Result<FleetView> {
        let view: FleetView = self.get(FLEET).await?;
        if view.fleet != self.fleet {
            return Err(self.foreign(&view));
        }
        Ok(view)
    }

    fn foreign(&self, view: &FleetView) -> anyhow::Error {
        anyhow!(
            "the controller at {} serves another fleet ({}, not {})",
            self.url,
            view.fleet.short(),
            self.fleet.short()
        )
        .context(Hint(
            "correct url in muster.toml, or use the muster.toml of that fleet with --config".to_owned(),
        ))
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        limit: Duration,
    ) -> Result<T> {
        match self.send(method, path, body, limit).await {
            Err(error) => Err(self.explained(error).await),
            answer => answer,
        }
    }

    /// A controller of another fleet does not know this fleet's keys, and can only say so.
    async fn explained(&self, error: anyhow::Error) -> anyhow::Error {
        let is_of_keys = error.downcast_ref::<Refused>().is_some_and(|refused| {
            matches!(refused.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
        });
        if !is_of_keys {
            return error;
        }
        let fleet = self.public_file(FLEET, MAX_FLEET_BYTES).await.ok().flatten();
        match fleet.and_then(|bytes| serde_json::from_slice::<FleetView>(&bytes).ok()) {
            Some(view) if view.fleet != self.fleet => self.foreign(&view),
            _ => error,
        }
    }

    /// A public file of at most `max` bytes; `None` if there is none.
    pub async fn public_file(&self, path: &str, max: usize) -> Result<Option<Vec<u8>>> {
        self.file(path, max, None).await
    }

    /// The same, with a bearer if one is given.
    pub async fn file(&self, path: &str, max: usize, bearer: Option<&str>) -> Result<Option<Vec<u8>>> {
        let url = self.url.join(path).with_context(|| format!("'{path}' is not a path"))?;
        let mut waits = Waits::default();
        loop {
            let request = self.http.get(url.clone()).timeout(REQUEST_LIMIT);
            let request = match bearer {
                Some(bearer) => request.bearer_auth(bearer),
                None => request,
            };
            let mut answer = request.send().await.map_err(|error| self.unreachable(error))?;
            let (status, wait) = (answer.status(), retry_after(&answer));
            let bytes = read(&mut answer, max).await?;
            match status {
                StatusCode::NOT_FOUND => return Ok(None),
                status if status.is_success() => return Ok(Some(bytes)),
                _ => waits.wait(status, wait, refused(&answer, &bytes)).await?,
            }
        }
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        limit: Duration,
    ) -> Result<T> {
        let mut waits = Waits::default();
        let bytes = loop {
            let by = self.signing.by(&method)?;
            match self.send_once(&by, &method, path, &body, limit).await? {
                Answer::Good(bytes) => {
                    // Public data proves nothing.
                    if path != FLEET {
                        self.signing.taken(&by);
                    }
                    break bytes;
                }
                Answer::Refused(error) => {
                    let code = error.downcast_ref::<Refused>().map(|refused| refused.code);
                    if !self.signing.refused(&by, code) {
                        return Err(error);
                    }
                }
                Answer::Later { status, wait, error } => waits.wait(status, Some(wait), error).await?,
            }
        };
        serde_json::from_slice(&bytes)
            .with_context(|| format!("the answer of {} to {path} is not what this version reads", self.url))
            .hint("see that url in muster.toml names a Muster controller of this version or newer")
    }

    /// Signs each attempt anew, so that no request counts twice.
    async fn send_once(
        &self,
        by: &By,
        method: &Method,
        path: &str,
        body: &[u8],
        limit: Duration,
    ) -> Result<Answer> {
        let request = Request { audience: &self.fleet, method: method.as_str(), path, body };
        let (signature, sign_in) = by.sign(request)?;
        let url = self.url.join(path).with_context(|| format!("'{path}' is not a path"))?;
        let mut sent = self
            .http
            .request(method.clone(), url)
            .header(OPERATOR_SIGNATURE, serde_json::to_string(&signature)?)
            .header("content-type", "application/json")
            .timeout(limit);
        if let Some(sign_in) = sign_in {
            sent = sent.header(OPERATOR_SIGN_IN, sign_in);
        }
        let mut answer = sent.body(body.to_vec()).send().await.map_err(|error| self.unreachable(error))?;
        let (status, wait) = (answer.status(), retry_after(&answer));
        let bytes = read(&mut answer, MAX_ANSWER).await?;
        Ok(match (status, wait) {
            (status, _) if status.is_success() => Answer::Good(bytes),
            (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, Some(wait)) => {
                Answer::Later { status, wait, error: refused(&answer, &bytes) }
            }
            _ => Answer::Refused(refused(&answer, &bytes)),
        })
    }

    fn unreachable(&self, error: reqwest::Error) -> anyhow::Error {
        let hint = hint_about(&error);
        anyhow::Error::new(error.without_url())
            .context(format!("cannot reach the controller at {}", self.url))
            .context(Hint(hint.to_owned()))
    }
}

/// What to do if a controller cannot be reached.
fn hint_about(error: &(dyn std::error::Error + 'static)) -> &'static str {
    match certificate_error(error) {
        None => "see that `muster serve` runs there and that url in muster.toml is right",
        Some(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) => {
            "the certificate there is for another name: see that url in muster.toml is right"
        }
        Some(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => "see that this computer's clock is right, and renew the controller's certificate if it is",
        Some(_) => {
            "the certificate there is not by the expected authority: set tls_ca in muster.toml to the \
             ca.pem that `muster init` wrote for this controller, or leave it out if a public \
             authority signed the certificate; if that is right, somebody else answers there"
        }
    }
}

/// Why the controller's certificate is refused, if that is it.
fn certificate_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a CertificateError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(rustls::Error::InvalidCertificate(why)) = error.downcast_ref() {
            return Some(why);
        }
        // An I/O error names the source of what it holds, and not that itself.
        let held = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = held.map(|held| held as &(dyn std::error::Error + 'static)).or_else(|| error.source());
    }
    None
}

fn client(ca: Option<Vec<u8>>) -> Result<reqwest::Client> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls::client_config(ca)?)
        .connect_timeout(CONNECT_LIMIT)
        // Signed requests go to the controller named in muster.toml and are never redirected.
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("muster/", env!("CARGO_PKG_VERSION")))
        .build()
        .context("cannot set up the HTTP client")
}

fn retry_after(answer: &reqwest::Response) -> Option<Duration> {
    api::retry_after(answer.headers().get("retry-after")?.to_str().ok()?)
}

/// The whole answer; an error as soon as more than `max` bytes arrive.
async fn read(answer: &mut reqwest::Response, max: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.context("the controller's answer broke off")? {
        if bytes.len() + chunk.len() > max {
            return Err(anyhow!("the controller's answer has more than {max} bytes")).hint(
                "see that url in muster.toml names a Muster controller; nothing of the answer was kept",
            );
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn refused(answer: &reqwest::Response, body: &[u8]) -> anyhow::Error {
    let status = answer.status();
    match serde_json::from_slice::<Problem>(body) {
        Ok(Problem { code, mut message }) => {
            // What failed is in the controller's log, under the request's ID.
            let id = answer.headers().get(api::REQUEST_ID).and_then(|id| api::request_id(id.to_str().ok()?));
            if let Some(id) = id.filter(|_| status.is_server_error()) {
                message = format!("{message} (request {id} in the controller's log)");
            }
            anyhow::Error::new(Refused { status, code, message })
        }
        Err(_) => anyhow!("the controller answered {status}, and not as Muster does")
            .context(Hint(api::advice_about_a_stranger(status.as_u16()).to_owned())),
    }
}

/// A URL that signed requests may be sent to: https, or http on this machine.
pub fn parse_url(text: &str) -> Result<Url> {
    let url = Url::parse(text)
        .with_context(|| format!("'{text}' is not a URL"))
        .hint("write it as https://HOST:PORT")?;
    let loopback = url.host_str().is_some_and(is_loopback);
    match url.scheme() {
        "https" if url.has_host() => Ok(url),
        "http" if loopback => Ok(url),
        _ => Err(anyhow!("'{text}' is neither https nor on this machine"))
            .hint("write it as https://HOST:PORT; http is for 127.0.0.1, [::1] and localhost alone"),
    }
}

#[cfg(test)]
pub mod tests;
