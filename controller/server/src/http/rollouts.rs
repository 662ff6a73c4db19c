//! Rollouts: what machines fetch for their gates, and what operators send and ask.

pub mod operator;
pub mod plans;

use std::collections::BTreeSet;

use muster_protocol::ids::Sha256;
use muster_protocol::plan::Place;
use serde::Deserialize;

use super::problem::Refused;
use super::state::App;
use crate::core::publication::Plans;

/// How many plans the targets of one request may name. One beyond counts as unknown.
const MOST_PLANS: usize = 16;

/// The plan that a target names, if it does. The target is checked later.
pub fn named(target: &str) -> Option<Sha256> {
    #[derive(Deserialize)]
    struct Placed {
        #[serde(default)]
        rollout: Option<Place>,
    }
    serde_json::from_str::<Placed>(target).ok()?.rollout.map(|place| place.plan)
}

/// The plans that these targets name, as far as they are stored.
pub async fn plans_of(app: &App, named: BTreeSet<Sha256>) -> Result<Plans, Refused> {
    let services = &app.services;
    let mut plans = Plans::none(services.roots.current().fleet());
    for plan in named.into_iter().take(MOST_PLANS) {
        if let Some(held) = services.plans.get(&services.store, &plan).await? {
            plans.stored.insert(plan, held.plan.clone());
        }
    }
    Ok(plans)
}
