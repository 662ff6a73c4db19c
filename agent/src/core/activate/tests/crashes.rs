use std::collections::VecDeque;
use std::time::Duration;

use muster_protocol::report::Reason;
use muster_protocol::target::Action;

use super::super::*;
use super::world::*;
use crate::core::records::tests::path;
use crate::core::records::{Activation, ActivationPhase as Phase};

#[test]
fn i4_an_activator_that_is_killed_again_and_again_does_not_put_the_deadline_off() {
    let mut world = World::new();
    let mut course = Course::begin(record(Action::Switch), "boot", world.now);
    let mut lived = Duration::ZERO;
    for _ in 0..4 {
        // Each lives for ten seconds, by a clock that starts over.
        let life = Duration::from_secs(10);
        world.follow(course, |world, act| matches!(act, Act::Pause(_)) && world.now >= life);
        lived += world.now;
        world.now = Duration::ZERO;
        let record = world.disk.clone().unwrap();
        course = world.seen(|sight| Course::resume(record, "boot", sight));
    }
    world.follow(course, |_, _| false);
    lived += world.now;
    let record = world.disk.unwrap();
    assert_eq!((record.phase, record.reason), (Phase::Undone, Some(Reason::Deadline)));
    // A kill loses what was not recorded yet: less than a sixteenth of the deadline each time.
    assert!(lived < Duration::from_secs(60 + 4 * 4), "{lived:?}");
}

#[test]
fn a_machine_that_has_just_come_up_gets_the_whole_deadline() {
    let mut found = record(Action::Switch);
    (found.phase, found.spent_ms, found.starts) = (Phase::Activated, 59_000, 1);
    let mut world = World::new();
    (world.running, world.profile) = (Some(path("system-2")), Some(path("system-2")));
    let course = world.seen(|sight| Course::resume(found, "the next boot", sight));
    world.follow(course, |_, _| false);
    assert!(world.now >= Duration::from_secs(60), "{:?}", world.now);
    assert_eq!(world.disk.unwrap().boot, "the next boot");
}

#[test]
fn what_cannot_be_written_down_first_is_not_done() {
    let mut world = World::new();
    world.full = true;
    let course = Course::begin(record(Action::Switch), "boot", world.now);
    world.follow(course, |_, _| false);
    assert_eq!(world.did, Vec::<String>::new());
    // Full from the moment the profile was set: the profile goes back, and OLD's script need not run.
    let mut world = World::new();
    let mut course = Course::begin(record(Action::Switch), "boot", world.now);
    course = world.follow(course, |world, _| world.profile == Some(path("system-2")));
    world.full = true;
    world.follow(course, |_, _| false);
    assert_eq!(world.profile, Some(path("old")));
    assert!(!world.did.iter().any(|did| did.starts_with("switch")), "{:?}", world.did);
}

#[test]
fn failure_mode_10_a_disk_that_is_full_keeps_nobody_from_going_back() {
    let mut world = World::new();
    let mut course = Course::begin(record(Action::Switch), "boot", world.now);
    course = world.follow(course, |world, _| world.running == Some(path("system-2")));
    world.full = true;
    world.follow(course, |_, _| false);
    assert_eq!((&world.running, &world.profile), (&Some(path("old")), &Some(path("old"))));
    // The last record on disk is an earlier one: the next activator looks at the machine and ends on OLD as
    // well.
    let record = world.disk.clone().unwrap();
    assert_eq!(record.phase, Phase::Activating);
    world.full = false;
    let course = world.seen(|sight| Course::resume(record, "boot", sight));
    world.follow(course, |_, _| false);
    assert_eq!(world.disk.unwrap().phase, Phase::Undone);
    assert_eq!((world.running, world.profile), (Some(path("old")), Some(path("old"))));
}

#[test]
fn a_result_is_written_as_soon_as_the_disk_takes_it() {
    let mut world = World::new();
    world.verdict = Some(CONFIRM);
    let mut course = Course::begin(record(Action::Switch), "boot", world.now);
    course = world.follow(course, |world, act| *act == Act::Write && world.running == Some(path("system-2")));
    world.full = true;
    course = world.follow(course, |world, _| world.now >= Duration::from_secs(20));
    world.full = false;
    world.follow(course, |_, _| false);
    assert_eq!(world.disk.unwrap().phase, Phase::Confirmed);
}

/// After the reboot NEW ran and was unhealthy; OLD's script was killed between the link and the units.
#[test]
fn i3_an_undo_of_a_booted_system_that_was_cut_short_is_a_switch_to_its_end() {
    let mut world = World::new();
    let found =
        Activation { phase: Phase::Undoing, reason: Some(Reason::HealthCheckFailed), ..record(Action::Boot) };
    let course = world.seen(|sight| Course::resume(found, "boot", sight));
    world.follow(course, |_, _| false);
    assert_eq!(world.disk.as_ref().unwrap().phase, Phase::Undone);
    assert!(world.did.contains(&"switch old".to_owned()), "{:?}", world.did);
}

/// A Mac's agent that NEW unloaded would otherwise stay unloaded until the next boot.
#[test]
fn i9_the_agents_job_is_looked_after_though_the_activator_was_killed_behind_its_last_record() {
    for phase in [Phase::Undone, Phase::UndoFailed] {
        let mut world = World::new();
        let found = Activation { phase, ..record(Action::Switch) };
        let course = world.seen(|sight| Course::resume(found, "boot", sight));
        world.follow(course, |_, _| false);
        assert_eq!(world.did, ["agent of old"]);
    }
}

