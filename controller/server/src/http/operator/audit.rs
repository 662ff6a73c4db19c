//! The audit log, for operators, and its cut.

use axum::Json;
use axum::extract::{Query, State};
use muster_protocol::audit::{CutLog, LogCut, MAX_PAGE, Page};
use muster_protocol::signed_cut::SignedCut;
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
    let cut = SignedCut { asked: signed.sent, signature: signed.signature.clone() };
    // What the log keeps has to prove to others what this operator asked for.
    if !cut.is_signed(&app.services.roots.current().fleet()) {
        return Err(Refused::malformed(
            "a request to cut the audit log is kept in the log with its signature: send it to its path without \
             a query, as JSON without spaces, with the fields through (id, hash), holds and export in this order",
        ));
    }
    let anchor = app.services.store.cut_log(&cut, &context, app.services.now()).await?;
    tracing::warn!(through = anchor.id, operator = signed.by.short(), "the audit log was cut");
    Ok(Json(LogCut { anchor }))
}
