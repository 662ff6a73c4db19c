//! Combined pieces of different repositories.

use muster_protocol::ids::{Sha256, to_hex};
use muster_protocol::report::Attack;
use muster_protocol::tuf::metadata::Listed;
use serde_json::json;
use sha2::{Digest as _, Sha512};

use crate::fleet::*;

/// The repositories of generations 1 and 2, for a machine on 2.
fn two_generations(fleet: &Fleet) -> Served {
    let mut served = Served::generation(fleet, "cinnabar", 1);
    served.publish(fleet, "cinnabar", 2, 2000);
    served
}

#[test]
fn another_snapshot_than_the_pinned_bytes() {
    let fleet = Fleet::new();
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    let mut served = two_generations(&fleet);
    // Signed by the same operators, of the same version and length.
    served.forge("2.snapshot.json", &[&fleet.operators[0]], |signed| {
        let expires = signed["expires"].as_str().unwrap().replace("2027", "2028");
        signed["expires"] = expires.into();
    });
    let (why, stored) = machine.refuses(&served, Attack::MixAndMatch);
    assert_eq!(why, "snapshot.json is not the one that was pinned: its hash differs");
    assert_eq!(stored, ["timestamp"]);
}

#[test]
fn another_version_of_the_snapshot_than_the_pinned() {
    let fleet = Fleet::new();
    for (pinned, served_version) in [(3, 2), (1, 2)] {
        let mut machine = Machine::enrolled(&fleet, "cinnabar");
        let mut served = two_generations(&fleet);
        // A timestamp without hashes: the version alone must protect.
        served.forge("timestamp.json", &[&fleet.online], |signed| {
            signed["meta"]["snapshot.json"] = json!({ "version": pinned });
        });
        let snapshot = served.files[&format!("{served_version}.snapshot.json")].clone();
        served.put(&format!("{pinned}.snapshot.json"), &snapshot);
        let (why, stored) = machine.refuses(&served, Attack::MixAndMatch);
        assert_eq!(
            why,
            format!(
                "snapshot.json is not the one that was pinned: version {pinned} is pinned, and it is \
                 version 2"
            )
        );
        assert_eq!(stored, ["timestamp"]);
    }
}

#[test]
fn another_version_of_the_targets_than_the_pinned() {
    let fleet = Fleet::new();
    for (pinned, served_version) in [(3, 2), (2, 1)] {
        let mut machine = Machine::enrolled(&fleet, "cinnabar");
        let mut served = two_generations(&fleet);
        served.forge("2.snapshot.json", &[&fleet.operators[0]], |signed| {
            signed["meta"]["targets.json"] = json!({ "version": pinned });
        });
        let targets = served.files[&format!("{served_version}.targets.json")].clone();
        served.put(&format!("{pinned}.targets.json"), &targets);
        served.stamp(&fleet, "cinnabar", 2, 2001);
        assert_eq!(machine.refuses(&served, Attack::MixAndMatch).1, ["timestamp", "snapshot"]);
    }
}

#[test]
fn older_targets_under_the_new_snapshot() {
    let fleet = Fleet::new();
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    let mut served = two_generations(&fleet);
    let old = served.files["1.targets.json"].clone();
    served.put("2.targets.json", &old);
    assert_eq!(machine.refuses(&served, Attack::MixAndMatch).1, ["timestamp", "snapshot"]);
}

#[test]
fn stored_files_that_are_not_the_pinned_ones_are_fetched_again() {
    let fleet = Fleet::new();
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    machine.refresh(&served).unwrap();
    // The same version with other bytes, properly signed and pinned by a new timestamp.
    served.forge("1.snapshot.json", &[&fleet.operators[0]], |signed| signed["note"] = "re-signed".into());
    served.stamp(&fleet, "cinnabar", 1, 2000);
    assert_eq!(machine.generation(&served), 1);
    assert_eq!(machine.fetched[2..], ["1.snapshot.json"]);
}

