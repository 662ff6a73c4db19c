//! With nothing new to install: drift and reboots.

use super::*;

#[test]
fn drift_is_left_alone_or_undone_as_the_policy_says_and_never_fought_over() {
    let (expected, other) = (path("system-2"), path("by-hand"));
    let mut journal = Journal { expected: Some(expected), drift: Some(other.clone()), ..tried(2) };
    journal.confirmed = Some(known(2));
    let policy = Policy { drift: Some(DriftPolicy::Enforce), ..Policy::default() };
    let enforce = Rules::new(&policy, &Policy::default());
    let mut observed = observed();
    observed.running = Some(&other);
    assert_eq!(next(&observed, &journal, None), Step::Idle, "it is reported, and left alone");
    observed.rules = &enforce;
    assert_eq!(next(&observed, &journal, None), Step::Enforce(Box::new(target(2, Class::Nixos))));
    // What is known not to work is not forced upon anybody.
    let mut condemned = journal.clone();
    let derivation = target(2, Class::Nixos).derivation;
    let (generation, detail) = (generation(2), "it did not boot".to_owned());
    condemned.quarantine.push(Quarantined { derivation, generation, detail, at: 0 });
    assert_eq!(next(&observed, &condemned, None), Step::Idle);
    // A newer generation is the better answer.
    assert_eq!(next(&observed, &journal, Some(&target(3, Class::Nixos))), Step::Begin);
    journal.left = Some(other.clone());
    assert_eq!(next(&observed, &journal, None), Step::Idle, "it was tried, and could not be done");
    // Not reported yet, so not undone yet.
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
    assert!(matches!(next(&observed, &journal, None), Step::Wait(_)), "it was already requested");
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
