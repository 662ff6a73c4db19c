//! Metadata signed by too few of the right keys, or that no honest program writes.

use curve25519_dalek::scalar::Scalar;
use ed25519_dalek::pkcs8::EncodePrivateKey as _;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::{SigningKey, Verifier as _};
use muster_protocol::ids::to_hex;
use muster_protocol::keys::SecretKey;
use muster_protocol::report::Attack;
use muster_protocol::tuf::metadata::Root;
use muster_protocol::tuf::repository::key_id;
use muster_protocol::tuf::{TufError, canonical};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha512};

use crate::fleet::*;

/// A machine whose root was changed and properly signed again.
fn machine_with_root(fleet: &Fleet, change: impl FnOnce(&mut Value)) -> Machine {
    let mut machine = Machine::enrolled(fleet, "cinnabar");
    machine.stored.root = resigned(&machine.stored.root, &[&fleet.root[0]], change);
    machine
}

#[test]
fn metadata_signed_by_nobody_or_by_a_stranger() {
    let (fleet, stranger) = (Fleet::new(), key());
    for file in ["timestamp.json", "1.snapshot.json", "1.targets.json"] {
        for keys in [vec![], vec![&stranger]] {
            let mut served = Served::generation(&fleet, "cinnabar", 1);
            served.forge(file, &keys, |_| ());
            match file {
                "timestamp.json" => {}
                "1.snapshot.json" => served.stamp(&fleet, "cinnabar", 1, 1001),
                _ => served.pin_again(&fleet, "cinnabar", 1),
            }
            let (why, _) = Machine::enrolled(&fleet, "cinnabar").refuses(&served, Attack::ForgedSignature);
            assert!(why.ends_with("has too few valid signatures: 0 of 1"), "{why}");
        }
    }
}

#[test]
fn a_strangers_signature_under_the_right_key_id() {
    let (fleet, stranger) = (Fleet::new(), key());
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    served.forge("timestamp.json", &[&stranger], |_| ());
    let mut document: Value = serde_json::from_slice(&served.files["timestamp.json"]).unwrap();
    document["signatures"][0]["keyid"] = key_id(&fleet.online.public()).into();
    served.put("timestamp.json", document.to_string().as_bytes());
    Machine::enrolled(&fleet, "cinnabar").refuses(&served, Attack::ForgedSignature);
}

#[test]
fn any_bit_of_any_file_flipped() {
    let fleet = Fleet::new();
    let served = Served::generation(&fleet, "cinnabar", 1);
    let signed =
        |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).map(|document| document["signed"].clone());
    for file in ["timestamp.json", "1.snapshot.json", "1.targets.json"] {
        // Only the timestamp has no hash that pins it; without hashes the signatures protect the others.
        let bytes = &served.files[file];
        let mut refused = 0;
        for at in 0..bytes.len() {
            let mut changed = served.clone();
            changed.files.get_mut(file).unwrap()[at] ^= 1 << (at % 8);
            let mut machine = Machine::enrolled(&fleet, "cinnabar");
            match machine.refresh(&changed) {
                Err(error) => {
                    assert!(error.attack().is_some(), "{error}");
                    refused += 1;
                }
                // A flipped bit may turn one space into another; it must not change the meaning.
                Ok(_) => assert_eq!(signed(&changed.files[file]).unwrap(), signed(bytes).unwrap()),
            }
        }
        assert!(refused * 100 >= bytes.len() * 99, "{file}: {refused} of {}", bytes.len());
    }
}

#[test]
fn one_key_under_two_ids_counts_once() {
    let fleet = Fleet::new();
    let operator = &fleet.operators[0];
    let mut machine = machine_with_root(&fleet, |signed| {
        let id = key_id(&operator.public());
        let same = signed["keys"][&id].clone();
        signed["keys"]["another-id"] = same;
        signed["keys"]["another-id"]["a-field-that-changes-the-id"] = 1.into();
        signed["roles"]["snapshot"] = json!({ "keyids": [id, "another-id"], "threshold": 2 });
    });
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    let mut document: Value = serde_json::from_slice(&served.files["1.snapshot.json"]).unwrap();
    let mut twin = document["signatures"][0].clone();
    twin["keyid"] = "another-id".into();
    document["signatures"].as_array_mut().unwrap().push(twin);
    served.put("1.snapshot.json", document.to_string().as_bytes());
    served.stamp(&fleet, "cinnabar", 1, 1001);
    let (why, _) = machine.refuses(&served, Attack::ForgedSignature);
    assert_eq!(why, "snapshot.json has too few valid signatures: 1 of 2");
}

#[test]
fn one_key_id_named_twice_counts_once() {
    let fleet = Fleet::new();
    let id = key_id(&fleet.operators[0].public());
    let mut machine = machine_with_root(&fleet, |signed| {
        signed["roles"]["snapshot"] = json!({ "keyids": [id, id], "threshold": 2 });
    });
    machine.refuses(&Served::generation(&fleet, "cinnabar", 1), Attack::ForgedSignature);
}

