//! A fleet with a controller that really listens, and what operators and machines send to it.
#![allow(dead_code)]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use muster_protocol::api::{self, Problem, ProblemCode};
use muster_protocol::checkin::{CheckIn, CheckInReply, Holds, Phase};
use muster_protocol::clock::Clock;
use muster_protocol::enrol::{EnrolRequest, Enrolling, Secret, Token};
use muster_protocol::ids::{Generation, MachineName, Sha256};
use muster_protocol::keys::{Context, SecretKey};
use muster_protocol::machine::{Class, System};
use muster_protocol::operator::{AddMachine, MachineView, Publication, Request, RequestSignature, Session};
use muster_protocol::report::{Batch, Event, EventKind, Stream};
use muster_protocol::request::{Asked, MachineRequest, SignedRequest};
use muster_protocol::target::{Action, Target};
use muster_protocol::tuf::repository::{RootSpec, sign_generation, sign_root};
use muster_server::config::ServerConfig;
use muster_server::server::Server;
use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;
use sqlx::{AssertSqlSafe, Connection as _, Row as _};

#[path = "postgres.rs"]
pub mod postgres;

/// The longest that a test waits for anything.
pub const LIMIT: Duration = Duration::from_secs(30);
pub const START_S: i64 = 1_800_000_000;

/// A clock that the test moves. Setting it back affects only the wall clock.
#[derive(Debug, Default)]
pub struct HandClock {
    wall: AtomicI64,
    awake: AtomicU64,
}

impl HandClock {
    pub fn forward(&self, seconds: i64) {
        self.wall.fetch_add(seconds * 1000, Ordering::SeqCst);
        self.awake.fetch_add(seconds.max(0).unsigned_abs() * 1000, Ordering::SeqCst);
    }
    /// Sets only the wall clock, in Unix milliseconds.
    pub fn set_unix_ms(&self, now: i64) {
        self.wall.store(now - START_S * 1000, Ordering::SeqCst);
    }
}
impl Clock for HandClock {
    fn unix_ms(&self) -> i64 {
        START_S * 1000 + self.wall.load(Ordering::SeqCst)
    }
    fn awake(&self) -> Duration {
        Duration::from_millis(self.awake.load(Ordering::SeqCst))
    }
}

pub struct Fleet {
    pub dir: tempfile::TempDir,
    pub clock: Arc<HandClock>,
    pub root_key: SecretKey,
    pub operator: SecretKey,
    pub online: SecretKey,
    pub root: Vec<u8>,
    pub server: Option<Server>,
    pub http: reqwest::Client,
    base: String,
    nonce: AtomicU64,
    /// Its database, if the tests run on PostgreSQL.
    pub postgres: Option<postgres::Place>,
}

impl Fleet {
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// Starts with extra lines in `controller.toml`.
    pub async fn start_with(more: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let key = || SecretKey::generate().unwrap();
        let (root_key, operator, online) = (key(), key(), key());
        let dir = tempfile::tempdir().unwrap();
        let root = make_root(1, &root_key, &[&operator], &online);
        std::fs::create_dir(dir.path().join("root")).unwrap();
        std::fs::write(dir.path().join("root/1.root.json"), &root).unwrap();
        let pem = dir.path().join("online.pem");
        std::fs::write(&pem, online.to_pem().unwrap().as_bytes()).unwrap();
        std::fs::set_permissions(&pem, std::fs::Permissions::from_mode(0o600)).unwrap();
        let postgres = postgres::Place::new().await;
        let database = postgres.as_ref().map(postgres::Place::setting).unwrap_or_default();
        let config = format!(
            "listen = \"127.0.0.1:0\"\nurl = \"http://127.0.0.1:1\"\ndata = \"data\"\nroot = \"root\"\n\
             online_key = \"online.pem\"\n{database}{more}"
        );
        std::fs::write(dir.path().join("controller.toml"), config).unwrap();
        let mut fleet = Self {
            dir,
            clock: Arc::default(),
            root_key,
            operator,
            online,
            root,
            server: None,
            http: reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap(),
            base: String::new(),
            nonce: AtomicU64::new(0),
            postgres,
        };
        fleet.up().await;
        fleet
    }

