use muster_protocol::checkin::Phase;
use muster_protocol::ids::{Generation, Sha256, StorePath};
use muster_protocol::keys::SecretKey;
use muster_protocol::machine::Class;
use muster_protocol::plan::Said;
use muster_protocol::policy::Policy;
use muster_protocol::report::{EventKind, Reason, UpdateStep};
use muster_protocol::target::{Action, Target};

use super::journal::LATER_MS;
use super::*;
use crate::core::policy::{Hold, Stage};
use crate::core::rollout::Followed;
use crate::core::state::State;

/// What is observed when a transaction ends on this system.
fn on<'a>(running: Option<&'a StorePath>) -> Settled<'a> {
    Settled { running, at: 5, ..Settled::default() }
}

const ANSWERS: Chance = Chance { answers: true, asked: false, console: None, at: 0 };

pub(crate) fn path(name: &str) -> StorePath {
    format!("/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-{name}").parse().unwrap()
}

pub(crate) fn target(number: u64, class: Class) -> Target {
    Target {
        rollout: None,
        machine: "m".parse().unwrap(),
        class,
        generation: Generation::new(number).unwrap(),
        system: match class {
            Class::Nixos => "x86_64-linux".parse().unwrap(),
            Class::Darwin => "aarch64-darwin".parse().unwrap(),
        },
        derivation: path(&format!("system-{number}.drv")),
        output: path(&format!("system-{number}")),
        action: Action::Switch,
        deadline_seconds: 60,
        checks: vec![],
        trusted_nix_keys: vec![],
        policy: Policy::default(),
        requires: vec![],
        message: None,
        evaluation: Default::default(),
    }
}

pub(crate) fn transaction(number: u64, state: State) -> Transaction {
    let mut transaction = Transaction::signed(format!("t{number}"), target(number, Class::Nixos), 1);
    transaction.state = state;
    transaction.old = Some(Old { running: Some(path("old")), profile: Some(path("old")) });
    transaction
}

pub(crate) fn rolled_back(reason: Reason) -> State {
    State::RolledBack { reason, detail: "why".into() }
}

#[test]
fn fields_of_a_later_version_are_kept() {
    let text = serde_json::to_string(&transaction(3, State::Probing)).unwrap();
    let text = text.replacen('{', r#"{"of the future":{"a":[1]},"#, 1);
    let read: Transaction = serde_json::from_str(&text).unwrap();
    assert_eq!(read.state, State::Probing);
    let again = serde_json::to_value(&read).unwrap();
    assert_eq!(again["of the future"]["a"][0], 1);
    let journal: Journal = serde_json::from_str(r#"{"version":9,"new":true}"#).unwrap();
    assert_eq!(serde_json::to_value(&journal).unwrap()["new"], true);
}

#[test]
fn a_recorded_transaction_of_version_0_1_still_parses() {
    let text = r#"{"version":1,"id":"a1","began":1700000000000,"state":{"state":"rolling-back",
        "reason":"deadline","detail":"x"},"origin":{"kind":"signed","target":{"machine":"stibnite",
        "class":"darwin","generation":3,"system":"aarch64-darwin",
        "derivation":"/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv",
        "output":"/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system"}}}"#;
    let read: Transaction = serde_json::from_str(text).unwrap();
    assert_eq!((read.generation().get(), read.class()), (3, Class::Darwin));
}

#[test]
fn settling_twice_is_settling_once() {
    let mut journal = Journal::default();
    let undone = transaction(2, rolled_back(Reason::ControllerUnreachable));
    journal.settle(&undone, on(Some(&path("old"))));
    let once = journal.clone();
    journal.settle(&undone, on(Some(&path("old"))));
    assert_eq!(journal, once);
}

#[test]
fn i5_a_failed_derivation_is_quarantined_and_an_interrupted_one_is_not() {
    for (reason, quarantined) in [
        (Reason::ActivationFailed, true),
        (Reason::HealthCheckFailed, true),
        (Reason::NotRunning, true),
        (Reason::DidNotBoot, true),
        (Reason::Deadline, true),
        (Reason::Operator, true),
        (Reason::Interrupted, false),
        (Reason::ControllerUnreachable, false),
        (Reason::NeedsHuman, false),
    ] {
        let mut journal = Journal::default();
        let undone = transaction(2, rolled_back(reason));
        let event = undone.final_event(Some(&path("old")), 1).unwrap();
        journal.settle(&undone, on(Some(&path("old"))));
        assert_eq!(journal.quarantined(&path("system-2.drv")).is_some(), quarantined, "{reason:?}");
        assert!(
            matches!(event, EventKind::RolledBack { quarantined: reported, .. } if reported == quarantined)
        );
        assert_eq!(journal.tried.unwrap().get(), 2);
    }
}

