//! `muster rollout skip-wave`: loosens a rollout, which only a signature can do.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Args;
use muster_protocol::api::OPERATOR_MACHINES;
use muster_protocol::clock::Clock as _;
use muster_protocol::ids::{Generation, Sha256};
use muster_protocol::operator::MachineView;
use muster_protocol::plan::Plan;
use muster_protocol::target::Target;

use crate::api::client::Api;
use crate::config::Config;
use crate::fleet::rollouts::{self, Among};
use crate::release::difference::Difference;
use crate::release::gating::{self, Sealed};
use crate::release::highest::HighestSigned;
use crate::release::numbers::Numbered;
use crate::release::plan::Planned;
use crate::release::rollout::skip::skip;
use crate::release::rollout::told;
use crate::release::sign::{self, Outcome};
use crate::release::signed;
use crate::terminal::ask::confirm;
use crate::terminal::count::count;
use crate::terminal::error::WithHint as _;
use crate::trust::roots::{self, Trusted};

#[derive(Debug, Args)]
pub struct SkipWave {
    name: String,
    /// Do not ask before signing
    #[arg(long, short)]
    yes: bool,
    /// Where more than one operator must sign: write the draft to this file too
    #[arg(long, value_name = "FILE")]
    draft_file: Option<PathBuf>,
    /// Words for the history
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,
}

impl SkipWave {
    pub async fn run(self, config: &Config) -> Result<ExitCode> {
        let api = Api::open(config)?;
        let trusted = roots::follow(&api, config).await?;
        trusted.require_operator(&api.public()?)?;
        let view = rollouts::find(&api, &self.name, Among::Open).await?;
        let (old, hash) = (Sealed::fetch(&api, view.plan).await?.plan, view.plan);
        require_ours(&old, config, &trusted)?;
        let skipped = skip(&old, &view.waves, &view.members, gating::nonce()?)
            .hint(format!("`muster rollout show {}` says what it waits for", view.plan.short()))?;
        let sealed = Sealed::new(skipped.plan)?;

        let machines: Vec<MachineView> = api.get(OPERATOR_MACHINES).await?;
        let inside = sealed.plan.waves_of();
        let views: Vec<&MachineView> =
            machines.iter().filter(|view| inside.contains_key(&view.machine)).collect();
        gating::require_new_agents(views.iter().copied())?;
        let mut highest = HighestSigned::load(config)?;
        let numbered = Numbered::of(&api, &trusted, &mut highest, &views, None).await?;
        if numbered.counted.len() < inside.len() {
            return Err(anyhow!("a machine of {} cannot be signed for", view.name))
                .hint("solve that first, or publish with `muster update --rollout NAME` for the others");
        }
        let views: Vec<&MachineView> = numbered.counted.iter().map(|(view, _)| *view).collect();
        let targets = signed::targets(&api, &trusted, &mut highest, &views).await?;
        let mut planned = Vec::new();
        for (target, (view, next)) in targets.into_iter().zip(&numbered.counted) {
            planned.push(self.again(&sealed, target, (view, *next), hash)?);
        }

        for line in told::lines(&sealed.plan, api.clock.unix_ms()) {
            say!("{line}");
        }
        say!("This gives up what was signed:");
        for line in &skipped.loosened {
            say!("  - {line}");
        }
        let many = count(planned.len(), "generation", "generations");
        if !confirm(&format!("Sign {many} without waiting for that wave?"), self.yes)? {
            say!("Nothing was signed.");
            return Ok(ExitCode::FAILURE);
        }
        sealed.send(&api).await?;
        let numbers = planned.iter().map(|plan| (plan.target.machine.clone(), plan.target.generation));
        highest.keep(numbers);
        let signed: Vec<&Planned> = planned.iter().collect();
        match sign::sign(config, &api, &trusted, &signed, self.draft_file.as_deref()).await? {
            Outcome::Published => say!("Follow with `muster rollout watch {}`.", sealed.hash.short()),
            Outcome::Drafted => say!("Until it is published, {} waits as before.", view.name),
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The same target as the next generation, in its new place.
    fn again(
        &self,
        sealed: &Sealed,
        target: Target,
        (view, next): (&MachineView, Generation),
        old: Sha256,
    ) -> Result<Planned> {
        if target.rollout.is_none_or(|place| place.plan != old) {
            return Err(anyhow!("{} has another generation by now", target.machine))
                .hint("repeat the command");
        }
        let message = self.message.clone().or_else(|| target.message.clone());
        let mut target = Target { generation: next, message, rollout: None, ..target };
        sealed.put(&mut target)?;
        Ok(Planned {
            target,
            system: view.system.clone(),
            difference: Difference::Same,
            renewal: None,
            place: None,
        })
    }
}

/// Its vouchers vouch in this fleet and epoch alone.
fn require_ours(plan: &Plan, config: &Config, trusted: &Trusted) -> Result<()> {
    if plan.fleet == config.file.fleet && plan.epoch == trusted.root.epoch() {
        return Ok(());
    }
    Err(anyhow!("the plan of this rollout is of another fleet or epoch"))
        .hint("publish anew, with `muster update --rollout NAME`")
}
