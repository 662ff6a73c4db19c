//! What every verb that signs generations for machines may be told, and how it ends.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use muster_protocol::ids::{Generation, MachineName};

use super::sign::Outcome;
use crate::api::client::Api;
use crate::config::Config;
use crate::fleet::watch::{self, Cursor};
use crate::terminal::ask::confirm;
use crate::terminal::count::count;
use crate::trust::roots::Trusted;

#[derive(Debug, Args)]
pub struct Signing {
    /// Say what would change, and sign nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask before signing
    #[arg(long, short)]
    pub yes: bool,
    /// Where more than one operator must sign: write the draft to this file too
    #[arg(long, value_name = "FILE")]
    pub draft_file: Option<PathBuf>,
    /// Follow until every machine has settled; machines that are offline join later and are not waited for
    #[arg(long)]
    pub watch: bool,
    /// The longest that --watch follows, in seconds
    #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
    watch_limit: u64,
    /// Machines take it outside their windows and on battery, too; a pause at the machine still holds
    #[arg(long)]
    pub urgent: bool,
    /// Sign numbers up to this one, also where they are far above what was seen signed
    #[arg(long, value_name = "GENERATION")]
    pub jump_to: Option<Generation>,
}

impl Signing {
    /// The controller, asked for no more than a dry run needs.
    pub fn api(&self, config: &Config) -> Result<Api> {
        if self.dry_run { Api::to_read(config) } else { Api::open(config) }
    }

    pub fn limit(&self) -> Duration {
        Duration::from_secs(self.watch_limit)
    }

    /// Asks whether so many generations should be signed.
    pub fn confirm(&self, trusted: &Trusted, many: usize) -> Result<bool> {
        let (verb, threshold) = match trusted.operators().1 {
            1 => ("Sign and publish", String::new()),
            more => ("Sign", format!(" (the first signature of {more})")),
        };
        confirm(&format!("{verb} {}{threshold}?", count(many, "generation", "generations")), self.yes)
    }

    /// What comes after signing: nothing more, or following it.
    pub async fn after(
        &self,
        api: &Api,
        outcome: Outcome,
        signed: &[(MachineName, Generation)],
        before: Cursor,
    ) -> Result<ExitCode> {
        match outcome {
            Outcome::Published if self.watch => {
                return watch::follow(api, signed, before, self.limit()).await;
            }
            Outcome::Published => say!("Follow with `muster status`."),
            Outcome::Drafted if self.watch => {
                say!("There is nothing to follow until it is published: `muster status` shows it then.");
            }
            Outcome::Drafted => {}
        }
        Ok(ExitCode::SUCCESS)
    }
}
