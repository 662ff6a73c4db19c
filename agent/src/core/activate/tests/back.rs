use std::collections::VecDeque;

use muster_protocol::report::Reason;
use muster_protocol::target::Action;

use super::super::*;
use super::world::*;
use crate::core::records::tests::path;
use crate::core::records::{Activation, ActivationPhase as Phase, Old};

#[test]
fn failure_modes_12_and_13_an_undo_sets_old_by_name_and_runs_olds_own_script() {
    let mut world = World::new();
    world.verdict = Some(undo());
    let record = world.run(Action::Switch);
    assert_eq!((record.phase, record.reason), (Phase::Undone, Some(Reason::HealthCheckFailed)));
    let back = &world.did[7..];
    assert_eq!(back, ["write Undoing", "profile old", "switch old", "write Undone", "agent of old"]);
    assert_eq!((world.running, world.profile), (Some(path("old")), Some(path("old"))));
}

#[test]
fn an_old_system_with_another_init_comes_back_with_the_next_boot_and_needs_nobody() {
    let mut world = World::new();
    world.verdict = Some(undo());
    world.old = VecDeque::from([(100, Outcome::RebootNeeded)]);
    let record = world.run(Action::Switch);
    assert_eq!((record.phase, record.undo_exit), (Phase::Undone, Some(100)));
    assert!(record.detail.contains("comes back with the next reboot"), "{}", record.detail);
    assert_eq!(world.did.iter().filter(|did| *did == "switch old").count(), 1);
    assert_eq!((world.running, world.profile), (Some(path("system-2")), Some(path("old"))));
}

#[test]
fn old_is_tried_three_times_and_somebody_elses_switch_is_no_failure_of_it() {
    let mut world = World::new();
    world.verdict = Some(undo());
    world.old = VecDeque::from([(2, Outcome::ScriptFailed), (11, Outcome::Locked), (0, Outcome::Done)]);
    let record = world.run(Action::Switch);
    assert_eq!((record.phase, record.undo_exit), (Phase::Undone, Some(0)));

    let mut world = World::new();
    world.verdict = Some(undo());
    world.old = VecDeque::from([(2, Outcome::Failed)]);
    let record = world.run(Action::Switch);
    assert_eq!(record.phase, Phase::UndoFailed);
    assert!(
        record.detail.contains("ssh; going back to") && record.detail.contains("failed too"),
        "{record:?}"
    );
    assert_eq!(world.did.iter().filter(|did| *did == "switch old").count(), 3);
    assert_eq!(world.profile, Some(path("old")), "the next boot is OLD's");
}

#[test]
fn failure_mode_18_an_undo_that_says_it_succeeded_and_changed_nothing_is_not_believed() {
    let mut world = World::new();
    world.verdict = Some(undo());
    // It reports failed units and does not link itself, as the script of a failed system's `current-system`
    // does.
    world.old = VecDeque::from([(0, Outcome::Refused)]);
    assert_eq!(world.run(Action::Switch).phase, Phase::UndoFailed);
    let mut world = World::new();
    let course = Course::begin(record(Action::Switch), "boot", world.now);
    world.verdict = Some(undo());
    // After the undo somebody else's profile is in place.
    let mut course =
        world.follow(course, |_, act| matches!(act, Act::Run { system, .. } if *system == path("old")));
    for _ in 0..3 {
        course =
            world.follow(course, |_, act| matches!(act, Act::Run { system, .. } if *system == path("old")));
        let act = world.seen(|sight| course.next(sight));
        let done = world.perform(&act, &course.record);
        world.profile = Some(path("theirs"));
        world.seen(|sight| course.done(done, sight));
    }
    world.follow(course, |_, _| false);
    assert!(world.disk.unwrap().detail.contains("the system profile points elsewhere"));
}

#[test]
fn a_machine_without_an_earlier_system_has_nothing_to_go_back_to() {
    let mut world = World::new();
    (world.running, world.profile, world.verdict) = (None, None, Some(undo()));
    let mut first = record(Action::Switch);
    first.old = Old::default();
    let course = Course::begin(first, "boot", world.now);
    world.follow(course, |_, _| false);
    let record = world.disk.unwrap();
    assert_eq!(record.phase, Phase::UndoFailed);
    assert!(record.detail.contains("no earlier system"), "{}", record.detail);
}

/// A Mac whose undo failed keeps jobs of the system that could not be undone; its boots and other activations
/// look only at the link.
#[test]
fn i3_what_an_undo_that_failed_left_in_place_goes_with_the_next_activation_whichever_way_it_ends() {
    for (verdict, phase) in [(CONFIRM, Phase::Confirmed), (undo(), Phase::Undone)] {
        let mut world = World::new();
        world.verdict = Some(verdict);
        let next = Activation { leftovers: vec![path("stuck")], ..mac_record() };
        world.follow(Course::begin(next, "boot", world.now), |_, _| false);
        assert!(world.did.iter().any(|did| did == "tidy stuck"), "{:?}", world.did);
        assert_eq!(world.disk.unwrap().phase, phase);
    }
}
