//! `muster audit cut`: the controller forgets old entries that were exported.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Args;
use muster_protocol::api::OPERATOR_AUDIT_CUT;
use muster_protocol::audit::{self, CutLog, LogCut, Possession};

use crate::api::client::Api;
use crate::config::Config;
use crate::log::{export, follow, seen};
use crate::terminal::ask::confirm;
use crate::terminal::count::{count, from_one};
use crate::terminal::error::WithHint as _;
use crate::trust::roots;

#[derive(Debug, Args)]
pub struct Cut {
    /// The last entry that is forgotten; it and all before it must be at least 30 days old
    #[arg(long, value_name = "NUMBER", value_parser = from_one)]
    at: u64,
    /// The file that the entries were exported to; keep it, and give it to the other operators
    #[arg(long, value_name = "FILE")]
    export: PathBuf,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl Cut {
    pub async fn run(self, config: Option<PathBuf>) -> Result<ExitCode> {
        let config = Config::load(config)?;
        let api = Api::open(&config)?;
        let trusted = roots::follow(&api, &config).await?;
        let (_, anchor) = follow::ends(&api).await?;
        let anchor = anchor.unwrap_or_else(|| audit::origin(&config.file.fleet));
        if self.at <= anchor.id {
            return Err(anyhow!("the log was cut at entry {} already", anchor.id))
                .hint("name a later entry; `muster audit` shows those that are left");
        }
        let (mut holds, mut through, mut seen_in_file) = (Possession::default(), None, None);
        let before = seen::seen(&config)?.map(|seen| seen.at);
        let mut each = |entry: &audit::Entry| {
            if entry.id > anchor.id && entry.id <= self.at {
                holds.add(entry);
            }
            let here = audit::Checkpoint { id: entry.id, hash: entry.hash };
            if entry.id == self.at {
                through = Some(here);
            }
            if before.is_some_and(|seen| seen.id == entry.id) {
                seen_in_file = Some(here);
            }
        };
        let file = self.export.display();
        let (operators, _) = trusted.operators();
        let export = export::read(&self.export, &config.file.fleet, &operators, &mut each)?;
        if export.signers.is_empty() {
            return Err(anyhow!("{file} is not signed by an operator of root {}", trusted.root.version()))
                .hint("make another with `muster audit export FILE`");
        }
        if export.after.id > anchor.id {
            return Err(anyhow!(
                "{file} begins after entry {}, and the log after {}",
                export.after.id,
                anchor.id
            ))
            .hint("make another with `muster audit export FILE`");
        }
        let through = through
            .ok_or_else(|| anyhow!("{file} ends with entry {}, before entry {}", export.last.id, self.at))
            .hint("name an entry that is in it, or export the log again")?;
        if seen_in_file.is_some_and(|found| Some(found) != before) {
            return Err(audit::AuditError::Rewritten(self.at)).hint(follow::CHANGED);
        }
        let gone = count(self.at.saturating_sub(anchor.id), "entry", "entries");
        let question =
            format!("Forget {gone} of the controller's audit log? {file} is all that is left of them.");
        if !confirm(&question, self.yes)? {
            say!("Nothing was cut.");
            return Ok(ExitCode::FAILURE);
        }
        let asked = CutLog { through, holds: holds.finish(), export: export.sha256 };
        let done: LogCut = api.post(OPERATOR_AUDIT_CUT, &asked).await?;
        say!("The log begins after entry {} now. Keep {file}: its SHA-256 is in the log.", done.anchor.id);
        say!("Other operators go on once they checked it with `muster audit verify --export`.");
        Ok(ExitCode::SUCCESS)
    }
}