/// Cutting the controller off decides nothing permanently.
#[test]
fn an_absent_controller_is_forgiven_at_once_three_times_and_with_time_for_ever() {
    const HOUR: i64 = 3_600_000;
    let mut journal = Journal::default();
    let mut at = 0;
    for attempt in 0..20 {
        let mut undone = transaction(2, rolled_back(Reason::ControllerUnreachable));
        undone.id = format!("attempt {attempt}");
        journal.settle(&undone, Settled { at, ..on(None) });
        assert!(!undone.quarantines() && journal.quarantine.is_empty());
        let pause = match attempt {
            0..3 => 0,
            3..8 => HOUR << (attempt - 3),
            _ => 24 * HOUR,
        };
        let pause = pause.min(24 * HOUR);
        let may = |at| journal.may_retry(undone.generation(), Chance { at, ..ANSWERS });
        assert!(pause == 0 || !may(at + pause - 1), "attempt {attempt}");
        assert!(may(at + pause), "attempt {attempt}");
        let asked = Chance { asked: true, at, ..ANSWERS };
        assert!(journal.may_retry(undone.generation(), asked), "somebody says that it is back");
        at += pause;
    }
}

#[test]
fn a_generation_that_was_tried_again_and_came_to_another_end_is_not_begun_once_more() {
    let ends = [
        State::Confirmed { degraded: vec![] },
        rolled_back(Reason::HealthCheckFailed),
        rolled_back(Reason::Interrupted),
        State::Failed { step: UpdateStep::Build, detail: "x".into(), quarantined: false },
    ];
    for end in ends {
        let mut journal = Journal::default();
        journal.settle(&transaction(2, rolled_back(Reason::ControllerUnreachable)), on(None));
        let mut again = transaction(2, end);
        again.id = "again".into();
        assert!(journal.may_retry(again.generation(), ANSWERS));
        journal.settle(&again, on(None));
        assert!(!journal.may_retry(again.generation(), ANSWERS), "{}", again.state.name());
    }
}

#[test]
fn what_the_machine_was_in_the_way_of_is_tried_again_later_and_ever_more_rarely_or_when_asked() {
    let mut journal = Journal::default();
    for (attempt, hours) in [1, 1, 1, 1, 2, 4, 8, 16, 24, 24].into_iter().enumerate() {
        let failed = State::Failed { step: UpdateStep::Build, detail: "killed".into(), quarantined: false };
        let again = Transaction { id: format!("attempt {attempt}"), ..transaction(2, failed) };
        assert!(!again.quarantines());
        let at = 1_000_000;
        journal.settle(&again, Settled { at, ..Settled::default() });
        let chance = |at, asked| Chance { at, asked, answers: true, console: Some(501) };
        assert!(journal.quarantine.is_empty());
        assert!(
            !journal.may_retry(again.generation(), chance(at + hours * LATER_MS - 1, false)),
            "{attempt}"
        );
        assert!(journal.may_retry(again.generation(), chance(at + hours * LATER_MS, false)), "{attempt}");
        assert!(journal.may_retry(again.generation(), chance(at, true)), "every request is honoured");
    }
}

#[test]
fn a_local_rollback_quarantines_what_it_left_and_says_who_did_it() {
    let mut journal = Journal::default();
    journal.settle(&transaction(2, State::Confirmed { degraded: vec![] }), on(Some(&path("system-2"))));
    assert_eq!(journal.previous, Some(path("old")));
    let known = journal.confirmed.clone().unwrap();
    let mut back = Transaction::rollback("r".into(), &known, path("old"), Class::Nixos, 6);
    back.old = Some(Old { running: Some(path("system-2")), profile: None });
    back.state = State::Confirmed { degraded: vec![] };
    let event = back.final_event(Some(&path("old")), 1).unwrap();
    assert!(matches!(event, EventKind::RolledBack { reason: Reason::Operator, quarantined: true, .. }));
    journal.settle(&back, on(Some(&path("old"))));
    assert!(journal.quarantined(&path("system-2.drv")).is_some());
    assert_eq!(journal.expected, Some(path("old")));
    assert_eq!((journal.confirmed, journal.previous), (None, None));
}

