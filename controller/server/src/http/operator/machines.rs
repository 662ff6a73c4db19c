//! Adding, listing and revoking machines.

use axum::Json;
use axum::extract::{Query, State};
use muster_protocol::ids::MachineName;
use muster_protocol::operator::{AddMachine, MAX_CHANGED, MachineView};
use serde::Deserialize;
use utoipa::ToSchema;

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

/// Which machines are listed: those that changed after a cursor, or all of them.
#[derive(Deserialize, ToSchema)]
pub struct Listed {
    #[serde(default)]
    after: u64,
    #[serde(default)]
    instance: Option<String>,
}

pub async fn list(
    State(app): State<Shared>,
    Query(listed): Query<Listed>,
    _: Signed,
) -> Result<Long<Vec<MachineView>>, Refused> {
    let (store, now) = (&app.services.store, app.services.now());
    let machines = match app.services.notify.since(listed.instance.as_deref(), listed.after, MAX_CHANGED) {
        Some(changed) => store.machines_named(&changed).await?,
        None => store.machines().await?,
    };
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
    app.services.store.add_machine(new, &signed.audit_context()).await?;
    tracing::info!(machine = %new.machine, operator = signed.by.short(), "a token was made");
    view(&app, &new.machine).await
}

pub async fn revoke(
    State(app): State<Shared>,
    signed: Signed<(), MachineName>,
) -> Result<Json<MachineView>, Refused> {
    let machine = &signed.on;
    app.services.store.revoke(machine, &signed.audit_context()).await?;
    tracing::info!(%machine, operator = signed.by.short(), "revoked");
    forget(&Payer::Machine(machine.clone()));
    app.services.wakers.wake(machine);
    view(&app, machine).await
}

/// Ends a clone alarm.
pub async fn acknowledge(
    State(app): State<Shared>,
    signed: Signed<(), MachineName>,
) -> Result<Json<MachineView>, Refused> {
    let machine = &signed.on;
    app.services.store.acknowledge(machine, &signed.audit_context()).await?;
    tracing::info!(%machine, operator = signed.by.short(), "the clone alarm was ended");
    view(&app, machine).await
}
