use muster_protocol::checkin::Phase;
use muster_protocol::keys::SecretKey;
use muster_protocol::machine::Class;
use muster_protocol::report::Attack;
use muster_protocol::request::{Asked, MachineRequest, SignedRequest};

use muster_protocol::session::ExchangeKey;

use super::super::seals::SealKey;
use super::*;

const NOW: UnixMillis = 1_800_000_000_000;

fn seals(id: u32) -> Seals {
    let key = SealKey::new(id, [u8::try_from(id).unwrap(); 32]);
    Seals::new(key, vec![], ExchangeKey::from_bytes([5; 32]))
}

/// What a machine sent: the document, its bytes, and its signature.
struct Sent {
    checkin: CheckIn,
    body: Vec<u8>,
    key: PublicKey,
}

impl Sent {
    fn at(&self, now: UnixMillis) -> ReceivedCheckIn<'_> {
        let Self { checkin, body, key } = self;
        ReceivedCheckIn {
            checkin,
            body,
            body_sha256: Sha256::of(body),
            key,
            signature: None,
            now,
            poll_seconds: 55,
            log: None,
            vouches: false,
        }
    }
}

fn name() -> MachineName {
    "cinnabar".parse().unwrap()
}

/// A check-in that says nothing special.
pub fn plain(machine: MachineName, seq: u64, clock: UnixMillis) -> CheckIn {
    CheckIn {
        understands: vec![],
        signing: None,
        vouch: None,
        awaits: None,
        audience: Sha256::of(b"fleet"),
        machine,
        class: Class::Nixos,
        system: "x86_64-linux".parse().unwrap(),
        boot_id: "boot".into(),
        seq,
        clock,
        agent: "0.1.0".into(),
        runs: None,
        holds: Default::default(),
        phase: Phase::Idle,
        phase_generation: None,
        note: None,
        refused: None,
        health: Default::default(),
        new_key: None,
        age: None,
        followed: vec![],
        shown: None,
        session: None,
    }
}

fn sent(key: &SecretKey, seq: u64, change: impl FnOnce(&mut CheckIn)) -> Sent {
    let mut checkin = plain(name(), seq, NOW + 5);
    change(&mut checkin);
    let body = serde_json::to_vec(&checkin).unwrap();
    Sent { checkin, body, key: key.public() }
}

fn key() -> SecretKey {
    SecretKey::generate().unwrap()
}

fn decided(stored: &Stored, sent: &Sent) -> Decided<Result<CheckInReply, CheckInRefusal>> {
    check_in(Some(stored), &sent.at(NOW), &seals(7))
}

/// What is stored once these changes are applied.
fn after(mut stored: Stored, changes: &[Change]) -> Stored {
    for change in changes {
        match change {
            Change::CheckedIn(taken) => {
                stored.seq = taken.seq;
                stored.earlier.clone_from(&taken.earlier);
                let reply = Some(taken.reply.clone());
                stored.last =
                    Some(LastCheckIn { body: taken.body, granted: Granted::Sealed(taken.grant), reply });
            }
            Change::CloneAlarm { .. } => stored.clone_alarm = true,
            Change::RequestsDropped { ids, .. } => {
                stored.requests.retain(|request| !ids.contains(&request.id));
            }
            Change::RequestsHandedOn { .. } => {
                stored.requests.iter_mut().for_each(|request| request.handed_on = true);
            }
            _ => {}
        }
    }
    stored
}

fn taken(stored: Stored, sent: &Sent) -> Stored {
    let decided = decided(&stored, sent);
    assert!(decided.answer.is_ok(), "{:?}", decided.answer);
    after(stored, &decided.changes)
}

fn audited(changes: &[Change]) -> Vec<(&'static str, String)> {
    let entries = changes.iter().filter_map(|change| match change {
        Change::Audited(entry) => Some((entry.action, entry.detail.clone())),
        _ => None,
    });
    entries.collect()
}

