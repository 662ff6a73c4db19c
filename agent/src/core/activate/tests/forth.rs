use std::collections::VecDeque;
use std::time::Duration;

use muster_protocol::report::Reason;
use muster_protocol::target::Action;

use super::super::*;
use super::world::*;
use crate::core::records::tests::path;
use crate::core::records::{ActivationPhase as Phase, Old, sets_profile};

#[test]
fn a_switch_is_recorded_before_each_of_its_steps() {
    let mut world = World::new();
    world.verdict = Some(CONFIRM);
    let record = world.run(Action::Switch);
    assert_eq!(record.phase, Phase::Confirmed);
    let expected = [
        "write Recorded",
        "profile system-2",
        "write ProfileSet",
        "write Activating",
        "switch system-2",
        "agent of system-2",
        "write Activated",
        "write Confirmed",
        "agent of system-2",
    ];
    assert_eq!(world.did, expected);
}

#[test]
fn failure_mode_29_the_deadline_counts_from_the_activation_and_in_time_awake() {
    let mut world = World::new();
    // Earlier attempts in this process count for nothing.
    world.now = Duration::from_secs(5000);
    let record = world.run(Action::Switch);
    assert_eq!((record.phase, record.reason), (Phase::Undone, Some(Reason::Deadline)));
    let waited = world.now - Duration::from_secs(5000);
    assert!(waited >= Duration::from_secs(60) && waited < Duration::from_secs(61), "{waited:?}");
}

#[test]
fn failure_mode_20_somebody_elses_switch_is_waited_for_before_anything_is_changed() {
    let mut world = World::new();
    world.verdict = Some(CONFIRM);
    world.others = (0..20).map(|_| Some("nixos-rebuild".to_owned())).collect();
    assert_eq!(world.run(Action::Switch).phase, Phase::Confirmed);
    assert!(world.now >= Duration::from_secs(10));
    // Forever is too long; the deadline has not started, and nothing was changed.
    let mut world = World::new();
    world.others = (0..100_000).map(|_| Some("nixos-rebuild".to_owned())).collect();
    let record = world.run(Action::Switch);
    assert_eq!(record.phase, Phase::Untouched);
    assert!(record.detail.contains("nixos-rebuild"), "{}", record.detail);
    assert_eq!(world.did, ["write Recorded", "write Untouched"]);
}

#[test]
fn failure_mode_20_what_somebody_else_switched_to_meanwhile_is_not_undone() {
    for (running, profile) in [("theirs", "theirs"), ("old", "theirs"), ("theirs", "old")] {
        let mut world = World::new();
        (world.running, world.profile) = (Some(path(running)), Some(path(profile)));
        assert_eq!(world.run(Action::Switch).phase, Phase::Untouched);
        assert_eq!((world.running, world.profile), (Some(path(running)), Some(path(profile))));
    }
    // Where an earlier activator had set the profile, only that is taken back.
    let mut world = World::new();
    (world.running, world.profile) = (Some(path("theirs")), Some(path("system-2")));
    let mut found = record(Action::Switch);
    (found.phase, found.starts) = (Phase::ProfileSet, 1);
    let course = world.seen(|sight| Course::resume(found, "boot", sight));
    world.follow(course, |_, _| false);
    assert_eq!(world.disk.unwrap().phase, Phase::Undone);
    assert_eq!((world.running, world.profile), (Some(path("theirs")), Some(path("old"))));
}

#[test]
fn exit_codes_are_told_apart() {
    for (exit, outcome, action, phase, words) in [
        (0, Outcome::Done, Action::Switch, Phase::Confirmed, ""),
        (4, Outcome::UnitsFailed, Action::Switch, Phase::Confirmed, ""),
        (100, Outcome::RebootNeeded, Action::Switch, Phase::AwaitingReboot, ""),
        (0, Outcome::Done, Action::Boot, Phase::AwaitingReboot, ""),
        (0, Outcome::Done, Action::Test, Phase::Confirmed, ""),
        (
            1,
            Outcome::Refused,
            Action::Switch,
            Phase::Undone,
            "checks or its boot loader refused (exit 1): words",
        ),
        (2, Outcome::ScriptFailed, Action::Switch, Phase::Undone, "activation script failed (exit 2)"),
        (4, Outcome::ScriptFailed, Action::Switch, Phase::Undone, "activation script failed (exit 4)"),
        (
            9,
            Outcome::Failed,
            Action::Switch,
            Phase::Undone,
            "broke off before the new system was in place (exit 9)",
        ),
        (3, Outcome::Failed, Action::DryActivate, Phase::Finished, "words"),
    ] {
        let mut world = World::new();
        (world.verdict, world.new) = (Some(CONFIRM), VecDeque::from([(exit, outcome)]));
        let record = world.run(action);
        assert_eq!((record.phase, record.exit), (phase, Some(exit)), "{outcome:?} {action:?}");
        assert!(record.detail.contains(words), "{}", record.detail);
        let sets = world.did.contains(&"profile system-2".to_owned());
        assert_eq!(sets, sets_profile(action));
    }
}

