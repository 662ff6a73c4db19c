//! Adding, listing and revoking machines.

use axum::Json;
use axum::extract::State;
use muster_protocol::ids::MachineName;
use muster_protocol::operator::{AddMachine, MachineView};

use super::view::view;
use crate::core::condition;
use crate::core::machines::require_usable;
use crate::http::auth::operator::Signed;
use crate::http::body::Document;
use crate::http::heavy::Long;
use crate::http::payer::Payer;
use crate::http::problem::Refused;
use crate::http::request_peer::forget;
use crate::http::state::Shared;

impl Document for AddMachine {
    const WHAT: &'static str = "a new machine";
}

pub async fn list(State(app): State<Shared>, _: Signed) -> Result<Long<Vec<MachineView>>, Refused> {
    let now = app.services.now();
    let machines = app.services.store.machines().await?;
    Ok(Long(
        machines
            .into_iter()
            .map(|machine| condition::view(machine, app.services.limits.poll_seconds, now))
            .collect(),
    ))
}

pub async fn show(
    State(app): State<Shared>,
    Signed { on: name, .. }: Signed<(), MachineName>,
) -> Result<Json<MachineView>, Refused> {
    view(&app, &name).await
}

pub async fn add(
    State(app): State<Shared>,
    signed: Signed<AddMachine>,
) -> Result<Json<MachineView>, Refused> {
    let new = &signed.sent;
    require_usable(new, app.services.now_s())?;
    let cursor = app.services.store.add_machine(new, &signed.audit_context()).await?;
    tracing::info!(machine = %new.machine, operator = signed.by.short(), "a token was made");
    app.services.notify.changed(cursor);
    view(&app, &new.machine).await
}

pub async fn revoke(
    State(app): State<Shared>,
    signed: Signed<(), MachineName>,
) -> Result<Json<MachineView>, Refused> {
    let machine = &signed.on;
    let cursor = app.services.store.revoke(machine, &signed.audit_context()).await?;
    tracing::info!(%machine, operator = signed.by.short(), "revoked");
    forget(&Payer::Machine(machine.clone()));
    app.services.wakers.wake(machine);
    app.services.notify.changed(cursor);
    view(&app, machine).await
}

/// Ends a clone alarm.
pub async fn acknowledge(
    State(app): State<Shared>,
    signed: Signed<(), MachineName>,
) -> Result<Json<MachineView>, Refused> {
    let machine = &signed.on;
    let cursor = app.services.store.acknowledge(machine, &signed.audit_context()).await?;
    tracing::info!(%machine, operator = signed.by.short(), "the clone alarm was ended");
    app.services.notify.changed(cursor);
    view(&app, machine).await
}
