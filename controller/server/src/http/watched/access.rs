//! One line in the log for each request, all of whose lines carry its ID.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::Response;
use muster_protocol::api::{REQUEST_ID, request_id};
use muster_protocol::clock::Clock;
use muster_protocol::ids::to_hex;
use muster_protocol::random;
use tracing::Span;

use crate::metrics::{COUNTED, Door};

/// Requests that take longer are logged at the usual level.
const SLOW: Duration = Duration::from_secs(1);

/// The most of a path that is logged, in bytes.
const MOST_PATH: usize = 256;

/// The ID of a request: the client's, if it is a plain word, or the trace ID of its `traceparent`
/// (W3C Trace Context), or a number of our own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(String);

impl RequestId {
    pub fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(REQUEST_ID).and_then(|id| request_id(id.to_str().ok()?));
        let traced = || headers.get("traceparent").and_then(|value| trace_id(value.to_str().ok()?));
        Self(given.or_else(traced).map_or_else(own, str::to_owned))
    }

    /// For its span, and for the client that is refused.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Tells a refused client the ID.
    pub fn tell(&self, response: &mut Response) {
        if let Ok(id) = HeaderValue::from_str(&self.0) {
            response.headers_mut().insert(REQUEST_ID, id);
        }
    }
}

/// The trace ID of `VERSION-TRACE-PARENT-FLAGS`.
fn trace_id(value: &str) -> Option<&str> {
    let mut parts = value.split('-');
    let (version, trace) = (parts.next()?, parts.next()?);
    let hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let sound = version.len() == 2 && hex(version) && trace.len() == 32 && hex(trace);
    (sound && trace.bytes().any(|byte| byte != b'0')).then_some(trace)
}

/// A number that no other request of this process has, after some digits of the process's own.
fn own() -> String {
    static PROCESS: OnceLock<String> = OnceLock::new();
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let process = PROCESS.get_or_init(|| random::bytes::<4>().map_or_else(|_| String::new(), |b| to_hex(&b)));
    format!("{process}{:08x}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A request that is being answered.
pub struct Access {
    method: Method,
    path: String,
    door: Door,
    began: Duration,
    pub id: RequestId,
}

impl Access {
    pub fn new(request: &Request, clock: &dyn Clock) -> Self {
        let path = request.uri().path().to_owned();
        Self {
            method: request.method().clone(),
            door: Door::of(&path),
            path,
            began: clock.awake(),
            id: RequestId::of(request.headers()),
        }
    }

    /// The span of what is logged about it. Long polls have none: thousands wait at a time, and hardly
    /// anything is logged about them.
    pub fn span(&self) -> Span {
        if self.door.waits() { Span::none() } else { tracing::info_span!("request", id = self.id.as_str()) }
    }

    /// Logs and counts the answer.
    pub fn answered(&self, response: &mut Response, clock: &dyn Clock) {
        let took = clock.awake().saturating_sub(self.began);
        let (status, ms, id) = (response.status().as_u16(), took.as_millis(), self.id.as_str());
        COUNTED.answered(self.door, status, took);
        let path = beginning(&self.path);
        // What is told to come later is held back on purpose, and whoever floods does not fill the log too.
        let slow = took > SLOW && !self.door.waits() && response.status() != StatusCode::TOO_MANY_REQUESTS;
        if slow {
            tracing::info!(method = %self.method, path, status, ms, id, "answered slowly");
        } else {
            tracing::debug!(method = %self.method, path, status, ms, id, "answered");
        }
        if !response.status().is_success() {
            self.id.tell(response);
        }
    }
}

/// As much of a path as the log has room for: nothing of ours is longer.
fn beginning(path: &str) -> &str {
    path.get(..path.floor_char_boundary(MOST_PATH)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(headers: &[(&'static str, &str)]) -> String {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        RequestId::of(&map).0
    }

    #[test]
    fn a_plain_id_of_the_client_is_kept_and_anything_else_is_replaced() {
        assert_eq!(id(&[("x-request-id", "deploy-7_a.b")]), "deploy-7_a.b");
        for bad in ["", "two words", "x\"y", "caf\u{e9}", &"x".repeat(65)] {
            assert_ne!(id(&[("x-request-id", bad)]), bad);
        }
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let parent = format!("00-{trace}-00f067aa0ba902b7-01");
        assert_eq!(id(&[("traceparent", &parent)]), trace);
        assert_eq!(id(&[("traceparent", &parent), ("x-request-id", "mine")]), "mine");
        let nothing = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
        for bad in [nothing.as_str(), "00-4bf9-1-01", "", "zz-4bf92f3577b34da6a3ce929d0e0e4736-1-01"] {
            assert_ne!(id(&[("traceparent", bad)]), trace);
        }
    }

    #[test]
    fn of_a_long_path_the_beginning_is_logged() {
        let long = format!("/v1/{}", "\u{e9}".repeat(30_000));
        let shown = beginning(&long);
        assert!(long.starts_with(shown) && (MOST_PATH - 1..=MOST_PATH).contains(&shown.len()));
        assert_eq!(beginning("/v1/checkin"), "/v1/checkin");
    }

    #[test]
    fn no_two_requests_have_the_same_id() {
        let (one, two) = (id(&[]), id(&[]));
        assert_ne!(one, two);
        assert_eq!(request_id(&one), Some(one.as_str()));
    }
}
