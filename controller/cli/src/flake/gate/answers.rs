//! The controller's answers, limited in time and size, and why Nix gets nothing.

use std::fmt;
use std::time::Duration;

use axum::http::StatusCode;
use bytes::Bytes;
use muster_protocol::api;
use muster_protocol::ids::StorePath;

/// How much of a refusal is passed on.
pub const MAX_REFUSAL: usize = api::MAX_MESSAGE_BYTES;

/// Why something was withheld from Nix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The content is not what it claims to be.
    Altered(String),
    /// It may be sound, but only somebody's word says so.
    Unnamed(StorePath),
    /// The controller, or the network, failed.
    Away(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Altered(why) | Self::Away(why) => f.write_str(why),
            Self::Unnamed(path) => write!(f, "{path} is not named by its content"),
        }
    }
}

/// Why Nix gets nothing.
pub enum Stop {
    Nothing,
    Status(StatusCode, Bytes),
    For(Trouble),
}

pub fn altered(why: String) -> Stop {
    Stop::For(Trouble::Altered(why))
}
pub fn slow(what: impl fmt::Display, wait: Duration) -> Stop {
    Stop::For(Trouble::Away(format!("the controller is too slow: {what} within {} s", wait.as_secs())))
}

pub async fn sent(request: reqwest::RequestBuilder, wait: Duration) -> Result<reqwest::Response, Stop> {
    let sent = tokio::time::timeout(wait, request.send()).await;
    sent.map_err(|_| slow("it does not answer", wait))?.map_err(away)
}

pub fn away(error: reqwest::Error) -> Stop {
    let error = anyhow::Error::new(error.without_url());
    Stop::For(Trouble::Away(format!("cannot reach the controller: {error:#}")))
}

/// Returns a success. Any other answer is passed on as its status and a short message; redirects are not
/// followed.
pub async fn good(mut answer: reqwest::Response, wait: Duration) -> Result<reqwest::Response, Stop> {
    match answer.status() {
        status if status.is_success() => Ok(answer),
        StatusCode::NOT_FOUND => Err(Stop::Nothing),
        status if status.is_client_error() || status.is_server_error() => {
            let message = tokio::time::timeout(wait, bounded(&mut answer, MAX_REFUSAL)).await;
            let message = message.map_err(|_| slow("it does not say why it refuses", wait))??;
            Err(Stop::Status(status, message.unwrap_or_default()))
        }
        status => Err(altered(format!("the controller answers {status}, and not as Muster does"))),
    }
}

/// The whole answer; `None` if it is longer.
pub async fn bounded(answer: &mut reqwest::Response, max: usize) -> Result<Option<Bytes>, Stop> {
    let mut bytes = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(away)? {
        if bytes.len() + piece.len() > max {
            return Ok(None);
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(Some(bytes.into()))
}
