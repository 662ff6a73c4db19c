//! Enrolment: a machine presents a token.

use axum::Json;
use axum::extract::State;
use muster_protocol::enrol::{EnrolReply, EnrolRequest, MAX_ENROL_BYTES};

use crate::core::enrolment::EnrolRefusal;
use crate::http::auth::machine::FromStranger;
use crate::http::body::Document;
use crate::http::payer::Payer;
use crate::http::problem::Refused;
use crate::http::request_peer::{forget, proved};
use crate::http::state::Shared;

impl Document for EnrolRequest {
    const WHAT: &'static str = "an enrolment";
    const LIMIT: usize = MAX_ENROL_BYTES;
}

/// The request proves with the token's secret that it comes from the machine; the store checks it.
pub async fn enrol(
    State(app): State<Shared>,
    FromStranger(request): FromStranger<EnrolRequest>,
) -> Result<Json<EnrolReply>, Refused> {
    if !app.services.roots.current().knows(&request.root) {
        return Err(EnrolRefusal::RootUnknown.into());
    }
    app.services.store.enrol(&request, app.services.now()).await?;
    tracing::info!(machine = %request.machine, key = request.key.short(), "enrolled");
    app.services.wakers.wake(&request.machine);
    let payer = Payer::Machine(request.machine.clone());
    // The holder of the previous key may be using all the connections that a machine may have.
    forget(&payer);
    proved(&payer).await?;
    Ok(Json(EnrolReply { machine: request.machine }))
}
