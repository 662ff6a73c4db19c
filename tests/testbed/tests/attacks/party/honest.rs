//! Honest machines: each checks in about every second, sometimes sends a report, and uses the long poll.
//! Their waiting times are what is measured.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use muster_protocol::announce::Announcement;
use muster_protocol::api;
use muster_protocol::checkin::{CheckIn, CheckInReply, Health, Holds, Phase};
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::Generation;
use muster_protocol::keys::Context;
use muster_protocol::machine::Class;
use muster_protocol::report::{Accepted, Batch, Event, EventKind};

use super::service::{Identity, Service, client};

/// The time between two check-ins of a machine.
const EVERY: Duration = Duration::from_secs(1);

/// The results of the requests of one kind, each tried once.
#[derive(Debug, Clone, Default)]
pub struct Served {
    pub waits: Vec<Duration>,
    pub failures: Vec<String>,
}

impl Served {
    fn note(&mut self, waited: Duration, outcome: Result<()>) {
        match outcome {
            Ok(()) => self.waits.push(waited),
            Err(error) => self.failures.push(format!("{error:#} (after {} ms)", waited.as_millis())),
        }
    }
    pub fn all(&self) -> usize {
        self.waits.len() + self.failures.len()
    }
    /// The percentage that succeeded.
    pub fn share(&self) -> f64 {
        100.0 * self.waits.len() as f64 / self.all().max(1) as f64
    }
    pub fn slowest(&self) -> Duration {
        self.waits.iter().max().copied().unwrap_or_default()
    }
    /// The wait that this percentage of requests did not exceed.
    pub fn within(&self, hundredths: usize) -> Duration {
        let mut waits = self.waits.clone();
        waits.sort_unstable();
        waits.get(waits.len().saturating_mul(hundredths) / 100).copied().unwrap_or_else(|| self.slowest())
    }
    fn join(&mut self, other: Self) {
        self.waits.extend(other.waits);
        self.failures.extend(other.failures);
    }
}

#[derive(Debug, Clone, Default)]
pub struct Measured {
    pub check_ins: Served,
    pub reports: Served,
    pub polls: Served,
}

impl Measured {
    pub fn join(&mut self, other: Self) {
        self.check_ins.join(other.check_ins);
        self.reports.join(other.reports);
        self.polls.join(other.polls);
    }
    /// The failures of all three kinds.
    pub fn failures(&self) -> impl Iterator<Item = &String> {
        [&self.check_ins, &self.reports, &self.polls].into_iter().flat_map(|served| &served.failures)
    }
}

pub struct Machine {
    identity: Identity,
    client: reqwest::Client,
    seq: u64,
    events: u64,
    bearer: String,
}

/// Enrols this many machines, each at its own address: 127.0.`net`.N. Every second one keeps its connections;
/// the others open a new one for each request.
pub async fn enrol(service: &Service, net: u8, count: u8) -> Result<Vec<Machine>> {
    let mut machines = Vec::new();
    for number in 0..count {
        let identity = service.enrol(&format!("honest-{net}-{number}")).await?;
        let client = client(service.ca.as_deref(), [127, 0, net, 10 + number], number % 2 == 0)?;
        machines.push(Machine { identity, client, seq: 0, events: 0, bearer: String::new() });
    }
    Ok(machines)
}

impl Machine {
    async fn signed(&self, at: &str, path: &str, context: Context, body: Vec<u8>) -> Result<Vec<u8>> {
        let key = &self.identity.key;
        let announcement = Announcement::make(&self.identity.name, path, &body, key).to_string();
        let request = self.client.post(format!("{at}{path}"));
        let request = request.header(api::MACHINE_ANNOUNCES, announcement);
        let signed = request.header(api::MACHINE_SIGNATURE, key.sign(context, &body).hex()).body(body);
        answered(signed).await
    }

    async fn check_in(&mut self, at: &str) -> Result<()> {
        self.seq += 1;
        let body = serde_json::to_vec(&check_in(&self.identity, self.seq))?;
        let reply = self.signed(at, api::CHECKIN, Context::CheckIn, body).await?;
        self.bearer = serde_json::from_slice::<CheckInReply>(&reply)?.bearer;
        Ok(())
    }

