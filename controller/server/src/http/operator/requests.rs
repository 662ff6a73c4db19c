//! Requests to machines, signed by operators and relayed by the controller.

use axum::Json;
use axum::extract::State;
use muster_protocol::ids::MachineName;
use muster_protocol::operator::MachineView;
use muster_protocol::request::SignedRequest;

use super::view::view;
use crate::core::requests::AskRefusal;
use crate::http::auth::operator::Signed;
use crate::http::body::Document;
use crate::http::problem::Refused;
use crate::http::request_peer::regardless;
use crate::http::state::Shared;

impl Document for SignedRequest {
    const WHAT: &'static str = "a request to a machine";
}

/// Relays a request to a machine, which checks it again against the root that it trusts.
pub async fn ask(
    State(app): State<Shared>,
    signed: Signed<SignedRequest, MachineName>,
) -> Result<Json<MachineView>, Refused> {
    let (machine, asked) = (&signed.on, &signed.sent);
    let chain = app.services.roots.current();
    let operators = chain.operators();
    let request = asked
        .verify(&chain.fleet(), machine, &operators, app.services.now_s())
        .map_err(AskRefusal::Unsound)?;
    regardless(async move {
        let (machine, asked) = (&signed.on, &signed.sent);
        app.services.store.ask(asked, &request, &signed.audit_context()).await?;
        let (operator, asks) = (signed.by.short(), request.asked.as_str());
        tracing::info!(%machine, operator, asks, "a request waits for a machine");
        app.services.wakers.wake(machine);
        view(&app, machine).await
    })
    .await
}
