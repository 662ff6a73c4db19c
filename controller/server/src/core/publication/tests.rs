use super::*;
use crate::core::samples::{Fleet, NOW_S, YEAR, context, generation, key, machine, name};
use muster_protocol::tuf::repository::sign_generation;

/// What is stored of the sample machine, with nothing published.
fn stored(new: &NewGeneration<'_>) -> Stored {
    Stored {
        class: new.class,
        system: new.system.clone(),
        revoked: false,
        published: None,
        timestamp_version: 7,
        holds: Holds::default(),
        understands: None,
        latest: None,
    }
}

fn plans() -> Plans {
    Plans::none(Sha256::of(b"fleet"))
}

/// "Signs" by recording what it was asked to sign.
fn sign(last: u64, snapshot: &[u8]) -> Result<Timestamp, TufError> {
    let key = muster_protocol::keys::PublicKey::from_bytes(&BASE).unwrap();
    Ok(Timestamp { bytes: snapshot.to_vec(), version: last + 1, expires: NOW_S, key })
}
/// The base point of the curve (RFC 8032): nobody's key.
const BASE: [u8; 32] = {
    let mut bytes = [0x66; 32];
    bytes[0] = 0x58;
    bytes
};

#[test]
fn what_is_published_is_checked_as_its_machine_will() {
    let (fleet, known) = (Fleet::new(), machine(None));
    let publication = fleet.publication(1);
    let new = NewGeneration::check((&fleet.root, &plans()), &known, &publication, NOW_S).unwrap();
    assert_eq!(new.signers, [fleet.operator.public()]);
    let refused = |known: &Machine, publication: &Publication| {
        NewGeneration::check((&fleet.root, &plans()), known, publication, NOW_S).unwrap_err()
    };
    let by_a_stranger = sign_generation(&crate::core::samples::target(1), NOW_S + YEAR, &[&key()]).unwrap();
    assert!(matches!(refused(&known, &by_a_stranger), PublishRefusal::Unsound(_)));
    let revoked = Machine { revoked_at: Some(1), ..known.clone() };
    assert!(matches!(refused(&revoked, &publication), PublishRefusal::Revoked(_)));
    let other = Machine { system: "aarch64-linux".parse().unwrap(), ..known };
    assert!(matches!(refused(&other, &publication), PublishRefusal::CannotTake { .. }));
}

#[test]
fn a_publication_is_stored_with_its_timestamp_told_and_logged() {
    let (fleet, known) = (Fleet::new(), machine(None));
    let publication = fleet.publication(1);
    let new = NewGeneration::check((&fleet.root, &plans()), &known, &publication, NOW_S).unwrap();
    let by = fleet.operator.public();
    let decided = publish(Some(&stored(&new)), &new, &context(&by), sign).unwrap();
    let [
        Change::GenerationStored(generation_stored),
        Change::TimestampStored { timestamp, .. },
        Change::Published { generation: told, .. },
        Change::Audited(entry),
        Change::MachineChanged { .. },
    ] = &decided.changes[..]
    else {
        panic!("{:?}", decided.changes)
    };
    assert_eq!((generation_stored.generation, *told), (generation(1), generation(1)));
    assert_eq!((timestamp.version, &timestamp.bytes[..]), (8, publication.snapshot.as_bytes()));
    assert_eq!((entry.action, entry.by, &entry.machine), ("generation-published", Some(by), &Some(name())));
}

