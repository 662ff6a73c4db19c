//! The root chain: who may change the signers.

use muster_protocol::keys::SecretKey;
use muster_protocol::report::Attack;
use muster_protocol::tuf::TufError;
use muster_protocol::tuf::metadata::{Role, Root};
use muster_protocol::tuf::repository::{RootSpec, sign_root};

use crate::fleet::*;

/// A machine on root 1, and a repository that serves this document as root 2.
fn served_with(fleet: &Fleet, second: Vec<u8>, signing: &Fleet) -> (Machine, Served) {
    let mut served = Served::generation(signing, "cinnabar", 1);
    served.put("2.root.json", &second);
    (Machine::enrolled(fleet, "cinnabar"), served)
}

#[test]
fn a_root_tells_its_keys_and_thresholds() {
    let fleet = Fleet { operators: vec![key(), key(), key()], threshold: 2, ..Fleet::new() };
    let root = Root::parse_self_signed(&fleet.root_json()).unwrap();
    assert_eq!((root.version(), root.expires()), (1, fleet.expires));
    assert_eq!(root.threshold(Role::Targets), 2);
    assert_eq!(root.threshold(Role::Timestamp), 1);
    assert_eq!(root.keys_of(Role::Timestamp), [fleet.online.public()]);
    assert_eq!(root.keys_of(Role::Root), [fleet.root[0].public()]);
    let operators = root.keys_of(Role::Snapshot);
    assert_eq!(operators.len(), 3);
    assert!(fleet.operators.iter().all(|key| operators.contains(&key.public())));
}

#[test]
fn every_key_changes_in_a_root_that_old_and_new_signed() {
    let fleet = Fleet::new();
    let next = Fleet { version: 2, ..Fleet::new() };
    let (mut machine, served) = served_with(&fleet, fleet.next_root(&next), &next);
    let update = machine.refresh(&served).unwrap();
    assert_eq!((update.holds().root, update.targets_version()), (2, Some(1)));
    // The old operators and the old controller no longer count.
    let mut old = Served::generation(&fleet, "cinnabar", 2);
    machine.refuses(&old, Attack::ForgedSignature);
    old.put("timestamp.json", &next.timestamp("cinnabar", &old.files["2.snapshot.json"], 5000));
    machine.refuses(&old, Attack::ForgedSignature);
}

#[test]
fn a_root_that_only_its_own_keys_signed() {
    let fleet = Fleet::new();
    let next = Fleet { version: 2, ..Fleet::new() };
    let (mut machine, served) = served_with(&fleet, next.root_json(), &next);
    assert_eq!(machine.refuses(&served, Attack::ForgedSignature).1, [""; 0]);
}

#[test]
fn a_root_that_only_the_old_keys_signed() {
    let fleet = Fleet::new();
    let next = Fleet { version: 2, ..Fleet::new() };
    let second = resigned(&next.root_json(), &[&fleet.root[0]], |_| ());
    let (mut machine, served) = served_with(&fleet, second, &next);
    assert_eq!(machine.refuses(&served, Attack::ForgedSignature).1, [""; 0]);
}

#[test]
fn a_root_that_operators_and_controller_signed() {
    let fleet = Fleet::new();
    let next = Fleet { version: 2, operators: vec![key()], ..fleet.clone() };
    let second =
        resigned(&next.root_json(), &[&fleet.operators[0], &fleet.online, &next.operators[0]], |_| ());
    let (mut machine, served) = served_with(&fleet, second, &next);
    assert_eq!(machine.refuses(&served, Attack::ForgedSignature).1, [""; 0]);
}

#[test]
fn the_old_threshold_and_the_new_must_both_be_met() {
    let old = Fleet { root: vec![key(), key()], ..Fleet::new() };
    let (stays, goes) = (old.root[0].clone(), old.root[1].clone());
    let comes = key();
    let new = Fleet { root: vec![stays.clone(), comes.clone()], version: 2, ..old.clone() };
    let whole = old.next_root(&new);
    for (signed_by, good) in [
        (vec![&stays, &goes, &comes], true),
        (vec![&stays, &comes], false),
        (vec![&stays, &goes], false),
        (vec![&goes, &comes], false),
    ] {
        let second = resigned(&whole, &signed_by, |_| ());
        let (mut machine, served) = served_with(&old, second, &new);
        if good {
            assert_eq!(machine.generation(&served), 1);
        } else {
            machine.refuses(&served, Attack::ForgedSignature);
        }
    }
}