#[test]
fn two_signatures_under_one_key_id() {
    let fleet = Fleet::new();
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    served.forge("timestamp.json", &[&fleet.online, &fleet.online], |_| ());
    let (why, _) = Machine::enrolled(&fleet, "cinnabar").refuses(&served, Attack::Malformed);
    assert!(why.ends_with("two signatures have the same key ID"), "{why}");
}

#[test]
fn a_bad_signature_beside_enough_good_ones_is_no_harm() {
    let (fleet, stranger) = (Fleet::new(), key());
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    served.forge("timestamp.json", &[&fleet.online, &stranger], |_| ());
    for sig in ["", "zz", "é", &"00".repeat(64)] {
        let mut document: Value = serde_json::from_slice(&served.files["timestamp.json"]).unwrap();
        document["signatures"][1]["sig"] = sig.into();
        served.put("timestamp.json", document.to_string().as_bytes());
        assert_eq!(Machine::enrolled(&fleet, "cinnabar").generation(&served), 1);
    }
}

#[test]
fn a_threshold_of_zero() {
    let fleet = Fleet::new();
    for role in ["root", "timestamp", "snapshot", "targets"] {
        let machine = machine_with_root(&fleet, |signed| signed["roles"][role]["threshold"] = 0.into());
        let error = machine.start().err().unwrap();
        assert!(matches!(error, TufError::Malformed { .. }), "{error}");
        assert!(error.to_string().contains("integer `0`, expected a nonzero"), "{error}");
    }
}

#[test]
fn a_threshold_below_zero_or_beyond_all_keys() {
    let fleet = Fleet::new();
    for threshold in [json!(-1), json!(1.5), json!("1"), json!(null), json!(4_294_967_296_u64)] {
        let machine =
            machine_with_root(&fleet, |signed| signed["roles"]["snapshot"]["threshold"] = threshold);
        assert_eq!(machine.start().err().unwrap().attack(), Some(Attack::Malformed));
    }
    let mut machine = machine_with_root(&fleet, |signed| signed["roles"]["snapshot"]["threshold"] = 2.into());
    machine.refuses(&Served::generation(&fleet, "cinnabar", 1), Attack::ForgedSignature);
}

#[test]
fn a_weak_public_key() {
    // The identity point and the other points of small order: anybody can sign for them.
    let fleet = Fleet::new();
    for weak in [
        format!("01{}", "00".repeat(31)),
        "00".repeat(32),
        format!("ec{}7f", "ff".repeat(30)),
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05".into(),
    ] {
        let machine = machine_with_root(&fleet, |signed| {
            signed["keys"]["weak"] =
                json!({ "keytype": "ed25519", "scheme": "ed25519", "keyval": { "public": weak } });
            signed["roles"]["targets"]["keyids"] = json!(["weak"]);
        });
        let error = machine.start().err().unwrap();
        assert!(error.to_string().contains("weak"), "{error}");
    }
}

/// A signature whose R is the identity: plain `verify` accepts it, `verify_strict` must not. It takes the
/// private key to make one, so it is no forgery, but two programs would disagree on whether the metadata is
/// signed.
fn lax_signature(key: &SigningKey, message: &[u8]) -> [u8; 64] {
    let mut signature = [0; 64];
    signature[0] = 1;
    let hash = Sha512::new()
        .chain_update(&signature[..32])
        .chain_update(key.verifying_key().as_bytes())
        .chain_update(message)
        .finalize();
    let s = Scalar::from_bytes_mod_order_wide(&hash.into()) * key.to_scalar();
    signature[32..].copy_from_slice(s.as_bytes());
    signature
}

#[test]
fn a_signature_that_only_a_lax_check_believes() {
    let lax = SigningKey::from_bytes(&[7; 32]);
    let online = SecretKey::from_pem(&lax.to_pkcs8_pem(LineEnding::LF).unwrap()).unwrap();
    let fleet = Fleet { online, ..Fleet::new() };
    let mut served = Served::generation(&fleet, "cinnabar", 1);

    let mut document: Value = serde_json::from_slice(&served.files["timestamp.json"]).unwrap();
    let message = canonical::encode(&document["signed"]).unwrap();
    let signature = lax_signature(&lax, &message);
    let plain = lax.verifying_key().verify(&message, &ed25519_dalek::Signature::from_bytes(&signature));
    assert!(plain.is_ok(), "the plain check must accept it, or this test shows nothing");

    document["signatures"][0]["sig"] = to_hex(&signature).into();
    served.put("timestamp.json", document.to_string().as_bytes());
    Machine::enrolled(&fleet, "cinnabar").refuses(&served, Attack::ForgedSignature);
}

#[test]
fn a_float_anywhere_in_what_is_signed() {
    let fleet = Fleet::new();
    for float in [json!(1.0), json!({ "deep": [0.5] }), json!(1e300)] {
        let mut served = Served::generation(&fleet, "cinnabar", 1);
        served.forge("timestamp.json", &[&fleet.online], |signed| signed["x"] = float);
        let (why, stored) = Machine::enrolled(&fleet, "cinnabar").refuses(&served, Attack::Malformed);
        assert!(why.contains("not a 64-bit integer"), "{why}");
        assert_eq!(stored, [""; 0]);
    }
}

