//! Replays of old metadata.

use muster_protocol::ids::{Generation, MAX_JUMP, MAX_NUMBER};
use muster_protocol::keys::SecretKey;
use muster_protocol::report::Attack;
use muster_protocol::tuf::client::Scope;

use crate::fleet::*;

/// A machine on generation 2, the repository it is served now, and the one of generation 1.
fn on_generation_two(fleet: &Fleet) -> (Machine, Served, Served) {
    let mut machine = Machine::enrolled(fleet, "cinnabar");
    let old = Served::generation(fleet, "cinnabar", 1);
    machine.refresh(&old).unwrap();
    let mut new = old.clone();
    new.publish(fleet, "cinnabar", 2, 2000);
    machine.refresh(&new).unwrap();
    (machine, new, old)
}

#[test]
fn the_whole_old_repository() {
    let fleet = Fleet::new();
    let (mut machine, _, old) = on_generation_two(&fleet);
    let (why, stored) = machine.refuses(&old, Attack::Rollback);
    assert_eq!(stored, [""; 0]);
    assert_eq!(why, "timestamp.json is version 1001; 2000 was seen before: it is a replay of an old one");
}

#[test]
fn an_old_snapshot_under_a_new_timestamp() {
    let fleet = Fleet::new();
    let (mut machine, mut served, _) = on_generation_two(&fleet);
    served.stamp(&fleet, "cinnabar", 1, 3000);
    assert_eq!(machine.refuses(&served, Attack::Rollback).1, [""; 0]);
    // The same when the disk has lost the timestamp: the snapshot is a floor too.
    machine.stored.timestamp = None;
    assert_eq!(machine.refuses(&served, Attack::Rollback).1, [""; 0]);
}

#[test]
fn an_old_snapshot_after_the_disk_lost_timestamp_and_snapshot() {
    let fleet = Fleet::new();
    let (mut machine, mut served, _) = on_generation_two(&fleet);
    served.stamp(&fleet, "cinnabar", 1, 3000);
    machine.stored.timestamp = None;
    machine.stored.snapshot = None;
    let (why, stored) = machine.refuses(&served, Attack::Rollback);
    assert!(why.starts_with("the generation is version 1; 2 was seen"), "{why}");
    assert_eq!(stored, ["timestamp"], "no snapshot of the older generation");
}

#[test]
fn a_new_snapshot_that_pins_old_targets() {
    let fleet = Fleet::new();
    for scoped in [true, false] {
        let (mut machine, mut served, _) = on_generation_two(&fleet);
        if !scoped {
            machine.scope = None;
        }
        let old = served.files["1.snapshot.json"].clone();
        served.put("3.snapshot.json", &old);
        served.forge("3.snapshot.json", &[&fleet.operators[0]], |signed| signed["version"] = 3.into());
        served.stamp(&fleet, "cinnabar", 3, 3000);
        assert_eq!(machine.refuses(&served, Attack::Rollback).1, ["timestamp"]);
    }
}

#[test]
fn a_role_that_goes_away_from_the_snapshot() {
    let fleet = Fleet::new();
    let mut machine = Machine::unscoped(&fleet);
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    served.forge("1.snapshot.json", &[&fleet.operators[0]], |signed| {
        signed["meta"]["other.json"]["version"] = 1.into();
    });
    served.stamp(&fleet, "cinnabar", 1, 1001);
    machine.refresh(&served).unwrap();
    served.publish(&fleet, "cinnabar", 2, 2000);
    let (why, _) = machine.refuses(&served, Attack::Rollback);
    assert!(why.starts_with("other.json"), "{why}");
}

#[test]
fn an_expired_local_timestamp_is_a_floor_all_the_same() {
    let fleet = Fleet::new();
    let (mut machine, mut served, _) = on_generation_two(&fleet);
    machine.now += 2 * DAY;
    let expires = machine.now + DAY;
    let snapshot = served.files["2.snapshot.json"].clone();
    let lower = muster_protocol::tuf::repository::sign_timestamp(
        &name("cinnabar"),
        &snapshot,
        1999,
        expires,
        &fleet.online,
    );
    served.put("timestamp.json", &lower.unwrap());
    assert_eq!(machine.refuses(&served, Attack::Rollback).1, [""; 0]);
}

#[test]
fn expired_local_snapshot_and_targets_are_floors_all_the_same() {
    let fleet = Fleet::new();
    let (mut machine, mut served, _) = on_generation_two(&fleet);
    machine.now += 100 * DAY;
    machine.stored.timestamp = None;
    let expires = machine.now + DAY;
    let old = served.files["1.snapshot.json"].clone();
    let stamp = |snapshot: &[u8]| {
        muster_protocol::tuf::repository::sign_timestamp(
            &name("cinnabar"),
            snapshot,
            9000,
            expires,
            &fleet.online,
        )
    };
    served.put("timestamp.json", &stamp(&old).unwrap());
    machine.refuses(&served, Attack::Rollback);
}

