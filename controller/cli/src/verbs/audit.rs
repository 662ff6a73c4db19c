//! `muster audit`: who did what and when, and whether the log is the one seen before.

mod accept;
mod checkpoint;
mod cut;
mod export;
mod list;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Audit {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    list: list::List,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print the log's newest entry as a text that can be kept anywhere
    Checkpoint(checkpoint::Checkpoint),
    /// Check that the log extends checkpoints that were kept, and what machines were shown
    Verify(verify::Verify),
    /// Write the whole log to a file, signed at its end
    Export(export::Export),
    /// Have the controller forget old entries that were exported
    Cut(cut::Cut),
    /// Go on with a log that does not extend the one seen here, after a backup was restored for example
    Accept(accept::Accept),
}

impl Audit {
    pub async fn run(self, config: Option<PathBuf>) -> Result<ExitCode> {
        match self.what {
            None => self.list.run(config).await?,
            Some(What::Checkpoint(checkpoint)) => checkpoint.run(config).await?,
            Some(What::Verify(verify)) => return verify.run(config).await,
            Some(What::Export(export)) => export.run(config).await?,
            Some(What::Cut(cut)) => return cut.run(config).await,
            Some(What::Accept(accept)) => return accept.run(config).await,
        }
        Ok(ExitCode::SUCCESS)
    }
}
