use muster_protocol::clock::UnixMillis;
use muster_protocol::keys::{SecretKey, Signature};
use muster_protocol::operator::{MachineRollout, MemberState};
use muster_protocol::plan;

use muster_protocol::plan::{MAX_WHY_BYTES, Vouch};

use super::*;

const NOW: UnixMillis = 1_800_000_000_000;

fn turn() -> Turn {
    let at = MachineRollout {
        plan: Sha256::of(b"plan"),
        name: "weekly".parse().unwrap(),
        wave: 1,
        wave_name: "offices".into(),
        state: MemberState::InFlight,
        why: "others go first".into(),
    };
    Turn { at, until: Some(NOW + 90_500), taken_back: false }
}

#[test]
fn leave_is_what_is_left_of_it_whoever_asks_again() {
    let leave = |turn: &Turn, now| turn.leave(now).seconds;
    let given = turn();
    assert_eq!([leave(&given, NOW), leave(&given, NOW + 60_000), leave(&given, NOW + 90_500)], [90, 30, 0]);
    assert_eq!(given.leave(NOW).why, None);
    let taken = Turn { taken_back: true, ..turn() };
    assert_eq!((taken.leave(NOW).seconds, taken.leave(NOW).why), (0, Some("others go first".into())));
    assert_eq!(leave(&Turn { until: None, ..turn() }, NOW), 0);
    // As it is stored, with the place beside the leave.
    let text = serde_json::to_string(&given).unwrap();
    assert_eq!(serde_json::from_str::<Turn>(&text).unwrap(), given);
}

#[test]
fn a_statement_is_remembered_by_all_that_it_says() {
    let vouch = |plan: &[u8], said, by| {
        mark(&Vouch { plan: Sha256::of(plan), said, signature: Signature::from_bytes([by; 64]) })
    };
    let one = vouch(b"a", plan::Said::Soaked, 1);
    assert_eq!(one, vouch(b"a", plan::Said::Soaked, 1));
    for other in [
        vouch(b"b", plan::Said::Soaked, 1),
        vouch(b"a", plan::Said::Confirmed, 1),
        vouch(b"a", plan::Said::Soaked, 2),
    ] {
        assert_ne!(one, other);
    }
}

#[test]
fn the_brake_is_logged_when_it_changes_and_not_again() {
    let operator = SecretKey::generate().unwrap().public();
    let context = AuditContext { operator: &operator, at: NOW };
    let asked = |on| SetBrake { on, why: None };
    let on = brake(None, &asked(true), &context);
    assert_eq!(on.changes.len(), 2);
    assert_eq!(brake(on.answer.as_ref(), &asked(true), &context), Decided::unchanged(on.answer.clone()));
    assert_eq!(brake(on.answer.as_ref(), &asked(false), &context).answer, None);
    assert_eq!(brake(None, &asked(false), &context).changes, []);
}

#[test]
fn a_text_of_any_length_fits_into_a_reply() {
    assert_eq!(cut("short"), "short");
    let long = cut(&"ü".repeat(MAX_WHY_BYTES));
    assert!(long.len() <= MAX_WHY_BYTES && long.chars().all(|letter| letter == 'ü'));
}