#[test]
fn a_role_signed_by_the_key_of_another_role() {
    let fleet = Fleet::new();
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    served.forge("timestamp.json", &[&fleet.operators[0]], |_| ());
    let (_, stored) = Machine::enrolled(&fleet, "cinnabar").refuses(&served, Attack::ForgedSignature);
    assert_eq!(stored, [""; 0]);

    for file in ["1.snapshot.json", "1.targets.json"] {
        let mut served = Served::generation(&fleet, "cinnabar", 1);
        served.forge(file, &[&fleet.online], |_| ());
        if file == "1.snapshot.json" {
            served.stamp(&fleet, "cinnabar", 1, 1001);
        } else {
            served.pin_again(&fleet, "cinnabar", 1);
        }
        Machine::enrolled(&fleet, "cinnabar").refuses(&served, Attack::ForgedSignature);
    }
}

#[test]
fn a_document_of_one_kind_where_another_belongs() {
    // One key holds every role, so the signature alone does not distinguish them.
    let one = key();
    let fleet = Fleet { operators: vec![one.clone()], online: one.clone(), root: vec![one], ..Fleet::new() };
    let served = Served::generation(&fleet, "cinnabar", 1);
    for (place, document) in [
        ("timestamp.json", "1.snapshot.json"),
        ("timestamp.json", "1.targets.json"),
        ("2.root.json", "timestamp.json"),
    ] {
        let mut swapped = served.clone();
        swapped.put(place, &served.files[document]);
        let (why, stored) = Machine::enrolled(&fleet, "cinnabar").refuses(&swapped, Attack::Malformed);
        assert!(why.contains("it says that it is"), "{why}");
        assert_eq!(stored, [""; 0]);
    }
}

#[test]
fn other_bytes_than_the_signed_target() {
    let signed = b"the signed bytes";
    let listed = |length: usize| -> Listed {
        let hashes = json!({ "sha256": Sha256::of(signed).hex() });
        serde_json::from_value(json!({ "length": length, "hashes": hashes })).unwrap()
    };
    let require = |length, bytes| listed(length).require_bytes("the target", bytes);
    require(signed.len(), signed).unwrap();
    for (bytes, attack) in [
        (b"the signed bytez".as_slice(), Attack::MixAndMatch),
        (b"the signed byte", Attack::MixAndMatch),
        (b"", Attack::MixAndMatch),
        (b"the signed bytes and more", Attack::EndlessData),
    ] {
        assert_eq!(require(signed.len(), bytes).unwrap_err().attack(), Some(attack));
    }
    // The right hash with a wrong length.
    assert_eq!(require(signed.len() + 1, signed).unwrap_err().attack(), Some(Attack::MixAndMatch));
}

#[test]
fn a_pin_whose_hashes_nobody_here_can_check() {
    let fleet = Fleet::new();
    for hashes in [json!({}), json!({ "md5": "00" })] {
        let mut served = Served::generation(&fleet, "cinnabar", 1);
        served.forge("timestamp.json", &[&fleet.online], |signed| {
            signed["meta"]["snapshot.json"] = json!({ "version": 1, "hashes": hashes });
        });
        let (_, stored) = Machine::enrolled(&fleet, "cinnabar").refuses(&served, Attack::MixAndMatch);
        assert_eq!(stored, ["timestamp"]);
    }
}

#[test]
fn another_snapshot_than_the_one_pinned_by_sha512_alone() {
    let fleet = Fleet::new();
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    let hash = to_hex(&Sha512::digest(&served.files["1.snapshot.json"]));
    for (hash, good) in [(hash, true), ("00".repeat(64), false)] {
        served.forge("timestamp.json", &[&fleet.online], |signed| {
            signed["meta"]["snapshot.json"] = json!({ "version": 1, "hashes": { "sha512": hash } });
        });
        let mut machine = Machine::enrolled(&fleet, "cinnabar");
        if good {
            assert_eq!(machine.generation(&served), 1);
        } else {
            machine.refuses(&served, Attack::MixAndMatch);
        }
    }
}