    /// Another controller on the same database, with a folder of its own and extra lines in its
    /// `controller.toml`.
    pub async fn beside(&self, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        for file in ["root/1.root.json", "online.pem", "controller.toml", "bearer-keys.json"] {
            std::fs::copy(self.dir.path().join(file), dir.path().join(file)).unwrap();
        }
        let config = std::fs::read_to_string(dir.path().join("controller.toml")).unwrap();
        std::fs::write(dir.path().join("controller.toml"), format!("{config}{more}")).unwrap();
        let mut beside = Self {
            dir,
            clock: self.clock.clone(),
            root_key: self.root_key.clone(),
            operator: self.operator.clone(),
            online: self.online.clone(),
            root: self.root.clone(),
            server: None,
            http: self.http.clone(),
            base: String::new(),
            nonce: AtomicU64::new(1 << 32),
            postgres: self.postgres.clone(),
        };
        beside.up().await;
        beside
    }

    pub async fn up(&mut self) {
        let config = ServerConfig::load(&self.config_file()).unwrap();
        let server = Server::start_at(config, self.clock.clone()).await.unwrap();
        self.base = format!("http://{}", server.address());
        self.server = Some(server);
    }

    pub async fn down(&mut self) {
        self.server.take().unwrap().stop().await.unwrap();
    }

