//! `muster audit accept`: goes on with a log that does not extend the one seen before.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Args;
use muster_protocol::clock::Clock as _;

use crate::api::client::Api;
use crate::config::Config;
use crate::log::beginning::Cut;
use crate::log::{cut, seen};
use crate::terminal::ask::confirm;
use crate::terminal::error::WithHint as _;
use crate::terminal::table;
use crate::trust::roots;

/// The longest reason that is kept, in bytes.
const MOST_REASON: usize = 1000;

#[derive(Debug, Args)]
pub struct Accept {
    /// Why, to be kept on this computer beside what was seen before
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl Accept {
    pub async fn run(self, config: Option<PathBuf>) -> Result<ExitCode> {
        if self.reason.as_ref().is_some_and(|reason| reason.len() > MOST_REASON) {
            return Err(anyhow!("the reason has more than {MOST_REASON} bytes")).hint("give a shorter one");
        }
        let config = Config::load(config)?;
        let api = Api::to_read(&config)?;
        roots::follow(&api, &config).await?;
        let before = seen::seen(&config)?;
        let wanted: BTreeSet<u64> = before.iter().map(|seen| seen.at.id).collect();
        // From where it begins: the entry that tells of a restored backup may be before what was seen.
        let found = cut::follow(&api, &config, before.as_ref(), 0, &wanted, &mut |_| ()).await?;
        let head = found
            .head
            .ok_or_else(|| anyhow!("the audit log has no entry"))
            .hint("see that url in muster.toml names the fleet's controller")?;
        let is_cut = matches!(found.cut, Cut::Unproven(_));
        if !is_cut && before.as_ref().is_none_or(|seen| seen::extends(seen.at, &found)) {
            say!("The log extends what was seen here: there is nothing to accept.");
            return Ok(ExitCode::SUCCESS);
        }
        let made =
            |made: Option<i64>| made.map_or_else(String::new, |at| format!(", of {}", table::date(at)));
        if let Some(seen) = &before {
            say!("Seen here before:  entry {} {}{}", seen.at.id, seen.at.hash, made(seen.made));
        }
        say!("The controller now: entry {} {}{}", head.id, head.hash, made(found.made));
        if let Cut::Unproven(why) = &found.cut {
            say!("It says that the log was cut at entry {}, and {why}.", found.anchor.id);
        }
        match &found.restored {
            Some(entry) => say!(
                "Entry {} says that the controller was restored on {}: {}",
                entry.id,
                table::date(entry.at),
                entry.detail
            ),
            None => say!("No entry says that the controller was restored from a backup."),
        }
        say!(
            "What was seen before and is not in this log is lost, or hidden by whoever holds the controller."
        );
        if !confirm("Go on with the log that the controller shows now?", self.yes)? {
            say!("Nothing was changed.");
            return Ok(ExitCode::FAILURE);
        }
        let now = api.clock.unix_ms();
        seen::write(&config, &seen::Seen::accepting(before, head, &found, now, self.reason))?;
        say!("This computer goes on from entry {}; {} keeps what it saw before.", head.id, seen::SEEN);
        Ok(ExitCode::SUCCESS)
    }
}