#[test]
fn a_lock_that_is_taken_in_between_is_waited_for_until_the_deadline() {
    let mut world = World::new();
    world.verdict = Some(CONFIRM);
    world.new = VecDeque::from([(11, Outcome::Locked), (11, Outcome::Locked), (0, Outcome::Done)]);
    assert_eq!(world.run(Action::Switch).phase, Phase::Confirmed);
    let mut world = World::new();
    world.new = VecDeque::from([(11, Outcome::Locked)]);
    let record = world.run(Action::Switch);
    assert_eq!((record.phase, record.reason), (Phase::Undone, Some(Reason::Interrupted)));
    // Each pause is longer than the one before: it is run a dozen times in the 60 seconds of the deadline.
    let runs = world.did.iter().filter(|did| *did == "switch system-2").count();
    assert!((5..20).contains(&runs), "{runs}");
}

/// For example, D-Bus is killed in mid-switch: exit code 1, with the link on NEW.
#[test]
fn what_broke_off_behind_the_link_is_not_told_as_refused_and_its_cause_stands_first() {
    let mut world = World::new();
    let mut course = Course::begin(record(Action::Switch), "boot", world.now);
    course = world.follow(course, |_, act| matches!(act, Act::Run { .. }));
    let _ = world.seen(|sight| course.next(sight));
    world.running = Some(path("system-2"));
    let output = "Checking switch inhibitors... done\nactivating the configuration...\n\
        Error: Failed to process dbus messages\n";
    let ran = Ran {
        exit: 1,
        output: output.to_owned(),
        timed_out: false,
        outcome: Outcome::Failed,
        person: None,
        ailing: Ailing::default(),
    };
    world.seen(|sight| course.done(Done::Ran(ran), sight));
    let detail = course.record.detail.clone();
    assert_eq!(
        detail.lines().next().unwrap(),
        "the activation broke off after the new system was in place (exit 1): Failed to process dbus messages"
    );
    assert!(detail.contains("activating the configuration..."), "the rest of it is kept: {detail}");
    // The result of the undo is in the first line as well.
    world.old = VecDeque::from([(2, Outcome::ScriptFailed)]);
    world.follow(course, |_, _| false);
    let detail = world.disk.unwrap().detail;
    assert!(detail.lines().next().unwrap().contains("; going back to"), "{detail}");
}

#[test]
fn what_the_activation_says_that_failed_is_recorded_and_a_users_session_degrades() {
    let mut world = World::new();
    world.verdict = Some(CONFIRM);
    let mut course = Course::begin(record(Action::Switch), "boot", world.now);
    course = world.follow(course, |_, act| matches!(act, Act::Run { .. }));
    let act = world.seen(|sight| course.next(sight));
    let Done::Ran(ran) = world.perform(&act, &course.record) else { panic!("it runs") };
    let ailing = Ailing { units: vec!["x.service".into()], sessions: vec!["the session of alice".into()] };
    let ran = Ran { exit: 4, outcome: Outcome::UnitsFailed, ailing, ..ran };
    world.seen(|sight| course.done(Done::Ran(ran), sight));
    world.follow(course, |_, _| false);
    let record = world.disk.unwrap();
    assert_eq!((record.phase, record.failed), (Phase::Confirmed, vec!["x.service".to_owned()]));
    assert_eq!(record.degraded, ["the session of alice"]);
}

#[test]
fn failure_mode_9_an_activation_that_hangs_is_undone() {
    let mut world = World::new();
    world.timed_out = true;
    let record = world.run(Action::Switch);
    assert_eq!((record.phase, record.reason), (Phase::Undone, Some(Reason::Deadline)));
    assert!(record.detail.contains("did not end within 60 s"), "{}", record.detail);
}

#[test]
fn a_system_that_refused_before_it_touched_anything_costs_only_its_profile() {
    for first in [false, true] {
        let mut world = World::new();
        let mut record = mac_record();
        if first {
            (world.running, world.profile, record.old) = (None, None, Old::default());
        }
        world.new = VecDeque::from([(2, Outcome::Untouched)]);
        world.old = VecDeque::from([(2, Outcome::Untouched)]);
        let course = Course::begin(record, "boot", world.now);
        world.follow(course, |_, _| false);
        assert_eq!(world.disk.as_ref().unwrap().phase, Phase::Undone, "{:?}", world.did);
        assert_eq!(world.did.iter().filter(|did| did.starts_with("switch")).count(), 1, "{:?}", world.did);
        assert_eq!(world.profile, (!first).then(|| path("old")));
    }
}
