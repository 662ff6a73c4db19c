//! A gated target is not switched to before its turn, whatever else is observed.

use muster_protocol::ids::Sha256;
use muster_protocol::plan::{Gate, Lack, Place};

use super::*;
use crate::core::rollout::Says;

fn place() -> Place {
    Place { plan: Sha256::of(b"plan"), wave: 1 }
}

fn gated(number: u64) -> Target {
    let requires = vec!["rollouts".to_owned()];
    Target { rollout: Some(place()), requires, ..target(number, Class::Nixos) }
}

fn open(state: State) -> Transaction {
    let mut open = Transaction::signed("t2".into(), gated(2), 1);
    open.state = state;
    open
}

fn turn(gate: Option<Gate>, says: Says) -> Turn {
    Turn { place: place(), missing: None, is_expired: false, gate, says }
}

fn step(open: &Transaction, turn: Option<&Turn>) -> Step {
    next(&Observed { transaction: Some(open), turn, ..observed() }, &tried(1), Some(&gated(2)))
}

fn closed() -> Gate {
    Gate::Closed(Lack::Wave { wave: 0, name: "canaries".into(), have: 0, need: 1 })
}

#[test]
fn it_is_fetched_and_built_and_goes_no_further_without_gate_and_leave() {
    assert_eq!(step(&open(State::Verified), None), Step::Fetch);
    assert_eq!(step(&open(State::Fetched), None), Step::Build);
    let turns = [
        None,
        Some(turn(None, Says::Nothing)),
        Some(turn(None, Says::Go)),
        Some(turn(Some(closed()), Says::Go)),
        Some(turn(Some(Gate::Open), Says::Nothing)),
        Some(turn(Some(Gate::Open), Says::Lapsed)),
        Some(turn(Some(Gate::Open), Says::Wait("the brake is on".into()))),
        Some(Turn { is_expired: true, ..turn(Some(Gate::Open), Says::Go) }),
        Some(Turn { missing: Some("too large".into()), ..turn(Some(Gate::Open), Says::Go) }),
    ];
    for turn in turns {
        for state in [State::Built, State::Checked] {
            let step = step(&open(state), turn.as_ref());
            assert!(matches!(step, Step::Defer(_)), "{turn:?}: {step:?}");
        }
    }
    let go = turn(Some(Gate::Open), Says::Go);
    assert_eq!(step(&open(State::Built), Some(&go)), Step::Preflight);
    assert_eq!(step(&open(State::Checked), Some(&go)), Step::StartActivator);
}

#[test]
fn leave_that_is_taken_back_between_preflight_and_start_holds_it() {
    let checked = open(State::Checked);
    let taken_back = turn(Some(Gate::Open), Says::Wait("the rollout is halted".into()));
    let Step::Defer(deferral) = step(&checked, Some(&taken_back)) else { panic!("it must wait") };
    assert_eq!((deferral.hold, deferral.why.as_str()), (Hold::Rollout, "the rollout is halted"));
    let deferred = open(State::Deferred { deferral, stage: Stage::Switch });
    assert!(matches!(step(&deferred, Some(&taken_back)), Step::Wait(_)));
    let go = turn(Some(Gate::Open), Says::Go);
    assert_eq!(step(&deferred, Some(&go)), Step::Enter(Input::Retried));
}

#[test]
fn urgency_opens_no_gate_and_an_order_between_holds_is_kept() {
    let urgent = Rules { urgent: true, ..Rules::default() };
    let built = open(State::Built);
    let waits = turn(Some(closed()), Says::Go);
    let hold = |rules: &Rules, seen: &Circumstances, journal: &Journal| {
        let observed = Observed {
            transaction: Some(&built),
            turn: Some(&waits),
            rules,
            circumstances: Some(seen),
            ..observed()
        };
        match next(&observed, journal, None) {
            Step::Defer(deferral) => deferral.hold,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(hold(&urgent, &WELL, &tried(1)), Hold::Wave);
    let closed = Openness::Closed { why: "outside".into(), opens: None };
    let outside = Circumstances { window: closed, ..WELL.clone() };
    assert_eq!(hold(&RULES, &outside, &tried(1)), Hold::Window);
    let paused = Journal { pause: Some(Pause { until: None, since: 0, by: None }), ..tried(1) };
    assert_eq!(hold(&urgent, &WELL, &paused), Hold::Paused);
}

#[test]
fn a_local_rollback_and_a_restored_generation_ask_no_gate() {
    let known = known(1);
    let back = Transaction::rollback("r".into(), &known, path("system-0"), Class::Nixos, 2);
    assert_eq!(step(&back, None), Step::Supersede, "a newer generation is wanted");
    let seen = Observed { transaction: Some(&back), ..observed() };
    assert_eq!(next(&seen, &tried(2), None), Step::Preflight);
    let restored = |state| {
        let open = Transaction { state, ..Transaction::enforce("e".into(), gated(2), 1) };
        next(&Observed { transaction: Some(&open), ..observed() }, &tried(2), None)
    };
    assert_eq!(restored(State::Built), Step::Preflight);
    assert_eq!(restored(State::Checked), Step::StartActivator);
}

#[test]
fn another_try_of_a_gated_generation_asks_gate_and_leave_again() {
    let mut journal = tried(2);
    journal.again =
        Some(Again { generation: generation(2), undone: 1, cause: Cause::Controller, console: None, at: 0 });
    assert_eq!(next(&observed(), &journal, Some(&gated(2))), Step::Begin);
    let again = open(State::Built);
    let seen = Observed { transaction: Some(&again), turn: None, ..observed() };
    assert!(matches!(next(&seen, &journal, Some(&gated(2))), Step::Defer(_)));
}

#[test]
fn it_is_said_that_a_machine_waits_for_its_turn_until_the_activator_is_started() {
    let awaits = |state, turn: &Turn| {
        let open = open(state);
        awaits_turn(&step(&open, Some(turn)), Some(&open))
    };
    let waiting = turn(None, Says::Nothing);
    let deferred =
        |hold| State::Deferred { deferral: Deferral::new(hold, "waits for its wave"), stage: Stage::Switch };
    assert_eq!(awaits(State::Fetched, &waiting), Some(false));
    assert_eq!(awaits(State::Built, &waiting), Some(true));
    assert_eq!(awaits(deferred(Hold::Wave), &waiting), Some(true));
    let missing = Turn { missing: Some("too large".into()), ..waiting };
    assert_eq!(awaits(State::Built, &missing), Some(false), "no leave helps it");
    // Whoever said meanwhile that it no longer waits would have its leave taken back.
    let go = turn(Some(Gate::Open), Says::Go);
    for state in [deferred(Hold::Wave), State::Built, State::Checked] {
        assert_eq!(awaits(state, &go), None);
    }
    let started = open(State::Activating);
    assert_eq!(awaits_turn(&Step::Watch, Some(&started)), Some(false));
    assert_eq!(awaits_turn(&Step::Idle, None), Some(false));
}
