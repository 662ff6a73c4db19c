//! A new epoch against generations of earlier ones.

use super::*;

#[test]
fn a_new_epoch_supersedes_what_waits_and_leaves_what_is_under_way() {
    let journal = Journal::default();
    let in_the_next = Observed { epoch: Epoch::new(1).unwrap(), ..observed() };
    let deferral = Deferral::new(Hold::Busy, "busy");
    for state in [
        State::Verified,
        State::Fetched,
        State::Built,
        State::Checked,
        State::Deferred { deferral, stage: Stage::Switch },
        State::NeedsHuman { detail: String::new() },
    ] {
        let open = transaction(7, state.clone());
        // Also where nothing was signed in the new epoch yet.
        let seen = Observed { transaction: Some(&open), ..in_the_next };
        assert_eq!(next(&seen, &journal, None), Step::Supersede, "{state:?}");
        let before = Observed { transaction: Some(&open), ..observed() };
        assert_ne!(next(&before, &journal, None), Step::Supersede, "{state:?}");
    }
    let open = transaction(7, State::Activating);
    for (phase, step) in [
        (Phase::Activating, Step::Watch),
        (Phase::Activated, Step::Enter(Input::Activated)),
        (Phase::AwaitingReboot, Step::Enter(Input::ActivatedToBoot)),
    ] {
        let record = activation(7, phase);
        let seen = Observed { transaction: Some(&open), activation: Some(&record), ..in_the_next };
        assert_eq!(next(&seen, &journal, None), step, "{phase:?}");
    }
    let record = activation(7, Phase::AwaitingReboot);
    let open = transaction(7, State::AwaitingReboot);
    let seen = Observed { transaction: Some(&open), activation: Some(&record), ..in_the_next };
    assert!(matches!(next(&seen, &journal, None), Step::Give(GivenVerdict::Undo { .. })));
}

#[test]
fn i2_a_floor_of_an_earlier_epoch_holds_nothing_up_and_what_was_disowned_is_not_begun() {
    let highest = Generation::new(muster_protocol::ids::MAX_NUMBER).unwrap();
    let journal = Journal { tried: Some(highest), ..Journal::default() };
    let second = Epoch::new(1).unwrap();
    let seen = Observed { epoch: second, ..observed() };
    let first = Target { generation: later(1), ..target(1, Class::Nixos) };
    assert_eq!(next(&seen, &journal, Some(&first)), Step::Begin);
    let old = target(8, Class::Nixos);
    assert_eq!(next(&seen, &Journal::default(), Some(&old)), Step::Idle);
    // And back again: in the next epoch an old number is lower than any.
    let journal = Journal { tried: Some(later(1)), ..Journal::default() };
    assert_eq!(next(&observed(), &journal, Some(&old)), Step::Idle);
}

#[test]
fn what_an_earlier_epoch_confirmed_goes_on_to_run_and_is_not_enforced() {
    let enforced = Rules { drift: DriftPolicy::Enforce, ..RULES.clone() };
    let foreign = path("foreign");
    let mut journal =
        Journal { confirmed: Some(known(7)), drift: Some(foreign.clone()), ..Journal::default() };
    if let Some(known) = &mut journal.confirmed {
        known.target = Some(Box::new(target(7, Class::Nixos)));
    }
    let seen = Observed { running: Some(&foreign), rules: &enforced, ..observed() };
    assert!(matches!(next(&seen, &journal, None), Step::Enforce(_)));
    let seen = Observed { epoch: Epoch::new(1).unwrap(), ..seen };
    assert_eq!(next(&seen, &journal, None), Step::Idle);
}
