//! Request bodies: each with a limit of size, and none that stands still.

use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::StreamExt as _;
use muster_protocol::api::ProblemCode;
use serde::de::DeserializeOwned;

use super::problem::{Refused, refuse};

/// How much of a body that is refused is read all the same, in bytes.
const MOST_DRAINED: usize = 8 * 1024 * 1024;

/// A body that comes in pieces.
pub struct Incoming {
    stream: BodyDataStream,
    left: u64,
    limit: u64,
    idle: Duration,
}

impl Incoming {
    /// Refuses what is announced as too large before a byte of it is read.
    pub fn new(headers: &HeaderMap, body: Body, limit: u64, idle: Duration) -> Result<Self, (Refused, Body)> {
        let announced =
            headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > limit) {
            return Err((Refused::too_large(limit), body));
        }
        Ok(Self { stream: body.into_data_stream(), left: limit, limit, idle })
    }

    /// The next piece; none at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Refused> {
        let piece = tokio::time::timeout(self.idle, self.stream.next()).await.map_err(|_| {
            let message = format!("nothing came for {} s: repeat the request", self.idle.as_secs());
            refuse(StatusCode::REQUEST_TIMEOUT, ProblemCode::Other, message)
        })?;
        let Some(piece) = piece else { return Ok(None) };
        let piece =
            piece.map_err(|_| Refused::malformed("the body broke off before its end: repeat the request"))?;
        self.left =
            self.left.checked_sub(piece.len() as u64).ok_or_else(|| Refused::too_large(self.limit))?;
        Ok(Some(piece))
    }
}

/// The whole body, which must arrive within `wait`.
pub async fn whole(headers: &HeaderMap, body: Body, limit: usize, wait: Duration) -> Result<Bytes, Refused> {
    let read = async {
        let mut bytes = Vec::new();
        let mut incoming = match Incoming::new(headers, body, limit as u64, wait) {
            Ok(incoming) => incoming,
            Err((refused, rest)) => return Err(after_draining(headers, rest, refused).await),
        };
        while let Some(piece) = incoming.next().await? {
            bytes.extend_from_slice(&piece);
        }
        Ok(Bytes::from(bytes))
    };
    tokio::time::timeout(wait, read).await.unwrap_or_else(|_| {
        let message = format!("the body did not arrive within {} s: repeat the request", wait.as_secs());
        Err(refuse(StatusCode::REQUEST_TIMEOUT, ProblemCode::Other, message))
    })
}

/// Reads on a little before the refusal is sent: a client that is still writing when the connection closes may never
/// see the answer. One that waits for `100 Continue` has written nothing yet.
async fn after_draining(headers: &HeaderMap, rest: Body, refused: Refused) -> Refused {
    if !headers.contains_key(header::EXPECT) {
        let mut stream = rest.into_data_stream();
        let mut left = MOST_DRAINED;
        while let Some(Ok(piece)) = stream.next().await {
            left = left.saturating_sub(piece.len());
            if left == 0 {
                break;
            }
        }
    }
    refused
}

/// Reads a document, or says in one sentence what is wrong with it.
pub fn json<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(bytes).map_err(|error| {
        let message = if error.is_data() {
            format!("this is not {what}: {error}")
        } else {
            format!("this is not JSON, so it is not {what}: {error}")
        };
        Refused::malformed(message)
    })
}
