//! `muster rollout undo`: stops it, and says how to bring back whoever began.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use muster_protocol::ids::MachineName;
use muster_protocol::operator::{AskRollout, Wish};

use super::ask::ask;
use crate::api::client::Api;
use crate::config::Config;
use crate::fleet::rollouts::{self, Among};
use crate::release::rollout::undo;
use crate::terminal::ask::confirm;
use crate::terminal::count::count;
use crate::terminal::list::listed;

#[derive(Debug, Args)]
pub struct Undo {
    name: String,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Why, for the others
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,
}

impl Undo {
    pub async fn run(self, config: &Config) -> Result<ExitCode> {
        let api = Api::open(config)?;
        let view = rollouts::find(&api, &self.name, Among::All).await?;
        let undo::Undo { back, stay, left } = undo::selected(&view.members);
        if back.is_empty() {
            say!("No machine of {} has begun: `muster rollout stop` is enough.", view.name);
            return Ok(ExitCode::SUCCESS);
        }
        say!("go back: {}", listed(&back));
        if !stay.is_empty() {
            say!("stay as they are, and wait for what is published next: {}", listed(&stay));
        }
        if !left.is_empty() {
            say!("have another generation already: {}", listed(&left));
        }
        let question = format!(
            "Stop {} for good, to bring {} back?",
            view.name,
            count(back.len(), "machine", "machines")
        );
        if !confirm(&question, self.yes)? {
            say!("Nothing was changed.");
            return Ok(ExitCode::FAILURE);
        }
        if rollouts::is_open(view.state) {
            ask(&api, &view, &AskRollout { wish: Wish::Stop, forgive: false, why: self.message }).await?;
            say!("{} is stopped.", view.name);
        }
        tell_rollback(&back);
        Ok(ExitCode::SUCCESS)
    }
}

/// How these machines get the generation before: signed again, as another generation.
fn tell_rollback(machines: &[MachineName]) {
    let names: Vec<&str> = machines.iter().map(MachineName::as_str).collect();
    say!("Sign what they ran before: `muster rollback {}`", names.join(" "));
}
