//! Metadata that has expired: none of it is accepted, and what is held stays a floor.

use muster_protocol::report::Attack;
use muster_protocol::tuf::repository::sign_timestamp;

use crate::fleet::*;

#[test]
fn an_expired_timestamp() {
    let fleet = Fleet::new();
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    let served = Served::generation(&fleet, "cinnabar", 1);
    machine.now += DAY - 1;
    assert_eq!(machine.clone().generation(&served), 1, "good to its last second");
    machine.now += 1;
    let (why, stored) = machine.refuses(&served, Attack::Freeze);
    assert_eq!(why, "timestamp.json expired at 2027-01-16T08:00:00Z: it must be signed again");
    assert_eq!(stored, [""; 0]);
}

#[test]
fn an_expired_snapshot() {
    let fleet = Fleet::new();
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    served.forge("1.snapshot.json", &[&fleet.operators[0]], |signed| {
        signed["expires"] = "2020-01-01T00:00:00Z".into();
    });
    served.stamp(&fleet, "cinnabar", 1, 1001);
    let (why, stored) = machine.refuses(&served, Attack::Freeze);
    assert!(why.starts_with("snapshot.json expired"), "{why}");
    assert_eq!(stored, ["timestamp"]);
}

#[test]
fn expired_targets() {
    let fleet = Fleet::new();
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    served.forge("1.targets.json", &[&fleet.operators[0]], |signed| {
        signed["expires"] = "2020-01-01T00:00:00Z".into();
    });
    served.pin_again(&fleet, "cinnabar", 1);
    let (why, stored) = machine.refuses(&served, Attack::Freeze);
    assert!(why.starts_with("targets.json expired"), "{why}");
    assert_eq!(stored, ["timestamp", "snapshot"]);
}

#[test]
fn an_expired_root_stops_everything_below_it_until_a_new_one_comes() {
    let fleet = Fleet { expires: NOW, ..Fleet::new() };
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    let (why, stored) = machine.refuses(&served, Attack::Freeze);
    assert!(why.starts_with("root.json expired"), "{why}");
    assert_eq!(stored, [""; 0]);

    // A chain may lead through expired roots.
    let second = Fleet { version: 2, ..fleet.clone() };
    let third = Fleet { version: 3, expires: NOW + 1, ..fleet.clone() };
    served.put("2.root.json", &fleet.next_root(&second));
    assert_eq!(machine.refuses(&served, Attack::Freeze).1, ["root"]);
    served.put("3.root.json", &second.next_root(&third));
    assert_eq!(machine.generation(&served), 1);
}

#[test]
fn the_same_timestamp_for_ever() {
    let fleet = Fleet::new();
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    let served = Served::generation(&fleet, "cinnabar", 1);
    machine.refresh(&served).unwrap();
    machine.now += 2 * DAY;
    assert_eq!(machine.refuses(&served, Attack::Freeze).1, [""; 0]);
}

#[test]
fn a_fresh_timestamp_of_the_expired_ones_version() {
    let fleet = Fleet::new();
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    machine.refresh(&served).unwrap();
    machine.now += 2 * DAY;
    let snapshot = served.files["1.snapshot.json"].clone();
    let fresh = sign_timestamp(&name("cinnabar"), &snapshot, 1001, machine.now + DAY, &fleet.online);
    served.put("timestamp.json", &fresh.unwrap());
    machine.refuses(&served, Attack::Freeze);
}

#[test]
fn an_expired_local_snapshot_is_not_used_again() {
    let fleet = Fleet::new();
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    machine.refresh(&served).unwrap();
    // Snapshot and targets are valid for 90 days, and the controller keeps signing timestamps.
    machine.now += 91 * DAY;
    let snapshot = served.files["1.snapshot.json"].clone();
    let fresh = sign_timestamp(&name("cinnabar"), &snapshot, 2000, machine.now + DAY, &fleet.online);
    served.put("timestamp.json", &fresh.unwrap());
    let (why, stored) = machine.refuses(&served, Attack::Freeze);
    assert!(why.starts_with("snapshot.json expired"), "{why}");
    assert_eq!(stored, ["timestamp"]);
    assert_eq!(machine.fetched.last().unwrap(), "1.snapshot.json");
}

