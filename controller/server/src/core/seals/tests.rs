use muster_protocol::keys::SecretKey;
use muster_protocol::machine::Class;

use super::*;

fn seals(id: u32) -> SealKey {
    SealKey::new(id, [u8::try_from(id).unwrap(); 32])
}

fn exchange() -> ExchangeKey {
    ExchangeKey::from_bytes([5; 32])
}

fn claims() -> Claims {
    Claims { machine: "cinnabar".parse().unwrap(), enrolment: 1, counter: 2, seq: 40, expires: 1000 }
}

fn known() -> KnownMachine {
    let key = SecretKey::generate().unwrap().public();
    KnownMachine { key, class: Class::Nixos, revoked: false, enrolment: 1, counter: 2, seq: 40, seen_at: 0 }
}

#[test]
fn a_bearer_is_the_same_each_time_and_claims_what_it_was_made_with() {
    let one = Seals::new(seals(1), vec![], exchange());
    let text = one.bearer(1, &claims());
    assert_eq!(text, one.bearer(1, &claims()));
    assert!(text.len() <= muster_protocol::checkin::MAX_BEARER_BYTES, "{text}");
    assert_eq!(one.read_bearer(&text), Some(claims()));
    let longest = Claims { machine: "x".repeat(63).parse().unwrap(), ..claims() };
    assert!(one.bearer(1, &longest).len() <= muster_protocol::checkin::MAX_BEARER_BYTES);
}

#[test]
fn nobody_else_makes_one_and_none_can_be_changed() {
    let one = Seals::new(seals(1), vec![], exchange());
    let text = one.bearer(1, &claims());
    for place in 0..text.len() {
        let mut bent = text.clone().into_bytes();
        bent[place] = if bent[place] == b'A' { b'B' } else { b'A' };
        let bent = String::from_utf8(bent).unwrap();
        assert_eq!(one.read_bearer(&bent), None, "{bent}");
    }
    let other = Seals::new(SealKey::new(1, [9; 32]), vec![], exchange());
    assert_eq!(other.read_bearer(&text), None);
    for nothing in ["", "mb1.", "mb1.AAAA", "a token", &"mb1.A".repeat(500), &"0".repeat(64)] {
        assert_eq!(one.read_bearer(nothing), None);
    }
}

#[test]
fn an_earlier_key_is_accepted_and_a_forgotten_one_is_not() {
    let text = Seals::new(seals(1), vec![], exchange()).bearer(1, &claims());
    let later = Seals::new(seals(2), vec![seals(1)], exchange());
    assert_eq!(later.read_bearer(&text), Some(claims()));
    assert_eq!(later.bearer(1, &claims()), text, "a repeated check-in gets the same one");
    assert_ne!(later.bearer(2, &claims()), text);
    assert_eq!(Seals::new(seals(2), vec![], exchange()).read_bearer(&text), None);
}

#[test]
fn it_ends_by_time_revocation_a_raised_counter_a_new_life_and_sixteen_later_ones() {
    let (claims, known) = (claims(), known());
    assert!(claims.hold(&known, 999) && !claims.hold(&known, 1000));
    assert!(!claims.hold(&KnownMachine { revoked: true, ..known }, 0));
    assert!(!claims.hold(&KnownMachine { counter: 3, ..known }, 0));
    assert!(!claims.hold(&KnownMachine { enrolment: 2, ..known }, 0));
    assert!(claims.hold(&KnownMachine { seq: 55, ..known }, 0));
    assert!(!claims.hold(&KnownMachine { seq: 56, ..known }, 0));
    assert!(claims.hold(&KnownMachine { seq: 39, ..known }, 0), "its check-in is not heard of yet");
}

#[test]
fn a_session_s_token_is_no_bearer_and_ends_like_one_but_for_the_count_of_check_ins() {
    let one = Seals::new(seals(1), vec![], exchange());
    let (machine, key) = ("x".repeat(63).parse().unwrap(), ExchangeKey::from_bytes([3; 32]));
    let claims = SessionClaims { machine, enrolment: 1, counter: 2, expires: 1000, key };
    let token = one.session(1, &claims);
    assert!(token.len() <= muster_protocol::session::MAX_TOKEN_BYTES, "{}", token.len());
    assert_eq!(one.read_session(&token), Some(claims.clone()));
    assert_eq!(one.read_bearer(&token), None);
    assert_eq!(one.read_bearer(&token.replace("ms1.", "mb1.")), None);
    let bearer = one.bearer(1, &self::claims());
    assert_eq!(one.read_session(&bearer.replace("mb1.", "ms1.")), None);
    let known = known();
    assert!(claims.hold(&known, 999) && !claims.hold(&known, 1000));
    assert!(claims.hold(&KnownMachine { seq: 1_000_000, ..known }, 0));
    assert!(!claims.hold(&KnownMachine { revoked: true, ..known }, 0));
    assert!(!claims.hold(&KnownMachine { counter: 3, ..known }, 0));
    assert!(!claims.hold(&KnownMachine { enrolment: 2, ..known }, 0));
}

#[test]
fn a_fleet_takes_nothing_that_another_one_with_the_same_file_sealed() {
    let of = |fleet: &[u8]| Seals::new(seals(1).of_fleet(&Sha256::of(fleet)), vec![], exchange());
    let (one, same, other) = (of(b"one"), of(b"one"), of(b"other"));
    let session =
        SessionClaims { machine: claims().machine, enrolment: 1, counter: 2, expires: 9, key: exchange() };
    let (bearer, token) = (one.bearer(1, &claims()), one.session(1, &session));
    assert!(same.read_bearer(&bearer).is_some() && same.read_session(&token).is_some());
    assert!(other.read_bearer(&bearer).is_none() && other.read_session(&token).is_none());
    assert_ne!(one.print(), other.print());
}

#[test]
fn a_print_tells_whether_what_another_controller_seals_is_accepted() {
    let one = Seals::new(seals(1), vec![], exchange());
    let later = Seals::new(seals(2), vec![seals(1)], exchange());
    assert!(one.accept(one.print()) && later.accept(one.print()) && later.accept(later.print()));
    assert!(!one.accept(later.print()));
    let apart = Seals::new(seals(1), vec![], ExchangeKey::from_bytes([6; 32]));
    assert!(!one.accept(apart.print()), "the key that sessions are set up with counts too");
}
