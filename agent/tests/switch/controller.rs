//! A controller with real signatures and the real clock, whose machine can be cut off from it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use muster_agent::identity::{Enrolment, Identity, Keys};
use muster_protocol::api;
use muster_protocol::checkin::{CheckIn, CheckInReply, Phase, PollReply};
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::{Generation, MachineName, Sha256};
use muster_protocol::keys::SecretKey;
use muster_protocol::report::{Accepted, Batch, Event, EventKind};
use muster_protocol::target::Target;
use muster_protocol::tuf::repository::{RootSpec, sign_generation, sign_root, sign_timestamp};
use tokio::sync::Notify;

use super::machine::Machine;

const DAY: i64 = 86_400;

#[derive(Default)]
struct Inner {
    files: BTreeMap<String, Vec<u8>>,
    latest: Option<Generation>,
    events: Vec<Event>,
    check_ins: Vec<CheckIn>,
    cut: bool,
    revoked: bool,
    /// Requests that nobody answered.
    refused: u32,
    /// Stores reports and closes the connection instead of answering.
    lose_replies: u32,
    timestamp: u64,
}

#[derive(Clone)]
pub struct Controller {
    inner: Arc<Mutex<Inner>>,
    published: Arc<Notify>,
    operator: Arc<SecretKey>,
    online: Arc<SecretKey>,
    root: Arc<Vec<u8>>,
    pub machine: MachineName,
    pub url: String,
}

impl Controller {
    /// Starts one on a thread of its own, which ends with the test.
    pub fn start() -> Self {
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                let controller = Self::at(format!("http://{}", listener.local_addr().unwrap()));
                let app = Router::new().fallback(serve).with_state(controller.clone());
                sender.send(controller).unwrap();
                axum::serve(listener, app).await.unwrap();
            });
        });
        receiver.recv().unwrap()
    }

    fn at(url: String) -> Self {
        let [operator, online, root_key] = [(); 3].map(|()| SecretKey::generate().unwrap());
        let spec = RootSpec {
            version: 1,
            epoch: Default::default(),
            expires: SystemClock::new().unix_seconds() + 365 * DAY,
            root: (vec![root_key.public()], 1),
            operators: (vec![operator.public()], 1),
            online: vec![online.public()],
        };
        let root = sign_root(&spec, &[&root_key]).unwrap();
        Self {
            inner: Arc::default(),
            published: Arc::default(),
            operator: Arc::new(operator),
            online: Arc::new(online),
            root: Arc::new(root),
            machine: "m".parse().unwrap(),
            url,
        }
    }

    /// Makes `machine` a member of this fleet.
    pub fn enrol(&self, machine: &Machine) {
        let state = &machine.config.state_dir;
        std::fs::create_dir_all(state.join("tuf")).unwrap();
        std::fs::write(state.join("tuf/root.json"), self.root.as_slice()).unwrap();
        Keys::load_or_make(state).unwrap();
        let enrolment = Enrolment {
            version: 1,
            machine: self.machine.clone(),
            class: machine.class,
            system: machine.config.stand_in.as_ref().unwrap().system.clone(),
            fleet: Sha256::of(&self.root),
            url: self.url.clone(),
            lowest_generation: Generation::FIRST,
            tls_ca: None,
            enrolled_at: 1,
        };
        Identity::save(state, &enrolment).unwrap();
    }

    pub fn publish(&self, target: &Target) {
        let expires = SystemClock::new().unix_seconds() + DAY;
        let publication = sign_generation(target, expires, &[&*self.operator]).unwrap();
        let base = api::tuf_path(&self.machine);
        let n = target.generation;
        let mut inner = self.inner.lock().unwrap();
        inner.timestamp += 1;
        let snapshot = publication.snapshot.as_bytes();
        let timestamp =
            sign_timestamp(&self.machine, snapshot, inner.timestamp, expires, &*self.online).unwrap();
        inner.files.insert(format!("{base}/timestamp.json"), timestamp);
        inner.files.insert(format!("{base}/{n}.snapshot.json"), snapshot.to_vec());
        inner.files.insert(format!("{base}/{n}.targets.json"), publication.targets.as_bytes().to_vec());
        let hash = Sha256::of(publication.target.as_bytes());
        inner.files.insert(api::target_path(&self.machine, &hash), publication.target.as_bytes().to_vec());
        inner.latest = Some(n);
        drop(inner);
        self.published.notify_waiters();
    }

    /// From here on nobody answers, or somebody does again.
    pub fn cut(&self, cut: bool) {
        self.inner.lock().unwrap().cut = cut;
        self.published.notify_waiters();
    }
    /// From here on this machine is told that it was revoked.
    pub fn revoke(&self) {
        self.inner.lock().unwrap().revoked = true;
        self.published.notify_waiters();
    }
    /// Ends the waiting polls, with nothing new.
    pub fn wake(&self) {
        self.published.notify_waiters();
    }
    pub fn refused(&self) -> u32 {
        self.inner.lock().unwrap().refused
    }
    pub fn lose_replies(&self, count: u32) {
        self.inner.lock().unwrap().lose_replies = count;
    }
    pub fn events(&self) -> Vec<Event> {
        self.inner.lock().unwrap().events.clone()
    }
    pub fn check_ins(&self) -> Vec<CheckIn> {
        self.inner.lock().unwrap().check_ins.clone()
    }
    pub fn phases(&self) -> Vec<Phase> {
        let mut phases: Vec<Phase> = self.check_ins().into_iter().map(|check_in| check_in.phase).collect();
        phases.dedup();
        phases
    }

    /// The events of a generation by name, without progress and later events; I7: numbered without gaps.
    pub fn names(&self, generation: u64) -> Vec<&'static str> {
        let events = self.events();
        for (place, event) in events.iter().enumerate() {
            assert_eq!(event.seq, place as u64 + 1, "every report arrives once and in order");
        }
        let of = events.iter().filter(|event| event.generation.map(Generation::get) == Some(generation));
        of.map(|event| name(&event.kind)).filter(|name| !["progress", "summary"].contains(name)).collect()
    }

    /// The last event of a generation with this name.
    pub fn last(&self, generation: u64, wanted: &str) -> Option<EventKind> {
        let events = self.events();
        let of = events.into_iter().filter(|event| event.generation.map(Generation::get) == Some(generation));
        of.map(|event| event.kind).rfind(|kind| name(kind) == wanted)
    }
}