#[test]
fn expired_local_targets_are_not_used_again() {
    let fleet = Fleet::new();
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    served.forge("1.targets.json", &[&fleet.operators[0]], |signed| {
        signed["expires"] = "2027-01-16T08:00:00Z".into();
    });
    served.pin_again(&fleet, "cinnabar", 1);
    machine.refresh(&served).unwrap();
    machine.now += 2 * DAY;
    let snapshot = served.files["1.snapshot.json"].clone();
    let fresh = sign_timestamp(&name("cinnabar"), &snapshot, 2000, machine.now + DAY, &fleet.online);
    served.put("timestamp.json", &fresh.unwrap());
    let (why, _) = machine.refuses(&served, Attack::Freeze);
    assert!(why.starts_with("targets.json expired"), "{why}");
}

#[test]
fn what_expired_on_disk_still_loads_and_a_fresh_repository_is_taken() {
    let fleet = Fleet::new();
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    machine.refresh(&served).unwrap();
    machine.now += 80 * DAY;
    assert_eq!(machine.start().unwrap().holds().timestamp, 1001);

    served.publish(&fleet, "cinnabar", 2, 2000);
    let snapshot = served.files["2.snapshot.json"].clone();
    let fresh = sign_timestamp(&name("cinnabar"), &snapshot, 2000, machine.now + DAY, &fleet.online);
    served.put("timestamp.json", &fresh.unwrap());
    assert_eq!(machine.generation(&served), 2);
}

#[test]
fn a_clock_that_goes_back_lets_nothing_lower_in() {
    let fleet = Fleet::new();
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    let old = Served::generation(&fleet, "cinnabar", 1);
    let mut new = old.clone();
    new.publish(&fleet, "cinnabar", 2, 2000);
    machine.refresh(&new).unwrap();
    // Two days later the old repository has expired anyway; with the clock set back it would be fresh again.
    for now in [NOW + 2 * DAY, NOW - 365 * DAY, 0, i64::MIN] {
        machine.now = now;
        let attack = machine.refresh(&old).err().and_then(|error| error.attack());
        assert_eq!(attack, Some(Attack::Rollback), "at {now}");
    }
    machine.now = i64::MAX;
    machine.refuses(&new, Attack::Freeze);
    machine.now = NOW;
    assert_eq!(machine.generation(&new), 2);
}

#[test]
fn each_role_is_good_to_its_last_second_and_no_longer() {
    let fleet = Fleet { expires: NOW + 4, ..Fleet::new() };
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    let at = |second: i64| jiff::Timestamp::from_second(second).unwrap().to_string();
    let operator = &fleet.operators[0];
    served.forge("1.targets.json", &[operator], |signed| signed["expires"] = at(NOW + 1).into());
    served.pin_again(&fleet, "cinnabar", 1);
    served.forge("1.snapshot.json", &[operator], |signed| signed["expires"] = at(NOW + 2).into());
    served.stamp(&fleet, "cinnabar", 1, 1001);
    served.forge("timestamp.json", &[&fleet.online], |signed| signed["expires"] = at(NOW + 3).into());
    for (later, expired) in [(1, "targets"), (2, "snapshot"), (3, "timestamp"), (4, "root")] {
        let mut machine = Machine { now: NOW + later, ..Machine::enrolled(&fleet, "cinnabar") };
        let (why, _) = machine.refuses(&served, Attack::Freeze);
        assert!(why.starts_with(&format!("{expired}.json expired")), "{why}");
    }
    assert_eq!(Machine::enrolled(&fleet, "cinnabar").generation(&served), 1);
    // Fractions of a second are not rounded up.
    served.forge("timestamp.json", &[&fleet.online], |signed| {
        signed["expires"] = at(NOW).replace('Z', ".999Z").into();
    });
    Machine::enrolled(&fleet, "cinnabar").refuses(&served, Attack::Freeze);
}
