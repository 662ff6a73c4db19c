//! Generation numbers that should never have been used, and how root holders leave them behind: a new epoch.

use std::fs;

use muster_protocol::api;
use muster_protocol::checkin::{CheckIn, Holds, Phase};
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::Generation;
use muster_protocol::keys::Context;
use muster_protocol::operator::{Condition, MachineView};
use muster_protocol::report::Attack;
use muster_testbed::caller::{Caller, key_in};
use muster_testbed::fleet::{Fleet, both};
use muster_testbed::stolen::Stolen;

use crate::common::{assert_events_in_order, assert_runs_published};
use crate::operators::{Operator, flake, log, refused};

fn generation(text: &str) -> Generation {
    text.parse().unwrap()
}

fn published(view: &MachineView) -> String {
    view.published.as_ref().map_or_else(String::new, |published| published.target.generation.to_string())
}

/// Waits until the machine has confirmed this generation, `EPOCH.NUMBER`, and runs it.
#[track_caller]
fn confirmed(fleet: &Fleet, name: &str, number: &str) {
    let wanted = generation(number);
    fleet
        .wait(name, &format!("generation {number}"), |view| {
            view.condition == Condition::UpToDate
                && published(view) == number
                && view.runs.as_ref().is_some_and(|runs| runs.generation == Some(wanted))
        })
        .unwrap();
    assert_runs_published(fleet, name);
}

/// Checks in for a machine that is off, with its own key: it claims to hold this generation.
fn claim(fleet: &Fleet, name: &str, targets: u64) {
    let state = fleet.machine(name).root.at("/var/lib/muster");
    let view = fleet.view(name).unwrap();
    // Like its agent: the number is on the disk before it is sent, and no earlier check-in is unanswered.
    let numbers = state.join("checkin-seq");
    let seq = fs::read_to_string(&numbers).unwrap().trim().parse::<u64>().unwrap() + 1;
    fs::write(&numbers, seq.to_string()).unwrap();
    let _ = fs::remove_file(state.join("checkin.json"));
    let caller = Caller::new(&fleet.address, &fleet.controller_folder().join("root/1.root.json")).unwrap();
    let check_in = CheckIn {
        understands: vec![],
        signing: None,
        vouch: None,
        awaits: None,
        audience: caller.fleet(),
        machine: view.machine,
        class: view.class,
        system: view.system,
        boot_id: "a claim".into(),
        seq,
        clock: SystemClock::new().unix_ms(),
        agent: view.agent.unwrap(),
        runs: view.runs,
        holds: Holds { targets, ..view.holds },
        phase: Phase::Idle,
        phase_generation: None,
        note: None,
        refused: None,
        health: view.health,
        new_key: None,
        age: None,
        followed: vec![],
        shown: None,
        session: None,
    };
    let key = key_in(&state.join("machine.pem")).unwrap();
    let body = serde_json::to_vec(&check_in).unwrap();
    let answered = caller.post_as(&key, Context::CheckIn, api::CHECKIN, body).unwrap();
    assert!(answered.is_good(), "{}", answered.text());
    assert_eq!(fleet.view(name).unwrap().holds.targets, targets);
}

