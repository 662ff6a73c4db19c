//! Machines' requests: enrolment, check-ins, reports and the long poll, over HTTP.

use std::sync::Arc;
use std::time::Duration;

use crate::support::{self, Fleet, enrol_request, event, target, until};
use muster_protocol::api::{self, ProblemCode};
use muster_protocol::checkin::{CheckIn, CheckInReply, Phase, PollReply};
use muster_protocol::enrol::EnrolReply;
use muster_protocol::ids::{Generation, Sha256};
use muster_protocol::keys::{Context, SecretKey};
use muster_protocol::machine::Class;
use muster_protocol::operator::{Condition, HistoryEntry, MachineView, Standing};
use muster_protocol::report::{Accepted, EventKind, MAX_EVENT_NUMBER, Reason, Stream};
use reqwest::{Method, StatusCode};

fn key() -> SecretKey {
    SecretKey::generate().unwrap()
}

#[tokio::test]
async fn a_token_used_by_many_at_once_enrols_exactly_one() {
    let fleet = Arc::new(Fleet::start().await);
    let token = Arc::new(fleet.invited("cinnabar", Class::Nixos).await);
    let tries = (0..24).map(|_| {
        let (fleet, token) = (fleet.clone(), token.clone());
        tokio::spawn(async move {
            let key = key();
            (key.public(), fleet.post(api::ENROL, &enrol_request(&token, &key)).await)
        })
    });
    let mut winners = Vec::new();
    for tried in tries.collect::<Vec<_>>() {
        let (key, answer) = tried.await.unwrap();
        if answer.status == StatusCode::OK {
            winners.push(key);
        } else {
            answer.refused(410, ProblemCode::TokenUsed);
        }
    }
    assert_eq!(winners.len(), 1);
    let view = fleet.view("cinnabar").await;
    assert_eq!((view.key, view.standing), (Some(winners[0]), Standing::Enrolled));
    assert_eq!(view.age.as_deref(), Some("age1example"));
}

#[tokio::test]
async fn an_enrolment_whose_answer_was_lost_may_be_repeated_with_the_same_key() {
    let fleet = Fleet::start().await;
    let token = fleet.invited("cinnabar", Class::Nixos).await;
    let request = enrol_request(&token, &key());
    for _ in 0..2 {
        let reply: EnrolReply = fleet.post(api::ENROL, &request).await.good();
        assert_eq!(reply.machine, token.machine);
    }
    fleet.operate(Method::POST, "/v1/operator/machines/cinnabar/revoke", vec![]).await.good::<MachineView>();
    fleet.post(api::ENROL, &request).await.refused(403, ProblemCode::Revoked);
}

#[tokio::test]
async fn wrong_tokens_are_refused_each_with_its_reason() {
    let fleet = Fleet::start().await;
    let mine = fleet.invited("cinnabar", Class::Nixos).await;
    let others = fleet.invited("stibnite", Class::Darwin).await;

    let unknown = fleet.token("cinnabar", Class::Nixos);
    fleet.post(api::ENROL, &enrol_request(&unknown, &key())).await.refused(404, ProblemCode::TokenUnknown);

    let mut as_another = support::enrol_request(&others, &key());
    as_another.machine = mine.machine.clone();
    fleet.post(api::ENROL, &as_another).await.refused(403, ProblemCode::BadSignature);

    let mut bent = others.clone();
    bent.machine = mine.machine.clone();
    let message =
        fleet.post(api::ENROL, &enrol_request(&bent, &key())).await.refused(403, ProblemCode::Unauthorised);
    assert!(message.contains("stibnite") && message.contains("cinnabar"), "{message}");

    let mut of_another_class = mine.clone();
    of_another_class.class = Class::Darwin;
    fleet
        .post(api::ENROL, &enrol_request(&of_another_class, &key()))
        .await
        .refused(403, ProblemCode::WrongClass);

    let mut of_another_fleet = mine.clone();
    of_another_fleet.root = Sha256::of(b"another");
    fleet
        .post(api::ENROL, &enrol_request(&of_another_fleet, &key()))
        .await
        .refused(404, ProblemCode::TokenUnknown);

    fleet.clock.forward(3600);
    let message =
        fleet.post(api::ENROL, &enrol_request(&mine, &key())).await.refused(410, ProblemCode::TokenExpired);
    assert!(message.contains("muster machines add cinnabar"), "{message}");
    assert_eq!(fleet.view("cinnabar").await.standing, Standing::Invited);
}