    pub fn config_file(&self) -> PathBuf {
        self.dir.path().join("controller.toml")
    }
    pub fn address(&self) -> std::net::SocketAddr {
        self.server.as_ref().unwrap().address()
    }
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }
    pub fn fleet_id(&self) -> Sha256 {
        Sha256::of(&self.root)
    }
    pub fn now_s(&self) -> i64 {
        self.clock.unix_seconds()
    }

    /// The signature header of `key` for a request, made now.
    pub fn signature(&self, key: &SecretKey, method: &Method, path: &str, body: &[u8]) -> RequestSignature {
        let fleet = self.fleet_id();
        let request = Request { audience: &fleet, method: method.as_str(), path, body };
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&self.nonce.fetch_add(1, Ordering::SeqCst).to_be_bytes());
        RequestSignature::make(key, request, self.now_s(), nonce)
    }

    pub async fn send_signed(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        signature: &RequestSignature,
    ) -> Answer {
        let header = serde_json::to_string(signature).unwrap();
        let request = self.http.request(method, self.url(path)).header(api::OPERATOR_SIGNATURE, header);
        Answer::of(request.body(body)).await
    }
    /// A request signed by the operator.
    pub async fn operate(&self, method: Method, path: &str, body: Vec<u8>) -> Answer {
        let signature = self.signature(&self.operator, &method, path, &body);
        self.send_signed(method, path, body, &signature).await
    }
    pub async fn view(&self, machine: &str) -> MachineView {
        self.operate(Method::GET, &format!("{}/{machine}", api::OPERATOR_MACHINES), vec![]).await.good()
    }
    pub async fn session(&self) -> String {
        let session: Session = self.operate(Method::POST, api::OPERATOR_SESSION, vec![]).await.good();
        session.bearer
    }

    pub fn token(&self, machine: &str, class: Class) -> Token {
        Token {
            url: self.base.clone(),
            machine: machine.parse().unwrap(),
            class,
            fleet: self.fleet_id(),
            root: self.fleet_id(),
            root_version: 1,
            lowest_generation: Generation::FIRST,
            expires: self.now_s() + 3600,
            secret: Secret::generate().unwrap(),
            tls_ca: None,
        }
    }
    pub async fn add(&self, token: &Token, replace: bool) -> Answer {
        let add = AddMachine {
            machine: token.machine.clone(),
            class: token.class,
            system: system(token.class),
            tags: BTreeSet::from(["lab".parse().unwrap()]),
            token: token.secret.token_id(),
            check_key: token.secret.check_key(),
            expires: token.expires,
            replace,
        };
        self.operate(Method::POST, api::OPERATOR_MACHINES, serde_json::to_vec(&add).unwrap()).await
    }
    pub async fn invited(&self, machine: &str, class: Class) -> Token {
        let token = self.token(machine, class);
        self.add(&token, false).await.good::<MachineView>();
        token
    }
    pub async fn post(&self, path: &str, body: &impl serde::Serialize) -> Answer {
        Answer::of(self.http.post(self.url(path)).body(serde_json::to_vec(body).unwrap())).await
    }
    pub async fn enrolled(&self, machine: &str, class: Class) -> Machine {
        let token = self.invited(machine, class).await;
        self.enrolled_with(token).await
    }
    pub async fn enrolled_with(&self, token: Token) -> Machine {
        let key = SecretKey::generate().unwrap();
        let answer = self.post(api::ENROL, &enrol_request(&token, &key)).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        Machine { name: token.machine, class: token.class, key, seq: 0, fleet: self.fleet_id() }
    }
    pub async fn get(&self, path: &str, bearer: &str) -> Answer {
        Answer::of(self.http.get(self.url(path)).bearer_auth(bearer)).await
    }
    pub async fn publish(&self, machine: &MachineName, publication: &Publication) -> Answer {
        let path = format!("{}/generations", api::operator_machine(machine));
        self.operate(Method::POST, &path, serde_json::to_vec(publication).unwrap()).await
    }
    /// The next generation of a machine, signed by the operator.
    pub fn generation(&self, machine: &str, class: Class, number: u64) -> Publication {
        self.generation_by(&self.operator, &target(machine, class, number))
    }
    pub fn generation_by(&self, key: &SecretKey, target: &Target) -> Publication {
        sign_generation(target, self.now_s() + 90 * 86_400, &[key]).unwrap()
    }
    pub async fn send(&self, path: &str, signature: String, body: Vec<u8>) -> Answer {
        let request = self.http.post(self.url(path)).header(api::MACHINE_SIGNATURE, signature);
        Answer::of(request.body(body)).await
    }
    /// The first operator's request to a machine.
    pub fn asks(&self, machine: &MachineName, asked: Asked) -> SignedRequest {
        let fleet = self.fleet_id();
        MachineRequest::new(fleet, machine.clone(), asked, self.now_s(), 3600)
            .unwrap()
            .sign(&self.operator)
            .unwrap()
    }
    pub async fn ask(&self, machine: &MachineName, asked: &SignedRequest) -> Answer {
        let path = format!("{}/requests", api::operator_machine(machine));
        self.operate(Method::POST, &path, serde_json::to_vec(asked).unwrap()).await
    }
    /// Reads the database directly.
    pub async fn sql(&self, query: &'static str) -> String {
        if let Some(postgres) = &self.postgres {
            return postgres.sql(query).await;
        }
        let row = sqlx::query(query).fetch_one(&mut self.sqlite().await.unwrap()).await.unwrap();
        row.try_get::<String, _>(0).or_else(|_| row.try_get::<i64, _>(0).map(|n| n.to_string())).unwrap()
    }
    /// What a thief who owns the controller's folder can do to its database: neither the API nor the store
    /// creates these states.
    pub async fn try_sql(&self, query: &str) -> Result<(), sqlx::Error> {
        if let Some(postgres) = &self.postgres {
            return postgres.try_sql(query).await;
        }
        sqlx::query(AssertSqlSafe(query.to_owned())).execute(&mut self.sqlite().await?).await.map(drop)
    }
    async fn sqlite(&self) -> Result<sqlx::SqliteConnection, sqlx::Error> {
        let file = self.dir.path().join("data/muster.db");
        sqlx::SqliteConnection::connect_with(&sqlx::sqlite::SqliteConnectOptions::new().filename(file)).await
    }
    /// The statement of the database that the tests run on.
    pub fn dialect<'a>(&self, sqlite: &'a str, postgres: &'a str) -> &'a str {
        if self.postgres.is_some() { postgres } else { sqlite }
    }
    /// A root that was not published here, where the controller's roots are.
    pub async fn put_root(&self, version: u64, root: &[u8]) {
        let Some(postgres) = &self.postgres else {
            let path = self.dir.path().join(format!("root/{version}.root.json"));
            return std::fs::write(path, root).unwrap();
        };
        let bytes = muster_protocol::ids::to_hex(root);
        let put = format!(
            "DELETE FROM roots WHERE version = {version};
             INSERT INTO roots (version, document) VALUES ({version}, decode('{bytes}', 'hex'))"
        );
        postgres.try_sql(&put).await.unwrap();
    }
    pub async fn kept_root(&self, version: u64) -> Vec<u8> {
        let Some(postgres) = &self.postgres else {
            return std::fs::read(self.dir.path().join(format!("root/{version}.root.json"))).unwrap();
        };
        let query = format!("SELECT convert_from(document, 'UTF8') FROM roots WHERE version = {version}");
        postgres.sql(&query).await.into_bytes()
    }
    /// Every byte under the data folder, and every row of a database elsewhere as text.
    pub async fn data_bytes(&self) -> Vec<u8> {
        let files =
            std::fs::read_dir(self.dir.path().join("data")).unwrap().map(|entry| entry.unwrap().path());
        let files = files.filter(|path| path.is_file()).flat_map(|path| std::fs::read(path).unwrap());
        let mut bytes: Vec<u8> = files.collect();
        if let Some(postgres) = &self.postgres {
            bytes.extend(postgres.all_rows().await.into_bytes());
        }
        bytes
    }
}