#[test]
fn a_higher_number_is_taken_and_answered_with_what_is_published() {
    let generation = Some(Generation::new(3).unwrap());
    let stored = Stored { seq: 4, reports_through: 9, published: generation, ..Stored::default() };
    let sent = sent(&key(), 6, |_| {});
    let decided = decided(&stored, &sent);
    let reply = decided.answer.unwrap();
    assert_eq!((reply.generation, reply.reports_through, reply.poll_seconds), (generation, 9, 55));
    let taken = decided.changes.iter().find_map(|change| match change {
        Change::CheckedIn(taken) => Some(taken),
        _ => None,
    });
    let taken = taken.unwrap();
    assert_eq!((taken.seq, taken.body, taken.clock_skew_ms, taken.at), (6, Sha256::of(&sent.body), 5, NOW));
    assert_eq!(taken.reply.bearer, "", "nobody can read the bearer from what is stored");
    let claims = seals(7).read_bearer(&reply.bearer).unwrap();
    let expires = NOW / 1000 + 3600;
    assert_eq!(claims, Claims { machine: name(), enrolment: 0, counter: 0, seq: 6, expires });
    assert_eq!(decided.changes.len(), 2, "a routine check-in writes one row");
    assert_eq!(decided.changes.last(), Some(&Change::MachineChanged { machine: name() }));
}

#[test]
fn the_last_one_again_gets_the_same_reply_and_changes_nothing() {
    let (key, now) = (key(), NOW + 60_000);
    let sent = sent(&key, 1, |_| {});
    let first = decided(&Stored::default(), &sent);
    let stored = after(Stored::default(), &first.changes);
    let again = check_in(Some(&stored), &sent.at(now), &seals(7));
    assert_eq!((again.changes.len(), &again.answer), (0, &first.answer));
    let unreadable = LastCheckIn { reply: None, ..stored.last.clone().unwrap() };
    let stored = Stored { last: Some(unreadable), ..stored };
    assert_eq!(decided(&stored, &sent).answer, Err(CheckInRefusal::CachedReply));
}

#[test]
fn a_session_is_offered_to_a_check_in_that_asks_for_one_and_again_when_it_is_repeated() {
    let key = ExchangeKey::from_bytes([3; 32]);
    let sent = sent(&self::key(), 1, |checkin| checkin.session = Some(key));
    let first = decided(&Stored { enrolment: 2, counter: 4, ..Stored::default() }, &sent);
    let offer = first.answer.as_ref().unwrap().session.clone().unwrap();
    assert_eq!(offer.key, ExchangeKey::from_bytes([5; 32]));
    let claims = seals(7).read_session(&offer.token).unwrap();
    let expires = NOW / 1000 + 3600;
    assert_eq!(claims, SessionClaims { machine: name(), enrolment: 2, counter: 4, expires, key });
    let stored = after(Stored { enrolment: 2, counter: 4, ..Stored::default() }, &first.changes);
    assert_eq!(
        stored.last.as_ref().unwrap().reply.as_ref().unwrap().session,
        None,
        "nothing is stored of it"
    );
    let again = check_in(Some(&stored), &sent.at(NOW + 60_000), &seals(7));
    assert_eq!(again.answer, first.answer);
    assert_eq!(
        decided(&Stored::default(), &self::sent(&self::key(), 1, |_| {})).answer.unwrap().session,
        None
    );
}

#[test]
fn a_check_in_that_says_the_same_is_no_news_for_a_minute() {
    let key = key();
    let of = |seq, change: fn(&mut CheckIn)| told(&sent(&key, seq, change).checkin);
    let same = of(1, |_| {});
    assert_eq!(same, of(2, |checkin| checkin.clock += 60_000));
    for other in [
        of(1, |checkin| checkin.note = Some("waits".into())),
        of(1, |checkin| checkin.phase = Phase::Fetching),
        of(1, |checkin| checkin.refused = Some(Attack::Rollback)),
        of(1, |checkin| checkin.holds.targets = 3),
        of(1, |checkin| checkin.health.degraded = Some(vec![])),
        of(1, |checkin| checkin.boot_id = "another".into()),
    ] {
        assert!(is_news((other, NOW), Some((same, NOW))));
    }
    assert!(is_news((same, NOW), None));
    assert!(!is_news((same, NOW + 59_999), Some((same, NOW))));
    assert!(is_news((same, NOW + 60_000), Some((same, NOW))));
    assert!(is_news((same, NOW - 1), Some((same, NOW))), "a clock that was set back");
}

