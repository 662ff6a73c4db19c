//! Check-ins while operators follow an update of the whole fleet. Every check-in says something new, as those
//! of machines at work do; each follower asks what `muster update --watch` asks, with the same pauses
//! (`controller/cli/src/fleet/watch.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use muster_protocol::api::{OPERATOR_CHANGES, OPERATOR_SUMMARIES, operator_machine};
use muster_protocol::operator::{Changes, MAX_CHANGED};
use serde::Serialize;
use serde::de::IgnoredAny;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::agents::{Agent, connect};
use crate::checkins;
use crate::client::{Connection, Target};
use crate::fleet::Fleet;
use crate::server::Server;

/// As in `watch.rs`.
const WAIT_SECONDS: u64 = 30;
const FEW: usize = 8;
const REST: Duration = Duration::from_millis(2);
const LISTS_APART: Duration = Duration::from_secs(15);
/// How often each rate is measured; in turns, so that what slows a computer down for a while slows both.
const TURNS: usize = 2;

#[derive(Debug, Clone, Serialize)]
pub struct Followed {
    pub machines: usize,
    pub followers: usize,
    /// Check-ins a second with nobody following, and with the followers.
    pub alone_per_second: f64,
    pub followed_per_second: f64,
    /// The second by the first.
    pub ratio: f64,
    /// The controller's CPU time for one check-in, in microseconds, all that the followers cost included.
    pub alone_cpu_us: f64,
    pub followed_cpu_us: f64,
    /// What the followers were answered: machines, by lists and one by one.
    pub told: u64,
}

/// Measures check-ins without and with so many followers.
pub async fn followed(
    fleet: &Arc<Fleet>,
    server: &Server,
    mut agents: Vec<Agent>,
    followers: usize,
    lasts: Duration,
) -> Result<Followed> {
    let machines = agents.len();
    agents.iter_mut().for_each(|agent| agent.machine.at_work = true);
    let mut agents = connect(agents, &server.target).await?;
    let told = Arc::new(AtomicU64::new(0));
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let (rate, used) = checkins::rate(server, agents, lasts).await?;
        alone.push(rate);
        let mut following = JoinSet::new();
        for _ in 0..followers {
            following.spawn(follow(fleet.clone(), server.target.clone(), told.clone()));
        }
        let measured = checkins::rate(server, used, lasts);
        tokio::select! {
            // A follower only ends if something is wrong.
            Some(ended) = following.join_next() => {
                ended??;
                anyhow::bail!("a follower ended");
            }
            measured = measured => {
                let (rate, used) = measured?;
                beside.push(rate);
                agents = used;
            }
        }
    }
    let mean = |rates: &[checkins::Rate], of: fn(&checkins::Rate) -> f64| {
        rates.iter().map(of).sum::<f64>() / rates.len() as f64
    };
    let (alone_per_second, followed_per_second) =
        (mean(&alone, |rate| rate.per_second), mean(&beside, |rate| rate.per_second));
    Ok(Followed {
        machines,
        followers,
        alone_per_second,
        followed_per_second,
        ratio: followed_per_second / alone_per_second,
        alone_cpu_us: mean(&alone, |rate| rate.cpu_us),
        followed_cpu_us: mean(&beside, |rate| rate.cpu_us),
        told: told.load(Ordering::Relaxed),
    })
}

/// Follows until it is ended.
async fn follow(fleet: Arc<Fleet>, target: Target, told: Arc<AtomicU64>) -> Result<()> {
    let mut operator = Operator { connection: Connection::open(&target).await?, fleet, told };
    let mut cursor = operator.changes("after=0", 0).await?;
    let mut list_again = operator.list(OPERATOR_SUMMARIES).await?.1;
    loop {
        let before = query(&cursor);
        cursor = operator.changes(&before, WAIT_SECONDS).await?;
        let asked = match cursor.machines.take() {
            None => {
                tokio::time::sleep_until(list_again).await;
                cursor = operator.changes("after=0", 0).await?;
                list_again = operator.list(OPERATOR_SUMMARIES).await?.1;
                0
            }
            Some(changed) if changed.len() <= FEW => {
                for machine in &changed {
                    operator.get::<IgnoredAny>(&operator_machine(machine)).await?;
                }
                operator.count(changed.len())
            }
            Some(_) => operator.list(&format!("{OPERATOR_SUMMARIES}&{before}")).await?.0,
        };
        tokio::time::sleep(REST.saturating_mul(u32::try_from(asked)?)).await;
    }
}

fn query(cursor: &Changes) -> String {
    let instance = cursor.instance.as_deref().unwrap_or_default();
    format!("after={}&instance={instance}", cursor.cursor)
}

struct Operator {
    connection: Connection,
    fleet: Arc<Fleet>,
    told: Arc<AtomicU64>,
}

impl Operator {
    async fn get<T: serde::de::DeserializeOwned>(&mut self, path: &str) -> Result<T> {
        let request = self.fleet.signed("GET", path, Vec::new())?;
        self.connection.send(request).await?.good()
    }

    async fn changes(&mut self, after: &str, wait: u64) -> Result<Changes> {
        self.get(&format!("{OPERATOR_CHANGES}?{after}&wait={wait}")).await
    }

    /// How many machines a list has, and when all of them may be listed again.
    async fn list(&mut self, path: &str) -> Result<(usize, Instant)> {
        let listed: Vec<IgnoredAny> = self.get(path).await?;
        let apart = if listed.len() > MAX_CHANGED { LISTS_APART } else { Duration::ZERO };
        Ok((self.count(listed.len()), Instant::now() + apart))
    }

    fn count(&self, machines: usize) -> usize {
        self.told.fetch_add(machines as u64, Ordering::Relaxed);
        machines
    }
}
