//! The next root: whoever hands it in, its own signatures say whether it counts.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use muster_protocol::api::ProblemCode;
use muster_protocol::operator::{NewRoot, RootTaken};
use muster_protocol::report::Attack;
use muster_protocol::tuf::metadata::Role;

use super::auth::{SignedBySomebody, remember};
use super::problem::{Refused, refuse};
use super::roots::RootsError;
use super::{Shared, body};

impl From<RootsError> for Refused {
    fn from(error: RootsError) -> Self {
        let (status, code) = match error {
            RootsError::Store(error) => return error.into(),
            RootsError::NotNext { .. } => (StatusCode::CONFLICT, ProblemCode::Conflict),
            RootsError::Write(..) | RootsError::Read(..) | RootsError::Empty(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, ProblemCode::Internal)
            }
            RootsError::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, ProblemCode::TooLarge),
            RootsError::Bad(_, ref bad) if bad.attack() == Some(Attack::ForgedSignature) => {
                (StatusCode::UNPROCESSABLE_ENTITY, ProblemCode::BadSignature)
            }
            RootsError::Bad(..) | RootsError::OnlineKey(_) | RootsError::TooMuch(..) => {
                (StatusCode::UNPROCESSABLE_ENTITY, ProblemCode::Malformed)
            }
        };
        refuse(status, code, error.to_string())
    }
}

/// Takes the next root from an operator or a root holder of the old root or of the new one: after a lost key only the new
/// one may be there.
pub async fn publish(
    State(app): State<Shared>,
    request: SignedBySomebody,
) -> Result<Json<RootTaken>, Refused> {
    let SignedBySomebody { signed, nonce, until } = request;
    let NewRoot { root } = body::json("a root", &signed.body)?;
    let next = app.roots.check_next(root.as_bytes())?;
    let chain = app.roots.current();
    let holds = |role| next.keys_of(role).contains(&signed.key);
    let known = chain.is_operator(&signed.key) || chain.is_root_key(&signed.key);
    if !known && !holds(Role::Targets) && !holds(Role::Root) {
        let message = "the root is good, and this request is signed by nobody whom it or the one before it names: send it with an operator's or a root key";
        return Err(refuse(StatusCode::FORBIDDEN, ProblemCode::Unauthorised, message));
    }
    remember(&app, &signed.key, &nonce, until).await?;
    let version = next.version();
    app.store
        .log_root::<RootsError>(version, Some(&signed.deed()), app.now(), || {
            app.roots.put(version, root.as_bytes())
        })
        .await?;
    tracing::info!(version, by = signed.key.short(), "a new root was published");
    let online_key_named = app.signer().is_ok();
    Ok(Json(RootTaken { version, online_key_named }))
}
