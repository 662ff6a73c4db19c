//! A controller that follows every rule: its machine API, as far as an agent can tell.

use std::collections::{BTreeMap, BTreeSet};

use axum::http::HeaderMap;
use muster_protocol::api::{self, Problem, ProblemCode};
use muster_protocol::audit::Checkpoint;
use muster_protocol::checkin::{BEARER_SECONDS, CheckIn, CheckInReply, PollReply};
use muster_protocol::ids::{Epoch, Generation, MachineName, Sha256};
use muster_protocol::keys::{Context, PublicKey, SecretKey, Signature};
use muster_protocol::plan::Leave;
use muster_protocol::report::{Accepted, Batch, Event, Stream};
use muster_protocol::request::{Asked, MachineRequest, SignedRequest};
use muster_protocol::session::{ExchangeSecret, SessionKey, SessionOffer, SessionProof};
use muster_protocol::target::Target;
use muster_protocol::tuf::repository::{RootSpec, sign_generation, sign_root, sign_timestamp};
use serde::Serialize;

/// When it all begins, in Unix seconds.
pub const BEGAN: i64 = 1_800_000_000;
const DAY: i64 = 86_400;
/// How long it holds polls.
pub const POLL_SECONDS: u64 = 60;

/// One answer on its way to the machine.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
    pub retry_after: Option<String>,
}

impl Answer {
    pub fn json(value: &impl Serialize) -> Self {
        Self { status: 200, body: serde_json::to_vec(value).unwrap(), retry_after: None }
    }
    pub fn problem(status: u16, code: ProblemCode) -> Self {
        let problem = Problem { code, message: "no".to_owned() };
        Self { status, ..Self::json(&problem) }
    }
}

/// One request as it arrives from the machine.
#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    /// Its bearer was valid when it arrived.
    pub admitted: bool,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
    fn signature(&self, name: &str) -> Option<Signature> {
        self.header(name)?.parse().ok()
    }
    /// What a poll says that the machine has, and how many seconds it may wait.
    pub fn poll(&self) -> (String, u64) {
        let field = |name: &str| {
            let mut fields = self.query.split('&').filter_map(|field| field.split_once('='));
            fields.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).unwrap_or_default()
        };
        (field("have"), field("wait").parse().unwrap_or(0))
    }
}

pub struct Honest {
    pub machine: MachineName,
    pub root: Vec<u8>,
    holder: SecretKey,
    operator: SecretKey,
    online: SecretKey,
    root_version: u64,
    pub epoch: Epoch,
    pub files: BTreeMap<String, Vec<u8>>,
    timestamp: u64,
    pub latest: Option<Generation>,
    /// The machine's key in force, and all previous ones.
    pub key: PublicKey,
    seq: (u64, Sha256),
    reply: Option<CheckInReply>,
    earlier: BTreeSet<(u64, Sha256)>,
    /// Each with its expiry, in Unix seconds.
    bearers: BTreeMap<String, i64>,
    exchange: ExchangeSecret,
    /// By their tokens.
    sessions: BTreeMap<String, SessionKey>,
    /// How many check-ins a session proved.
    pub in_sessions: u64,
    given: u64,
    asked: Option<SignedRequest>,
    /// The operators requested another key once.
    pub rotation_was_asked: bool,
    through: (Option<Stream>, u64),
    pub stored: Vec<(Option<Stream>, Event)>,
    pub last: Option<CheckIn>,
    /// What it says in its replies about a rollout.
    pub leave: Option<Leave>,
    /// What it says instead once it was asked for statements.
    pub then: Option<Leave>,
    /// It calls the machine to check in.
    pub calls: bool,
    /// For how long signatures over what is published are valid, in seconds.
    pub valid: i64,
    /// The files that it was asked for.
    pub paths: Vec<String>,
    /// The number of requests received.
    pub heard: u64,
    /// The number of successes that it returned itself.
    pub answered: u64,
    /// A number was used twice for different contents: somebody else has the key.
    pub alarm: bool,
    /// What it must never receive from an honest agent.
    pub broken: Vec<String>,
}

impl Honest {
    pub fn operator(&self) -> PublicKey {
        self.operator.public()
    }

    pub fn new(machine: MachineName, key: PublicKey) -> Self {
        let [holder, operator, online] = [(); 3].map(|()| SecretKey::generate().unwrap());
        let mut controller = Self {
            machine,
            root: Vec::new(),
            holder,
            operator,
            online,
            root_version: 0,
            epoch: Epoch::default(),
            files: BTreeMap::new(),
            timestamp: 0,
            latest: None,
            key,
            seq: (0, Sha256::of(b"")),
            reply: None,
            earlier: BTreeSet::new(),
            bearers: BTreeMap::new(),
            exchange: ExchangeSecret::generate().unwrap(),
            sessions: BTreeMap::new(),
            in_sessions: 0,
            given: 0,
            asked: None,
            rotation_was_asked: false,
            through: (None, 0),
            stored: Vec::new(),
            last: None,
            leave: None,
            then: None,
            calls: false,
            valid: 30 * DAY,
            paths: Vec::new(),
            heard: 0,
            answered: 0,
            alarm: false,
            broken: Vec::new(),
        };
        controller.new_root(Epoch::default());
        controller.root = controller.files[&api::root_path(1)].clone();
        controller
    }

