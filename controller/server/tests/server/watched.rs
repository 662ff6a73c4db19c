//! What those who watch the controller are told: health, metrics, IDs of requests.

use std::collections::BTreeMap;

use muster_protocol::api;
use muster_protocol::machine::Class;
use reqwest::StatusCode;

use crate::support::{Answer, Fleet, until};

const METRICS: &str = "metrics_listen = \"127.0.0.1:0\"\n";

async fn ask(fleet: &Fleet, path: &str) -> Answer {
    Answer::of(fleet.http.get(fleet.url(path))).await
}

/// The samples of a scrape, by name and labels.
async fn scrape(fleet: &Fleet) -> BTreeMap<String, f64> {
    let address = fleet.server.as_ref().unwrap().metrics_address().unwrap();
    let answer = Answer::of(fleet.http.get(format!("http://{address}{}", api::METRICS))).await;
    assert_eq!(answer.status, StatusCode::OK);
    let kind = answer.headers["content-type"].to_str().unwrap();
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    let samples = answer.text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

#[tokio::test]
async fn health_and_readiness_are_said_in_one_sentence_to_anybody() {
    let fleet = Fleet::start().await;
    for path in [api::HEALTH, api::READY] {
        let answer = ask(&fleet, path).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.text.lines().count(), 1, "{}", answer.text);
    }
    assert_eq!(ask(&fleet, api::METRICS).await.status, StatusCode::NOT_FOUND, "not where strangers are");
}

