//! What must work: ordinary days of a machine, and those after a crash.

use muster_protocol::checkin::Holds;
use muster_protocol::report::Attack;
use muster_protocol::tuf::TufError;
use muster_protocol::tuf::client::{Fetch, Stored};

use crate::fleet::*;

#[test]
fn generations_one_and_two_are_followed() {
    let fleet = Fleet::new();
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    assert_eq!(machine.generation(&served), 1);
    assert_eq!(machine.fetched, ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]);

    served.publish(&fleet, "cinnabar", 2, 2000);
    let update = machine.refresh(&served).unwrap();
    assert_eq!(update.targets_version(), Some(2));
    assert_eq!(
        update.holds(),
        Holds { root: 1, timestamp: 2000, snapshot: 2, targets: 2, ..Holds::default() }
    );

    let publication = fleet.publication(&target("cinnabar", 2));
    let file = update.listed("cinnabar/generation.json").unwrap();
    file.require_bytes("the target", publication.target.as_bytes()).unwrap();
    assert_eq!(update.target_name("cinnabar/generation.json", "HASH"), "cinnabar/HASH.generation.json");
    assert!(update.listed("stibnite/generation.json").is_none());
}

#[test]
fn the_bytes_as_received_are_what_is_stored() {
    let fleet = Fleet::new();
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    let spaced = [b"  ", served.files["timestamp.json"].as_slice(), b"\n"].concat();
    served.put("timestamp.json", &spaced);
    machine.refresh(&served).unwrap();
    assert_eq!(machine.stored.timestamp.unwrap(), spaced);
}

