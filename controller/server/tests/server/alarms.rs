//! Key rotations and attacks that machines report, over HTTP.

use crate::support::{Fleet, Machine, event, rotate, send_both, target};
use muster_protocol::api::{self, ProblemCode};
use muster_protocol::checkin::{CheckIn, CheckInReply, PollReply};
use muster_protocol::keys::{Context, SecretKey};
use muster_protocol::machine::Class;
use muster_protocol::operator::{AttackView, Condition, MachineView};
use muster_protocol::report::{Accepted, Asker, Attack, EventKind};
use muster_protocol::request::{Asked, MAX_REQUESTS, SignedRequest};
use reqwest::{Method, StatusCode};

fn key() -> SecretKey {
    SecretKey::generate().unwrap()
}

#[tokio::test]
async fn a_machine_changes_its_key_by_a_check_in_that_old_and_new_sign_and_the_old_one_ends() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let old_bearer = machine.bearer(&fleet).await;
    let asked = fleet.asks(&machine.name, Asked::RotateKey { key: machine.key.public() });
    let view: MachineView = fleet.ask(&machine.name, &asked).await.good();
    assert!(view.key_rotation_asked);
    let reply = machine.check_in(&fleet).await;
    assert_eq!(reply.requests, [asked]);
    assert!(reply.rotate_key, "agents of 0.1 know only this");

    let (old, new) = (machine.clone(), key());
    let reply: CheckInReply = rotate(&fleet, &mut machine, &new).await.good();
    let told = machine.check_in(&fleet).await;
    assert!(!reply.rotate_key && !told.rotate_key && told.requests.is_empty(), "it is void");
    let reply = CheckInReply { bearer: told.bearer, ..reply };
    let view = fleet.view("cinnabar").await;
    assert_eq!((view.key, view.key_rotated_at), (Some(new.public()), Some(fleet.now_s() * 1000)));
    assert!(!view.key_rotation_asked);
    // Bearers issued for the old key are no longer valid.
    fleet.get("/cache/nix-cache-info", &old_bearer).await.refused(401, ProblemCode::Unauthorised);
    assert_eq!(fleet.get("/cache/nix-cache-info", &reply.bearer).await.status, StatusCode::OK);
    old.send_checkin(&fleet, &old.checkin(&fleet, 50)).await.refused(401, ProblemCode::BadSignature);
    old.report(&fleet, 1, vec![]).await.refused(401, ProblemCode::BadSignature);
    assert!(!machine.check_in(&fleet).await.rotate_key);
    assert!(!fleet.view("cinnabar").await.clone_alarm);
}

/// The controller only relays requests, and says which ones it would not: the machine decides by itself.
#[tokio::test]
async fn a_request_is_handed_on_until_the_machine_has_followed_it_or_it_ends() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let name = machine.name.clone();
    let derivation = target("cinnabar", Class::Nixos, 1).derivation;
    let retry = || Asked::Retry { derivation: derivation.clone(), generation: None };
    let signed = fleet.asks(&name, retry());
    let bearer = machine.bearer(&fleet).await;
    fleet.ask(&name, &signed).await.good::<MachineView>();
    // Repeated, it is the same request, and logged once.
    fleet.ask(&name, &signed).await.good::<MachineView>();
    let poll: PollReply = fleet.get(&api::poll_path(&name, None, 30), &bearer).await.good();
    assert!(poll.check_in, "it is told at once");
    assert_eq!(machine.check_in(&fleet).await.requests, std::slice::from_ref(&signed));
    let poll: PollReply = fleet.get(&api::poll_path(&name, None, 0), &bearer).await.good();
    assert!(!poll.check_in, "and not over and over");
    assert_eq!(machine.check_in(&fleet).await.requests.len(), 1, "it may not have got it");
    machine.seq += 1;
    let followed = CheckIn { followed: vec![signed.id()], ..machine.checkin(&fleet, machine.seq) };
    assert!(machine.send_checkin(&fleet, &followed).await.good::<CheckInReply>().requests.is_empty());

    // Bound to another key, for another machine, unsigned, or too many: refused.
    let other = fleet.asks(&name, Asked::RotateKey { key: key().public() });
    fleet.ask(&name, &other).await.refused(409, ProblemCode::Conflict);
    let foreign = fleet.asks(&"zinc".parse().unwrap(), retry());
    fleet.ask(&name, &foreign).await.refused(422, ProblemCode::BadSignature);
    let forged = SignedRequest { key: key().public(), ..fleet.asks(&name, retry()) };
    fleet.ask(&name, &forged).await.refused(422, ProblemCode::BadSignature);
    for _ in 0..MAX_REQUESTS {
        fleet.ask(&name, &fleet.asks(&name, retry())).await.good::<MachineView>();
    }
    fleet.ask(&name, &fleet.asks(&name, retry())).await.refused(409, ProblemCode::Conflict);
    assert_eq!(machine.check_in(&fleet).await.requests.len(), MAX_REQUESTS);
    assert_eq!(fleet.sql("SELECT count(*) FROM audit WHERE action = 'retry-asked'").await, "9");
    fleet.clock.forward(8 * 86_400);
    assert!(machine.check_in(&fleet).await.requests.is_empty(), "they have ended");
}

