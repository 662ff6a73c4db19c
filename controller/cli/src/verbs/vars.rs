//! `muster vars`: the variables and secrets of a flake's machines.

mod check;
mod fix;
mod generate;
mod get;
mod keygen;
mod list;
mod set;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

use crate::vars::secret;

#[derive(Debug, Subcommand)]
pub enum Vars {
    /// List what is declared, what is there, and who reads it
    List(list::List),
    /// Print one variable
    Get(get::Get),
    /// Give one variable a value, from standard input or typed
    Set(set::Set),
    /// Make what is missing
    Generate(generate::Generate),
    /// Say what is missing, out of date, or for other eyes than it should be
    Check(check::Check),
    /// Encrypt every secret to just whom it is for
    Fix(fix::Fix),
    /// Make your own key and register it as an operator's
    Keygen(keygen::Keygen),
}

impl Vars {
    pub async fn run(self, config: Option<PathBuf>) -> Result<ExitCode> {
        secret::forbid_core_dumps();
        match self {
            Self::List(list) => list.run(config).await.map(|()| ExitCode::SUCCESS),
            Self::Get(get) => get.run(config).await.map(|()| ExitCode::SUCCESS),
            Self::Set(set) => set.run(config).await,
            Self::Generate(generate) => generate.run(config).await,
            Self::Check(check) => check.run(config).await,
            Self::Fix(fix) => fix.run(config).await,
            Self::Keygen(keygen) => keygen.run(config).await,
        }
    }
}
