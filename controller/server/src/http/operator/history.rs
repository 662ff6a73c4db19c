//! What a machine ran and what it refused, newest first.

use axum::extract::{Query, State};
use muster_protocol::ids::{Generation, IdError, MachineName};
use muster_protocol::operator::{AttackView, HistoryEntry};
use serde::Deserialize;
use utoipa::ToSchema;

use super::view::known;
use crate::http::auth::operator::Signed;
use crate::http::heavy::Long;
use crate::http::problem::Refused;
use crate::http::state::Shared;

/// How many generations a history shows by default, and at most.
const HISTORY: u32 = 20;
const MAX_HISTORY: u32 = 200;

#[derive(Deserialize, ToSchema)]
pub struct Limit {
    limit: Option<u32>,
    /// Only generations older than this one.
    before: Option<String>,
}

pub async fn history(
    State(app): State<Shared>,
    Query(Limit { limit, before }): Query<Limit>,
    Signed { on: machine, .. }: Signed<(), MachineName>,
) -> Result<Long<Vec<HistoryEntry>>, Refused> {
    known(&app, &machine).await?;
    let limit = limit.unwrap_or(HISTORY).min(MAX_HISTORY);
    let before: Option<Generation> = match before {
        None => None,
        Some(text) => {
            let read = text.parse();
            Some(read.map_err(|error: IdError| Refused::malformed(format!("before={text}: {error}")))?)
        }
    };
    Ok(Long(app.services.store.history(&machine, before, limit).await?))
}

/// The attacks that a machine refused, newest first.
pub async fn attacks(
    State(app): State<Shared>,
    Query(Limit { limit, .. }): Query<Limit>,
    Signed { on: machine, .. }: Signed<(), MachineName>,
) -> Result<Long<Vec<AttackView>>, Refused> {
    known(&app, &machine).await?;
    Ok(Long(app.services.store.attacks(&machine, limit.unwrap_or(HISTORY).min(MAX_HISTORY)).await?))
}
