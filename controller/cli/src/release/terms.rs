//! What the flake says of a machine besides its system.

use anyhow::Result;
use muster_protocol::ids::MachineName;
use muster_protocol::policy::Policy;
use muster_protocol::target::{Action, HealthCheck};

use crate::flake::evaluate::Flake;

/// In seconds, if the flake says nothing.
const DEFAULT_DEADLINE: u32 = 300;

pub struct Terms {
    pub action: Action,
    pub deadline_seconds: u32,
    pub checks: Vec<HealthCheck>,
    pub trusted_nix_keys: Vec<String>,
    pub policy: Policy,
}

pub fn terms_of(flake: &Flake, machine: &MachineName) -> Result<Terms> {
    let facts = flake.muster.machines.get(machine).cloned().unwrap_or_default();
    Ok(Terms {
        action: facts.action,
        deadline_seconds: facts.deadline_seconds.unwrap_or(DEFAULT_DEADLINE),
        checks: facts.health_checks(machine)?,
        trusted_nix_keys: facts.trusted_nix_keys,
        policy: facts.policy,
    })
}
