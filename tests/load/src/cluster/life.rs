//! A fleet at work: its controllers, its agents, and the operator who publishes to them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result};
use muster_protocol::ids::MachineName;
use tokio::task::{JoinHandle, JoinSet};

use super::agent::{Agent, Run};
use super::controllers::Controllers;
use super::dice::Dice;
use super::operator;
use super::speed::{Times, What};
use crate::agents::enrol;
use crate::fleet::Fleet;
use crate::server::Program;

/// The longest that agents may need in the end.
const SETTLE: Duration = Duration::from_secs(60);

pub struct Life {
    pub fleet: Arc<Fleet>,
    pub controllers: Arc<Controllers>,
    run: Arc<Run>,
    agents: JoinSet<Result<Agent>>,
    publishes: JoinHandle<Result<BTreeMap<MachineName, u64>>>,
}

/// What it was in the end.
pub struct Lived {
    pub agents: Vec<Agent>,
    /// The highest generation of each machine that a controller said to have stored.
    pub published: BTreeMap<MachineName, u64>,
}

impl Life {
    /// `programs` are one and, if there is another version, that; `settings` are lines of every
    /// controller.toml.
    pub async fn begin(
        fleet: Fleet,
        programs: &[PathBuf],
        count: usize,
        settings: &str,
        machines: usize,
        dice: &mut Dice,
    ) -> Result<Self> {
        let fleet = Arc::new(fleet);
        let programs = programs.iter().map(|muster| Program { muster: muster.clone(), core: None }).collect();
        let write = |name: &str, listen| fleet.controller(name, listen, false, settings);
        let controllers = Arc::new(Controllers::start(programs, count, write).await?);
        let enrolled = enrol(&fleet, controllers.target(0)?, 0..machines).await?;
        let names = enrolled.iter().map(|agent| agent.machine.name.clone()).collect();
        let run = Arc::new(Run::default());
        let mut agents = JoinSet::new();
        for agent in enrolled {
            let agent = Agent::new(agent.machine, &fleet)?;
            agents.spawn(agent.live(fleet.clone(), controllers.clone(), run.clone(), dice.fork()));
        }
        let publishes =
            operator::publish(fleet.clone(), controllers.clone(), names, run.clone(), dice.fork());
        Ok(Self { fleet, controllers, run, agents, publishes: tokio::spawn(publishes) })
    }

    /// How long things take while nobody breaks anything.
    pub async fn calm(&self, lasts: Duration) -> BTreeMap<What, Times> {
        tokio::time::sleep(lasts).await;
        self.run.speed.end()
    }

    /// Ends once every agent holds what was published and has reported it.
    pub async fn end(mut self) -> Result<Lived> {
        self.run.ends.store(true, Ordering::Relaxed);
        let published = self.publishes.await??;
        self.run.goal.set(published.clone()).ok().context("the goal is set once")?;
        let mut agents = Vec::new();
        let quiet = async {
            while let Some(agent) = self.agents.join_next().await {
                agents.push(agent??);
            }
            anyhow::Ok(())
        };
        let settled = tokio::time::timeout(SETTLE, quiet).await;
        settled.context("some agents do not get what was published, or cannot report")??;
        Ok(Lived { agents, published })
    }
}
