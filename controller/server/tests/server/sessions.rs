//! Check-ins that a session proves, and those that come together.

use std::os::unix::fs::PermissionsExt as _;

use crate::support::{Answer, Fleet, Machine, rotate};
use muster_protocol::api::{self, ProblemCode};
use muster_protocol::checkin::{CheckIn, CheckInReply};
use muster_protocol::keys::SecretKey;
use muster_protocol::machine::Class;
use muster_protocol::operator::MachineView;
use muster_protocol::session::{ExchangeSecret, Session, SessionProof};
use reqwest::{Method, StatusCode};

/// Sets a session up by a signed check-in.
async fn set_up(fleet: &Fleet, machine: &mut Machine) -> Session {
    let secret = ExchangeSecret::generate().unwrap();
    machine.seq += 1;
    let asking = CheckIn { session: Some(secret.public()), ..machine.checkin(fleet, machine.seq) };
    let reply: CheckInReply = machine.send_checkin(fleet, &asking).await.good();
    secret.accept(&reply.session.unwrap()).unwrap()
}

async fn prove(fleet: &Fleet, proof: &SessionProof, body: Vec<u8>) -> Answer {
    let request = fleet.http.post(fleet.url(api::CHECKIN)).header(api::MACHINE_SESSION, proof.to_string());
    Answer::of(request.body(body)).await
}

/// The next check-in, proved by the session.
async fn next(fleet: &Fleet, machine: &mut Machine, session: &Session) -> (Vec<u8>, Answer) {
    machine.seq += 1;
    let body = serde_json::to_vec(&machine.checkin(fleet, machine.seq)).unwrap();
    let answer = prove(fleet, &session.prove(api::CHECKIN, &body), body.clone()).await;
    (body, answer)
}

#[tokio::test]
async fn a_signed_check_in_sets_up_a_session_and_its_mac_proves_the_next_ones() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let session = set_up(&fleet, &mut machine).await;
    for _ in 0..3 {
        let (body, answer) = next(&fleet, &mut machine, &session).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        // The same bytes have the same reply, whichever way they are proved.
        let again = prove(&fleet, &session.prove(api::CHECKIN, &body), body.clone()).await;
        assert_eq!(again.text, answer.text);
        let signed = machine.key.sign(muster_protocol::keys::Context::CheckIn, &body).hex();
        assert_eq!(fleet.send(api::CHECKIN, signed, body).await.text, answer.text);
        let reply: CheckInReply = answer.good();
        assert_eq!(fleet.get("/cache/nix-cache-info", &reply.bearer).await.status, StatusCode::OK);
    }
    // The sequence rule holds as with signatures.
    machine.seq -= 1;
    let other = CheckIn { boot_id: "another".into(), ..machine.checkin(&fleet, machine.seq) };
    let body = serde_json::to_vec(&other).unwrap();
    let proof = session.prove(api::CHECKIN, &body);
    prove(&fleet, &proof, body).await.refused(409, ProblemCode::Sequence);
    assert!(fleet.view("cinnabar").await.clone_alarm);
}

#[tokio::test]
async fn a_session_proves_its_machine_s_routine_check_ins_and_nothing_else() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let other = fleet.enrolled("stibnite", Class::Nixos).await;
    let session = set_up(&fleet, &mut machine).await;
    machine.seq += 1;
    let good = machine.checkin(&fleet, machine.seq);
    let refused = async |checkin: &CheckIn| {
        let body = serde_json::to_vec(checkin).unwrap();
        let proof = session.prove(api::CHECKIN, &body);
        prove(&fleet, &proof, body).await.refused(401, ProblemCode::SessionEnded)
    };
    refused(&other.checkin(&fleet, 1)).await;
    refused(&CheckIn { new_key: Some(SecretKey::generate().unwrap().public()), ..good.clone() }).await;
    let secret = ExchangeSecret::generate().unwrap();
    refused(&CheckIn { session: Some(secret.public()), ..good.clone() }).await;
    // Whoever read the token has no key for it.
    let body = serde_json::to_vec(&good).unwrap();
    let proof = session.prove(api::CHECKIN, &body);
    let token = &proof.token;
    let forged: SessionProof = format!("{token} {} {}", proof.body, "0".repeat(64)).parse().unwrap();
    prove(&fleet, &forged, body.clone()).await.refused(401, ProblemCode::SessionEnded);
    let unknown: SessionProof = format!("ms1.AAAA {} {}", proof.body, "0".repeat(64)).parse().unwrap();
    prove(&fleet, &unknown, body.clone()).await.refused(401, ProblemCode::SessionEnded);
    prove(&fleet, &proof, b"{}".to_vec()).await.refused(401, ProblemCode::BadSignature);
    let request = fleet.http.post(fleet.url(api::CHECKIN)).header(api::MACHINE_SESSION, "a token");
    Answer::of(request.body(body.clone())).await.refused(400, ProblemCode::Malformed);
    // Reports are signed: the proof is for another path.
    let request = fleet.http.post(fleet.url(api::REPORTS)).header(api::MACHINE_SESSION, proof.to_string());
    Answer::of(request.body(body.clone())).await.refused(401, ProblemCode::SessionEnded);
    prove(&fleet, &proof, body).await.good::<CheckInReply>();
}