pub fn make_root(
    version: u64,
    root_key: &SecretKey,
    operators: &[&SecretKey],
    online: &SecretKey,
) -> Vec<u8> {
    let spec = RootSpec {
        version,
        epoch: Default::default(),
        expires: START_S + 365 * 86_400,
        root: (vec![root_key.public()], 1),
        operators: (operators.iter().map(|key| key.public()).collect(), 1),
        online: vec![online.public()],
    };
    sign_root(&spec, &[root_key]).unwrap()
}

pub fn system(class: Class) -> System {
    match class {
        Class::Nixos => "x86_64-linux".parse().unwrap(),
        Class::Darwin => "aarch64-darwin".parse().unwrap(),
    }
}

pub fn target(machine: &str, class: Class, number: u64) -> Target {
    Target {
        rollout: None,
        machine: machine.parse().unwrap(),
        class,
        generation: Generation::new(number).unwrap(),
        system: system(class),
        derivation: "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv".parse().unwrap(),
        output: "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system".parse().unwrap(),
        action: Action::Switch,
        deadline_seconds: 300,
        checks: vec![],
        trusted_nix_keys: vec![],
        policy: muster_protocol::policy::Policy::default(),
        requires: vec![],
        message: None,
        evaluation: Default::default(),
    }
}

pub fn enrol_request(token: &Token, key: &SecretKey) -> EnrolRequest {
    let enrolling =
        Enrolling { system: system(token.class), age: "age1example".into(), agent: "0.1.0".into() };
    EnrolRequest::make(token, key, enrolling)
}

/// An enrolled machine.
#[derive(Clone)]
pub struct Machine {
    pub name: MachineName,
    pub class: Class,
    pub key: SecretKey,
    pub seq: u64,
    pub fleet: Sha256,
}

