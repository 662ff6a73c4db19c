//! Killed at the worst moments, a machine recovers by itself, and its reports arrive once.

use muster_protocol::operator::Condition;
use muster_protocol::report::{EventKind, Reason};
use muster_testbed::fleet::{Fleet, both};
use muster_testbed::stand_in::processes;
use rustix::process::Signal;

use crate::common::{
    assert_agrees_with_itself, assert_events_in_order, assert_runs_published, only_outcome, reported,
};

/// The slow step of an activation, by class.
const MIDDLE: [(&str, &str); 2] = [("cinnabar", "activate"), ("stibnite", "launchd")];

#[test]
fn an_agent_killed_while_it_builds_builds_again_and_reports_once() {
    let fleet = Fleet::start(&both()).unwrap();
    fleet.fixture.say("build-seconds", "3").unwrap();
    fleet.update(&[]).unwrap();
    for (name, _) in both() {
        fleet.until(name, "its build", |_| !fleet.pids(name, &["--realise"]).is_empty()).unwrap();
        fleet.kill_agent(name).unwrap();
    }
    for (name, _) in both() {
        fleet.settled(name, 1, Condition::UpToDate).unwrap();
        assert!(matches!(only_outcome(&fleet, name, 1), EventKind::Confirmed { .. }));
        assert_runs_published(&fleet, name);
        assert_events_in_order(&fleet, name);
    }
}

#[test]
fn an_agent_killed_while_its_machine_activates_finishes_and_reports_once() {
    let fleet = Fleet::start(&both()).unwrap();
    for (name, step) in MIDDLE {
        fleet.fixture.say(&format!("hang-at.{name}"), step).unwrap();
    }
    fleet.fixture.say("hang-seconds", "3").unwrap();
    fleet.update(&[]).unwrap();
    for (name, _) in both() {
        fleet.until(name, "its activation", |machine| machine.root.at("/run/hanging").exists()).unwrap();
        fleet.kill_agent(name).unwrap();
    }
    for (name, _) in both() {
        fleet.settled(name, 1, Condition::UpToDate).unwrap();
        assert!(matches!(only_outcome(&fleet, name, 1), EventKind::Confirmed { .. }));
        assert_runs_published(&fleet, name);
        assert_events_in_order(&fleet, name);
    }
}

#[test]
fn an_agent_killed_before_it_confirms_confirms_and_reports_once() {
    let fleet = Fleet::start(&both()).unwrap();
    fleet.fixture.say("health", "late").unwrap();
    fleet.update(&[]).unwrap();
    for (name, _) in both() {
        let output = fleet.view(name).unwrap().published.unwrap().target.output;
        fleet.until(name, "the new system", |machine| machine.running().as_ref() == Some(&output)).unwrap();
        fleet.kill_agent(name).unwrap();
    }
    for (name, _) in both() {
        fleet.settled(name, 1, Condition::UpToDate).unwrap();
        assert!(matches!(only_outcome(&fleet, name, 1), EventKind::Confirmed { .. }));
        assert_runs_published(&fleet, name);
        assert_events_in_order(&fleet, name);
    }
}

#[test]
fn everything_of_a_machine_killed_in_mid_activation_ends_on_one_system_and_is_reported_once() {
    let fleet = Fleet::start(&both()).unwrap();
    for (name, step) in MIDDLE {
        fleet.fixture.say(&format!("hang-at.{name}"), step).unwrap();
    }
    fleet.fixture.say("hang-seconds", "5").unwrap();
    fleet.update(&[]).unwrap();
    for (name, _) in both() {
        let machine = fleet.machine(name);
        fleet.until(name, "its activation", |machine| machine.root.at("/run/hanging").exists()).unwrap();
        machine.stop(true).unwrap();
        machine.start().unwrap();
    }
    for (name, _) in both() {
        fleet
            .wait(name, "an end", |view| {
                matches!(view.condition, Condition::UpToDate | Condition::RolledBack | Condition::Failed)
            })
            .unwrap();
        only_outcome(&fleet, name, 1);
        assert_agrees_with_itself(&fleet, name);
        assert_events_in_order(&fleet, name);
    }
}

#[test]
fn a_killed_activator_leaves_no_machine_between_two_systems() {
    let fleet = Fleet::start(&both()).unwrap();
    for (name, step) in MIDDLE {
        fleet.fixture.say(&format!("hang-at.{name}"), step).unwrap();
    }
    fleet.fixture.say("hang-seconds", "5").unwrap();
    fleet.fixture.say("deadline-seconds", "20").unwrap();
    fleet.update(&[]).unwrap();
    for (name, _) in both() {
        fleet.until(name, "its activation", |machine| machine.root.at("/run/hanging").exists()).unwrap();
        let activators = fleet.pids(name, &["activate"]);
        assert!(!activators.is_empty(), "{}", fleet.logs(name));
        for pid in activators {
            processes::signal(pid, Signal::KILL);
        }
    }
    for (name, _) in both() {
        fleet
            .wait(name, "an end", |view| {
                matches!(view.condition, Condition::UpToDate | Condition::RolledBack | Condition::Failed)
            })
            .unwrap();
        only_outcome(&fleet, name, 1);
        assert_agrees_with_itself(&fleet, name);
    }
}