#[tokio::test]
async fn a_session_ends_by_time_a_new_key_and_revocation_and_the_same_bytes_can_be_signed_then() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let session = set_up(&fleet, &mut machine).await;
    next(&fleet, &mut machine, &session).await.1.good::<CheckInReply>();
    fleet.clock.forward(3600);
    let (body, answer) = next(&fleet, &mut machine, &session).await;
    answer.refused(401, ProblemCode::SessionEnded);
    let signed = machine.key.sign(muster_protocol::keys::Context::CheckIn, &body).hex();
    fleet.send(api::CHECKIN, signed, body).await.good::<CheckInReply>();
    assert!(!fleet.view("cinnabar").await.clone_alarm);

    let session = set_up(&fleet, &mut machine).await;
    rotate(&fleet, &mut machine, &SecretKey::generate().unwrap()).await.good::<CheckInReply>();
    next(&fleet, &mut machine, &session).await.1.refused(401, ProblemCode::SessionEnded);

    let session = set_up(&fleet, &mut machine).await;
    let bearer = machine.bearer(&fleet).await;
    fleet.operate(Method::POST, "/v1/operator/machines/cinnabar/revoke", vec![]).await.good::<MachineView>();
    let (body, answer) = next(&fleet, &mut machine, &session).await;
    answer.refused(401, ProblemCode::SessionEnded);
    let signed = machine.key.sign(muster_protocol::keys::Context::CheckIn, &body).hex();
    fleet.send(api::CHECKIN, signed, body).await.refused(403, ProblemCode::Revoked);
    fleet.get("/cache/nix-cache-info", &bearer).await.refused(401, ProblemCode::Unauthorised);
}

#[tokio::test]
async fn bearers_and_sessions_outlive_a_restart_and_end_where_their_keys_are_removed() {
    let mut fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let session = set_up(&fleet, &mut machine).await;
    let bearer = machine.bearer(&fleet).await;
    fleet.down().await;
    fleet.up().await;
    next(&fleet, &mut machine, &session).await.1.good::<CheckInReply>();
    assert_eq!(fleet.get("/cache/nix-cache-info", &bearer).await.status, StatusCode::OK);
    // Shared with other controllers where the database is.
    let keys = fleet.dir.path().join(fleet.dialect("data/bearer-keys.json", "bearer-keys.json"));
    assert_eq!(std::fs::metadata(&keys).unwrap().permissions().mode() & 0o777, 0o600);
    fleet.down().await;
    std::fs::remove_file(keys).unwrap();
    fleet.up().await;
    next(&fleet, &mut machine, &session).await.1.refused(401, ProblemCode::SessionEnded);
    fleet.get("/cache/nix-cache-info", &bearer).await.refused(401, ProblemCode::Unauthorised);
    machine.check_in(&fleet).await;
}

#[tokio::test]
async fn of_check_ins_that_come_together_one_that_cannot_be_read_is_refused_alone() {
    let fleet = std::sync::Arc::new(Fleet::start().await);
    let mut machines = Vec::new();
    for n in 0..40 {
        machines.push(fleet.enrolled(&format!("m{n}"), Class::Nixos).await);
    }
    // Before their first check-in, so that nothing is kept in memory.
    let unreadable = fleet.dialect(
        "UPDATE machines SET body_sha256 = x'00', bearer_key = 1, bearer_expires = 1 WHERE name = 'm7'",
        "UPDATE machines SET body_sha256 = '\\x00', bearer_key = 1, bearer_expires = 1 WHERE name = 'm7'",
    );
    fleet.try_sql(unreadable).await.unwrap();
    let (told, mut answers) = tokio::sync::mpsc::unbounded_channel();
    for machine in machines {
        let (fleet, told) = (fleet.clone(), told.clone());
        tokio::spawn(async move {
            let checkin = machine.checkin(&fleet, machine.seq + 1);
            let answer = machine.send_checkin(&fleet, &checkin).await;
            told.send((machine.name, answer.status)).unwrap();
        });
    }
    for _ in 0..40 {
        let (name, status) = answers.recv().await.unwrap();
        let wanted = if name.as_str() == "m7" { 500 } else { 200 };
        assert_eq!(status.as_u16(), wanted, "{name}");
    }
    assert_eq!(fleet.sql("SELECT count(*) FROM machines WHERE seq = 1").await, "39");
}

#[tokio::test]
async fn of_two_check_ins_of_one_machine_that_come_together_the_second_is_decided_by_the_first() {
    let fleet = std::sync::Arc::new(Fleet::start().await);
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    // The same bytes have the same answer.
    let same = machine.checkin(&fleet, 1);
    let (one, two) = tokio::join!(machine.send_checkin(&fleet, &same), machine.send_checkin(&fleet, &same));
    assert_eq!((one.status, &one.text), (StatusCode::OK, &two.text));
    assert!(!fleet.view("cinnabar").await.clone_alarm);
    // Two bodies under one number are two machines'.
    let other = CheckIn { boot_id: "another".into(), ..machine.checkin(&fleet, 2) };
    let same = machine.checkin(&fleet, 2);
    let (one, two) = tokio::join!(machine.send_checkin(&fleet, &same), machine.send_checkin(&fleet, &other));
    let mut statuses = [one.status.as_u16(), two.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409]);
    assert!(fleet.view("cinnabar").await.clone_alarm);
}
