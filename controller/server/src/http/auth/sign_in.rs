//! Keys that operators signed in, which read in their place.

use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode};
use muster_protocol::api::{OPERATOR_SIGN_IN, ProblemCode};
use muster_protocol::keys::PublicKey;
use muster_protocol::signin::SignIn;

use super::revoked::revoked_operator;
use crate::http::problem::{Refused, refuse};
use crate::http::state::App;

/// That the key which signed the request reads in an operator's place, if the request says so.
pub fn sign_in(headers: &HeaderMap) -> Result<Option<SignIn>, Refused> {
    let Some(value) = headers.get(OPERATOR_SIGN_IN) else { return Ok(None) };
    let malformed =
        |why: &str| Refused::malformed(format!("the header {OPERATOR_SIGN_IN}: {why}; sign in anew"));
    value.to_str().map_err(|_| malformed("it is no text"))?.parse().map(Some).map_err(malformed)
}

/// The operator in whose place `key` signed this request, if it may: to read, while they are one and signed
/// in.
pub fn reads_for(sign_in: &SignIn, key: &PublicKey, parts: &Parts, app: &App) -> Result<PublicKey, Refused> {
    if parts.method != Method::GET {
        let message = "a key that was signed in only reads: sign this request with the operator's own key";
        return Err(refuse(StatusCode::FORBIDDEN, ProblemCode::Unauthorised, message));
    }
    let chain = app.services.roots.current();
    if !chain.is_operator(&sign_in.operator) {
        return Err(revoked_operator(&sign_in.operator));
    }
    let bad = |why: String| {
        let message = format!("signing in does not count: {why}; sign in anew");
        refuse(StatusCode::UNAUTHORIZED, ProblemCode::Unauthorised, message)
    };
    if sign_in.key != *key || sign_in.operator == *key {
        return Err(bad("it is for another key than the one that signed the request".to_owned()));
    }
    sign_in.verify(&chain.fleet(), app.services.now_s()).map_err(|error| bad(error.to_string()))?;
    Ok(sign_in.operator)
}