#[test]
fn an_activation_that_fails_or_never_ends_is_undone_by_its_deadline() {
    let fleet = Fleet::start(&both()).unwrap();
    let before: Vec<_> = both().iter().map(|(name, _)| fleet.machine(name).running()).collect();
    fleet.fixture.say("deadline-seconds", "10").unwrap();
    for (name, step) in MIDDLE {
        fleet.fixture.say(&format!("fail-at.{name}"), step).unwrap();
    }
    fleet.update(&[]).unwrap();
    for ((name, _), before) in both().iter().zip(&before) {
        fleet.settled(name, 1, Condition::RolledBack).unwrap();
        assert_eq!(&fleet.machine(name).running(), before);
        assert_agrees_with_itself(&fleet, name);
        let outcome = only_outcome(&fleet, name, 1);
        assert!(
            matches!(
                outcome,
                EventKind::RolledBack { reason: Reason::ActivationFailed, quarantined: true, .. }
            ),
            "{outcome:?}"
        );
    }
    for (name, step) in MIDDLE {
        fleet.fixture.unsay(&format!("fail-at.{name}")).unwrap();
        fleet.fixture.say(&format!("hang-at.{name}"), step).unwrap();
    }
    fleet.update(&[]).unwrap();
    for ((name, _), before) in both().iter().zip(&before) {
        fleet.settled(name, 2, Condition::RolledBack).unwrap();
        assert_eq!(&fleet.machine(name).running(), before);
        assert_agrees_with_itself(&fleet, name);
        let outcome = only_outcome(&fleet, name, 2);
        assert!(
            matches!(outcome, EventKind::RolledBack { reason: Reason::Deadline, quarantined: true, .. }),
            "{outcome:?}"
        );
        assert!(fleet.pids(name, &["sleep", "100000"]).is_empty(), "nothing of the activation is left");
    }
}

#[test]
fn reports_wait_while_the_controller_is_down() {
    let mut fleet = Fleet::start(&both()).unwrap();
    fleet.fixture.say("build-seconds", "2").unwrap();
    fleet.update(&[]).unwrap();
    let mut outputs = Vec::new();
    for (name, _) in both() {
        outputs.push(fleet.view(name).unwrap().published.unwrap().target.output);
        fleet.until(name, "its build", |_| !fleet.pids(name, &["--realise"]).is_empty()).unwrap();
    }
    fleet.stop_controller().unwrap();
    for ((name, _), output) in both().iter().zip(&outputs) {
        fleet.until(name, "the new system", |machine| machine.running().as_ref() == Some(output)).unwrap();
        assert!(!fleet.agent_pids(name).is_empty(), "the agent lives on");
    }
    fleet.start_controller().unwrap();
    for (name, _) in both() {
        fleet.settled(name, 1, Condition::UpToDate).unwrap();
        assert!(matches!(only_outcome(&fleet, name, 1), EventKind::Confirmed { .. }));
        let events = reported(&fleet, name, 1);
        assert!(events.iter().any(|kind| matches!(kind, EventKind::Activated { exit: 0, .. })), "{events:?}");
        assert_events_in_order(&fleet, name);
    }
}

#[test]
fn a_system_that_was_undone_for_want_of_a_controller_is_tried_again_when_it_answers() {
    let mut fleet = Fleet::start(&both()).unwrap();
    let before: Vec<_> = both().iter().map(|(name, _)| fleet.machine(name).running()).collect();
    fleet.fixture.say("build-seconds", "2").unwrap();
    fleet.fixture.say("deadline-seconds", "10").unwrap();
    fleet.update(&[]).unwrap();
    let mut outputs = Vec::new();
    for (name, _) in both() {
        outputs.push(fleet.view(name).unwrap().published.unwrap().target.output);
        fleet.until(name, "its build", |_| !fleet.pids(name, &["--realise"]).is_empty()).unwrap();
    }
    fleet.stop_controller().unwrap();
    for ((name, _), output) in both().iter().zip(&outputs) {
        fleet.until(name, "the new system", |machine| machine.running().as_ref() == Some(output)).unwrap();
    }
    for ((name, _), before) in both().iter().zip(&before) {
        fleet.until(name, "the undo", |machine| &machine.running() == before).unwrap();
    }
    fleet.start_controller().unwrap();
    for (name, _) in both() {
        fleet.settled(name, 1, Condition::UpToDate).unwrap();
        assert_runs_published(&fleet, name);
        let events = reported(&fleet, name, 1);
        assert!(
            events.iter().any(|kind| matches!(
                kind,
                EventKind::RolledBack { reason: Reason::ControllerUnreachable, quarantined: false, .. }
            )),
            "{events:?}"
        );
        assert_events_in_order(&fleet, name);
    }
}
