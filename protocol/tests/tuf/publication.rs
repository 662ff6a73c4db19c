//! What the server checks before it stores a generation: machines accept whatever passes.

use muster_protocol::ids::{Generation, Sha256};
use muster_protocol::machine::Class;
use muster_protocol::operator::Publication;
use muster_protocol::report::Attack;
use muster_protocol::tuf::TufError;
use muster_protocol::tuf::metadata::Root;
use muster_protocol::tuf::repository::{
    CheckedPublication, check_publication, sign_generation, sign_timestamp,
};
use serde_json::{Value, json};

use crate::fleet::*;

fn check(fleet: &Fleet, publication: &Publication) -> Result<CheckedPublication, TufError> {
    let root = Root::parse_self_signed(&fleet.root_json()).unwrap();
    check_publication(&root, &name("cinnabar"), Class::Nixos, publication, NOW)
}

/// A publication whose document was changed and signed again by the operators.
fn changed(fleet: &Fleet, document: &str, change: impl FnOnce(&mut Value)) -> Publication {
    let mut publication = fleet.publication(&target("cinnabar", 3));
    let operators: Vec<_> = fleet.operators.iter().collect();
    let sign = |bytes: &str, change: Box<dyn FnOnce(&mut Value) + '_>| {
        String::from_utf8(resigned(bytes.as_bytes(), &operators, change)).unwrap()
    };
    if document == "snapshot" {
        publication.snapshot = sign(&publication.snapshot, Box::new(change));
    } else {
        publication.targets = sign(&publication.targets, Box::new(change));
        let targets = &publication.targets;
        publication.snapshot = sign(
            &publication.snapshot,
            Box::new(|signed| {
                signed["meta"]["targets.json"]["length"] = targets.len().into();
                signed["meta"]["targets.json"]["hashes"]["sha256"] =
                    Sha256::of(targets.as_bytes()).hex().into();
            }),
        );
    }
    publication
}

#[test]
fn a_signed_generation_passes_and_the_machine_takes_it() {
    let fleet = Fleet::new();
    let target = target("cinnabar", 3);
    let publication = fleet.publication(&target);
    let checked = check(&fleet, &publication).unwrap();
    assert_eq!(checked.target, target);
    assert_eq!(checked.target_sha256, Sha256::of(publication.target.as_bytes()));
    assert_eq!(checked.targets_expires, NOW + 90 * DAY);

    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    let update = machine.refresh(&Served::generation(&fleet, "cinnabar", 3)).unwrap();
    assert_eq!(update.listed("cinnabar/generation.json").unwrap().hashes.sha256, Some(checked.target_sha256));
}

#[test]
fn for_another_machine_or_class() {
    let fleet = Fleet::new();
    let error = check(&fleet, &fleet.publication(&target("realgar", 3))).unwrap_err();
    assert_eq!(error.attack(), Some(Attack::ForeignMachine), "{error}");

    let root = Root::parse_self_signed(&fleet.root_json()).unwrap();
    let publication = fleet.publication(&target("cinnabar", 3));
    let error = check_publication(&root, &name("cinnabar"), Class::Darwin, &publication, NOW).unwrap_err();
    assert_eq!(error.attack(), Some(Attack::WrongClass), "{error}");
}

#[test]
fn under_another_number() {
    let fleet = Fleet::new();
    let mut publication = fleet.publication(&target("cinnabar", 3));
    publication.generation = Generation::new(4).unwrap();
    assert!(check(&fleet, &publication).is_err());

    for document in ["snapshot", "targets"] {
        let publication = changed(&fleet, document, |signed| signed["version"] = 4.into());
        assert!(check(&fleet, &publication).is_err(), "{document}");
    }
    // Number and pin match each other, but not the generation.
    let mut publication = changed(&fleet, "targets", |signed| signed["version"] = 4.into());
    publication.snapshot =
        String::from_utf8(resigned(publication.snapshot.as_bytes(), &[&fleet.operators[0]], |signed| {
            signed["meta"]["targets.json"]["version"] = 4.into();
        }))
        .unwrap();
    assert!(check(&fleet, &publication).is_err());
}

#[test]
fn with_another_target_than_the_signed_one() {
    let fleet = Fleet::new();
    let other = fleet.publication(&target("cinnabar", 4));
    let publication = Publication { target: other.target, ..fleet.publication(&target("cinnabar", 3)) };
    assert_eq!(check(&fleet, &publication).unwrap_err().attack(), Some(Attack::MixAndMatch));
}

#[test]
fn with_parts_of_another_publication() {
    let fleet = Fleet::new();
    let (mine, later) =
        (fleet.publication(&target("cinnabar", 3)), fleet.publication(&target("cinnabar", 4)));
    let mixed = Publication { snapshot: later.snapshot.clone(), ..mine.clone() };
    assert!(check(&fleet, &mixed).is_err());
    let mixed = Publication { targets: later.targets, ..mine };
    assert_eq!(check(&fleet, &mixed).unwrap_err().attack(), Some(Attack::MixAndMatch));
}

