use super::*;
use crate::core::samples::{Fleet, NOW, context, key};

#[test]
fn only_the_root_that_machines_would_follow_is_next() {
    let fleet = Fleet::new();
    let (operator, online) = (fleet.operator.public(), fleet.online.public());
    let good = fleet.root(2, &[operator], &online);
    assert_eq!(next(&fleet.root, &good).unwrap().version(), 2);
    let refused = |bytes: &[u8]| next(&fleet.root, bytes).err().unwrap();
    assert!(matches!(refused(b"rubbish"), RootRefusal::Unreadable(_)));
    assert!(matches!(refused(&vec![b' '; MAX_ROOT_BYTES + 1]), RootRefusal::TooLarge));
    for version in [1, 3] {
        let other = fleet.root(version, &[operator], &online);
        let RootRefusal::NotNext { held, found } = refused(&other) else { panic!("{version}") };
        assert_eq!((held, found), (1, version));
    }
    let by_others = Fleet::new().root(2, &[operator], &online);
    assert!(matches!(refused(&by_others), RootRefusal::Unsound(_)));
}

#[test]
fn i8_an_online_key_holds_no_other_role() {
    let fleet = Fleet::new();
    let operator = fleet.operator.public();
    for online in [operator, fleet.root_key.public()] {
        let armed = fleet.root(2, &[operator], &online);
        assert!(matches!(next(&fleet.root, &armed), Err(RootRefusal::OnlineKey(_))));
    }
    assert_eq!(require_online_keys_apart(&fleet.root), Ok(()));
}

#[test]
fn whoever_the_old_root_or_the_new_one_names_may_hand_it_in() {
    let (fleet, new) = (Fleet::new(), key().public());
    let bytes = fleet.root(2, &[new], &fleet.online.public());
    let next = next(&fleet.root, &bytes).unwrap();
    for by in [fleet.operator.public(), fleet.root_key.public(), new] {
        assert!(require_named(&fleet.root, &next, &by).is_ok());
    }
    for by in [fleet.online.public(), key().public()] {
        assert!(matches!(require_named(&fleet.root, &next, &by), Err(RootRefusal::Stranger)));
    }
}

#[test]
fn a_root_is_logged_once_by_who_published_it_or_as_found() {
    let by = key().public();
    assert_eq!(in_force(2, 2, Some(&context(&by)), NOW), Decided::unchanged(()));
    for (context, action, who) in
        [(Some(context(&by)), "root-published", Some(by)), (None, "root-found", None)]
    {
        let decided = in_force(1, 2, context.as_ref(), NOW);
        let [Change::RootInForce { version: 2 }, Change::Audited(entry)] = &decided.changes[..] else {
            panic!("{:?}", decided.changes)
        };
        assert_eq!((entry.action, entry.by, entry.detail.as_str()), (action, who, "version 2"));
    }
}
