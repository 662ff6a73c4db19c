//! Operators' requests: signatures, publications, TUF files as a machine's client reads them, changes.

use std::sync::Arc;

use crate::support::{Answer, Fleet, LIMIT, Machine, event, make_root, system, target, until};
use muster_protocol::api::{self, ProblemCode};
use muster_protocol::checkin::{CheckIn, CheckInReply};
use muster_protocol::ids::{Generation, Sha256};
use muster_protocol::keys::SecretKey;
use muster_protocol::machine::Class;
use muster_protocol::operator::{Changes, Condition, FleetView, HistoryEntry, MachineView, Publication};
use muster_protocol::report::EventKind;
use muster_protocol::tuf::client::{Scope, Stored, Update};
use reqwest::{Method, StatusCode};
use serde_json::Value;

const MACHINES: &str = api::OPERATOR_MACHINES;

#[tokio::test]
async fn a_request_counts_only_as_an_operator_signed_it() {
    let fleet = Fleet::start().await;
    let get = Method::GET;
    Answer::of(fleet.http.get(fleet.url(MACHINES))).await.refused(401, ProblemCode::Unauthorised);

    for key in [&fleet.root_key, &fleet.online, &SecretKey::generate().unwrap()] {
        let signature = fleet.signature(key, &get, MACHINES, b"");
        fleet.send_signed(get.clone(), MACHINES, vec![], &signature).await.refused(403, ProblemCode::Revoked);
    }
    let signature = fleet.signature(&fleet.operator, &get, "/v1/operator/machines/x", b"");
    fleet
        .send_signed(get.clone(), MACHINES, vec![], &signature)
        .await
        .refused(401, ProblemCode::BadSignature);
    let signature = fleet.signature(&fleet.operator, &Method::POST, MACHINES, b"{}");
    fleet
        .send_signed(Method::POST, MACHINES, b"{ }".to_vec(), &signature)
        .await
        .refused(401, ProblemCode::BadSignature);
    let mut short = fleet.signature(&fleet.operator, &get, MACHINES, b"");
    short.nonce = "00".into();
    fleet.send_signed(get.clone(), MACHINES, vec![], &short).await.refused(400, ProblemCode::Malformed);
    let garbled = fleet.http.get(fleet.url(MACHINES)).header(api::OPERATOR_SIGNATURE, "{");
    Answer::of(garbled).await.refused(400, ProblemCode::Malformed);

    fleet.operate(get, MACHINES, vec![]).await.good::<Vec<MachineView>>();
}

#[tokio::test]
async fn a_signed_request_works_once() {
    let mut fleet = Fleet::start().await;
    let signature = fleet.signature(&fleet.operator, &Method::GET, MACHINES, b"");
    fleet.send_signed(Method::GET, MACHINES, vec![], &signature).await.good::<Vec<MachineView>>();
    fleet.send_signed(Method::GET, MACHINES, vec![], &signature).await.refused(409, ProblemCode::Sequence);
    fleet.down().await;
    fleet.up().await;
    fleet.send_signed(Method::GET, MACHINES, vec![], &signature).await.refused(409, ProblemCode::Sequence);
}

#[tokio::test]
async fn an_operators_clock_may_be_five_minutes_off_and_is_told_by_how_much() {
    let fleet = Fleet::start().await;
    for (off, words) in [(-301, "301 s ahead of"), (301, "301 s behind")] {
        let signature = fleet.signature(&fleet.operator, &Method::GET, MACHINES, b"");
        fleet.clock.forward(off);
        let answer = fleet.send_signed(Method::GET, MACHINES, vec![], &signature).await;
        let message = answer.refused(401, ProblemCode::Unauthorised);
        assert!(message.contains(words), "{message}");
        fleet.clock.forward(-off);
    }
    for off in [-300, 300] {
        let signature = fleet.signature(&fleet.operator, &Method::GET, MACHINES, b"");
        fleet.clock.forward(off);
        fleet.send_signed(Method::GET, MACHINES, vec![], &signature).await.good::<Vec<MachineView>>();
        fleet.clock.forward(-off);
    }
}

