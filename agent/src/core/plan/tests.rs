use muster_protocol::ids::Generation;
use muster_protocol::machine::Class;
use muster_protocol::policy::Policy;
use muster_protocol::report::UpdateStep as Ended;

use super::*;
use crate::core::policy::Pause;
use crate::core::reboot::Rebooted;
use crate::core::records::tests::{path, rolled_back, target, transaction};
use crate::core::records::{Again, Cause, Known, Origin, Settled};
use crate::core::window::Openness;

fn activation(number: u64, phase: Phase) -> Activation {
    let mut record = Activation::new(&transaction(number, State::Activating), "boot");
    (record.phase, record.exit, record.ms, record.starts) = (phase, Some(0), 1, 1);
    (record.reason, record.detail) = (Some(Reason::Deadline), "late".into());
    record
}

/// A machine on which nothing stands against anything.
static WELL: Circumstances = Circumstances {
    window: Openness::Open,
    on_battery: None,
    metered: false,
    free_disk: None,
    free_memory: None,
    busy: None,
    absent: None,
};
static RULES: std::sync::LazyLock<Rules> =
    std::sync::LazyLock::new(|| Rules::new(&Policy::default(), &Policy::default()));

fn observed<'a>() -> Observed<'a> {
    Observed {
        epoch: Epoch::default(),
        transaction: None,
        activation: None,
        activator_alive: true,
        given: None,
        running: None,
        boot: "boot",
        probed: None,
        controller: Controller { answers: true, reached_since_activation: true },
        rollback_asked: false,
        asked: false,
        console: None,
        rules: &RULES,
        circumstances: Some(&WELL),
        due: None,
        blockers: None,
        at: 1_000,
        not_before: None,
        now: Duration::from_secs(100),
    }
}

fn generation(number: u64) -> Generation {
    Generation::new(number).unwrap()
}

fn known(number: u64) -> Known {
    let target = Some(Box::new(target(number, Class::Nixos)));
    let output = path(&format!("system-{number}"));
    Known { generation: generation(number), output, derivation: None, at: 1, target }
}

fn tried(number: u64) -> Journal {
    Journal { tried: Some(generation(number)), ..Journal::default() }
}

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

fn deferred(hold: Hold, stage: Stage) -> State {
    State::Deferred { deferral: Deferral::new(hold, "x"), stage }
}

/// Every state from the activation on × every phase of the activator × alive or dead: a step that moves on, and
/// nothing is waited for that nobody does.
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
    let running = path("system-2");
    let seen = Settled { running: Some(&running), at: 1, console: None };
    journal.settle(&transaction(2, State::Confirmed { degraded: vec![] }), seen);
    let known: Known = journal.confirmed.clone().unwrap();
    assert_eq!(known.generation, generation(2));
    assert_eq!(next(&observed(), &journal, Some(&target(2, Class::Nixos))), Step::Idle);
}

#[test]
fn each_step_before_the_activation_is_taken_only_when_nothing_stands_against_it() {
    let closed = Circumstances {
        window: Openness::Closed { why: "outside".into(), opens: Some(9_000) },
        ..WELL.clone()
    };
    let full = Circumstances { free_disk: Some(0), ..WELL.clone() };
    for (state, stage) in [
        (State::Verified, Stage::Fetch),
        (State::Fetched, Stage::Build),
        (State::Built, Stage::Switch),
        (State::Checked, Stage::Switch),
    ] {
        let transaction = transaction(2, state);
        let step = |seen: Option<&Circumstances>| {
            let mut observed = observed();
            observed.transaction = Some(&transaction);
            observed.circumstances = seen;
            next(&observed, &tried(1), None)
        };
        assert_eq!(step(None), Step::Look(stage), "nothing is done unseen");
        assert!(!matches!(step(Some(&WELL)), Step::Defer(_)), "{stage:?}");
        assert!(matches!(step(Some(&full)), Step::Defer(Deferral { hold: Hold::Disk, .. })), "{stage:?}");
        assert_eq!(matches!(step(Some(&closed)), Step::Defer(_)), stage == Stage::Switch, "{stage:?}");
    }
}

