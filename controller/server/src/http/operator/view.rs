//! A machine as operators see it.

use axum::Json;
use muster_protocol::ids::MachineName;
use muster_protocol::operator::MachineView;

use crate::core::condition;
use crate::core::machines::MachineRefusal;
use crate::core::rows::Machine;
use crate::http::problem::Refused;
use crate::http::state::App;

pub async fn known(app: &App, name: &MachineName) -> Result<Machine, Refused> {
    let machine = app.services.store.machine(name).await?;
    machine.ok_or_else(|| MachineRefusal::Unknown(name.clone()).into())
}

pub async fn view(app: &App, name: &MachineName) -> Result<Json<MachineView>, Refused> {
    let machine = known(app, name).await?;
    Ok(Json(condition::view(machine, app.services.limits.poll_seconds, app.services.now())))
}
