use super::*;
use crate::core::samples::{Fleet, NOW, NOW_S, YEAR, context, generation, key, machine, name, target};
use muster_protocol::draft::DraftedGeneration;
use muster_protocol::machine::Class;
use muster_protocol::tuf::repository::draft_generation;

fn fleet_id() -> Sha256 {
    Sha256::of(b"fleet")
}

/// An unsigned draft.
fn draft(number: u64) -> Draft {
    let publication = draft_generation(&target(number), NOW_S + YEAR).unwrap();
    let generations = vec![DraftedGeneration { machine: name(), class: Class::Nixos, publication }];
    let what = Drafted::Generations { generations };
    Draft { fleet: fleet_id(), made_at: 0, made_by: key().public(), ends: 0, what }
}

#[test]
fn root_keys_have_to_do_with_roots_alone() {
    let fleet = Fleet::new();
    let next = fleet.root(2, &[fleet.operator.public()], &fleet.online.public());
    let root = Draft { what: Drafted::Root { root: String::from_utf8(next).unwrap() }, ..draft(1) };
    let (operator, holder) = (fleet.operator.public(), fleet.root_key.public());
    for (draft, by, may) in [
        (&draft(1), &operator, true),
        (&root, &operator, true),
        (&draft(1), &holder, false),
        (&root, &holder, true),
    ] {
        assert_eq!(require_concerned(&fleet.root, draft, by).is_ok(), may);
    }
}

#[test]
fn who_made_a_draft_and_when_is_not_the_senders_to_choose() {
    let by = key().public();
    let kept = received(Draft { ends: i64::MAX, ..draft(1) }, &context(&by));
    assert_eq!((kept.made_at, kept.made_by, kept.ends), (NOW, by, NOW_S + DRAFT_SECONDS));
}

#[test]
fn a_draft_that_nobody_of_the_root_signed_is_not_kept() {
    let fleet = Fleet::new();
    let check = |draft: &Draft| check(draft, &fleet_id(), &fleet.root, NOW_S);
    assert!(matches!(check(&draft(1)), Err(DraftRefusal::Unsigned)));
    assert!(matches!(check(&draft(1).sign(&key()).unwrap()), Err(DraftRefusal::Unsigned)));
    let signed = draft(1).sign(&fleet.operator).unwrap();
    assert_eq!(check(&signed).unwrap(), [target(1)]);
    let other = Draft { fleet: Sha256::of(b"another"), ..signed };
    assert!(matches!(check(&other), Err(DraftRefusal::Draft(DraftError::OtherFleet { .. }))));
}

#[test]
fn a_draft_is_void_once_its_machine_would_not_take_it_next() {
    let (epoch, current) = (Epoch::default(), machine(Some(1)));
    let require = |number: u64, machine: Option<&Machine>| {
        require_current(&name(), generation(number), machine, epoch).map(|_| ())
    };
    assert_eq!(require(2, Some(&current)), Ok(()));
    assert_eq!(require(2, None), Err(Void::Unknown(name())));
    let next = |next, drafted| {
        Err(Void::NotNext { machine: name(), drafted: generation(drafted), next: generation(next) })
    };
    assert_eq!(require(3, Some(&current)), next(2, 3));
    assert_eq!(require(1, Some(&current)), next(2, 1));
    let revoked = Machine { revoked_at: Some(NOW), ..current.clone() };
    assert_eq!(require(2, Some(&revoked)), Err(Void::Revoked(name())));
    assert!(require_next(&target(2), Some(&current), epoch).is_ok());
    let other = Machine { system: "aarch64-linux".parse().unwrap(), ..current };
    let refused = require_next(&target(2), Some(&other), epoch);
    assert!(matches!(refused, Err(DraftRefusal::CannotTake { .. })));
}

#[test]
fn signatures_are_added_to_the_copy_that_is_kept_and_the_same_ones_change_nothing() {
    let fleet = Fleet::new();
    let by = fleet.operator.public();
    let signed = draft(1).sign(&fleet.operator).unwrap();
    let keep = |stored: &Stored, draft: &Draft| keep(stored, draft, &fleet.root, &context(&by));
    let made = keep(&Stored::default(), &signed).unwrap();
    assert_eq!(made.changes.len(), 2);
    let Change::Audited(entry) = &made.changes[1] else { panic!("{:?}", made.changes) };
    assert_eq!((entry.action, &entry.detail), ("draft-made", &made.answer.id.short()));
    let held = serde_json::to_string(&made.answer.draft).unwrap();
    let there = Stored { held: Some(held), waiting: MOST_DRAFTS };
    assert_eq!(keep(&there, &signed).unwrap(), Decided::unchanged(made.answer));
    // Signatures of strangers are left out.
    let strange = draft(1).sign(&key()).unwrap();
    assert!(keep(&there, &strange).unwrap().changes.is_empty());
    let full = Stored { held: None, waiting: MOST_DRAFTS };
    assert!(matches!(keep(&full, &signed), Err(DraftRefusal::TooMany)));
}

#[test]
fn what_is_not_kept_is_not_dropped() {
    let by = key().public();
    let id = draft(1).id().unwrap();
    assert!(matches!(drop(&Stored::default(), &id, &context(&by)), Err(DraftRefusal::Unknown(_))));
    let there = Stored { held: Some(String::new()), waiting: 1 };
    let dropped = drop(&there, &id, &context(&by)).unwrap();
    assert_eq!(dropped.changes[0], Change::DraftDropped { id });
}
