//! `muster machines prove` and `trust-key`: whose word counts in a rollout.

use anyhow::{Result, anyhow};
use clap::Args;
use muster_protocol::api::{OPERATOR_MACHINES, operator_machine};
use muster_protocol::ids::MachineName;
use muster_protocol::keys::PublicKey;
use muster_protocol::operator::{MachineView, Standing};

use crate::api::client::Api;
use crate::config::Config;
use crate::fleet::proven::{self, Proof, ProvenKeys};
use crate::terminal::ask::confirm_change;
use crate::terminal::error::WithHint as _;
use crate::terminal::list::listed;
use crate::terminal::table;

#[derive(Debug, Args)]
pub struct Prove {
    /// Only these [default: every machine that is enrolled]
    machines: Vec<MachineName>,
    /// The flake in whose folder machine-keys.toml is [default: flake in muster.toml, or the current folder]
    #[arg(long, value_name = "REF")]
    flake: Option<String>,
}

#[derive(Debug, Args)]
pub struct TrustKey {
    machine: MachineName,
    /// The key that it signs with, read on the machine itself: `muster-agent status` shows it there
    key: PublicKey,
    /// Do not ask before changing the file
    #[arg(long, short)]
    yes: bool,
    /// The flake in whose folder machine-keys.toml is [default: flake in muster.toml, or the current folder]
    #[arg(long, value_name = "REF")]
    flake: Option<String>,
}

async fn keys(config: &Config, flake: Option<&String>) -> Result<ProvenKeys> {
    let reference = flake.or(config.file.flake.as_ref()).map_or(".", String::as_str);
    let folder = proven::folder(config, reference)
        .await
        .hint("name the fleet's flake with --flake, or set flake in muster.toml")?;
    ProvenKeys::load(&folder)
}

fn tell_written(keys: &mut ProvenKeys) -> Result<()> {
    match keys.write()? {
        true => say!("Written to {}: commit it.", keys.path().display()),
        false => say!("{} has it already.", keys.path().display()),
    }
    Ok(())
}

impl Prove {
    pub async fn run(self, config: &Config, api: &Api) -> Result<()> {
        let views: Vec<MachineView> = api.get(OPERATOR_MACHINES).await?;
        let known = |name: &&MachineName| views.iter().any(|view| view.machine == **name);
        let unknown: Vec<&MachineName> = self.machines.iter().filter(|name| !known(name)).collect();
        if !unknown.is_empty() {
            return Err(anyhow!("the controller knows no machine {}", listed(unknown)))
                .hint("`muster machines list` shows those that there are");
        }
        let chosen = views.iter().filter(|view| match self.machines.is_empty() {
            true => view.standing == Standing::Enrolled,
            false => self.machines.contains(&view.machine),
        });
        let mut keys = keys(config, self.flake.as_ref()).await?;
        let mut rows = table::table(["MACHINE", "KEY", "WHY"]);
        let (mut shown, mut missing) = (0, 0);
        for view in chosen {
            shown += 1;
            let (key, why) = match keys.look(config, view)? {
                Proof::Proved(key) => (key.short(), "proved by the machine".to_owned()),
                Proof::Kept(key) => (key.short(), "kept".to_owned()),
                Proof::Missing(why) => {
                    missing += 1;
                    ("-".to_owned(), why)
                }
            };
            rows.add_row([view.machine.as_str().to_owned(), key, why]);
        }
        rows.print();
        if shown == missing && !keys.write()? {
            return Err(anyhow!("no key of these machines is proved, and nothing was written"))
                .hint("the table says of each what to do");
        }
        tell_written(&mut keys)
    }
}

impl TrustKey {
    pub async fn run(self, config: &Config, api: &Api) -> Result<()> {
        let view: MachineView = api.get(&operator_machine(&self.machine)).await?;
        let mut keys = keys(config, self.flake.as_ref()).await?;
        keys.trust(&view, self.key)?;
        let question = format!("{} signs with {}: let its word count in rollouts?", self.machine, self.key);
        if !confirm_change(&question, self.yes)? {
            return Ok(());
        }
        tell_written(&mut keys)
    }
}
