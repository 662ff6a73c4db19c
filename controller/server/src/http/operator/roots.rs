//! The next root: whoever hands it in, its own signatures say whether it counts.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use muster_protocol::api::ProblemCode;
use muster_protocol::operator::{NewRoot, RootTaken};
use muster_protocol::tuf::metadata::Role;

use crate::http::auth::operator::SignedByAnyone;
use crate::http::body::Document;
use crate::http::problem::{Refused, refuse};
use crate::http::state::Shared;

impl Document for NewRoot {
    const WHAT: &'static str = "a root";
}

/// Takes the next root from an operator or a root holder of the old root or of the new one: after a lost key only the new
/// one may be there.
pub async fn publish(
    State(app): State<Shared>,
    request: SignedByAnyone<NewRoot>,
) -> Result<Json<RootTaken>, Refused> {
    let next = app.services.roots.check_next(request.sent().root.as_bytes())?;
    let holds = |role| next.keys_of(role).contains(request.by());
    let known = app.services.roots.current().names(request.by());
    if !known && !holds(Role::Targets) && !holds(Role::Root) {
        let message = "the root is good, and this request is signed by nobody whom it or the one before it names: send it with an operator's or a root key";
        return Err(refuse(StatusCode::FORBIDDEN, ProblemCode::Unauthorised, message));
    }
    let signed = request.accepted(&app).await?;
    let root = &signed.sent.root;
    let version = next.version();
    app.services.roots.put(version, root.as_bytes())?;
    app.services.store.log_root(version, Some(&signed.audit_context()), app.services.now()).await?;
    tracing::info!(version, by = signed.by.short(), "a new root was published");
    let online_key_named = app.services.signer().is_ok();
    Ok(Json(RootTaken { version, online_key_named }))
}
