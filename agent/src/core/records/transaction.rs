//! One attempt to bring the machine to another system, and its verdict.

use std::collections::BTreeMap;

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Generation, StorePath};
use muster_protocol::machine::Class;
use muster_protocol::report::{EventKind, Reason, Summary, UpdateStep};
use muster_protocol::target::{Action, HealthCheck, Target};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::known::Known;
use crate::core::rollout::Followed;
use crate::core::state::State;

/// The version of every document here. A later one only adds fields.
pub const VERSION: u32 = 1;
/// The deadline of a local rollback, after which it is itself undone.
const ROLLBACK_DEADLINE_SECONDS: u32 = 300;

/// Fields that a later version wrote; an older one preserves them.
pub type Unknown = BTreeMap<String, Value>;

/// `transaction.json`: one attempt to bring the machine to another system.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Transaction {
    pub version: u32,
    /// Random; ties the activator's records and the verdict to this attempt.
    pub id: String,
    pub origin: Origin,
    pub began: UnixMillis,
    pub state: State,
    /// What ran before, set when the activator is started.
    #[serde(default)]
    pub old: Option<Old>,
    /// The units that had failed before the activation.
    #[serde(default)]
    pub failed_before: Vec<String>,
    /// Somebody else changed the confirmed system; it is activated again.
    #[serde(default)]
    pub enforcing: bool,
    /// It becomes the system of the next boot although a switch was signed: NixOS cannot switch a running
    /// system to it.
    #[serde(default)]
    pub at_boot: bool,
    /// Since when it waits for its turn in a rollout, and nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub awaits_since: Option<UnixMillis>,
    /// What the machine has to say in its rollout once this is confirmed; set when the activator is started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follows: Option<Box<Followed>>,
    /// How long its steps have taken so far.
    #[serde(default)]
    pub took: Summary,
    /// What people should know about it although it ended well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remark: Option<String>,
    /// Events that belong to `state` and may not be in the outbox yet.
    #[serde(default)]
    pub telling: Vec<Telling>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Why there is a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Origin {
    /// Operators signed it.
    Signed { target: Box<Target> },
    /// Somebody at the machine asked for the system that ran before `generation`.
    Rollback { generation: Generation, derivation: Option<StorePath>, output: StorePath, class: Class },
}

/// The system to go back to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Old {
    pub running: Option<StorePath>,
    pub profile: Option<StorePath>,
}

impl Old {
    /// What an undo sets and activates: the system that was seen running. The profile may belong to a switch
    /// that failed.
    pub fn system(&self) -> Option<&StorePath> {
        self.running.as_ref().or(self.profile.as_ref())
    }
}

/// An event on its way into the outbox, with the number that it will have there, so that a crash in between
/// repeats nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Telling {
    pub seq: u64,
    pub at: UnixMillis,
    #[serde(default)]
    pub generation: Option<Generation>,
    pub event: EventKind,
}

impl Transaction {
    pub fn signed(id: String, target: Target, began: UnixMillis) -> Self {
        Self::new(id, Origin::Signed { target: Box::new(target) }, State::Verified, began)
    }

    /// Activates a confirmed target again; its output is already in the store.
    pub fn enforce(id: String, target: Target, began: UnixMillis) -> Self {
        let origin = Origin::Signed { target: Box::new(target) };
        Self { enforcing: true, ..Self::new(id, origin, State::Built, began) }
    }

    /// Goes back to `output`, which is already in the store.
    pub fn rollback(id: String, from: &Known, output: StorePath, class: Class, began: UnixMillis) -> Self {
        let (generation, derivation) = (from.generation, from.derivation.clone());
        Self::new(id, Origin::Rollback { generation, derivation, output, class }, State::Built, began)
    }

    /// Takes back a confirmed target that a later boot did not bring up: `old` runs, and becomes the next
    /// boot's system again.
    pub fn fallen_back(id: String, target: Target, old: Old, detail: String, began: UnixMillis) -> Self {
        let origin = Origin::Signed { target: Box::new(target) };
        let state = State::RollingBack { reason: Reason::DidNotBoot, detail };
        Self { old: Some(old), at_boot: true, ..Self::new(id, origin, state, began) }
    }

    fn new(id: String, origin: Origin, state: State, began: UnixMillis) -> Self {
        Self {
            version: VERSION,
            id,
            origin,
            began,
            state,
            old: None,
            failed_before: Vec::new(),
            enforcing: false,
            at_boot: false,
            awaits_since: None,
            follows: None,
            took: Summary::default(),
            remark: None,
            telling: Vec::new(),
            unknown: Unknown::new(),
        }
    }

