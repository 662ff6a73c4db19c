//! A key that is not, or is no longer, an operator key.

use axum::http::StatusCode;
use muster_protocol::api::ProblemCode;
use muster_protocol::keys::PublicKey;

use crate::http::problem::{Refused, refuse};

pub fn revoked_operator(key: &PublicKey) -> Refused {
    let message = format!(
        "the key {} is not an operator key in the current root: sign with an operator key, or have a \
            root signed that names it",
        key.short()
    );
    refuse(StatusCode::FORBIDDEN, ProblemCode::Revoked, message)
}
