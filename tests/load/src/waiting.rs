//! What a waiting agent costs the controller in memory.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::agents::Agent;
use crate::server::Server;

/// How many seconds the polls wait: longer than the measurement takes.
const WAIT_SECONDS: u64 = 600;
/// Memory is read when it has not grown for so long.
const STILL: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Serialize)]
pub struct Waiting {
    pub agents: usize,
    pub tls: bool,
    /// Before they connected, and with all of them waiting.
    pub rss_before_kib: u64,
    pub rss_kib: u64,
    pub kib_each: f64,
}

/// Polls that are under way, each with its agent. Dropped, they are closed.
pub struct Polls {
    _tasks: JoinSet<()>,
}

/// Connects all of them, each checks in and then polls.
pub async fn wait(server: &Server, agents: Vec<Agent>, tls: bool) -> Result<(Waiting, Polls)> {
    let (count, before) = (agents.len(), server.rss_kib()?);
    let agents = crate::agents::connect(agents, &server.target).await?;
    let mut tasks = JoinSet::new();
    for agent in agents {
        let request = agent.machine.poll(WAIT_SECONDS)?;
        let mut connection = agent.connection.context("it is connected")?;
        tasks.spawn(async move { drop(connection.send(request).await) });
    }
    let rss_kib = settled(server).await?;
    let waiting = Waiting {
        agents: count,
        tls,
        rss_before_kib: before,
        rss_kib,
        kib_each: rss_kib.saturating_sub(before) as f64 / count.max(1) as f64,
    };
    Ok((waiting, Polls { _tasks: tasks }))
}

/// The controller's memory once it does nothing any more.
pub async fn settled(server: &Server) -> Result<u64> {
    let mut cpu = server.cpu()?;
    loop {
        tokio::time::sleep(STILL).await;
        let now = server.cpu()?;
        if now.saturating_sub(cpu) < Duration::from_millis(20) {
            return server.rss_kib();
        }
        cpu = now;
    }
}
