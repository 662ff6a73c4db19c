//! A publication to all machines: signing, storing, and until each waiting agent holds its files.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use muster_protocol::api;
use muster_protocol::checkin::PollReply;
use muster_protocol::clock::Clock as _;
use muster_protocol::ids::{Generation, MachineName, Sha256};
use muster_protocol::machine::Class;
use muster_protocol::operator::{
    MachinePublication, PUBLISHED_TOGETHER, Publication, Publications, PublicationsTaken,
};
use muster_protocol::tuf::client::{Scope, Stored, Update};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::agents::{Agent, connect};
use crate::checkins::quantile;
use crate::client::Connection;
use crate::fleet::{Fleet, Machine};
use crate::server::Server;

const POLL_SECONDS: u64 = 600;
/// The target among the files of a machine.
const TARGET: &str = "generation.json";

#[derive(Debug, Clone, Serialize)]
pub struct Wake {
    pub machines: usize,
    /// How many got all files with the reply to their poll.
    pub along: usize,
    pub sign_ms: f64,
    /// Sent, stored and answered.
    pub store_ms: f64,
    /// How many requests it was.
    pub requests: usize,
    /// From the sending of the request with a machine's publication until it holds all files, the same from
    /// the answer to it, and from the sending of the first request.
    pub sent_p50_ms: f64,
    pub sent_p99_ms: f64,
    pub answered_p50_ms: f64,
    pub answered_p99_ms: f64,
    pub first_p50_ms: f64,
    pub first_p99_ms: f64,
    /// CPU time of the controller for each machine, in microseconds.
    pub cpu_us: f64,
}

/// Publishes `number` to all machines while all of them wait.
pub async fn wake(fleet: &Arc<Fleet>, server: &Server, agents: Vec<Agent>, number: u64) -> Result<Wake> {
    let machines = agents.len();
    let names: Vec<MachineName> = agents.iter().map(|agent| agent.machine.name.clone()).collect();
    let agents = connect(agents, &server.target).await?;
    let mut waiting = JoinSet::new();
    for mut agent in agents {
        waiting.spawn(async move {
            let connection = agent.connection.take().context("it is connected")?;
            hold(&agent.machine, connection).await
        });
    }
    crate::waiting::settled(server).await?;
    let cpu = server.cpu()?;
    let began = Instant::now();
    let signed: Vec<(MachineName, Publication)> = names
        .into_iter()
        .map(|name| anyhow::Ok((name.clone(), fleet.generation(&name, number)?)))
        .collect::<Result<_>>()?;
    let sign_ms = began.elapsed().as_secs_f64() * 1e3;
    let first = Instant::now();
    let (published, requests) = publish(fleet, server, signed).await?;
    let store_ms = began.elapsed().as_secs_f64() * 1e3 - sign_ms;
    let mut all = Vec::new();
    while let Some(held) = waiting.join_next().await {
        all.push(held??);
    }
    let cpu = server.cpu()?.saturating_sub(cpu);
    let (mut sent, mut answered, mut whole, mut along) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for Held { name, at, files, along: came_along, .. } in all {
        along += usize::from(came_along);
        let (when_sent, when_answered) = published.get(&name).copied().context("published")?;
        sent.push(at.saturating_duration_since(when_sent));
        answered.push(at.saturating_duration_since(when_answered));
        whole.push(at.saturating_duration_since(first));
        files.verify(fleet, &name, Generation::new(number)?)?;
    }
    sent.sort_unstable();
    answered.sort_unstable();
    whole.sort_unstable();
    Ok(Wake {
        machines,
        along,
        sign_ms,
        store_ms,
        requests,
        sent_p50_ms: quantile(&sent, 0.5),
        sent_p99_ms: quantile(&sent, 0.99),
        answered_p50_ms: quantile(&answered, 0.5),
        answered_p99_ms: quantile(&answered, 0.99),
        first_p50_ms: quantile(&whole, 0.5),
        first_p99_ms: quantile(&whole, 0.99),
        cpu_us: cpu.as_secs_f64() * 1e6 / machines as f64,
    })
}

/// When each machine's publication was sent, and when it was answered.
type Times = BTreeMap<MachineName, (Instant, Instant)>;

