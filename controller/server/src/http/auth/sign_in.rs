//! Keys that operators have signed in, which may read on their behalf.

use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode};
use muster_protocol::api::{OPERATOR_SIGN_IN, ProblemCode};
use muster_protocol::keys::PublicKey;
use muster_protocol::signin::SignIn;

use super::revoked::revoked_operator;
use crate::http::problem::{Refused, refuse};
use crate::http::state::App;

/// The sign-in that the request carries, if any: the signing key reads on an operator's behalf.
pub fn sign_in(headers: &HeaderMap) -> Result<Option<SignIn>, Refused> {
    let Some(value) = headers.get(OPERATOR_SIGN_IN) else { return Ok(None) };
    let malformed =
        |why: &str| Refused::malformed(format!("the header {OPERATOR_SIGN_IN}: {why}; sign in again"));
    value.to_str().map_err(|_| malformed("it is not text"))?.parse().map(Some).map_err(malformed)
}

/// The operator on whose behalf `key` signed this request. Allowed only for reading, and only while they are
/// an operator and the sign-in is valid.
pub fn reads_for(sign_in: &SignIn, key: &PublicKey, parts: &Parts, app: &App) -> Result<PublicKey, Refused> {
    if parts.method != Method::GET {
        let message = "a signed-in key may only read: sign this request with the operator's own key";
        return Err(refuse(StatusCode::FORBIDDEN, ProblemCode::Unauthorised, message));
    }
    let chain = app.services.roots.current();
    if !chain.is_operator(&sign_in.operator) {
        return Err(revoked_operator(&sign_in.operator));
    }
    let bad = |why: String| {
        let message = format!("the sign-in is not valid: {why}; sign in again");
        refuse(StatusCode::UNAUTHORIZED, ProblemCode::Unauthorised, message)
    };
    if sign_in.key != *key || sign_in.operator == *key {
        return Err(bad("it is for a different key than the one that signed the request".to_owned()));
    }
    sign_in.verify(&chain.fleet(), app.services.now_s()).map_err(|error| bad(error.to_string()))?;
    Ok(sign_in.operator)
}
