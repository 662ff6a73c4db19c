//! Enrolment: a machine comes with a token.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use muster_protocol::api::ProblemCode;
use muster_protocol::enrol::{EnrolReply, EnrolRequest, MAX_ENROL_BYTES};

use crate::http::body::{self, small_body};
use crate::http::payer::Payer;
use crate::http::problem::{Refused, refuse};
use crate::http::request_peer::{forget, proved, stranger};
use crate::http::state::Shared;

pub async fn enrol(
    State(app): State<Shared>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<EnrolReply>, Refused> {
    let body = small_body(&app, &headers, body, MAX_ENROL_BYTES, stranger()).await?;
    let request: EnrolRequest = body::json("an enrolment", &body)?;
    if !app.services.roots.current().knows(&request.root) {
        let message = "the token names a root that this controller does not serve: use a token of this fleet, made with `muster machines add`";
        return Err(refuse(StatusCode::NOT_FOUND, ProblemCode::TokenUnknown, message));
    }
    let cursor = app.services.store.enrol(&request, app.services.now()).await?;
    tracing::info!(machine = %request.machine, key = request.key.short(), "enrolled");
    app.services.wakers.wake(&request.machine);
    app.services.notify.changed(cursor);
    let payer = Payer::Machine(request.machine.clone());
    // Whoever had the key before may hold all the connections that a machine may have.
    forget(&payer);
    proved(&payer).await?;
    Ok(Json(EnrolReply { machine: request.machine }))
}
