//! The next root: its own signatures decide whether it is valid, whoever sends it.

use axum::Json;
use axum::extract::State;
use muster_protocol::operator::{NewRoot, RootTaken};

use crate::core::roots::require_named;
use crate::http::auth::operator::SignedByAnyone;
use crate::http::body::Document;
use crate::http::problem::Refused;
use crate::http::state::Shared;

impl Document for NewRoot {
    const WHAT: &'static str = "a root";
}

/// Accepts the next root from anybody named in it or in the current one.
pub async fn publish(
    State(app): State<Shared>,
    request: SignedByAnyone<NewRoot>,
) -> Result<Json<RootTaken>, Refused> {
    let next = app.services.roots.check_next(request.sent().root.as_bytes())?;
    require_named(app.services.roots.current().newest(), &next, request.by())?;
    let signed = request.accepted(&app).await?;
    let root = &signed.sent.root;
    let version = next.version();
    app.services.publish_root(version, root.as_bytes(), &signed.audit_context()).await?;
    tracing::info!(version, by = signed.by.short(), "a new root was published");
    let online_key_named = app.services.signer().is_ok();
    Ok(Json(RootTaken { version, online_key_named }))
}