#[tokio::test]
async fn a_new_token_ends_the_one_before_and_a_replacement_ends_the_old_key() {
    let fleet = Fleet::start().await;
    let first = fleet.invited("cinnabar", Class::Nixos).await;
    let second = fleet.invited("cinnabar", Class::Nixos).await;
    fleet.post(api::ENROL, &enrol_request(&first, &key())).await.refused(404, ProblemCode::TokenUnknown);
    let old_key = key();
    fleet.post(api::ENROL, &enrol_request(&second, &old_key)).await.good::<EnrolReply>();

    let third = fleet.token("cinnabar", Class::Nixos);
    let message = fleet.add(&third, false).await.refused(409, ProblemCode::Conflict);
    assert!(message.contains("--replace"), "{message}");

    let mut old = support::Machine {
        name: second.machine.clone(),
        class: Class::Nixos,
        key: old_key,
        seq: 0,
        fleet: fleet.fleet_id(),
    };
    fleet.add(&third, true).await.good::<MachineView>();
    let bearer = old.bearer(&fleet).await;
    let new_key = key();
    fleet.post(api::ENROL, &enrol_request(&third, &new_key)).await.good::<EnrolReply>();
    fleet.get("/cache/nix-cache-info", &bearer).await.refused(401, ProblemCode::Unauthorised);
    old.send_checkin(&fleet, &old.checkin(&fleet, 9)).await.refused(401, ProblemCode::BadSignature);

    // The new machine starts counting again.
    let mut new = support::Machine { key: new_key, seq: 0, ..old };
    assert_eq!(new.check_in(&fleet).await.reports_through, 0);
}

#[tokio::test]
async fn a_key_is_one_machines() {
    let fleet = Fleet::start().await;
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let token = fleet.invited("copy", Class::Nixos).await;
    fleet.post(api::ENROL, &enrol_request(&token, &machine.key)).await.refused(409, ProblemCode::Conflict);
    // The refusal did not use up the token.
    fleet.post(api::ENROL, &enrol_request(&token, &key())).await.good::<EnrolReply>();
}

#[tokio::test]
async fn a_machine_does_not_enrol_again_with_a_key_that_it_had_before() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    machine.check_in(&fleet).await;
    // Somebody kept this one.
    let kept = machine.checkin(&fleet, machine.seq + 1);
    machine.check_in(&fleet).await;
    let token = fleet.token("cinnabar", Class::Nixos);
    fleet.add(&token, true).await.good::<MachineView>();
    fleet.post(api::ENROL, &enrol_request(&token, &machine.key)).await.refused(409, ProblemCode::Conflict);
    let next = key();
    fleet.post(api::ENROL, &enrol_request(&token, &next)).await.good::<EnrolReply>();
    // Nor once it has another: the first life's check-ins stay void.
    let token = fleet.token("cinnabar", Class::Nixos);
    fleet.add(&token, true).await.good::<MachineView>();
    fleet.post(api::ENROL, &enrol_request(&token, &machine.key)).await.refused(409, ProblemCode::Conflict);
    machine.send_checkin(&fleet, &kept).await.refused(401, ProblemCode::BadSignature);
    // What uses the token may repeat it.
    let last = key();
    for _ in 0..2 {
        fleet.post(api::ENROL, &enrol_request(&token, &last)).await.good::<EnrolReply>();
    }
}