#[test]
fn a_claimed_number_is_not_counted_on_from_and_one_that_was_signed_is_left_behind_by_a_new_epoch() {
    let fleet = Fleet::start(&both()).unwrap();
    fleet.update(&[]).unwrap();
    for (name, _) in both() {
        fleet.settled(name, 1, Condition::UpToDate).unwrap();
    }
    // A colleague whose computer has seen nothing yet.
    let bob = Operator::new(&fleet, "bob");
    fleet.must(&["keys", "add", "operator", &bob.public, "--name", "bob", "--yes"]).unwrap();
    fleet.machine("cinnabar").stop(true).unwrap();
    let update = ["update", "--force", "--yes", "--flake", &flake(&fleet)];
    let one = [&update[..], &["cinnabar"]].concat();

    // There is no number above it, whoever asks.
    claim(&fleet, "cinnabar", u64::MAX);
    for arguments in [one.clone(), [&one[..], &["--jump-to", "281474976710656"]].concat()] {
        refused(&fleet.run(&arguments).unwrap(), &["18446744073709551615", "seen signed here is 1"]);
    }
    // A number that skips nearly all of them is not signed either; both numbers are named.
    claim(&fleet, "cinnabar", 1 << 40);
    let words = ["1099511627777", "seen signed is 1"];
    refused(&fleet.run(&one).unwrap(), &words);
    bob.refused(&fleet, &one, &words);
    assert_eq!(published(&fleet.view("cinnabar").unwrap()), "1");
    // One machine's claim does not keep another from its update, but the command does not succeed either.
    refused(&fleet.run(&update).unwrap(), &["1099511627777 of cinnabar"]);
    fleet.settled("stibnite", 2, Condition::UpToDate).unwrap();
    assert_eq!(published(&fleet.view("cinnabar").unwrap()), "1");

    // An explicit option continues; the machine accepts the number, since it is within the limit.
    claim(&fleet, "cinnabar", 1 << 20);
    refused(&fleet.run(&one).unwrap(), &["1048577", "seen signed is 1", "--jump-to 1048577"]);
    // What it was given last cannot be told then: it may wait in a rollout.
    refused(
        &fleet.run(&[&one[..], &["--jump-to", "1048577"]].concat()).unwrap(),
        &["in which they may still wait", "--at-once"],
    );
    fleet.must(&[&one[..], &["--jump-to", "1048577", "--at-once"]].concat()).unwrap();
    fleet.machine("cinnabar").start().unwrap();
    confirmed(&fleet, "cinnabar", "1048577");

    // Only the root holders can bring it back.
    let said = fleet.must(&["keys", "new-epoch", "--yes"]).unwrap();
    for words in ["+ epoch 1 (before: 0)", "Root 3 is in force", "Epoch 1 has begun", "muster update"] {
        assert!(said.contains(words), "'{words}' is missing in: {said}");
    }
    let runs = fleet.machine("cinnabar").running();
    let dry = fleet.must(&["update", "--dry-run", "--flake", &flake(&fleet)]).unwrap();
    assert!(dry.contains("generation 1.1: unchanged, and signed anew"), "{dry}");
    fleet.update(&[]).unwrap();
    for (name, _) in both() {
        confirmed(&fleet, name, "1.1");
        assert_events_in_order(&fleet, name);
    }
    assert_eq!(fleet.machine("cinnabar").running(), runs, "the same system under a new number");
    let again = fleet.update(&[]).unwrap();
    assert!(again.contains("nothing to sign"), "{again}");
    fleet.fixture.say("greeting", "on").unwrap();
    bob.must(&fleet, &["update", "--yes", "--flake", &flake(&fleet)]);
    for (name, _) in both() {
        confirmed(&fleet, name, "1.2");
    }
    let history = fleet.must(&["history", "cinnabar"]).unwrap();
    for number in ["1.2", "1.1", "1048577"] {
        assert!(history.contains(number), "{number} is missing in: {history}");
    }
    refused(&fleet.run(&["keys", "new-epoch", "--yes", "--threshold", "2"]).unwrap(), &["--threshold"]);
    // A token is valid in the epoch in which it was made.
    let replaced = ["machines", "add", "stibnite", "--class", "darwin", "--replace"];
    let token = muster_protocol::enrol::Token::decode(&fleet.must(&replaced).unwrap()).unwrap();
    assert_eq!(token.lowest_generation, generation("1.2"));
}