/// A controller that was restored from a backup, or that lied about accepting the new key, knows only the old
/// one.
#[tokio::test]
async fn the_key_before_brings_the_one_in_force_and_a_stolen_one_wins_nothing() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let (old, new) = (machine.key.clone(), key());
    let brings = |machine: &Machine, seq: u64, by: &SecretKey, new: &SecretKey| {
        let checkin = CheckIn { new_key: Some(new.public()), ..machine.checkin(&fleet, seq) };
        let body = serde_json::to_vec(&checkin).unwrap();
        (by.sign(Context::CheckIn, &body).hex(), new.sign(Context::KeyRotation, &body).hex(), body)
    };
    // The machine has rotated its key; the controller never heard of it.
    let alone = Machine { key: new.clone(), ..machine.clone() };
    alone.send_checkin(&fleet, &alone.checkin(&fleet, 5)).await.refused(401, ProblemCode::BadSignature);
    let (by_old, by_new, body) = brings(&machine, 6, &old, &new);
    send_both(&fleet, by_old, by_new, body).await.good::<CheckInReply>();
    machine.key = new.clone();
    machine.send_checkin(&fleet, &machine.checkin(&fleet, 7)).await.good::<CheckInReply>();
    // Repeating it is harmless if the controller knew all along.
    let (by_old, by_new, body) = brings(&machine, 8, &old, &new);
    send_both(&fleet, by_old, by_new, body).await.good::<CheckInReply>();
    // A thief of the old key cannot replace the new one.
    let mine = key();
    let (by_old, by_mine, body) = brings(&machine, 9, &old, &mine);
    send_both(&fleet, by_old, by_mine, body).await.refused(401, ProblemCode::BadSignature);
    assert_eq!(fleet.view("cinnabar").await.key, Some(new.public()));
}

#[tokio::test]
async fn a_rotation_whose_reply_was_lost_is_said_again_and_locks_nobody_out() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let (old, new) = (machine.key.clone(), key());
    let first: CheckInReply = rotate(&fleet, &mut machine, &new).await.good();
    // The same request gets the same reply, with a bearer that works.
    let checkin = CheckIn { new_key: Some(new.public()), ..machine.checkin(&fleet, machine.seq) };
    let body = serde_json::to_vec(&checkin).unwrap();
    let by_new = new.sign(Context::KeyRotation, &body).hex();
    let again = send_both(&fleet, old.sign(Context::CheckIn, &body).hex(), by_new, body).await;
    assert_eq!(again.good::<CheckInReply>().bearer, first.bearer);
    assert_eq!(fleet.get("/cache/nix-cache-info", &first.bearer).await.status, StatusCode::OK);
    // So does the next number, still signed by the old key, since the machine does not know.
    let mut unaware = Machine { key: old, ..machine.clone() };
    rotate(&fleet, &mut unaware, &new).await.good::<CheckInReply>();
    assert_eq!(fleet.sql("SELECT count(*) FROM audit WHERE action = 'key-rotated'").await, "1");
    machine.seq = unaware.seq;
    machine.check_in(&fleet).await;
}