#[tokio::test]
async fn a_new_root_counts_at_once_for_requests_and_sessions_alike() {
    let fleet = Fleet::start().await;
    let bearer = fleet.session().await;
    assert_eq!(fleet.get("/cache/nix-cache-info", &bearer).await.status, StatusCode::OK);
    let newcomer = SecretKey::generate().unwrap();

    // A root that the first root's keys did not sign changes nothing.
    let foreign = make_root(2, &SecretKey::generate().unwrap(), &[&newcomer], &fleet.online);
    fleet.put_root(2, &foreign).await;
    fleet.operate(Method::GET, MACHINES, vec![]).await.good::<Vec<MachineView>>();

    let next = make_root(2, &fleet.root_key, &[&newcomer], &fleet.online);
    fleet.put_root(2, &next).await;
    fleet.operate(Method::GET, MACHINES, vec![]).await.refused(403, ProblemCode::Revoked);
    fleet.get("/cache/nix-cache-info", &bearer).await.refused(403, ProblemCode::Revoked);
    let signature = fleet.signature(&newcomer, &Method::GET, MACHINES, b"");
    fleet.send_signed(Method::GET, MACHINES, vec![], &signature).await.good::<Vec<MachineView>>();

    let view: FleetView = Answer::of(fleet.http.get(fleet.url(api::FLEET))).await.good();
    assert_eq!((view.fleet, view.root_version, view.root), (fleet.fleet_id(), 2, Sha256::of(&next)));
    let served = Answer::of(fleet.http.get(fleet.url(&api::root_path(2)))).await;
    assert_eq!(served.text.as_bytes(), next);
    Answer::of(fleet.http.get(fleet.url(&api::root_path(3)))).await.refused(404, ProblemCode::NotFound);
}

/// The result of a machine that trusts the first root verifying its repository.
async fn refresh(fleet: &Fleet, machine: &Machine, bearer: &str) -> Result<(u64, Vec<u8>), String> {
    let stored = Stored { root: fleet.root.clone(), timestamp: None, snapshot: None, targets: None };
    let scope = Scope { machine: machine.name.clone(), class: machine.class, lowest: Generation::FIRST };
    let mut update = Update::start(&stored, Some(scope), fleet.now_s()).map_err(|error| error.to_string())?;
    while let Some(fetch) = update.next() {
        let answer = fleet.get(&machine.tuf(&fetch.file), bearer).await;
        let answer = match answer.status {
            StatusCode::OK => Some(answer.text.as_bytes()),
            _ => None,
        };
        update.feed(answer).map_err(|error| error.to_string())?;
    }
    let file = update.listed(&api::target_name(&machine.name)).ok_or("no target")?;
    let hash = file.hashes.sha256.ok_or("no hash")?;
    let bytes = fleet.get(&api::target_path(&machine.name, &hash), bearer).await.text.into_bytes();
    file.require_bytes("the target", &bytes).map_err(|error| error.to_string())?;
    Ok((update.targets_version().unwrap(), bytes))
}

#[tokio::test]
async fn a_machines_client_accepts_what_was_published() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("stibnite", Class::Darwin).await;
    let bearer = machine.bearer(&fleet).await;
    fleet.get(&machine.tuf("timestamp.json"), &bearer).await.refused(404, ProblemCode::NotFound);
    for number in 1..=3 {
        let publication = fleet.generation("stibnite", Class::Darwin, number);
        let view: MachineView = fleet.publish(&machine.name, &publication).await.good();
        assert_eq!(view.published.unwrap().target, target("stibnite", Class::Darwin, number));
        assert_eq!(view.condition, Condition::Updating);
        let (version, bytes) = refresh(&fleet, &machine, &bearer).await.unwrap();
        assert_eq!((version, bytes), (number, publication.target.into_bytes()));
    }
    // Older files remain for a client that is still reading them.
    assert_eq!(fleet.get(&machine.tuf("1.targets.json"), &bearer).await.status, StatusCode::OK);
    for none in ["4.targets.json", "4.snapshot.json", "0.targets.json", "muster.db", "targets.json"] {
        fleet.get(&machine.tuf(none), &bearer).await.refused(404, ProblemCode::NotFound);
    }
}