#[test]
fn two_of_three_root_holders_begin_an_epoch_over_machines_that_wait_sleep_and_switch() {
    let fleet = Fleet::start(&both()).unwrap();
    let first = fleet.config_folder().join("keys/root.pem");
    let others = ["root-2.pem", "root-3.pem"].map(|name| fleet.folder().join(name));
    let [first, second, third] = [&first, &others[0], &others[1]].map(|path| path.to_str().unwrap());
    let public = [second, third].map(|file| fleet.must(&["keys", "generate", file, "--plain"]).unwrap());
    let add = ["keys", "add", "root", public[0].trim(), "--yes", "--root-key", first, "--root-key", second];
    fleet.must(&add).unwrap();
    let more = ["keys", "add", "root", public[1].trim(), "--threshold", "2", "--yes"];
    fleet.must(&[&more[..], &["--root-key", first, "--root-key", second]].concat()).unwrap();
    fleet.fixture.say("greeting", "one").unwrap();
    fleet.update(&[]).unwrap();
    for (name, _) in both() {
        fleet.settled(name, 1, Condition::UpToDate).unwrap();
    }

    // One is paused and the other in the middle of a switch when the second root holder signs.
    assert!(fleet.agent("stibnite", &["pause"]).unwrap().status.success());
    fleet.fixture.say("greeting", "two").unwrap();
    fleet.fixture.say("hang-at.cinnabar", "activate").unwrap();
    fleet.fixture.say("hang-seconds", "8").unwrap();
    fleet.update(&[]).unwrap();
    fleet.wait("stibnite", "the pause", |view| view.phase == Some(Phase::Deferred)).unwrap();
    let said = fleet.must(&["keys", "new-epoch", "--yes"]).unwrap();
    assert!(said.contains("waits for 1 signature"), "{said}");
    let id = said.split_whitespace().skip_while(|word| *word != "Draft").nth(1).unwrap().to_owned();
    assert!(!fleet.must(&["keys", "list"]).unwrap().contains("Root 4"), "one of two begins nothing");
    fleet.wait("cinnabar", "a switch", |view| view.phase == Some(Phase::Activating)).unwrap();
    let said = fleet.must(&["sign", &id, "--yes", "--key", third]).unwrap();
    assert!(said.contains("+ epoch 1") && said.contains("Root 4 is in force"), "{said}");

    fleet
        .wait("cinnabar", "the root, in the middle of its switch", |view| {
            let _ = fleet.agent("cinnabar", &["check-now"]);
            view.holds.epoch.get() == 1
        })
        .unwrap();

    // The paused update is dropped, though nothing has been signed since; the switch completes.
    fleet
        .wait("stibnite", "the end of what waited", |view| {
            let _ = fleet.agent("stibnite", &["check-now"]);
            view.holds.epoch.get() == 1 && view.phase != Some(Phase::Deferred)
        })
        .unwrap();
    assert_eq!(fleet.machine("stibnite").greeting().unwrap(), "one");
    fleet
        .until("cinnabar", "the end of its switch", |machine| machine.greeting().as_deref() == Some("two"))
        .unwrap();
    fleet
        .wait("cinnabar", "its confirmation", |view| {
            view.runs.as_ref().is_some_and(|runs| runs.generation == Some(generation("2")))
        })
        .unwrap();

    // And a machine that is off during all of it.
    fleet.machine("stibnite").stop(true).unwrap();
    fs::remove_file(fleet.fixture.flake().join("behaviour/hang-at.cinnabar")).unwrap();
    fleet.update(&[]).unwrap();
    confirmed(&fleet, "cinnabar", "1.1");
    fleet.machine("stibnite").start().unwrap();
    fleet
        .until("stibnite", "its agent", |_| fleet.agent("stibnite", &["resume"]).unwrap().status.success())
        .unwrap();
    confirmed(&fleet, "stibnite", "1.1");
    for (name, _) in both() {
        assert_eq!(fleet.machine(name).greeting().unwrap(), "two");
        assert_events_in_order(&fleet, name);
    }
    assert_eq!(log(&fleet).iter().filter(|entry| entry.action == "root-published").count(), 3);
}

#[test]
fn what_was_signed_before_an_epoch_is_refused_as_a_rollback_however_a_thief_replays_it() {
    let stolen = Stolen::new().unwrap();
    let fleet = &stolen.fleet;
    let old = stolen.recorded("cinnabar");
    fleet.must(&["keys", "new-epoch", "--yes"]).unwrap();
    fleet.fixture.say("greeting", "two").unwrap();
    fleet.update(&[]).unwrap();
    confirmed(fleet, "cinnabar", "1.1");
    let before = fleet.machine("cinnabar").running();

    stolen.thief.bend(move |answer| {
        let file = answer.path.rsplit('/').next().unwrap_or_default().to_owned();
        let same = old.iter().rev().find(|held| held.path.rsplit('/').next() == Some(file.as_str()));
        if let Some(held) = same.filter(|_| answer.path.contains("/machines/cinnabar/tuf/")) {
            (answer.status, answer.body) = (200, held.body.clone());
        }
    });
    let refused = fleet
        .wait("cinnabar", "the refusal", |view| {
            let _ = stolen.ask("cinnabar");
            view.refused.is_some()
        })
        .unwrap();
    assert_eq!(refused.refused, Some(Attack::Rollback));
    assert_eq!(fleet.machine("cinnabar").running(), before);
    stolen.thief.behave();
    fleet.fixture.say("greeting", "three").unwrap();
    fleet.update(&["cinnabar"]).unwrap();
    confirmed(fleet, "cinnabar", "1.2");
}
