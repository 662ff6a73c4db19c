//! Another machine's metadata, valid except for the name.

use muster_protocol::machine::Class;
use muster_protocol::report::Attack;
use serde_json::json;

use crate::fleet::*;

#[test]
fn another_machines_valid_repository_is_refused_before_anything_is_stored() {
    let fleet = Fleet::new();
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    let other = Served::generation(&fleet, "realgar", 7);
    let (why, stored) = machine.refuses(&other, Attack::ForeignMachine);
    assert_eq!(why, "timestamp.json is signed for realgar, not for cinnabar");
    assert_eq!(stored, [""; 0], "a foreign version must not become a floor");

    // Its own lower generation is accepted afterwards.
    assert_eq!(machine.generation(&Served::generation(&fleet, "cinnabar", 1)), 1);
}

#[test]
fn another_machines_snapshot_under_an_own_timestamp() {
    let fleet = Fleet::new();
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    let mut served = Served::generation(&fleet, "realgar", 7);
    served.forge("timestamp.json", &[&fleet.online], |signed| signed["x-muster-machine"] = "cinnabar".into());
    let (why, stored) = machine.refuses(&served, Attack::ForeignMachine);
    assert_eq!(why, "snapshot.json is signed for realgar, not for cinnabar");
    assert_eq!(stored, ["timestamp"]);
}

#[test]
fn another_machines_targets_under_an_own_snapshot() {
    let fleet = Fleet::new();
    let operator = &fleet.operators[0];
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    let mut served = Served::generation(&fleet, "realgar", 7);
    served.forge("7.snapshot.json", &[operator], |signed| signed["x-muster-machine"] = "cinnabar".into());
    served.stamp(&fleet, "cinnabar", 7, 1007);
    let (why, stored) = machine.refuses(&served, Attack::ForeignMachine);
    assert_eq!(why, "targets.json is signed for realgar, not for cinnabar");
    assert_eq!(stored, ["timestamp", "snapshot"]);
}

#[test]
fn metadata_of_no_machine() {
    let fleet = Fleet::new();
    for (file, key) in [
        ("timestamp.json", &fleet.online),
        ("1.snapshot.json", &fleet.operators[0]),
        ("1.targets.json", &fleet.operators[0]),
    ] {
        let mut machine = Machine::enrolled(&fleet, "cinnabar");
        let mut served = Served::generation(&fleet, "cinnabar", 1);
        served.forge(file, &[key], |signed| {
            signed.as_object_mut().unwrap().remove("x-muster-machine");
        });
        match file {
            "timestamp.json" => {}
            "1.snapshot.json" => {
                let timestamp = served.files["timestamp.json"].clone();
                let bytes = resigned(&timestamp, &[&fleet.online], |signed| {
                    signed["meta"]["snapshot.json"] = json!({ "version": 1 });
                });
                served.put("timestamp.json", &bytes);
            }
            _ => served.pin_again(&fleet, "cinnabar", 1),
        }
        let (why, _) = machine.refuses(&served, Attack::ForeignMachine);
        assert!(why.ends_with("is signed for no machine, not for cinnabar"), "{why}");
    }
}

/// Targets, signed by operators, that state something wrong about their one target.
fn targets_that_say(change: impl FnOnce(&mut serde_json::Value), attack: Attack) -> String {
    let fleet = Fleet::new();
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    served.forge("1.targets.json", &[&fleet.operators[0]], change);
    served.pin_again(&fleet, "cinnabar", 1);
    let (why, stored) = machine.refuses(&served, attack);
    assert_eq!(stored, ["timestamp", "snapshot"]);
    why
}

#[test]
fn a_target_of_another_machine_under_an_own_name() {
    let why = targets_that_say(
        |signed| signed["targets"]["cinnabar/generation.json"]["custom"]["machine"] = "realgar".into(),
        Attack::ForeignMachine,
    );
    assert_eq!(why, "cinnabar/generation.json is signed for realgar, not for cinnabar");
}

#[test]
fn a_target_under_another_machines_name() {
    let why = targets_that_say(
        |signed| {
            let target = signed["targets"]["cinnabar/generation.json"].take();
            signed["targets"] = json!({ "realgar/generation.json": target });
        },
        Attack::Malformed,
    );
    assert!(why.ends_with("it must list cinnabar/generation.json and nothing else"), "{why}");
}

#[test]
fn a_target_of_another_class() {
    targets_that_say(
        |signed| signed["targets"]["cinnabar/generation.json"]["custom"]["class"] = "darwin".into(),
        Attack::WrongClass,
    );
}

#[test]
fn a_target_of_another_generation() {
    targets_that_say(
        |signed| signed["targets"]["cinnabar/generation.json"]["custom"]["generation"] = 9.into(),
        Attack::MixAndMatch,
    );
}

#[test]
fn a_target_that_says_not_whose_it_is() {
    for custom in [json!(null), json!({}), json!({ "machine": "cinnabar", "class": "nixos" }), json!(3)] {
        targets_that_say(
            |signed| signed["targets"]["cinnabar/generation.json"]["custom"] = custom,
            Attack::Malformed,
        );
    }
}

#[test]
fn a_second_target_beside_the_own() {
    targets_that_say(
        |signed| {
            let target = signed["targets"]["cinnabar/generation.json"].clone();
            signed["targets"]["realgar/generation.json"] = target;
        },
        Attack::Malformed,
    );
}

#[test]
fn a_delegation_in_a_machines_targets() {
    let delegate = key();
    targets_that_say(
        |signed| {
            signed["delegations"] = delegating(&delegate, "helper", json!({ "paths": ["*"] }));
        },
        Attack::Malformed,
    );
}

#[test]
fn a_machine_that_changed_its_class_takes_its_old_targets_no_more() {
    let fleet = Fleet::new();
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    let served = Served::generation(&fleet, "cinnabar", 1);
    machine.refresh(&served).unwrap();
    machine.scope.as_mut().unwrap().class = Class::Darwin;
    machine.refuses(&served, Attack::WrongClass);
}

#[test]
fn foreign_files_on_disk_are_no_floor() {
    let fleet = Fleet::new();
    let mut other = Machine::enrolled(&fleet, "realgar");
    other.refresh(&Served::generation(&fleet, "realgar", 7)).unwrap();
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    machine.stored = other.stored;
    assert_eq!(machine.generation(&Served::generation(&fleet, "cinnabar", 1)), 1);
}
