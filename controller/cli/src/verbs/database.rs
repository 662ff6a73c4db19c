//! `muster database`: the controller's database, while the controller is stopped.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use muster_protocol::say;

use crate::terminal::error::WithHint as _;

#[derive(Debug, Subcommand)]
pub enum Database {
    /// Copy everything from one database to another, empty one: from SQLite to PostgreSQL or back
    Copy(Copy),
}

/// The databases are those that two configurations name. The controllers of both must be stopped.
#[derive(Debug, Args)]
pub struct Copy {
    /// The controller.toml of the database to copy
    from: PathBuf,
    /// The controller.toml of the new database: the same but for `database`
    to: PathBuf,
}

impl Database {
    pub async fn run(self) -> Result<()> {
        match self {
            Self::Copy(copy) => copy.run().await,
        }
    }
}

impl Copy {
    async fn run(self) -> Result<()> {
        let copied = muster_server::database::copy(&self.from, &self.to)
            .await
            .context("the database was not copied")
            .hint("stop every controller on both databases, and fix what the message names")?;
        for (table, rows) in &copied {
            say!("{rows:>12}  {table}");
        }
        let rows: u64 = copied.iter().map(|(_, rows)| rows).sum();
        say!("copied {rows} rows of {} tables; the log holds together", copied.len());
        say!("no controller starts on the database of {} any more", self.from.display());
        say!("put {} in the place of each controller's controller.toml, and start them", self.to.display());
        Ok(())
    }
}