/// Publishes all of them as `muster update` does; also counts the requests.
async fn publish(
    fleet: &Fleet,
    server: &Server,
    signed: Vec<(MachineName, Publication)>,
) -> Result<(Times, usize)> {
    let (mut times, parts) = (Times::new(), signed.chunks(PUBLISHED_TOGETHER));
    let requests = parts.len();
    let mut connection = Connection::open(&server.target).await?;
    for part in parts {
        let one = |(machine, publication): &(MachineName, Publication)| MachinePublication {
            machine: machine.clone(),
            publication: publication.clone(),
        };
        let all = Publications { generations: part.iter().map(one).collect() };
        let sent = Instant::now();
        let request = fleet.signed("POST", api::OPERATOR_GENERATIONS, serde_json::to_vec(&all)?)?;
        let taken: PublicationsTaken = connection.send(request).await?.good()?;
        ensure!(taken.published == part.len(), "{} of {} were published", taken.published, part.len());
        let answered = Instant::now();
        times.extend(part.iter().map(|(name, _)| (name.clone(), (sent, answered))));
    }
    Ok((times, requests))
}

/// What a machine holds. It keeps its connection, as agents do.
struct Held {
    name: MachineName,
    _connection: Connection,
    at: Instant,
    files: Files,
    /// Whether all of it came along with the poll's reply.
    along: bool,
}

/// What a machine fetched, by its name in the repository.
#[derive(Default)]
struct Files(BTreeMap<String, Bytes>);

/// Waits for a generation, and fetches what an agent fetches. It is verified afterwards: ten thousand agents
/// share one processor here, and have one each in the field.
async fn hold(machine: &Machine, mut connection: Connection) -> Result<Held> {
    let name = &machine.name;
    let reply: PollReply = connection.send(machine.poll_files(POLL_SECONDS)?).await?.good()?;
    let number = reply.generation.with_context(|| format!("{name} was woken for nothing"))?.get();
    let mut files = Files::default();
    if let Some(sent) = reply.files {
        for (file, text) in [
            ("timestamp.json".into(), sent.timestamp),
            (format!("{number}.snapshot.json"), sent.snapshot),
            (format!("{number}.targets.json"), sent.targets),
            (TARGET.into(), sent.target),
        ] {
            files.0.insert(file, text.into());
        }
        let (name, at) = (name.clone(), Instant::now());
        return Ok(Held { name, _connection: connection, at, files, along: true });
    }
    let metadata = [
        "2.root.json".into(),
        "timestamp.json".into(),
        format!("{number}.snapshot.json"),
        format!("{number}.targets.json"),
    ];
    for file in metadata {
        let answer = connection.send(machine.get(&format!("{}/{file}", api::tuf_path(name)))?).await?;
        if answer.status == 200 {
            files.0.insert(file, answer.body);
        }
    }
    let targets = files.0.get(&format!("{number}.targets.json")).context("there are no targets")?;
    let targets: serde_json::Value = serde_json::from_slice(targets)?;
    let listed = &targets["signed"]["targets"][api::target_name(name)]["hashes"]["sha256"];
    let hash: Sha256 = listed.as_str().context("the target has no hash")?.parse()?;
    let answer = connection.send(machine.get(&api::target_path(name, &hash))?).await?;
    ensure!(answer.status == 200, "{name}'s target: {}", answer.status);
    files.0.insert(TARGET.into(), answer.body);
    Ok(Held { name: name.clone(), _connection: connection, at: Instant::now(), files, along: false })
}

impl Files {
    /// Checks all of it as an agent does.
    fn verify(&self, fleet: &Fleet, machine: &MachineName, generation: Generation) -> Result<()> {
        let stored = Stored { root: fleet.root.clone(), ..Stored::default() };
        let scope = Scope { machine: machine.clone(), class: Class::Nixos, lowest: Generation::FIRST };
        let mut update = Update::start(&stored, Some(scope), fleet.clock.unix_seconds())?;
        while let Some(wanted) = update.next() {
            update.feed(self.0.get(&wanted.file).map(|bytes| bytes.as_ref()))?;
        }
        ensure!(update.generation() == Some(generation), "{machine} holds another generation");
        let name = api::target_name(machine);
        let target = self.0.get(TARGET).context("there is no target")?;
        update.listed(&name).context("no target is listed")?.require_bytes(&name, target)?;
        Ok(())
    }
}
