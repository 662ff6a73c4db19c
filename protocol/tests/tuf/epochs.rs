//! Numbers are finite, and only a new epoch leaves behind a floor that was set too high.

use muster_protocol::ids::{Epoch, Generation, MAX_JUMP, MAX_NUMBER};
use muster_protocol::keys::SecretKey;
use muster_protocol::report::Attack;
use muster_protocol::tuf::TufError;
use muster_protocol::tuf::client::Scope;
use muster_protocol::tuf::metadata::Root;
use muster_protocol::tuf::repository::{check_draft, check_publication, sign_generation, sign_root};

use crate::fleet::*;

fn epoch(number: u64) -> Epoch {
    Epoch::new(number).unwrap()
}

/// The same people, one root and one epoch later.
fn begun(fleet: &Fleet) -> Fleet {
    Fleet { version: fleet.version + 1, epoch: fleet.epoch.next().unwrap(), ..fleet.clone() }
}

fn with_lowest(machine: &mut Machine, lowest: Generation) {
    let scope = machine.scope.take().unwrap();
    machine.scope = Some(Scope { lowest, ..scope });
}

/// A machine that holds this generation, and the repository it is served.
fn on_generation(fleet: &Fleet, number: u64) -> (Machine, Served) {
    let mut machine = Machine::enrolled(fleet, "cinnabar");
    with_lowest(&mut machine, Generation::of(fleet.epoch, number).unwrap());
    let mut served = Served::default();
    served.publish(fleet, "cinnabar", number, 1000);
    assert_eq!(machine.generation(&served), number);
    with_lowest(&mut machine, Generation::FIRST);
    (machine, served)
}

#[test]
fn i2_a_floor_at_the_cap_is_left_behind_by_a_new_epoch_and_by_nothing_else() {
    let fleet = Fleet::new();
    let (mut machine, mut served) = on_generation(&fleet, MAX_NUMBER);
    // New keys for every role do not lower it.
    let rotated = Fleet { version: 2, ..Fleet::new() };
    served.put("2.root.json", &fleet.next_root(&rotated));
    served.publish(&rotated, "cinnabar", 1, 2000);
    machine.refuses(&served, Attack::Rollback);

    let next = begun(&rotated);
    served.put("3.root.json", &rotated.next_root(&next));
    served.publish(&next, "cinnabar", 1, 900);
    let update = machine.refresh(&served).unwrap();
    assert_eq!(update.generation(), Some(Generation::first_of(epoch(1))));
    let holds = update.holds();
    assert_eq!((holds.epoch, holds.targets, holds.timestamp), (epoch(1), 1, 900));
}

#[test]
fn what_was_disowned_is_refused_as_a_rollback_and_nothing_of_it_is_stored() {
    let fleet = Fleet::new();
    let (mut machine, old) = on_generation(&fleet, 4);
    let next = begun(&fleet);
    let mut replayed = old.clone();
    replayed.put("2.root.json", &fleet.next_root(&next));
    let (why, stored) = machine.refuses(&replayed, Attack::Rollback);
    assert_eq!(
        (why.as_str(), stored),
        ("timestamp.json is of epoch 0, and the trusted root is of epoch 1", vec!["root"])
    );

    // A timestamp of the new epoch, which the controller can sign, does not help.
    let bytes = resigned(&old.files["timestamp.json"], &[&fleet.online], |signed| {
        signed["x-muster-epoch"] = 1.into();
        signed["version"] = 5000.into();
    });
    replayed.put("timestamp.json", &bytes);
    let (why, stored) = machine.refuses(&replayed, Attack::Rollback);
    assert!(why.starts_with("snapshot.json is of epoch 0"), "{why}");
    assert_eq!(stored, ["timestamp"]);

    // Neither does a snapshot of it: targets name their epoch themselves.
    let mut mixed = replayed.clone();
    mixed.forge("4.snapshot.json", &[&fleet.operators[0]], |signed| signed["x-muster-epoch"] = 1.into());
    mixed.stamp(&next, "cinnabar", 4, 6000);
    let (why, _) = machine.refuses(&mixed, Attack::Rollback);
    assert!(why.starts_with("targets.json is of epoch 0"), "{why}");
}