#[test]
fn what_was_put_off_is_looked_at_again_goes_on_as_soon_as_it_may_and_tells_a_new_reason_once() {
    let closed = Circumstances {
        window: Openness::Closed { why: "outside".into(), opens: Some(31_000) },
        ..WELL.clone()
    };
    let busy = Circumstances { busy: Some("nixos-rebuild".into()), ..WELL.clone() };
    let until = Some(31_000);
    let deferral = Deferral { hold: Hold::Window, why: "outside, in other words".into(), until };
    let transaction = transaction(2, State::Deferred { deferral, stage: Stage::Switch });
    let step = |seen: Option<&Circumstances>| {
        let mut observed = observed();
        observed.transaction = Some(&transaction);
        observed.circumstances = seen;
        next(&observed, &tried(1), None)
    };
    assert_eq!(step(None), Step::Look(Stage::Switch));
    // Thirty seconds are left by the wall clock.
    assert_eq!(step(Some(&closed)), Step::Wait(Duration::from_secs(130)));
    assert!(matches!(step(Some(&busy)), Step::Defer(Deferral { hold: Hold::Busy, .. })));
    assert_eq!(step(Some(&WELL)), Step::Enter(Input::Retried));
}

#[test]
fn a_pause_holds_everything_but_a_local_rollback() {
    let pause = Pause { until: None, since: 0, by: Some(0) };
    let journal = Journal { pause: Some(pause), ..tried(1) };
    let signed = transaction(2, State::Verified);
    let back = Transaction::rollback("r".into(), &known(1), path("system-0"), Class::Nixos, 2);
    let mut observed = observed();
    observed.transaction = Some(&signed);
    assert!(matches!(next(&observed, &journal, None), Step::Defer(Deferral { hold: Hold::Paused, .. })));
    observed.transaction = Some(&back);
    assert_eq!(next(&observed, &journal, None), Step::Preflight);
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
        assert_eq!(step(&journal, false, Some(501)), Step::Idle, "the same one still sits there");
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
    // Whoever only asks to look again lifts nothing.
    assert_eq!(next(&Observed { asked: true, ..observed() }, &journal, Some(&target)), Step::Idle);
    assert!(journal.lift(&target));
    assert_eq!(next(&observed(), &journal, Some(&target)), Step::Begin);
    let again = Transaction { id: "again".into(), ..failed };
    journal.settle(&again, Settled::default());
    assert_eq!(next(&observed(), &journal, Some(&target)), Step::Idle);
    // A higher number of the same derivation is refused, and taken once it is lifted.
    let higher = Target { generation: generation(3), ..target };
    assert!(matches!(next(&observed(), &journal, Some(&higher)), Step::Refuse(_)));
    assert!(journal.lift(&higher));
    assert_eq!(next(&observed(), &journal, Some(&higher)), Step::Begin);
    assert!(!journal.lift(&higher), "nothing is held back any more");
}

#[test]
fn drift_is_left_alone_or_undone_as_the_policy_says_and_never_fought_over() {
    let (expected, other) = (path("system-2"), path("by-hand"));
    let mut journal = Journal { expected: Some(expected), drift: Some(other.clone()), ..tried(2) };
    journal.confirmed = Some(known(2));
    let policy = Policy { drift: Some(DriftPolicy::Enforce), ..Policy::default() };
    let enforce = Rules::new(&policy, &Policy::default());
    let mut observed = observed();
    observed.running = Some(&other);
    assert_eq!(next(&observed, &journal, None), Step::Idle, "it is told, and left");
    observed.rules = &enforce;
    assert_eq!(next(&observed, &journal, None), Step::Enforce(Box::new(target(2, Class::Nixos))));
    // A newer generation is the better answer.
    assert_eq!(next(&observed, &journal, Some(&target(3, Class::Nixos))), Step::Begin);
    journal.left = Some(other.clone());
    assert_eq!(next(&observed, &journal, None), Step::Idle, "it was tried, and could not be done");
    // Not told yet, so not undone yet.
    (journal.left, journal.drift) = (None, None);
    assert_eq!(next(&observed, &journal, None), Step::Idle);
}

