//! Rollouts as they are stored, and what operators and machines bring to them. How far a rollout is and whose
//! turn it is is decided in `rollout::engine`.

pub mod facts;
mod refusal;
pub mod stored;

use muster_protocol::ids::Sha256;
use muster_protocol::operator::{BrakeView, SetBrake};
use muster_protocol::plan::Plan;

use super::audit::{AuditContext, NewEntry};
use super::change::{Change, Decided};

pub use refusal::{MOST_OPEN, RolloutRefusal};
pub use stored::{Asked, Failed, NewRollout, NewTurn, Said, StoredRollout, Turn, Verdict, cut, mark};

/// What is stored about a plan that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Known {
    pub stored: bool,
    /// How many rollouts are under way.
    pub open: u64,
}

/// Stores a plan, once.
pub fn plan(
    known: &Known,
    (hash, plan, document): (Sha256, &Plan, &[u8]),
    context: &AuditContext<'_>,
) -> Result<Decided<()>, RolloutRefusal> {
    if known.stored {
        return Ok(Decided::unchanged(()));
    }
    if known.open >= MOST_OPEN {
        return Err(RolloutRefusal::TooMany);
    }
    let machines: usize = plan.waves.iter().map(|wave| wave.members.len()).sum();
    let detail = format!("{} {}: waves {}, machines {machines}", plan.name, hash.short(), plan.waves.len());
    let new = NewRollout {
        plan: hash,
        document: document.to_vec(),
        name: plan.name.clone(),
        budget: plan.budget,
        at: context.at,
        by: *context.operator,
    };
    let changes = vec![
        Change::PlanStored(Box::new(new)),
        Change::Audited(NewEntry::by(context, "rollout-planned", detail)),
    ];
    Ok(Decided { changes, answer: () })
}

/// Pulls the brake or lets it go. What is so already is not logged again.
pub fn brake(
    held: Option<&BrakeView>,
    asked: &SetBrake,
    context: &AuditContext<'_>,
) -> Decided<Option<BrakeView>> {
    if held.is_some() == asked.on {
        return Decided::unchanged(held.cloned());
    }
    let why = asked.why.as_deref().map(cut);
    let brake = asked.on.then(|| BrakeView { at: context.at, by: *context.operator, why: why.clone() });
    let (action, detail) = (if asked.on { "brake-on" } else { "brake-off" }, logged("", why.as_deref()));
    let changes = vec![
        Change::BrakeSet { brake: brake.clone() },
        Change::Audited(NewEntry::by(context, action, detail)),
    ];
    Decided { changes, answer: brake }
}

/// The detail of an entry in the log.
pub fn logged(what: &str, why: Option<&str>) -> String {
    match (what, why) {
        (what, None) => what.to_owned(),
        ("", Some(why)) => why.to_owned(),
        (what, Some(why)) => format!("{what}: {why}"),
    }
}

#[cfg(test)]
mod tests;