#[test]
fn a_machine_that_died_between_the_new_root_and_the_rest_goes_on_in_the_new_epoch() {
    let fleet = Fleet::new();
    let (mut machine, mut served) = on_generation(&fleet, 4);
    let next = begun(&fleet);
    let root = fleet.next_root(&next);
    // The root is durable, and everything of the old epoch is still stored next to it.
    machine.stored.root.clone_from(&root);
    let holds = machine.start().unwrap().holds();
    assert_eq!((holds.root, holds.epoch, holds.timestamp, holds.targets), (2, epoch(1), 0, 0));
    machine.refuses(&served, Attack::Rollback);
    served.publish(&next, "cinnabar", 1, 2000);
    assert_eq!(machine.generation(&served), 1);
}

#[test]
fn where_nothing_was_signed_in_the_new_epoch_yet_nothing_is_taken() {
    let fleet = Fleet::new();
    let (mut machine, _) = on_generation(&fleet, 4);
    let next = begun(&fleet);
    let mut empty = Served::default();
    empty.put("2.root.json", &fleet.next_root(&next));
    let update = machine.refresh(&empty).unwrap();
    assert_eq!((update.generation(), update.holds().epoch, update.holds().targets), (None, epoch(1), 0));
}

#[test]
fn what_is_of_a_later_epoch_than_the_root_is_refused_and_waits_for_the_root() {
    let fleet = Fleet::new();
    let (mut machine, _) = on_generation(&fleet, 4);
    let next = begun(&fleet);
    let mut served = Served::default();
    served.publish(&next, "cinnabar", 1, 2000);
    let before = machine.stored.clone();
    let Err(error) = machine.refresh(&served) else { panic!("it was believed") };
    assert!(matches!(error, TufError::OtherEpoch { .. }) && error.attack().is_none(), "{error}");
    assert_eq!(before.timestamp, machine.stored.timestamp);
    served.put("2.root.json", &fleet.next_root(&next));
    assert_eq!(machine.generation(&served), 1);
}

#[test]
fn epochs_rise_one_at_a_time_and_never_fall() {
    let first = Fleet::new();
    let second = begun(&first);
    let held = Root::parse_self_signed(&second.root_json()).unwrap();
    assert_eq!(held.epoch(), epoch(1));
    for (number, taken) in [(0, false), (1, true), (2, true), (3, false), (Epoch::MAX.get(), false)] {
        let next = Fleet { version: 3, epoch: epoch(number), ..second.clone() };
        let found = held.successor(&next.root_json());
        assert_eq!(found.is_ok(), taken, "epoch {number}");
        if number == 0 {
            assert_eq!(found.err().unwrap().attack(), Some(Attack::Rollback));
        }
    }
    let above = resigned(&second.root_json(), &[&second.root[0]], |signed| {
        signed["x-muster-epoch"] = u64::MAX.into();
    });
    assert!(Root::parse_self_signed(&above).is_err());
}

#[test]
fn only_the_root_holders_begin_an_epoch() {
    let fleet = Fleet { root: vec![key(), key()], ..Fleet::new() };
    let (mut machine, mut served) = on_generation(&fleet, 4);
    let next = begun(&fleet);
    let spec = next.spec();
    let everybody_else: Vec<SecretKey> =
        [fleet.root[0].clone(), fleet.operators[0].clone(), fleet.online.clone()].into();
    assert!(sign_root(&spec, &signers(&everybody_else)).is_err(), "one of two root holders");
    let forged = resigned(&next.root_json(), &everybody_else.iter().collect::<Vec<_>>(), |_| ());
    served.put("2.root.json", &forged);
    assert_eq!(machine.refuses(&served, Attack::ForgedSignature).1, [""; 0]);
    assert_eq!(machine.start().unwrap().holds().targets, 4);
}

#[test]
fn a_number_far_above_the_held_one_is_refused_before_anything_is_stored() {
    let fleet = Fleet::new();
    let (mut machine, mut served) = on_generation(&fleet, 4);
    served.publish(&fleet, "cinnabar", 4 + MAX_JUMP + 1, 2000);
    let (why, stored) = machine.refuses(&served, Attack::FastForward);
    assert_eq!(stored, [""; 0]);
    assert!(why.contains("1048581") && why.contains("1048580"), "{why}");
    // A thief of the online key cannot make the number a floor by pinning a generation that never existed.
    served.publish(&fleet, "cinnabar", 5, 2000);
    served.forge("timestamp.json", &[&fleet.online], |signed| {
        signed["version"] = 3000.into();
        signed["meta"]["snapshot.json"] = serde_json::json!({ "version": u64::MAX });
    });
    assert_eq!(machine.refuses(&served, Attack::FastForward).1, [""; 0]);
    served.stamp(&fleet, "cinnabar", 5, 3000);
    assert_eq!(machine.generation(&served), 5);
    served.publish(&fleet, "cinnabar", 5 + MAX_JUMP, 4000);
    assert_eq!(machine.generation(&served), 5 + MAX_JUMP);
}