#[test]
fn an_older_root_in_the_place_of_the_next() {
    let fleet = Fleet::new();
    let (mut machine, mut served) = served_with(&fleet, fleet.root_json(), &fleet);
    assert_eq!(machine.refuses(&served, Attack::Rollback).1, [""; 0]);

    let second = Fleet { version: 2, ..fleet.clone() };
    served.put("2.root.json", &second.root_json());
    served.put("3.root.json", &fleet.root_json());
    assert_eq!(machine.refuses(&served, Attack::Rollback).1, ["root"]);
}

#[test]
fn a_root_that_leaves_a_version_out() {
    let fleet = Fleet::new();
    let third = Fleet { version: 3, ..fleet.clone() };
    let (mut machine, served) = served_with(&fleet, third.root_json(), &fleet);
    let (why, stored) = machine.refuses(&served, Attack::MixAndMatch);
    assert!(why.ends_with("it is version 3 and follows 1"), "{why}");
    assert_eq!(stored, [""; 0]);
}

#[test]
fn a_chain_is_followed_root_by_root_and_each_is_saved() {
    let fleets: Vec<_> = (1..=4).map(|version| Fleet { version, ..Fleet::new() }).collect();
    let mut machine = Machine::enrolled(&fleets[0], "cinnabar");
    let mut served = Served::generation(&fleets[3], "cinnabar", 1);
    for pair in fleets.windows(2) {
        served.put(&format!("{}.root.json", pair[1].version), &pair[0].next_root(&pair[1]));
    }
    assert_eq!(machine.generation(&served), 1);
    assert_eq!(machine.start().unwrap().holds().root, 4);
    assert_eq!(machine.fetched[..4], ["2.root.json", "3.root.json", "4.root.json", "5.root.json"]);
}

#[test]
fn good_roots_before_a_bad_one_are_kept() {
    let fleet = Fleet::new();
    let second = Fleet { version: 2, ..fleet.clone() };
    let third = Fleet { version: 3, ..Fleet::new() };
    let (mut machine, mut served) = served_with(&fleet, second.root_json(), &second);
    served.put("3.root.json", &third.root_json());
    assert_eq!(machine.refuses(&served, Attack::ForgedSignature).1, ["root"]);
    assert_eq!(machine.start().unwrap().holds().root, 2);
}

#[test]
fn a_stored_root_that_its_own_keys_did_not_sign() {
    let fleet = Fleet::new();
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    machine.stored.root = resigned(&machine.stored.root, &[&key()], |_| ());
    assert!(matches!(machine.start(), Err(TufError::Signatures { .. })));
}

#[test]
fn no_root_is_signed_that_no_client_could_use() {
    let fleet = Fleet::new();
    let spec = fleet.spec();
    let public = |keys: &[SecretKey]| keys.iter().map(SecretKey::public).collect::<Vec<_>>();
    for (what, spec) in [
        ("no root keys", RootSpec { root: (vec![], 1), ..spec.clone() }),
        ("threshold 0", RootSpec { operators: (public(&fleet.operators), 0), ..spec.clone() }),
        ("threshold above the keys", RootSpec { operators: (public(&fleet.operators), 2), ..spec.clone() }),
        (
            "the same key twice",
            RootSpec {
                operators: (vec![fleet.operators[0].public(), fleet.operators[0].public()], 2),
                ..spec.clone()
            },
        ),
        ("nobody for timestamps", RootSpec { online: vec![], ..spec.clone() }),
        ("version 0", RootSpec { version: 0, ..spec.clone() }),
        ("too many keys", RootSpec { online: (0..257).map(|_| key().public()).collect(), ..spec.clone() }),
        ("no such day", RootSpec { expires: i64::MAX, ..spec.clone() }),
    ] {
        assert!(sign_root(&spec, &signers(&fleet.root)).is_err(), "{what}");
    }
    assert!(sign_root(&spec, &[]).is_err(), "signed by nobody");
    assert!(sign_root(&spec, &signers(&fleet.operators)).is_err(), "signed by others");
    assert!(sign_root(&spec, &signers(&fleet.root)).is_ok());
}

#[test]
fn a_key_that_goes_by_two_ids_is_told_once() {
    let fleet = Fleet::new();
    let root = resigned(&fleet.root_json(), &[&fleet.root[0]], |signed| {
        let id = signed["roles"]["targets"]["keyids"][0].as_str().unwrap().to_owned();
        let same = signed["keys"][&id].clone();
        signed["keys"]["another-id"] = same;
        signed["roles"]["targets"]["keyids"].as_array_mut().unwrap().push("another-id".into());
    });
    let root = Root::parse_self_signed(&root).unwrap();
    assert_eq!(root.keys_of(Role::Targets), [fleet.operators[0].public()]);
}
