//! The waves of an update: working them out, showing them, and what a machine leaves by it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use muster_protocol::clock::Clock as _;
use muster_protocol::ids::MachineName;
use muster_protocol::operator::MachineView;

use crate::api::client::Api;
use crate::fleet::proven::{self, ProvenKeys};
use crate::fleet::rollouts;
use crate::release::difference::Difference;
use crate::release::gating::{self, Choice, Chosen, Fleet, Sealed};
use crate::release::highest::HighestSigned;
use crate::release::in_place::{self, InPlace};
use crate::release::plan::Planned;
use crate::release::rollout::told;
use crate::release::rollout::work::Worked;
use crate::terminal::ask::confirm;
use crate::terminal::error::WithHint as _;
use crate::terminal::list::listed;

/// What machines were given last.
pub type Known = BTreeMap<MachineName, InPlace>;

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

    fn keeps(&self, plan: &Planned, in_place: &Known) -> bool {
        !self.force && plan.keeps_place(in_place.get(&plan.target.machine))
    }

    /// What machines were given last, where it matters: those that may keep a place, and those that may lose
    /// one. A dry run signs nothing, and looks at nothing.
    pub async fn look(&self, wanted: &[Planned], highest: &mut HighestSigned, is_dry: bool) -> Result<Known> {
        let matters = |plan: &&Planned| {
            let is_same = matches!(plan.difference, Difference::Same);
            self.chosen.is_none() || (is_same && !self.force)
        };
        if is_dry {
            return Ok(Known::new());
        }
        let next = |plan: &Planned| Some((self.view(plan)?, plan.target.generation));
        let next: Vec<_> = wanted.iter().filter(matters).filter_map(next).collect();
        in_place::look(self.api, self.fleet.trusted, highest, &next).await
    }

    /// Puts what is signed into its waves, and shows them.
    pub async fn put(
        &self,
        wanted: &mut [Planned],
        in_place: &Known,
        is_dry: bool,
    ) -> Result<Option<Sealed>> {
        let (mut kept, mut moved): (Vec<&mut Planned>, Vec<&mut Planned>) =
            wanted.iter_mut().partition(|plan| self.keeps(plan, in_place));
        keep(&mut kept, in_place)?;
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
        let worked = self.fleet.work_out(chosen, gating::nonce()?, &targets, |view| {
            keys.require_shown(view)?;
            Ok(keys.look(config, view)?.key())
        })?;
        show(&worked, self.api.clock.unix_ms());
        if !is_dry && keys.write()? {
            say!("What machines proved of their keys is in {}: commit it.", keys.path().display());
        }
        let sealed = Sealed::new(worked.plan)?;
        moved.iter_mut().try_for_each(|plan| sealed.put(&mut plan.target))?;
        Ok(Some(sealed))
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
    pub async fn may_leave(
        &self,
        (wanted, in_place): (&[Planned], &Known),
        sealed: Option<&Sealed>,
        yes: bool,
    ) -> Result<bool> {
        let moved = || wanted.iter().filter(|plan| !self.keeps(plan, in_place));
        if sealed.is_some() {
            self.tell_of_leaving(moved()).await?;
            return Ok(true);
        }
        let waiting: Vec<(&MachineName, &InPlace)> = moved()
            .filter_map(|plan| in_place.get_key_value(&plan.target.machine))
            .filter(|(_, in_place)| in_place.may_wait())
            .collect();
        if waiting.is_empty() {
            return Ok(true);
        }
        for (machine, in_place) in &waiting {
            say!("{machine} {}.", in_place.describe());
        }
        if yes && !self.choice.at_once {
            return Err(anyhow!(
                "these machines would switch at once, out of a rollout in which they may still wait"
            ))
            .hint("give --at-once if that is meant, or --rollout NAME to put them into new waves");
        }
        confirm("They switch at once then, whatever a rollout waits for. Go on?", yes)
    }

    /// They are put into new waves: which rollouts they are in is told by the controller's word.
    async fn tell_of_leaving(&self, moved: impl Iterator<Item = &Planned>) -> Result<()> {
        let views: Vec<&MachineView> =
            moved.filter(|plan| plan.place.is_some()).filter_map(|plan| self.view(plan)).collect();
        if views.is_empty() {
            return Ok(());
        }
        for (machine, rollout) in gating::leaving(&rollouts::open(self.api).await?, views) {
            say!("{machine} leaves the rollout {rollout}, which goes on without it.");
        }
        Ok(())
    }
}

/// Renewed signatures keep the place that operators signed, whatever the controller says it is.
fn keep(kept: &mut [&mut Planned], in_place: &Known) -> Result<()> {
    for plan in kept {
        let Some(InPlace::Signed(signed)) = in_place.get(&plan.target.machine) else { continue };
        if signed.output != plan.target.output {
            return Err(anyhow!("{} has another generation by now", plan.target.machine))
                .hint("repeat the command");
        }
        plan.target.rollout = signed.rollout;
        plan.target.requires = signed.requires.clone();
    }
    Ok(())
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
