//! Targets at the limits of what is allowed.

use muster_protocol::ids::Generation;
use muster_protocol::machine::Class;
use muster_protocol::target::{MAX_TARGET_BYTES, Probe, Target, TargetError};
use serde_json::{Value, json};

fn document() -> Value {
    json!({
        "machine": "stibnite", "class": "darwin", "generation": 3, "system": "aarch64-darwin",
        "derivation": "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv",
        "output": "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system",
    })
}

fn with(change: impl FnOnce(&mut Value)) -> Result<Target, TargetError> {
    let mut document = document();
    change(&mut document);
    Target::parse(document.to_string().as_bytes())
}

fn check(fields: &Value) -> Value {
    let mut check = json!({ "name": "c", "kind": "tcp", "address": "127.0.0.1:22" });
    check.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    check
}

#[test]
fn what_is_left_out_has_its_default() {
    let target = with(|target| target["checks"] = json!([check(&json!({}))])).unwrap();
    let check = &target.checks[0];
    assert_eq!((target.deadline_seconds, check.timeout_seconds, check.tries), (300, 10, 3));
    assert_eq!(check.probe, Probe::Tcp { address: "127.0.0.1:22".into() });
    assert_eq!(target.message, None);
}

#[test]
fn the_longest_target_is_read_and_one_byte_more_is_not() {
    let text = document().to_string();
    let padded = |length: u64| text.clone() + &" ".repeat(usize::try_from(length).unwrap() - text.len());
    assert!(Target::parse(padded(MAX_TARGET_BYTES).as_bytes()).is_ok());
    let longer = Target::parse(padded(MAX_TARGET_BYTES + 1).as_bytes());
    assert!(matches!(longer, Err(TargetError::TooLarge(65_537))));
}

#[test]
fn deadlines_and_checks_have_limits() {
    for (seconds, good) in [(0, false), (9, false), (10, true), (86_400, true), (86_401, false)] {
        let read = with(|target| target["deadline_seconds"] = seconds.into());
        assert_eq!(read.is_ok(), good, "{seconds}");
        assert!(good || matches!(read, Err(TargetError::Deadline(found)) if found == seconds));
    }
    for (count, good) in [(0, true), (64, true), (65, false)] {
        let read = with(|target| target["checks"] = vec![check(&json!({})); count].into());
        assert_eq!(read.is_ok(), good, "{count}");
        assert!(good || matches!(read, Err(TargetError::TooManyChecks(65))));
    }
}

#[test]
fn a_check_asks_something_at_least_once_and_for_some_time() {
    for bad in [
        json!({ "tries": 0 }),
        json!({ "timeout_seconds": 0 }),
        json!({ "address": "" }),
        json!({ "kind": "http", "url": "" }),
        json!({ "kind": "command", "command": [] }),
        json!({ "kind": "command", "command": ["", "-d"] }),
    ] {
        let read = with(|target| target["checks"] = json!([check(&bad)]));
        assert!(matches!(read, Err(TargetError::EmptyCheck(_))), "{bad}");
    }
    for good in [
        json!({ "tries": 1, "timeout_seconds": 1 }),
        json!({ "kind": "http", "url": "http://127.0.0.1/" }),
        json!({ "kind": "command", "command": ["/bin/true"] }),
    ] {
        assert!(with(|target| target["checks"] = json!([check(&good)])).is_ok(), "{good}");
    }
    // An older agent still accepts a generation with a later kind; only the check fails.
    let later = with(|target| target["checks"] = json!([check(&json!({ "kind": "ping" }))])).unwrap();
    assert_eq!(later.checks[0].probe, Probe::Unknown);
}

#[test]
fn a_mac_switches_and_a_nixos_machine_knows_more() {
    for action in ["boot", "test", "dry-activate"] {
        let mac = with(|target| target["action"] = action.into());
        assert!(matches!(mac, Err(TargetError::ActionOnDarwin(found)) if found == action), "{action}");
        let nixos = with(|target| {
            target["action"] = action.into();
            target["class"] = "nixos".into();
            target["system"] = "x86_64-linux".into();
        });
        assert!(nixos.is_ok(), "{action}");
    }
    assert!(with(|target| target["action"] = "switch".into()).is_ok());
}

#[test]
fn outputs_and_derivations_are_not_taken_for_each_other() {
    let swapped = with(|target| target["output"] = target["derivation"].clone());
    assert!(matches!(swapped, Err(TargetError::OutputIsDerivation(_))));
    let swapped = with(|target| target["derivation"] = target["output"].clone());
    assert!(matches!(swapped, Err(TargetError::Id(_))));
    assert!(matches!(with(|target| target["class"] = "nixos".into()), Err(TargetError::Machine(_))));
}

#[test]
fn a_target_for_somebody_else_says_what_is_wrong() {
    let target = with(|_| ()).unwrap();
    let system = "aarch64-darwin".parse().unwrap();
    let third = Generation::new(3).unwrap();
    let own = "stibnite".parse().unwrap();
    assert!(target.require_for(&own, Class::Darwin, &system, third).is_ok());
    let other = target.require_for(&"blackphos".parse().unwrap(), Class::Darwin, &system, third);
    assert!(matches!(other, Err(TargetError::OtherMachine { .. })));
    for number in [2, 4] {
        let other = target.require_for(&own, Class::Darwin, &system, Generation::new(number).unwrap());
        assert!(matches!(other, Err(TargetError::OtherGeneration { .. })));
    }
    let intel = "x86_64-darwin".parse().unwrap();
    assert!(matches!(target.require_for(&own, Class::Darwin, &intel, third), Err(TargetError::Machine(_))));
}