#[test]
fn i5_a_confirmed_generation_that_did_not_boot_is_confirmed_no_longer_and_quarantined() {
    let mut journal = Journal::default();
    let seen = Settled { boot: Some("b1"), ..Settled::default() };
    let (new, old) = (path("system-2"), path("old"));
    let confirmed = transaction(2, State::Confirmed { degraded: vec![] });
    journal.settle(&confirmed, Settled { running: Some(&new), ..seen });
    assert_eq!((journal.seen_in.as_deref(), &journal.expected), (Some("b1"), &Some(new)));
    let was = Old { running: Some(old.clone()), profile: Some(old.clone()) };
    let signed = target(2, Class::Nixos);
    let mut back = Transaction::fallen_back("f".into(), signed.clone(), was, "why".into(), 6);
    assert_eq!((back.action(), back.state.name()), (Action::Boot, "rolling-back"));
    back.state = rolled_back(Reason::DidNotBoot);
    journal.followed = Some(Followed {
        plan: Sha256::of(b"plan"),
        name: "weekly".parse().unwrap(),
        wave: "canaries".into(),
        generation: signed.generation,
        output: signed.output.clone(),
        key: SecretKey::generate().unwrap().public(),
        soak_seconds: 60,
        soaked_ms: 60_000,
        said: Said::Soaked,
        failed: vec![],
    });
    let seen = Settled { running: Some(&old), boot: Some("b2"), ..seen };
    journal.settle(&back, seen);
    assert!(journal.quarantined(&signed.derivation).is_some());
    assert_eq!((&journal.confirmed, &journal.previous, &journal.drift), (&None, &None, &None));
    assert_eq!((journal.seen_in.as_deref(), &journal.expected), (Some("b2"), &Some(old.clone())));
    assert_eq!(journal.last.as_ref().unwrap().phase, Phase::RolledBack);
    let said = journal.followed.as_ref().map(|followed| followed.said);
    assert_eq!(said, Some(Said::Withdrawn), "what it had said of it in a rollout is taken back");
    // One that only waited for its first boot leaves the confirmed one alone.
    let mut journal = Journal::default();
    journal.settle(&confirmed, on(Some(&path("system-2"))));
    journal.settle(&transaction(3, rolled_back(Reason::DidNotBoot)), on(Some(&path("system-2"))));
    assert_eq!(journal.confirmed.unwrap().generation.get(), 2);
}

#[test]
fn the_same_system_under_a_new_number_keeps_the_one_before_it() {
    let mut journal = Journal::default();
    journal.settle(&transaction(2, State::Confirmed { degraded: vec![] }), on(Some(&path("system-2"))));
    let mut again = transaction(3, State::Confirmed { degraded: vec![] });
    let Origin::Signed { target } = &mut again.origin else { panic!("it is a signed one") };
    target.output = path("system-2");
    again.old = Some(Old { running: Some(path("system-2")), profile: None });
    journal.settle(&again, on(Some(&path("system-2"))));
    assert_eq!(journal.previous, Some(path("old")));
    assert_eq!(journal.confirmed.unwrap().generation.get(), 3);
}

#[test]
fn what_a_person_has_to_clear_is_told_as_such_and_may_come_again() {
    let mut journal = Journal::default();
    let undone = transaction(2, rolled_back(Reason::NeedsHuman));
    journal.settle(&undone, Settled { console: Some(501), ..on(Some(&path("old"))) });
    let last = journal.last.clone().unwrap();
    assert_eq!((last.phase, last.note.as_deref()), (Phase::NeedsHuman, Some("why")));
    let again = journal.again.unwrap();
    assert_eq!((again.cause, again.undone, again.console), (Cause::Person, 1, Some(501)));
    assert!(!journal.may_retry(undone.generation(), ANSWERS));
    assert!(journal.may_retry(undone.generation(), Chance { asked: true, ..Chance::default() }));
}

#[test]
fn a_system_that_was_brought_back_keeps_the_one_before_it_and_one_that_could_not_be_is_left() {
    let mut journal = Journal::default();
    journal.settle(&transaction(2, State::Confirmed { degraded: vec![] }), on(Some(&path("system-2"))));
    journal.drift = Some(path("by-hand"));
    let target = journal.confirmed.as_ref().unwrap().target.clone().unwrap();
    let mut back = Transaction::enforce("e".into(), *target, 6);
    back.old = Some(Old { running: Some(path("by-hand")), profile: None });
    let mut failed = back.clone();
    failed.state = rolled_back(Reason::HealthCheckFailed);
    let mut left = journal.clone();
    left.settle(&failed, on(Some(&path("by-hand"))));
    assert_eq!((left.left, left.expected), (Some(path("by-hand")), Some(path("system-2"))));
    assert!(left.quarantine.is_empty(), "it was good once");
    back.state = State::Confirmed { degraded: vec![] };
    journal.settle(&back, on(Some(&path("system-2"))));
    assert_eq!((journal.left, journal.previous), (None, Some(path("old"))));
    assert_eq!(journal.expected, Some(path("system-2")));
}

