//! `muster machines remove`: a machine that goes loses its enrolment and all its secrets, and what it knew is told.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use muster_protocol::api::{ProblemCode, operator_machine};
use muster_protocol::ids::MachineName;
use muster_protocol::operator::{MachineView, Standing};

use crate::cli::api::{Api, Refused};
use crate::cli::config::Config;
use crate::cli::vars::FlakeArgument;
use crate::cli::vars::fix::tell_to_renew;
use crate::cli::vars::fleet::{Held, agreed, show, tell_of_git};
use crate::vars::change::Change;
use crate::vars::layout;
use crate::vars::members::{self, MemberError};
use crate::vars::repository::has_clans_key;
use crate::vars::secret;
use crate::vars::sops::Sops;

#[derive(Debug, Args)]
pub struct Remove {
    machine: MachineName,
    /// Delete the machine's own variables too (vars/per-machine/MACHINE)
    #[arg(long)]
    delete_vars: bool,
    /// Do not ask before changing files and revoking
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    flake: FlakeArgument,
}

impl Remove {
    pub async fn run(self, config: Option<PathBuf>) -> Result<ExitCode> {
        secret::forbid_core_dumps();
        let machine = &self.machine;
        let held = Held::at(&self.flake.reference(config.clone())).await?;
        let clans = has_clans_key(held.folder.root(), machine.as_str());
        let removed = members::remove_machine(&held.snapshot, &held.generators, machine.as_str(), clans);
        let mut it = match removed {
            // Without secrets there is still an enrolment to end.
            Err(MemberError::UnknownMachine(..)) if Config::load(config.clone()).is_ok() => {
                Default::default()
            }
            removed => removed?,
        };
        let own = PathBuf::from(layout::VARS).join(layout::PER_MACHINE).join(machine.as_str());
        let has_own = held.folder.root().join(&own).is_dir();
        if self.delete_vars && has_own {
            it.draft.changes.retain(|change| !change.path().starts_with(&own));
            it.draft.rekeys.retain(|rekey| !rekey.secret.starts_with(&own));
            it.draft.changes.push(Change::RemoveTree { path: own.clone() });
        }
        let changed = !it.draft.is_empty();
        show(&it.draft);
        let sops = if it.draft.rekeys.is_empty() { None } else { Some(Sops::find().await?) };
        if !agreed(&format!("Remove {machine}, and end its access?"), self.yes)? {
            return Ok(ExitCode::FAILURE);
        }
        // Its access to the controller ends first: whatever happens to the files, it gets no more of them.
        match Config::load(config) {
            Ok(config) => revoke(&config, machine).await?,
            Err(_) => tell!("No controller is configured here, so only its secrets are taken away."),
        }
        match sops {
            Some(sops) => held.make(&sops, it.draft).await?,
            None => held.folder.commit(&it.draft.changes)?,
        }
        say!("{machine} reads no secret any more. What it runs stays as it is.");
        tell_to_renew(&it.known_to_the_old);
        if has_own && !self.delete_vars {
            say!("Its own variables are still in {}, for operators alone.", own.display());
        }
        if held.generators.machines.contains_key(machine) {
            say!("The flake still describes {machine}: take it out there.");
        }
        if changed {
            tell_of_git(&held.folder);
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn revoke(config: &Config, machine: &MachineName) -> Result<()> {
    let api = Api::open(config)?;
    api.fleet().await?;
    // One that is gone is not revoked again, which the audit log would tell as a second deed.
    let known: Result<MachineView> = api.get(&operator_machine(machine)).await;
    if known.is_ok_and(|view| view.standing == Standing::Revoked) {
        return Ok(());
    }
    let path = format!("{}/revoke", operator_machine(machine));
    match api.post::<MachineView>(&path, &()).await {
        Err(error)
            if error
                .downcast_ref::<Refused>()
                .is_some_and(|refused| refused.code == ProblemCode::NotFound) =>
        {
            Ok(())
        }
        done => done.map(drop),
    }
}
