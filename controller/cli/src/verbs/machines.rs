//! `muster machines`: who belongs to the fleet.

mod accept;
mod add;
mod add_many;
mod in_flake;
mod kind;
mod prove;
mod readmit;
mod remove;
mod show;
mod token;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use muster_protocol::api::operator_machine;
use muster_protocol::clock::Clock as _;
use muster_protocol::ids::MachineName;
use muster_protocol::operator::MachineView;

use crate::api::client::Api;
use crate::config::Config;
use crate::flake::options::Options;
use crate::fleet::requests;
use crate::terminal::json::print_json;

#[derive(Debug, Subcommand)]
pub enum Machines {
    /// Add a machine and print the one-time token that enrols it, or all new machines of a flake
    Add(add::Add),
    /// List the machines that the controller knows, or with --flake those that a flake describes
    List {
        /// List what this flake describes [default without REF: the current folder]; asks no controller
        #[arg(long, value_name = "REF", num_args = 0..=1, default_missing_value = ".")]
        flake: Option<String>,
        /// Evaluate no machine for its system where the inventory does not say it
        #[arg(long, requires = "flake")]
        without_systems: bool,
        #[command(flatten)]
        options: Options,
        /// Those that were removed or revoked, too
        #[arg(long, conflicts_with = "flake")]
        all: bool,
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Show all that is known of one machine
    Show {
        machine: MachineName,
        #[arg(long)]
        json: bool,
    },
    /// Register a machine's own key, and encrypt to it the secrets that it should read
    Accept(accept::Accept),
    /// Admit machines that a lost database knew, by the keys that they have
    Readmit(readmit::Readmit),
    /// End a machine's access at once; what it runs stays as it is
    Revoke { machine: MachineName },
    /// Prove the keys of the machines that you invited, and keep them in machine-keys.toml: whose word counts
    /// in a rollout
    Prove(prove::Prove),
    /// Let a machine's word count that another operator invited, after comparing its key
    TrustKey(prove::TrustKey),
    /// Ask a machine for a new key, by a signed request; it makes one at its next contact, and the old one
    /// ends
    RotateKey { machine: MachineName },
    /// Have a machine try its latest generation again though it failed, by a signed request
    Retry { machine: MachineName },
    /// End a clone alarm, once you know what it was
    Acknowledge { machine: MachineName },
    /// Revoke a machine, take its secrets away, and say which of them want new values
    Remove(remove::Remove),
}

impl Machines {
    pub async fn run(self, config: Option<PathBuf>) -> Result<ExitCode> {
        match self {
            Self::Accept(accept) => accept.run(config).await,
            Self::Remove(remove) => remove.run(config).await,
            other => other.ask(config).await.map(|()| ExitCode::SUCCESS),
        }
    }

    async fn ask(self, config: Option<PathBuf>) -> Result<()> {
        if let Self::List { flake: Some(reference), without_systems, options, json, .. } = &self {
            return in_flake::list(reference, options, !without_systems, *json).await;
        }
        let config = Config::load(config)?;
        let api = match &self {
            Self::List { .. } | Self::Show { .. } | Self::Prove(_) | Self::TrustKey(_) => {
                Api::to_read(&config)?
            }
            _ => Api::open(&config)?,
        };
        match self {
            // These change files, and are handled above.
            Self::Accept(_) | Self::Remove(_) => Ok(()),
            Self::Add(add) => add.run(&config, &api).await,
            Self::Readmit(readmit) => readmit.run(&api).await,
            Self::Prove(prove) => prove.run(&config, &api).await,
            Self::TrustKey(trust) => trust.run(&config, &api).await,
            Self::List { json, all, .. } => show::list(&api, json, all).await,
            Self::Show { machine, json } => {
                let view: MachineView = api.get(&operator_machine(&machine)).await?;
                if json { print_json(&view) } else { show::show(&view, api.clock.unix_ms()) }
            }
            Self::RotateKey { machine } => {
                requests::rotate_key(&config, &api, &machine).await?;
                say!(
                    "{machine} is asked for a new key. `muster machines show {machine}` tells when it has \
                     one."
                );
                Ok(())
            }
            Self::Retry { machine } => {
                let generation = requests::retry(&config, &api, &machine).await?;
                say!(
                    "{machine} is asked to try generation {generation} again. `muster machines show \
                     {machine}` tells what becomes of it."
                );
                Ok(())
            }
            Self::Acknowledge { machine } => {
                let path = format!("{}/acknowledge", operator_machine(&machine));
                let _: MachineView = api.post(&path, &()).await?;
                say!("The clone alarm of {machine} is ended. It comes back if the copy does.");
                Ok(())
            }
            Self::Revoke { machine } => {
                let path = format!("{}/revoke", operator_machine(&machine));
                let _: MachineView = api.post(&path, &()).await?;
                say!("{machine} is revoked: the controller no longer answers it. Its system stays as it is.");
                Ok(())
            }
        }
    }
}
