//! Endless data, and documents made to be expensive.

use muster_protocol::report::Attack;
use muster_protocol::tuf::TufError;
use muster_protocol::tuf::client::MAX_ROOTS;
use serde_json::json;

use crate::fleet::*;

#[test]
fn endless_data_for_every_file() {
    let fleet = Fleet::new();
    let served = Served::generation(&fleet, "cinnabar", 1);
    for (file, stored) in [
        ("2.root.json", &[][..]),
        ("timestamp.json", &[]),
        ("1.snapshot.json", &["timestamp"]),
        ("1.targets.json", &["timestamp", "snapshot"]),
    ] {
        let mut endless = served.clone();
        // Spaces after a valid document are still JSON, so only the length reveals them.
        let good = served.files.get(file).cloned().unwrap_or_else(|| b"{}".to_vec());
        endless.put(file, &[good, vec![b' '; 8 << 20]].concat());
        let mut machine = Machine::enrolled(&fleet, "cinnabar");
        let (why, saved) = machine.refuses(&endless, Attack::EndlessData);
        assert!(why.starts_with(file), "{why}");
        assert_eq!(saved, stored);
    }
}

#[test]
fn no_fetch_is_without_a_limit_and_pins_lower_it() {
    let fleet = Fleet::new();
    let served = Served::generation(&fleet, "cinnabar", 1);
    for machine in [Machine::enrolled(&fleet, "cinnabar"), Machine::unscoped(&fleet)] {
        let mut update = machine.start().unwrap();
        while let Some(fetch) = update.next() {
            let bytes = served.files.get(&fetch.file);
            match fetch.file.as_str() {
                "1.snapshot.json" | "1.targets.json" => {
                    assert_eq!(fetch.max_bytes, bytes.unwrap().len() as u64);
                }
                _ => assert!(fetch.max_bytes <= 512 * 1024, "{fetch:?}"),
            }
            update.feed(bytes.map(|bytes| &bytes[..])).unwrap();
        }
    }
}

#[test]
fn a_pin_that_allows_more_than_any_machine_reads() {
    let fleet = Fleet::new();
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    served.forge("timestamp.json", &[&fleet.online], |signed| {
        signed["meta"]["snapshot.json"]["length"] = u64::MAX.into();
    });
    let machine = Machine::enrolled(&fleet, "cinnabar");
    let mut update = machine.start().unwrap();
    update.feed(None).unwrap();
    update.feed(Some(&served.files["timestamp.json"])).unwrap();
    let Some(fetch) = update.next() else { panic!("a snapshot is to come") };
    assert_eq!(fetch.max_bytes, 128 * 1024);
}

#[test]
fn the_declared_length_of_metadata() {
    let fleet = Fleet::new();
    let served = Served::generation(&fleet, "cinnabar", 1);
    let length = served.files["1.snapshot.json"].len();
    for (declared, attack) in [(length - 1, Attack::EndlessData), (length + 1, Attack::MixAndMatch)] {
        let mut lying = served.clone();
        lying.forge("timestamp.json", &[&fleet.online], |signed| {
            signed["meta"]["snapshot.json"] = json!({ "version": 1, "length": declared });
        });
        let (_, stored) = Machine::enrolled(&fleet, "cinnabar").refuses(&lying, attack);
        assert_eq!(stored, ["timestamp"]);
    }
    let length = served.files["1.targets.json"].len();
    for (declared, attack) in [(length - 1, Attack::EndlessData), (length + 1, Attack::MixAndMatch)] {
        let mut lying = served.clone();
        lying.forge("1.snapshot.json", &[&fleet.operators[0]], |signed| {
            signed["meta"]["targets.json"] = json!({ "version": 1, "length": declared });
        });
        lying.stamp(&fleet, "cinnabar", 1, 1001);
        let (_, stored) = Machine::enrolled(&fleet, "cinnabar").refuses(&lying, attack);
        assert_eq!(stored, ["timestamp", "snapshot"]);
    }
}

