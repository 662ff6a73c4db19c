//! `muster sign-out`: reading prompts for the operator's key again.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::api::signed_in;
use crate::config::Config;
use crate::terminal::count::count;

#[derive(Debug, Args)]
pub struct SignOut {}

impl SignOut {
    pub fn run(self, config: Option<PathBuf>) -> Result<()> {
        let config = Config::load(config)?;
        match signed_in::sign_out(&config.file.fleet)? {
            0 => say!("You were not signed in here."),
            more => {
                let more = count(more, "key", "keys");
                say!("Signed out: {more} removed.");
                say!("A copy of it would read until its end, or until its operator is removed.");
            }
        }
        Ok(())
    }
}
