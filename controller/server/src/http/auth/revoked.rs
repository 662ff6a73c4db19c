//! A key that is no operator's, or no longer.

use axum::http::StatusCode;
use muster_protocol::api::ProblemCode;
use muster_protocol::keys::PublicKey;

use crate::http::problem::{Refused, refuse};

pub fn revoked_operator(key: &PublicKey) -> Refused {
    let message = format!(
        "the key {} is no operator's in the current root: sign with an operator's key, or have a root \
            signed that names it",
        key.short()
    );
    refuse(StatusCode::FORBIDDEN, ProblemCode::Revoked, message)
}