#[test]
fn a_trial_run_is_told_by_its_exit_code_and_expects_nothing_new() {
    for (exit, phase) in [(0, Phase::Confirmed), (3, Phase::Failed)] {
        let mut journal = Journal { expected: Some(path("old")), ..Journal::default() };
        let mut trial = transaction(2, State::Finished { exit, detail: "would stop x.service".into() });
        let Origin::Signed { target } = &mut trial.origin else { panic!("it is a signed one") };
        target.action = Action::DryActivate;
        let event = trial.final_event(Some(&path("old")), 1).unwrap();
        assert_eq!(matches!(event, EventKind::Confirmed { .. }), exit == 0);
        assert_eq!(matches!(event, EventKind::Failed { quarantined: false, .. }), exit != 0);
        journal.settle(&trial, on(Some(&path("old"))));
        assert_eq!(journal.expected, Some(path("old")));
        let last = journal.last.unwrap();
        assert_eq!(last.note.as_deref(), Some("would stop x.service"));
        assert_eq!(last.phase == Phase::Confirmed, phase == Phase::Confirmed, "{exit}");
    }
}

#[test]
fn the_quarantine_remembers_the_newest_and_not_for_ever() {
    let mut journal = Journal::default();
    for number in 1..=300 {
        journal.settle(&transaction(number, rolled_back(Reason::Deadline)), on(None));
    }
    assert_eq!(journal.quarantine.len(), 256);
    assert!(journal.quarantined(&path("system-300.drv")).is_some());
}

/// Failure mode 24: NEW's agent wrote these, then OLD's agent took over again. Both directions of every
/// document.
#[test]
fn failure_mode_24_documents_of_an_earlier_and_of_a_later_version_are_read() {
    let earlier = r#"{"version":1,"tried":3,"unreachable":{"generation":3,"undone":2},"quarantine":[],
        "confirmed":{"generation":2,"output":"/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-s","at":1}}"#;
    let journal: Journal = serde_json::from_str(earlier).unwrap();
    assert!(journal.may_retry(Generation::new(3).unwrap(), ANSWERS));
    assert_eq!(journal.confirmed.unwrap().target, None);
    let later = r#"{"version":7,"id":"a","began":1,"state":{"state":"levitating","height":3},"enforcing":false,
        "took":{"dance_ms":4},"origin":{"kind":"rollback","generation":3,"derivation":null,
        "output":"/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-s","class":"nixos"}}"#;
    let transaction: Transaction = serde_json::from_str(later).unwrap();
    assert_eq!(transaction.state, State::Unknown);
    let later = r#"{"version":7,"transaction":"a","class":"nixos","action":"switch","deadline_seconds":60,
        "new":"/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-s","old":{"running":null,"profile":null},
        "boot":"b","phase":"levitating","starts":1,"reason":"gravity","of the future":[1]}"#;
    let record: Activation = serde_json::from_str(later).unwrap();
    assert_eq!((record.phase, record.reason), (ActivationPhase::Unknown, Some(Reason::Unknown)));
    let deferred = r#"{"state":"deferred","why":"w","hold":"eclipse","stage":"orbit","until":4}"#;
    let state: State = serde_json::from_str(deferred).unwrap();
    assert!(
        matches!(state, State::Deferred { deferral, stage: Stage::Switch } if deferral.hold == Hold::Unknown)
    );
}

/// OLD has a different init, so NEW keeps running until the next boot.
#[test]
fn an_undone_system_that_runs_until_the_next_boot_makes_no_drift_of_that_boot() {
    let mut open = transaction(2, State::RolledBack { reason: Reason::Deadline, detail: String::new() });
    open.old = Some(Old { running: Some(path("old")), profile: Some(path("old")) });
    let mut journal = Journal::default();
    journal.settle(&open, on(Some(&path("system-2"))));
    assert_eq!((journal.expected, journal.after_boot), (Some(path("system-2")), Some(path("old"))));
    let mut journal = Journal::default();
    journal.settle(&open, on(Some(&path("old"))));
    assert_eq!((journal.expected, journal.after_boot), (Some(path("old")), None));
}

#[test]
fn what_could_not_be_undone_is_remembered_until_an_activation_ends_well_or_is_undone() {
    let mut journal = Journal::default();
    let settle = |journal: &mut Journal, id: &str, state| {
        let open = Transaction { id: id.to_owned(), ..transaction(2, state) };
        journal.settle(&open, on(None));
        open.output().clone()
    };
    let stuck = settle(&mut journal, "a", State::UndoFailed { reason: Reason::Deadline, detail: "x".into() });
    let failed = State::Failed { step: UpdateStep::Build, detail: "x".into(), quarantined: true };
    settle(&mut journal, "b", failed);
    assert_eq!(journal.leftovers, [stuck]);
    for n in 0..100 {
        settle(
            &mut journal,
            &n.to_string(),
            State::UndoFailed { reason: Reason::Deadline, detail: "x".into() },
        );
    }
    assert!(journal.leftovers.len() <= 8);
    settle(&mut journal, "c", State::RolledBack { reason: Reason::Deadline, detail: "x".into() });
    assert!(journal.leftovers.is_empty());
}
