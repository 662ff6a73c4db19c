//! Bearers with which an operator uploads to and reads from the cache with Nix.

use axum::Json;
use axum::extract::State;
use muster_protocol::operator::{SESSION_SECONDS, Session};

use crate::http::auth::operator::Signed;
use crate::http::problem::Refused;
use crate::http::state::Shared;

pub async fn session(State(app): State<Shared>, signed: Signed) -> Result<Json<Session>, Refused> {
    let bearer = app.services.store.open_session(&signed.audit_context()).await?;
    Ok(Json(Session { bearer, expires_in: SESSION_SECONDS }))
}
