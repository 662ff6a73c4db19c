//! What an agent does towards controllers: check in with the same bytes until they are answered, report until
//! it is accepted, poll, fetch and verify.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use muster_protocol::api::{self, Problem, ProblemCode};
use muster_protocol::checkin::PollReply;
use muster_protocol::clock::Clock as _;
use muster_protocol::ids::{Generation, MachineName};
use muster_protocol::machine::Class;
use muster_protocol::report::{Accepted, Event, EventKind, Stream};
use muster_protocol::tuf::client::{Scope, Stored, Update};
use tokio::time::Instant;

use super::blobs;
use super::controllers::Controllers;
use super::dice::Dice;
use super::speed::{Speed, What};
use crate::client::{Answer, Connection};
use crate::fleet::{Fleet, Machine};

/// How long a request may take before the agent gives it up: longer than a poll.
const LIMIT: Duration = Duration::from_secs(12);
const POLL_SECONDS: u64 = 4;
/// The longest pause before it tries again.
const PAUSE_MS: usize = 300;
/// Every event has a number of its own in the whole run, so that each can be told from all others.
static MARKS: AtomicU64 = AtomicU64::new(1);

pub struct Agent {
    pub machine: Machine,
    stream: Stream,
    /// A check-in that has not been answered yet.
    unanswered: Option<Request<Full<Bytes>>>,
    outbox: Vec<Event>,
    numbered: u64,
    /// It holds a generation whose archive it has not read yet.
    unread: bool,
    trusted: Stored,
    /// The generation whose files it verified last.
    pub holds: Option<Generation>,
    /// What it reported of each generation, in order.
    pub reported: BTreeMap<Generation, Vec<u64>>,
    pub told: Told,
}

/// How often something happened, for the report at the end.
#[derive(Debug, Default, Clone, Copy)]
pub struct Told {
    pub check_ins: u64,
    pub reports: u64,
    pub polls: u64,
    pub archives: u64,
    pub tried_again: u64,
}

/// How far a run is.
#[derive(Debug, Default)]
pub struct Run {
    /// The operator publishes no more.
    pub ends: AtomicBool,
    /// What was published last to each machine; an agent that holds it and has nothing to send has ended.
    pub goal: OnceLock<BTreeMap<MachineName, u64>>,
    pub speed: Speed,
}

impl Run {
    fn is_over_for(&self, agent: &Agent) -> bool {
        let held = agent.holds.map(Generation::get);
        self.goal.get().is_some_and(|goal| goal.get(&agent.machine.name).copied() == held && agent.is_quiet())
    }
}

impl Agent {
    pub fn new(machine: Machine, fleet: &Fleet) -> Result<Self> {
        Ok(Self {
            machine,
            stream: Stream::generate()?,
            unanswered: None,
            outbox: Vec::new(),
            numbered: 0,
            unread: false,
            trusted: Stored { root: fleet.root.clone(), ..Stored::default() },
            holds: None,
            reported: BTreeMap::new(),
            told: Told::default(),
        })
    }

    /// Nothing waits to be sent.
    pub fn is_quiet(&self) -> bool {
        self.unanswered.is_none() && self.outbox.is_empty() && !self.unread
    }

    /// Lives until the run ends. An error is a broken promise of the controllers.
    pub async fn live(
        mut self,
        fleet: Arc<Fleet>,
        controllers: Arc<Controllers>,
        run: Arc<Run>,
        mut dice: Dice,
    ) -> Result<Self> {
        let mut connection = None;
        while !run.is_over_for(&self) {
            match self.round(&fleet, &controllers, &run.speed, &mut connection, &mut dice).await? {
                Outcome::Well => {}
                Outcome::Again => {
                    connection = None;
                    self.told.tried_again += 1;
                    tokio::time::sleep(dice.up_to_ms(PAUSE_MS)).await;
                }
            }
        }
        Ok(self)
    }

    /// One check-in, what it has to report, one poll.
    async fn round(
        &mut self,
        fleet: &Fleet,
        controllers: &Controllers,
        speed: &Speed,
        held: &mut Option<Connection>,
        dice: &mut Dice,
    ) -> Result<Outcome> {
        if held.is_none() {
            *held = controllers.connect(dice).await;
        }
        let Some(connection) = held else { return Ok(Outcome::Again) };
        let request = match &self.unanswered {
            Some(request) => request.clone(),
            None => self.unanswered.insert(self.machine.checkin(&fleet.clock)?).clone(),
        };
        let asked = Instant::now();
        let Some(answer) = sent(connection, request).await else { return Ok(Outcome::Again) };
        match self.judge("a check-in", &answer)? {
            Verdict::Done => {
                speed.took(What::CheckIn, asked.elapsed());
                self.machine.checked_in(&answer)?;
            }
            // An earlier try of the same bytes was answered; the agent makes the next one.
            Verdict::Over => {
                self.unanswered = None;
                return Ok(Outcome::Well);
            }
            Verdict::Again => return Ok(Outcome::Again),
        }
        self.unanswered = None;
        self.told.check_ins += 1;
        // Its poll would wait for one that is newer than what the reply told of.
        if self.machine.generation.is_some() && self.machine.generation != self.holds {
            match self.refresh(fleet, connection, speed).await? {
                Outcome::Well => {}
                Outcome::Again => return Ok(Outcome::Again),
            }
        }
        while !self.outbox.is_empty() {
            let request = self.machine.report(self.stream, &self.outbox)?;
            let asked = Instant::now();
            let Some(answer) = sent(connection, request).await else { return Ok(Outcome::Again) };
            match self.judge("a report", &answer)? {
                Verdict::Done => {
                    speed.took(What::Report, asked.elapsed());
                    let accepted: Accepted = answer.good()?;
                    self.outbox.retain(|event| event.seq > accepted.through);
                    self.told.reports += 1;
                }
                _ => return Ok(Outcome::Again),
            }
        }
        if self.unread {
            match self.read(connection, speed).await? {
                Outcome::Well => {}
                Outcome::Again => return Ok(Outcome::Again),
            }
        }
        let Some(answer) = sent(connection, self.machine.poll(POLL_SECONDS)?).await else {
            return Ok(Outcome::Again);
        };
        match self.judge("a poll", &answer)? {
            Verdict::Done => self.told.polls += 1,
            _ => return Ok(Outcome::Again),
        }
        let reply: PollReply = answer.good()?;
        if reply.generation.is_some() && reply.generation != self.holds {
            return self.refresh(fleet, connection, speed).await;
        }
        Ok(Outcome::Well)
    }

