//! Rollouts, as `store/sqlite` keeps them.

use std::collections::BTreeSet;

use muster_protocol::ids::{MachineName, Sha256};
use muster_protocol::plan::Said;
use muster_server::core::Change;
use muster_server::core::rollouts::facts::{Recorded, Void};
use muster_server::core::rollouts::{NewRollout, NewTurn, StoredRollout};

use super::{Forbidden, Memory, insert};

impl Memory {
    pub(super) fn roll(&mut self, change: &Change) -> Result<(), Forbidden> {
        match change {
            Change::PlanStored(new) => {
                let NewRollout { plan, document: _, name, budget, at, by } = NewRollout::clone(new);
                let (asked, verdict, open) = (None, None, true);
                let rollout = StoredRollout { plan, name, budget, at, by, asked, verdict, open };
                insert(&mut self.rollouts, plan, rollout)?;
            }
            Change::RolloutAsked { plan, asked } => {
                self.rollout(plan, |rollout| rollout.asked = Some(asked.clone()));
            }
            Change::RolloutDecided { plan, verdict } => self.rollout(plan, |rollout| {
                rollout.open = verdict.is_open();
                rollout.verdict = Some(verdict.clone());
            }),
            Change::MemberFailed { plan, failed } => {
                let place = (*plan, failed.machine.clone());
                self.members.entry(place).or_default().failed.get_or_insert(failed.failure);
            }
            Change::MembersForgiven { plan, machines } => {
                for machine in machines {
                    self.members.entry((*plan, machine.clone())).or_default().forgiven = true;
                }
            }
            Change::MemberTriesAgain { plan, machine } => {
                if let Some(member) = self.members.get_mut(&(*plan, machine.clone())) {
                    (member.failed, member.forgiven) = (None, false);
                }
            }
            Change::Said(said) if self.rollouts.contains_key(&said.vouch.plan) => {
                let recorded = self.members.entry((said.vouch.plan, said.machine.clone())).or_default();
                let column = match said.vouch.said {
                    Said::Confirmed => &mut recorded.confirmed,
                    Said::Soaked => &mut recorded.soaked,
                    Said::Withdrawn => &mut recorded.withdrawn,
                };
                *column = Some(said.vouch.signature);
            }
            Change::TurnChanged(new) => {
                let NewTurn { machine, generation, turn, rings } = &**new;
                self.row(machine, |row| {
                    if row.published == Some(*generation) {
                        row.turn = Some(turn.clone());
                        row.turn_changed |= rings;
                    }
                });
            }
            Change::BrakeSet { brake } => self.brake.clone_from(brake),
            Change::PlansForgotten { before, most: _ } => {
                let named: BTreeSet<Sha256> = self.generations.values().filter_map(|new| new.plan).collect();
                self.rollouts.retain(|plan, rollout| rollout.at >= *before || named.contains(plan));
                self.members.retain(|(plan, _), _| self.rollouts.contains_key(plan));
            }
            _ => {}
        }
        Ok(())
    }

    /// What a machine said counts no longer.
    pub(super) fn void(&mut self, machine: &MachineName, why: Void) {
        for ((_, name), member) in &mut self.members {
            if name == machine {
                member.void = member.void.max(why);
                member.forgiven &= why != Void::Revoked;
            }
        }
        if self.machines.get(machine).is_none_or(|row| row.enrolment < 2) {
            return;
        }
        for plan in self.rollouts.values().filter(|rollout| rollout.open).map(|rollout| rollout.plan) {
            let void = || Recorded { void: why, ..Recorded::default() };
            self.members.entry((plan, machine.clone())).or_insert_with(void);
        }
    }

    fn rollout(&mut self, plan: &Sha256, change: impl FnOnce(&mut StoredRollout)) {
        if let Some(rollout) = self.rollouts.get_mut(plan) {
            change(rollout);
        }
    }
}