#[test]
fn signed_by_too_few_or_by_others() {
    let fleet = Fleet { operators: vec![key(), key()], threshold: 2, ..Fleet::new() };
    let target = target("cinnabar", 3);
    let one = sign_generation(&target, NOW + DAY, &signers(&fleet.operators[..1])).unwrap();
    assert_eq!(check(&fleet, &one).unwrap_err().attack(), Some(Attack::ForgedSignature));
    let twice = [fleet.operators[0].clone(), fleet.operators[0].clone()];
    let twice = sign_generation(&target, NOW + DAY, &signers(&twice)).unwrap();
    assert_eq!(check(&fleet, &twice).unwrap_err().attack(), Some(Attack::ForgedSignature));
    let others = sign_generation(&target, NOW + DAY, &signers(&[key(), key()])).unwrap();
    assert_eq!(check(&fleet, &others).unwrap_err().attack(), Some(Attack::ForgedSignature));
    assert!(check(&fleet, &fleet.publication(&target)).is_ok());
    // Snapshot and targets each need one.
    let whole = fleet.publication(&target);
    for mixed in [
        Publication { targets: one.targets, ..whole.clone() },
        Publication { snapshot: one.snapshot, ..whole },
    ] {
        assert!(check(&fleet, &mixed).is_err());
    }
}

#[test]
fn already_expired() {
    let fleet = Fleet::new();
    let expired = sign_generation(&target("cinnabar", 3), NOW, &signers(&fleet.operators)).unwrap();
    assert_eq!(check(&fleet, &expired).unwrap_err().attack(), Some(Attack::Freeze));
    for document in ["snapshot", "targets"] {
        let publication =
            changed(&fleet, document, |signed| signed["expires"] = "2020-01-01T00:00:00Z".into());
        assert_eq!(check(&fleet, &publication).unwrap_err().attack(), Some(Attack::Freeze), "{document}");
    }
}

#[test]
fn with_more_than_one_target_or_pin() {
    let fleet = Fleet::new();
    let publication =
        changed(&fleet, "snapshot", |signed| signed["meta"]["more.json"] = json!({ "version": 1 }));
    assert!(check(&fleet, &publication).is_err());
    let publication = changed(&fleet, "targets", |signed| {
        signed["targets"]["realgar/generation.json"] = signed["targets"]["cinnabar/generation.json"].clone();
    });
    assert!(check(&fleet, &publication).is_err());
}

#[test]
fn with_a_machine_in_one_document_only() {
    let fleet = Fleet::new();
    for document in ["snapshot", "targets"] {
        let publication = changed(&fleet, document, |signed| signed["x-muster-machine"] = "realgar".into());
        assert_eq!(
            check(&fleet, &publication).unwrap_err().attack(),
            Some(Attack::ForeignMachine),
            "{document}"
        );
    }
}

#[test]
fn a_target_that_no_machine_could_take_is_not_signed() {
    let fleet = Fleet::new();
    let mut wrong = target("cinnabar", 3);
    wrong.class = Class::Darwin;
    assert!(sign_generation(&wrong, NOW + DAY, &signers(&fleet.operators)).is_err());
}

#[test]
fn a_target_that_says_other_things_than_its_listing() {
    let fleet = Fleet::new();
    for (field, value) in
        [("machine", json!("realgar")), ("generation", json!(4)), ("class", json!("darwin"))]
    {
        let mut publication = fleet.publication(&target("cinnabar", 3));
        let mut lying: Value = serde_json::from_str(&publication.target).unwrap();
        lying[field] = value;
        let lying = lying.to_string();
        publication = Publication {
            target: lying.clone(),
            ..changed(&fleet, "targets", |signed| {
                let listed = &mut signed["targets"]["cinnabar/generation.json"];
                listed["length"] = lying.len().into();
                listed["hashes"]["sha256"] = Sha256::of(lying.as_bytes()).hex().into();
            })
        };
        assert!(matches!(check(&fleet, &publication), Err(TufError::Target(_))), "{field}");
    }
}

#[test]
fn no_timestamp_is_signed_for_another_machines_snapshot() {
    let fleet = Fleet::new();
    let publication = fleet.publication(&target("realgar", 3));
    let error =
        sign_timestamp(&name("cinnabar"), publication.snapshot.as_bytes(), 5, NOW + DAY, &fleet.online);
    assert_eq!(error.unwrap_err().attack(), Some(Attack::ForeignMachine));
}

#[test]
fn metadata_stays_small() {
    let fleet = Fleet::new();
    let publication = fleet.publication(&target("cinnabar", 3));
    let timestamp = fleet.timestamp("cinnabar", publication.snapshot.as_bytes(), NOW as u64);
    assert!(timestamp.len() < 600, "{}", timestamp.len());
    assert!(publication.snapshot.len() < 600, "{}", publication.snapshot.len());
    assert!(publication.targets.len() < 800, "{}", publication.targets.len());
}
