//! Several controllers on one PostgreSQL: `tests/run postgres`. On SQLite there is nothing to share, and
//! these tests end at once.

use muster_protocol::api::{self, ProblemCode};
use muster_protocol::audit::{Page, origin, verify};
use muster_protocol::checkin::PollReply;
use muster_protocol::keys::SecretKey;
use muster_protocol::machine::Class;
use muster_protocol::operator::{MachineView, NewRoot, RootTaken};
use muster_protocol::report::{Accepted, EventKind};
use reqwest::{Method, StatusCode};

use crate::support::{Answer, Fleet, event, make_root, until};

const MACHINES: &str = api::OPERATOR_MACHINES;

async fn fleet() -> Option<Fleet> {
    let fleet = Fleet::start().await;
    if fleet.postgres.is_none() {
        println!("not run: SQLite is one controller's");
        return None;
    }
    Some(fleet)
}

/// Until what `/readyz` says of its settings is so. Controllers compare theirs every quarter of a minute.
async fn until_ready_says(fleet: &Fleet, so: impl Fn(&str) -> bool) {
    let look = async {
        loop {
            let answer = Answer::of(fleet.http.get(fleet.url(api::READY))).await;
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
            if so(&answer.text) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(2 * crate::support::LIMIT, look).await.expect("it never says so");
}

/// A poll at `here` ends by what is published at `there`: long before its own end, and before the client's
/// limit.
async fn woken(here: &Fleet, there: &Fleet) {
    let mut machine = here.enrolled("cinnabar", Class::Nixos).await;
    let bearer = machine.bearer(there).await;
    let path = api::poll_path(&machine.name, None, 600);
    let (reply, ()) = tokio::join!(here.get(&path, &bearer), async {
        until("the machine waits", || here.server.as_ref().unwrap().waiting_machines() == 1).await;
        let next = there.generation("cinnabar", Class::Nixos, 1);
        there.publish(&machine.name, &next).await.good::<MachineView>();
    });
    let reply: PollReply = reply.good();
    assert!(reply.generation.is_some(), "{reply:?}");
}

#[tokio::test]
async fn what_one_controller_publishes_wakes_those_who_wait_at_another() {
    let Some(here) = fleet().await else { return };
    woken(&here, &here.beside("").await).await;
}

#[tokio::test]
async fn without_a_connection_to_listen_on_they_are_woken_by_asking() {
    let Some(there) = fleet().await else { return };
    let deaf = match std::env::var("MUSTER_TEST_POOLER") {
        // The line is there already.
        Ok(_) => "",
        Err(_) => "database_listen = \"none\"\n",
    };
    woken(&there.beside(deaf).await, &there).await;
}

#[tokio::test]
async fn a_machine_that_one_controller_revoked_is_refused_by_the_others_at_once() {
    let Some(here) = fleet().await else { return };
    let there = here.beside("").await;
    let mut machine = here.enrolled("cinnabar", Class::Nixos).await;
    let bearer = machine.bearer(&here).await;
    assert_eq!(there.get("/cache/nix-cache-info", &bearer).await.status, StatusCode::OK);
    here.operate(Method::POST, "/v1/operator/machines/cinnabar/revoke", vec![]).await.good::<MachineView>();
    there.get("/cache/nix-cache-info", &bearer).await.refused(401, ProblemCode::Unauthorised);
    let checkin = machine.checkin(&there, machine.seq + 1);
    machine.send_checkin(&there, &checkin).await.refused(403, ProblemCode::Revoked);
}

#[tokio::test]
async fn an_operator_whom_a_root_at_one_controller_removed_is_refused_by_the_others_at_once() {
    let Some(here) = fleet().await else { return };
    let there = here.beside("").await;
    let session = there.session().await;
    let newcomer = SecretKey::generate().unwrap();
    let next = make_root(2, &here.root_key, &[&newcomer], &here.online);
    let next = NewRoot { root: String::from_utf8(next).unwrap() };
    let sent = serde_json::to_vec(&next).unwrap();
    here.operate(Method::POST, api::OPERATOR_ROOT, sent.clone()).await.good::<RootTaken>();
    there.operate(Method::GET, MACHINES, vec![]).await.refused(403, ProblemCode::Revoked);
    there.get("/cache/nix-cache-info", &session).await.refused(403, ProblemCode::Revoked);
    let signature = there.signature(&newcomer, &Method::POST, api::OPERATOR_ROOT, &sent);
    there
        .send_signed(Method::POST, api::OPERATOR_ROOT, sent, &signature)
        .await
        .refused(409, ProblemCode::Conflict);
    assert_eq!(here.sql("SELECT count(*) FROM audit WHERE action = 'root-published'").await, "1");
    assert!(!here.dir.path().join("root/2.root.json").exists());
}

#[tokio::test]
async fn two_controllers_that_decide_at_the_same_time_lose_nothing_and_keep_the_log_whole() {
    let Some(here) = fleet().await else { return };
    let there = here.beside("").await;
    let both = [&here, &there];
    let machine = here.enrolled("cinnabar", Class::Nixos).await;
    let others = (0..16).map(|n| {
        let at = both[n % 2];
        async move {
            let name = format!("m{n}");
            let mut machine = at.enrolled(&name, Class::Nixos).await;
            for other in [both[(n + 1) % 2], at] {
                machine.check_in(other).await;
            }
            at.publish(&machine.name, &at.generation(&name, Class::Nixos, 1)).await.good::<MachineView>();
        }
    });
    // The same events arrive at both, one after another and at once: each is stored once, and in order.
    let events = async {
        for from in [1, 11, 21] {
            let batch = || (from..from + 10).map(|seq| event(seq, None, EventKind::Verified)).collect();
            let (one, other) =
                tokio::join!(machine.report(&here, from, batch()), machine.report(&there, from, batch()));
            for answer in [one, other] {
                assert_eq!(answer.good::<Accepted>().through, from + 9);
            }
        }
    };
    tokio::join!(futures_util::future::join_all(others), events);
    assert_eq!(here.sql("SELECT group_concat(seq) FROM (SELECT seq FROM events ORDER BY seq) AS e").await, {
        (1..=30).map(|seq| seq.to_string()).collect::<Vec<_>>().join(",")
    });
    // One machine can be added once, and one token used once, wherever it is tried.
    let token = here.token("twice", Class::Nixos);
    let (one, other) = tokio::join!(here.add(&token, false), there.add(&token, false));
    let mut told = [one.status.as_u16(), other.status.as_u16()];
    told.sort();
    assert_eq!(told, [200, 409]);
    let mut seen = origin(&here.fleet_id());
    loop {
        let path = format!("{}?after={}", api::OPERATOR_AUDIT, seen.id);
        let page: Page = there.operate(Method::GET, &path, vec![]).await.good();
        if page.entries.is_empty() {
            break;
        }
        seen = verify(seen, &page.entries).unwrap();
    }
    // root-found, 18 machines added, 17 enrolled, 16 published.
    assert_eq!(seen.id, 1 + 18 + 17 + 16);
    assert_eq!(here.sql("SELECT count(*) FROM changes").await, "18");
}

#[tokio::test]
async fn a_database_that_ends_every_connection_is_used_again_and_one_that_is_locked_is_waited_for_briefly() {
    let Some(fleet) = fleet().await else { return };
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    machine.check_in(&fleet).await;
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid()";
    fleet.sql(end).await;
    machine.check_in(&fleet).await;

    let postgres = fleet.postgres.as_ref().unwrap();
    let mut thief = postgres.connect().await.unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE machines").execute(&mut thief).await.unwrap();
    let checkin = machine.checkin(&fleet, machine.seq + 1);
    let message = machine.send_checkin(&fleet, &checkin).await.refused(503, ProblemCode::Busy);
    assert!(message.contains("repeat in a moment"), "{message}");
    sqlx::raw_sql("ROLLBACK").execute(&mut thief).await.unwrap();
    machine.check_in(&fleet).await;
}

#[tokio::test]
async fn texts_that_a_column_cannot_hold_are_stored_all_the_same() {
    let Some(fleet) = fleet().await else { return };
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let told = EventKind::Refused {
        attack: muster_protocol::report::Attack::ForgedSignature,
        detail: "a\0b\u{1a}c".into(),
    };
    machine.report(&fleet, 1, vec![event(1, None, told)]).await.good::<Accepted>();
    assert_eq!(fleet.sql("SELECT detail FROM attacks").await, "a\u{1a}0b\u{1a}1c");
    let view: MachineView = fleet.view("cinnabar").await;
    assert!(view.attack.is_none(), "it is over: the machine's check-ins tell of none");
}

#[tokio::test]
async fn controllers_whose_keys_of_bearers_or_limits_differ_say_so_until_they_are_the_same() {
    let Some(here) = fleet().await else { return };
    let mut there = here.beside("").await;
    until_ready_says(&there, |text| text.lines().count() == 1).await;
    there.down().await;
    let config = std::fs::read_to_string(there.config_file()).unwrap();
    std::fs::write(there.config_file(), format!("{config}[limits]\nmachine_per_second = 7\n")).unwrap();
    let keys = there.dir.path().join("bearer-keys.json");
    std::fs::remove_file(&keys).unwrap();
    there.up().await;
    let told = |text: &str| text.contains("bearer_keys is not") && text.contains("[limits] are not");
    until_ready_says(&there, told).await;
    until_ready_says(&here, told).await;

    there.down().await;
    std::fs::write(there.config_file(), config).unwrap();
    std::fs::copy(here.dir.path().join("bearer-keys.json"), keys).unwrap();
    there.up().await;
    until_ready_says(&here, |text| text.lines().count() == 1).await;
    let mut machine = here.enrolled("cinnabar", Class::Nixos).await;
    let bearer = machine.bearer(&here).await;
    assert_eq!(there.get("/cache/nix-cache-info", &bearer).await.status, StatusCode::OK);
}