fn version_and_end(timestamp: &str) -> (u64, String) {
    let json: Value = serde_json::from_str(timestamp).unwrap();
    (json["signed"]["version"].as_u64().unwrap(), json["signed"]["expires"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_timestamp_is_signed_anew_after_half_its_life_with_a_higher_version() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    fleet.publish(&machine.name, &fleet.generation("cinnabar", Class::Nixos, 1)).await.good::<MachineView>();
    let path = machine.tuf("timestamp.json");
    let bearer = machine.bearer(&fleet).await;
    let first = fleet.get(&path, &bearer).await.text;
    fleet.clock.forward(12 * 3600 - 10);
    let bearer = machine.bearer(&fleet).await;
    assert_eq!(fleet.get(&path, &bearer).await.text, first);
    fleet.clock.forward(11);
    let second = fleet.get(&path, &bearer).await.text;
    let (old, new) = (version_and_end(&first), version_and_end(&second));
    assert!(new.0 > old.0 && new.1 > old.1, "{old:?} {new:?}");
    assert_eq!(i64::try_from(new.0).unwrap(), fleet.now_s());
    // A clock that is set back does not lead to a used version.
    fleet.clock.forward(-86_400);
    let next = fleet.generation("cinnabar", Class::Nixos, 2);
    fleet.publish(&machine.name, &next).await.good::<MachineView>();
    let bearer = machine.bearer(&fleet).await;
    assert_eq!(version_and_end(&fleet.get(&path, &bearer).await.text).0, new.0 + 1);
}

#[tokio::test]
async fn only_the_next_generation_is_taken_and_a_repeated_one_is_no_second() {
    let fleet = Fleet::start().await;
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let numbered = |number| fleet.generation("cinnabar", Class::Nixos, number);
    let message = fleet.publish(&machine.name, &numbered(2)).await.refused(409, ProblemCode::Conflict);
    assert!(message.contains("the next one is 1"), "{message}");
    let first = numbered(1);
    for _ in 0..2 {
        fleet.publish(&machine.name, &first).await.good::<MachineView>();
    }
    fleet.clock.forward(1);
    fleet.publish(&machine.name, &numbered(1)).await.refused(409, ProblemCode::Conflict);
    assert_eq!(fleet.sql("SELECT count(*) FROM generations").await, "1");
    assert_eq!(fleet.sql("SELECT count(*) FROM audit WHERE action = 'generation-published'").await, "1");
}

#[tokio::test]
async fn a_restored_controller_goes_on_above_what_a_machine_holds() {
    let fleet = Fleet::start().await;
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let mut checkin = machine.checkin(&fleet, 7);
    checkin.holds.targets = 5;
    machine.send_checkin(&fleet, &checkin).await.good::<CheckInReply>();
    assert_eq!(fleet.view("cinnabar").await.next_generation(Default::default()).unwrap().get(), 6);
    let numbered = |number| fleet.generation("cinnabar", Class::Nixos, number);
    fleet.publish(&machine.name, &numbered(1)).await.refused(409, ProblemCode::Conflict);
    let view: MachineView = fleet.publish(&machine.name, &numbered(6)).await.good();
    assert_eq!(view.published.unwrap().target.generation.get(), 6);
}

#[tokio::test]
async fn of_two_operators_at_once_one_publishes() {
    let fleet = Arc::new(Fleet::start().await);
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let tries = (0..8).map(|number| {
        let (fleet, name) = (fleet.clone(), machine.name.clone());
        tokio::spawn(async move {
            let mut target = target("cinnabar", Class::Nixos, 1);
            target.message = Some(format!("try {number}"));
            fleet.publish(&name, &fleet.generation_by(&fleet.operator, &target)).await.status
        })
    });
    let mut good = 0;
    for tried in tries.collect::<Vec<_>>() {
        good += u32::from(tried.await.unwrap() == StatusCode::OK);
    }
    assert_eq!(good, 1);
}

#[tokio::test]
async fn what_the_machine_would_refuse_is_not_published() {
    let fleet = Fleet::start().await;
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    fleet.enrolled("stibnite", Class::Darwin).await;
    let good = fleet.generation("cinnabar", Class::Nixos, 1);
    let mut other_cpu = target("cinnabar", Class::Nixos, 1);
    other_cpu.system = "aarch64-linux".parse().unwrap();
    let text = |from: &str, to: &str, publication: &Publication| Publication {
        target: publication.target.replace(from, to),
        ..publication.clone()
    };
    for (what, publication, code) in [
        (
            "signed by nobody of the root",
            fleet.generation_by(&SecretKey::generate().unwrap(), &target("cinnabar", Class::Nixos, 1)),
            ProblemCode::BadSignature,
        ),
        (
            "signed by the online key",
            fleet.generation_by(&fleet.online, &target("cinnabar", Class::Nixos, 1)),
            ProblemCode::BadSignature,
        ),
        ("of another machine", fleet.generation("stibnite", Class::Darwin, 1), ProblemCode::Malformed),
        ("of the other class", fleet.generation("cinnabar", Class::Darwin, 1), ProblemCode::WrongClass),
        ("for another CPU", fleet.generation_by(&fleet.operator, &other_cpu), ProblemCode::WrongClass),
        ("with another target than was signed", text("1c0bm", "2c0bm", &good), ProblemCode::Malformed),
        ("not JSON", Publication { targets: "<html>".into(), ..good.clone() }, ProblemCode::Malformed),
    ] {
        let answer = fleet.publish(&machine.name, &publication).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{what}: {}", answer.text);
        answer.refused(422, code);
    }
    let path = format!("{}/generations", api::operator_machine(&machine.name));
    fleet.operate(Method::POST, &path, b"<html>".to_vec()).await.refused(400, ProblemCode::Malformed);
    assert_eq!(fleet.view("cinnabar").await.published, None);

    fleet.publish(&"nobody".parse().unwrap(), &good).await.refused(404, ProblemCode::UnknownMachine);
    fleet.operate(Method::POST, "/v1/operator/machines/cinnabar/revoke", vec![]).await.good::<MachineView>();
    fleet.publish(&machine.name, &good).await.refused(403, ProblemCode::Revoked);
    fleet
        .operate(Method::POST, "/v1/operator/machines/nobody/revoke", vec![])
        .await
        .refused(404, ProblemCode::UnknownMachine);
}

#[tokio::test]
async fn the_history_tells_each_generation_with_its_events_the_newest_first() {
    let fleet = Fleet::start().await;
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    for number in 1..=3 {
        let publication = fleet.generation("cinnabar", Class::Nixos, number);
        fleet.publish(&machine.name, &publication).await.good::<MachineView>();
    }
    let fetched = EventKind::Fetched { ms: 3 };
    let events = vec![
        event(1, Some(1), EventKind::Verified),
        event(2, Some(1), fetched.clone()),
        event(3, Some(3), EventKind::Verified),
        event(4, None, EventKind::Verified),
    ];
    assert_eq!(machine.report(&fleet, 1, events).await.status, StatusCode::OK);
    let path = format!("{MACHINES}/cinnabar/history");
    let all: Vec<HistoryEntry> = fleet.operate(Method::GET, &path, vec![]).await.good();
    let numbers: Vec<u64> = all.iter().map(|entry| entry.published.target.generation.get()).collect();
    assert_eq!(numbers, [3, 2, 1]);
    assert_eq!(
        all[2].events.iter().map(|event| &event.kind).collect::<Vec<_>>(),
        [&EventKind::Verified, &fetched]
    );
    assert_eq!(all[0].published.by, fleet.operator.public());
    let two: Vec<HistoryEntry> = fleet.operate(Method::GET, &format!("{path}?limit=2"), vec![]).await.good();
    assert_eq!(two.len(), 2);
    fleet
        .operate(Method::GET, &format!("{path}?limit=many"), vec![])
        .await
        .refused(400, ProblemCode::Malformed);
    fleet
        .operate(Method::GET, &format!("{MACHINES}/nobody/history"), vec![])
        .await
        .refused(404, ProblemCode::UnknownMachine);
}

#[derive(serde::Deserialize)]
struct Cursor {
    cursor: u64,
}

#[tokio::test]
async fn changes_wake_operators_and_a_restart_is_a_change() {
    let mut fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let at = |after: u64, wait: u64| format!("/v1/operator/changes?after={after}&wait={wait}");
    let Cursor { cursor } = fleet.operate(Method::GET, &at(0, 0), vec![]).await.good();
    assert!(cursor > 0);
    // Nothing new: it waits as long as requested, here not at all.
    assert_eq!(fleet.operate(Method::GET, &at(cursor, 0), vec![]).await.good::<Cursor>().cursor, cursor);

    let path = at(cursor, 600);
    let waiting = fleet.operate(Method::GET, &path, vec![]);
    let acting = async {
        let watched = || fleet.server.as_ref().unwrap().waiting_operators() == 1;
        until("an operator waits", watched).await;
        machine.check_in(&fleet).await;
    };
    let (answer, ()) = tokio::time::timeout(LIMIT, async { tokio::join!(waiting, acting) }).await.unwrap();
    let later = answer.good::<Cursor>().cursor;
    assert!(later > cursor);
    fleet.down().await;
    fleet.up().await;
    // It waits for nothing: what changed meanwhile is not known.
    let restarted = fleet.operate(Method::GET, &at(later, 600), vec![]).await.good::<Cursor>().cursor;
    assert_ne!(restarted, later);
}

#[tokio::test]
async fn a_follower_is_told_whose_changes_it_missed_and_lists_those_alone() {
    let mut fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    fleet.enrolled("stibnite", Class::Nixos).await;
    let ask = async |fleet: &Fleet, path: &str| fleet.operate(Method::GET, path, vec![]).await;
    let first: Changes = ask(&fleet, "/v1/operator/changes?after=0&wait=0").await.good();
    assert_eq!(first.machines, None, "it may be any");
    let instance = first.instance.unwrap();
    let since = |path: &str, cursor: u64| format!("{path}?after={cursor}&instance={instance}");
    machine.check_in(&fleet).await;
    let changes = since("/v1/operator/changes", first.cursor) + "&wait=600";
    let next: Changes = ask(&fleet, &changes).await.good();
    assert_eq!(next.machines.as_deref(), Some([machine.name.clone()].as_slice()));
    let listed = |views: Vec<MachineView>| views.into_iter().map(|view| view.machine).collect::<Vec<_>>();
    let list = since(MACHINES, first.cursor);
    assert_eq!(listed(ask(&fleet, &list).await.good()), std::slice::from_ref(&machine.name));
    assert!(listed(ask(&fleet, &since(MACHINES, next.cursor)).await.good()).is_empty());
    // A machine that says the same again is no news; one that says something else is.
    machine.check_in(&fleet).await;
    let changes = since("/v1/operator/changes", next.cursor) + "&wait=0";
    assert_eq!(ask(&fleet, &changes).await.good::<Changes>().machines, Some(vec![]));
    machine.seq += 1;
    let other = CheckIn { note: Some("waits for power".into()), ..machine.checkin(&fleet, machine.seq) };
    machine.send_checkin(&fleet, &other).await.good::<CheckInReply>();
    assert_eq!(ask(&fleet, &changes).await.good::<Changes>().machines.map(|names| names.len()), Some(1));
    // Another process does not know what the follower has seen.
    fleet.down().await;
    fleet.up().await;
    let changes = since("/v1/operator/changes", next.cursor) + "&wait=600";
    let after: Changes = ask(&fleet, &changes).await.good();
    assert!(after.machines.is_none() && after.instance.as_deref() != Some(instance.as_str()));
    assert_eq!(listed(ask(&fleet, &list).await.good()).len(), 2);
}

#[tokio::test]
async fn every_deed_is_in_the_audit_log_which_nobody_can_change() {
    let fleet = Fleet::start().await;
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    fleet.session().await;
    fleet.publish(&machine.name, &fleet.generation("cinnabar", Class::Nixos, 1)).await.good::<MachineView>();
    fleet.operate(Method::POST, "/v1/operator/machines/cinnabar/revoke", vec![]).await.good::<MachineView>();
    assert_eq!(
        fleet.sql("SELECT group_concat(action) FROM (SELECT action FROM audit ORDER BY id) AS entries").await,
        "root-found,machine-added,enrolled,session-opened,generation-published,machine-revoked"
    );
    assert_eq!(
        fleet.sql("SELECT lower(hex(operator)) FROM audit WHERE action = 'machine-added'").await,
        fleet.operator.public().hex()
    );
    for attempt in [
        "DELETE FROM audit",
        "UPDATE audit SET action = 'nothing'",
        fleet.dialect(
            "INSERT OR REPLACE INTO audit SELECT id, at, operator, 'nothing', machine, detail, hash FROM audit \
                WHERE id = 2",
            "INSERT INTO audit SELECT id, at, operator, 'nothing', machine, detail, hash FROM audit \
                WHERE id = 2 ON CONFLICT (id) DO UPDATE SET action = excluded.action",
        ),
        "INSERT INTO audit SELECT 99, at, operator, action, machine, detail, hash FROM audit WHERE id = 2",
    ] {
        let error = fleet.try_sql(attempt).await.unwrap_err().to_string();
        assert!(error.contains("append-only"), "{error}");
    }
}

#[tokio::test]
async fn every_refusal_is_a_problem_in_json() {
    let fleet = Fleet::start().await;
    let get = |path: &str| Answer::of(fleet.http.get(fleet.url(path)));
    get("/nowhere").await.refused(404, ProblemCode::NotFound);
    get(api::ENROL).await.refused(405, ProblemCode::NotFound);
    get("/v1/machines/%ff/poll").await.refused(400, ProblemCode::Malformed);
    get("/v1/machines/cinnabar/poll?have=much").await.refused(400, ProblemCode::Malformed);
    get("/v1/machines/..%2f/poll").await.refused(400, ProblemCode::Malformed);
    let message = Answer::of(fleet.http.post(fleet.url(api::ENROL)).body("hello"))
        .await
        .refused(400, ProblemCode::Malformed);
    assert!(message.contains("not JSON"), "{message}");
    let message = Answer::of(fleet.http.post(fleet.url(api::ENROL)).body("{}"))
        .await
        .refused(400, ProblemCode::Malformed);
    assert!(message.contains("not an enrolment"), "{message}");
}

#[tokio::test]
async fn a_machine_must_fit_its_class_and_its_token_the_time() {
    let fleet = Fleet::start().await;
    let mut token = fleet.token("cinnabar", Class::Nixos);
    token.expires = fleet.now_s();
    fleet.add(&token, false).await.refused(422, ProblemCode::TokenExpired);
    let body = serde_json::json!({
        "machine": "cinnabar", "class": "nixos", "system": system(Class::Darwin), "token": Sha256::of(b"t"),
        "check_key": Sha256::of(b"k"), "expires": fleet.now_s() + 60,
    });
    fleet
        .operate(Method::POST, MACHINES, serde_json::to_vec(&body).unwrap())
        .await
        .refused(422, ProblemCode::WrongClass);
    let good = fleet.invited("cinnabar", Class::Nixos).await;
    fleet.add(&good, false).await.refused(409, ProblemCode::Conflict);
}
