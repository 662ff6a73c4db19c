//! The matrix of faults has a row for every durable step.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;

use muster_agent::core::records::ActivationPhase;
use muster_agent::core::state::TRANSITIONS;
use muster_testbed::faults::steps::{LEFT_OUT, STEPS};

#[test]
fn every_state_of_a_transaction_and_every_phase_of_an_activator_has_a_row_or_a_reason() {
    let states = TRANSITIONS.iter().flat_map(|(from, _, to)| [*from, *to]);
    let states: BTreeSet<String> = states.map(|state| format!("transaction.json {state}")).collect();
    let phases = ActivationPhase::ALL.into_iter().map(|phase| {
        let name = serde_json::to_value(phase).unwrap();
        format!("activation.json {}", name.as_str().unwrap())
    });
    for wanted in states.into_iter().chain(phases) {
        let row = STEPS.iter().any(|step| step.at == format!("after {wanted}"));
        let reason = LEFT_OUT.iter().any(|(step, _)| *step == wanted);
        assert!(row != reason, "{wanted} needs a row, or a reason why it has none, and not both");
    }
}

#[test]
fn every_stage_of_a_macs_activation_has_a_row() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/fleet/systems/activate.sh");
    let script = std::fs::read_to_string(script).unwrap();
    let stages: Vec<&str> = script.lines().filter_map(|line| line.strip_prefix("stage ")).collect();
    assert!(stages.len() > 20 && stages.contains(&"userLaunchd"));
    for stage in stages {
        let row = format!("during activate {stage}");
        assert!(STEPS.iter().any(|step| step.at == row), "{row} needs a row");
    }
}
