use super::*;

pub(crate) fn path(name: &str) -> StorePath {
    format!("/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-{name}").parse().unwrap()
}

pub(crate) fn target(number: u64, class: Class) -> Target {
    Target {
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
        message: None,
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
    journal.settle(&undone, Some(&path("old")), 5);
    let once = journal.clone();
    journal.settle(&undone, Some(&path("old")), 6);
    assert_eq!(journal, once);
}

#[test]
fn i5_a_failed_derivation_is_quarantined_and_an_interrupted_one_is_not() {
    for (reason, quarantined) in [
        (Reason::ActivationFailed, true),
        (Reason::HealthCheckFailed, true),
        (Reason::NotRunning, true),
        (Reason::Deadline, true),
        (Reason::Operator, true),
        (Reason::Interrupted, false),
        (Reason::ControllerUnreachable, false),
    ] {
        let mut journal = Journal::default();
        let undone = transaction(2, rolled_back(reason));
        let event = undone.final_event(&journal, Some(&path("old")), 1).unwrap();
        journal.settle(&undone, Some(&path("old")), 5);
        assert_eq!(journal.quarantined(&path("system-2.drv")).is_some(), quarantined, "{reason:?}");
        assert!(matches!(event, EventKind::RolledBack { quarantined: told, .. } if told == quarantined));
        assert_eq!(journal.tried.unwrap().get(), 2);
    }
}

#[test]
fn an_absent_controller_is_forgiven_three_times() {
    let mut journal = Journal::default();
    for attempt in 0..=UNREACHABLE_RETRIES {
        let mut undone = transaction(2, rolled_back(Reason::ControllerUnreachable));
        undone.id = format!("attempt {attempt}");
        let last = attempt == UNREACHABLE_RETRIES;
        assert_eq!(undone.quarantines(&journal), last, "attempt {attempt}");
        journal.settle(&undone, None, 5);
        assert_eq!(journal.may_retry(undone.generation()), !last, "attempt {attempt}");
        assert_eq!(journal.quarantine.len(), usize::from(last));
    }
}

#[test]
fn a_generation_that_was_tried_again_and_came_to_another_end_is_not_begun_once_more() {
    let ends = [
        State::Confirmed { degraded: vec![] },
        rolled_back(Reason::HealthCheckFailed),
        rolled_back(Reason::Interrupted),
        State::Failed { step: Step::Build, detail: "x".into(), quarantined: false },
    ];
    for end in ends {
        let mut journal = Journal::default();
        journal.settle(&transaction(2, rolled_back(Reason::ControllerUnreachable)), None, 5);
        let mut again = transaction(2, end);
        again.id = "again".into();
        assert!(journal.may_retry(again.generation()));
        journal.settle(&again, None, 6);
        assert!(!journal.may_retry(again.generation()), "{}", again.state.name());
    }
}

#[test]
fn a_local_rollback_quarantines_what_it_left_and_says_who_did_it() {
    let mut journal = Journal::default();
    journal.settle(&transaction(2, State::Confirmed { degraded: vec![] }), Some(&path("system-2")), 5);
    assert_eq!(journal.previous, Some(path("old")));
    let known = journal.confirmed.clone().unwrap();
    let mut back = Transaction::rollback("r".into(), &known, path("old"), Class::Nixos, 6);
    back.old = Some(Old { running: Some(path("system-2")), profile: None });
    back.state = State::Confirmed { degraded: vec![] };
    let event = back.final_event(&journal, Some(&path("old")), 1).unwrap();
    assert!(matches!(event, EventKind::RolledBack { reason: Reason::Operator, quarantined: true, .. }));
    journal.settle(&back, Some(&path("old")), 7);
    assert!(journal.quarantined(&path("system-2.drv")).is_some());
    assert_eq!(journal.expected, Some(path("old")));
    assert_eq!((journal.confirmed, journal.previous), (None, None));
}

#[test]
fn the_same_system_under_a_new_number_keeps_the_one_before_it() {
    let mut journal = Journal::default();
    journal.settle(&transaction(2, State::Confirmed { degraded: vec![] }), Some(&path("system-2")), 5);
    let mut again = transaction(3, State::Confirmed { degraded: vec![] });
    let Origin::Signed { target } = &mut again.origin else { panic!("it is a signed one") };
    target.output = path("system-2");
    again.old = Some(Old { running: Some(path("system-2")), profile: None });
    journal.settle(&again, Some(&path("system-2")), 6);
    assert_eq!(journal.previous, Some(path("old")));
    assert_eq!(journal.confirmed.unwrap().generation.get(), 3);
}
