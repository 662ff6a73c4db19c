//! What operators send and ask of rollouts. Each answer comes after whatever follows from it is stored:
//! once a rollout is paused, no check-in gets leave of it.

use axum::Json;
use axum::extract::{Path, State};
use muster_protocol::ids::Sha256;
use muster_protocol::operator::{AskRollout, BrakeView, NewPlan, RolloutView, SetBrake};
use muster_protocol::plan::{MAX_PLAN_BYTES, Plan, PlanError};

use super::plans::hash;
use crate::core::rollouts::RolloutRefusal;
use crate::http::auth::operator::Signed;
use crate::http::body::Document;
use crate::http::heavy::{self, Long};
use crate::http::problem::Refused;
use crate::http::request_peer::regardless;
use crate::http::state::Shared;
use crate::rollout::deciding::view;
use crate::rollout::driver;

impl Document for NewPlan {
    const WHAT: &'static str = "a rollout plan";
    /// A text in JSON may have twice as many bytes as it says.
    const LIMIT: usize = 2 * MAX_PLAN_BYTES as usize + 1024;
}

impl Document for AskRollout {
    const WHAT: &'static str = "a wish for a rollout";
}

impl Document for SetBrake {
    const WHAT: &'static str = "a wish for the brake";
}

/// Stores a plan, once.
pub async fn send(State(app): State<Shared>, signed: Signed<NewPlan>) -> Result<Json<RolloutView>, Refused> {
    regardless(async move {
        let (signed, NewPlan { plan: text }) = signed.split();
        let services = &app.services;
        let plan = heavy::on(text.len(), || Plan::parse(text.as_bytes())).map_err(RolloutRefusal::Plan)?;
        let id = heavy::on(text.len(), || Sha256::of(text.as_bytes()));
        services.roots.refresh().await?;
        let chain = services.roots.current();
        if plan.fleet != chain.fleet() {
            return Err(RolloutRefusal::Plan(PlanError::Foreign("fleet")).into());
        }
        if plan.epoch != chain.newest().epoch() {
            return Err(RolloutRefusal::Plan(PlanError::Foreign("epoch")).into());
        }
        let document = (id, &plan, text.as_bytes());
        services.store.store_plan(document, &signed.audit_context()).await?;
        services.plans.stored(&id);
        tracing::info!(plan = id.short(), name = %plan.name, operator = signed.by.short(), "a rollout is planned");
        let next = driver::decide(services, &id, None).await?;
        Ok(Json(RolloutView { members: Vec::new(), ..next.view }))
    })
    .await
}

/// The newest ones, without their machines.
pub async fn list(State(app): State<Shared>, _: Signed) -> Result<Long<Vec<RolloutView>>, Refused> {
    let rollouts = app.services.store.rollouts().await?;
    Ok(Long(rollouts.iter().map(|rollout| view(rollout, rollout.verdict.as_ref())).collect()))
}

pub async fn show(
    State(app): State<Shared>,
    Path(plan): Path<String>,
    _: Signed,
) -> Result<Long<RolloutView>, Refused> {
    // What has changed since it was decided last is decided now.
    Ok(Long(driver::decide(&app.services, &hash(&plan)?, None).await?.view))
}

pub async fn ask(
    State(app): State<Shared>,
    Path(plan): Path<String>,
    signed: Signed<AskRollout>,
) -> Result<Long<RolloutView>, Refused> {
    let plan = hash(&plan)?;
    regardless(async move {
        let (signed, asked) = signed.split();
        let asking = Some((&asked, signed.audit_context()));
        let next = driver::decide(&app.services, &plan, asking).await?;
        tracing::info!(plan = plan.short(), operator = signed.by.short(), wish = ?asked.wish, "a rollout was asked");
        Ok(Long(next.view))
    })
    .await
}

pub async fn brake(State(app): State<Shared>, _: Signed) -> Result<Json<Option<BrakeView>>, Refused> {
    Ok(Json(app.services.store.brake().await?))
}

pub async fn set_brake(
    State(app): State<Shared>,
    signed: Signed<SetBrake>,
) -> Result<Json<Option<BrakeView>>, Refused> {
    regardless(async move {
        let (signed, asked) = signed.split();
        let brake = app.services.store.set_brake(&asked, &signed.audit_context()).await?;
        tracing::info!(on = brake.is_some(), operator = signed.by.short(), "the brake");
        driver::decide_all(&app.services).await?;
        Ok(Json(brake))
    })
    .await
}
