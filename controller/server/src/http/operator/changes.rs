//! The operators' long poll for changes in the fleet.

use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use muster_protocol::api::MAX_POLL_SECONDS;
use muster_protocol::operator::Changes as Changed;
use serde::Deserialize;

use crate::http::auth::operator::Signed;
use crate::http::problem::Refused;
use crate::http::request_peer::away;
use crate::http::state::Shared;

#[derive(Deserialize)]
pub struct Changes {
    #[serde(default)]
    after: u64,
    #[serde(default)]
    wait: u64,
}

/// Waits until a machine sends something that is stored, or an operator changes something.
pub async fn changes(
    State(app): State<Shared>,
    Query(changes): Query<Changes>,
    _: Signed,
) -> Result<Json<Changed>, Refused> {
    let mut cursor = app.services.notify.listen();
    let wait = Duration::from_secs(changes.wait.min(MAX_POLL_SECONDS));
    let news = async {
        tokio::select! {
            // Any different cursor, not only a higher one: a restored database may be behind what the
            // operator has seen.
            _ = cursor.wait_for(|cursor| *cursor != changes.after) => {}
            () = tokio::time::sleep(wait) => {}
            () = app.stopped() => {}
        }
    };
    away(news).await;
    let cursor = *cursor.borrow();
    Ok(Json(Changed { cursor }))
}