    pub fn target(&self) -> Option<&Target> {
        match &self.origin {
            Origin::Signed { target } => Some(target),
            Origin::Rollback { .. } => None,
        }
    }
    pub fn generation(&self) -> Generation {
        match &self.origin {
            Origin::Signed { target } => target.generation,
            Origin::Rollback { generation, .. } => *generation,
        }
    }
    pub fn derivation(&self) -> Option<&StorePath> {
        match &self.origin {
            Origin::Signed { target } => Some(&target.derivation),
            Origin::Rollback { derivation, .. } => derivation.as_ref(),
        }
    }
    pub fn output(&self) -> &StorePath {
        match &self.origin {
            Origin::Signed { target } => &target.output,
            Origin::Rollback { output, .. } => output,
        }
    }
    pub fn class(&self) -> Class {
        match &self.origin {
            Origin::Signed { target } => target.class,
            Origin::Rollback { class, .. } => *class,
        }
    }
    pub fn action(&self) -> Action {
        if self.at_boot {
            return Action::Boot;
        }
        self.target().map_or(Action::Switch, |target| target.action)
    }
    pub fn deadline_seconds(&self) -> u32 {
        self.target().map_or(ROLLBACK_DEADLINE_SECONDS, |target| target.deadline_seconds)
    }
    pub fn checks(&self) -> &[HealthCheck] {
        self.target().map_or(&[], |target| &target.checks)
    }
    pub fn is_rollback(&self) -> bool {
        matches!(self.origin, Origin::Rollback { .. })
    }

    /// The event of a final state; `running` is what the machine runs now, `ms` the total duration.
    pub fn final_event(&self, running: Option<&StorePath>, ms: u64) -> Option<EventKind> {
        let running = || running.unwrap_or_else(|| self.output()).clone();
        let quarantined = self.quarantines();
        match (&self.state, &self.origin) {
            (State::Confirmed { .. }, Origin::Rollback { .. }) => Some(EventKind::RolledBack {
                running: running(),
                reason: Reason::Operator,
                detail: "muster-agent rollback was called on the machine".to_owned(),
                quarantined,
            }),
            (State::Confirmed { degraded }, Origin::Signed { .. }) => {
                Some(EventKind::Confirmed { running: running(), ms, degraded: degraded.clone() })
            }
            (State::RolledBack { detail, .. }, Origin::Rollback { output, .. }) => Some(EventKind::Failed {
                step: UpdateStep::Preflight,
                detail: format!("the local rollback to {output} failed and was undone: {detail}"),
                quarantined,
            }),
            (State::RolledBack { reason, detail }, Origin::Signed { .. }) => Some(EventKind::RolledBack {
                running: running(),
                reason: *reason,
                detail: detail.clone(),
                quarantined,
            }),
            // After a trial run the previous system remains.
            (State::Finished { exit: 0, .. }, _) => {
                Some(EventKind::Confirmed { running: running(), ms, degraded: Vec::new() })
            }
            (State::Finished { exit, detail }, _) => Some(EventKind::Failed {
                step: UpdateStep::Preflight,
                detail: format!("the trial run ended with {exit}: {detail}"),
                quarantined,
            }),
            (State::UndoFailed { detail, .. }, _) => Some(EventKind::NeedsHuman { detail: detail.clone() }),
            (State::Failed { step, detail, .. }, _) => {
                Some(EventKind::Failed { step: *step, detail: detail.clone(), quarantined })
            }
            _ => None,
        }
    }

    /// Whether this derivation is quarantined under every number.
    ///
    /// An interruption from outside says nothing about the derivation, and neither does an absent controller,
    /// however often: cutting a machine off must not condemn what it should run. A system that was once
    /// confirmed and could not be restored is not condemned for that.
    pub fn quarantines(&self) -> bool {
        match &self.state {
            _ if self.enforcing => false,
            State::Failed { quarantined, .. } => *quarantined,
            State::Confirmed { .. } => self.is_rollback(),
            State::RolledBack { .. } if self.is_rollback() => false,
            State::RolledBack {
                reason: Reason::ControllerUnreachable | Reason::Interrupted | Reason::NeedsHuman,
                ..
            } => false,
            State::RolledBack { .. } | State::UndoFailed { .. } => true,
            _ => false,
        }
    }
}

/// `confirmation.json`: the agent's verdict. Only the agent writes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Confirmation {
    pub transaction: String,
    pub verdict: GivenVerdict,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum GivenVerdict {
    Confirm {
        #[serde(default)]
        degraded: Vec<String>,
    },
    Undo {
        reason: Reason,
        detail: String,
    },
    /// Everything else is fine; this is the reason if the deadline passes.
    Waiting {
        missing: Reason,
    },
}
