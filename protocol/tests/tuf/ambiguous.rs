//! Documents that two readers could read differently, though the signature is valid.

use muster_protocol::ids::Sha256;
use muster_protocol::keys::SecretKey;
use muster_protocol::report::Attack;
use muster_protocol::tuf::canonical;
use muster_protocol::tuf::repository::key_id;
use serde_json::{Value, json};

use crate::fleet::*;

/// A timestamp of cinnabar for a snapshot of generation 1, as text.
fn timestamp(fleet: &Fleet) -> String {
    let served = Served::generation(fleet, "cinnabar", 1);
    String::from_utf8(served.files["timestamp.json"].clone()).unwrap()
}

/// What is served when the timestamp is this text.
fn serving(fleet: &Fleet, timestamp: &str) -> Served {
    let mut served = Served::generation(fleet, "cinnabar", 1);
    served.put("timestamp.json", timestamp.as_bytes());
    served
}

fn refused(fleet: &Fleet, timestamp: &str) -> String {
    let (why, stored) =
        Machine::enrolled(fleet, "cinnabar").refuses(&serving(fleet, timestamp), Attack::Malformed);
    assert_eq!(stored, [""; 0]);
    why
}

/// A document with this text as its signed part, and a valid signature over what `signed` means.
fn sealed(key: &SecretKey, text: &str, signed: &Value) -> String {
    let message = canonical::encode(signed).unwrap();
    let claim = json!([{ "keyid": key_id(&key.public()), "sig": key.sign_raw(&message).hex() }]);
    format!("{{\"signatures\":{claim},\"signed\":{text}}}")
}

