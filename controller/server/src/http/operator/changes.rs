//! The operators' long poll for changes in the fleet.

use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use muster_protocol::api::MAX_POLL_SECONDS;
use muster_protocol::operator::{Changes as Changed, MAX_CHANGED};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::http::auth::operator::Signed;
use crate::http::problem::Refused;
use crate::http::request_peer;
use crate::http::state::Shared;

/// How long changes are gathered before a follower is told of them: in a fleet where something changes all
/// the time it would ask anew for each of them.
const GATHER: Duration = Duration::from_millis(250);

#[derive(Deserialize, ToSchema)]
pub struct Changes {
    #[serde(default)]
    after: u64,
    /// What `after` is a number of; programs of version 0.1 name none.
    #[serde(default)]
    instance: Option<String>,
    #[serde(default)]
    wait: u64,
}

/// Waits until a machine sends something that is stored, or an operator changes something, and says which
/// machines changed.
pub async fn changes(
    State(app): State<Shared>,
    Query(changes): Query<Changes>,
    _: Signed,
) -> Result<Json<Changed>, Refused> {
    let notify = &app.services.notify;
    let mut cursor = notify.listen();
    let same = changes.instance.as_deref().is_none_or(|instance| instance == notify.instance());
    if same {
        let wait = Duration::from_secs(changes.wait.min(MAX_POLL_SECONDS));
        let news = async {
            let changed = tokio::select! {
                // Any different number, not only a higher one: the process that gave it may be gone.
                _ = cursor.wait_for(|cursor| *cursor != changes.after) => true,
                () = tokio::time::sleep(wait) => false,
                () = app.stopped() => false,
            };
            if changed && changes.instance.is_some() {
                tokio::select! {
                    () = tokio::time::sleep(GATHER.min(wait)) => {}
                    () = app.stopped() => {}
                }
            }
        };
        let _waits = request_peer::waits_for_news();
        news.await;
    }
    // Before the machines: a change between the two is told twice, and not left out.
    let cursor = *cursor.borrow();
    let machines = notify.since(changes.instance.as_deref(), changes.after, MAX_CHANGED);
    Ok(Json(Changed { cursor, instance: Some(notify.instance().to_owned()), machines }))
}