    pub fn fleet(&self) -> Sha256 {
        Sha256::of(&self.root)
    }

    /// Root holders sign the next root.
    pub fn new_root(&mut self, epoch: Epoch) {
        (self.root_version, self.epoch) = (self.root_version + 1, epoch);
        let spec = RootSpec {
            version: self.root_version,
            epoch,
            expires: BEGAN + 365 * DAY,
            root: (vec![self.holder.public()], 1),
            operators: (vec![self.operator.public()], 1),
            online: vec![self.online.public()],
        };
        let root = sign_root(&spec, &[&self.holder]).unwrap();
        let folder = api::tuf_path(&self.machine);
        self.files.insert(format!("{folder}/{}.root.json", self.root_version), root.clone());
        self.files.insert(api::root_path(self.root_version), root);
    }

    /// Operators sign this target, and it is served.
    pub fn publish(&mut self, target: &Target) {
        let expires = BEGAN + self.valid;
        let signed = sign_generation(target, expires, &[&self.operator]).unwrap();
        let (folder, n) = (api::tuf_path(&self.machine), target.generation.get());
        self.timestamp += 1;
        let snapshot = signed.snapshot.as_bytes();
        let timestamp = sign_timestamp(&self.machine, snapshot, self.timestamp, expires, &self.online);
        self.files.insert(format!("{folder}/timestamp.json"), timestamp.unwrap());
        self.files.insert(format!("{folder}/{n}.snapshot.json"), snapshot.to_vec());
        self.files.insert(format!("{folder}/{n}.targets.json"), signed.targets.into_bytes());
        let hash = Sha256::of(signed.target.as_bytes());
        let path = if target.rollout.is_some() { api::gated_path } else { api::target_path };
        self.files.insert(path(&self.machine, &hash), signed.target.into_bytes());
        self.files.insert(in_cache(target), contents(target));
        self.latest = Some(target.generation);
    }

    /// An operator requests a replacement of the currently known key.
    pub fn ask_rotation(&mut self, now: i64) {
        let asked = Asked::RotateKey { key: self.key };
        let request = MachineRequest::new(self.fleet(), self.machine.clone(), asked, now, 7 * DAY).unwrap();
        self.asked = Some(request.sign(&self.operator).unwrap());
        self.rotation_was_asked = true;
    }

    pub fn has_news_for(&self, have: &str) -> bool {
        let latest = self.latest.map_or_else(|| "0".to_owned(), |latest| latest.to_string());
        self.asked.is_some() || self.calls || latest != have
    }

    pub fn waits_for_a_key(&self) -> bool {
        self.asked.is_some()
    }

    /// A finished poll.
    pub fn poll(&self) -> Answer {
        Answer::json(&PollReply {
            generation: self.latest,
            check_in: self.asked.is_some() || self.calls,
            files: None,
        })
    }

    /// Whether this bearer is valid at `now`.
    pub fn admits(&self, request: &Request, now: i64) -> bool {
        let given = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        given.and_then(|bearer| self.bearers.get(bearer)).is_some_and(|ends| now < *ends)
    }

    /// `now` in Unix seconds.
    pub fn answer(&mut self, request: &Request, now: i64) -> Answer {
        match request.path.as_str() {
            api::CHECKIN => self.check_in(request, now),
            api::REPORTS => self.report(request),
            path => {
                if !request.admitted {
                    return Answer::problem(401, ProblemCode::Unauthorised);
                }
                if path.ends_with("/poll") {
                    return self.poll();
                }
                self.paths.push(path.to_owned());
                if path.ends_with("/statements") && self.then.is_some() {
                    self.leave = self.then.take();
                }
                match self.files.get(path) {
                    Some(bytes) => Answer { status: 200, body: bytes.clone(), retry_after: None },
                    None => Answer::problem(404, ProblemCode::NotFound),
                }
            }
        }
    }

    /// Whether a check-in's session proves it.
    fn in_session(&self, request: &Request) -> Option<bool> {
        let proof: SessionProof = request.header(api::MACHINE_SESSION)?.parse().ok()?;
        let key = self.sessions.get(&proof.token);
        let proved = key.is_some_and(|key| key.verifies(api::CHECKIN, &proof));
        Some(proved && proof.body == Sha256::of(&request.body))
    }

