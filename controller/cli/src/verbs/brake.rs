//! `muster brake`: while it is on, no rollout begins on any machine.

use std::path::PathBuf;

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
    pub async fn run(self, config: Option<PathBuf>) -> Result<()> {
        let config = Config::load(config)?;
        if self.show {
            let brake: Option<BrakeView> = Api::to_read(&config)?.get(OPERATOR_BRAKE).await?;
            let Some(BrakeView { at, by, why }) = brake else {
                say!("The brake is off.");
                return Ok(());
            };
            let by = Trusted::load(&config).map_or_else(|_| by.short(), |trusted| trusted.name(&by));
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            say!("The brake is on since {}, by {by}{why}", table::date(at));
            return Ok(());
        }
        let asked = SetBrake { on: !self.off, why: self.message };
        let _: serde_json::Value = Api::open(&config)?.post(OPERATOR_BRAKE, &asked).await?;
        match self.off {
            true => say!("The brake is off: rollouts go on."),
            false => say!(
                "The brake is on: no rollout begins on any machine. What is switching ends by itself, and \
                 what is published without a rollout is not held. `muster brake --off` releases it."
            ),
        }
        Ok(())
    }
}
