//! Each machine's next generation: evaluated, and compared with what was published last.

use std::cell::Cell;

use anyhow::{Context as _, Result};
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::Generation;
use muster_protocol::machine::System;
use muster_protocol::operator::MachineView;
use muster_protocol::plan::Place;
use muster_protocol::policy::Policy;
use muster_protocol::target::Target;

use super::difference::{self, Difference};
use super::in_place::InPlace;
use super::left_out::Failed;
use super::renewal::{self, Renewal};
use super::terms::terms_of;
use crate::flake::derivations::Derivations;
use crate::flake::evaluate::Flake;
use crate::flake::machines::{Evaluated, Wanted};
use crate::flake::notes::unsigned;
use crate::terminal::count::count;
use crate::terminal::error::WithHint as _;
use crate::terminal::spinner::Spinner;
use crate::trust::roots::Trusted;

/// One machine's next generation, not yet signed.
pub struct Planned {
    pub target: Target,
    /// What the machine builds, by the controller's record.
    pub system: System,
    pub difference: Difference,
    /// Why it should be signed again though nothing changed.
    pub renewal: Option<Renewal>,
    /// The place in a rollout that its last generation has, by the controller's word: to be shown, not to
    /// decide by.
    pub place: Option<Place>,
}

impl Planned {
    /// Whether it only renews a signature, so that the machine keeps the place in a rollout that operators
    /// signed. `None`: that was not looked at. Where it cannot be told, it is put into a rollout anew, or the
    /// operator says that it should wait for nobody.
    pub fn keeps_place(&self, in_place: Option<&InPlace>) -> bool {
        let can = self.renewal.as_ref().is_none_or(|why| !why.must_be());
        let is_known = match in_place {
            Some(InPlace::Signed(_)) => true,
            Some(InPlace::Seen(seen)) => !seen.is_gated && can,
            Some(InPlace::Nothing | InPlace::Unknown(_)) => false,
            None => can,
        };
        is_known && matches!(self.difference, Difference::Same)
    }
}

/// What an update asks for, besides what the flake says.
pub struct Request<'a> {
    pub urgent: bool,
    pub message: Option<&'a str>,
    /// How many days before its end a signature counts as ending soon.
    pub refresh_days: u32,
    /// How many Nix processes evaluate at once.
    pub jobs: u8,
}

impl Request<'_> {
    /// Evaluates every chosen machine and compares it with its last published generation.
    pub async fn plan(
        &self,
        (flake, derivations): (&Flake, &mut Derivations),
        counted: &[(&MachineView, Generation)],
        trusted: &Trusted,
        progress: &Spinner,
    ) -> (Vec<Planned>, Vec<Failed>) {
        let all = count(counted.len(), "machine", "machines");
        progress.set_message(format!("evaluating {all}"));
        let done = Cell::new(0);
        let told = |more| {
            done.set(done.get() + more);
            progress.set_message(format!("evaluating {all}: {} done", done.get()));
        };
        let wanted = counted.iter().map(|&(view, _)| Wanted {
            machine: &view.machine,
            class: view.class,
            system: &view.system,
        });
        let wanted: Vec<Wanted<'_>> = wanted.collect();
        let evaluated = flake.evaluate(&wanted, derivations, usize::from(self.jobs), told).await;
        let (mut targets, mut failed) = (Vec::new(), Vec::new());
        for (&(view, generation), evaluated) in counted.iter().zip(evaluated) {
            let target = evaluated.map_err(unsigned).and_then(|evaluated| {
                let target = self.target(flake, (view, generation), evaluated)?;
                Ok((view, target))
            });
            match target {
                Ok(target) => targets.push(target),
                Err(error) => failed.push(Failed { machine: view.machine.clone(), error }),
            }
        }
        progress.set_message("comparing with what is published");
        let pairs: Vec<_> = targets
            .iter()
            .map(|(view, target)| (view.published.as_ref().map(|last| &last.target), target))
            .collect();
        let differences = difference::between(&pairs, derivations).await;
        let now = SystemClock::new().unix_seconds();
        let planned = targets.into_iter().zip(differences).map(|((view, target), difference)| {
            let last = view.published.as_ref();
            let renewal = last.and_then(|last| renewal::wanted(last, &trusted.root, now, self.refresh_days));
            let place = last.and_then(|last| last.target.rollout);
            Planned { target, system: view.system.clone(), difference, renewal, place }
        });
        (planned.collect(), failed)
    }

    fn target(
        &self,
        flake: &Flake,
        (view, generation): (&MachineView, Generation),
        evaluated: Evaluated,
    ) -> Result<Target> {
        let terms = terms_of(flake, &view.machine)?;
        let target = Target {
            rollout: None,
            machine: view.machine.clone(),
            class: view.class,
            generation,
            system: evaluated.system,
            derivation: evaluated.derivation,
            output: evaluated.output,
            action: terms.action,
            deadline_seconds: terms.deadline_seconds,
            checks: terms.checks,
            trusted_nix_keys: terms.trusted_nix_keys,
            policy: Policy { urgent: self.urgent || terms.policy.urgent, ..terms.policy },
            requires: Vec::new(),
            message: self.message.map(str::to_owned),
            evaluation: flake.evaluation().clone(),
        };
        target
            .check()
            .with_context(|| format!("muster.machines.{} of {}", view.machine, flake.reference))
            .hint("correct it in the flake and run the command again")?;
        Ok(target)
    }
}
