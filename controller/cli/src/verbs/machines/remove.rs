//! `muster machines remove`: a machine that leaves loses its enrolment and all its secrets, and what it knew
//! is reported.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Args;
use muster_protocol::api::{ProblemCode, operator_machine};
use muster_protocol::ids::MachineName;
use muster_protocol::operator::{MachineView, Standing};

use crate::api::client::{Api, Refused};
use crate::config::Config;
use crate::config::FlakeArgument;
use crate::flake::evaluate::Flake;
use crate::terminal::ask::confirm_change;
use crate::terminal::error::{WithHint as _, causes};
use crate::vars::change::Change;
use crate::vars::generators::Generators;
use crate::vars::layout;
use crate::vars::members::{self, MemberError, Membership};
use crate::vars::repository::has_clans_key;
use crate::vars::secret;
use crate::vars::sops::Sops;
use crate::vars::workspace::tell_to_renew;
use crate::vars::workspace::{rekeyed, show, taken, tell_of_git};

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

/// What the controller knows about the machine.
enum Enrolment {
    /// No controller is configured here.
    NotAsked,
    Unknown,
    Ended,
    Open(Api),
}

impl Remove {
    pub async fn run(self, config: Option<PathBuf>) -> Result<ExitCode> {
        secret::forbid_core_dumps();
        let machine = &self.machine;
        let reference = self.flake.reference(config.clone())?;
        let enrolment = enrolment(config, machine).await?;
        // Only what is encrypted to this machine changes, and the files say what that is: nothing needs to be
        // evaluated.
        let (folder, snapshot) = taken(&reference).await.hint(format!(
            "name the flake with --flake; `muster machines revoke {machine}` ends its access to the \
             controller alone"
        ))?;
        let clans = has_clans_key(folder.root(), machine.as_str());
        let removed = members::remove_machine(&snapshot, &Generators::default(), machine.as_str(), clans);
        let mut it = match (removed, &enrolment) {
            // Even without secrets there is an enrolment to end.
            (Err(MemberError::UnknownMachine(..)), Enrolment::Ended | Enrolment::Open(_)) => {
                Membership::default()
            }
            (Err(error @ MemberError::UnknownMachine(..)), Enrolment::Unknown) => {
                return Err(anyhow!(error).context("the controller knows no such machine either"))
                    .hint("check the spelling: `muster machines list --all` shows who is known");
            }
            (removed, _) => removed?,
        };
        let own = PathBuf::from(layout::VARS).join(layout::PER_MACHINE).join(machine.as_str());
        let has_own = folder.root().join(&own).is_dir();
        if self.delete_vars && has_own {
            it.draft.changes.retain(|change| !change.path().starts_with(&own));
            it.draft.rekeys.retain(|rekey| !rekey.secret.starts_with(&own));
            it.draft.changes.push(Change::RemoveTree { path: own.clone() });
        }
        let changed = !it.draft.is_empty();
        if !changed && !matches!(enrolment, Enrolment::Open(_)) {
            say!("{machine} was removed already, and reads no secret: nothing was changed.");
            tell_of_flake(&reference, machine).await;
            return Ok(ExitCode::SUCCESS);
        }
        show(&it.draft);
        let sops = if it.draft.rekeys.is_empty() { None } else { Some(Sops::find().await?) };
        if !confirm_change(&format!("Remove {machine}, and end its access?"), self.yes)? {
            return Ok(ExitCode::FAILURE);
        }
        // Its access to the controller ends first: whatever happens to the files, it gets no more of them.
        match enrolment {
            Enrolment::NotAsked => {
                tell!("No controller is configured here, so only its secrets are taken away.");
            }
            Enrolment::Unknown => {
                tell!("The controller knows no {machine}: only its secrets are taken away.");
            }
            Enrolment::Ended => {}
            Enrolment::Open(api) => {
                let _: MachineView = api.post(&format!("{}/revoke", operator_machine(machine)), &()).await?;
                say!("{machine} is revoked: the controller no longer answers it.");
            }
        }
        let changes = match sops {
            Some(sops) => rekeyed(&folder, &sops, it.draft).await?,
            None => it.draft.changes,
        };
        folder.commit(&changes)?;
        say!("{machine} reads no secret any more. What it runs stays as it is.");
        tell_to_renew(&it.known_to_the_old);
        if has_own && !self.delete_vars {
            say!("Its own variables are still in {}, for operators alone.", own.display());
        }
        tell_of_flake(&reference, machine).await;
        if changed {
            tell_of_git(&folder);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A machine that is already revoked is not revoked again, which would put a second entry into the audit log.
async fn enrolment(config: Option<PathBuf>, machine: &MachineName) -> Result<Enrolment> {
    // An operator who only has secrets has no controller.
    let Some(config) = Config::load_if_any(config)? else { return Ok(Enrolment::NotAsked) };
    let api = Api::open(&config)?;
    api.fleet().await?;
    match api.get::<MachineView>(&operator_machine(machine)).await {
        Ok(view) if view.standing == Standing::Revoked => Ok(Enrolment::Ended),
        Ok(_) => Ok(Enrolment::Open(api)),
        Err(error)
            if error
                .downcast_ref::<Refused>()
                .is_some_and(|refused| refused.code == ProblemCode::UnknownMachine) =>
        {
            Ok(Enrolment::Unknown)
        }
        Err(error) => Err(error),
    }
}

/// The flake's names are enough for this; if even they cannot be read, what was done stays done.
async fn tell_of_flake(reference: &str, machine: &MachineName) {
    match Flake::open(reference).await {
        Ok(flake) if flake.found.iter().any(|found| found.machine == machine.as_str()) => {
            say!("The flake still describes {machine}: take it out there.");
        }
        Ok(_) => {}
        Err(error) => {
            let error = causes(&anyhow!(error));
            tell!(
                "Whether the flake still describes {machine} is not known, for it does not evaluate: {error}"
            );
        }
    }
}
