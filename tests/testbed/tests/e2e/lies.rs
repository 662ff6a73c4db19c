//! A controller that lies for a while leaves no lasting damage.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use muster_protocol::api::{self, ProblemCode};
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::Sha256;
use muster_protocol::keys::{Context, SecretKey};
use muster_protocol::operator::Condition;
use muster_protocol::report::EventKind;
use muster_protocol::request::{Asked, MachineRequest, SignedRequest};
use muster_testbed::stolen::{Stolen, VICTIM};
use muster_testbed::thief::Answer;
use serde_json::{Value, json};

use crate::common::assert_agrees_with_itself;

/// Likely numbers for a lie.
const NUMBERS: [u64; 9] =
    [0, 1, (1 << 32) + 1, (1 << 47) + 5, (1 << 48) - 1, 1 << 53, (1 << 63) - 2, 1 << 63, u64::MAX];
const CODES: [(u16, ProblemCode); 10] = [
    (409, ProblemCode::Sequence),
    (409, ProblemCode::EventNumbers),
    (409, ProblemCode::Conflict),
    (409, ProblemCode::Repeated),
    (401, ProblemCode::BadSignature),
    (403, ProblemCode::Revoked),
    (404, ProblemCode::UnknownMachine),
    (400, ProblemCode::Malformed),
    (413, ProblemCode::TooLarge),
    (503, ProblemCode::Busy),
];

/// Requests that no operator signed, and one that an operator did.
fn forged(turn: usize) -> Vec<SignedRequest> {
    let thief = SecretKey::generate().unwrap();
    let asked = Asked::RotateKey { key: thief.public() };
    let machine = VICTIM.parse().unwrap();
    let request = MachineRequest::new(Sha256::of(&[0]), machine, asked, 1_800_000_000, 60).unwrap();
    let signature = thief.sign(Context::MachineRequest, b"something else");
    let bent = SignedRequest { request: format!("{turn}"), key: thief.public(), signature };
    vec![request.sign(&thief).unwrap(), bent]
}

/// Another lie each time. Some responses are left unchanged, so that the machine gets far enough to receive
/// the others.
fn lie(answer: &mut Answer, turn: usize) {
    let number = NUMBERS[turn % NUMBERS.len()];
    if turn % 5 == 3 {
        let (status, code) = CODES[(turn / 5) % CODES.len()];
        answer.status = status;
        answer.body = serde_json::to_vec(&json!({"code": code, "message": "\u{1b}[2Jno"})).unwrap();
        answer.retry_after = Some(1);
        return;
    }
    if turn % 11 == 7 {
        answer.body = [&b"[[[[[[[["[..], &answer.body, b"\xff"].concat();
        return;
    }
    let Ok(Value::Object(mut reply)) = serde_json::from_slice::<Value>(&answer.body) else { return };
    for field in ["bearer_expires_in", "poll_seconds", "reports_through", "through"] {
        if reply.contains_key(field) {
            reply.insert(field.to_owned(), number.into());
        }
    }
    if answer.path == api::CHECKIN {
        reply.insert("rotate_key".into(), true.into());
        reply.insert("requests".into(), serde_json::to_value(forged(turn)).unwrap());
    }
    if answer.path.contains("/poll") {
        reply.insert("check_in".into(), turn.is_multiple_of(2).into());
    }
    if turn % 3 == 1 {
        reply.insert("generation".into(), number.max(1).into());
    }
    answer.body = serde_json::to_vec(&reply).unwrap();
}

#[test]
fn whatever_a_controller_answers_an_honest_one_finds_the_machine_as_if_it_had_been_there() {
    let stolen = Stolen::new().unwrap();
    let (fleet, thief) = (&stolen.fleet, &stolen.thief);
    let key = fleet.view(VICTIM).unwrap().key;
    let lies = Arc::new(AtomicUsize::new(0));
    let turn = Arc::clone(&lies);
    thief.bend(move |answer| {
        let bends =
            [api::CHECKIN, api::REPORTS].contains(&answer.path.as_str()) || answer.path.contains("/poll");
        if bends {
            lie(answer, turn.fetch_add(1, Ordering::Relaxed));
        }
    });
    // Meanwhile a generation arrives, and the agent is restarted in the middle of it, again and again.
    fleet.fixture.say("greeting", "two").unwrap();
    fleet.update(&[VICTIM]).unwrap();
    let clock = SystemClock::new();
    for half in [60, 120] {
        let quiet = Cell::new((0, Duration::ZERO));
        fleet
            .until(VICTIM, "more lies", |_| {
                let (lies, now) = (lies.load(Ordering::Relaxed), clock.awake());
                if lies > quiet.get().0 {
                    quiet.set((lies, now));
                } else if now.saturating_sub(quiet.get().1) > Duration::from_secs(1) {
                    // Its retries get ever slower, but an agent that is killed starts over. Nobody asks it
                    // for anything.
                    quiet.set((lies, now));
                    let _ = fleet.kill_agent(VICTIM);
                }
                lies >= half
            })
            .unwrap();
        fleet.machine(VICTIM).stop(false).unwrap();
        // What version 0.1 stored when it was told so.
        let outbox = stolen.state(VICTIM).join("outbox");
        std::fs::write(outbox.join("9223372036854775806.done"), "").unwrap();
        fleet.machine(VICTIM).start().unwrap();
    }
    thief.behave();

    // From here on nobody touches the machine.
    fleet.fixture.say("greeting", "three").unwrap();
    fleet.update(&[VICTIM]).unwrap();
    fleet.until(VICTIM, "the update", |machine| machine.greeting().as_deref() == Some("three")).unwrap();
    let view = fleet.settled(VICTIM, 3, Condition::UpToDate).unwrap();
    assert!(!view.clone_alarm && view.refused.is_none(), "{view:?}");
    assert_eq!(view.key, key, "nobody asked for another one");
    let confirmed = || {
        let events = fleet.events(VICTIM, 3).unwrap();
        events.iter().filter(|event| matches!(event, EventKind::Confirmed { .. })).count()
    };
    fleet.until(VICTIM, "what it tells of it", |_| confirmed() > 0).unwrap();
    assert_eq!(confirmed(), 1);
    let huge = |name: &str| name.split('.').next().is_some_and(|number| number.len() > 15);
    let left = std::fs::read_dir(stolen.state(VICTIM).join("outbox")).unwrap();
    let left: Vec<String> = left.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!left.iter().any(|name| huge(name)), "{left:?}");
    assert_agrees_with_itself(fleet, VICTIM);
}