#[test]
fn a_reboot_that_is_due_comes_when_the_policy_lets_it_and_nobody_is_in_the_way() {
    let due = Due { what: vec!["kernel".into()], mark: "k2".into() };
    let policy = Policy { reboot: Some(RebootPolicy::Now), ..Policy::default() };
    let now = Rules::new(&policy, &Policy::default());
    let alice = ["alice is logged in".to_owned()];
    let mut observed = observed();
    observed.due = Some(&due);
    assert_eq!(next(&observed, &tried(2), None), Step::Idle);
    let note = reboot_note(&observed, &tried(2)).unwrap().unwrap();
    assert!(note.waits.contains("people"), "{note:?}");
    observed.rules = &now;
    assert_eq!(next(&observed, &tried(2), None), Step::LookForBlockers);
    observed.blockers = Some(&alice);
    assert!(matches!(next(&observed, &tried(2), None), Step::Wait(_)));
    assert_eq!(reboot_note(&observed, &tried(2)).unwrap().unwrap().waits, "alice is logged in");
    observed.blockers = Some(&[]);
    assert_eq!(next(&observed, &tried(2), None), Step::Reboot(due.clone()));
    // A generation that waits to be tried comes first.
    assert_eq!(next(&observed, &tried(2), Some(&target(3, Class::Nixos))), Step::Begin);
    let mut journal = tried(2);
    journal.rebooted = Some(Rebooted { mark: "k2".into(), boot: "boot".into() });
    assert!(matches!(next(&observed, &journal, None), Step::Wait(_)), "it was asked for");
}

#[test]
fn a_generation_that_waits_for_a_reboot_may_bring_it_about() {
    let transaction = transaction(2, State::AwaitingReboot);
    let record = activation(2, Phase::AwaitingReboot);
    let policy = Policy { reboot: Some(RebootPolicy::Now), ..Policy::default() };
    let now = Rules::new(&policy, &Policy::default());
    let mut observed = observed();
    observed.transaction = Some(&transaction);
    observed.activation = Some(&record);
    observed.activator_alive = false;
    assert_eq!(next(&observed, &tried(1), None), Step::Idle);
    observed.rules = &now;
    observed.blockers = Some(&[]);
    let mark = path("system-2").as_str().to_owned();
    assert_eq!(next(&observed, &tried(1), None), Step::Reboot(Due { what: vec!["system".into()], mark }));
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

fn later(number: u64) -> Generation {
    Generation::of(Epoch::new(1).unwrap(), number).unwrap()
}

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

#[test]
fn a_target_that_requires_what_this_version_does_not_know_waits_for_a_newer_agent_and_is_told_once() {
    let mut open = transaction(2, State::Verified);
    let Origin::Signed { target: signed } = &mut open.origin else { panic!("signed") };
    signed.requires = vec!["gates".into()];
    let seen = Observed { transaction: Some(&open), ..observed() };
    let Step::Defer(deferral) = next(&seen, &tried(1), None) else { panic!("it is not begun") };
    assert_eq!(deferral.hold, Hold::Newer);
    assert!(
        deferral.why.contains("newer muster-agent") && deferral.why.ends_with("gates"),
        "{}",
        deferral.why
    );
    let waiting = Transaction { state: State::Deferred { deferral, stage: Stage::Fetch }, ..open };
    let seen = Observed { transaction: Some(&waiting), ..observed() };
    assert!(matches!(next(&seen, &tried(1), None), Step::Wait(_) | Step::Idle));
    // Neither failed nor in quarantine: what follows it takes its place.
    assert_eq!(next(&seen, &tried(1), Some(&target(3, Class::Nixos))), Step::Supersede);
    // And a version that knows all of it goes on.
    let mut understood = waiting.clone();
    let Origin::Signed { target: signed } = &mut understood.origin else { panic!("signed") };
    signed.requires.clear();
    let seen = Observed { transaction: Some(&understood), ..observed() };
    assert_eq!(next(&seen, &tried(1), None), Step::Enter(Input::Retried));
}