    /// Fetches and verifies as an agent does, and reports what it then holds.
    async fn refresh(
        &mut self,
        fleet: &Fleet,
        connection: &mut Connection,
        speed: &Speed,
    ) -> Result<Outcome> {
        let name = &self.machine.name;
        let scope = Scope { machine: name.clone(), class: Class::Nixos, lowest: Generation::FIRST };
        let mut update = Update::start(&self.trusted, Some(scope), fleet.clock.unix_seconds())?;
        while let Some(wanted) = update.next() {
            let request = self.machine.get(&format!("{}/{}", api::tuf_path(name), wanted.file))?;
            let Some(answer) = sent(connection, request).await else { return Ok(Outcome::Again) };
            let bytes = match answer.status {
                200 => Some(answer.body.as_ref()),
                404 => None,
                _ => return Ok(Outcome::Again),
            };
            let saved = update
                .feed(bytes)
                .with_context(|| format!("{name} was handed something it refuses: {}", wanted.file))?;
            if let Some(saved) = saved {
                let place = match saved.file {
                    "timestamp.json" => &mut self.trusted.timestamp,
                    "snapshot.json" => &mut self.trusted.snapshot,
                    "targets.json" => &mut self.trusted.targets,
                    file => bail!("{name} was handed {file}, and nobody published a root"),
                };
                *place = Some(saved.bytes);
            }
        }
        let now = update.generation();
        if now < self.holds {
            bail!("{name} held {:?} and was brought back to {now:?}", self.holds);
        }
        if let Some(generation) = now.filter(|_| now != self.holds) {
            speed.holds(name, generation.get());
            self.holds = now;
            self.unread = true;
            self.machine.generation = now;
            let mark = MARKS.fetch_add(2, Ordering::Relaxed);
            for kind in [EventKind::Fetched { ms: mark }, EventKind::Fetched { ms: mark + 1 }] {
                self.numbered += 1;
                let at = fleet.clock.unix_ms();
                self.outbox.push(Event { seq: self.numbered, at, generation: Some(generation), kind });
            }
            self.reported.entry(generation).or_default().extend([mark, mark + 1]);
        }
        Ok(Outcome::Well)
    }

    /// Reads the archive of the generation that it holds, as what is built of it would be.
    async fn read(&mut self, connection: &mut Connection, speed: &Speed) -> Result<Outcome> {
        let (name, held) = (&self.machine.name, self.holds.context("it holds a generation")?);
        let archive = blobs::archive(name, held.get());
        let asked = Instant::now();
        let Some(answer) = sent(connection, self.machine.get(&blobs::path(&archive))?).await else {
            return Ok(Outcome::Again);
        };
        match answer.status {
            200 => {
                speed.took(What::Read, asked.elapsed());
                ensure!(answer.body == archive, "{name} was handed another archive for generation {held}");
                self.told.archives += 1;
                self.unread = false;
                Ok(Outcome::Well)
            }
            404 => bail!("the archive of generation {held} of {name} was stored, and is not there"),
            _ => Ok(Outcome::Again),
        }
    }

    fn judge(&self, what: &str, answer: &Answer) -> Result<Verdict> {
        if answer.status == 200 {
            return Ok(Verdict::Done);
        }
        let name = &self.machine.name;
        let problem: Problem = serde_json::from_slice(&answer.body).with_context(|| {
            format!("{what} of {name}: {} {}", answer.status, String::from_utf8_lossy(&answer.body))
        })?;
        match problem.code {
            ProblemCode::Repeated => Ok(Verdict::Over),
            ProblemCode::Busy | ProblemCode::TooMany | ProblemCode::StorageFull => Ok(Verdict::Again),
            // A bearer may end; the next check-in brings another.
            ProblemCode::Unauthorised if what == "a poll" => Ok(Verdict::Again),
            _ if answer.status >= 500 => Ok(Verdict::Again),
            code => bail!("{what} of {name} was refused with {code:?}: {}", problem.message),
        }
    }
}

enum Outcome {
    Well,
    Again,
}

enum Verdict {
    Done,
    Over,
    Again,
}

async fn sent(connection: &mut Connection, request: Request<Full<Bytes>>) -> Option<Answer> {
    tokio::time::timeout(LIMIT, connection.send(request)).await.ok()?.ok()
}