#[test]
fn unknown_fields_are_signed_and_kept() {
    let fleet = Fleet::new();
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    served.forge("timestamp.json", &[&fleet.online], |signed| signed["a field of the future"] = "x".into());
    assert_eq!(machine.generation(&served), 1);

    let mut changed = served.clone();
    let text = String::from_utf8(changed.files["timestamp.json"].clone()).unwrap();
    changed.put("timestamp.json", text.replace(r#"future":"x""#, r#"future":"y""#).as_bytes());
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    machine.refuses(&changed, Attack::ForgedSignature);
}

#[test]
fn nothing_is_published_for_a_new_machine_and_that_is_no_error() {
    let fleet = Fleet::new();
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    let update = machine.refresh(&Served::default()).unwrap();
    assert_eq!(update.targets_version(), None);
    assert!(update.listed("cinnabar/generation.json").is_none());
}

#[test]
fn a_repository_that_was_there_and_is_gone_is_an_error() {
    let fleet = Fleet::new();
    let served = Served::generation(&fleet, "cinnabar", 1);
    for file in ["timestamp.json", "1.snapshot.json", "1.targets.json"] {
        let mut machine = Machine::enrolled(&fleet, "cinnabar");
        machine.refresh(&served).unwrap();
        let mut gone = Served::default();
        gone.publish(&fleet, "cinnabar", 1, 2000);
        gone.files.remove(file);
        if file == "1.snapshot.json" {
            machine.stored.snapshot = None;
        } else if file == "1.targets.json" {
            machine.stored.targets = None;
        }
        let error = machine.refresh(&gone).err().unwrap();
        assert!(matches!(&error, TufError::Missing { what } if what == file), "{error}");
        assert_eq!(error.attack(), None);
    }
    // It existed if anything else is stored, even without a timestamp.
    for stored in 0..2 {
        let mut machine = Machine::enrolled(&fleet, "cinnabar");
        machine.refresh(&served).unwrap();
        machine.stored.timestamp = None;
        if stored == 0 {
            machine.stored.snapshot = None;
        } else {
            machine.stored.targets = None;
        }
        assert!(machine.refresh(&Served::default()).is_err());
    }
    // No other repository may begin empty either.
    assert!(Machine::unscoped(&fleet).refresh(&Served::default()).is_err());
}

#[test]
fn the_same_timestamp_again_is_nothing_new_and_fetches_nothing_more() {
    let fleet = Fleet::new();
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    let served = Served::generation(&fleet, "cinnabar", 1);
    machine.refresh(&served).unwrap();
    let update = machine.refresh(&served).unwrap();
    assert_eq!(machine.fetched, ["2.root.json", "timestamp.json"]);
    assert!(update.listed("cinnabar/generation.json").is_some());
    assert_eq!(update.targets_version(), Some(1));
}

#[test]
fn the_same_timestamp_again_fetches_what_the_disk_lost() {
    let fleet = Fleet::new();
    let served = Served::generation(&fleet, "cinnabar", 1);
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    machine.refresh(&served).unwrap();

    let mut lost = Machine { stored: Stored { targets: None, ..machine.stored.clone() }, ..machine.clone() };
    assert_eq!(lost.generation(&served), 1);
    assert_eq!(lost.fetched[2..], ["1.targets.json"]);

    let mut lost = Machine { stored: Stored { snapshot: None, ..machine.stored.clone() }, ..machine.clone() };
    assert_eq!(lost.generation(&served), 1);
    assert_eq!(lost.fetched[2..], ["1.snapshot.json"]);

    let mut lost = Machine { stored: Stored { timestamp: None, ..machine.stored.clone() }, ..machine };
    assert_eq!(lost.generation(&served), 1);
    assert_eq!(lost.fetched.len(), 2);
}

#[test]
fn another_timestamp_of_the_same_version_changes_nothing() {
    let fleet = Fleet::new();
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    machine.refresh(&served).unwrap();
    let held = machine.stored.timestamp.clone();

    served.publish(&fleet, "cinnabar", 2, 1001);
    assert_eq!(machine.generation(&served), 1);
    assert_eq!(machine.stored.timestamp, held);
}

#[test]
fn a_crash_after_any_save_ends_well() {
    let fleet = Fleet::new();
    let next = Fleet { version: 2, ..fleet.clone() };
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    let mut before = Machine::enrolled(&fleet, "cinnabar");
    before.refresh(&served).unwrap();
    served.put("2.root.json", &fleet.next_root(&next));
    served.publish(&next, "cinnabar", 2, 2000);

    for saves in 0..4 {
        let mut machine = before.clone();
        let mut update = machine.start().unwrap();
        let mut done = 0;
        while done < saves {
            let Some(fetch) = update.next() else { panic!("there are four saves") };
            let answer = served.files.get(&fetch.file).map(|bytes| &bytes[..]);
            if let Some(save) = update.feed(answer).unwrap() {
                machine.save(save);
                done += 1;
            }
        }
        assert_eq!(machine.generation(&served), 2, "after {saves} saves");
    }
}

#[test]
fn damaged_files_on_disk_are_fetched_again() {
    let fleet = Fleet::new();
    let served = Served::generation(&fleet, "cinnabar", 1);
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    machine.refresh(&served).unwrap();
    let whole = machine.stored.clone();
    for damage in [b"".as_slice(), b"{", b"\0\0\0\0", b"{\"signed\":{},\"signatures\":[]}"] {
        let damage = Some(damage.to_vec());
        machine.stored = Stored {
            timestamp: damage.clone(),
            snapshot: damage.clone(),
            targets: damage,
            root: whole.root.clone(),
        };
        assert_eq!(machine.generation(&served), 1);
        assert_eq!(machine.stored.targets, whole.targets);
    }
    machine.stored.root = b"{".to_vec();
    assert!(machine.start().is_err(), "without a valid root there is nothing to trust");
}

#[test]
fn after_a_refusal_nothing_more_is_asked_for_or_given_out() {
    let fleet = Fleet::new();
    let served = Served::generation(&fleet, "cinnabar", 1);
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    machine.refresh(&served).unwrap();

    let mut update = machine.start().unwrap();
    update.feed(None).unwrap();
    assert!(update.feed(Some(b"forged")).is_err());
    assert_eq!(update.next(), None);
    assert!(matches!(update.feed(Some(b"forged")), Err(TufError::NotAsked)));
    assert!(update.listed("cinnabar/generation.json").is_none());
    assert_eq!(update.targets_version(), None);
    // What is on disk is still what is held.
    assert_eq!(
        update.holds(),
        Holds { root: 1, timestamp: 1001, snapshot: 1, targets: 1, ..Holds::default() }
    );
}

#[test]
fn before_the_end_nothing_is_given_out() {
    let fleet = Fleet::new();
    let served = Served::generation(&fleet, "cinnabar", 1);
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    machine.refresh(&served).unwrap();
    let mut update = machine.start().unwrap();
    assert!(update.listed("cinnabar/generation.json").is_none());
    assert_eq!(update.targets_version(), None);
    let first = update.next();
    assert_eq!(first, update.next(), "the same until it is fed");
    assert!(matches!(first, Some(Fetch { file, .. }) if file == "2.root.json"));
}

#[test]
fn two_of_three_operators_are_enough_and_one_is_not() {
    let fleet = Fleet { operators: vec![key(), key(), key()], threshold: 2, ..Fleet::new() };
    for (signing, enough) in [(1, false), (2, true), (3, true)] {
        let mut served = Served::default();
        let few = Fleet { operators: fleet.operators[..signing].to_vec(), ..fleet.clone() };
        served.publish(&few, "cinnabar", 1, 1000);
        let mut machine = Machine::enrolled(&fleet, "cinnabar");
        if enough {
            assert_eq!(machine.generation(&served), 1);
        } else {
            let (_, stored) = machine.refuses(&served, Attack::ForgedSignature);
            assert_eq!(stored, ["timestamp"]);
        }
    }
}

#[test]
fn without_consistent_snapshots_names_carry_no_versions_and_hashes() {
    let fleet = Fleet::new();
    let mut machine = Machine::unscoped(&fleet);
    machine.stored.root = resigned(&machine.stored.root, &[&fleet.root[0]], |signed| {
        signed["consistent_snapshot"] = false.into();
    });
    let mut served = Served::generation(&fleet, "any", 1);
    for file in ["snapshot.json", "targets.json"] {
        let bytes = served.files.remove(&format!("1.{file}")).unwrap();
        served.put(file, &bytes);
    }
    let update = machine.refresh(&served).unwrap();
    assert_eq!(update.targets_version(), Some(1));
    assert_eq!(update.target_name("a/b", "HASH"), "a/b");
}
