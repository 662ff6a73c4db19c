//! All machines of one address come back in the same instant.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use muster_protocol::clock::SystemClock;
use serde::Serialize;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::agents::Agent;
use crate::checkins::quantile;
use crate::server::Server;

/// After so long a machine is given up.
const LIMIT: Duration = Duration::from_secs(120);
/// A machine whose connection was closed comes again after so long.
const AGAIN: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Serialize)]
pub struct Herd {
    pub machines: usize,
    /// Connections that ended without an answer.
    pub closed: usize,
    /// Answers that asked to come again later.
    pub put_off: usize,
    /// Until the last one had its check-in answered, and the median.
    pub all_in_ms: f64,
    pub median_ms: f64,
}

pub async fn herd(server: &Server, agents: Vec<Agent>) -> Result<(Herd, Vec<Agent>)> {
    let machines = agents.len();
    let clock = Arc::new(SystemClock::new());
    let start = Arc::new(Barrier::new(machines + 1));
    let (closed, put_off) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut herd = JoinSet::new();
    for mut agent in agents {
        let (target, clock, start) = (server.target.clone(), clock.clone(), start.clone());
        let (closed, put_off) = (closed.clone(), put_off.clone());
        herd.spawn(async move {
            agent.connection = None;
            // An agent makes its check-in durable and sends the same bytes until they are answered.
            let request = agent.machine.checkin(&clock)?;
            start.wait().await;
            let began = Instant::now();
            while began.elapsed() < LIMIT {
                let sent = match agent.connected(&target).await {
                    Ok(connection) => connection.send(request.clone()).await,
                    Err(error) => Err(error),
                };
                match sent {
                    Ok(answer) if answer.status == 200 => {
                        agent.machine.checked_in(&answer)?;
                        break;
                    }
                    Ok(answer) => {
                        put_off.fetch_add(1, Ordering::Relaxed);
                        agent.connection = None;
                        tokio::time::sleep(Duration::from_secs(answer.retry_after.unwrap_or(1))).await;
                    }
                    Err(_) => {
                        closed.fetch_add(1, Ordering::Relaxed);
                        agent.connection = None;
                        tokio::time::sleep(AGAIN).await;
                    }
                }
            }
            anyhow::Ok((agent, began.elapsed()))
        });
    }
    start.wait().await;
    let began = Instant::now();
    let (mut agents, mut took) = (Vec::new(), Vec::new());
    while let Some(done) = herd.join_next().await {
        let (agent, time) = done??;
        agents.push(agent);
        took.push(time);
    }
    took.sort_unstable();
    let herd = Herd {
        machines,
        closed: closed.load(Ordering::Relaxed),
        put_off: put_off.load(Ordering::Relaxed),
        all_in_ms: began.elapsed().as_secs_f64() * 1e3,
        median_ms: quantile(&took, 0.5),
    };
    Ok((herd, agents))
}
