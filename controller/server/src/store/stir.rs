//! What this process knows of rollouts that something has happened to, for whoever decides about them. Others
//! who write to the same database are noticed by looking.

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;

use muster_protocol::ids::{MachineName, Sha256};
use tokio::sync::Notify;

use super::alone::alone;
use crate::core::change::Change;

/// How many machines are remembered. With more, all are forgotten, and each counts as changed once more.
const MOST: usize = 100_000;

#[derive(Debug, Default)]
pub struct Stir {
    inner: Mutex<Inner>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    /// What last counted of each machine, and in which rollout.
    machines: HashMap<MachineName, (Sha256, u64)>,
    stirred: Stirred,
}

/// Rollouts that are to be decided again.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stirred {
    pub plans: BTreeSet<Sha256>,
    /// Any of them.
    pub all: bool,
}

impl Stirred {
    fn is_empty(&self) -> bool {
        self.plans.is_empty() && !self.all
    }
}

impl Stir {
    /// These changes are committed, or may have been.
    pub fn committed(&self, changes: &[Moved]) {
        let stirred = alone(&self.inner, |inner| {
            changes.iter().for_each(|moved| inner.note(moved));
            !inner.stirred.is_empty()
        });
        if stirred && !changes.is_empty() {
            self.news.notify_one();
        }
    }

    /// What was stirred since the last call.
    pub fn take(&self) -> Stirred {
        alone(&self.inner, |inner| std::mem::take(&mut inner.stirred))
    }

    /// Completes once something is stirred that nobody was told of.
    pub async fn news(&self) {
        self.news.notified().await;
    }
}

impl Inner {
    fn note(&mut self, moved: &Moved) {
        match moved {
            Moved::Machine { machine, plan, counts } => {
                let now = (*plan, *counts);
                if self.machines.get(machine) == Some(&now) {
                    return;
                }
                if self.machines.len() >= MOST {
                    self.machines.clear();
                }
                self.machines.insert(machine.clone(), now);
                self.stirred.plans.insert(*plan);
            }
            Moved::Reported(machine) => {
                // Of one that is not known here, the next check-in counts as changed.
                if let Some((plan, _)) = self.machines.get(machine) {
                    self.stirred.plans.insert(*plan);
                }
            }
            Moved::Plan(plan) => drop(self.stirred.plans.insert(*plan)),
            Moved::Anything => self.stirred.all = true,
        }
    }
}

/// What a change may move in rollouts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moved {
    /// A machine says this, as a number.
    Machine {
        machine: MachineName,
        plan: Sha256,
        counts: u64,
    },
    /// A machine reported what became of a generation.
    Reported(MachineName),
    Plan(Sha256),
    Anything,
}

impl Moved {
    pub fn of(change: &Change) -> Option<Self> {
        Some(match change {
            Change::CheckedIn(one) => {
                let (plan, counts) = one.turn?;
                Self::Machine { machine: one.machine.clone(), plan, counts }
            }
            Change::Said(said) => Self::Plan(said.vouch.plan),
            // It has left the rollout that it was in, if any.
            Change::Published { .. }
            | Change::MachineRevoked { .. }
            | Change::MachineInvited(_)
            | Change::Enrolled(_)
            | Change::BrakeSet { .. } => Self::Anything,
            Change::PlanStored(new) => Self::Plan(new.plan),
            Change::RolloutAsked { plan, .. } | Change::MembersForgiven { plan, .. } => Self::Plan(*plan),
            Change::ReportsThrough(count) if count.outcome.is_some() => Self::Reported(count.machine.clone()),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_machine_that_says_the_same_again_stirs_nothing() {
        let (stir, plan) = (Stir::default(), Sha256::of(b"plan"));
        let says = |counts| Moved::Machine { machine: "tin".parse().unwrap(), plan, counts };
        stir.committed(&[says(1)]);
        stir.news().await;
        assert_eq!(stir.take().plans, BTreeSet::from([plan]));
        stir.committed(&[says(1)]);
        assert!(stir.take().is_empty());
        stir.committed(&[says(2), Moved::Anything]);
        stir.news().await;
        assert_eq!(stir.take(), Stirred { plans: BTreeSet::from([plan]), all: true });
    }

    #[test]
    fn it_takes_bounded_room() {
        let (stir, plan) = (Stir::default(), Sha256::of(b"plan"));
        for n in 0..MOST + 10 {
            let machine = format!("m{n}").parse().unwrap();
            stir.committed(&[Moved::Machine { machine, plan, counts: 1 }]);
        }
        assert_eq!(alone(&stir.inner, |inner| inner.machines.len()), 10);
    }
}