#[test]
fn another_major_version_of_the_specification() {
    let fleet = Fleet::new();
    let with = |version: &str| {
        let mut served = Served::generation(&fleet, "cinnabar", 1);
        served.forge("timestamp.json", &[&fleet.online], |signed| signed["spec_version"] = version.into());
        served
    };
    for version in ["2.0.0", "2", "0.9", "10.0", "", "v1.0", "one"] {
        let (why, _) = Machine::enrolled(&fleet, "cinnabar").refuses(&with(version), Attack::Malformed);
        assert!(why.contains("of the specification"), "{why}");
    }
    for version in ["1.0.0", "1.0", "1", "1.99.3"] {
        assert_eq!(Machine::enrolled(&fleet, "cinnabar").generation(&with(version)), 1, "{version}");
    }
}

#[test]
fn a_timestamp_that_is_no_metadata() {
    let fleet = Fleet::new();
    for bytes in [
        "",
        "null",
        "[]",
        "<html>",
        "{\"signed\":{}",
        "{\"signed\":{},\"signatures\":{}}",
        "{\"signatures\":[]}",
        "\u{feff}{}",
    ] {
        let mut served = Served::generation(&fleet, "cinnabar", 1);
        served.put("timestamp.json", bytes.as_bytes());
        let (_, stored) = Machine::enrolled(&fleet, "cinnabar").refuses(&served, Attack::Malformed);
        assert_eq!(stored, [""; 0]);
    }
}

#[test]
fn a_well_signed_timestamp_that_says_too_little_or_nonsense() {
    let fleet = Fleet::new();
    for (field, value) in [
        ("version", json!(0)),
        ("version", json!(-1)),
        ("version", json!("1")),
        ("version", json!(null)),
        ("expires", json!("tomorrow")),
        ("expires", json!(1_900_000_000)),
        ("expires", json!(null)),
        ("meta", json!({})),
        ("meta", json!({ "snapshot.json": {} })),
        ("meta", json!({ "snapshot.json": { "version": 0 } })),
        ("meta", json!({ "snapshot.json": { "version": 1, "length": -1 } })),
        ("meta", json!({ "snapshot.json": { "version": 1, "hashes": { "sha256": "00" } } })),
        ("x-muster-machine", json!(7)),
    ] {
        let mut served = Served::generation(&fleet, "cinnabar", 1);
        served.forge("timestamp.json", &[&fleet.online], |signed| signed[field] = value.clone());
        let mut machine = Machine::enrolled(&fleet, "cinnabar");
        let Err(error) = machine.refresh(&served) else { panic!("{field} {value}") };
        assert_eq!(error.attack(), Some(Attack::Malformed), "{field} {value}: {error}");
        assert!(machine.stored.timestamp.is_none());
    }
}

#[test]
fn a_snapshot_without_targets_and_targets_without_a_hash() {
    let fleet = Fleet::new();
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    served.forge("1.snapshot.json", &[&fleet.operators[0]], |signed| signed["meta"] = json!({}));
    served.forge("timestamp.json", &[&fleet.online], |signed| {
        signed["meta"]["snapshot.json"] = json!({ "version": 1 });
    });
    assert_eq!(Machine::enrolled(&fleet, "cinnabar").refuses(&served, Attack::Malformed).1, ["timestamp"]);

    // TUF accepts a hash of another known kind; a machine requires SHA-256.
    for hashes in [json!({}), json!({ "sha512": "00".repeat(64) })] {
        let mut served = Served::generation(&fleet, "cinnabar", 1);
        served.forge("1.targets.json", &[&fleet.operators[0]], |signed| {
            signed["targets"]["cinnabar/generation.json"]["hashes"] = hashes;
        });
        served.pin_again(&fleet, "cinnabar", 1);
        Machine::enrolled(&fleet, "cinnabar").refuses(&served, Attack::Malformed);
    }
}

#[test]
fn a_root_that_leaves_a_role_to_nobody() {
    let fleet = Fleet::new();
    for role in ["root", "timestamp", "snapshot", "targets"] {
        let root = resigned(&fleet.root_json(), &[&fleet.root[0]], |signed| {
            signed["roles"].as_object_mut().unwrap().remove(role);
        });
        assert_eq!(Root::parse_self_signed(&root).err().unwrap().attack(), Some(Attack::Malformed));
    }
}

#[test]
fn a_key_of_an_unknown_kind_signs_for_nobody_and_breaks_nothing() {
    let fleet = Fleet::new();
    let mut machine = machine_with_root(&fleet, |signed| {
        signed["keys"]["future"] =
            json!({ "keytype": "ml-dsa", "scheme": "ml-dsa-65", "keyval": { "public": "00" } });
        signed["roles"]["timestamp"]["keyids"].as_array_mut().unwrap().push("future".into());
        signed["roles"]["timestamp"]["keyids"].as_array_mut().unwrap().push("of no key".into());
    });
    assert_eq!(machine.generation(&Served::generation(&fleet, "cinnabar", 1)), 1);
}