#[tokio::test]
async fn the_same_check_in_gets_the_same_reply_even_after_a_restart() {
    let mut fleet = Fleet::start().await;
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let checkin = machine.checkin(&fleet, 7);
    let first = machine.send_checkin(&fleet, &checkin).await;
    assert_eq!(first.status, StatusCode::OK);
    fleet.down().await;
    fleet.up().await;
    let again = machine.send_checkin(&fleet, &checkin).await;
    assert_eq!(first.text, again.text);
    let reply: CheckInReply = again.good();
    assert_eq!((reply.bearer_expires_in, reply.poll_seconds), (3600, 55));
    assert_eq!(fleet.get("/cache/nix-cache-info", &reply.bearer).await.status, StatusCode::OK);
    assert!(!fleet.view("cinnabar").await.clone_alarm);
    // The database holds neither a bearer nor anything from which one could be made.
    let data = fleet.data_bytes().await;
    let holds = |text: &str| data.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds("cinnabar") && !holds(&reply.bearer));
}

#[tokio::test]
async fn a_check_in_that_was_slow_is_known_again_and_raises_no_alarm() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let slow = machine.checkin(&fleet, 7);
    machine.send_checkin(&fleet, &slow).await.good::<CheckInReply>();
    machine.seq = 7;
    for _ in 0..16 {
        machine.check_in(&fleet).await;
        machine.send_checkin(&fleet, &slow).await.refused(409, ProblemCode::Repeated);
    }
    assert!(!fleet.view("cinnabar").await.clone_alarm);
    let other = CheckIn { boot_id: "another".into(), ..slow.clone() };
    machine.send_checkin(&fleet, &other).await.refused(409, ProblemCode::Sequence);
    assert!(fleet.view("cinnabar").await.clone_alarm, "another body under its number is a copy all the same");
    // Older check-ins are not remembered.
    machine.check_in(&fleet).await;
    machine.send_checkin(&fleet, &slow).await.refused(409, ProblemCode::Sequence);
}

#[tokio::test]
async fn a_used_number_with_another_body_or_a_lower_one_raises_the_clone_alarm() {
    for (second, expect) in [(7, "check-in 7"), (6, "check-in 6")] {
        let fleet = Fleet::start().await;
        let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
        machine.send_checkin(&fleet, &machine.checkin(&fleet, 7)).await.good::<CheckInReply>();
        let other = CheckIn { boot_id: "another".into(), ..machine.checkin(&fleet, second) };
        let message = machine.send_checkin(&fleet, &other).await.refused(409, ProblemCode::Sequence);
        assert!(message.contains(expect) && message.contains("--replace"), "{message}");
        let view = fleet.view("cinnabar").await;
        assert!(view.clone_alarm);
        assert_eq!(view.condition, Condition::UnderAttack);
        // The rightful holder continues all the same.
        machine.send_checkin(&fleet, &machine.checkin(&fleet, 8)).await.good::<CheckInReply>();
    }
}