impl Machine {
    pub fn checkin(&self, fleet: &Fleet, seq: u64) -> CheckIn {
        CheckIn {
            understands: vec![],
            signing: None,
            vouch: None,
            awaits: None,
            audience: self.fleet,
            machine: self.name.clone(),
            class: self.class,
            system: system(self.class),
            boot_id: "boot".into(),
            seq,
            clock: fleet.clock.unix_ms(),
            agent: "0.1.0".into(),
            runs: None,
            holds: Holds::default(),
            phase: Phase::Idle,
            phase_generation: None,
            note: None,
            refused: None,
            health: muster_protocol::checkin::Health::default(),
            new_key: None,
            age: None,
            followed: vec![],
            shown: None,
            session: None,
        }
    }
    pub async fn send_checkin(&self, fleet: &Fleet, checkin: &CheckIn) -> Answer {
        let body = serde_json::to_vec(checkin).unwrap();
        fleet.send(api::CHECKIN, self.key.sign(Context::CheckIn, &body).hex(), body).await
    }
    /// Checks in with the next number.
    pub async fn check_in(&mut self, fleet: &Fleet) -> CheckInReply {
        self.seq += 1;
        self.send_checkin(fleet, &self.checkin(fleet, self.seq)).await.good()
    }
    pub async fn bearer(&mut self, fleet: &Fleet) -> String {
        self.check_in(fleet).await.bearer
    }
    pub async fn send_raw_batch(&self, fleet: &Fleet, body: String) -> Answer {
        let signature = self.key.sign(Context::Reports, body.as_bytes()).hex();
        fleet.send(api::REPORTS, signature, body.into_bytes()).await
    }
    pub async fn report(&self, fleet: &Fleet, oldest: u64, events: Vec<Event>) -> Answer {
        self.report_in(fleet, None, oldest, events).await
    }
    pub async fn report_in(
        &self,
        fleet: &Fleet,
        stream: Option<Stream>,
        oldest: u64,
        events: Vec<Event>,
    ) -> Answer {
        let batch = Batch { machine: self.name.clone(), stream, oldest, events };
        self.send_raw_batch(fleet, serde_json::to_string(&batch).unwrap()).await
    }
    pub fn tuf(&self, file: &str) -> String {
        format!("{}/{file}", api::tuf_path(&self.name))
    }
}

pub fn event(seq: u64, generation: Option<u64>, kind: EventKind) -> Event {
    Event { seq, at: 1, generation: generation.map(|number| Generation::new(number).unwrap()), kind }
}

/// A response.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Answer {
    pub async fn of(request: reqwest::RequestBuilder) -> Self {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        Self { status, headers, text: String::from_utf8_lossy(&response.bytes().await.unwrap()).into_owned() }
    }
    /// The same, but the connection may be refused.
    pub async fn of_or_none(request: reqwest::RequestBuilder) -> Option<Self> {
        let response = request.send().await.ok()?;
        let (status, headers) = (response.status(), response.headers().clone());
        Some(Self {
            status,
            headers,
            text: String::from_utf8_lossy(&response.bytes().await.ok()?).into_owned(),
        })
    }
    /// Asserts success and parses the body.
    #[track_caller]
    pub fn good<T: DeserializeOwned>(self) -> T {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text);
        serde_json::from_str(&self.text).unwrap()
    }
    /// Asserts a refusal of this kind; returns its sentence.
    #[track_caller]
    pub fn refused(self, status: u16, code: ProblemCode) -> String {
        let problem: Problem = serde_json::from_str(&self.text).expect("every refusal is a Problem in JSON");
        assert_eq!((self.status.as_u16(), problem.code), (status, code), "{}", problem.message);
        problem.message
    }
}

/// Polls until the condition holds.
pub async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let look = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, look).await.unwrap_or_else(|_| panic!("it never came about: {what}"));
}

/// A check-in that brings `new`, which becomes the machine's key once it is accepted.
pub async fn rotate(fleet: &Fleet, machine: &mut Machine, new: &SecretKey) -> Answer {
    machine.seq += 1;
    let checkin = CheckIn { new_key: Some(new.public()), ..machine.checkin(fleet, machine.seq) };
    let body = serde_json::to_vec(&checkin).unwrap();
    let by_old = machine.key.sign(Context::CheckIn, &body).hex();
    let by_new = new.sign(Context::KeyRotation, &body).hex();
    let answer = send_both(fleet, by_old, by_new, body).await;
    if answer.status == StatusCode::OK {
        machine.key = new.clone();
    }
    answer
}

/// A check-in with two signatures, valid or not.
pub async fn send_both(fleet: &Fleet, by_old: String, by_new: String, body: Vec<u8>) -> Answer {
    let request = fleet.http.post(fleet.url(api::CHECKIN)).header(api::MACHINE_SIGNATURE, by_old);
    Answer::of(request.header(api::MACHINE_NEW_SIGNATURE, by_new).body(body)).await
}
