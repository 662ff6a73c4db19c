//! What the activator left, dead or alive, and the verdict that it waits for.

use super::*;

/// Every state from the activation on × every phase of the activator × alive or dead: the step makes
/// progress, and never waits for something that nobody does.
#[test]
fn i3_whatever_was_left_behind_there_is_a_step_that_leads_on() {
    let (reason, detail) = (Reason::Deadline, "late".to_owned());
    let states = [
        State::Activating,
        State::Probing,
        State::AwaitingReboot,
        State::RollingBack { reason, detail },
        State::Unknown,
    ];
    for state in states {
        let transaction = transaction(2, state.clone());
        for phase in Phase::ALL.into_iter().map(Some).chain([None]) {
            for alive in [true, false] {
                let record = phase.map(|phase| activation(2, phase));
                let mut observed = observed();
                observed.transaction = Some(&transaction);
                observed.activation = record.as_ref();
                observed.activator_alive = alive;
                let what = format!("{} {phase:?} alive: {alive}", state.name());
                match next(&observed, &Journal::default(), None) {
                    Step::Enter(input) => {
                        assert!(state.clone().after(input).is_ok(), "{what}");
                    }
                    Step::Watch => assert!(alive, "{what}"),
                    Step::RestartActivator => assert!(!alive, "{what}"),
                    Step::Probe => assert!(alive && phase == Some(Phase::Activated), "{what}"),
                    Step::Idle => {
                        assert!(
                            state == State::AwaitingReboot && phase == Some(Phase::AwaitingReboot),
                            "{what}"
                        );
                    }
                    Step::Supersede => {
                        assert!(state == State::Unknown && phase.is_none() && !alive, "{what}");
                    }
                    other => panic!("{what}: {other:?}"),
                }
            }
        }
    }
}

#[test]
fn the_record_of_another_transaction_says_nothing() {
    let transaction = transaction(2, State::Activating);
    let record = activation(1, Phase::Confirmed);
    let mut observed = observed();
    observed.transaction = Some(&transaction);
    observed.activation = Some(&record);
    assert_eq!(next(&observed, &Journal::default(), None), Step::Watch);
    observed.activator_alive = false;
    assert_eq!(next(&observed, &Journal::default(), None), Step::RestartActivator);
}

#[test]
fn a_verdict_is_given_once_and_a_waiting_one_is_replaced() {
    let transaction = transaction(2, State::Probing);
    let record = activation(2, Phase::Activated);
    let new = path("system-2");
    let mut observed = observed();
    observed.transaction = Some(&transaction);
    observed.activation = Some(&record);
    observed.running = Some(&new);
    let step = |observed: &Observed<'_>| next(observed, &Journal::default(), None);
    assert_eq!(step(&observed), Step::Probe);
    let probed = Probed { checks: vec![], failed_after: vec![] };
    observed.probed = Some(&probed);
    observed.controller.reached_since_activation = false;
    let waiting = GivenVerdict::Waiting { missing: Reason::ControllerUnreachable };
    assert_eq!(step(&observed), Step::Give(waiting.clone()));
    let given = Confirmation { transaction: "t2".into(), verdict: waiting };
    observed.given = Some(&given);
    assert_eq!(step(&observed), Step::Watch);
    observed.controller.reached_since_activation = true;
    let confirm = GivenVerdict::Confirm { degraded: vec![] };
    assert_eq!(step(&observed), Step::Give(confirm.clone()));
    let given = Confirmation { transaction: "t2".into(), verdict: confirm.clone() };
    observed.given = Some(&given);
    assert_eq!(step(&observed), Step::Watch);
    let other = Confirmation { transaction: "t1".into(), verdict: confirm.clone() };
    observed.given = Some(&other);
    assert_eq!(step(&observed), Step::Give(confirm));
}

#[test]
fn i4_without_an_activator_nothing_is_probed_before_there_is_one_again() {
    let transaction = transaction(2, State::Probing);
    let record = activation(2, Phase::Activated);
    let mut observed = observed();
    observed.transaction = Some(&transaction);
    observed.activation = Some(&record);
    observed.activator_alive = false;
    assert_eq!(next(&observed, &Journal::default(), None), Step::RestartActivator);
}

#[test]
fn a_system_that_waits_for_a_reboot_is_taken_back_for_a_newer_one() {
    let transaction = transaction(2, State::AwaitingReboot);
    let record = activation(2, Phase::AwaitingReboot);
    let mut observed = observed();
    observed.activator_alive = false;
    observed.transaction = Some(&transaction);
    observed.activation = Some(&record);
    let newer = target(3, Class::Nixos);
    let Step::Give(verdict) = next(&observed, &Journal::default(), Some(&newer)) else {
        panic!("the activator is to undo");
    };
    assert!(matches!(verdict, GivenVerdict::Undo { reason: Reason::Interrupted, .. }));
    let given = Confirmation { transaction: "t2".into(), verdict };
    observed.given = Some(&given);
    assert_eq!(next(&observed, &Journal::default(), Some(&newer)), Step::RestartActivator);
    // After the reboot the activator finds out what booted.
    observed.boot = "another";
    assert_eq!(next(&observed, &Journal::default(), None), Step::RestartActivator);
}

#[test]
fn an_activation_whose_transaction_was_lost_comes_to_its_end_before_another_begins() {
    for phase in Phase::ALL {
        let record = activation(1, phase);
        let mut observed = observed();
        observed.activation = Some(&record);
        let over = phase.is_final() || phase == Phase::AwaitingReboot;
        for (alive, waiting) in [(true, Step::Watch), (false, Step::RestartActivator)] {
            observed.activator_alive = alive;
            let step = next(&observed, &Journal::default(), Some(&target(2, Class::Nixos)));
            assert_eq!(step, if over { Step::Begin } else { waiting }, "{phase:?}");
        }
    }
}

#[test]
fn an_activator_that_gave_up_before_it_changed_anything_leaves_a_generation_that_waits() {
    let transaction = transaction(2, State::Activating);
    let record = activation(2, Phase::Untouched);
    let mut observed = observed();
    observed.transaction = Some(&transaction);
    observed.activation = Some(&record);
    for alive in [true, false] {
        observed.activator_alive = alive;
        let step = next(&observed, &tried(1), None);
        assert!(
            matches!(&step, Step::Enter(Input::Untouched { deferral }) if deferral.hold == Hold::Busy),
            "{step:?}"
        );
    }
}
