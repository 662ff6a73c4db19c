//! A machine as operators see it.

use axum::Json;
use muster_protocol::ids::MachineName;
use muster_protocol::operator::MachineView;

use crate::fleet;
use crate::http::problem::Refused;
use crate::http::state::App;
use crate::store::{Machine, Refusal};

pub async fn known(app: &App, name: &MachineName) -> Result<Machine, Refused> {
    let machine = app.services.store.machine(name).await?;
    machine.ok_or_else(|| Refusal::Unknown(name.clone()).into())
}

pub async fn view(app: &App, name: &MachineName) -> Result<Json<MachineView>, Refused> {
    let machine = known(app, name).await?;
    Ok(Json(fleet::view(machine, app.services.limits.poll_seconds, app.services.now())))
}