#[test]
fn a_field_that_stands_twice_wherever_it_stands() {
    let fleet = Fleet::new();
    let text = timestamp(&fleet);
    for (from, to) in [
        (r#""version":1001"#, r#""version":1,"version":1001"#),
        (r#""version":1001"#, r#""version":1001,"v\u0065rsion":1001"#),
        (r#""x-muster-machine":"#, r#""x-muster-machine":"realgar","x-muster-machine":"#),
        (r#""hashes":{"#, r#""hashes":{"sha256":"","#),
        (r#""length":"#, r#""length":1,"length":"#),
    ] {
        assert!(text.contains(from), "{text}");
        // The last of the two is what was signed, so a lax reader accepts the signature.
        let why = refused(&fleet, &text.replacen(from, to, 1));
        assert!(why.contains("appears twice"), "{why}");
    }
    for (from, to) in [
        (r#""signed":"#, r#""signed":{},"signed":"#),
        (r#""signatures":"#, r#""signatures":[],"signatures":"#),
        (r#""sig":"#, r#""sig":"","sig":"#),
    ] {
        assert!(refused(&fleet, &text.replacen(from, to, 1)).contains("duplicate field"));
    }
}

#[test]
fn names_that_a_parser_reads_by_rules_of_its_own() {
    // serde_json gives these names a meaning with features that another crate of the program may enable.
    let fleet = Fleet::new();
    for (name, inner, meaning) in [
        ("$serde_json::private::RawValue", json!("[7]"), json!([7])),
        ("$serde_json::private::Number", json!("7"), json!(7)),
    ] {
        let mut signed: Value = serde_json::from_str::<Value>(&timestamp(&fleet)).unwrap()["signed"].take();
        signed["note"] = "HERE".into();
        let text = signed.to_string().replace(r#""HERE""#, &format!(r#"{{"{name}":{inner}}}"#));
        // A signature over what it would mean is not one over what it says.
        signed["note"] = meaning;
        let lax = sealed(&fleet.online, &text, &signed);
        let mut machine = Machine::enrolled(&fleet, "cinnabar");
        machine.refuses(&serving(&fleet, &lax), Attack::ForgedSignature);
        // With a signature over what it says, it is an unknown field.
        let message = text.replace(' ', "");
        let sig = fleet.online.sign_raw(message.as_bytes()).hex();
        let claim = json!([{ "keyid": key_id(&fleet.online.public()), "sig": sig }]);
        let plain = format!("{{\"signatures\":{claim},\"signed\":{text}}}");
        assert_eq!(machine.generation(&serving(&fleet, &plain)), 1);
    }
}

#[test]
fn what_a_machine_wants_of_its_target_hidden_in_a_raw_value() {
    let fleet = Fleet::new();
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    served.forge("1.targets.json", &[&fleet.operators[0]], |signed| {
        let custom = signed["targets"]["cinnabar/generation.json"]["custom"].take().to_string();
        signed["targets"]["cinnabar/generation.json"]["custom"] =
            json!({ "$serde_json::private::RawValue": custom });
    });
    served.pin_again(&fleet, "cinnabar", 1);
    Machine::enrolled(&fleet, "cinnabar").refuses(&served, Attack::Malformed);
}

#[test]
fn text_that_is_no_unicode() {
    let fleet = Fleet::new();
    let text = timestamp(&fleet);
    let at = text.find("cinnabar").unwrap();
    for bytes in [b"\xff".as_slice(), b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"] {
        let mut served = serving(&fleet, "");
        let damaged = [&text.as_bytes()[..at], bytes, &text.as_bytes()[at..]].concat();
        served.put("timestamp.json", &damaged);
        Machine::enrolled(&fleet, "cinnabar").refuses(&served, Attack::Malformed);
    }
    // Half of a surrogate pair, which some programs accept.
    for escape in [r"\ud800", r"\udc00", r"\ud800\u0041"] {
        refused(&fleet, &text.replacen("cinnabar", &format!("{escape}cinnabar"), 1));
    }
}

#[test]
fn numbers_that_programs_round_differently() {
    let fleet = Fleet::new();
    let text = timestamp(&fleet);
    for number in [
        "1001.0",
        "1.001e3",
        "18446744073709551616",
        "-9223372036854775809",
        "1e400",
        "-0",
        "01001",
        "+1001",
        "0x3e9",
        "1001.",
        "NaN",
        "Infinity",
    ] {
        refused(&fleet, &text.replacen(":1001,", &format!(":{number},"), 1));
        refused(&fleet, &text.replacen(":1001,", &format!(":1001,\"note\":[{number}],"), 1));
    }
}

#[test]
fn nesting_as_deep_as_a_parser_goes_and_deeper() {
    let fleet = Fleet::new();
    let with = |depth: usize| {
        let nested =
            |text: &str| text.replacen("[]", &format!("{}{}", "[".repeat(depth), "]".repeat(depth)), 1);
        let mut served = Served::generation(&fleet, "cinnabar", 1);
        served.forge("timestamp.json", &[&fleet.online], |signed| signed["note"] = json!([]));
        let flat = String::from_utf8(served.files["timestamp.json"].clone()).unwrap();
        let document: Value = serde_json::from_str(&flat).unwrap();
        let text = nested(&document["signed"].to_string());
        let message = text.clone();
        let sig = fleet.online.sign_raw(message.as_bytes()).hex();
        let claim = json!([{ "keyid": key_id(&fleet.online.public()), "sig": sig }]);
        format!("{{\"signatures\":{claim},\"signed\":{text}}}")
    };
    assert_eq!(Machine::enrolled(&fleet, "cinnabar").generation(&serving(&fleet, &with(100))), 1);
    assert!(refused(&fleet, &with(200)).contains("recursion limit"));
    // Also in unknown fields, and in objects.
    let outside = timestamp(&fleet).replacen('{', &format!("{{\"x\":{}", "[".repeat(10_000)), 1);
    refused(&fleet, &outside);
    refused(&fleet, &format!("{{\"signed\":{}", "{\"a\":".repeat(3_000)));
}

#[test]
fn a_second_document_behind_the_first() {
    let fleet = Fleet::new();
    let text = timestamp(&fleet);
    for more in ["{}", "x", "\0", &text] {
        assert!(refused(&fleet, &format!("{text}{more}")).contains("trailing characters"));
    }
    refused(&fleet, &format!("\u{feff}{text}"));
}

#[test]
fn one_meaning_in_two_ways_to_write_it_is_one_document() {
    // TUF signs the value: its bytes may be indented and escaped as the writer likes.
    let fleet = Fleet::new();
    let text = timestamp(&fleet);
    let document: Value = serde_json::from_str(&text).unwrap();
    for same in [
        serde_json::to_string_pretty(&document).unwrap(),
        text.replacen("cinnabar", r"\u0063innabar", 1),
        text.replacen("spec_version", r"spec\u005fversion", 1),
    ] {
        assert_ne!(same, text);
        let mut machine = Machine::enrolled(&fleet, "cinnabar");
        assert_eq!(machine.generation(&serving(&fleet, &same)), 1);
        assert_eq!(machine.stored.timestamp.unwrap(), same.as_bytes(), "as received");
    }
}

#[test]
fn a_pin_by_hash_holds_the_bytes_and_not_the_meaning() {
    let fleet = Fleet::new();
    let mut served = Served::generation(&fleet, "cinnabar", 1);
    let document: Value = serde_json::from_slice(&served.files["1.snapshot.json"]).unwrap();
    let mut pretty = serde_json::to_vec_pretty(&document).unwrap();
    served.forge("timestamp.json", &[&fleet.online], |signed| {
        let hash = signed["meta"]["snapshot.json"]["hashes"].clone();
        signed["meta"]["snapshot.json"] = json!({ "version": 1, "hashes": hash });
    });
    served.put("1.snapshot.json", &pretty);
    assert_eq!(Machine::enrolled(&fleet, "cinnabar").refuses(&served, Attack::MixAndMatch).1, ["timestamp"]);
    // The same bytes pinned.
    served.forge("timestamp.json", &[&fleet.online], |signed| {
        signed["meta"]["snapshot.json"]["hashes"]["sha256"] = Sha256::of(&pretty).hex().into();
    });
    assert_eq!(Machine::enrolled(&fleet, "cinnabar").generation(&served), 1);
    pretty.push(b'\n');
    served.put("1.snapshot.json", &pretty);
    Machine::enrolled(&fleet, "cinnabar").refuses(&served, Attack::MixAndMatch);
}
