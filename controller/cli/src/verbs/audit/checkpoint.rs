//! `muster audit checkpoint`: the log's newest entry, as a text that can be kept anywhere.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::Args;
use muster_protocol::audit::{Note, verifier_key};
use muster_protocol::clock::{Clock as _, UnixMillis};
use muster_protocol::ids::Sha256;
use serde::Serialize;

use crate::api::client::Api;
use crate::config::Config;
use crate::log::{cut, seen};
use crate::terminal::error::WithHint as _;
use crate::terminal::json::print_json;

#[derive(Debug, Args)]
pub struct Checkpoint {
    /// Sign it with your operator key, so that it proves who saw this log
    #[arg(long)]
    sign: bool,
    /// Print JSON, with the text in it
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Printed {
    fleet: Sha256,
    id: u64,
    hash: Sha256,
    at: UnixMillis,
    checkpoint: String,
    /// The key, for programs that verify signed notes.
    #[serde(skip_serializing_if = "Option::is_none")]
    verifier_key: Option<String>,
}

impl Checkpoint {
    pub async fn run(self, config: Option<PathBuf>) -> Result<()> {
        let config = Config::load(config)?;
        let api = Api::to_read(&config)?;
        let before = seen::seen(&config)?;
        let wanted = before.iter().map(|seen| seen.at.id).collect();
        let from = before.as_ref().map_or(0, |seen| seen.at.id);
        let found = cut::follow(&api, &config, before.as_ref(), from, &wanted, &mut |_| ()).await?;
        seen::require(before.as_ref(), &found)?;
        seen::keep(&config, before.as_ref(), &found)?;
        let head = found
            .head
            .ok_or_else(|| anyhow!("the audit log has no entry"))
            .hint("see that url in muster.toml names the fleet's controller")?;
        let mut note = Note::new(config.file.fleet, head, api.clock.unix_ms());
        let mut key = None;
        if self.sign {
            let signer = api.key()?;
            note.sign(signer.as_ref())?;
            key = Some(verifier_key(&signer.public()));
        }
        if !self.json {
            for line in note.to_string().lines() {
                say!("{line}");
            }
            return Ok(());
        }
        print_json(&Printed {
            fleet: note.fleet,
            id: head.id,
            hash: head.hash,
            at: note.made_at,
            checkpoint: note.to_string(),
            verifier_key: key,
        })
    }
}