#[test]
fn one_of_the_sixteen_before_the_last_is_late_and_no_clone() {
    let key = key();
    let all: Vec<Sent> = (1..=18).map(|seq| sent(&key, seq, |_| {})).collect();
    let stored = all.iter().fold(Stored::default(), taken);
    assert_eq!(stored.earlier.len(), 16);
    for late in &all[1..17] {
        let decided = decided(&stored, late);
        let repeated = CheckInRefusal::Repeated { machine: name(), seq: late.checkin.seq };
        assert_eq!((decided.changes.len(), decided.answer), (0, Err(repeated)));
    }
    let forgotten = decided(&stored, &all[0]).answer;
    assert!(matches!(forgotten, Err(CheckInRefusal::Sequence { seq: 1, last: 18, .. })), "{forgotten:?}");
}

#[test]
fn another_body_under_a_used_number_is_a_clone_and_told_once() {
    let key = key();
    let stored = taken(Stored::default(), &sent(&key, 5, |_| {}));
    let other = sent(&key, 5, |checkin| checkin.boot_id = "another".into());
    let first = decided(&stored, &other);
    let refusal = |raised| Err(CheckInRefusal::Sequence { machine: name(), seq: 5, last: 5, raised });
    assert_eq!(first.answer, refusal(true));
    assert_eq!(first.changes[0], Change::CloneAlarm { machine: name(), at: NOW });
    assert_eq!(audited(&first.changes), [("clone-alarm", "check-in 5 came again, or too late".to_owned())]);
    let stored = after(stored, &first.changes);
    assert_eq!((stored.seq, stored.clone_alarm), (5, true));
    let second = decided(&stored, &other);
    assert_eq!(second.answer, refusal(false));
    assert_eq!(second.changes, [Change::MachineChanged { machine: name() }]);
    // A machine that continues is served: an operator decides what happened.
    taken(stored, &sent(&key, 6, |_| {}));
}

#[test]
fn who_is_not_enrolled_or_counts_out_of_range_changes_nothing() {
    let key = key();
    let unknown = check_in(None, &sent(&key, 1, |_| {}).at(NOW), &seals(7));
    assert_eq!(unknown, Decided::unchanged(Err(CheckInRefusal::NotEnrolled(name()))));
    let beyond = decided(&Stored::default(), &sent(&key, NUMBERS_END, |_| {}));
    assert_eq!(beyond, Decided::unchanged(Err(CheckInRefusal::OutOfRange(NUMBERS_END))));
}

#[test]
fn a_new_key_takes_the_place_of_the_old_one_and_ends_its_bearers() {
    let new = key().public();
    let sent = sent(&key(), 1, |checkin| checkin.new_key = Some(new));
    let decided = decided(&Stored::default(), &sent);
    assert!(decided.changes.contains(&Change::KeyReplaced { machine: name(), key: new, at: NOW }));
    assert_eq!(audited(&decided.changes), [(KEY_ROTATED, format!("to key {}", new.short()))]);
    assert!(decided.changes.contains(&Change::BearersEnded { machine: name() }));
    let claims = seals(7).read_bearer(&decided.answer.unwrap().bearer).unwrap();
    assert_eq!(claims.counter, 1, "the one that it is given now is good");
}

#[test]
fn a_key_that_it_has_already_is_no_new_one() {
    let key = key();
    let sent = sent(&key, 1, |checkin| checkin.new_key = Some(key.public()));
    let decided = decided(&Stored::default(), &sent);
    assert!(decided.answer.is_ok() && audited(&decided.changes).is_empty());
}

#[test]
fn a_key_of_another_machine_is_refused_whole() {
    let rotation = Rotation { taken: true, today: vec![] };
    let stored = Stored { rotation, ..Stored::default() };
    let sent = sent(&key(), 1, |checkin| checkin.new_key = Some(key().public()));
    assert_eq!(decided(&stored, &sent), Decided::unchanged(Err(CheckInRefusal::KeyTaken(name()))));
}

#[test]
fn a_machine_brings_few_keys_a_day_unless_it_is_asked_for_one() {
    let sent = sent(&key(), 1, |checkin| checkin.new_key = Some(key().public()));
    let of = |count: usize| {
        let today = (0..count).map(|n| NOW - 3_600_000 * (n as i64 + 1)).collect();
        Stored { rotation: Rotation { taken: false, today }, ..Stored::default() }
    };
    assert!(decided(&of(KEYS_A_DAY - 1), &sent).answer.is_ok());
    let refused = decided(&of(KEYS_A_DAY), &sent);
    let wait_seconds = 16 * 3600;
    let refusal = CheckInRefusal::TooManyKeys { machine: name(), wait_seconds };
    assert_eq!(refused, Decided::unchanged(Err(refusal)), "until the oldest of the eight is a day old");
    let asked = Stored { key_rotation_asked: true, ..of(KEYS_A_DAY) };
    assert!(decided(&asked, &sent).answer.is_ok());
}