pub fn name(kind: &EventKind) -> &'static str {
    match kind {
        EventKind::Enrolled { .. } => "enrolled",
        EventKind::AgentStarted { .. } => "agent-started",
        EventKind::Verified => "verified",
        EventKind::Fetched { .. } => "fetched",
        EventKind::Built { .. } => "built",
        EventKind::Activating { .. } => "activating",
        EventKind::Activated { .. } => "activated",
        EventKind::Confirmed { .. } => "confirmed",
        EventKind::RolledBack { .. } => "rolled-back",
        EventKind::Failed { .. } => "failed",
        EventKind::NeedsHuman { .. } => "needs-human",
        EventKind::Refused { .. } => "refused",
        EventKind::KeyRotated { .. } => "key-rotated",
        EventKind::Drift { .. } => "drift",
        EventKind::Deferred { .. } => "deferred",
        EventKind::Progress(_) => "progress",
        EventKind::Summary(_) => "summary",
        EventKind::HookFailed { .. } => "hook-failed",
        EventKind::Retried { .. } => "retried",
        EventKind::Rebooting { .. } => "rebooting",
        EventKind::Dropped { .. } => "dropped",
        EventKind::Unknown => "unknown",
    }
}

async fn serve(State(controller): State<Controller>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 4 << 20).await.unwrap();
    let gone = || StatusCode::SERVICE_UNAVAILABLE.into_response();
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    if path.ends_with("/poll") {
        controller.poll(&query).await;
    }
    let mut inner = controller.inner.lock().unwrap();
    if inner.cut {
        inner.refused += 1;
        return gone();
    }
    if inner.revoked {
        let problem = r#"{"code":"revoked","message":"machine m was revoked: an operator may add it anew"}"#;
        return (StatusCode::FORBIDDEN, problem).into_response();
    }
    let json = |value: serde_json::Value| value.to_string().into_response();
    match path.as_str() {
        api::CHECKIN => {
            let check_in: CheckIn = serde_json::from_slice(&body).unwrap();
            let last = inner.check_ins.last();
            // An unanswered check-in is repeated, to the byte.
            if last != Some(&check_in) {
                assert!(last.is_none_or(|last| last.seq < check_in.seq), "seq goes up");
                inner.check_ins.push(check_in);
            }
            let reply = CheckInReply {
                bearer: "bearer".into(),
                bearer_expires_in: 3600,
                generation: inner.latest,
                poll_seconds: 55,
                reports_through: inner.events.last().map_or(0, |event| event.seq),
                ..CheckInReply::default()
            };
            json(serde_json::to_value(reply).unwrap())
        }
        api::REPORTS => inner.report(&body),
        path if path.ends_with("/poll") => json(
            serde_json::to_value(PollReply { generation: inner.latest, check_in: false, files: None })
                .unwrap(),
        ),
        path => match inner.files.get(path) {
            Some(bytes) => bytes.clone().into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        },
    }
}

impl Inner {
    fn report(&mut self, body: &Bytes) -> Response {
        let batch: Batch = serde_json::from_slice(body).unwrap();
        for event in batch.events {
            if self.events.last().is_none_or(|last| last.seq < event.seq) {
                self.events.push(event);
            }
        }
        if self.lose_replies > 0 {
            self.lose_replies -= 1;
            return StatusCode::BAD_GATEWAY.into_response();
        }
        let through = self.events.last().map_or(0, |event| event.seq);
        serde_json::to_vec(&Accepted { through, stream: batch.stream }).unwrap().into_response()
    }
}

impl Controller {
    async fn poll(&self, query: &str) {
        let number = |key: &str| -> u64 {
            query.split('&').find_map(|pair| pair.strip_prefix(key)).and_then(|n| n.parse().ok()).unwrap_or(0)
        };
        let (have, wait) = (number("have="), number("wait="));
        let published = self.published.notified();
        let news = {
            let inner = self.inner.lock().unwrap();
            inner.cut || inner.latest.map_or(0, Generation::get) != have
        };
        if !news {
            let _ = tokio::time::timeout(Duration::from_secs(wait), published).await;
        }
    }
}
