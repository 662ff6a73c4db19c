//! Sessions of machines: check-ins that a MAC proves, in place of a signature.

use axum::http::{HeaderMap, StatusCode};
use muster_protocol::api::{MACHINE_SESSION, ProblemCode};
use muster_protocol::session::SessionProof;

use crate::core::rows::KnownMachine;
use crate::core::seals::SessionClaims;
use crate::http::problem::{Refused, refuse};
use crate::http::state::App;

/// The proof in the header; `None` where a signature is to prove it.
pub fn session_proof(headers: &HeaderMap) -> Result<Option<SessionProof>, Refused> {
    let Some(value) = headers.get(MACHINE_SESSION) else { return Ok(None) };
    let proof = value.to_str().unwrap_or_default().parse();
    proof.map(Some).map_err(|error| Refused::malformed(format!("the header {MACHINE_SESSION}: {error}")))
}

/// The machine that proves to send a body with this hash to `path`, before the body has arrived.
pub async fn by_session(app: &App, path: &str, proof: &SessionProof) -> Result<SessionClaims, Refused> {
    let keys = app.services.keyring.keys();
    let claims = keys.seals.read_session(&proof.token).ok_or_else(session_ended)?;
    in_force(app, &claims).await?;
    let key = app.sessions.key(&keys, &claims, &proof.token).ok_or_else(session_ended)?;
    if key.verifies(path, proof) { Ok(claims) } else { Err(session_ended()) }
}

/// What is known of the session's machine, while the session goes on.
pub async fn in_force(app: &App, claims: &SessionClaims) -> Result<KnownMachine, Refused> {
    let known = app.services.store.machine_key(&claims.machine).await?;
    known.filter(|known| claims.hold(known, app.services.now_s())).ok_or_else(session_ended)
}

/// Whatever the reason, the machine signs the same bytes at once, and loses nothing.
pub fn session_ended() -> Refused {
    refuse(
        StatusCode::UNAUTHORIZED,
        ProblemCode::SessionEnded,
        "this session is unknown or has ended: sign the same bytes with the machine's key",
    )
}
