//! The folder and the requests of an earlier version's controller: today's controller reads the folder and
//! gives the same replies.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use muster_protocol::api;
use muster_server::config::ServerConfig;
use muster_server::database;
use muster_server::server::Server;
use reqwest::Method;
use serde::Deserialize;
use serde_json::Value;

use crate::support::postgres::Place;
use crate::support::{Answer, HandClock, LIMIT, START_S};

/// A request and its reply.
#[derive(Deserialize)]
struct Exchange {
    /// Whether it came after the folder was copied, so that the copy does not include it.
    after_the_copy: bool,
    /// Unix milliseconds.
    at: i64,
    method: String,
    path: String,
    headers: std::collections::BTreeMap<String, String>,
    body: String,
    status: u16,
    reply: String,
}

pub fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/0.1.0")
}

fn exchanges() -> Vec<Exchange> {
    let text = fs::read_to_string(fixture().join("exchanges.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Today's server with a copy of the folder.
struct Recorded {
    server: Server,
    clock: Arc<HandClock>,
    http: reqwest::Client,
    _folder: tempfile::TempDir,
}

impl Recorded {
    async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (from, folder) = (fixture().join("controller"), tempfile::tempdir().unwrap());
        let to = folder.path();
        fs::create_dir_all(to.join("data")).unwrap();
        fs::create_dir_all(to.join("root")).unwrap();
        for file in ["root/1.root.json", "root/2.root.json", "online.pem"] {
            fs::copy(from.join(file), to.join(file)).unwrap();
        }
        fs::set_permissions(to.join("online.pem"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::copy(from.join("muster.db"), to.join("data/muster.db")).unwrap();
        let settings = fs::read_to_string(from.join("controller.toml")).unwrap();
        let mut settings: toml::Table = settings.parse().unwrap();
        settings.insert("listen".into(), "127.0.0.1:0".into());
        fs::write(to.join("controller.toml"), settings.to_string()).unwrap();
        let clock = Arc::new(HandClock::default());
        clock.forward(exchanges().last().unwrap().at / 1000 - START_S);
        let mut config = ServerConfig::load(&to.join("controller.toml")).unwrap();
        if let Some(postgres) = Place::new().await {
            // Copied there first.
            let shared = format!("{}{settings}", postgres.setting());
            fs::write(to.join("shared.toml"), shared).unwrap();
            database::copy(&to.join("controller.toml"), &to.join("shared.toml")).await.unwrap();
            config = ServerConfig::load(&to.join("shared.toml")).unwrap();
        }
        let server = Server::start_at(config, clock.clone()).await.unwrap();
        let http = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
        Self { server, clock, http, _folder: folder }
    }

    async fn send(&self, exchange: &Exchange) -> Answer {
        self.clock.set_unix_ms(exchange.at);
        let method: Method = exchange.method.parse().unwrap();
        let url = format!("http://{}{}", self.server.address(), exchange.path);
        let mut request = self.http.request(method, url).body(exchange.body.clone());
        for (name, value) in &exchange.headers {
            request = request.header(name, value);
        }
        Answer::of(request).await
    }
}

/// Each machine's last exchange on a path.
fn last_of_each_machine<'a>(all: &'a [Exchange], path: &str) -> Vec<&'a Exchange> {
    let machine =
        |exchange: &Exchange| serde_json::from_str::<Value>(&exchange.body).unwrap()["machine"].clone();
    let mut found: Vec<&Exchange> = Vec::new();
    for exchange in all.iter().filter(|exchange| exchange.path == path && exchange.status == 200) {
        found.retain(|other| machine(other) != machine(exchange));
        found.push(exchange);
    }
    found
}

#[tokio::test]
async fn an_earlier_versions_machines_hear_the_same_when_they_repeat_what_they_said_last() {
    let (recorded, all) = (Recorded::start().await, exchanges());
    for path in [api::CHECKIN, api::REPORTS] {
        let last = last_of_each_machine(&all, path);
        assert_eq!(last.len(), 2, "{path}");
        for exchange in last {
            let answer = recorded.send(exchange).await;
            assert_eq!(
                (answer.status.as_u16(), answer.text.as_str()),
                (200, exchange.reply.as_str()),
                "{path}"
            );
        }
    }
}

#[tokio::test]
async fn operators_are_shown_the_same_of_an_earlier_versions_database() {
    let (recorded, all) = (Recorded::start().await, exchanges());
    let reads: Vec<_> = all.iter().filter(|exchange| exchange.after_the_copy).collect();
    assert!(reads.len() >= 12, "{}", reads.len());
    for exchange in reads {
        let answer = recorded.send(exchange).await;
        let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(answer.status.as_u16(), exchange.status, "{}: {}", exchange.path, answer.text);
        assert_eq!(read(&answer.text), read(&exchange.reply), "{}", exchange.path);
    }
}
