//! Why something about a rollout is refused.

use muster_protocol::ids::{MachineName, Sha256};
use muster_protocol::plan::PlanError;

/// How many rollouts may be under way at once.
pub const MOST_OPEN: u64 = 1000;

#[derive(Debug, thiserror::Error)]
pub enum RolloutRefusal {
    #[error("the plan cannot be used: {0}; make it again with `muster update`")]
    Plan(#[from] PlanError),
    #[error("there is no rollout {}: `muster rollout list` shows those that are known", .0.short())]
    Unknown(Sha256),
    #[error("{0} was stopped for good: publish again what its machines shall run")]
    Stopped(String),
    #[error("{MOST_OPEN} rollouts are under way: stop some with `muster rollout stop`")]
    TooMany,
    #[error("{machine} is not a machine of this plan's wave {wave}")]
    NotItsPlace {
        machine: MachineName,
        /// Counted from 0.
        wave: u32,
    },
}
