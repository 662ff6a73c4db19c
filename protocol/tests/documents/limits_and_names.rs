//! Limits, and names as people read them.

use muster_protocol::checkin::{
    Files, Holds, MAX_CHECKIN_BYTES, MAX_SENT_BYTES, MAX_SENT_FILE_BYTES, MAX_SENT_ROOTS, Phase,
};
use muster_protocol::enrol::{MAX_ENROL_BYTES, Secret, Token};
use muster_protocol::ids::{Epoch, Generation, MAX_NUMBER, Sha256};
use muster_protocol::machine::{Class, MachineError, System, can_take};
use muster_protocol::operator::{Condition, MAX_REQUEST_BYTES, next_generation};
use muster_protocol::target::{Action, MAX_TARGET_BYTES};
use serde_json::json;

#[test]
fn the_limits_are_those_of_the_documents() {
    assert_eq!(MAX_ENROL_BYTES, 16_384);
    assert_eq!(MAX_CHECKIN_BYTES, 65_536);
    assert_eq!(MAX_TARGET_BYTES, 65_536);
    assert_eq!(MAX_REQUEST_BYTES, 1_048_576);
}

/// People read the wire names, with spaces.
#[test]
fn phases_and_conditions_are_told_as_they_are_written() {
    for phase in [
        Phase::Idle,
        Phase::Verified,
        Phase::Fetching,
        Phase::Building,
        Phase::Checked,
        Phase::Activating,
        Phase::Probing,
        Phase::Confirmed,
        Phase::RollingBack,
        Phase::RolledBack,
        Phase::Failed,
        Phase::Deferred,
        Phase::AwaitingReboot,
        Phase::NeedsHuman,
        Phase::Unknown,
    ] {
        assert_eq!(json!(phase), phase.as_str().replace(' ', "-"));
    }
    for action in [Action::Switch, Action::Boot, Action::Test, Action::DryActivate] {
        assert_eq!(json!(action), action.as_str());
    }
    let bad = [
        Condition::RolledBack,
        Condition::Failed,
        Condition::NeedsHuman,
        Condition::UnderAttack,
        Condition::Revoked,
    ];
    let other = [
        Condition::Invited,
        Condition::NoGeneration,
        Condition::UpToDate,
        Condition::Degraded,
        Condition::Updating,
        Condition::Paused,
        Condition::Offline,
    ];
    for condition in bad.iter().chain(&other) {
        assert_eq!(json!(condition), condition.as_str().replace(' ', "-"));
        assert_eq!(condition.is_bad(), bad.contains(condition), "{condition:?}");
    }
}

#[test]
fn a_generation_is_above_what_was_published_and_what_is_held() {
    let held = |targets| Holds { targets, ..Holds::default() };
    let published = |number| Generation::new(number).ok();
    let first = Epoch::default();
    for (last, holds, next) in [(0, 0, 1), (5, 0, 6), (0, 5, 6), (5, 9, 10), (9, 5, 10)] {
        let found = next_generation(first, published(last), &held(holds)).unwrap();
        assert_eq!(found, Generation::new(next).unwrap(), "{last} {holds}");
    }
    // Numbers from the network are hostile: none overflows, and none above the limit has a successor.
    for absurd in [MAX_NUMBER, MAX_NUMBER + 1, u64::MAX - 1, u64::MAX] {
        assert!(next_generation(first, published(4), &held(absurd)).is_err(), "{absurd}");
    }
}

#[test]
fn what_an_earlier_epoch_counted_to_holds_nothing_up_in_the_next() {
    let second = Epoch::new(1).unwrap();
    let held = |epoch, targets| Holds { epoch, targets, ..Holds::default() };
    let next = |published, holds| next_generation(second, published, &holds).unwrap().to_string();
    let highest = Generation::new(MAX_NUMBER).ok();
    assert_eq!(next(highest, held(Epoch::default(), u64::MAX)), "1.1");
    assert_eq!(next(highest, held(second, 3)), "1.4");
    assert_eq!(next(Generation::of(second, 5).ok(), held(Epoch::default(), 9)), "1.6");
}

