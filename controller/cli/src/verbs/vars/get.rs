//! `muster vars get`: prints one variable to standard output.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use clap::Args;
use muster_protocol::ids::MachineName;
use muster_protocol::terminal;

use crate::config::FlakeArgument;
use crate::terminal::error::WithHint as _;
use crate::terminal::list::listed;
use crate::vars::flake::root_of;
use crate::vars::layout;
use crate::vars::names::{GeneratorId, Place, VarId};
use crate::vars::repository::{self, Snapshot};
use crate::vars::secret::SecretBytes;
use crate::vars::sops::Sops;

#[derive(Debug, Args)]
pub struct Get {
    machine: MachineName,
    #[arg(value_name = "GENERATOR/FILE")]
    var: VarId,
    #[command(flatten)]
    flake: FlakeArgument,
}

impl Get {
    pub async fn run(self, config: Option<PathBuf>) -> Result<()> {
        // Existing values need no evaluation.
        let root = root_of(&self.flake.reference(config)?).await?;
        let snapshot = Snapshot::read(&root)?;
        let places = [Place::Machine(self.machine.clone()), Place::Shared];
        let folders = places.map(|place| {
            layout::file(&GeneratorId { place, name: self.var.generator.clone() }, &self.var.file)
        });
        for folder in &folders {
            if snapshot.secrets.contains_key(folder) {
                let path = root.join(folder).join(layout::SECRET);
                print(&Sops::find().await?.decrypt(&path, &layout::shown(folder)).await?);
                return Ok(());
            }
            if let Some(value) = repository::value(&root, folder)? {
                print(&SecretBytes::new(value));
                return Ok(());
            }
        }
        Err(anyhow!("there is no {} for {}; there is {}", self.var, self.machine, self.known(&snapshot)))
            .hint("see `muster vars list`, or make it with `muster vars generate`")
    }

    fn known(&self, snapshot: &Snapshot) -> String {
        let own = Path::new(layout::VARS).join(layout::PER_MACHINE).join(self.machine.as_str());
        let shared = Path::new(layout::VARS).join(layout::SHARED);
        let all = snapshot.secrets.keys().chain(&snapshot.values);
        listed(all.filter_map(|path| {
            path.strip_prefix(&own).or_else(|_| path.strip_prefix(&shared)).ok().map(|path| path.display())
        }))
    }
}

/// The bytes as they are; at a terminal followed by a newline.
fn print(value: &[u8]) {
    terminal::bytes(value);
    if terminal::output_is_terminal() && !value.ends_with(b"\n") {
        terminal::bytes(b"\n");
    }
}
