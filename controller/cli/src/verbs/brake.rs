//! `muster brake`: while it is on, no rollout begins on any machine.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use muster_protocol::api::OPERATOR_BRAKE;
use muster_protocol::operator::{BrakeView, SetBrake};

use crate::api::client::Api;
use crate::config::Config;
use crate::terminal::table;
use crate::trust::roots::Trusted;

#[derive(Debug, Args)]
pub struct Brake {
    /// Release it: rollouts go on where they stood
    #[arg(long)]
    off: bool,
    /// Say whether it is on, and change nothing
    #[arg(long, conflicts_with_all = ["off", "message"])]
    show: bool,
    /// Why, for the others
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,
}

impl Brake {
    /// A failure if it was so already.
    pub async fn run(self, config: Option<PathBuf>) -> Result<ExitCode> {
        let config = Config::load(config)?;
        let api = if self.show { Api::to_read(&config)? } else { Api::open(&config)? };
        let brake: Option<BrakeView> = api.get(OPERATOR_BRAKE).await?;
        match (&brake, self.show, self.off) {
            (Some(brake), true, _) => {
                say!("The brake is on {}", since(brake, &config));
                return Ok(ExitCode::SUCCESS);
            }
            (None, true, _) => {
                say!("The brake is off.");
                return Ok(ExitCode::SUCCESS);
            }
            (Some(brake), false, false) => {
                say!("The brake is on already, {}. `muster brake --off` releases it.", since(brake, &config));
                return Ok(ExitCode::FAILURE);
            }
            (None, false, true) => {
                say!("The brake is off already; `muster rollout list` says what each rollout waits for.");
                return Ok(ExitCode::FAILURE);
            }
            _ => {}
        }
        let asked = SetBrake { on: !self.off, why: self.message };
        let _: serde_json::Value = api.post(OPERATOR_BRAKE, &asked).await?;
        match self.off {
            true => say!("The brake is off: rollouts go on."),
            false => say!(
                "The brake is on: no rollout begins on any machine. What is switching ends by itself, and \
                 what is published without a rollout is not held. `muster brake --off` releases it."
            ),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn since(BrakeView { at, by, why }: &BrakeView, config: &Config) -> String {
    let by = Trusted::load(config).map_or_else(|_| by.short(), |trusted| trusted.name(by));
    let why = why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    format!("since {}, by {by}{why}", table::date(*at))
}
