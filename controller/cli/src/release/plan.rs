//! Each machine's next generation: evaluated, and compared with what was published last.

use anyhow::{Context as _, Result};
use futures_util::StreamExt as _;
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::Generation;
use muster_protocol::machine::System;
use muster_protocol::operator::MachineView;
use muster_protocol::policy::Policy;
use muster_protocol::target::Target;

use super::difference::{self, Difference};
use super::left_out::Failed;
use super::renewal::{self, Renewal};
use super::terms::terms_of;
use crate::flake::evaluate::{Evaluated, Flake};
use crate::flake::notes::unsigned;
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
}

/// What an update asks for, besides what the flake says.
pub struct Request<'a> {
    pub urgent: bool,
    pub message: Option<&'a str>,
    /// How many days before its end a signature counts as ending soon.
    pub refresh_days: u32,
    /// How many machines are evaluated at once.
    pub jobs: u8,
}

impl Request<'_> {
    /// Evaluates every chosen machine and compares it with its last published generation.
    pub async fn plan(
        &self,
        flake: &Flake,
        counted: &[(&MachineView, Generation)],
        trusted: &Trusted,
        progress: &Spinner,
    ) -> (Vec<Planned>, Vec<Failed>) {
        let each = counted.iter().map(|&(view, generation)| async move {
            progress.set_message(format!("evaluating {}", view.machine));
            let planned = async {
                let evaluated =
                    flake.evaluate(&view.machine, view.class, &view.system).await.map_err(unsigned)?;
                self.plan_one(flake, (view, generation), &evaluated, trusted).await
            };
            planned.await.map_err(|error| Failed { machine: view.machine.clone(), error })
        });
        let made: Vec<Result<Planned, Failed>> =
            futures_util::stream::iter(each).buffered(usize::from(self.jobs)).collect().await;
        let (mut planned, mut failed) = (Vec::new(), Vec::new());
        for one in made {
            match one {
                Ok(plan) => planned.push(plan),
                Err(error) => failed.push(error),
            }
        }
        (planned, failed)
    }

    async fn plan_one(
        &self,
        flake: &Flake,
        (view, generation): (&MachineView, Generation),
        evaluated: &Evaluated,
        trusted: &Trusted,
    ) -> Result<Planned> {
        let terms = terms_of(flake, &view.machine)?;
        let last = view.published.as_ref();
        let target = Target {
            machine: view.machine.clone(),
            class: view.class,
            generation,
            system: evaluated.system.clone(),
            derivation: evaluated.derivation.clone(),
            output: evaluated.output.clone(),
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
        let difference = difference::between(last.map(|last| &last.target), &target).await;
        let now = SystemClock::new().unix_seconds();
        let renewal = last.and_then(|last| renewal::wanted(last, &trusted.root, now, self.refresh_days));
        Ok(Planned { target, system: view.system.clone(), difference, renewal })
    }
}
