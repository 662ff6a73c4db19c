//! Machines with a connection each, as agents have.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result};
use muster_protocol::clock::SystemClock;
use tokio::task::JoinSet;

use crate::client::{Connection, Target};
use crate::fleet::{Fleet, Machine};

/// How many are brought up at a time.
const AT_ONCE: usize = 32;

pub struct Agent {
    pub machine: Machine,
    pub connection: Option<Connection>,
}

impl Agent {
    /// Checks in over its connection, which it opens if there is none.
    pub async fn check_in(&mut self, target: &Target, clock: &SystemClock) -> Result<()> {
        let request = self.machine.checkin(clock)?;
        let answer = self.connected(target).await?.send(request).await?;
        self.machine.checked_in(&answer)
    }

    pub async fn connected(&mut self, target: &Target) -> Result<&mut Connection> {
        if self.connection.is_none() {
            self.connection = Some(Connection::open(target).await?);
        }
        self.connection.as_mut().context("there is a connection")
    }
}

/// Adds and enrols `count` machines named `anvil00000` and so on.
pub async fn enrol(fleet: &Arc<Fleet>, target: &Target, names: std::ops::Range<usize>) -> Result<Vec<Agent>> {
    let next = Arc::new(AtomicUsize::new(names.start));
    let mut workers = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (fleet, target, next, end) = (fleet.clone(), target.clone(), next.clone(), names.end);
        workers.spawn(async move {
            let (mut connection, mut enrolled) = (Connection::open(&target).await?, Vec::new());
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= end {
                    return anyhow::Ok(enrolled);
                }
                let machine = fleet.enrol(&mut connection, &format!("anvil{number:05}")).await?;
                enrolled.push(Agent { machine, connection: None });
            }
        });
    }
    let mut agents = all(workers).await?;
    agents.sort_by(|a, b| a.machine.name.as_str().cmp(b.machine.name.as_str()));
    Ok(agents)
}

/// Lets all of them check in, each over a connection of its own that stays open.
pub async fn connect(agents: Vec<Agent>, target: &Target) -> Result<Vec<Agent>> {
    let mut workers = JoinSet::new();
    let clock = Arc::new(SystemClock::new());
    for mut part in parts(agents, AT_ONCE) {
        let (target, clock) = (target.clone(), clock.clone());
        workers.spawn(async move {
            for agent in &mut part {
                agent.connection = None;
                agent.check_in(&target, &clock).await?;
                if agent.machine.in_session {
                    // The first one in a session has its key derived.
                    agent.check_in(&target, &clock).await?;
                }
            }
            anyhow::Ok(part)
        });
    }
    all(workers).await
}

/// Divides them among so many workers.
pub fn parts(agents: Vec<Agent>, workers: usize) -> Vec<Vec<Agent>> {
    let mut parts: Vec<Vec<Agent>> = (0..workers.max(1)).map(|_| Vec::new()).collect();
    let count = parts.len();
    for (number, agent) in agents.into_iter().enumerate() {
        parts[number % count].push(agent);
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// What all workers bring back, or the first error.
pub async fn all<T: 'static>(mut workers: JoinSet<Result<Vec<T>>>) -> Result<Vec<T>> {
    let mut together = Vec::new();
    while let Some(part) = workers.join_next().await {
        together.extend(part.context("a worker ended")??);
    }
    Ok(together)
}
