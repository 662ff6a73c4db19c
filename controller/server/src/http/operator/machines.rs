//! Machines, as operators add, see and revoke them.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use muster_protocol::api::ProblemCode;
use muster_protocol::operator::{AddMachine, MachineView};

use super::view::view;
use crate::fleet;
use crate::http::auth::Signed;
use crate::http::body;
use crate::http::heavy::Long;
use crate::http::path::machine_name;
use crate::http::payer::Payer;
use crate::http::problem::{Refused, refuse};
use crate::http::request_peer::forget;
use crate::http::state::Shared;

pub async fn list(State(app): State<Shared>, _: Signed) -> Result<Long<Vec<MachineView>>, Refused> {
    let now = app.services.now();
    let machines = app.services.store.machines().await?;
    Ok(Long(
        machines
            .into_iter()
            .map(|machine| fleet::view(machine, app.services.limits.poll_seconds, now))
            .collect(),
    ))
}

pub async fn show(
    State(app): State<Shared>,
    Path(name): Path<String>,
    _: Signed,
) -> Result<Json<MachineView>, Refused> {
    view(&app, &machine_name(&name)?).await
}

pub async fn add(State(app): State<Shared>, signed: Signed) -> Result<Json<MachineView>, Refused> {
    let new: AddMachine = body::json("a new machine", &signed.body)?;
    if new.system.class() != new.class {
        let message =
            format!("a {} machine does not build {}: correct the class or the system", new.class, new.system);
        return Err(refuse(StatusCode::UNPROCESSABLE_ENTITY, ProblemCode::WrongClass, message));
    }
    if new.expires <= app.services.now_s() {
        let message = "the token would have expired already: see that your clock is right and make another";
        return Err(refuse(StatusCode::UNPROCESSABLE_ENTITY, ProblemCode::TokenExpired, message));
    }
    let cursor = app.services.store.add_machine(&new, &signed.deed()).await?;
    tracing::info!(machine = %new.machine, operator = signed.key.short(), "a token was made");
    app.services.notify.changed(cursor);
    view(&app, &new.machine).await
}

pub async fn revoke(
    State(app): State<Shared>,
    Path(name): Path<String>,
    signed: Signed,
) -> Result<Json<MachineView>, Refused> {
    let machine = machine_name(&name)?;
    let cursor = app.services.store.revoke(&machine, &signed.deed()).await?;
    tracing::info!(%machine, operator = signed.key.short(), "revoked");
    forget(&Payer::Machine(machine.clone()));
    app.services.wakers.wake(&machine);
    app.services.notify.changed(cursor);
    view(&app, &machine).await
}

/// Ends a clone alarm.
pub async fn acknowledge(
    State(app): State<Shared>,
    Path(name): Path<String>,
    signed: Signed,
) -> Result<Json<MachineView>, Refused> {
    let machine = machine_name(&name)?;
    let cursor = app.services.store.acknowledge(&machine, &signed.deed()).await?;
    tracing::info!(%machine, operator = signed.key.short(), "the clone alarm was ended");
    app.services.notify.changed(cursor);
    view(&app, &machine).await
}