#[tokio::test]
async fn who_asks_whether_it_is_ready_does_not_keep_the_database_at_work() {
    let fleet = Fleet::start().await;
    ask(&fleet, api::READY).await;
    // The database takes no more changes; the answer is a second old at most.
    let full = fleet.dialect(
        "CREATE TRIGGER no BEFORE UPDATE ON fleet BEGIN SELECT RAISE(ABORT, 'no'); END",
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
         CREATE TRIGGER no BEFORE UPDATE ON fleet FOR EACH STATEMENT EXECUTE FUNCTION no()",
    );
    fleet.try_sql(full).await.unwrap();
    assert_eq!(ask(&fleet, api::READY).await.status, StatusCode::OK, "the answer is given again");
    fleet.clock.forward(2);
    let answer = ask(&fleet, api::READY).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    let said = answer.refused(503, api::ProblemCode::Busy);
    assert!(said.contains("database"), "{said}");
    fleet.try_sql(fleet.dialect("DROP TRIGGER no", "DROP TRIGGER no ON fleet")).await.unwrap();
    fleet.clock.forward(2);
    assert_eq!(ask(&fleet, api::READY).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_loop_that_stands_still_is_told() {
    let fleet = Fleet::start().await;
    fleet.clock.forward(61);
    let answer = ask(&fleet, api::HEALTH).await;
    assert!(answer.refused(503, api::ProblemCode::Busy).contains("restart it"));
}

#[tokio::test]
async fn a_scrape_counts_machines_requests_and_what_ends() {
    let fleet = Fleet::start_with(METRICS).await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    fleet.enrolled("stibnite", Class::Darwin).await;
    fleet.invited("vermilion", Class::Nixos).await;
    fleet.publish(&machine.name, &fleet.generation("cinnabar", Class::Nixos, 1)).await;
    let before = scrape(&fleet).await;
    machine.check_in(&fleet).await;
    let bearer = machine.bearer(&fleet).await;
    let mut stale = machine.checkin(&fleet, 1);
    stale.note = Some("another machine".into());
    machine.send_checkin(&fleet, &stale).await.refused(409, api::ProblemCode::Sequence);
    fleet.clock.forward(11);
    let name = machine.name.clone();
    let poll = fleet.http.get(fleet.url(&api::poll_path(&name, Some("1".parse().unwrap()), 30)));
    let poll = tokio::spawn(poll.bearer_auth(bearer).send());
    until("the poll waits", || fleet.server.as_ref().unwrap().waiting_machines() == 1).await;
    let now = scrape(&fleet).await;
    let more = |name: &str| now[name] - before[name];
    assert!(more("muster_requests_total{to=\"checkin\",status=\"2xx\"}") >= 2.0);
    assert!(more("muster_checkin_duration_seconds_count{outcome=\"accepted\"}") >= 2.0);
    assert!(more("muster_checkin_duration_seconds_count{outcome=\"conflict\"}") >= 1.0);
    assert!(more("muster_refusals_total{code=\"sequence\"}") >= 1.0);
    assert!(more("muster_store_duration_seconds_count{operation=\"write\"}") >= 2.0);
    for (name, value) in [
        ("muster_machines{class=\"nixos\",condition=\"invited\"}", 1.0),
        ("muster_machines{class=\"darwin\",condition=\"no-generation\"}", 1.0),
        ("muster_machines{class=\"nixos\",condition=\"under-attack\"}", 1.0),
        ("muster_machines_behind{generations=\"unknown\"}", 1.0),
        ("muster_clone_alarms", 1.0),
        ("muster_waiting_polls{of=\"machine\"}", 1.0),
        ("muster_signatures_ending", 0.0),
        ("muster_ready", 1.0),
        ("muster_online_key_named", 1.0),
        ("muster_root_version", 1.0),
    ] {
        assert_eq!(now[name], value, "{name}");
    }
    let days = |name: &str| now[name] / 86_400.0;
    assert!((89.9..90.0).contains(&days("muster_signature_seconds_left")));
    assert!((364.0..365.0).contains(&days("muster_root_seconds_left")));
    assert!(now["muster_connections"] >= 1.0 && now["muster_data_free_bytes"] > 0.0);
    poll.abort();
}

/// Ten thousand machines, each with words of its own wherever one may choose them, and a stranger who asks
/// for ever new paths.
#[tokio::test]
async fn a_scrape_is_as_short_for_ten_thousand_machines_and_has_nobodys_words() {
    let fleet = Fleet::start_with(METRICS).await;
    let alone = scrape(&fleet).await.len();
    let machines = "INSERT INTO machines (name, class, system, tags, added_at, enrolment, key, agent,
             enrolled_at, seen_at, seq)
         SELECT 'hostile-' || n, CASE n % 2 WHEN 0 THEN 'nixos' ELSE 'darwin' END, 'x86_64-linux',
             '[\"evil-' || n || '\"]', 1, 1, KEY, 'evil \"} 1 ' || n, 1, n, n FROM NUMBERS";
    let sqlite = "(WITH RECURSIVE all_of (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM all_of WHERE n < 10000)
         SELECT n FROM all_of)";
    let numbers = fleet.dialect(sqlite, "generate_series(1, 10000) AS all_of (n)");
    let key = fleet.dialect("randomblob(32)", "sha256(n::text::bytea)");
    fleet.try_sql(&machines.replace("NUMBERS", numbers).replace("KEY", key)).await.unwrap();
    let attacks = "INSERT INTO attacks (machine, attack, detail, at, received_at)
         SELECT name, 'forged-signature', 'evil of ' || name, 1, 1 FROM machines WHERE seq % 3 = 0";
    fleet.try_sql(attacks).await.unwrap();
    for n in 0..50 {
        let path = format!("/v1/hostile-{n}/%22%7D%0Aevil%20{n}");
        let request = fleet.http.get(fleet.url(&path)).header(api::REQUEST_ID, format!("hostile-{n}"));
        Answer::of(request).await;
        Answer::of(fleet.http.get(fleet.url(&format!("/v1/machines/hostile-{n}/poll"))).bearer_auth("evil"))
            .await;
    }
    fleet.clock.forward(3600);
    let now = scrape(&fleet).await;
    let counted: f64 =
        now.iter().filter(|(name, _)| name.starts_with("muster_machines{")).map(|(_, count)| count).sum();
    assert_eq!(counted, 10_000.0);
    assert!(now.len() < alone + 100, "{alone}, and {}", now.len());
    for name in now.keys() {
        assert!(!name.contains("hostile") && !name.contains("evil"), "{name}");
        assert!(name.len() < 120, "{name}");
    }
}

#[tokio::test]
async fn a_refusal_carries_the_id_that_the_client_gave_its_request_or_one_of_our_own() {
    let fleet = Fleet::start().await;
    let refused = async |id: &str| {
        let request = fleet.http.get(fleet.url("/v1/nothing")).header(api::REQUEST_ID, id);
        let answer = Answer::of(request).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        answer.headers[api::REQUEST_ID].to_str().unwrap().to_owned()
    };
    assert_eq!(refused("deploy-7").await, "deploy-7");
    let (one, two) = (refused("not one word").await, refused("").await);
    assert!(api::request_id(&one).is_some() && one != two, "{one} {two}");
    let good = ask(&fleet, api::FLEET).await;
    assert!(!good.headers.contains_key(api::REQUEST_ID));
}
