//! What holds a rollout or lets it go on: needs no signature of a generation, and opens no gate.

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Args;
use muster_protocol::api::{OPERATOR_BRAKE, operator_rollout};
use muster_protocol::operator::{AskRollout, BrakeView, MemberState, RolloutState, RolloutView, Wish};

use crate::api::client::Api;
use crate::config::Config;
use crate::fleet::requests;
use crate::fleet::rollouts::{self, Among};
use crate::terminal::ask::confirm;
use crate::terminal::error::{self, WithHint as _};

#[derive(Debug, Args)]
pub struct Ask {
    name: String,
    /// Why, for the others
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,
}

#[derive(Debug, Args)]
pub struct Stop {
    #[command(flatten)]
    ask: Ask,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// Tells the controller, and returns how the rollout stands then.
pub async fn ask(api: &Api, view: &RolloutView, asked: &AskRollout) -> Result<RolloutView> {
    let _: serde_json::Value = api.post(&operator_rollout(&view.plan), asked).await?;
    api.get(&operator_rollout(&view.plan)).await
}

fn tell(view: &RolloutView) {
    say!("{} ({}) is {}: {}", view.name, view.plan.short(), view.state.as_str(), view.why);
}

impl Ask {
    /// A failure if it stands as it did.
    pub async fn run(self, config: &Config, wish: Wish) -> Result<ExitCode> {
        let api = Api::open(config)?;
        let before = rollouts::find(&api, &self.name, Among::Open).await?;
        let view = ask(&api, &before, &AskRollout { wish, forgive: false, why: self.message }).await?;
        tell(&view);
        if view.state != before.state {
            return Ok(ExitCode::SUCCESS);
        }
        let brake: Option<BrakeView> = api.get(OPERATOR_BRAKE).await?;
        if brake.is_some() {
            let then = if wish == Wish::Pause { "stays paused" } else { "goes on" };
            say!("Once the brake is off, it {then}.");
            return Ok(ExitCode::SUCCESS);
        }
        say!("Nothing has changed by that.");
        Ok(ExitCode::FAILURE)
    }

    pub async fn retry(self, config: &Config) -> Result<ExitCode> {
        let api = Api::open(config)?;
        let view = rollouts::find(&api, &self.name, Among::Open).await?;
        let has_failed = view.members.iter().any(|member| member.state == MemberState::Failed);
        if !has_failed && view.failures == 0 && view.state != RolloutState::Halted {
            let plan = view.plan.short();
            return Err(anyhow!("no machine of {} has failed: there is nothing to try again", view.name))
                .hint(match view.state {
                    RolloutState::Paused => format!("`muster rollout resume {plan}` goes on after a pause"),
                    _ => format!("`muster rollout show {plan}` says what it waits for"),
                });
        }
        let asked = AskRollout { wish: Wish::Run, forgive: true, why: self.message };
        tell(&ask(&api, &view, &asked).await?);
        let mut code = ExitCode::SUCCESS;
        for member in view.members.iter().filter(|member| member.state == MemberState::Failed) {
            match requests::retry(config, &api, &member.machine).await {
                Ok(generation) => say!("{} is asked to try generation {generation} again", member.machine),
                Err(error) => {
                    error::print(&error.context(format!("{} was not asked", member.machine)));
                    code = ExitCode::FAILURE;
                }
            }
        }
        Ok(code)
    }
}

impl Stop {
    pub async fn run(self, config: &Config) -> Result<ExitCode> {
        let api = Api::open(config)?;
        let view = rollouts::find(&api, &self.ask.name, Among::Open).await?;
        let question = format!(
            "Stop {} for good? No further machine begins; a new `muster update` says what they run instead.",
            view.name
        );
        if !confirm(&question, self.yes)? {
            say!("It goes on as it was.");
            return Ok(ExitCode::FAILURE);
        }
        tell(
            &ask(&api, &view, &AskRollout { wish: Wish::Stop, forgive: false, why: self.ask.message })
                .await?,
        );
        Ok(ExitCode::SUCCESS)
    }
}
