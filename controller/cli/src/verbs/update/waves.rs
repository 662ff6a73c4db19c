//! The waves of an update: working them out, showing them, and what a machine leaves by it.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use muster_protocol::clock::Clock as _;
use muster_protocol::operator::MachineView;

use crate::api::client::Api;
use crate::fleet::proven::{self, ProvenKeys};
use crate::fleet::rollouts;
use crate::release::gating::{self, Choice, Chosen, Fleet, Sealed};
use crate::release::plan::Planned;
use crate::release::rollout::told;
use crate::release::rollout::work::Worked;
use crate::release::signed;
use crate::terminal::ask::confirm;
use crate::terminal::error::WithHint as _;
use crate::terminal::list::listed;

/// What decides about the waves of an update.
pub struct Waves<'a> {
    pub api: &'a Api,
    pub fleet: Fleet<'a>,
    pub choice: &'a Choice,
    pub chosen: Option<Chosen>,
    /// Everything is published anew: no machine keeps its place.
    pub force: bool,
}

impl Waves<'_> {
    fn view(&self, plan: &Planned) -> Option<&MachineView> {
        self.fleet.views.iter().find(|view| view.machine == plan.target.machine)
    }

    fn keeps(&self, plan: &Planned) -> bool {
        !self.force && plan.keeps_place()
    }

    /// Puts what is signed into its waves, and shows them.
    pub async fn put(&self, wanted: &mut [Planned], is_dry: bool) -> Result<Option<Sealed>> {
        let (mut kept, mut moved): (Vec<&mut Planned>, Vec<&mut Planned>) =
            wanted.iter_mut().partition(|plan| self.keeps(plan));
        if !is_dry {
            self.keep(&mut kept).await?;
        }
        if moved.is_empty() {
            return Ok(None);
        }
        let Some(chosen) = &self.chosen else {
            self.tell_of_none(moved.len());
            return Ok(None);
        };
        gating::require_new_agents(moved.iter().filter_map(|plan| self.view(plan)))?;
        let folder = proven::folder(self.fleet.config, &self.fleet.flake.reference).await?;
        let mut keys = ProvenKeys::load(&folder)?;
        let targets: Vec<_> = moved.iter().map(|plan| &plan.target).collect();
        let config = self.fleet.config;
        let worked = self
            .fleet
            .work_out(chosen, gating::nonce()?, &targets, |view| Ok(keys.look(config, view)?.key()))?;
        show(&worked, self.api.clock.unix_ms());
        if !is_dry && keys.write()? {
            say!("What machines proved of their keys is in {}: commit it.", keys.path().display());
        }
        let sealed = Sealed::new(worked.plan)?;
        moved.iter_mut().try_for_each(|plan| sealed.put(&mut plan.target))?;
        Ok(Some(sealed))
    }

    /// Renewed signatures keep the place that operators signed, whatever the controller says it is.
    async fn keep(&self, kept: &mut [&mut Planned]) -> Result<()> {
        let views: Vec<&MachineView> = kept.iter().filter_map(|plan| self.view(plan)).collect();
        let signed = signed::targets(self.api, self.fleet.trusted, &views).await?;
        for (plan, signed) in kept.iter_mut().zip(signed) {
            if signed.machine != plan.target.machine || signed.output != plan.target.output {
                return Err(anyhow!("{} has another generation by now", plan.target.machine))
                    .hint("repeat the command");
            }
            plan.target.rollout = signed.rollout;
            plan.target.requires = signed.requires;
        }
        Ok(())
    }

    fn tell_of_none(&self, machines: usize) {
        let declared = &self.fleet.flake.muster.rollouts;
        if self.choice.at_once || (machines < 2 && declared.is_empty()) {
            return;
        }
        let known = match declared.is_empty() {
            true => String::new(),
            false => format!(" The flake has the rollouts {}: --rollout NAME.", listed(declared.keys())),
        };
        say!("Without a rollout: every machine switches as soon as it can.{known}");
    }

    /// Says which machines leave a rollout that has not ended, and asks where they then wait for nobody.
    pub async fn may_leave(&self, wanted: &[Planned], sealed: Option<&Sealed>, yes: bool) -> Result<bool> {
        let moved = wanted.iter().filter(|plan| !self.keeps(plan));
        let views: Vec<&MachineView> =
            moved.filter(|plan| plan.place.is_some()).filter_map(|plan| self.view(plan)).collect();
        if views.is_empty() {
            return Ok(true);
        }
        let left = gating::leaving(&rollouts::open(self.api).await?, views);
        if left.is_empty() {
            return Ok(true);
        }
        for (machine, rollout) in &left {
            say!("{machine} leaves the rollout {rollout}, which goes on without it.");
        }
        if sealed.is_some() {
            return Ok(true);
        }
        if yes && !self.choice.at_once {
            return Err(anyhow!("these machines would switch at once, out of a rollout that has not ended"))
                .hint("give --at-once if that is meant, or --rollout NAME to put them into new waves");
        }
        confirm("They switch at once then, whatever that rollout waits for. Go on?", yes)
    }
}

/// Shows a plan that was worked out, and what to know about it.
fn show(worked: &Worked, now: i64) {
    for line in told::lines(&worked.plan, now) {
        say!("{line}");
    }
    for note in &worked.notes {
        say!("  note: {note}");
    }
    for (machine, why) in &worked.cannot_vouch {
        say!("  {machine} cannot vouch: {why}");
    }
}

/// Writes the plan beside a draft's file, for signers without a network.
pub fn write_beside(draft: &Path, sealed: &Sealed) -> Result<()> {
    let file = draft.with_added_extension("plan");
    std::fs::write(&file, sealed.bytes()).with_context(|| format!("cannot write {}", file.display()))?;
    say!("Its plan is in {}.", file.display());
    Ok(())
}
