//! `muster machines accept`: registers a machine's own key and encrypts secrets to it. Also for a new key, or
//! a replaced machine.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Args;
use muster_protocol::api::operator_machine;
use muster_protocol::ids::MachineName;
use muster_protocol::operator::{MachineView, Standing};
use muster_protocol::witness::AgeClaim;

use crate::api::client::Api;
use crate::config::Config;
use crate::config::FlakeArgument;
use crate::fleet::witnesses;
use crate::terminal::ask::confirm_change;
use crate::terminal::error::WithHint as _;
use crate::terminal::list::listed;
use crate::vars::keys::Recipient;
use crate::vars::members;
use crate::vars::plan::PlanError;
use crate::vars::repository::has_clans_key;
use crate::vars::secret;
use crate::vars::sops::Sops;
use crate::vars::workspace::tell_to_renew;
use crate::vars::workspace::{Held, show, tell_of_git};

#[derive(Debug, Args)]
pub struct Accept {
    machine: MachineName,
    /// The machine's key (age1…), as `muster-agent status` shows it there; needed where you did not make its
    /// token
    #[arg(long, value_name = "KEY")]
    recipient: Option<String>,
    /// Do not ask before changing files
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    flake: FlakeArgument,
}

impl Accept {
    pub async fn run(self, config: Option<PathBuf>) -> Result<ExitCode> {
        secret::forbid_core_dumps();
        let recipient = self.recipient(config.clone()).await?;
        let held = Held::at(&self.flake.reference(config)?).await?;
        if !held.generators.machines.contains_key(&self.machine) {
            let known = listed(held.generators.machines.keys());
            return Err(PlanError::UnknownMachine(self.machine, known).into());
        }
        let machine = &self.machine;
        let clans = has_clans_key(held.folder.root(), machine.as_str());
        let it = members::accept(&held.snapshot, &held.generators, machine, &recipient, clans)?;
        if it.draft.is_empty() {
            say!("{machine} is registered with {recipient}, and reads what it should.");
            return Ok(ExitCode::SUCCESS);
        }
        match it.ended.first() {
            Some(old) => say!("{machine} has the key {recipient} in place of {old}:"),
            None => say!("{machine} has the key {recipient}:"),
        }
        show(&it.draft);
        if clans {
            say!("The private key that Clan made for {machine} goes: the machine has one of its own.");
        }
        let sops = if it.draft.rekeys.is_empty() { None } else { Some(Sops::find().await?) };
        if !confirm_change("Change this?", self.yes)? {
            return Ok(ExitCode::FAILURE);
        }
        match sops {
            Some(sops) => held.make(&sops, it.draft).await?,
            None => held.folder.commit(&it.draft.changes)?,
        }
        say!("Done. {machine} reads its secrets from its next generation on: `muster update {machine}`.");
        tell_to_renew(&it.known_to_the_old);
        tell_of_git(&held.folder);
        Ok(ExitCode::SUCCESS)
    }

    /// The machine's key, verified by the token's proof or by a person who looked at the machine.
    async fn recipient(&self, config: Option<PathBuf>) -> Result<Recipient> {
        let machine = &self.machine;
        let given = match &self.recipient {
            None => None,
            Some(text) => {
                Some(Recipient::age(text).ok_or_else(|| anyhow!("'{text}' is not a public age key")).hint(
                    format!("copy what `muster-agent status` shows on {machine}: it begins with age1"),
                )?)
            }
        };
        let config = match &given {
            None => Config::load(config)?,
            Some(given) => match Config::load_if_any(config)? {
                Some(config) => config,
                // The fleet has no controller yet.
                None => return Ok(given.clone()),
            },
        };
        let api = Api::to_read(&config)?;
        let fleet = api.fleet().await?.fleet;
        let view: MachineView = api.get(&operator_machine(machine)).await?;
        match view.standing {
            Standing::Enrolled => {}
            Standing::Invited => {
                return Err(anyhow!("{machine} has not enrolled yet, and has no key"))
                    .hint(format!("run `muster-agent enrol -` on {machine} first"));
            }
            Standing::Revoked => {
                return Err(anyhow!("{machine} is revoked"))
                    .hint(format!("enrol it anew with `muster machines add {machine} --class …`"));
            }
        }
        let claim = AgeClaim { recipient: view.age.unwrap_or_default(), proof: view.age_proof };
        let Some(claimed) = Recipient::age(&claim.recipient) else {
            return Err(anyhow!("the controller knows no key of {machine}"))
                .hint(format!("see that the agent runs on {machine}, and that it has checked in"));
        };
        if let Some(given) = given {
            if given != claimed {
                return Err(anyhow!(
                    "the controller says that {machine} has the key {claimed}, and you say {given}"
                ))
                .hint(format!(
                    "look at `muster-agent status` on {machine} again; if it shows what you gave, the \
                         controller lies"
                ));
            }
            return Ok(claimed);
        }
        match witnesses::find(&config, machine)? {
            Some(witness) if witness.verifies(&fleet, machine, &claim) => Ok(claimed),
            Some(_) if claim.proof.is_none() => {
                Err(anyhow!("{machine} has not proved yet that the key is its own"))
                    .hint(format!("see that the agent runs on {machine}; its next check-in proves it"))
            }
            Some(_) => Err(anyhow!(
                "the key that the controller names for {machine} is not proved to be {machine}'s"
            ))
            .hint(format!("do not accept it; compare {claimed} with `muster-agent status` on {machine}")),
            None => self.compared(claimed),
        }
    }

    /// Without a proof a person compares the keys, as with SSH host keys.
    fn compared(&self, claimed: Recipient) -> Result<Recipient> {
        let machine = &self.machine;
        say!(
            "You did not make {machine}'s token here, so nothing proves its key but the machine itself. The \
             controller says:"
        );
        say!("  {claimed}");
        let question = format!("Does `muster-agent status` on {machine} show the same?");
        match confirm_change(&question, false) {
            Ok(true) => Ok(claimed),
            Ok(false) => Err(anyhow!("the key of {machine} was not accepted")),
            Err(_) => Err(anyhow!("nothing proves that the key is {machine}'s"))
                .hint("give what `muster-agent status` shows there with --recipient"),
        }
    }
}
