//! Which generation is begun, and when one is tried again.

use super::*;

#[test]
fn failure_mode_21_i2_i5_only_a_higher_generation_begins() {
    let fresh = Journal::default();
    assert_eq!(next(&observed(), &fresh, None), Step::Idle);
    assert_eq!(next(&observed(), &fresh, Some(&target(1, Class::Nixos))), Step::Begin);
    for wanted in 1..6u64 {
        let step = next(&observed(), &tried(3), Some(&target(wanted, Class::Nixos)));
        assert_eq!(step, if wanted > 3 { Step::Begin } else { Step::Idle }, "{wanted}");
    }
}

#[test]
fn failure_mode_19_i5_a_quarantined_derivation_is_refused_under_every_number() {
    let mut journal = Journal::default();
    journal.settle(&transaction(2, rolled_back(Reason::HealthCheckFailed)), Settled::default());
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
        journal.again =
            Some(Again { generation: generation(2), undone, cause: Cause::Controller, console: None, at: 0 });
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
    let known = known(2);
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
        (deferred(Hold::Window, Stage::Fetch), Step::Enter(Input::Retried)),
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

#[test]
fn a_confirmed_generation_is_not_begun_again() {
    let mut journal = Journal::default();
    let running = path("system-2");
    let seen = Settled { running: Some(&running), at: 1, ..Settled::default() };
    journal.settle(&transaction(2, State::Confirmed { degraded: vec![] }), seen);
    let known: Known = journal.confirmed.clone().unwrap();
    assert_eq!(known.generation, generation(2));
    assert_eq!(next(&observed(), &journal, Some(&target(2, Class::Nixos))), Step::Idle);
}

#[test]
fn whoever_asks_for_the_system_before_need_not_wait_for_what_waits() {
    let waiting = transaction(3, deferred(Hold::Window, Stage::Switch));
    let journal = Journal { previous: Some(path("old")), ..tried(2) };
    let mut asked = observed();
    asked.rollback_asked = true;
    asked.transaction = Some(&waiting);
    assert_eq!(next(&asked, &journal, None), Step::Supersede);
    asked.transaction = None;
    assert_eq!(next(&asked, &journal, None), Step::BeginRollback(path("old")));
}

#[test]
fn what_a_person_was_in_the_way_of_is_tried_again_when_they_say_so_or_log_in() {
    let mut journal = tried(2);
    let target = target(2, Class::Nixos);
    let step = |journal: &Journal, asked, console| {
        let mut observed = observed();
        (observed.asked, observed.console) = (asked, console);
        next(&observed, journal, Some(&target))
    };
    for undone in [1, 3, 4] {
        let cause = Cause::Person;
        journal.again = Some(Again { generation: generation(2), undone, cause, console: Some(501), at: 0 });
        assert_eq!(step(&journal, false, Some(501)), Step::Idle, "the same user is still there");
        assert_eq!(step(&journal, false, None), Step::Idle);
        assert_eq!(step(&journal, true, None), Step::Begin);
        let by_login = if undone <= 3 { Step::Begin } else { Step::Idle };
        assert_eq!(step(&journal, false, Some(502)), by_login);
    }
}

#[test]
fn what_somebody_lifts_is_tried_again_once_and_held_back_again_when_it_fails_again() {
    let target = target(2, Class::Nixos);
    let mut failed = transaction(2, State::Fetched);
    failed.state = State::Failed { step: Ended::Build, detail: "no compiler".into(), quarantined: true };
    let mut journal = Journal::default();
    journal.settle(&failed, Settled::default());
    assert!(journal.quarantined(&target.derivation).is_some());
    assert_eq!(next(&observed(), &journal, Some(&target)), Step::Idle);
    // A request to look again does not lift a quarantine.
    assert_eq!(next(&Observed { asked: true, ..observed() }, &journal, Some(&target)), Step::Idle);
    assert!(journal.lift(&target));
    assert_eq!(next(&observed(), &journal, Some(&target)), Step::Begin);
    let again = Transaction { id: "again".into(), ..failed };
    journal.settle(&again, Settled::default());
    assert_eq!(next(&observed(), &journal, Some(&target)), Step::Idle);
    // A higher number of the same derivation is refused until the quarantine is lifted.
    let higher = Target { generation: generation(3), ..target };
    assert!(matches!(next(&observed(), &journal, Some(&higher)), Step::Refuse(_)));
    assert!(journal.lift(&higher));
    assert_eq!(next(&observed(), &journal, Some(&higher)), Step::Begin);
    assert!(!journal.lift(&higher), "nothing is in quarantine any more");
}
