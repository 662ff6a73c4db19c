//! How many check-ins a second the controller answers, each durable, with a real signature or a session's
//! MAC.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use muster_protocol::clock::SystemClock;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::agents::{Agent, parts};
use crate::server::Server;

/// How many check-ins are under way at once.
const AT_ONCE: usize = 256;

#[derive(Debug, Clone, Serialize)]
pub struct Rate {
    pub machines: usize,
    /// Whether sessions proved them; otherwise each was signed.
    pub in_session: bool,
    pub per_second: f64,
    pub median_ms: f64,
    pub p99_ms: f64,
    /// The controller's CPU time for one check-in, in microseconds.
    pub cpu_us: f64,
}

/// Lets the machines check in one after the other, each over its own connection, for some time.
pub async fn rate(server: &Server, agents: Vec<Agent>, lasts: Duration) -> Result<(Rate, Vec<Agent>)> {
    let machines = agents.len();
    ensure!(machines > 0, "there are no machines");
    let in_session = agents.iter().all(|agent| agent.machine.in_session);
    let clock = Arc::new(SystemClock::new());
    let (cpu, began) = (server.cpu()?, Instant::now());
    let mut workers = JoinSet::new();
    for mut part in parts(agents, AT_ONCE.min(machines)) {
        let (clock, target) = (clock.clone(), server.target.clone());
        workers.spawn(async move {
            let mut took = Vec::new();
            'time: loop {
                for agent in &mut part {
                    if began.elapsed() >= lasts {
                        break 'time;
                    }
                    let sent = Instant::now();
                    agent.check_in(&target, &clock).await?;
                    took.push(sent.elapsed());
                }
            }
            anyhow::Ok((part, took))
        });
    }
    let (mut agents, mut took) = (Vec::new(), Vec::new());
    while let Some(done) = workers.join_next().await {
        let (part, times) = done??;
        agents.extend(part);
        took.extend(times);
    }
    let elapsed = began.elapsed().as_secs_f64();
    let cpu = server.cpu()?.saturating_sub(cpu);
    took.sort_unstable();
    let rate = Rate {
        machines,
        in_session,
        per_second: took.len() as f64 / elapsed,
        median_ms: quantile(&took, 0.5),
        p99_ms: quantile(&took, 0.99),
        cpu_us: cpu.as_secs_f64() * 1e6 / took.len().max(1) as f64,
    };
    Ok((rate, agents))
}

/// A quantile of sorted times, in milliseconds.
pub fn quantile(sorted: &[Duration], share: f64) -> f64 {
    let index = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}
