use muster_protocol::enrol::{Enrolling, Secret, Token as Ticket};
use muster_protocol::ids::{Generation, Sha256};
use muster_protocol::keys::SecretKey;

use super::super::rows::TokenUse;
use super::*;

const NOW: UnixMillis = 1_800_000_000_000;

fn ticket(machine: &str, class: Class) -> Ticket {
    Ticket {
        url: "https://muster.example".into(),
        machine: machine.parse().unwrap(),
        class,
        fleet: Sha256::of(b"fleet"),
        root: Sha256::of(b"fleet"),
        root_version: 1,
        lowest_generation: Generation::new(1).unwrap(),
        expires: NOW / 1000 + 60,
        secret: Secret::generate().unwrap(),
        tls_ca: None,
    }
}

fn stored(ticket: &Ticket) -> Stored {
    let token = Token {
        id: ticket.secret.token_id(),
        machine: ticket.machine.clone(),
        class: ticket.class,
        check_key: ticket.secret.check_key(),
        expires: ticket.expires,
        made_at: NOW - 1,
        used: None,
    };
    Stored { token, key: None, revoked: false, taken: false }
}

fn request(ticket: &Ticket, key: &SecretKey, system: &str) -> EnrolRequest {
    let (system, age, agent) = (system.parse().unwrap(), "age1x".into(), "0.1.0".into());
    EnrolRequest::make(ticket, key, Enrolling { system, age, agent })
}

fn refusal(stored: Option<&Stored>, request: &EnrolRequest, now: UnixMillis) -> EnrolRefusal {
    enrol(stored, request, now).unwrap_err()
}

#[test]
fn a_token_becomes_the_key_of_its_machine_and_its_old_bearers_end() {
    let (ticket, key) = (ticket("cinnabar", Class::Nixos), SecretKey::generate().unwrap());
    let request = request(&ticket, &key, "x86_64-linux");
    let machine = ticket.machine.clone();
    let changes = enrol(Some(&stored(&ticket)), &request, NOW).unwrap().changes;
    let used = Change::TokenUsed { token: ticket.secret.token_id(), by: key.public(), at: NOW };
    assert_eq!(changes[0], used);
    assert!(
        matches!(&changes[1], Change::Enrolled(new) if new.key == key.public() && new.machine == machine)
    );
    assert_eq!(changes[2], Change::BearersEnded { machine: machine.clone() });
    assert_eq!(changes.last(), Some(&Change::MachineChanged { machine }));
}

#[test]
fn a_token_is_good_for_its_own_machine_and_class_and_until_its_end() {
    let (mine, key) = (ticket("cinnabar", Class::Nixos), SecretKey::generate().unwrap());
    let stored = stored(&mine);
    let good = request(&mine, &key, "x86_64-linux");
    assert!(matches!(refusal(None, &good, NOW), EnrolRefusal::TokenUnknown));
    let other = Ticket { machine: "stibnite".parse().unwrap(), ..mine.clone() };
    let other = request(&other, &key, "x86_64-linux");
    assert!(matches!(refusal(Some(&stored), &other, NOW), EnrolRefusal::OtherMachine { .. }));
    let darwin = Ticket { class: Class::Darwin, ..mine.clone() };
    let darwin = request(&darwin, &key, "aarch64-darwin");
    assert!(matches!(refusal(Some(&stored), &darwin, NOW), EnrolRefusal::WrongClass { .. }));
    let mac = request(&mine, &key, "aarch64-darwin");
    assert!(matches!(refusal(Some(&stored), &mac, NOW), EnrolRefusal::WrongClass { .. }));
    let strangers = Ticket { secret: Secret::generate().unwrap(), ..mine.clone() };
    let strangers = request(&strangers, &key, "x86_64-linux");
    assert!(matches!(refusal(Some(&stored), &strangers, NOW), EnrolRefusal::BadCode(_)));
    let end = mine.expires * 1000;
    assert!(enrol(Some(&stored), &good, end - 1).is_ok());
    assert!(matches!(refusal(Some(&stored), &good, end), EnrolRefusal::TokenExpired(_)));
    let taken = Stored { taken: true, ..stored };
    assert!(matches!(refusal(Some(&taken), &good, NOW), EnrolRefusal::KeyTaken));
}

#[test]
fn a_used_token_answers_the_key_that_used_it_and_nobody_else() {
    let (ticket, key) = (ticket("cinnabar", Class::Nixos), SecretKey::generate().unwrap());
    let same = request(&ticket, &key, "x86_64-linux");
    let mut used = stored(&ticket);
    used.token.used = Some(TokenUse { at: NOW - 1, by: key.public() });
    used.key = Some(key.public());
    // Even after the token expired: its answer was lost.
    let again = enrol(Some(&used), &same, ticket.expires * 1000).unwrap();
    assert!(again.changes.is_empty());
    let other = request(&ticket, &SecretKey::generate().unwrap(), "x86_64-linux");
    assert!(matches!(refusal(Some(&used), &other, NOW), EnrolRefusal::TokenUsed(_)));
    let revoked = Stored { revoked: true, ..used.clone() };
    assert!(matches!(refusal(Some(&revoked), &same, NOW), EnrolRefusal::Revoked(_)));
    let replaced = Stored { key: Some(SecretKey::generate().unwrap().public()), ..used };
    assert!(matches!(refusal(Some(&replaced), &same, NOW), EnrolRefusal::TokenUsed(_)));
}
