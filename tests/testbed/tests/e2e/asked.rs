//! What is asked wrongly of a rollout, by real operators: it fails, and one sentence says what to do.

use std::fs;

use muster_protocol::operator::{Condition, MemberState, RolloutState, RolloutView};
use muster_testbed::fleet::{Fleet, both, said};
use muster_testbed::printed;

use crate::operators::flake;

/// Every verb that does something to a rollout.
const VERBS: [&str; 6] = ["pause", "resume", "stop", "undo", "retry", "skip-wave"];

/// It fails, says all of this, and has an error of one line and a hint at most.
#[track_caller]
fn fails(fleet: &Fleet, arguments: &[&str], told: &[&str]) {
    let output = fleet.run(arguments).unwrap();
    let text = said(&output);
    assert!(!output.status.success(), "{arguments:?} was accepted: {text}");
    for words in told {
        assert!(text.contains(words), "{arguments:?} lacks '{words}': {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

#[track_caller]
fn verb_fails(fleet: &Fleet, verb: &str, name: &str, told: &[&str]) {
    let yes: &[&str] = if ["stop", "undo", "skip-wave"].contains(&verb) { &["--yes"] } else { &[] };
    fails(fleet, &[&["rollout", verb, name], yes].concat(), told);
}

fn view(fleet: &Fleet) -> RolloutView {
    printed::read(&fleet.must(&["rollout", "show", "weekly", "--json"]).unwrap()).unwrap()
}

/// Publishes this greeting: to cinnabar, and to stibnite once cinnabar has soaked.
fn publish(fleet: &Fleet, greeting: &str, soak: &str) {
    fleet.fixture.say("greeting", greeting).unwrap();
    let waves = fleet.folder().join("weekly.toml");
    let text = format!(
        "[[waves]]\nname = \"first\"\nmachines = [\"cinnabar\"]\nsoak = \"{soak}\"\n\
         [[waves]]\nname = \"rest\"\nsoak = \"1s\"\n"
    );
    fs::write(&waves, text).unwrap();
    let update = ["update", "--yes", "--flake", &flake(fleet), "--rollout-file", waves.to_str().unwrap()];
    fleet.must(&update).unwrap();
}

#[test]
fn a_command_that_a_rollout_has_no_use_for_fails_and_says_what_to_do() {
    let fleet = Fleet::start(&both()).unwrap();
    for verb in VERBS.iter().chain(&["show", "watch"]) {
        verb_fails(&fleet, verb, "weekly", &["there is no rollout 'weekly'", "muster update --rollout NAME"]);
    }
    fails(&fleet, &["rollback", "cinnabar", "--yes"], &["nothing was published", "muster update cinnabar"]);
    fails(&fleet, &["rollback", "@nobody", "--yes"], &["no machine has the tag nobody; there are all"]);
    fails(&fleet, &["brake", "--off"], &["off already", "muster rollout list"]);
    fleet.must(&["brake", "-m", "a storm"]).unwrap();
    fails(&fleet, &["brake"], &["on already, since", "a storm", "`muster brake --off` releases it"]);
    fleet.must(&["brake", "--off"]).unwrap();

    // The first generation of both: there is nothing before it.
    fleet.must(&["machines", "prove"]).unwrap();
    publish(&fleet, "one", "9h");
    fleet.settled("cinnabar", 1, Condition::UpToDate).unwrap();
    verb_fails(&fleet, "retry", "weekly", &["no machine of weekly has failed", "muster rollout show"]);
    verb_fails(&fleet, "resume", "weekly", &["weekly", "is running", "Nothing has changed by that"]);
    fleet.must(&["rollout", "pause", "weekly"]).unwrap();
    verb_fails(&fleet, "pause", "weekly", &["'muster rollout resume weekly' goes on", "Nothing has changed"]);
    verb_fails(&fleet, "retry", "weekly", &["no machine of weekly has failed", "muster rollout resume"]);
    fleet.must(&["rollout", "resume", "weekly"]).unwrap();
    verb_fails(&fleet, "undo", "weekl", &["no rollout 'weekl'; there is weekly (", "--all"]);
    let plan = view(&fleet).plan.short();
    let none = ["cinnabar confirmed no other system before generation 1", "muster update cinnabar"];
    verb_fails(&fleet, "undo", "weekly", &[&["weekly stays stopped"], &none[..]].concat());
    verb_fails(&fleet, "undo", "weekly", &none);
    let ended = format!("the rollout weekly ({plan}) has ended: it is stopped");
    for verb in VERBS.iter().filter(|verb| **verb != "undo") {
        verb_fails(&fleet, verb, "weekly", &[&ended, &format!("muster rollout undo {plan}")]);
    }
    for (to, told) in [
        ("99999", "generation 99999 of cinnabar is not held; the controller holds 1"),
        ("1.1", "generation 1.1 of cinnabar is not held; the controller holds 1"),
        ("0", "generations begin at 1"),
        ("soon", "it must be NUMBER, or EPOCH.NUMBER"),
        ("1", "was given the system of generation 1 last"),
    ] {
        fails(&fleet, &["rollback", "cinnabar", "--yes", "--to", to], &[told]);
    }
    fails(&fleet, &["rollback", "@all", "--yes"], &["muster update cinnabar", "muster update stibnite"]);
    assert_eq!(fleet.view("cinnabar").unwrap().published.unwrap().target.generation.get(), 1);

    // Another generation takes its place; then one that everybody takes.
    fleet.fixture.say("greeting", "two").unwrap();
    // That they wait no longer is the controller's word: it is said that nobody should.
    fleet.update(&["--at-once"]).unwrap();
    for (name, _) in both() {
        fleet.settled(name, 2, Condition::UpToDate).unwrap();
    }
    verb_fails(
        &fleet,
        "undo",
        "weekly",
        &["stopped already, and no machine runs", "nothing is left to undo"],
    );
    publish(&fleet, "three", "1s");
    fleet.settled("stibnite", 3, Condition::UpToDate).unwrap();
    fleet
        .wait("stibnite", "its soak", |view| {
            view.rollout.as_ref().is_some_and(|place| place.state == MemberState::Soaked)
        })
        .unwrap();
    let done = view(&fleet);
    assert_eq!(done.state, RolloutState::Done, "{done:?}");
    for verb in VERBS.iter().filter(|verb| **verb != "undo") {
        verb_fails(&fleet, verb, "weekly", &["has ended: it is done", "muster rollout undo"]);
    }
    fleet.must(&["rollout", "undo", "weekly", "--yes"]).unwrap();
    fleet.settled("cinnabar", 4, Condition::UpToDate).unwrap();
    assert_eq!(fleet.machine("cinnabar").greeting().unwrap(), "two");
    verb_fails(&fleet, "undo", "weekly", &["weekly is stopped already, and no machine runs what it brought"]);
}

#[test]
fn what_a_revoked_machine_holds_goes_on_with_the_command_that_is_told() {
    let fleet = Fleet::start(&both()).unwrap();
    fleet.must(&["machines", "prove"]).unwrap();
    publish(&fleet, "one", "9h");
    fleet.settled("cinnabar", 1, Condition::UpToDate).unwrap();
    fleet.must(&["machines", "revoke", "stibnite"]).unwrap();
    let halted = view(&fleet);
    assert_eq!(halted.state, RolloutState::Halted, "{halted:?}");
    verb_fails(
        &fleet,
        "resume",
        "weekly",
        &["stibnite was revoked", "'muster rollout retry weekly' goes on"],
    );
    fleet.must(&["rollout", "retry", "weekly"]).unwrap();
    assert_eq!(view(&fleet).state, RolloutState::Running);
}
