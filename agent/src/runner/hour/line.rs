//! The network between the agent and whoever answers it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::HeaderValue;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream;
use muster_protocol::announce::Announcement;
use muster_protocol::api::{self, ProblemCode};
use muster_protocol::checkin::{CheckIn, CheckInReply};
use muster_protocol::clock::Clock as _;
use muster_protocol::ids::Sha256;
use muster_protocol::keys::Context;
use muster_protocol::report::{Accepted, Batch};
use muster_protocol::target::Target;
use tokio::sync::Notify;

use super::honest::{Answer, Honest, Request};
use super::liar::{Comes, Liar};
use super::machine::Virtual;
use super::weak::Weak;
use crate::client::Wire;
use crate::identity::Keys;
use crate::outbox::FOLDER;

/// The latency of every message.
const WAY: Duration = Duration::from_millis(40);

struct Inner {
    honest: Honest,
    liar: Liar,
    lies: bool,
    /// What a weak agent has received.
    silent_until: Duration,
    dead: bool,
    believed: u64,
    said: Vec<Sha256>,
}

pub struct Line {
    inner: Mutex<Inner>,
    published: Notify,
    clock: Arc<Virtual>,
    state_dir: PathBuf,
    weak: Option<Weak>,
}

impl Line {
    pub fn new(honest: Honest, clock: Arc<Virtual>, state_dir: &Path, weak: Option<Weak>) -> Arc<Self> {
        let inner = Inner {
            honest,
            liar: Liar::new(0),
            lies: false,
            silent_until: Duration::ZERO,
            dead: false,
            believed: 0,
            said: Vec::new(),
        };
        let state_dir = state_dir.to_path_buf();
        Arc::new(Self { inner: Mutex::new(inner), published: Notify::new(), clock, state_dir, weak })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn with<T>(&self, work: impl FnOnce(&mut Honest) -> T) -> T {
        work(&mut self.lock().honest)
    }
    pub fn publish(&self, target: &Target) {
        self.with(|honest| honest.publish(target));
        self.published.notify_waiters();
    }
    pub fn ask_rotation(&self) {
        let now = self.clock.unix_seconds();
        self.with(|honest| honest.ask_rotation(now));
        self.published.notify_waiters();
    }
    /// Calls the machine to check in.
    pub fn call(&self) {
        self.with(|honest| honest.calls = true);
        self.published.notify_waiters();
    }
    /// From here on somebody else answers, or the honest controller again.
    pub fn lie(&self, seed: u64) {
        let mut inner = self.lock();
        inner.liar.dice = super::dice::Dice::new(seed);
        inner.lies = true;
    }
    pub fn deny_keys(&self) {
        let mut inner = self.lock();
        inner.liar.only_denies_keys();
        inner.lies = true;
    }
    pub fn forge(&self) {
        let mut inner = self.lock();
        let operator = inner.honest.operator();
        inner.liar.only_forges(operator);
        inner.lies = true;
    }
    pub fn behave(&self) {
        self.lock().lies = false;
    }
    pub fn swallowed(&self) -> Vec<u64> {
        self.lock().liar.swallowed.clone()
    }

    /// The highest report number the machine has used.
    pub fn newest_report(&self) -> u64 {
        let files = std::fs::read_dir(self.state_dir.join(FOLDER)).into_iter().flatten().flatten();
        let number = |name: String| name.split('.').next().and_then(|digits| digits.parse().ok());
        let used = |name: &String| !name.ends_with(".spare");
        let names = files.filter_map(|file| file.file_name().into_string().ok());
        names.filter(used).filter_map(number).max().unwrap_or(0)
    }

    async fn hold(&self, request: &Request) {
        let (have, wait) = request.poll();
        let until = self.clock.awake() + Duration::from_secs(wait);
        loop {
            let news = self.published.notified();
            let done = {
                let mut inner = self.lock();
                inner.honest.has_news_for(&have) || (inner.lies && !inner.liar.holds_polls())
            };
            let left = until.saturating_sub(self.clock.awake());
            if done || left.is_zero() || tokio::time::timeout(left, news).await.is_err() {
                return;
            }
        }
    }

    async fn carried(&self, mut request: Request) -> Comes {
        tokio::time::sleep(WAY).await;
        if let Some(comes) = self.weakened(&mut request) {
            return comes;
        }
        let now = self.clock.unix_seconds();
        request.admitted = self.with(|honest| {
            honest.heard += 1;
            honest.admits(&request, now)
        });
        // One that an honest controller does not admit is answered at once.
        if request.path.ends_with("/poll") && request.admitted {
            self.hold(&request).await;
        }
        let (now, newest) = (self.clock.unix_seconds(), self.newest_report());
        let mut inner = self.lock();
        let Inner { honest, liar, lies, .. } = &mut *inner;
        let comes = match lies {
            true => liar.answer(honest, &request, now, newest),
            false => {
                let answer = honest.answer(&request, now);
                honest.answered += u64::from(answer.status == 200);
                liar.saw(&request, &answer);
                Comes::Answer(answer)
            }
        };
        let at = self.clock.awake().as_secs();
        match &comes {
            Comes::Answer(answer) => tracing::debug!(
                at,
                path = request.path,
                status = answer.status,
                wait = answer.retry_after,
                "{}",
                String::from_utf8_lossy(&answer.body[..answer.body.len().min(300)])
            ),
            Comes::Part(..) => tracing::debug!(at, path = request.path, "cut"),
            Comes::Nothing(after) => tracing::debug!(at, path = request.path, ?after, "nothing"),
        }
        if let Comes::Answer(answer) = &comes {
            self.believes(&mut inner, &request, answer);
        }
        comes
    }

    /// What a weak agent makes of an answer.
    fn believes(&self, inner: &mut Inner, request: &Request, answer: &Answer) {
        match self.weak {
            Some(Weak::HonoursRetryAfter) => {
                let seconds = answer.retry_after.as_ref().and_then(|text| text.parse().ok());
                if let Some(seconds) = seconds.filter(|_| answer.status != 200) {
                    inner.silent_until = self.clock.awake().saturating_add(Duration::from_secs(seconds));
                }
            }
            Some(Weak::TakesRevokedAsFinal) => {
                let problem = serde_json::from_slice::<api::Problem>(&answer.body);
                let code = problem.ok().map(|problem| problem.code);
                inner.dead |= answer.status == 403 && code == Some(ProblemCode::Revoked);
            }
            Some(Weak::BelievesReportsThrough) if request.path == api::CHECKIN => {
                let reply = serde_json::from_slice::<CheckInReply>(&answer.body);
                inner.believed = inner.believed.max(reply.map_or(0, |reply| reply.reports_through));
            }
            _ => {}
        }
    }

    /// What a weak agent sends instead of this, or nothing.
    fn weakened(&self, request: &mut Request) -> Option<Comes> {
        let nothing = || Some(Comes::Nothing(Duration::from_secs(1)));
        let mut inner = self.lock();
        match self.weak? {
            Weak::HonoursRetryAfter if self.clock.awake() < inner.silent_until => nothing(),
            Weak::TakesRevokedAsFinal if inner.dead => nothing(),
            Weak::BelievesReportsThrough if request.path == api::REPORTS => {
                let batch = serde_json::from_slice::<Batch>(&request.body).ok()?;
                let last = batch.events.last()?.seq;
                let accepted = Accepted { through: last, stream: batch.stream };
                (last <= inner.believed).then(|| Comes::Answer(Answer::json(&accepted)))
            }
            Weak::RepeatsInOtherWords if request.path == api::CHECKIN => {
                let hash = Sha256::of(&request.body);
                if !inner.said.contains(&hash) {
                    inner.said.push(hash);
                    return None;
                }
                let mut check_in: CheckIn = serde_json::from_slice(&request.body).ok()?;
                check_in.clock = self.clock.unix_ms();
                request.body = serde_json::to_vec(&check_in).ok()?;
                let key = Keys::load_or_make(&self.state_dir).ok()?.machine;
                let by = key.sign(Context::CheckIn, &request.body).hex();
                let says =
                    Announcement::make(&check_in.machine, api::CHECKIN, &request.body, &key).to_string();
                for (name, value) in [(api::MACHINE_SIGNATURE, by), (api::MACHINE_ANNOUNCES, says)] {
                    request.headers.insert(name, HeaderValue::from_str(&value).ok()?);
                }
                None
            }
            Weak::ForgetsItsKeys => {
                let _ = std::fs::remove_file(self.state_dir.join(crate::identity::PREVIOUS_KEYS));
                None
            }
            _ => None,
        }
    }
}

fn response(answer: Answer, part: Option<usize>) -> Option<reqwest::Response> {
    let mut response = axum::http::Response::builder().status(answer.status);
    if let Some(wait) = &answer.retry_after {
        response = response.header("retry-after", wait.as_str());
    }
    let mut pieces: Vec<io::Result<Vec<u8>>> = Vec::new();
    match part {
        None => pieces.push(Ok(answer.body)),
        Some(length) => {
            pieces.push(Ok(answer.body[..length].to_vec()));
            pieces.push(Err(io::Error::from(io::ErrorKind::ConnectionReset)));
        }
    }
    let body = reqwest::Body::wrap_stream(stream::iter(pieces));
    response.body(body).ok().map(reqwest::Response::from)
}

impl Wire for Line {
    fn carry(self: Arc<Self>, request: reqwest::Request) -> BoxFuture<'static, Option<reqwest::Response>> {
        let limit = request.timeout().copied().unwrap_or(Duration::from_secs(30));
        let asked = Request {
            path: request.url().path().to_owned(),
            query: request.url().query().unwrap_or_default().to_owned(),
            headers: request.headers().clone(),
            admitted: false,
            body: request.body().and_then(|body| body.as_bytes()).unwrap_or_default().to_vec(),
        };
        async move {
            match tokio::time::timeout(limit, self.carried(asked)).await.ok()? {
                Comes::Answer(answer) => response(answer, None),
                Comes::Part(answer, length) => response(answer, Some(length)),
                Comes::Nothing(after) => {
                    tokio::time::sleep(after.min(limit)).await;
                    None
                }
            }
        }
        .boxed()
    }
}