/// NEW's activation failed, the disk recorded nothing of the undo, and the machine rebooted into NEW when the
/// profile was back.
#[test]
fn i3_an_undo_that_a_full_disk_did_not_take_is_finished_after_a_reboot() {
    let mut world = World::new();
    (world.running, world.verdict) = (Some(path("system-2")), Some(CONFIRM));
    for phase in [Phase::Activating, Phase::Activated] {
        let found = Activation { phase, ..record(Action::Switch) };
        world.profile = found.old.profile.clone();
        let course = world.seen(|sight| Course::resume(found, "next boot", sight));
        world.follow(course, |_, _| false);
        let done = world.disk.clone().unwrap();
        assert_eq!((done.phase, done.reason), (Phase::Undone, Some(Reason::Interrupted)));
        assert_eq!((&world.running, &world.profile), (&Some(path("old")), &Some(path("old"))));
        world.running = Some(path("system-2"));
    }
}

/// Every act of a whole switch and a whole undo × killed before it × the same boot or the next: the activator
/// that takes it up brings the machine to OLD or NEW, and profile and running system agree (I3).
#[test]
fn i3_killed_before_any_step_the_next_activator_ends_on_old_or_new() {
    for verdict in [CONFIRM, undo()] {
        let steps = {
            let mut world = World::new();
            world.verdict = Some(verdict.clone());
            world.run(Action::Switch);
            world.did.len() + 4
        };
        for kill in 0..steps {
            for boot in ["boot", "the next boot"] {
                let mut world = World::new();
                world.verdict = Some(verdict.clone());
                let mut course = Course::begin(record(Action::Switch), "boot", world.now);
                for _ in 0..kill {
                    let act = world.seen(|sight| course.next(sight));
                    let done = world.perform(&act, &course.record);
                    world.seen(|sight| course.done(done, sight));
                }
                if boot != "boot" {
                    world.running = world.profile.clone();
                }
                let course = match world.disk.clone() {
                    Some(found) => world.seen(|sight| Course::resume(found, boot, sight)),
                    None => Course::begin(record(Action::Switch), boot, world.now),
                };
                world.follow(course, |_, _| false);
                let what = format!("{verdict:?} killed before step {kill}, then {boot}: {:?}", world.did);
                assert!(world.disk.as_ref().unwrap().phase.is_final(), "{what}");
                assert_eq!(world.running, world.profile, "{what}");
                let ends = [Some(path("old")), Some(path("system-2"))];
                assert!(ends.contains(&world.running), "{what}");
                if verdict == undo() {
                    assert_eq!(world.running, Some(path("old")), "{what}");
                }
            }
        }
    }
}

/// On a Mac the next boot points the link at the profile and brings nothing else of NEW, and NEW's activation
/// may be killed half way: in the end everything in place belongs to one system, the one that runs.
#[test]
fn i3_a_mac_that_lost_its_power_at_any_step_is_whole_in_the_end() {
    for verdict in [CONFIRM, undo()] {
        for kill in 0..16 {
            for boot in ["boot", "the next boot"] {
                let mut world = World::new();
                world.verdict = Some(verdict.clone());
                let mut course = Course::begin(mac_record(), "boot", world.now);
                for _ in 0..kill {
                    let act = world.seen(|sight| course.next(sight));
                    let done = world.perform(&act, &course.record);
                    world.seen(|sight| course.done(done, sight));
                }
                if matches!(world.seen(|sight| course.next(sight)), Act::Run { .. }) {
                    world.whole = None;
                }
                if boot != "boot" {
                    world.running = world.profile.clone();
                }
                let course = match world.disk.clone() {
                    Some(found) => world.seen(|sight| Course::resume(found, boot, sight)),
                    None => Course::begin(mac_record(), boot, world.now),
                };
                world.follow(course, |_, _| false);
                let what = format!("{verdict:?} killed before step {kill}, then {boot}: {:?}", world.did);
                let end = world.disk.as_ref().unwrap().phase;
                let system = if end == Phase::Undone { path("old") } else { path("system-2") };
                assert!(matches!(end, Phase::Undone | Phase::Confirmed), "{what}");
                for found in [&world.running, &world.profile, &world.whole] {
                    assert_eq!(found.as_ref(), Some(&system), "{what}");
                }
                assert!(verdict != CONFIRM || end == Phase::Confirmed, "{what}");
            }
        }
    }
}

#[test]
fn one_that_was_cut_short_and_then_refuses_is_undone_by_olds_own_script() {
    let mut world = World::new();
    world.new = VecDeque::from([(2, Outcome::Untouched)]);
    let course = Course::begin(mac_record(), "boot", world.now);
    world.follow(course, |_, act| matches!(act, Act::Run { .. }));
    (world.running, world.whole) = (world.profile.clone(), None);
    let found = world.disk.clone().unwrap();
    let course = world.seen(|sight| Course::resume(found, "the next boot", sight));
    world.follow(course, |_, _| false);
    assert_eq!(world.disk.as_ref().unwrap().phase, Phase::Undone);
    let old = Some(path("old"));
    assert_eq!((&world.running, &world.profile, &world.whole), (&old, &old, &old), "{:?}", world.did);
}

#[test]
fn a_mac_that_somebody_else_switched_after_the_power_cut_is_left_to_them() {
    let mut world = World::new();
    let course = Course::begin(mac_record(), "boot", world.now);
    world.follow(course, |_, act| matches!(act, Act::Run { .. }));
    (world.running, world.profile) = (Some(path("theirs")), Some(path("theirs")));
    let found = world.disk.clone().unwrap();
    let course = world.seen(|sight| Course::resume(found, "the next boot", sight));
    world.follow(course, |_, _| false);
    assert_eq!(world.disk.as_ref().unwrap().phase, Phase::Untouched);
    assert_eq!(world.profile, Some(path("theirs")));
}
