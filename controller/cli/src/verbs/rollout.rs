//! `muster rollout`: how updates in waves fare, and holding, ending and loosening them.

mod ask;
mod show;
mod skip;
mod undo;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Subcommand;
use muster_protocol::clock::Clock as _;
use muster_protocol::operator::Wish;

use crate::api::client::Api;
use crate::config::Config;
use crate::fleet::rollouts::{self, Among};
use crate::terminal::json::print_json;

/// NAME is a rollout's name, which means the newest open one, or the first digits of its plan.
#[derive(Debug, Subcommand)]
pub enum Rollout {
    /// List the rollouts that have not ended
    List {
        /// Those that have ended, too
        #[arg(long)]
        all: bool,
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Show one rollout: its waves, and what each machine waits for
    Show {
        name: String,
        /// Print JSON instead of tables
        #[arg(long)]
        json: bool,
    },
    /// Follow one until it has ended, or halts
    Watch {
        name: String,
        /// The longest to follow, in seconds
        #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
        limit: u64,
    },
    /// Begin on no further machine until it is resumed
    Pause(ask::Ask),
    /// Go on after a pause
    Resume(ask::Ask),
    /// Begin on no further machine any more; what runs stays
    Stop(ask::Stop),
    /// Stop it at once; then sign what they ran before for the machines that began
    Undo(undo::Undo),
    /// Forgive what failed up to now, and have the machines that failed try again
    Retry(ask::Ask),
    /// Sign anew without waiting for the wave that holds it up; that one comes last
    SkipWave(skip::SkipWave),
}

impl Rollout {
    pub async fn run(self, config: Option<PathBuf>) -> Result<ExitCode> {
        let config = Config::load(config)?;
        match self {
            Self::List { all, json } => {
                let api = Api::to_read(&config)?;
                let mut views = rollouts::all(&api).await?;
                views.retain(|view| all || rollouts::is_open(view));
                if json { print_json(&views)? } else { show::list(&views, api.clock.unix_ms(), all) }
            }
            Self::Show { name, json } => {
                let api = Api::to_read(&config)?;
                let view = rollouts::find(&api, &name, Among::All).await?;
                if json { print_json(&view)? } else { show::show(&view, api.clock.unix_ms()) }
            }
            Self::Watch { name, limit } => {
                let api = Api::to_read(&config)?;
                let view = rollouts::find(&api, &name, Among::All).await?;
                return rollouts::follow(&api, &view.plan, Duration::from_secs(limit)).await;
            }
            Self::Pause(ask) => return ask.run(&config, Wish::Pause).await,
            Self::Resume(ask) => return ask.run(&config, Wish::Run).await,
            Self::Stop(stop) => return stop.run(&config).await,
            Self::Undo(undo) => return undo.run(&config).await,
            Self::Retry(ask) => return ask.retry(&config).await,
            Self::SkipWave(skip) => return skip.run(&config).await,
        }
        Ok(ExitCode::SUCCESS)
    }
}
