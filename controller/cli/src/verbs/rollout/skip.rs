//! `muster rollout skip-wave`: loosens a rollout, which only a signature can do.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Args;
use muster_protocol::api::OPERATOR_MACHINES;
use muster_protocol::clock::Clock as _;
use muster_protocol::ids::{Generation, MachineName, Sha256};
use muster_protocol::operator::{MachineView, MemberState, RolloutView, Standing};
use muster_protocol::plan::Plan;
use muster_protocol::target::Target;

use crate::api::client::Api;
use crate::config::Config;
use crate::fleet::rollouts::{self, Among};
use crate::fleet::said;
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
use crate::terminal::list::listed;
use crate::terminal::table;
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
        let machines: Vec<MachineView> = api.get(OPERATOR_MACHINES).await?;
        let mut highest = HighestSigned::load(config)?;
        let unverified = left(&api, &trusted, &mut highest, (&view, &machines)).await?;
        let proven = said::proven(&api, hash, &old).await?;
        let mut skipped = skip(&old, &proven, &view.members, gating::nonce()?)
            .hint(format!("`muster rollout show {}` says what it waits for", view.plan.short()))?;
        if !unverified.is_empty() {
            let names = listed(unverified);
            skipped.loosened.push(format!("left out, since they left it by the controller's word: {names}"));
        }
        let sealed = Sealed::new(skipped.plan)?;

        let inside = sealed.plan.waves_of();
        let views: Vec<&MachineView> =
            machines.iter().filter(|view| inside.contains_key(&view.machine)).collect();
        gating::require_new_agents(views.iter().copied())?;
        let numbered = Numbered::of(&api, &trusted, &mut highest, &views, None).await?;
        if numbered.counted.len() < inside.len() {
            return Err(anyhow!("a machine of {} cannot be signed for", view.name))
                .hint("solve that first, or publish with `muster update --rollout NAME` for the others");
        }
        let views: Vec<&MachineView> = numbered.counted.iter().map(|(view, _)| *view).collect();
        let targets = signed::targets(&api, &trusted, &mut highest, &views).await?;
        let mut planned = Vec::new();
        for (target, (view, next)) in targets.into_iter().zip(&numbered.counted) {
            let was = target.generation;
            planned.push((self.again(&sealed, target, (view, *next), hash)?, was));
        }

        for (plan, was) in &planned {
            say!("{}", shown(plan, *was, &machines));
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
        let numbers = planned.iter().map(|(plan, _)| (plan.target.machine.clone(), plan.target.generation));
        highest.keep(numbers);
        let signed: Vec<&Planned> = planned.iter().map(|(plan, _)| plan).collect();
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

/// One machine's new generation, and what is signed again by it.
fn shown(plan: &Planned, was: Generation, machines: &[MachineView]) -> String {
    let Planned { target, .. } = plan;
    let published = machines.iter().find(|view| view.machine == target.machine);
    let at = published.and_then(|view| Some(view.published.as_ref()?.at));
    let at =
        at.map_or_else(String::new, |at| format!(", published {} as the controller says", table::date(at)));
    let Target { machine, class, generation, output, .. } = target;
    format!("{machine} ({class}) generation {generation}: what generation {was} was ({output}){at}")
}

/// Those that have left the rollout by the controller's word, and nothing says otherwise. An error if what
/// operators signed does.
async fn left(
    api: &Api,
    trusted: &Trusted,
    highest: &mut HighestSigned,
    (rollout, machines): (&RolloutView, &[MachineView]),
) -> Result<Vec<MachineName>> {
    let left = rollout.members.iter().filter(|member| member.state == MemberState::Left);
    let (mut views, mut unverified) = (Vec::new(), Vec::new());
    for member in left {
        let view = machines.iter().find(|view| view.machine == member.machine);
        match view.filter(|view| view.published.is_some()) {
            Some(view) => views.push(view),
            None => unverified.push(member.machine.clone()),
        }
    }
    for (view, signed) in views.iter().zip(signed::each(api, trusted, highest, &views).await?) {
        let machine = &view.machine;
        let is_revoked = view.standing == Standing::Revoked;
        match signed {
            Ok(target) if target.rollout.is_none_or(|place| place.plan != rollout.plan) => {}
            Ok(_) if !is_revoked => {
                return Err(anyhow!(
                    "the controller says that {machine} has left the rollout, and it has not"
                ))
                .hint("sign nothing that it says before you know who holds it");
            }
            _ => unverified.push(machine.clone()),
        }
    }
    Ok(unverified)
}

/// Its vouchers vouch in this fleet and epoch alone.
fn require_ours(plan: &Plan, config: &Config, trusted: &Trusted) -> Result<()> {
    if plan.fleet == config.file.fleet && plan.epoch == trusted.root.epoch() {
        return Ok(());
    }
    Err(anyhow!("the plan of this rollout is of another fleet or epoch"))
        .hint("publish anew, with `muster update --rollout NAME`")
}
