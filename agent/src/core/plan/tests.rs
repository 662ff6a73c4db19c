use muster_protocol::ids::Generation;
use muster_protocol::machine::Class;

use super::*;
use crate::core::records::tests::{path, rolled_back, target, transaction};
use crate::core::records::{Known, Old, Unknown, Unreachable};

fn activation(number: u64, phase: Phase) -> Activation {
    Activation {
        version: 1,
        transaction: format!("t{number}"),
        class: Class::Nixos,
        action: muster_protocol::target::Action::Switch,
        new: path(&format!("system-{number}")),
        old: Old::default(),
        deadline_seconds: 60,
        boot: "boot".into(),
        phase,
        starts: 1,
        exit: Some(0),
        ms: 1,
        reason: Some(Reason::Deadline),
        detail: "late".into(),
        undo_exit: None,
        degraded: vec![],
        unknown: Unknown::new(),
    }
}

fn observed<'a>() -> Observed<'a> {
    Observed {
        transaction: None,
        activation: None,
        activator_alive: true,
        given: None,
        running: None,
        boot: "boot",
        probed: None,
        controller: Controller { answers: true, reached_since_activation: true },
        rollback_asked: false,
        not_before: None,
        now: Duration::from_secs(100),
    }
}

fn generation(number: u64) -> Generation {
    Generation::new(number).unwrap()
}

fn tried(number: u64) -> Journal {
    Journal { tried: Some(generation(number)), ..Journal::default() }
}

#[test]
fn i2_i5_only_a_higher_generation_begins() {
    let fresh = Journal::default();
    assert_eq!(next(&observed(), &fresh, None), Step::Idle);
    assert_eq!(next(&observed(), &fresh, Some(&target(1, Class::Nixos))), Step::Begin);
    for wanted in 1..6u64 {
        let step = next(&observed(), &tried(3), Some(&target(wanted, Class::Nixos)));
        assert_eq!(step, if wanted > 3 { Step::Begin } else { Step::Idle }, "{wanted}");
    }
}

#[test]
fn i5_a_quarantined_derivation_is_refused_under_every_number() {
    let mut journal = Journal::default();
    journal.settle(&transaction(2, rolled_back(Reason::HealthCheckFailed)), None, 1);
    let mut again = target(3, Class::Nixos);
    again.derivation = path("system-2.drv");
    assert!(matches!(next(&observed(), &journal, Some(&again)), Step::Refuse(entry)
        if entry.generation == generation(2)));
    assert_eq!(next(&observed(), &journal, Some(&target(3, Class::Nixos))), Step::Begin);
}

#[test]
fn what_fell_to_an_absent_controller_is_tried_again_when_it_answers() {
    for (undone, answers, expected) in
        [(1, true, Step::Begin), (3, true, Step::Begin), (4, true, Step::Idle), (1, false, Step::Idle)]
    {
        let mut journal = tried(2);
        journal.unreachable = Some(Unreachable { generation: generation(2), undone });
        let mut observed = observed();
        observed.controller.answers = answers;
        assert_eq!(next(&observed, &journal, Some(&target(2, Class::Nixos))), expected, "{undone}");
    }
}

#[test]
fn a_rollback_goes_to_what_ran_before_and_only_where_that_is_known() {
    let mut asked = observed();
    asked.rollback_asked = true;
    let mut journal = tried(2);
    assert_eq!(next(&asked, &journal, Some(&target(2, Class::Nixos))), Step::Idle);
    journal.previous = Some(path("old"));
    assert_eq!(next(&asked, &journal, None), Step::BeginRollback(path("old")));
}

#[test]
fn a_local_rollback_goes_on_below_a_generation_that_was_undone() {
    // Generation 3 was tried and undone, 2 runs, and somebody goes back from it.
    let known = Known { generation: generation(2), output: path("system-2"), derivation: None, at: 1 };
    let back = Transaction::rollback("r".into(), &known, path("system-1"), Class::Nixos, 2);
    let mut observed = observed();
    observed.transaction = Some(&back);
    assert_eq!(next(&observed, &tried(3), Some(&target(3, Class::Nixos))), Step::Preflight);
    assert_eq!(next(&observed, &tried(3), Some(&target(4, Class::Nixos))), Step::Supersede);
}

#[test]
fn a_newer_generation_takes_the_place_of_one_that_changed_nothing_yet() {
    let states = [
        (State::Verified, Step::Fetch),
        (State::Fetched, Step::Build),
        (State::Built, Step::Preflight),
        (State::Checked, Step::StartActivator),
        (State::NeedsHuman { detail: "x".into() }, Step::Enter(Input::Retried)),
        (State::Deferred { why: "x".into() }, Step::Enter(Input::Retried)),
    ];
    for (state, expected) in states {
        let transaction = transaction(2, state);
        let mut observed = observed();
        observed.transaction = Some(&transaction);
        assert_eq!(next(&observed, &tried(1), Some(&target(2, Class::Nixos))), expected);
        assert_eq!(next(&observed, &tried(1), Some(&target(3, Class::Nixos))), Step::Supersede);
        observed.not_before = Some(Duration::from_secs(101));
        let step = next(&observed, &tried(1), None);
        assert_eq!(step, Step::Wait(Duration::from_secs(101)), "{expected:?}");
        observed.not_before = Some(Duration::from_secs(100));
        assert_eq!(next(&observed, &tried(1), None), expected);
    }
}

/// Every state from the activation on × every phase of the activator × alive or dead: a step that moves on, and
/// nothing is waited for that nobody does.
#[test]
fn i3_whatever_was_left_behind_there_is_a_step_that_leads_on() {
    let (reason, detail) = (Reason::Deadline, "late".to_owned());
    let states =
        [State::Activating, State::Probing, State::AwaitingReboot, State::RollingBack { reason, detail }];
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
        panic!("the activator is told to undo");
    };
    assert!(matches!(verdict, GivenVerdict::Undo { reason: Reason::Interrupted, .. }));
    let given = Confirmation { transaction: "t2".into(), verdict };
    observed.given = Some(&given);
    assert_eq!(next(&observed, &Journal::default(), Some(&newer)), Step::RestartActivator);
    // After the reboot the activator looks what came up.
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
fn a_confirmed_generation_is_not_begun_again() {
    let mut journal = Journal::default();
    journal.settle(&transaction(2, State::Confirmed { degraded: vec![] }), Some(&path("system-2")), 1);
    let known: Known = journal.confirmed.clone().unwrap();
    assert_eq!(known.generation, generation(2));
    assert_eq!(next(&observed(), &journal, Some(&target(2, Class::Nixos))), Step::Idle);
}
