//! A rollout that is undone with one command, and going back where two operators must sign.

use std::fs;

use muster_protocol::draft::DraftView;
use muster_protocol::operator::{Condition, MemberState, RolloutState, RolloutView};
use muster_protocol::report::EventKind;
use muster_testbed::fleet::{Fleet, both, said};
use muster_testbed::printed;

use crate::common::assert_runs_published;
use crate::operators::{Operator, flake, refused};

const FIRST: [&str; 2] = ["cinnabar", "stibnite"];

/// Machines of both classes, and one more.
fn three() -> Vec<(&'static str, String)> {
    let mut all = both();
    all.push(("tin", all[0].1.clone()));
    all
}

/// Everybody runs `one`, and `two` is published: to the first two, and to tin after so long a soak.
fn begin(fleet: &Fleet, soak: &str) {
    fleet.must(&["machines", "prove"]).unwrap();
    fleet.fixture.say("greeting", "two").unwrap();
    let waves = fleet.folder().join("weekly.toml");
    let text = format!(
        "[[waves]]\nname = \"first\"\nmachines = [\"cinnabar\", \"stibnite\"]\natLeast = 2\nmaxInFlight = 2\n\
         soak = \"{soak}\"\n[[waves]]\nname = \"rest\"\nsoak = \"1s\"\n"
    );
    fs::write(&waves, text).unwrap();
    let update = ["update", "--yes", "--flake", &flake(fleet), "--rollout-file", waves.to_str().unwrap()];
    fleet.must(&update).unwrap();
}

fn view(fleet: &Fleet, name: &str) -> RolloutView {
    printed::read(&fleet.must(&["rollout", "show", name, "--json"]).unwrap()).unwrap()
}

fn drafts(fleet: &Fleet) -> Vec<DraftView> {
    printed::read(&fleet.must(&["drafts", "list", "--json"]).unwrap()).unwrap()
}

fn published(fleet: &Fleet, name: &str) -> u64 {
    fleet.view(name).unwrap().published.unwrap().target.generation.get()
}

/// From now on two operators sign.
fn second(fleet: &Fleet) -> Operator {
    let bob = Operator::new(fleet, "bob");
    fleet
        .must(&["keys", "add", "operator", &bob.public, "--name", "bob", "--threshold", "2", "--yes"])
        .unwrap();
    bob
}

#[track_caller]
fn assert_greets(fleet: &Fleet, name: &str, greeting: &str) {
    assert_runs_published(fleet, name);
    assert_eq!(fleet.machine(name).greeting().unwrap(), greeting, "{name}");
}

#[test]
fn one_command_stops_a_rollout_and_takes_back_whoever_began() {
    let fleet = Fleet::start(&three()).unwrap();
    fleet.fixture.say("greeting", "one").unwrap();
    fleet.update(&[]).unwrap();
    for (name, _) in three() {
        fleet.settled(name, 1, Condition::UpToDate).unwrap();
    }
    begin(&fleet, "9h");
    for name in FIRST {
        fleet.settled(name, 2, Condition::UpToDate).unwrap();
        assert_greets(&fleet, name, "two");
    }

    let undo = ["rollout", "undo", "weekly"];
    let dry = fleet.must(&[&undo[..], &["--dry-run"]].concat()).unwrap();
    assert!(dry.contains("would be stopped") && dry.contains("cinnabar (nixos) generation 3"), "{dry}");
    assert_eq!(view(&fleet, "weekly").state, RolloutState::Running);
    // It stops before anybody agrees.
    let halfway = fleet.run(&undo).unwrap();
    refused(&halfway, &["nobody is here to answer", "weekly stays stopped", "muster rollout undo"]);
    let stopped = view(&fleet, "weekly");
    assert_eq!(stopped.state, RolloutState::Stopped);
    assert_eq!(FIRST.map(|name| published(&fleet, name)), [2, 2]);

    let undone = fleet.must(&[&undo[..], &["--yes", "--watch", "-m", "too loud"]].concat()).unwrap();
    assert!(undone.contains("wait for what is published next: tin"), "{undone}");
    for name in FIRST {
        fleet.settled(name, 3, Condition::UpToDate).unwrap();
        assert_greets(&fleet, name, "one");
        let target = fleet.history(name).unwrap().remove(0).published.target;
        assert_eq!(target.message.as_deref(), Some("rollback to 1: too loud"));
        assert_eq!((target.rollout, target.requires.len()), (None, 0));
    }
    // The other one never switched, and has nothing to switch to.
    assert_eq!(published(&fleet, "tin"), 2);
    let events = fleet.events("tin", 2).unwrap();
    assert!(!events.iter().any(|kind| matches!(kind, EventKind::Activating { .. })), "{events:?}");
    assert_eq!(fleet.machine("tin").greeting().unwrap(), "one");
    let ended = view(&fleet, "weekly");
    let states: Vec<MemberState> = ended.members.iter().map(|member| member.state).collect();
    assert_eq!(states.iter().filter(|state| **state == MemberState::Left).count(), 2, "{ended:?}");

    // Again, and by its digits: nothing is left, and nothing changes.
    for name in ["weekly", &ended.plan.hex()[..12]] {
        let again = fleet.run(&["rollout", "undo", name, "--yes"]).unwrap();
        refused(&again, &["weekly is stopped already, and no machine runs what it brought"]);
    }
    assert_eq!(FIRST.map(|name| published(&fleet, name)), [3, 3]);
}

