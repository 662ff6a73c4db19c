//! The audit log, for operators, and its cut.

use axum::Json;
use axum::extract::{Query, State};
use muster_protocol::audit::{CutLog, LogCut, MAX_PAGE, Page};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::http::auth::operator::Signed;
use crate::http::body::Document;
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

impl Document for CutLog {
    const WHAT: &'static str = "a request to cut the audit log";
}

/// Lets the log begin after an entry that the operator has exported.
pub async fn cut(State(app): State<Shared>, signed: Signed<CutLog>) -> Result<Json<LogCut>, Refused> {
    let context = signed.audit_context();
    let anchor = app.services.store.cut_log(&signed.sent, &context, app.services.now()).await?;
    tracing::warn!(through = anchor.id, operator = signed.by.short(), "the audit log was cut");
    Ok(Json(LogCut { anchor }))
}
