//! The only HTTP client: every wait has a limit, every answer a maximum size.

mod error;
mod tls;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_protocol::announce::Announcement;
use muster_protocol::api;
use muster_protocol::checkin::{CheckInReply, PollReply};
use muster_protocol::enrol::{EnrolReply, EnrolRequest};
use muster_protocol::ids::{Generation, MachineName, Sha256};
use muster_protocol::keys::{Context, SecretKey};
use muster_protocol::operator::FleetView;
use muster_protocol::report::{Accepted, Batch};
use muster_protocol::session::Session;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;

pub use self::error::ClientError;
use self::tls::Pinned;
use crate::config::Config;
use crate::identity::Identity;
use crate::surroundings::Proxies;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// From the first byte sent to the last byte read.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// What a long poll gets in addition to the wait that it asks for.
const POLL_GRACE: Duration = Duration::from_secs(15);
/// How long a connection is kept for the next request.
const POOL_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest JSON reply, and the largest problem document.
const MAX_REPLY_BYTES: u64 = 64 * 1024;
/// The longest bearer, in bytes.
const MAX_BEARER: usize = 1024;

/// Carries requests in tests, in place of the network.
#[cfg(test)]
pub trait Wire: Send + Sync {
    /// The answer, or `None` if nobody can be reached. Observes the request's own time limit.
    fn carry(
        self: Arc<Self>,
        request: reqwest::Request,
    ) -> futures_util::future::BoxFuture<'static, Option<Response>>;
}

/// Talks to one controller, as one machine or before enrolment.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    machine: Option<(MachineName, Arc<Mutex<SecretKey>>)>,
    bearer: Arc<Mutex<Option<String>>>,
    limit: Duration,
    #[cfg(test)]
    wire: Option<Arc<dyn Wire>>,
}

impl Client {
    /// The client of an enrolled machine.
    pub fn new(identity: &Identity) -> Result<Self, ClientError> {
        Ok(Self {
            machine: Some((identity.machine.clone(), Arc::new(Mutex::new(identity.key.clone())))),
            ..Self::anonymous(&identity.url, identity.tls_ca.as_deref())?
        })
    }

    /// The client of an enrolled machine, with the administrator's proxy settings.
    pub fn of(config: &Config, identity: &Identity) -> Result<Self, ClientError> {
        let http = http(tls::config(identity.tls_ca.as_deref())?, &Proxies::of(config))?;
        Ok(Self { http, ..Self::new(identity)? })
    }

    /// A client that so far has only an address. `tls_ca` is in PEM.
    pub fn anonymous(url: &str, tls_ca: Option<&str>) -> Result<Self, ClientError> {
        Self::anonymous_by(url, tls_ca, &Proxies::default())
    }

    /// The same, through a proxy.
    pub fn anonymous_by(url: &str, tls_ca: Option<&str>, proxies: &Proxies) -> Result<Self, ClientError> {
        Self::with_tls(url, tls::config(tls_ca)?, proxies)
    }

    fn with_tls(url: &str, tls: rustls::ClientConfig, proxies: &Proxies) -> Result<Self, ClientError> {
        let url = check_url(url)?;
        let http = http(tls, proxies)?;
        Ok(Self {
            http,
            url,
            machine: None,
            bearer: Arc::default(),
            limit: REQUEST_TIMEOUT,
            #[cfg(test)]
            wire: None,
        })
    }

    /// The same client, with its requests sent through this transport.
    #[cfg(test)]
    #[must_use]
    pub fn over(self, wire: Arc<dyn Wire>) -> Self {
        Self { wire: Some(wire), ..self }
    }

    /// A client that trusts only the certificate authority with this hash, which the controller sends in its
    /// chain; and the place where the authority, DER in base64, appears once the controller has answered.
    pub fn anonymous_pinned(
        url: &str,
        hash: &Sha256,
        proxies: &Proxies,
    ) -> Result<(Self, Arc<Pinned>), ClientError> {
        let pinned = Arc::new(Pinned::new(*hash));
        Ok((Self::with_tls(url, tls::pinned(&pinned)?, proxies)?, pinned))
    }

    /// The same client with a different limit for everything except the long poll.
    #[must_use]
    pub fn with_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Sends these bytes as a check-in; from then on uses the bearer in its reply. If they bring a new key,
    /// `next`, it signs them as well, and on success the controller has it; see [`Client::use_key`].
    ///
    /// `by` signs in place of the key in force: a previous key, for a controller that knows no other.
    pub async fn check_in(
        &self,
        body: Vec<u8>,
        next: Option<&SecretKey>,
        by: Option<&SecretKey>,
    ) -> Result<CheckInReply, ClientError> {
        let reply: CheckInReply = self.signed(api::CHECKIN, Context::CheckIn, body, (next, by)).await?;
        self.set_bearer(&reply.bearer)?;
        Ok(reply)
    }

