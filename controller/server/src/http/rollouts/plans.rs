//! The plan of a rollout, and what machines said of it: for enrolled machines and operators.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use muster_protocol::ids::{IdError, MachineName, Sha256};
use muster_protocol::keys::Signature;
use muster_protocol::plan::{Said, Statements};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::core::rollouts::RolloutRefusal;
use crate::http::auth::bearer::Reader;
use crate::http::problem::Refused;
use crate::http::public::json_file;
use crate::http::state::{App, Shared};
use crate::rollout::held::Held;
use crate::rollout::statements::{heard, statements};
use std::sync::Arc;

pub async fn plan(
    State(app): State<Shared>,
    _: Reader,
    Path(plan): Path<String>,
) -> Result<Response, Refused> {
    Ok(json_file(held(&app, &hash(&plan)?).await?.bytes.clone()))
}

/// Whose gate it is.
#[derive(Deserialize, ToSchema)]
pub struct Of {
    machine: MachineName,
    /// Counted from 0.
    wave: u32,
}

/// The statements that this machine's gate needs, as far as there are any.
pub async fn said(
    State(app): State<Shared>,
    _: Reader,
    Path(plan): Path<String>,
    Query(Of { machine, wave }): Query<Of>,
) -> Result<Json<Statements>, Refused> {
    let plan = hash(&plan)?;
    let held = held(&app, &plan).await?;
    let number = usize::try_from(wave).ok();
    let is_there = |wave: &usize| held.plan.waves.get(*wave).is_some_and(|of| of.members.contains(&machine));
    let number =
        number.filter(is_there).ok_or(RolloutRefusal::NotItsPlace { machine: machine.clone(), wave })?;
    let services = &app.services;
    let recorded = services.store.recorded(&plan, &heard(&held.plan, &machine, number)).await?;
    let is_signed = |machine: &MachineName, said: Said, signature: &Signature| {
        services.plans.is_signed((plan, &held.plan), machine, said, signature)
    };
    Ok(Json(statements(&held.plan, &machine, number, &recorded, is_signed)))
}

pub fn hash(text: &str) -> Result<Sha256, Refused> {
    text.parse().map_err(|error: IdError| Refused::malformed(error.to_string()))
}

async fn held(app: &App, plan: &Sha256) -> Result<Arc<Held>, Refused> {
    let held = app.services.plans.get(&app.services.store, plan).await?;
    held.ok_or_else(|| RolloutRefusal::Unknown(*plan).into())
}
