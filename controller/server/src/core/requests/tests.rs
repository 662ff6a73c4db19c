use muster_protocol::keys::SecretKey;

use super::*;

const NOW: i64 = 1_800_000_000;

fn signed(operator: &SecretKey, asked: Asked, nonce: u64) -> (SignedRequest, MachineRequest) {
    let request = MachineRequest {
        fleet: Sha256::of(b"fleet"),
        machine: "cinnabar".parse().unwrap(),
        asked,
        made_at: NOW,
        ends: NOW + 60,
        nonce: nonce.to_string(),
    };
    (request.sign(operator).unwrap(), request)
}

fn kept(changes: &[Change]) -> Option<Request> {
    changes.iter().find_map(|change| match change {
        Change::RequestKept { request, .. } => Some(request.clone()),
        _ => None,
    })
}

#[test]
fn a_request_is_kept_and_logged_once() {
    let operator = SecretKey::generate().unwrap();
    let (by, key) = (operator.public(), SecretKey::generate().unwrap().public());
    let context = AuditContext { operator: &by, at: NOW * 1000 };
    let (document, request) = signed(&operator, Asked::RotateKey { key }, 1);
    assert!(ask(None, &document, &request, &context).is_err());
    let stored = Stored { key, key_rotation_asked: false, requests: vec![] };
    let first = ask(Some(&stored), &document, &request, &context).unwrap().changes;
    assert!(matches!(first[0], Change::KeyRotationAsked { .. }));
    let requests = vec![kept(&first).unwrap()];
    let stored = Stored { key_rotation_asked: true, requests, ..stored };
    let again = ask(Some(&stored), &document, &request, &context).unwrap().changes;
    assert_eq!(again, [Change::MachineChanged { machine: request.machine.clone() }]);
    let replaced = Stored { key: SecretKey::generate().unwrap().public(), ..stored };
    let refusal = ask(Some(&replaced), &document, &request, &context).unwrap_err();
    assert_eq!(refusal, AskRefusal::OtherKey(request.machine));
}

#[test]
fn few_requests_wait_for_a_machine_and_those_that_ended_do_not_count() {
    let operator = SecretKey::generate().unwrap();
    let by = operator.public();
    let context = AuditContext { operator: &by, at: NOW * 1000 };
    let mut stored = Stored { key: by, key_rotation_asked: false, requests: vec![] };
    for nonce in 0..MAX_REQUESTS as u64 {
        let (document, request) = signed(&operator, Asked::Unknown, nonce);
        let changes = ask(Some(&stored), &document, &request, &context).unwrap().changes;
        stored.requests.push(kept(&changes).unwrap());
    }
    let (document, request) = signed(&operator, Asked::Unknown, 99);
    let refusal = ask(Some(&stored), &document, &request, &context).unwrap_err();
    assert_eq!(refusal, AskRefusal::TooMany(request.machine.clone()));
    stored.requests[0].ends = NOW;
    let changes = ask(Some(&stored), &document, &request, &context).unwrap().changes;
    assert!(matches!(&changes[0], Change::RequestsDropped { ids, .. } if ids == &[stored.requests[0].id]));
    assert!(kept(&changes).is_some());
}