#[tokio::test]
async fn a_check_in_is_believed_only_as_it_was_signed() {
    let fleet = Fleet::start().await;
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let good = machine.checkin(&fleet, 1);

    let body = serde_json::to_vec(&good).unwrap();
    let signature = machine.key.sign(Context::CheckIn, &body).hex();
    let bent = String::from_utf8(body.clone()).unwrap().replace("\"boot\"", "\"toob\"").into_bytes();
    fleet.send(api::CHECKIN, signature.clone(), bent).await.refused(401, ProblemCode::BadSignature);
    let for_reports = machine.key.sign(Context::Reports, &body).hex();
    fleet.send(api::CHECKIN, for_reports, body.clone()).await.refused(401, ProblemCode::BadSignature);
    fleet.send(api::CHECKIN, "nonsense".into(), body.clone()).await.refused(400, ProblemCode::Malformed);
    fleet.post(api::CHECKIN, &good).await.refused(401, ProblemCode::Unauthorised);
    fleet.send(api::CHECKIN, signature, b"{\"seq\":".to_vec()).await.refused(400, ProblemCode::Malformed);

    let elsewhere = CheckIn { audience: Sha256::of(b"another fleet"), ..good.clone() };
    machine.send_checkin(&fleet, &elsewhere).await.refused(403, ProblemCode::Unauthorised);
    let of_another_class = CheckIn { class: Class::Darwin, ..good.clone() };
    machine.send_checkin(&fleet, &of_another_class).await.refused(403, ProblemCode::WrongClass);
    let nobody = CheckIn { machine: "nobody".parse().unwrap(), ..good.clone() };
    machine.send_checkin(&fleet, &nobody).await.refused(404, ProblemCode::UnknownMachine);
    let endless = CheckIn { seq: u64::MAX, ..good.clone() };
    machine.send_checkin(&fleet, &endless).await.refused(400, ProblemCode::Malformed);
    let large = CheckIn { note: Some("x".repeat(70_000)), ..good.clone() };
    machine.send_checkin(&fleet, &large).await.refused(413, ProblemCode::TooLarge);

    let view = fleet.view("cinnabar").await;
    assert_eq!((view.phase, view.clone_alarm), (None, false), "nothing of it was kept");
    machine.send_checkin(&fleet, &good).await.good::<CheckInReply>();
}

#[tokio::test]
async fn a_wrong_clock_is_recorded_and_never_a_reason_to_refuse() {
    let fleet = Fleet::start().await;
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let mut checkin = machine.checkin(&fleet, 1);
    checkin.clock -= 7_200_000;
    machine.send_checkin(&fleet, &checkin).await.good::<CheckInReply>();
    assert_eq!(fleet.view("cinnabar").await.clock_skew_ms, Some(-7_200_000));
}

#[tokio::test]
async fn a_bearer_ends_after_an_hour_and_with_its_machine() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let bearer = machine.bearer(&fleet).await;
    fleet.clock.forward(3599);
    assert_eq!(fleet.get("/cache/nix-cache-info", &bearer).await.status, StatusCode::OK);
    fleet.clock.forward(1);
    fleet.get("/cache/nix-cache-info", &bearer).await.refused(401, ProblemCode::Unauthorised);

    let bearer = machine.bearer(&fleet).await;
    assert_eq!(fleet.get("/cache/nix-cache-info", &bearer).await.status, StatusCode::OK);
    fleet.operate(Method::POST, "/v1/operator/machines/cinnabar/revoke", vec![]).await.good::<MachineView>();
    fleet.get("/cache/nix-cache-info", &bearer).await.refused(401, ProblemCode::Unauthorised);
    machine.seq += 1;
    let checkin = machine.checkin(&fleet, machine.seq);
    machine.send_checkin(&fleet, &checkin).await.refused(403, ProblemCode::Revoked);
    machine.report(&fleet, 1, vec![]).await.refused(403, ProblemCode::Revoked);
    assert_eq!(fleet.view("cinnabar").await.condition, Condition::Revoked);
}

#[tokio::test]
async fn a_machine_holds_no_more_than_its_newest_bearers() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let mut bearers = Vec::new();
    // All within one second, then with a clock that was set back: the order is that of the check-ins.
    for seconds in [0, -100] {
        fleet.clock.forward(seconds);
        for _ in 0..20 {
            bearers.push(machine.bearer(&fleet).await);
        }
    }
    assert_eq!(fleet.sql("SELECT count(*) FROM bearers").await, "0", "no row is kept of any of them");
    let (old, newest) = bearers.split_at(bearers.len() - 16);
    for bearer in newest {
        assert_eq!(fleet.get("/cache/nix-cache-info", bearer).await.status, StatusCode::OK);
    }
    for bearer in &old[old.len() - 3..] {
        fleet.get("/cache/nix-cache-info", bearer).await.refused(401, ProblemCode::Unauthorised);
    }
}