#[tokio::test]
async fn nobody_brings_a_key_without_both_signatures() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let neighbour = fleet.enrolled("stibnite", Class::Darwin).await;
    let (old, new, stranger) = (machine.key.clone(), key(), key());
    machine.seq += 1;
    let checkin = CheckIn { new_key: Some(new.public()), ..machine.checkin(&fleet, machine.seq) };
    let body = serde_json::to_vec(&checkin).unwrap();
    let by = |key: &SecretKey, context| key.sign(context, &body).hex();
    let (rotation, check_in) = (Context::KeyRotation, Context::CheckIn);
    for (what, first, second) in [
        ("the new key alone, twice", by(&new, check_in), by(&new, rotation)),
        ("a stranger for the new key", by(&old, check_in), by(&stranger, rotation)),
        ("the old key for the new one", by(&old, check_in), by(&old, rotation)),
        ("the new key in another context", by(&old, check_in), by(&new, check_in)),
        ("a neighbour for the old key", by(&neighbour.key, check_in), by(&new, rotation)),
    ] {
        let answer = send_both(&fleet, first, second, body.clone()).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{what}: {}", answer.text);
    }
    fleet.send(api::CHECKIN, by(&old, check_in), body.clone()).await.refused(401, ProblemCode::Unauthorised);
    assert_eq!(fleet.view("cinnabar").await.key, Some(old.public()));
    // A neighbour's key, even with its holder's signature.
    rotate(&fleet, &mut machine, &neighbour.key).await.refused(409, ProblemCode::Conflict);
    assert_eq!(fleet.view("cinnabar").await.key, Some(old.public()));
    // A revoked machine changes nothing.
    fleet.operate(Method::POST, "/v1/operator/machines/cinnabar/revoke", vec![]).await.good::<MachineView>();
    rotate(&fleet, &mut machine, &new).await.refused(403, ProblemCode::Revoked);
}

async fn attacks(fleet: &Fleet) -> Vec<AttackView> {
    let path = format!("{}/cinnabar/attacks", api::OPERATOR_MACHINES);
    fleet.operate(Method::GET, &path, vec![]).await.good()
}

#[tokio::test]
async fn an_attack_is_shown_with_words_and_time_until_the_machine_accepts_something_again() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    machine.check_in(&fleet).await;
    assert!(attacks(&fleet).await.is_empty());

    machine.seq += 1;
    let refusing = CheckIn { refused: Some(Attack::Rollback), ..machine.checkin(&fleet, machine.seq) };
    machine.send_checkin(&fleet, &refusing).await.good::<CheckInReply>();
    let told = EventKind::Refused { attack: Attack::Rollback, detail: "snapshot.json is version 1".into() };
    machine.report(&fleet, 1, vec![event(1, Some(2), told)]).await.good::<Accepted>();
    let view = fleet.view("cinnabar").await;
    assert_eq!(view.condition, Condition::UnderAttack);
    let attack = view.attack.unwrap();
    assert_eq!((attack.attack, attack.detail.as_str()), (Attack::Rollback, "snapshot.json is version 1"));
    assert_eq!((attack.received_at, attack.ended_at), (fleet.now_s() * 1000, None));
    assert_eq!(attack.generation.unwrap().get(), 2);

    fleet.clock.forward(60);
    machine.check_in(&fleet).await;
    let view = fleet.view("cinnabar").await;
    assert_eq!((view.condition, view.attack), (Condition::NoGeneration, None));
    let past = attacks(&fleet).await;
    assert_eq!(past.len(), 1);
    assert_eq!(past[0].ended_at, Some(fleet.now_s() * 1000));
}

#[tokio::test]
async fn an_attack_that_is_told_after_it_ended_is_no_alarm_and_kinds_of_the_future_are_kept() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    machine.check_in(&fleet).await;
    let body = r#"{"machine":"cinnabar","oldest":1,"events":[
        {"seq":1,"at":5,"kind":"refused","attack":"freeze","detail":"late"},
        {"seq":2,"at":6,"kind":"refused","attack":"time-travel","detail":"from 2040"}]}"#;
    machine.send_raw_batch(&fleet, body.into()).await.good::<Accepted>();
    let told = attacks(&fleet).await;
    let kinds: Vec<(Attack, bool)> = told.iter().map(|one| (one.attack, one.ended_at.is_some())).collect();
    assert_eq!(kinds, [(Attack::Unknown, true), (Attack::Freeze, true)]);
    assert_eq!(fleet.view("cinnabar").await.condition, Condition::NoGeneration);
}

