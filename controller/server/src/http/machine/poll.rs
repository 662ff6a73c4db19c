//! The long poll: a machine waits for a generation, or for something that its next check-in will get.

use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use muster_protocol::api::MAX_POLL_SECONDS;
use muster_protocol::checkin::PollReply;
use muster_protocol::ids::IdError;
use serde::Deserialize;

use crate::http::auth::bearer::Bearer;
use crate::http::path::OfMachine;
use crate::http::problem::Refused;
use crate::http::request_peer::away;
use crate::http::state::Shared;
use crate::store::News;

#[derive(Deserialize)]
pub struct Poll {
    /// `None` if it is 0 or missing.
    have: Option<String>,
    #[serde(default)]
    wait: u64,
}

/// Replies at once if the latest generation is not the one the machine has; otherwise when that changes, or
/// after the wait. The poll also ends when its bearer expires.
pub async fn poll(
    State(app): State<Shared>,
    Query(poll): Query<Poll>,
    OfMachine(machine): OfMachine,
    bearer: Bearer,
) -> Result<Json<PollReply>, Refused> {
    let have = match poll.have.as_deref() {
        None | Some("" | "0") => None,
        Some(text) => Some(text.parse().map_err(|error: IdError| Refused::malformed(error.to_string()))?),
    };
    bearer.is_machines(&app, &machine).await?;
    app.services.store.seen(&machine, app.services.now()).await?;
    let timeout = tokio::time::sleep(Duration::from_secs(poll.wait.min(MAX_POLL_SECONDS)));
    tokio::pin!(timeout);
    let mut listener = app.services.wakers.listen(&machine).ok_or_else(|| {
        Refused::too_many(
            &format!("machine {machine}"),
            Duration::from_secs(app.services.limits.poll_seconds),
        )
    })?;
    let mut last_look = false;
    loop {
        let News { generation, check_in } = app.services.store.news(&machine).await?;
        if last_look || check_in || generation != have {
            return Ok(Json(PollReply { generation, check_in }));
        }
        let news = async {
            tokio::select! {
                () = listener.woken() => true,
                () = &mut timeout => false,
                () = app.stopped() => false,
            }
        };
        if away(news).await {
            bearer.is_machines(&app, &machine).await?;
        } else {
            last_look = true;
        }
    }
}