#[test]
fn only_the_next_generation_of_a_machine_that_stayed_what_it_was_is_published() {
    let (fleet, known) = (Fleet::new(), machine(None));
    let (first, third) = (fleet.publication(1), fleet.publication(3));
    let check =
        |publication| NewGeneration::check((&fleet.root, &plans()), &known, publication, NOW_S).unwrap();
    let (first, third) = (check(&first), check(&third));
    let by = fleet.operator.public();
    let refused = |stored: Option<&Stored>, new: &NewGeneration<'_>| {
        publish(stored, new, &context(&by), sign).unwrap_err()
    };
    assert!(matches!(refused(None, &first), PublishRefusal::Unknown(_)));
    let plain = stored(&first);
    assert!(matches!(refused(Some(&plain), &third), PublishRefusal::NotNext { .. }));
    let revoked = Stored { revoked: true, ..plain.clone() };
    assert!(matches!(refused(Some(&revoked), &first), PublishRefusal::Revoked(_)));
    let changed = Stored { class: Class::Darwin, ..plain.clone() };
    assert!(matches!(refused(Some(&changed), &first), PublishRefusal::Changed(_)));
    // A machine that survived the restore of a controller's backup knows more than the controller.
    let ahead = Stored { holds: Holds { targets: 2, ..Holds::default() }, ..plain };
    assert!(publish(Some(&ahead), &third, &context(&by), sign).is_ok());
}

#[test]
fn the_same_generation_again_changes_nothing_and_another_one_of_its_number_is_refused() {
    let (fleet, known) = (Fleet::new(), machine(None));
    let (one, other) = (
        fleet.publication(1),
        sign_generation(&crate::core::samples::target(1), NOW_S + 2 * YEAR, &[&fleet.operator]).unwrap(),
    );
    let one = NewGeneration::check((&fleet.root, &plans()), &known, &one, NOW_S).unwrap();
    let other = NewGeneration::check((&fleet.root, &plans()), &known, &other, NOW_S).unwrap();
    let latest = Some(one.files());
    let there = Stored { published: Some(generation(1)), latest, ..stored(&one) };
    let by = fleet.operator.public();
    assert_eq!(publish(Some(&there), &one, &context(&by), sign).unwrap(), Decided::unchanged(None));
    let refused = publish(Some(&there), &other, &context(&by), sign).unwrap_err();
    assert!(matches!(refused, PublishRefusal::NotNext { .. }));
}

#[test]
fn a_good_timestamp_stays_and_another_one_is_signed_over_the_same_snapshot() {
    let kept = sign(4, b"snapshot").unwrap();
    let current = |timestamp| Some(Current { timestamp, version: 5, snapshot: b"snapshot".to_vec() });
    let decided = timestamp(current(Some(kept.clone())).as_ref(), &name(), |_| true, sign).unwrap();
    assert_eq!(decided, Decided::unchanged(Some(kept.clone())));
    for old in [Some(kept), None] {
        let decided = timestamp(current(old).as_ref(), &name(), |_| false, sign).unwrap();
        let renewed = sign(5, b"snapshot").unwrap();
        assert_eq!(decided.answer, Some(renewed.clone()));
        let stored = Change::TimestampStored { machine: name(), timestamp: renewed };
        assert_eq!(decided.changes, [stored]);
    }
    assert_eq!(timestamp(None, &name(), |_| true, sign).unwrap(), Decided::unchanged(None));
}

/// Its signatures were checked under the root before; the first generation under the newer root was
/// published since.
#[test]
fn what_was_checked_before_a_new_epoch_is_not_published_after_its_first_generation() {
    let (fleet, known) = (Fleet::new(), machine(None));
    let (publication, by) = (fleet.publication(1), fleet.operator.public());
    let new = NewGeneration::check((&fleet.root, &plans()), &known, &publication, NOW_S).unwrap();
    let newer = Generation::first_of(muster_protocol::ids::Epoch::new(1).unwrap());
    let there = Stored { published: Some(newer), ..stored(&new) };
    let refused = publish(Some(&there), &new, &context(&by), sign).unwrap_err();
    let PublishRefusal::NotNext { next, .. } = refused else { panic!("{refused}") };
    assert_eq!(next, newer.next().unwrap());
}

#[test]
fn a_timestamp_has_the_version_of_its_time_and_one_above_the_last() {
    assert_eq!(timestamp_version(0, NOW_S), NOW_S.unsigned_abs());
    assert_eq!(timestamp_version(NOW_S.unsigned_abs(), NOW_S), NOW_S.unsigned_abs() + 1);
    assert_eq!(timestamp_version(7, -1), 8);
}
