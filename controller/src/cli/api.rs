//! The operators' API as the command line calls it: every request signed, every answer bounded.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use muster_protocol::api::{FLEET, OPERATOR_SIGNATURE, Problem, ProblemCode, is_loopback};
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::Sha256;
use muster_protocol::keys::SecretKey;
use muster_protocol::operator::{FleetView, Request, RequestSignature};
use muster_protocol::random;
use reqwest::{Method, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::config::Config;
use super::error::WithHint as _;
use super::{keyfile, tls};

/// The largest answer that is read, in bytes: 10,000 machines at 2 KiB and room.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
const REQUEST_LIMIT: Duration = Duration::from_secs(60);
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// What the controller answered instead of a success.
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
    key: SecretKey,
    pub clock: SystemClock,
}

impl Api {
    /// Opens the operator's key; asks nothing of the network yet.
    pub fn open(config: &Config) -> Result<Self> {
        let url = parse_url(&config.file.url)?;
        let ca = match &config.file.tls_ca {
            None => None,
            Some(path) => {
                let path = config.path(path);
                let pem = std::fs::read(&path)
                    .with_context(|| format!("cannot read the certificate authority {}", path.display()))?;
                Some(tls::certificate_der(&pem).with_context(|| path.display().to_string())?)
            }
        };
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::client_config(ca)?)
            .connect_timeout(CONNECT_LIMIT)
            .user_agent(concat!("muster/", env!("CARGO_PKG_VERSION")))
            .build()
            .context("cannot set up the HTTP client")?;
        let key = keyfile::read(&config.path(&config.file.operator_key))?;
        Ok(Self { http, url, fleet: config.file.fleet, key, clock: SystemClock::new() })
    }

    pub fn key(&self) -> &SecretKey {
        &self.key
    }
    pub fn url(&self) -> &Url {
        &self.url
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.send(Method::GET, path, Vec::new(), REQUEST_LIMIT).await
    }
    /// A long poll: waits `wait` longer than other requests.
    pub async fn get_waiting<T: DeserializeOwned>(&self, path: &str, wait: Duration) -> Result<T> {
        self.send(Method::GET, path, Vec::new(), REQUEST_LIMIT + wait).await
    }
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.send(Method::POST, path, serde_json::to_vec(body)?, REQUEST_LIMIT).await
    }

    /// The controller's fleet, once it is known to be the operator's.
    pub async fn fleet(&self) -> Result<FleetView> {
        let view: FleetView = self.get(FLEET).await?;
        if view.fleet != self.fleet {
            return Err(anyhow!(
                "the controller at {} serves another fleet ({}, not {})",
                self.url,
                view.fleet.short(),
                self.fleet.short()
            ))
            .hint("correct url in muster.toml, or use the muster.toml of that fleet with --config");
        }
        Ok(view)
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        limit: Duration,
    ) -> Result<T> {
        let request = Request { audience: &self.fleet, method: method.as_str(), path, body: &body };
        let nonce = random::bytes::<16>()?;
        let signature = RequestSignature::make(&self.key, request, self.clock.unix_seconds(), nonce);
        let url = self.url.join(path).with_context(|| format!("'{path}' is no path"))?;
        let answer = self
            .http
            .request(method, url)
            .header(OPERATOR_SIGNATURE, serde_json::to_string(&signature)?)
            .header("content-type", "application/json")
            .timeout(limit)
            .body(body)
            .send()
            .await;
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                return Err(error.without_url())
                    .with_context(|| format!("cannot reach the controller at {}", self.url))
                    .hint("see that `muster serve` runs there and that url in muster.toml is right");
            }
        };
        let status = answer.status();
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.context("the controller's answer broke off")? {
            if bytes.len() + chunk.len() > MAX_ANSWER {
                return Err(anyhow!("the controller's answer has more than {MAX_ANSWER} bytes"));
            }
            bytes.extend_from_slice(&chunk);
        }
        if !status.is_success() {
            return Err(refused(status, &bytes));
        }
        serde_json::from_slice(&bytes)
            .with_context(|| format!("the answer of {} to {path} is not what this version reads", self.url))
            .hint("see that url in muster.toml names a Muster controller of this version or newer")
    }
}

fn refused(status: StatusCode, body: &[u8]) -> anyhow::Error {
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => anyhow::Error::new(Refused { status, code: problem.code, message: problem.message }),
        Err(_) => anyhow!("the controller answered {status}, and not as Muster does"),
    }
}

/// A URL that signed requests may go to: https, or http on this very machine.
pub fn parse_url(text: &str) -> Result<Url> {
    let url = Url::parse(text)
        .with_context(|| format!("'{text}' is no URL"))
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
mod tests {
    use super::*;

    #[test]
    fn http_is_for_this_machine_alone() {
        for good in
            ["https://muster.example:8443", "http://127.0.0.1:80", "http://[::1]:80", "http://localhost"]
        {
            assert!(parse_url(good).is_ok(), "{good}");
        }
        for bad in ["http://muster.example", "http://10.0.0.1", "ftp://127.0.0.1", "muster", "https://"] {
            assert!(parse_url(bad).is_err(), "{bad}");
        }
    }
}
