//! The signed order of a rollout: which machines go first, who must vouch for them, and what opens the gate
//! of those that follow.
//!
//! A [`Plan`] is one document for all machines of a publication. Each target names it by its hash, with the
//! wave of its machine ([`Place`]), so that operators sign the order together with the targets. Machines of
//! a wave that run their output well sign [`Statement`]s; a machine of a later wave switches when enough of
//! them open its [`gate()`]. The controller passes plan and statements on, and is trusted with neither.

mod document;
mod gate;
mod statement;
#[cfg(test)]
mod tests;

pub use document::{
    After, FEATURE, Failure, MAX_MEMBERS, MAX_PLAN_BYTES, MAX_PREDECESSORS, MAX_SOAK_SECONDS, MAX_VOUCHERS,
    MAX_WAVE_NAME, MAX_WAVES, Place, Plan, PlanError, RolloutName, Voucher, Wave,
};
pub use gate::{Gate, Lack, gate, gate_by, machine_lacks, needed, wave_lacks};
pub use statement::{
    Claim, Leave, MAX_LEAVE_SECONDS, MAX_STATEMENTS, MAX_STATEMENTS_BYTES, MAX_WHY_BYTES, Said, Statement,
    Statements, Vouch,
};
