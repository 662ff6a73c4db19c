//! Every refusal is one sentence in JSON, with a code that programs can act on.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use muster_protocol::api::{Problem, ProblemCode};

use crate::metrics::COUNTED;

/// An error response.
#[derive(Debug, Clone)]
pub struct Refused {
    pub status: StatusCode,
    pub code: ProblemCode,
    pub message: String,
    /// When to retry, in seconds.
    retry_after: Option<u64>,
    /// Over how many seconds those who are told the same at one moment come back; `None` for as many as they
    /// wait.
    spread: Option<u64>,
    /// True if it is not the controller's error and anybody can cause any number of them.
    expected: bool,
    /// Whether the connection closes after the response.
    closes: bool,
}

pub fn refuse(status: StatusCode, code: ProblemCode, message: impl Into<String>) -> Refused {
    let retry_after = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(5);
    Refused {
        status,
        code,
        message: message.into(),
        retry_after,
        spread: None,
        expected: false,
        closes: false,
    }
}

impl Refused {
    /// The same, with the time to retry after.
    pub fn again_in(self, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }
    /// The same, told to come back at any time within this many seconds after that.
    pub fn spread_over(self, seconds: u64) -> Self {
        Self { spread: Some(seconds), ..self }
    }
    /// The same, with the connection closed after it.
    pub fn closing(self) -> Self {
        Self { closes: true, ..self }
    }
    /// One party uses too much: not logged as an error, since one party must not fill the log.
    pub fn busy(message: &str) -> Self {
        let refused = refuse(StatusCode::SERVICE_UNAVAILABLE, ProblemCode::Busy, message);
        Self { expected: true, ..refused }
    }
    /// Too many connections of one party: this one is closed.
    pub fn too_many_connections() -> Self {
        let message = "too many connections of this machine or operator are open: close some";
        let refused = refuse(StatusCode::TOO_MANY_REQUESTS, ProblemCode::TooMany, message);
        Self { retry_after: Some(5), ..refused.closing() }
    }
    /// Its handler has panicked, or the controller stops.
    pub fn unfinished() -> Self {
        let message = "the controller could not finish this: repeat it in a moment";
        refuse(StatusCode::INTERNAL_SERVER_ERROR, ProblemCode::Internal, message)
    }
    pub fn malformed(message: impl Into<String>) -> Self {
        refuse(StatusCode::BAD_REQUEST, ProblemCode::Malformed, message)
    }
    pub fn not_found(message: impl Into<String>) -> Self {
        refuse(StatusCode::NOT_FOUND, ProblemCode::NotFound, message)
    }
    pub fn unauthorised(message: impl Into<String>) -> Self {
        refuse(StatusCode::UNAUTHORIZED, ProblemCode::Unauthorised, message)
    }
    /// Too many requests; another is allowed after `wait`.
    pub fn too_many(who: &str, wait: Duration) -> Self {
        // At least one second, and rounded up: a client that retries too early waits again.
        let seconds = wait.as_secs() + 1;
        let message = format!("{who} sends more requests than the controller accepts: repeat in {seconds} s");
        let refused = refuse(StatusCode::TOO_MANY_REQUESTS, ProblemCode::TooMany, message);
        Self { retry_after: Some(seconds), ..refused }
    }
    pub fn too_large(limit: u64) -> Self {
        let message = format!("this is larger than the {limit} bytes that the controller accepts here");
        refuse(StatusCode::PAYLOAD_TOO_LARGE, ProblemCode::TooLarge, message)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        COUNTED.refused(self.code);
        if self.status.is_server_error() && !self.expected {
            tracing::error!(status = self.status.as_u16(), "{}", self.message);
        } else {
            tracing::debug!(status = self.status.as_u16(), "{}", self.message);
        }
        let (status, retry_after, closes) = (self.status, self.retry_after, self.closes);
        let spread = self.spread.or(retry_after);
        let problem = Problem { code: self.code, message: self.message };
        let mut response = (status, Json(problem)).into_response();
        let headers = response.headers_mut();
        if status == StatusCode::UNAUTHORIZED {
            // Nix's curl sends the password in its netrc only if HTTP Basic is requested (RFC 7617).
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"muster\""));
        }
        if closes {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(seconds) = spread {
            response.extensions_mut().insert(Spread(seconds));
        }
        response
    }
}

/// Over how many seconds the receivers of a response come back, counted from its `Retry-After`.
#[derive(Debug, Clone, Copy)]
pub struct Spread(pub u64);
