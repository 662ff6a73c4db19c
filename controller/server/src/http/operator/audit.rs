//! The audit log, for operators.

use axum::extract::{Query, State};
use muster_protocol::audit::{MAX_PAGE, Page};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::http::auth::operator::Signed;
use crate::http::heavy::Long;
use crate::http::problem::Refused;
use crate::http::state::Shared;

#[derive(Deserialize, ToSchema)]
pub struct Log {
    #[serde(default)]
    after: u64,
    limit: Option<u32>,
}

/// The audit log, starting after a given entry.
pub async fn audit(
    State(app): State<Shared>,
    Query(Log { after, limit }): Query<Log>,
    _: Signed,
) -> Result<Long<Page>, Refused> {
    Ok(Long(app.services.store.audit(after, limit.unwrap_or(MAX_PAGE).min(MAX_PAGE)).await?))
}