#[test]
fn where_two_sign_a_rollback_is_a_draft_until_the_second_has_signed() {
    let fleet = Fleet::start(&both()[..1]).unwrap();
    for (number, greeting) in [(1, "one"), (2, "two")] {
        fleet.fixture.say("greeting", greeting).unwrap();
        fleet.update(&[]).unwrap();
        fleet.settled("cinnabar", number, Condition::UpToDate).unwrap();
    }
    let bob = second(&fleet);
    let drafted = fleet.must(&["rollback", "cinnabar", "--yes", "--unverified"]).unwrap();
    // It was signed by one operator, when one was enough.
    assert!(drafted.contains("not signed by enough of today's operators"), "{drafted}");
    let id = drafts(&fleet)[0].id.short();
    assert!(drafted.contains(&format!("muster sign {id}")), "{drafted}");
    assert_eq!(published(&fleet, "cinnabar"), 2);
    assert_greets(&fleet, "cinnabar", "two");

    let shown = bob.must(&fleet, &["drafts", "show", &id]);
    assert!(shown.contains("generation 3") && shown.contains("rollback to 1"), "{shown}");
    let signed = bob.must(&fleet, &["sign", &id, "--yes"]);
    assert!(signed.contains("published generation 3"), "{signed}");
    fleet.settled("cinnabar", 3, Condition::UpToDate).unwrap();
    assert_greets(&fleet, "cinnabar", "one");
    assert!(drafts(&fleet).is_empty());
    // Two signed what it runs now.
    let back = fleet.run(&["rollback", "cinnabar", "--to", "1", "--yes"]).unwrap();
    assert!(!back.status.success(), "{}", said(&back));
}

#[test]
fn where_two_sign_a_skipped_wave_and_an_undo_are_drafts_and_the_undo_stops_it_at_once() {
    let fleet = Fleet::start(&three()).unwrap();
    fleet.fixture.say("greeting", "one").unwrap();
    fleet.update(&[]).unwrap();
    for (name, _) in three() {
        fleet.settled(name, 1, Condition::UpToDate).unwrap();
    }
    let bob = second(&fleet);
    let sign_with = |more: &[&str], what: &str| {
        let id = drafts(&fleet)[0].id.short();
        let signed = bob.must(&fleet, &[&["sign", &id, "--yes"], more].concat());
        assert!(signed.contains(what), "{what}: {signed}");
    };
    let sign = |what: &str| sign_with(&[], what);
    fleet.machine("stibnite").stop(true).unwrap();
    begin(&fleet, "1s");
    sign("Rollout weekly: 3 machines in 2 waves");
    fleet.settled("cinnabar", 2, Condition::UpToDate).unwrap();
    fleet
        .wait("cinnabar", "its soak", |view| {
            view.rollout.as_ref().is_some_and(|place| place.state == MemberState::Soaked)
        })
        .unwrap();
    let before = view(&fleet, "weekly");
    assert!(!before.waves[1].open, "{before:?}");

    let drafted = fleet.must(&["rollout", "skip-wave", "weekly", "--yes"]).unwrap();
    assert!(
        drafted.contains("'first' is no longer waited for: 1 of 2 have proved that they soaked"),
        "{drafted}"
    );
    assert!(drafted.contains("weekly waits as before"), "{drafted}");
    assert_eq!(published(&fleet, "tin"), 2);
    sign("1. rest, 1 machine: tin");
    fleet.settled("tin", 3, Condition::UpToDate).unwrap();
    assert_greets(&fleet, "tin", "two");
    let plan = fleet.view("tin").unwrap().rollout.unwrap().plan;
    assert_ne!(plan, before.plan);

    // The first plan's machine stays where it is: it is of another rollout.
    let drafted = fleet.must(&["rollout", "undo", &plan.short(), "--yes", "--unverified"]).unwrap();
    assert!(drafted.contains("is stopped") && drafted.contains("waits for 1 signature more"), "{drafted}");
    assert_eq!(view(&fleet, &plan.short()).state, RolloutState::Stopped);
    assert_eq!(published(&fleet, "tin"), 3);
    // It is signed again without a gate: the second signer says that it is meant.
    let id = drafts(&fleet)[0].id.short();
    bob.refused(&fleet, &["sign", &id, "--yes"], &["would switch at once, without a rollout", "--at-once"]);
    sign_with(&["--at-once"], "published generation 4");
    fleet.settled("tin", 4, Condition::UpToDate).unwrap();
    assert_greets(&fleet, "tin", "one");
    assert_greets(&fleet, "cinnabar", "two");
}