#[test]
fn a_generation_below_the_lowest_of_the_enrolment() {
    let fleet = Fleet::new();
    let served = Served::generation(&fleet, "cinnabar", 4);
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    let scope = machine.scope.clone().unwrap();
    machine.scope = Some(Scope { lowest: Generation::new(5).unwrap(), ..scope.clone() });
    let (_, stored) = machine.refuses(&served, Attack::Rollback);
    assert_eq!(stored, ["timestamp"]);

    machine.scope = Some(Scope { lowest: Generation::new(4).unwrap(), ..scope.clone() });
    assert_eq!(machine.generation(&served), 4);

    // Enrolled again with a higher number, over files that are already there.
    machine.scope = Some(Scope { lowest: Generation::new(5).unwrap(), ..scope });
    machine.refuses(&served, Attack::Rollback);
}

#[test]
fn the_timestamp_of_a_thief_is_taken_back_by_rotating_its_key() {
    let fleet = Fleet::new();
    let (mut machine, mut served, _) = on_generation_two(&fleet);
    served.stamp(&fleet, "cinnabar", 2, MAX_NUMBER);
    machine.refresh(&served).unwrap();
    assert_eq!(machine.start().unwrap().holds().timestamp, MAX_NUMBER);

    let next = Fleet { version: 2, online: key(), ..fleet.clone() };
    served.put("2.root.json", &fleet.next_root(&next));
    served.stamp(&next, "cinnabar", 2, 3000);
    assert_eq!(machine.generation(&served), 2);
    assert_eq!(machine.start().unwrap().holds().timestamp, 3000);
}

#[test]
fn a_pin_of_a_thief_on_a_snapshot_that_never_was_is_taken_back() {
    let fleet = Fleet::new();
    let (mut machine, mut served, _) = on_generation_two(&fleet);
    served.forge("timestamp.json", &[&fleet.online], |signed| {
        signed["version"] = 2001.into();
        signed["meta"]["snapshot.json"] = serde_json::json!({ "version": 2 + MAX_JUMP });
    });
    assert!(machine.refresh(&served).is_err());
    served.publish(&fleet, "cinnabar", 3, 3000);
    machine.refuses(&served, Attack::Rollback);

    let next = Fleet { version: 2, online: key(), ..fleet.clone() };
    served.put("2.root.json", &fleet.next_root(&next));
    served.stamp(&next, "cinnabar", 3, 3000);
    assert_eq!(machine.generation(&served), 3);
}

#[test]
fn targets_of_a_thief_are_taken_back_by_rotating_the_snapshots_key() {
    // Without a machine's scope this is the full recovery of TUF 5.3.11.
    let fleet = Fleet::new();
    let mut machine = Machine::unscoped(&fleet);
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    served.publish(&fleet, "cinnabar", 1_000_000, 2000);
    machine.refresh(&served).unwrap();

    let next = Fleet { version: 2, operators: vec![key()], ..fleet.clone() };
    served.put("2.root.json", &fleet.next_root(&next));
    served.publish(&next, "cinnabar", 2, 1500);
    assert_eq!(machine.generation(&served), 2);
}

#[test]
fn no_rotation_of_keys_lets_a_machine_go_back_to_an_older_generation() {
    let (ann, bob) = (key(), key());
    let fleet = Fleet { operators: vec![ann.clone(), bob.clone()], ..Fleet::new() };
    let of = |operator: &_| Fleet { operators: vec![SecretKey::clone(operator)], ..fleet.clone() };
    let mut served = Served::default();
    served.publish(&of(&bob), "cinnabar", 1, 1001);
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    machine.refresh(&served).unwrap();
    served.publish(&of(&ann), "cinnabar", 2, 2000);
    machine.refresh(&served).unwrap();

    // Ann leaves, the online key is new too, and the controller replays Bob's older generation.
    let next = Fleet { version: 2, operators: vec![bob], online: key(), ..fleet.clone() };
    served.put("2.root.json", &fleet.next_root(&next));
    served.stamp(&next, "cinnabar", 1, 3000);
    let (why, stored) = machine.refuses(&served, Attack::Rollback);
    assert!(why.starts_with("the generation is version 1; 2 was seen"), "{why}");
    assert_eq!(stored, ["root", "timestamp"]);

    served.publish(&next, "cinnabar", 3, 4000);
    assert_eq!(machine.generation(&served), 3);
}

#[test]
fn a_key_that_is_added_lowers_no_floor() {
    let fleet = Fleet::new();
    let (mut machine, mut served, _) = on_generation_two(&fleet);
    let next = Fleet { version: 2, operators: vec![fleet.operators[0].clone(), key()], ..fleet.clone() };
    served.put("2.root.json", &fleet.next_root(&next));
    served.stamp(&next, "cinnabar", 1, 3000);
    machine.refuses(&served, Attack::Rollback);
    served.stamp(&next, "cinnabar", 2, 1999);
    machine.refuses(&served, Attack::Rollback);
}