#[test]
fn a_machine_that_holds_none_counts_from_the_lowest_of_its_token() {
    let fleet = Fleet::new();
    let lowest = 7_000_000;
    let served = |number| {
        let mut served = Served::default();
        served.publish(&fleet, "cinnabar", number, 1000);
        served
    };
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    machine.refuses(&served(lowest), Attack::FastForward);
    with_lowest(&mut machine, Generation::new(lowest).unwrap());
    assert_eq!(machine.clone().generation(&served(lowest + MAX_JUMP)), lowest + MAX_JUMP);
    machine.refuses(&served(lowest + MAX_JUMP + 1), Attack::FastForward);
}

#[test]
fn the_lowest_generation_of_a_token_counts_in_its_own_epoch() {
    let fleet = Fleet::new();
    let next = begun(&fleet);
    let mut served = Served::default();
    served.publish(&fleet, "cinnabar", 9, 1000);
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    with_lowest(&mut machine, Generation::of(epoch(1), 3).unwrap());
    // A token of a later epoch than the served root: somebody withholds a newer root.
    machine.refuses(&served, Attack::Rollback);
    served.put("2.root.json", &fleet.next_root(&next));
    served.publish(&next, "cinnabar", 2, 2000);
    machine.refuses(&served, Attack::Rollback);
    served.publish(&next, "cinnabar", 3, 3000);
    assert_eq!(machine.generation(&served), 3);

    let mut earlier = Machine::enrolled(&fleet, "cinnabar");
    with_lowest(&mut earlier, Generation::new(MAX_NUMBER).unwrap());
    served.publish(&next, "cinnabar", 1, 4000);
    assert_eq!(earlier.generation(&served), 1);
}

#[test]
fn no_document_above_the_cap_is_taken_or_signed() {
    let fleet = Fleet::new();
    let (mut machine, mut served) = on_generation(&fleet, 4);
    served.forge("timestamp.json", &[&fleet.online], |signed| signed["version"] = (MAX_NUMBER + 1).into());
    assert_eq!(machine.refuses(&served, Attack::FastForward).1, [""; 0]);
    let spec = Fleet { version: MAX_NUMBER + 1, ..fleet.clone() }.spec();
    assert!(matches!(sign_root(&spec, &signers(&fleet.root)), Err(TufError::TooHigh { .. })));
}

#[test]
fn a_client_without_a_scope_knows_no_epochs_and_no_caps() {
    let fleet = Fleet::new();
    let mut machine = Machine::unscoped(&fleet);
    let next = begun(&fleet);
    let mut served = Served::default();
    served.publish(&next, "cinnabar", 3 + MAX_JUMP, 1000);
    assert_eq!(machine.generation(&served), 3 + MAX_JUMP);
    served.put("2.root.json", &fleet.next_root(&next));
    assert_eq!(machine.refresh(&served).unwrap().holds().root, 2);
    served.publish(&fleet, "cinnabar", 4 + MAX_JUMP, 2000);
    assert_eq!(machine.generation(&served), 4 + MAX_JUMP);
}

#[test]
fn what_machines_would_refuse_for_its_epoch_is_neither_stored_nor_drafted() {
    let fleet = Fleet::new();
    let root = Root::parse_self_signed(&begun(&fleet).root_json()).unwrap();
    let of = |generation| {
        let target = muster_protocol::target::Target { generation, ..target("cinnabar", 1) };
        sign_generation(&target, NOW + DAY, &signers(&fleet.operators)).unwrap()
    };
    let (machine, class) = (name("cinnabar"), muster_protocol::machine::Class::Nixos);
    for (epoch, good) in [(epoch(0), false), (epoch(1), true), (epoch(2), false)] {
        let publication = of(Generation::of(epoch, 3).unwrap());
        assert_eq!(check_publication(&root, &machine, class, &publication, NOW).is_ok(), good, "{epoch}");
        assert_eq!(check_draft(&root, &machine, class, &publication, NOW).is_ok(), good, "{epoch}");
    }
    // The epoch in the generation and in its metadata must agree.
    let mut bent = of(Generation::of(epoch(1), 3).unwrap());
    bent.target = bent.target.replace("\"1.3\"", "3");
    assert!(check_publication(&root, &machine, class, &bent, NOW).is_err());
}
