//! What must be true in the end, asked of every controller.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use muster_protocol::api;
use muster_protocol::audit::{self, Page};
use muster_protocol::ids::MachineName;
use muster_protocol::operator::{HistoryEntry, MachineView};
use muster_protocol::report::EventKind;

use super::agent::Agent;
use super::blobs;
use super::controllers::Controllers;
use crate::client::Connection;
use crate::fleet::Fleet;

/// What was looked at.
#[derive(Debug, Default)]
pub struct Seen {
    pub generations: u64,
    pub events: u64,
    pub entries: u64,
    /// Of all archives.
    pub bytes: u64,
}

/// Nothing lost, nothing twice, every machine on what was published last, no alarm, the audit log whole.
pub async fn check(
    fleet: &Fleet,
    controllers: &Controllers,
    agents: &[Agent],
    published: &BTreeMap<MachineName, u64>,
) -> Result<Seen> {
    let mut seen = Seen::default();
    for number in 0..controllers.count() {
        let mut connection = Connection::open(controllers.target(number)?).await?;
        seen = Seen::default();
        let bearer = blobs::bearer(fleet, &mut connection).await?;
        for agent in agents {
            machine(fleet, &mut connection, agent, published, &mut seen)
                .await
                .with_context(|| format!("controller {number}, machine {}", agent.machine.name))?;
            let name = &agent.machine.name;
            archives(&mut connection, name, published.get(name), &bearer, &mut seen)
                .await
                .with_context(|| format!("controller {number}, machine {}", agent.machine.name))?;
        }
        seen.entries = log(fleet, &mut connection).await.with_context(|| format!("controller {number}"))?;
    }
    Ok(seen)
}

async fn machine(
    fleet: &Fleet,
    connection: &mut Connection,
    agent: &Agent,
    published: &BTreeMap<MachineName, u64>,
    seen: &mut Seen,
) -> Result<()> {
    let path = api::operator_machine(&agent.machine.name);
    let view: MachineView = connection.send(fleet.signed("GET", &path, vec![])?).await?.good()?;
    ensure!(!view.clone_alarm, "a clone alarm was raised, and there is no clone");
    let last = published.get(&agent.machine.name).copied();
    let stored = view.published.as_ref().map(|published| published.target.generation.get());
    ensure!(stored == last, "generation {last:?} was answered as stored, and {stored:?} is there");
    ensure!(agent.holds.map(|held| held.get()) == last, "the machine holds {:?}, not {last:?}", agent.holds);
    let mut before = None;
    let mut generations = 0;
    loop {
        let more = before.map_or_else(String::new, |before| format!("?before={before}"));
        let request = fleet.signed("GET", &format!("{path}/history{more}"), vec![])?;
        let history: Vec<HistoryEntry> = connection.send(request).await?.good()?;
        let Some(oldest) = history.last() else { break };
        before = Some(oldest.published.target.generation);
        for entry in &history {
            generations += 1;
            let generation = entry.published.target.generation;
            let marks: Vec<u64> = entry
                .events
                .iter()
                .filter_map(|event| if let EventKind::Fetched { ms } = event.kind { Some(ms) } else { None })
                .collect();
            let sent = agent.reported.get(&generation).cloned().unwrap_or_default();
            ensure!(marks == sent, "generation {generation}: {sent:?} was reported, and {marks:?} is there");
            seen.events += marks.len() as u64;
        }
        if before.is_some_and(|oldest| oldest.get() == 1) {
            break;
        }
    }
    ensure!(
        Some(generations) == last.or(Some(0)),
        "{generations} generations are there, and {last:?} were stored"
    );
    seen.generations += generations;
    Ok(())
}

/// The archive of each generation is there, byte for byte.
async fn archives(
    connection: &mut Connection,
    name: &MachineName,
    last: Option<&u64>,
    bearer: &str,
    seen: &mut Seen,
) -> Result<()> {
    for number in 1..=last.copied().unwrap_or_default() {
        seen.bytes += blobs::require(connection, name, number, bearer).await?;
    }
    Ok(())
}

/// The audit log is one chain from its origin.
async fn log(fleet: &Fleet, connection: &mut Connection) -> Result<u64> {
    let mut checkpoint = audit::origin(&fleet.id);
    loop {
        let path = format!("{}?after={}", api::OPERATOR_AUDIT, checkpoint.id);
        let page: Page = connection.send(fleet.signed("GET", &path, vec![])?).await?.good()?;
        if page.entries.is_empty() {
            return Ok(checkpoint.id);
        }
        checkpoint = audit::verify(checkpoint, &page.entries)?;
    }
}
