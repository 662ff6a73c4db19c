use muster_protocol::ids::Sha256;
use muster_protocol::keys::{PublicKey, SecretKey};
use muster_protocol::machine::Class;

use super::*;

const NOW: UnixMillis = 1_800_000_000_000;

fn name() -> MachineName {
    "cinnabar".parse().unwrap()
}
fn operator() -> PublicKey {
    SecretKey::generate().unwrap().public()
}
fn new(replace: bool) -> AddMachine {
    AddMachine {
        machine: name(),
        class: Class::Nixos,
        system: "x86_64-linux".parse().unwrap(),
        tags: Default::default(),
        token: Sha256::of(b"token"),
        check_key: Sha256::of(b"check"),
        expires: NOW / 1000 + 60,
        replace,
    }
}
fn enrolled() -> Stored {
    Stored { has_key: true, ..Stored::default() }
}

#[test]
fn a_machine_is_added_invited_again_or_left_as_it_is_until_its_token_is_used() {
    let operator = operator();
    let context = AuditContext { operator: &operator, at: NOW };
    let first = |stored: Option<Stored>, replace| {
        let decided = add(stored.as_ref(), false, &new(replace), &context)?;
        assert!(matches!(decided.changes[1], Change::TokensEnded { .. }), "an earlier token ends");
        assert!(matches!(decided.changes[2], Change::TokenMade(_)));
        decided.changes.into_iter().next().ok_or(MachineRefusal::TokenTaken)
    };
    assert!(matches!(first(None, false), Ok(Change::MachineAdded { .. })));
    assert!(matches!(first(Some(Stored::default()), false), Ok(Change::MachineInvited(_))));
    let revoked = Stored { revoked_at: Some(NOW), ..enrolled() };
    assert!(matches!(first(Some(revoked), false), Ok(Change::MachineInvited(_))));
    assert_eq!(first(Some(enrolled()), false), Err(MachineRefusal::Enrolled(name())));
    assert!(matches!(first(Some(enrolled()), true), Ok(Change::TagsReplaced { .. })));
    assert_eq!(add(None, true, &new(false), &context), Err(MachineRefusal::TokenTaken));
}

#[test]
fn many_machines_are_added_together_or_not_at_all() {
    let operator = operator();
    let context = AuditContext { operator: &operator, at: NOW };
    let named = |name: &str| AddMachine {
        machine: name.parse().unwrap(),
        token: Sha256::of(name.as_bytes()),
        ..new(false)
    };
    let both = [named("tin"), named("lead")];
    let decided = add_all(&[(None, false), (Some(Stored::default()), false)], &both, &context).unwrap();
    let one = |stored: Option<&Stored>, new| add(stored, false, new, &context).unwrap().changes;
    let each = [one(None, &both[0]), one(Some(&Stored::default()), &both[1])];
    assert_eq!(decided.changes, each.concat());

    let enrolled = add_all(&[(None, false), (Some(enrolled()), false)], &both, &context);
    assert_eq!(enrolled, Err(MachineRefusal::Enrolled("lead".parse().unwrap())));
    let twice = add_all(&[], &[named("tin"), named("tin")], &context);
    assert_eq!(twice, Err(MachineRefusal::Twice("tin".parse().unwrap())));
    let same = AddMachine { token: Sha256::of(b"tin"), ..named("lead") };
    assert_eq!(add_all(&[], &[named("tin"), same], &context), Err(MachineRefusal::TokenTaken));
    assert_eq!(add_all(&[], &[], &context), Err(MachineRefusal::Count(0)));
    let many: Vec<AddMachine> = (0..=MAX_ADDED).map(|n| named(&format!("m{n}"))).collect();
    assert_eq!(require_each_once(&many), Err(MachineRefusal::Count(MAX_ADDED + 1)));
    assert_eq!(require_each_once(&many[1..]), Ok(()));
}

#[test]
fn revoking_ends_bearers_and_tokens_and_keeps_the_first_time() {
    let operator = operator();
    let context = AuditContext { operator: &operator, at: NOW };
    assert_eq!(revoke(None, &name(), &context), Err(MachineRefusal::Unknown(name())));
    let changes = revoke(Some(&enrolled()), &name(), &context).unwrap().changes;
    let machine = name();
    assert_eq!(
        changes[..3],
        [
            Change::MachineRevoked { machine: machine.clone(), at: NOW },
            Change::BearersEnded { machine: machine.clone() },
            Change::TokensEnded { machine },
        ]
    );
    let before = Stored { revoked_at: Some(NOW - 9), ..enrolled() };
    let again = revoke(Some(&before), &name(), &context).unwrap().changes;
    assert_eq!(again[0], Change::MachineRevoked { machine: name(), at: NOW - 9 });
}

#[test]
fn a_clone_alarm_ends_where_there_is_one() {
    let operator = operator();
    let context = AuditContext { operator: &operator, at: NOW };
    assert_eq!(acknowledge(None, &name(), &context), Err(MachineRefusal::Unknown(name())));
    assert_eq!(acknowledge(Some(&enrolled()), &name(), &context), Err(MachineRefusal::NoAlarm(name())));
    let alarmed = Stored { clone_alarm_at: Some(NOW - 9), ..enrolled() };
    let changes = acknowledge(Some(&alarmed), &name(), &context).unwrap().changes;
    assert_eq!(changes[0], Change::CloneAlarmEnded { machine: name() });
}

#[test]
fn a_machine_is_noted_as_seen_every_half_minute() {
    let at = |seen_at| seen(Some(&Stored { seen_at, ..enrolled() }), &name(), NOW).changes.len();
    assert_eq!([at(None), at(Some(NOW - 30_001)), at(Some(NOW - 30_000))], [1, 1, 0]);
    assert!(seen(None, &name(), NOW).changes.is_empty());
}

#[test]
fn a_token_that_could_enrol_no_machine_is_refused() {
    let now_s = NOW / 1000;
    assert_eq!(require_usable(&new(false), now_s), Ok(()));
    assert_eq!(require_usable(&new(false), now_s + 60), Err(MachineRefusal::TokenExpired));
    let other = AddMachine { class: Class::Darwin, ..new(false) };
    assert!(matches!(require_usable(&other, now_s), Err(MachineRefusal::WrongClass { .. })));
}
