//! Today's agent at a controller of version 0.1.0: one that answers as that one was recorded to.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use muster_agent::client::Client;
use muster_agent::config::Config;
use muster_agent::identity::{Enrolment, Identity};
use muster_agent::trust::Trust;
use muster_protocol::api;
use muster_protocol::checkin::{CheckIn, Holds, Phase};
use muster_protocol::keys::SecretKey;
use muster_protocol::report::Batch;
use muster_protocol::witness::AgeClaim;
use serde::Deserialize;

use super::controller::Controller;

/// A request and its reply.
#[derive(Deserialize)]
struct Exchange {
    /// Unix milliseconds.
    at: i64,
    path: String,
    body: String,
    status: u16,
    reply: String,
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/0.1.0")
}

/// What one machine asked of the recorded controller.
fn exchanges(machine: &str) -> Vec<Exchange> {
    let text = std::fs::read_to_string(fixture().join("exchanges.jsonl")).unwrap();
    let all = text.lines().map(|line| serde_json::from_str::<Exchange>(line).unwrap());
    let own = format!("/v1/machines/{machine}/");
    let named = format!("\"machine\":\"{machine}\"");
    all.filter(|one| {
        let sent = [api::CHECKIN, api::REPORTS].contains(&one.path.as_str()) && one.body.contains(&named);
        sent || one.path.starts_with(&own)
    })
    .collect()
}

/// Answers each path with its recorded replies, one after the other, and then with the last again.
async fn replaying(machine: &str) -> Controller {
    let controller = Controller::start().await;
    let mut replies = BTreeMap::<String, VecDeque<(u16, String)>>::new();
    for one in exchanges(machine) {
        let path = one.path.split('?').next().unwrap().to_owned();
        replies.entry(path).or_default().push_back((one.status, one.reply));
    }
    for (path, recorded) in replies {
        let recorded = Mutex::new(recorded);
        controller.answer(&path, move |_| {
            let mut recorded = recorded.lock().unwrap();
            let next = recorded.pop_front().unwrap();
            if recorded.is_empty() {
                recorded.push_back(next.clone());
            }
            (StatusCode::from_u16(next.0).unwrap(), next.1).into_response()
        });
    }
    controller
}

/// The recorded machine as it was when it had enrolled, with its controller at another address.
fn enrolled(machine: &str, url: &str) -> (tempfile::TempDir, Config, Identity) {
    let (from, state) = (fixture().join(machine).join("state"), tempfile::tempdir().unwrap());
    std::fs::create_dir(state.path().join("tuf")).unwrap();
    for file in ["machine.pem", "age.txt", "tuf/root.json"] {
        let to = state.path().join(file);
        std::fs::copy(from.join(file), &to).unwrap();
        let own = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&to, own).unwrap();
    }
    let enrolment = std::fs::read(from.join("enrolment.json")).unwrap();
    let enrolment = Enrolment { url: url.to_owned(), ..serde_json::from_slice(&enrolment).unwrap() };
    Identity::save(state.path(), &enrolment).unwrap();
    let mut config = Config::parse("", "/nowhere/agent.toml".into()).unwrap();
    config.state_dir = state.path().to_path_buf();
    let identity = Identity::load(&config).unwrap().unwrap();
    (state, config, identity)
}

/// All that today's agent may say.
fn check_in(identity: &Identity, seq: u64) -> Vec<u8> {
    let check_in = CheckIn {
        understands: vec![],
        signing: None,
        vouch: None,
        awaits: None,
        audience: identity.fleet,
        machine: identity.machine.clone(),
        class: identity.class,
        system: identity.system.clone(),
        boot_id: "b".into(),
        seq,
        clock: 1,
        agent: "0.3.0".into(),
        runs: None,
        holds: Holds::default(),
        phase: Phase::Idle,
        phase_generation: None,
        note: None,
        refused: None,
        health: Default::default(),
        new_key: None,
        age: Some(AgeClaim { recipient: identity.age.clone(), proof: None }),
        followed: vec![],
        shown: None,
        session: None,
    };
    serde_json::to_vec(&check_in).unwrap()
}

#[tokio::test]
async fn todays_agent_is_served_by_a_controller_of_version_0_1_0() {
    for machine in ["cinnabar", "stibnite"] {
        let controller = replaying(machine).await;
        let (_state, config, identity) = enrolled(machine, &controller.url);
        let client = Client::new(&identity).unwrap();
        let mut trust = Trust::open(&config, &identity).unwrap();
        let recorded = exchanges(machine);
        let (mut generations, mut seq, mut nothing_yet) = (vec![], 0, true);
        for one in &recorded {
            let path = one.path.split('?').next().unwrap();
            if path == api::CHECKIN {
                seq += 1;
                let reply = client.check_in(check_in(&identity, seq), None, None).await.unwrap();
                assert!(!reply.bearer.is_empty() && reply.poll_seconds > 0);
            } else if path == api::REPORTS {
                let batch: Batch = serde_json::from_str(&one.body).unwrap();
                let accepted = client.report(&batch).await.unwrap();
                assert_eq!(accepted.stream, batch.stream);
            } else if path.ends_with("/poll") {
                generations.extend(client.poll(None, 1, 1).await.unwrap().generation.map(|it| it.get()));
            } else if path.ends_with("/timestamp.json") {
                let taken = trust.refresh(&client, one.at / 1000).await.unwrap();
                let number = taken.map(|target| target.generation.get());
                assert_eq!(number, (!nothing_yet).then_some(1), "{machine}");
                nothing_yet = false;
            }
        }
        assert_eq!(generations, [1, 2], "{machine}");

        // What it held in the end, with the timestamp that led it there.
        let tuf = fixture().join(machine).join("state/tuf/timestamp.json");
        let timestamp = std::fs::read(tuf).unwrap();
        let path = format!("{}/timestamp.json", api::tuf_path(&identity.machine));
        controller.answer(&path, move |_| timestamp.clone().into_response());
        let last = recorded.last().unwrap().at / 1000;
        let taken = trust.refresh(&client, last).await.unwrap().unwrap();
        assert_eq!((taken.generation.get(), taken.class), (3, identity.class), "{machine}");
        // Every request of today's is one that the recorded controller knew.
        for seen in controller.seen() {
            let path = seen.path.split('?').next().unwrap();
            let known = recorded.iter().any(|one| one.path.split('?').next() == Some(path));
            assert!(known || path.ends_with("/2.root.json"), "{path}");
        }
        let key: &SecretKey = &identity.key;
        assert_eq!(key.public(), client.key().unwrap().public());
    }
}
