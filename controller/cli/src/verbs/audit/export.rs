//! `muster audit export`: the whole log in a file, signed at its end.

use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use muster_protocol::audit::Note;
use muster_protocol::clock::Clock as _;

use crate::api::client::Api;
use crate::config::Config;
use crate::log::export::Writer;
use crate::log::{cut, follow, seen};
use crate::terminal::count::count;
use crate::terminal::error::WithHint as _;

#[derive(Debug, Args)]
pub struct Export {
    /// The file to write; one that is there is replaced
    file: PathBuf,
}

impl Export {
    pub async fn run(self, config: Option<PathBuf>) -> Result<()> {
        let config = Config::load(config)?;
        let api = Api::to_read(&config)?;
        let key = api.key()?;
        let before = seen::seen(&config)?;
        let wanted = before.iter().map(|seen| seen.at.id).collect();
        let (_, anchor) = follow::ends(&api).await?;
        let after = anchor.unwrap_or_else(|| muster_protocol::audit::origin(&config.file.fleet));
        let shown = self.file.display();
        let folder = self.file.parent().filter(|folder| !folder.as_os_str().is_empty());
        let file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))
            .with_context(|| format!("cannot write {shown}"))
            .hint("name a file in a folder that is there")?;
        let mut writer = Writer::begin(BufWriter::new(file), config.file.fleet, after)?;
        let mut failed = None;
        let mut write = |entry: &_| {
            if failed.is_none() {
                failed = writer.entry(entry).err();
            }
        };
        let found = cut::follow(&api, &config, before.as_ref(), 0, &wanted, &mut write).await?;
        if let Some(error) = failed {
            return Err(error.context(format!("cannot write {shown}"))).hint("free some space there");
        }
        seen::require(before.as_ref(), &found)?;
        if found.anchor != after {
            return Err(anyhow::anyhow!("the log was cut while it was exported")).hint("repeat this");
        }
        let mut note = Note::new(config.file.fleet, writer.at(), api.clock.unix_ms());
        note.sign(key.as_ref())?;
        let last = writer.at();
        let file = writer.end(&note)?.into_inner().map_err(|error| error.into_error())?;
        file.as_file().sync_all().with_context(|| format!("cannot write {shown}"))?;
        file.persist(&self.file).with_context(|| format!("cannot write {shown}"))?;
        seen::keep(&config, before.as_ref(), &found)?;
        let entries = count(last.id.saturating_sub(after.id), "entry", "entries");
        say!(
            "{entries} up to number {} are in {shown}, signed by your key {}.",
            last.id,
            key.public().short()
        );
        say!("Anybody can check it with `muster audit verify --export {shown}`.");
        Ok(())
    }
}