#[test]
fn classes_and_systems_are_read_as_they_are_written() {
    for (class, word, kernel, output) in [
        (Class::Nixos, "nixos", "linux", "nixosConfigurations"),
        (Class::Darwin, "darwin", "darwin", "darwinConfigurations"),
    ] {
        assert_eq!((class.as_str(), class.to_string(), json!(class)), (word, word.into(), json!(word)));
        assert_eq!((class.kernel(), class.flake_output()), (kernel, output));
        assert_eq!(word.parse::<Class>().unwrap(), class);
        let system: System = format!("aarch64-{kernel}").parse().unwrap();
        assert_eq!(system.class(), class);
        assert_eq!(
            (system.as_str(), json!(system)),
            (&*system.to_string(), json!(format!("aarch64-{kernel}")))
        );
    }
    assert!("windows".parse::<Class>().is_err() && "".parse::<Class>().is_err());
    for bad in ["x86-64-linux", "x86_64-linux-gnu", "x86.64-linux", "x86_64linux", "-darwin", "x86_64-"] {
        assert!(bad.parse::<System>().is_err(), "{bad}");
        assert!(serde_json::from_value::<System>(json!(bad)).is_err(), "{bad}");
    }
    assert!(format!("{}-linux", "a".repeat(26)).parse::<System>().is_ok());
    assert!(format!("{}-linux", "a".repeat(27)).parse::<System>().is_err());
}

#[test]
fn what_a_machine_cannot_take_is_told_by_what_is_wrong() {
    let system = |text: &str| text.parse::<System>().unwrap();
    let (linux, arm, mac) = (system("x86_64-linux"), system("aarch64-linux"), system("aarch64-darwin"));
    let wrong = |machine, target| Err(MachineError::WrongClass { machine, target });
    use Class::{Darwin, Nixos};
    assert_eq!(can_take((Nixos, &linux), Darwin, &linux), wrong(Nixos, Darwin));
    assert_eq!(can_take((Nixos, &linux), Nixos, &mac), wrong(Nixos, Darwin));
    assert_eq!(can_take((Darwin, &mac), Darwin, &linux), wrong(Darwin, Nixos));
    // Only x86_64 also runs i686.
    let old = system("i686-linux");
    assert_eq!(can_take((Nixos, &linux), Nixos, &old), Ok(()));
    for (own, derivation) in [(&arm, &old), (&linux, &arm), (&old, &linux)] {
        let error = MachineError::WrongSystem { machine: own.clone(), derivation: derivation.clone() };
        assert_eq!(can_take((Nixos, own), Nixos, derivation), Err(error));
    }
}

#[test]
fn a_printed_token_names_its_machine_and_tells_nothing() {
    let secret = "5a".repeat(32);
    let token = Token {
        url: "https://muster.example".into(),
        machine: "cinnabar".parse().unwrap(),
        class: Class::Nixos,
        fleet: Sha256::of(b"fleet"),
        root: Sha256::of(b"root"),
        root_version: 1,
        lowest_generation: Generation::FIRST,
        expires: 1,
        secret: Secret::try_from(secret.clone()).unwrap(),
        tls_ca: None,
    };
    assert_eq!(format!("{token:?}"), "Token for cinnabar");
    // It survives the token unchanged, and each value derived from it differs.
    assert_eq!(String::from(token.secret.clone()), secret);
    let derived = [token.secret.check_key().hex(), token.secret.token_id().hex(), secret];
    assert!(derived[0] != derived[1] && derived[1] != derived[2] && derived[0] != derived[2]);
    assert!(Secret::try_from("5A".repeat(32)).is_err() && Secret::try_from("5a".to_owned()).is_err());
}

#[test]
fn files_are_sent_along_up_to_so_many_bytes_of_json_whatever_is_in_them() {
    let files = |text: &str| Files {
        root: u64::MAX,
        roots: vec![text.to_owned(); MAX_SENT_ROOTS],
        timestamp: text.to_owned(),
        snapshot: text.to_owned(),
        targets: text.to_owned(),
        target: text.to_owned(),
    };
    for unit in ["x", "\"", "\u{1}", "é"] {
        let (mut sent, mut left_out) = (0, 0);
        for times in (0..MAX_SENT_FILE_BYTES / 4).step_by(211) {
            let files = files(&unit.repeat(times));
            let fits = serde_json::to_string(&files).unwrap().len() <= MAX_SENT_BYTES;
            assert_eq!(files.if_small().is_some(), fits, "{unit:?} {times} times");
            *if fits { &mut sent } else { &mut left_out } += 1;
        }
        assert!(sent > 2 && left_out > 2, "{unit:?}");
    }
    let long = Files { roots: vec![], timestamp: "x".repeat(MAX_SENT_FILE_BYTES + 1), ..files("") };
    assert_eq!(long.if_small(), None);
}