fn request(operator: &SecretKey, asked: Asked, ends: i64) -> Request {
    let nonce = ends.to_string();
    let (fleet, made_at) = (Sha256::of(b"fleet"), NOW / 1000);
    let asks = asked.as_str().to_owned();
    let made = MachineRequest { fleet, machine: name(), asked, made_at, ends, nonce };
    let signed: SignedRequest = made.sign(operator).unwrap();
    Request { id: signed.id(), asks, document: Some(signed), ends, handed_on: false }
}

#[test]
fn requests_are_handed_on_until_they_are_followed_or_ended() {
    let (operator, key) = (key(), key());
    let now_s = NOW / 1000;
    let ended = request(&operator, Asked::Unknown, now_s);
    let [one, two] = [60, 90].map(|more| request(&operator, Asked::Unknown, now_s + more));
    let requests = vec![ended.clone(), one.clone(), two.clone()];
    let stored = Stored { requests, ..Stored::default() };
    let first = decided(&stored, &sent(&key, 1, |_| {}));
    let handed = |reply: &CheckInReply| reply.requests.iter().map(SignedRequest::id).collect::<Vec<_>>();
    assert_eq!(handed(first.answer.as_ref().unwrap()), [one.id, two.id]);
    assert_eq!(first.changes[0], Change::RequestsDropped { machine: name(), ids: vec![ended.id] });
    assert_eq!(first.changes[1], Change::RequestsHandedOn { machine: name() });
    let stored = after(stored, &first.changes);
    let second = decided(&stored, &sent(&key, 2, |checkin| checkin.followed = vec![one.id]));
    assert_eq!(handed(second.answer.as_ref().unwrap()), [two.id]);
    assert!(!second.changes.contains(&Change::RequestsHandedOn { machine: name() }), "they were before");
}

#[test]
fn a_request_for_another_key_is_void_once_the_key_has_changed() {
    let (operator, old, new) = (key(), key(), key().public());
    let rotate = request(&operator, Asked::RotateKey { key: old.public() }, NOW / 1000 + 60);
    let stored = Stored { requests: vec![rotate.clone()], key_rotation_asked: true, ..Stored::default() };
    let asked = decided(&stored, &sent(&old, 1, |_| {}));
    assert!(asked.answer.unwrap().rotate_key, "agents of 0.1 know no requests");
    let rotated = decided(&stored, &sent(&old, 1, |checkin| checkin.new_key = Some(new)));
    let void = Change::RequestsDropped { machine: name(), ids: vec![rotate.id] };
    assert!(rotated.changes.contains(&void) && !rotated.answer.unwrap().rotate_key);
}

#[test]
fn an_attack_goes_on_until_a_check_in_no_longer_speaks_of_it() {
    let ends = Change::AttacksEnded { machine: name(), at: NOW };
    let goes_on = sent(&key(), 1, |checkin| checkin.refused = Some(Attack::Rollback));
    let attacked = Stored { attack_open: true, ..Stored::default() };
    assert!(!decided(&attacked, &goes_on).changes.contains(&ends));
    assert!(decided(&attacked, &sent(&key(), 1, |_| {})).changes.contains(&ends));
    assert!(!decided(&Stored::default(), &sent(&key(), 1, |_| {})).changes.contains(&ends), "there is none");
}

#[test]
fn a_check_in_for_another_fleet_or_of_another_class_is_refused() {
    let checkin = sent(&key(), 1, |_| ()).checkin;
    let (fleet, class) = (checkin.audience, checkin.class);
    assert_eq!(require_own(&checkin, fleet, class), Ok(()));
    let other = require_own(&checkin, Sha256::of(b"another fleet"), class);
    assert!(matches!(other, Err(CheckInRefusal::OtherFleet { .. })), "{other:?}");
    let enrolled = Class::ALL.into_iter().find(|other| *other != class).unwrap();
    let other = require_own(&checkin, fleet, enrolled);
    assert!(matches!(other, Err(CheckInRefusal::WrongClass { .. })), "{other:?}");
}