#[tokio::test]
async fn a_machine_that_cries_wolf_fills_neither_the_log_nor_the_table() {
    let fleet = Fleet::start_with("[limits]\nmachine_per_second = 0").await;
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    for batch in 0..4_u64 {
        let wolf =
            |seq| event(seq, None, EventKind::Refused { attack: Attack::Freeze, detail: "x".repeat(9000) });
        let events = (batch * 100 + 1..=batch * 100 + 100).map(wolf).collect::<Vec<_>>();
        machine.report(&fleet, batch * 100 + 1, events).await.good::<Accepted>();
    }
    for batch in 4..8_u64 {
        let wolf =
            |seq| event(seq, None, EventKind::Refused { attack: Attack::Freeze, detail: String::new() });
        let events = (batch * 100 + 1..=batch * 100 + 100).map(wolf).collect::<Vec<_>>();
        machine.report(&fleet, batch * 100 + 1, events).await.good::<Accepted>();
    }
    assert_eq!(fleet.sql("SELECT count(*) FROM attacks").await, "500");
    assert_eq!(fleet.sql("SELECT max(length(detail)) FROM attacks").await, "4096");
    assert_eq!(fleet.sql("SELECT count(*) FROM audit WHERE action = 'attack-refused'").await, "1");
}

#[tokio::test]
async fn a_quarantine_that_is_lifted_at_a_machine_is_in_the_audit_log_a_few_times_a_day() {
    let fleet = Fleet::start().await;
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let derivation = target("cinnabar", Class::Nixos, 1).derivation;
    let retried = |seq, quarantined, user| {
        let by = Asker::Local { user };
        event(seq, Some(1), EventKind::Retried { derivation: derivation.clone(), quarantined, by })
    };
    machine
        .report(&fleet, 1, vec![retried(1, true, Some(0)), retried(2, false, None)])
        .await
        .good::<Accepted>();
    let details = "SELECT group_concat(action || ': ' || detail || ', ' || machine, '; ') FROM audit
                   WHERE action IN ('quarantine-lifted', 'retried')";
    let name = derivation.name();
    let told = format!(
        "quarantine-lifted: {name} (by root at the machine), cinnabar; retried: {name} (at the machine), \
            cinnabar"
    );
    assert_eq!(fleet.sql(details).await, told);
    let count = "SELECT count(*) FROM audit WHERE action = 'quarantine-lifted'";
    let many = |from: u64| (from..from + 50).map(|seq| retried(seq, true, Some(501))).collect();
    machine.report(&fleet, 3, many(3)).await.good::<Accepted>();
    machine.report(&fleet, 53, many(53)).await.good::<Accepted>();
    assert_eq!(fleet.sql(count).await, "15", "16 a day, and one of them is a retry");
    fleet.clock.forward(24 * 3600 + 1);
    machine.report(&fleet, 103, vec![retried(103, true, Some(0))]).await.good::<Accepted>();
    assert_eq!(fleet.sql(count).await, "16");
}

#[tokio::test]
async fn a_clone_alarm_ends_when_an_operator_says_so_and_comes_back_with_the_clone() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    machine.check_in(&fleet).await;
    let path = format!("{}/acknowledge", api::operator_machine(&machine.name));
    fleet.operate(Method::POST, &path, vec![]).await.refused(404, ProblemCode::NotFound);
    for copy in ["one", "two"] {
        let other = CheckIn { boot_id: copy.into(), ..machine.checkin(&fleet, 1) };
        machine.send_checkin(&fleet, &other).await.refused(409, ProblemCode::Sequence);
        let view = fleet.view("cinnabar").await;
        assert!(view.clone_alarm && view.clone_alarm_at.is_some());
        let view: MachineView = fleet.operate(Method::POST, &path, vec![]).await.good();
        assert!(!view.clone_alarm);
    }
}