#[tokio::test]
async fn events_arrive_once_and_in_order_however_often_they_are_sent() {
    let fleet = Fleet::start().await;
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let events =
        |from: u64, to: u64| (from..=to).map(|seq| event(seq, Some(1), EventKind::Verified)).collect();
    let through = |answer: support::Answer| answer.good::<Accepted>().through;
    assert_eq!(through(machine.report(&fleet, 1, events(1, 3)).await), 3);
    assert_eq!(through(machine.report(&fleet, 1, events(1, 3)).await), 3);
    assert_eq!(through(machine.report(&fleet, 2, events(2, 5)).await), 5);
    let backwards = vec![event(7, None, EventKind::Verified), event(6, None, EventKind::Verified)];
    let message = machine.report(&fleet, 6, backwards).await.refused(400, ProblemCode::Malformed);
    assert!(message.contains("from 8 on"), "{message}");
    assert_eq!(fleet.sql("SELECT group_concat(seq) FROM events").await, "1,2,3,4,5");
    // The machine dropped 7, and no longer has 9 to 11 either: they will never arrive.
    let with_a_hole = vec![event(6, None, EventKind::Verified), event(8, None, EventKind::Verified)];
    assert_eq!(through(machine.report(&fleet, 6, with_a_hole.clone()).await), 8);
    assert_eq!(through(machine.report(&fleet, 6, with_a_hole).await), 8);
    assert_eq!(through(machine.report(&fleet, 12, events(12, 13)).await), 13);
    assert_eq!(fleet.sql("SELECT count(*) FROM events").await, "9");
}

#[tokio::test]
async fn numbers_that_were_lies_are_left_behind_by_another_count_and_raise_no_alarm() {
    let fleet = Fleet::start().await;
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let named = |stream: u64| Some(format!("{stream:016x}").parse::<Stream>().unwrap());
    let event = |seq: u64| event(seq, Some(1), EventKind::Fetched { ms: seq });
    let first = machine.report_in(&fleet, named(1), 1, vec![event(1), event(2)]).await.good::<Accepted>();
    assert_eq!(first, Accepted { through: 2, stream: named(1) });
    // Numbers out of range, which a thief made the machine use, are refused with their own code.
    for beyond in [MAX_EVENT_NUMBER + 1, (1 << 63) - 2, 1 << 63, u64::MAX] {
        let refused = machine.report_in(&fleet, named(1), beyond, vec![event(beyond)]).await;
        refused.refused(409, ProblemCode::EventNumbers);
    }
    // The machine gives its count another name and starts wherever it likes: the earlier numbers say nothing
    // about it.
    let anew = machine.report_in(&fleet, named(2), 1, vec![event(1), event(2), event(3)]).await;
    assert_eq!(anew.good::<Accepted>().through, 3);
    let again = machine.report_in(&fleet, named(2), 1, vec![event(1), event(2), event(3)]).await;
    assert_eq!(again.good::<Accepted>().through, 3, "a repetition");
    // A thief changed the controller's database: it claims events that the machine never sent, so the machine
    // gives its count another name.
    let poisons = [
        "UPDATE machines SET reports_through = 140737488355328",
        "UPDATE machines SET reports_through = 4611686018427387904",
        "UPDATE machines SET reports_through = 9223372036854775807",
    ];
    for (name, poison) in (3..).zip(poisons) {
        fleet.try_sql(poison).await.unwrap();
        let claimed = machine.report_in(&fleet, named(name - 1), name + 1, vec![event(name + 1)]).await;
        if claimed.good::<Accepted>().through > name + 1 {
            let anew = machine.report_in(&fleet, named(name), name + 1, vec![event(name + 1)]).await;
            assert_eq!(anew.good::<Accepted>(), Accepted { through: name + 1, stream: named(name) });
        } else {
            machine.report_in(&fleet, named(name), name + 1, vec![]).await.good::<Accepted>();
        }
        let count = fleet.sql("SELECT count(*) FROM events").await;
        assert_eq!(count, (name + 3).to_string(), "{poison}");
    }
    let view: MachineView = fleet.operate(Method::GET, "/v1/operator/machines/cinnabar", vec![]).await.good();
    assert!(!view.clone_alarm && view.refused.is_none());
    assert_eq!(fleet.sql("SELECT max(seq) FROM events").await, "8");
}