    /// The session that a check-in asks for.
    fn offer(&mut self, check_in: &CheckIn) -> Option<SessionOffer> {
        let asked = check_in.session?;
        let token = format!("session-{}", self.given);
        self.sessions.insert(token.clone(), self.exchange.of_machine(&asked, &token)?);
        Some(SessionOffer { key: self.exchange.public(), token, expires_in: BEARER_SECONDS })
    }

    fn check_in(&mut self, request: &Request, now: i64) -> Answer {
        let unsigned = || Answer::problem(401, ProblemCode::BadSignature);
        let Ok(check_in) = serde_json::from_slice::<CheckIn>(&request.body) else {
            self.broken.push("a check-in cannot be read".into());
            return Answer::problem(400, ProblemCode::Malformed);
        };
        let by = |key: &PublicKey, header: &str, context| {
            request.signature(header).is_some_and(|by| key.verify(context, &request.body, &by).is_ok())
        };
        if let Some(new) = check_in.new_key
            && !by(&new, api::MACHINE_NEW_SIGNATURE, Context::KeyRotation)
        {
            return unsigned();
        }
        match self.in_session(request) {
            // It forgets a session now and then, as if it had been restarted.
            Some(false) => return Answer::problem(401, ProblemCode::SessionEnded),
            Some(true) if check_in.seq.is_multiple_of(7) => {
                self.sessions.clear();
                return Answer::problem(401, ProblemCode::SessionEnded);
            }
            Some(true) => self.in_sessions += 1,
            None if check_in.new_key == Some(self.key) => {}
            None if by(&self.key, api::MACHINE_SIGNATURE, Context::CheckIn) => {}
            None => return unsigned(),
        }
        let hash = Sha256::of(&request.body);
        if check_in.seq <= self.seq.0 {
            if (check_in.seq, hash) == self.seq {
                return self.reply.as_ref().map_or_else(unsigned, Answer::json);
            }
            if self.earlier.contains(&(check_in.seq, hash)) {
                return Answer::problem(409, ProblemCode::Repeated);
            }
            self.alarm = true;
            return Answer::problem(409, ProblemCode::Sequence);
        }
        self.earlier.insert(self.seq);
        self.seq = (check_in.seq, hash);
        if let Some(new) = check_in.new_key.filter(|new| *new != self.key) {
            self.key = new;
            self.asked = None;
            self.bearers.clear();
            self.sessions.clear();
        }
        let (fleet, machine) = (&check_in.audience, &check_in.machine);
        if check_in.shown.as_ref().is_some_and(|shown| shown.verify(fleet, machine, &self.key).is_err()) {
            self.broken.push("what the log showed is not signed by the machine's key".into());
        }
        if let Some(asked) = &self.asked
            && check_in.followed.contains(&asked.id())
        {
            self.asked = None;
        }
        self.given += 1;
        let bearer = format!("bearer-{}", self.given);
        self.bearers.insert(bearer.clone(), now + i64::try_from(BEARER_SECONDS).unwrap());
        self.calls = false;
        let reply = CheckInReply {
            rollout: self.leave.clone(),
            bearer,
            bearer_expires_in: BEARER_SECONDS,
            generation: self.latest,
            poll_seconds: POLL_SECONDS,
            reports_through: self.through.1,
            rotate_key: self.asked.is_some(),
            requests: self.asked.iter().cloned().collect(),
            // Each reply shows more of the log.
            log: Some(Checkpoint { id: self.given, hash: Sha256::of(&self.given.to_be_bytes()) }),
            session: self.offer(&check_in),
        };
        self.reply = Some(reply.clone());
        self.last = Some(check_in);
        Answer::json(&reply)
    }

    fn report(&mut self, request: &Request) -> Answer {
        let by = request.signature(api::MACHINE_SIGNATURE);
        if by.is_none_or(|by| self.key.verify(Context::Reports, &request.body, &by).is_err()) {
            return Answer::problem(401, ProblemCode::BadSignature);
        }
        let Ok(batch) = serde_json::from_slice::<Batch>(&request.body) else {
            self.broken.push("a batch cannot be read".into());
            return Answer::problem(400, ProblemCode::Malformed);
        };
        let through = if self.through.0 == batch.stream { self.through.1 } else { 0 };
        let mut last = through;
        for event in batch.events {
            if event.seq > through {
                last = event.seq;
                self.stored.push((batch.stream, event));
            }
        }
        last = last.max(batch.oldest.saturating_sub(1));
        self.through = (batch.stream, last);
        Answer::json(&Accepted { through: last, stream: batch.stream })
    }
}

/// Where these tests' cache serves a target's derivation, and its content.
pub fn in_cache(target: &Target) -> String {
    format!("{}/{}", api::CACHE, target.derivation.name())
}
pub fn contents(target: &Target) -> Vec<u8> {
    format!("the derivation of {}", target.derivation).into_bytes()
}