#[test]
fn a_target_longer_than_any_machine_reads() {
    let fleet = Fleet::new();
    let with = |length: u64| {
        let mut served = Served::generation(&fleet, "cinnabar", 1);
        served.forge("1.targets.json", &[&fleet.operators[0]], |signed| {
            signed["targets"]["cinnabar/generation.json"]["length"] = length.into();
        });
        served.pin_again(&fleet, "cinnabar", 1);
        served
    };
    assert_eq!(Machine::enrolled(&fleet, "cinnabar").generation(&with(64 * 1024)), 1);
    Machine::enrolled(&fleet, "cinnabar").refuses(&with(64 * 1024 + 1), Attack::EndlessData);
}

#[test]
fn more_new_roots_than_one_refresh_follows_take_two() {
    let mut fleet = Fleet::new();
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    let mut served = Served::default();
    for version in 2..=u64::from(MAX_ROOTS) + 2 {
        fleet.version = version;
        served.put(&format!("{version}.root.json"), &fleet.root_json());
    }
    served.publish(&fleet, "cinnabar", 1, 1000);
    let error = machine.refresh(&served).err().unwrap();
    assert!(matches!(error, TufError::TooManyRoots(MAX_ROOTS)), "{error}");
    assert_eq!(error.attack(), None);
    assert_eq!(machine.start().unwrap().holds().root, u64::from(MAX_ROOTS) + 1);
    assert_eq!(machine.generation(&served), 1);
    assert_eq!(machine.start().unwrap().holds().root, u64::from(MAX_ROOTS) + 2);
}

#[test]
fn a_root_with_too_many_keys() {
    let fleet = Fleet::new();
    let with = |keys: usize| {
        let mut machine = Machine::enrolled(&fleet, "cinnabar");
        machine.stored.root = resigned(&machine.stored.root, &[&fleet.root[0]], |signed| {
            let known = signed["keys"].as_object().unwrap().len();
            for n in known..keys {
                signed["keys"][format!("k{n}")] =
                    json!({ "keytype": "x", "scheme": "x", "keyval": { "public": "" } });
            }
        });
        machine
    };
    assert!(with(256).start().is_ok());
    assert!(with(257).start().err().unwrap().to_string().contains("more than 256 keys"));
}

#[test]
fn a_document_with_too_many_signatures() {
    let fleet = Fleet::new();
    let served = Served::generation(&fleet, "cinnabar", 1);
    let with = |count: usize| {
        let mut document: serde_json::Value =
            serde_json::from_slice(&served.files["timestamp.json"]).unwrap();
        let list = document["signatures"].as_array_mut().unwrap();
        for n in list.len()..count {
            list.push(json!({ "keyid": n.to_string(), "sig": "" }));
        }
        let mut served = served.clone();
        served.put("timestamp.json", document.to_string().as_bytes());
        served
    };
    assert_eq!(Machine::enrolled(&fleet, "cinnabar").generation(&with(256)), 1);
    let (why, _) = Machine::enrolled(&fleet, "cinnabar").refuses(&with(257), Attack::Malformed);
    assert!(why.contains("more than 256 signatures"), "{why}");
}

#[test]
fn a_document_nested_without_end() {
    let fleet = Fleet::new();
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    let deep = format!("{{\"signed\":{}", "[".repeat(15_000));
    served.put("timestamp.json", deep.as_bytes());
    Machine::enrolled(&fleet, "cinnabar").refuses(&served, Attack::Malformed);
}

#[test]
fn without_a_scope_and_a_declared_length_the_limits_are_those_of_other_clients() {
    let fleet = Fleet::new();
    let mut served = Served::generation(&fleet, "any", 1);
    served.forge("1.snapshot.json", &[&fleet.operators[0]], |signed| {
        signed["meta"]["targets.json"] = json!({ "version": 1 });
    });
    served.forge("timestamp.json", &[&fleet.online], |signed| {
        signed["meta"]["snapshot.json"] = json!({ "version": 1 });
    });
    let mut update = Machine::unscoped(&fleet).start().unwrap();
    let mut limits = Vec::new();
    while let Some(fetch) = update.next() {
        limits.push(fetch.max_bytes);
        let bytes = served.files.get(&fetch.file);
        update.feed(bytes.map(|bytes| &bytes[..])).unwrap();
    }
    assert_eq!(limits, [512 << 10, 16 << 10, 2 << 20, 5 << 20]);
}