    async fn report(&mut self, at: &str) -> Result<()> {
        self.events += 1;
        let event = Event {
            seq: self.events,
            at: SystemClock::new().unix_ms(),
            generation: Some(Generation::FIRST),
            kind: EventKind::Verified,
        };
        let batch = Batch {
            machine: self.identity.name.clone(),
            stream: None,
            oldest: self.events,
            events: vec![event],
        };
        let reply = self.signed(at, api::REPORTS, Context::Reports, serde_json::to_vec(&batch)?).await?;
        let through = serde_json::from_slice::<Accepted>(&reply)?.through;
        ensure!(through == self.events, "events are stored through {through}, not {}", self.events);
        Ok(())
    }

    /// A poll that is answered at once: a generation is published that the machine does not hold.
    async fn poll(&self, at: &str) -> Result<()> {
        let path = api::poll_path(&self.identity.name, None, 30);
        answered(self.client.get(format!("{at}{path}")).bearer_auth(&self.bearer)).await.map(drop)
    }
}

async fn answered(request: reqwest::RequestBuilder) -> Result<Vec<u8>> {
    let response = request.send().await?;
    let (status, body) = (response.status(), response.bytes().await?.to_vec());
    ensure!(status == 200, "{status}: {}", String::from_utf8_lossy(&body));
    Ok(body)
}

/// The check-in of a machine with nothing to report.
pub fn check_in(of: &Identity, seq: u64) -> CheckIn {
    CheckIn {
        audience: of.fleet,
        machine: of.name.clone(),
        class: Class::Nixos,
        system: muster_protocol::machine::System::try_from("x86_64-linux".to_owned()).unwrap(),
        boot_id: "boot".into(),
        seq,
        clock: SystemClock::new().unix_ms(),
        agent: "0.1.0".into(),
        runs: None,
        holds: Holds::default(),
        phase: Phase::Idle,
        phase_generation: None,
        note: None,
        refused: None,
        health: Health::default(),
        new_key: None,
        age: None,
        followed: vec![],
        shown: None,
        session: None,
        understands: vec![],
        signing: None,
        vouch: None,
        awaits: None,
    }
}

/// Runs the machines for this long, in a thread of their own. Returns them with their measurements.
pub fn live(
    machines: Vec<Machine>,
    at: String,
    how_long: Duration,
) -> std::thread::JoinHandle<Result<(Vec<Machine>, Measured)>> {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let all = Arc::new(Mutex::new(Measured::default()));
        let machines = runtime.block_on(async {
            let mut tasks = Vec::new();
            let count = u32::try_from(machines.len())?.max(1);
            for (number, machine) in (0..).zip(machines) {
                let (at, all) = (at.clone(), all.clone());
                tasks.push(tokio::spawn(async move {
                    tokio::time::sleep(EVERY * number / count).await;
                    life(machine, &at, how_long, &all).await
                }));
            }
            let mut machines = Vec::new();
            for task in tasks {
                machines.push(task.await?);
            }
            Ok::<_, anyhow::Error>(machines)
        })?;
        let measured = all.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok((machines, measured))
    })
}

async fn life(mut machine: Machine, at: &str, how_long: Duration, all: &Mutex<Measured>) -> Machine {
    let clock = SystemClock::new();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut measured = Measured::default();
    for turn in 0_u32.. {
        ticks.tick().await;
        if clock.awake() >= how_long {
            break;
        }
        let before = clock.awake();
        let outcome = machine.check_in(at).await;
        measured.check_ins.note(clock.awake() - before, outcome);
        if turn % 3 == 0 {
            let before = clock.awake();
            let outcome = machine.poll(at).await;
            measured.polls.note(clock.awake() - before, outcome);
        }
        if turn % 4 == 1 {
            let before = clock.awake();
            let outcome = machine.report(at).await;
            measured.reports.note(clock.awake() - before, outcome);
        }
    }
    all.lock().unwrap_or_else(PoisonError::into_inner).join(measured);
    machine
}
