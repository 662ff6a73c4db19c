//! `muster sign-out`: reading asks for the operator's key again.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::config::Config;
use super::{ask, signed_in};

#[derive(Debug, Args)]
pub struct SignOut {}

impl SignOut {
    pub fn run(self, config: Option<PathBuf>) -> Result<()> {
        let config = Config::load(config)?;
        match signed_in::sign_out(&config.file.fleet)? {
            0 => say!("You were not signed in here."),
            more => {
                let more = ask::count(u32::try_from(more).unwrap_or(u32::MAX), "key");
                say!("Signed out: {more} removed.");
                say!("A copy of it would read until its end, or until its operator is removed.");
            }
        }
        Ok(())
    }
}