#[tokio::test]
async fn what_an_event_says_beyond_this_version_is_kept() {
    let fleet = Fleet::start().await;
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let publication = fleet.generation("cinnabar", Class::Nixos, 1);
    fleet.publish(&machine.name, &publication).await.good::<MachineView>();
    let future = r#"{"seq":1, "at":5,"generation":1,"kind":"teleported","to":{"planet":"mars"}}"#;
    let strange = r#"{"seq":2,"at":"noon","generation":1,"kind":"verified"}"#;
    let body = format!(r#"{{"machine":"cinnabar","oldest":1,"events":[{future},{strange}],"more":true}}"#);
    machine.send_raw_batch(&fleet, body).await.good::<Accepted>();
    assert_eq!(fleet.sql("SELECT event FROM events WHERE seq = 1").await, future);
    let history: Vec<HistoryEntry> =
        fleet.operate(Method::GET, "/v1/operator/machines/cinnabar/history?limit=5", vec![]).await.good();
    let kinds: Vec<_> = history[0].events.iter().map(|event| &event.kind).collect();
    assert_eq!(kinds, [&EventKind::Unknown, &EventKind::Unknown]);
}

#[tokio::test]
async fn batches_have_limits_and_a_signature() {
    let fleet = Fleet::start().await;
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let many = (1..=257).map(|seq| event(seq, None, EventKind::Verified)).collect();
    machine.report(&fleet, 1, many).await.refused(413, ProblemCode::TooLarge);
    let agent = "x".repeat(1024 * 1024);
    let large = vec![event(1, None, EventKind::Enrolled { agent })];
    machine.report(&fleet, 1, large).await.refused(413, ProblemCode::TooLarge);
    let body = br#"{"machine":"cinnabar","oldest":1,"events":[]}"#.to_vec();
    let other = key().sign(Context::Reports, &body).hex();
    fleet.send(api::REPORTS, other, body).await.refused(401, ProblemCode::BadSignature);
    assert_eq!(fleet.sql("SELECT count(*) FROM events").await, "0");
}

#[tokio::test]
async fn a_poll_wakes_when_a_generation_is_published() {
    let fleet = Arc::new(Fleet::start().await);
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let bearer = machine.bearer(&fleet).await;
    let nothing: PollReply = fleet.get(&api::poll_path(&machine.name, None, 0), &bearer).await.good();
    assert_eq!(nothing.generation, None);

    let path = api::poll_path(&machine.name, None, 600);
    let poll = tokio::spawn({
        let (fleet, path, bearer) = (fleet.clone(), path.clone(), bearer.clone());
        async move { fleet.get(&path, &bearer).await }
    });
    until_waiting(&fleet).await;
    fleet.publish(&machine.name, &fleet.generation("cinnabar", Class::Nixos, 1)).await.good::<MachineView>();
    let reply: PollReply = poll.await.unwrap().good();
    assert_eq!(reply.generation, Some(Generation::FIRST));
    // At once, if the machine is behind.
    let reply: PollReply = fleet.get(&path, &bearer).await.good();
    assert_eq!(reply.generation, Some(Generation::FIRST));
    assert_eq!(machine.check_in(&fleet).await.generation, Some(Generation::FIRST));
}

async fn until_waiting(fleet: &Fleet) {
    let server = fleet.server.as_ref().unwrap();
    until("a poll waits", || server.waiting_machines() == 1).await;
}

#[tokio::test]
async fn a_revoked_machines_poll_ends_and_a_poll_ends_when_the_server_stops() {
    for revoke in [true, false] {
        let mut fleet = Fleet::start().await;
        let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
        let bearer = machine.bearer(&fleet).await;
        let request =
            fleet.http.get(fleet.url(&api::poll_path(&machine.name, None, 600))).bearer_auth(&bearer);
        let poll = tokio::spawn(support::Answer::of(request));
        until_waiting(&fleet).await;
        if revoke {
            let path = "/v1/operator/machines/cinnabar/revoke";
            fleet.operate(Method::POST, path, vec![]).await.good::<MachineView>();
            poll.await.unwrap().refused(401, ProblemCode::Unauthorised);
        } else {
            tokio::time::timeout(Duration::from_secs(5), fleet.down()).await.unwrap();
            // It is handed over: to whoever answers at this address in a moment.
            let answer = poll.await.unwrap();
            assert_eq!(answer.headers["connection"], "close");
            let wait: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
            assert!((1..=2).contains(&wait), "{wait}");
            answer.refused(503, ProblemCode::Busy);
        }
    }
}

#[tokio::test]
async fn a_machine_reads_its_own_alone() {
    let fleet = Fleet::start().await;
    let (mut one, mut two) =
        (fleet.enrolled("cinnabar", Class::Nixos).await, fleet.enrolled("stibnite", Class::Darwin).await);
    fleet.publish(&one.name, &fleet.generation("cinnabar", Class::Nixos, 1)).await.good::<MachineView>();
    let (mine, others) = (one.bearer(&fleet).await, two.bearer(&fleet).await);
    for path in [
        one.tuf("timestamp.json"),
        one.tuf("1.targets.json"),
        one.tuf("1.root.json"),
        api::poll_path(&one.name, None, 0),
    ] {
        assert_eq!(fleet.get(&path, &mine).await.status, StatusCode::OK, "{path}");
        fleet.get(&path, &others).await.refused(403, ProblemCode::Unauthorised);
        fleet.get(&path, "nonsense").await.refused(401, ProblemCode::Unauthorised);
    }
}

#[tokio::test]
async fn a_machine_that_is_silent_is_offline_and_a_poll_is_a_word() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let bearer = machine.bearer(&fleet).await;
    fleet.clock.forward(200);
    fleet.get(&api::poll_path(&machine.name, None, 0), &bearer).await.good::<PollReply>();
    fleet.clock.forward(200);
    assert_eq!(fleet.view("cinnabar").await.condition, Condition::NoGeneration);
    fleet.clock.forward(100);
    assert_eq!(fleet.view("cinnabar").await.condition, Condition::Offline);
}

#[tokio::test]
async fn a_local_rollback_below_the_latest_generation_leaves_its_outcome_known() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    for number in 1..=2 {
        let publication = fleet.generation("cinnabar", Class::Nixos, number);
        fleet.publish(&machine.name, &publication).await.good::<MachineView>();
    }
    let running = target("cinnabar", Class::Nixos, 1).output;
    let undone = |reason| EventKind::RolledBack {
        running: running.clone(),
        reason,
        detail: String::new(),
        quarantined: true,
    };
    let events = vec![
        event(1, Some(2), undone(Reason::HealthCheckFailed)),
        event(2, Some(1), undone(Reason::Operator)),
    ];
    machine.report(&fleet, 1, events).await.good::<Accepted>();
    machine.seq += 1;
    let mut checkin = machine.checkin(&fleet, machine.seq);
    (checkin.phase, checkin.phase_generation) = (Phase::RolledBack, Some(Generation::FIRST));
    machine.send_checkin(&fleet, &checkin).await.good::<CheckInReply>();
    assert_eq!(fleet.view("cinnabar").await.condition, Condition::RolledBack);
}
