//! Those who are told to come later at the same moment come back at different ones.

use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::sync::Arc;

use axum::extract::Request;
use axum::http::header;
use axum::response::Response;
use muster_protocol::api::{MACHINE_ANNOUNCES, MAX_RETRY_AFTER_SECONDS};

use super::connection::peer::Peer;
use super::problem::Spread;

/// What tells callers apart: where a request comes from, and what it asks for, since a proxy's callers share
/// few connections.
pub fn caller(request: &Request) -> u64 {
    let mut hasher = DefaultHasher::new();
    request.extensions().get::<Arc<Peer>>().map(|peer| peer.source).hash(&mut hasher);
    request.uri().path().hash(&mut hasher);
    request.headers().get(MACHINE_ANNOUNCES).map(|value| value.as_bytes()).hash(&mut hasher);
    hasher.finish()
}

/// Some number of seconds between `least` and `within` more than that: always the same for one caller.
pub fn later(least: u64, within: u64, caller: u64) -> u64 {
    let more = caller.checked_rem(within.saturating_add(1)).unwrap_or(0);
    least.saturating_add(more).min(MAX_RETRY_AFTER_SECONDS.max(least))
}

/// Moves the response's `Retry-After`.
pub fn out(response: &mut Response, caller: u64) {
    let Some(Spread(within)) = response.extensions().get().copied() else { return };
    let asked = response.headers().get(header::RETRY_AFTER);
    if let Some(least) = asked.and_then(|value| value.to_str().ok()?.parse().ok()) {
        response.headers_mut().insert(header::RETRY_AFTER, later(least, within, caller).into());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_thousand_who_are_told_the_same_come_back_over_the_whole_of_that_time_and_never_earlier() {
        let mut at = BTreeMap::new();
        for port in 0..1000_u16 {
            let mut hasher = DefaultHasher::new();
            ("192.0.2.1", port).hash(&mut hasher);
            *at.entry(later(5, 5, hasher.finish())).or_insert(0) += 1;
        }
        assert_eq!(at.keys().copied().collect::<Vec<_>>(), [5, 6, 7, 8, 9, 10]);
        assert!(at.values().all(|many| *many < 300), "{at:?}");
    }

    #[test]
    fn nobody_is_sent_away_for_longer_than_agents_believe() {
        assert_eq!(later(400, 400, 400), MAX_RETRY_AFTER_SECONDS);
        assert_eq!(later(7, 0, u64::MAX), 7);
        assert_eq!(later(u64::MAX, u64::MAX, 3), u64::MAX);
    }
}