    /// The same in a session, in place of the machine's signature.
    pub async fn check_in_by_session(
        &self,
        body: Vec<u8>,
        session: &Session,
    ) -> Result<CheckInReply, ClientError> {
        let proof = session.prove(api::CHECKIN, &body).to_string();
        let sent = self.request(Method::POST, api::CHECKIN).header(api::MACHINE_SESSION, proof);
        let sent = sent.header("content-type", "application/json").body(body);
        let reply: CheckInReply =
            parse(api::CHECKIN, &self.answer(sent, api::CHECKIN, MAX_REPLY_BYTES).await?)?;
        self.set_bearer(&reply.bearer)?;
        Ok(reply)
    }

    /// Signs with this key from now on.
    pub fn use_key(&self, key: &SecretKey) {
        if let Some((_, held)) = &self.machine {
            *held.lock().unwrap_or_else(PoisonError::into_inner) = key.clone();
        }
    }

    /// The key it signs with.
    pub fn key(&self) -> Option<SecretKey> {
        let (_, key) = self.machine.as_ref()?;
        Some(key.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    pub async fn report(&self, batch: &Batch) -> Result<Accepted, ClientError> {
        let body = serde_json::to_vec(batch).map_err(|error| ClientError::Setup(error.to_string()))?;
        self.signed(api::REPORTS, Context::Reports, body, (None, None)).await
    }

    pub async fn enrol(&self, request: &EnrolRequest) -> Result<EnrolReply, ClientError> {
        let sent = self.request(Method::POST, api::ENROL).json(request);
        parse(api::ENROL, &self.answer(sent, api::ENROL, MAX_REPLY_BYTES).await?)
    }

    /// Waits until the latest generation differs from `have`, at most `wait` seconds.
    pub async fn poll(&self, have: Option<Generation>, wait: u64) -> Result<PollReply, ClientError> {
        let Some((machine, _)) = &self.machine else { return Err(nobody()) };
        let path = api::poll_path(machine, have, wait);
        let sent =
            self.request(Method::GET, &path).timeout(Duration::from_secs(wait).saturating_add(POLL_GRACE));
        parse(&path, &self.answer(sent, &path, MAX_REPLY_BYTES).await?)
    }

    /// The bytes at `path`, at most `max` of them; `None` if there is nothing.
    pub async fn get(&self, path: &str, max: u64) -> Result<Option<Vec<u8>>, ClientError> {
        match self.answer(self.request(Method::GET, path), path, max).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(ClientError::Refused { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks the controller for its name, unauthenticated. Returns its clock in Unix seconds, if it sends one.
    pub async fn probe(&self) -> Result<(FleetView, Option<i64>), ClientError> {
        let request = self.http.get(format!("{}{}", self.url, api::FLEET)).timeout(self.limit);
        let response = request.send().await.map_err(|error| self.unreachable(error))?;
        let date = response.headers().get("date").and_then(|date| date.to_str().ok());
        let clock = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
        let body = self.body(response, api::FLEET, MAX_REPLY_BYTES).await?;
        Ok((parse(api::FLEET, &body)?, clock.map(|clock| clock.timestamp().as_second())))
    }

    /// Uses `bearer` from now on.
    pub fn set_bearer(&self, bearer: &str) -> Result<(), ClientError> {
        check_bearer(bearer)?;
        *self.bearer.lock().unwrap_or_else(PoisonError::into_inner) = Some(bearer.to_owned());
        Ok(())
    }

    /// The answer to a request for a file of any length, once its head has arrived. The reader sets the
    /// limits.
    pub async fn open(&self, path: &str) -> Result<Response, ClientError> {
        let sent = self.with_bearer(self.http.get(format!("{}{path}", self.url))).send();
        let late = || ClientError::Unreachable { url: self.url.clone(), detail: "it does not answer".into() };
        let response = tokio::time::timeout(self.limit, sent).await.map_err(|_| late())?;
        let response = response.map_err(|error| self.unreachable(error))?;
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        let body = self.body(response, path, MAX_REPLY_BYTES);
        tokio::time::timeout(self.limit, body).await.map_err(|_| late())?.and(Err(nobody()))
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    async fn signed<T: DeserializeOwned>(
        &self,
        path: &str,
        context: Context,
        body: Vec<u8>,
        (next, by): (Option<&SecretKey>, Option<&SecretKey>),
    ) -> Result<T, ClientError> {
        let Some((machine, _)) = &self.machine else { return Err(nobody()) };
        let key = by.cloned().or_else(|| self.key()).ok_or_else(nobody)?;
        let mut sent = self
            .request(Method::POST, path)
            .header(api::MACHINE_ANNOUNCES, Announcement::make(machine, path, &body, &key).to_string())
            .header(api::MACHINE_SIGNATURE, key.sign(context, &body).hex())
            .header("content-type", "application/json");
        if let Some(next) = next {
            let by_next = next.sign(Context::KeyRotation, &body).hex();
            sent = sent.header(api::MACHINE_NEW_SIGNATURE, by_next);
        }
        let sent = sent.body(body);
        parse(path, &self.answer(sent, path, MAX_REPLY_BYTES).await?)
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.with_bearer(self.http.request(method, format!("{}{path}", self.url)).timeout(self.limit))
    }

    fn with_bearer(&self, request: RequestBuilder) -> RequestBuilder {
        let bearer = self.bearer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match bearer {
            Some(bearer) => request.bearer_auth(bearer),
            None => request,
        }
    }

    async fn answer(&self, request: RequestBuilder, path: &str, max: u64) -> Result<Vec<u8>, ClientError> {
        let response = self.send(request).await?;
        self.body(response, path, max).await
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        #[cfg(test)]
        if let Some(wire) = &self.wire {
            let request = request.build().map_err(|error| self.unreachable(error))?;
            let cut = || ClientError::Unreachable { url: self.url.clone(), detail: "the wire is cut".into() };
            return Arc::clone(wire).carry(request).await.ok_or_else(cut);
        }
        request.send().await.map_err(|error| self.unreachable(error))
    }

    /// Reads an answer; a body that exceeds `max` bytes is an error at once.
    async fn body(&self, mut response: Response, path: &str, max: u64) -> Result<Vec<u8>, ClientError> {
        let status = response.status();
        let retry_after =
            response.headers().get("retry-after").and_then(|value| api::retry_after(value.to_str().ok()?));
        let limit = if status.is_success() { max } else { MAX_REPLY_BYTES };
        if response.content_length().is_some_and(|length| length > limit) {
            return Err(ClientError::TooLarge { path: path.to_owned(), limit });
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unreachable(error))? {
            if body.len().saturating_add(chunk.len()) as u64 > limit {
                return Err(ClientError::TooLarge { path: path.to_owned(), limit });
            }
            body.extend_from_slice(&chunk);
        }
        if status == StatusCode::OK {
            return Ok(body);
        }
        let problem = serde_json::from_slice(&body).ok();
        Err(ClientError::Refused { status: status.as_u16(), problem, retry_after })
    }

    fn unreachable(&self, error: reqwest::Error) -> ClientError {
        ClientError::Unreachable { url: self.url.clone(), detail: chain(&error.without_url()) }
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client of {}", self.url)
    }
}

fn nobody() -> ClientError {
    ClientError::Setup("this machine is not enrolled; run muster-agent enrol -".into())
}

fn parse<T: DeserializeOwned>(path: &str, body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body)
        .map_err(|error| ClientError::Malformed { path: path.to_owned(), detail: error.to_string() })
}

/// It becomes part of a header: a blank or a line break in it would change the header's meaning.
#[doc(hidden)]
pub fn check_bearer(bearer: &str) -> Result<(), ClientError> {
    if bearer.is_empty() || bearer.len() > MAX_BEARER || !bearer.bytes().all(|b| b.is_ascii_graphic()) {
        let detail = "the bearer is too long or has invalid characters".to_owned();
        return Err(ClientError::Malformed { path: api::CHECKIN.into(), detail });
    }
    Ok(())
}

/// An address without a slash at the end: `https://`, or `http://` on loopback.
fn check_url(url: &str) -> Result<String, ClientError> {
    let wrong = |detail| ClientError::Address { url: url.to_owned(), detail };
    let parsed =
        reqwest::Url::parse(url).map_err(|_| wrong("it must be a URL such as https://muster.example"))?;
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(wrong("it must not carry a name or a password"));
    }
    if parsed.query().is_some() || parsed.fragment().is_some() {
        return Err(wrong("it must end with its path"));
    }
    match parsed.scheme() {
        "https" if parsed.host_str().is_some_and(|host| !host.is_empty()) => {}
        "http" if parsed.host_str().is_some_and(api::is_loopback) => {}
        "http" => return Err(wrong("http:// is for loopback only; use https://")),
        _ => return Err(wrong("it must begin with https://")),
    }
    Ok(url.trim().trim_end_matches('/').to_owned())
}

fn http(tls: rustls::ClientConfig, proxies: &Proxies) -> Result<reqwest::Client, ClientError> {
    let failed = |error: reqwest::Error| ClientError::Setup(chain(&error.without_url()));
    let builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .connect_timeout(CONNECT_TIMEOUT)
        // A bearer is sent only to the controller named at enrolment: no redirects.
        .redirect(reqwest::redirect::Policy::none())
        // As many as Nix keeps: each path description is a request of its own.
        .pool_max_idle_per_host(25)
        .pool_idle_timeout(POOL_TIMEOUT)
        .user_agent(concat!("muster-agent/", env!("CARGO_PKG_VERSION")));
    proxies.set(builder).and_then(reqwest::ClientBuilder::build).map_err(failed)
}

/// An error with its causes: reqwest's own text only says that something failed.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
