//! What the agent and its activator keep on disk. Versioned and additive: unknown fields are kept, none is ever removed.

use std::collections::BTreeMap;

use muster_protocol::checkin::Phase;
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Generation, StorePath};
use muster_protocol::machine::Class;
use muster_protocol::report::{EventKind, Reason, Step};
use muster_protocol::target::{Action, HealthCheck, Target};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::state::State;

/// The version of every document here. A later one only adds fields.
pub const VERSION: u32 = 1;
/// How often a generation is tried again that was undone only because the controller could not be reached.
pub const UNREACHABLE_RETRIES: u32 = 3;
/// How long a local rollback may take until it is itself undone.
const ROLLBACK_DEADLINE_SECONDS: u32 = 300;

/// Fields that a later version wrote; an older one hands them on.
pub type Unknown = BTreeMap<String, Value>;

/// `transaction.json`: one attempt to bring the machine to another system.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Transaction {
    pub version: u32,
    /// Drawn at random; ties the activator's records and the verdict to this attempt.
    pub id: String,
    pub origin: Origin,
    pub began: UnixMillis,
    pub state: State,
    /// What ran before, from the moment that the activator is started.
    #[serde(default)]
    pub old: Option<Old>,
    /// The units that had failed before the activation.
    #[serde(default)]
    pub failed_before: Vec<String>,
    /// Events that belong to `state` and may not be in the outbox yet.
    #[serde(default)]
    pub telling: Vec<Telling>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Why there is a transaction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Origin {
    /// Operators signed it.
    Signed { target: Box<Target> },
    /// Somebody at the machine asked for the system that ran before `generation`.
    Rollback { generation: Generation, derivation: Option<StorePath>, output: StorePath, class: Class },
}

/// The system to go back to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Old {
    pub running: Option<StorePath>,
    pub profile: Option<StorePath>,
}

impl Old {
    /// What an undo sets and activates: what was seen to run. The profile alone may be of a switch that failed.
    pub fn system(&self) -> Option<&StorePath> {
        self.running.as_ref().or(self.profile.as_ref())
    }
}

/// An event on its way into the outbox, with the number that it gets there: so a crash in between repeats nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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

    /// Goes back to `output`, which is in the store already.
    pub fn rollback(id: String, from: &Known, output: StorePath, class: Class, began: UnixMillis) -> Self {
        let (generation, derivation) = (from.generation, from.derivation.clone());
        Self::new(id, Origin::Rollback { generation, derivation, output, class }, State::Built, began)
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

    /// The event of a final state; `running` is what the machine runs now, `ms` how long it all took.
    pub fn final_event(&self, journal: &Journal, running: Option<&StorePath>, ms: u64) -> Option<EventKind> {
        let running = || running.unwrap_or_else(|| self.output()).clone();
        let quarantined = self.quarantines(journal);
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
                step: Step::Preflight,
                detail: format!("the local rollback to {output} failed and was undone: {detail}"),
                quarantined,
            }),
            (State::RolledBack { reason, detail }, Origin::Signed { .. }) => Some(EventKind::RolledBack {
                running: running(),
                reason: *reason,
                detail: detail.clone(),
                quarantined,
            }),
            (State::UndoFailed { detail, .. }, _) => Some(EventKind::NeedsHuman { detail: detail.clone() }),
            (State::Failed { step, detail, .. }, _) => {
                Some(EventKind::Failed { step: *step, detail: detail.clone(), quarantined })
            }
            _ => None,
        }
    }

    /// Whether this derivation is not tried again under any number.
    ///
    /// What was interrupted from outside says nothing about the derivation, and neither does an absent controller
    /// until the tries are used up.
    pub fn quarantines(&self, journal: &Journal) -> bool {
        match &self.state {
            State::Failed { quarantined, .. } => *quarantined,
            State::Confirmed { .. } => self.is_rollback(),
            State::RolledBack { .. } if self.is_rollback() => false,
            State::RolledBack { reason: Reason::ControllerUnreachable, .. } => {
                journal.unreachable_undone(self.generation()) >= UNREACHABLE_RETRIES
                    && !journal.is_settled(self)
            }
            State::RolledBack { reason: Reason::Interrupted, .. } => false,
            State::RolledBack { .. } | State::UndoFailed { .. } => true,
            _ => false,
        }
    }
}

/// `activation.json`: how far the activator is. It alone writes this file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Activation {
    pub version: u32,
    pub transaction: String,
    pub class: Class,
    pub action: Action,
    pub new: StorePath,
    pub old: Old,
    pub deadline_seconds: u32,
    /// The boot in which `phase` was reached.
    pub boot: String,
    pub phase: ActivationPhase,
    /// How often an activator took this up.
    pub starts: u32,
    /// What the new system's activation returned, and how long it took, in milliseconds of time awake.
    #[serde(default)]
    pub exit: Option<i32>,
    #[serde(default)]
    pub ms: u64,
    /// Why it is undone.
    #[serde(default)]
    pub reason: Option<Reason>,
    #[serde(default)]
    pub detail: String,
    #[serde(default)]
    pub undo_exit: Option<i32>,
    #[serde(default)]
    pub degraded: Vec<String>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Each is durable before the step that it names begins, or after the one that it says is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActivationPhase {
    /// OLD is recorded; nothing is changed.
    Recorded,
    /// The profile is NEW.
    ProfileSet,
    /// NEW's activation is about to run, or runs.
    Activating,
    /// It ended well and waits to be confirmed.
    Activated,
    /// NEW runs after the next reboot.
    AwaitingReboot,
    /// OLD is about to be set and activated.
    Undoing,
    Confirmed,
    Undone,
    UndoFailed,
    /// A trial run ended.
    Finished,
}

impl ActivationPhase {
    pub const ALL: [Self; 10] = [
        Self::Recorded,
        Self::ProfileSet,
        Self::Activating,
        Self::Activated,
        Self::AwaitingReboot,
        Self::Undoing,
        Self::Confirmed,
        Self::Undone,
        Self::UndoFailed,
        Self::Finished,
    ];

    pub fn is_final(self) -> bool {
        matches!(self, Self::Confirmed | Self::Undone | Self::UndoFailed | Self::Finished)
    }
}

/// `confirmation.json`: the agent's verdict. It alone writes this file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    pub transaction: String,
    pub verdict: GivenVerdict,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// All is well but this; it is the reason if the deadline passes.
    Waiting {
        missing: Reason,
    },
}

/// `journal.json`: what stays when a transaction is over.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Journal {
    #[serde(default)]
    pub version: u32,
    #[serde(default)]
    pub confirmed: Option<Known>,
    /// What ran before the confirmed generation.
    #[serde(default)]
    pub previous: Option<StorePath>,
    /// The system that the machine was left on, by confirmation or by undo; another one is drift.
    #[serde(default)]
    pub expected: Option<StorePath>,
    /// The highest generation that came to an end, whichever.
    #[serde(default)]
    pub tried: Option<Generation>,
    #[serde(default)]
    pub quarantine: Vec<Quarantined>,
    #[serde(default)]
    pub unreachable: Option<Unreachable>,
    /// The id of the last transaction that this journal has taken in.
    #[serde(default)]
    pub settled: Option<String>,
    #[serde(default)]
    pub last: Option<Last>,
    /// The drift that was reported.
    #[serde(default)]
    pub drift: Option<StorePath>,
    #[serde(default)]
    pub telling: Vec<Telling>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A confirmed generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    pub generation: Generation,
    pub output: StorePath,
    #[serde(default)]
    pub derivation: Option<StorePath>,
    pub at: UnixMillis,
}

/// A derivation that is not tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    pub derivation: StorePath,
    pub generation: Generation,
    pub detail: String,
    pub at: UnixMillis,
}

/// How often a generation was undone only because the controller could not be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreachable {
    pub generation: Generation,
    pub undone: u32,
}

/// How the last transaction ended, for check-ins and people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    pub generation: Generation,
    pub phase: Phase,
    #[serde(default)]
    pub note: Option<String>,
    pub at: UnixMillis,
}

impl Journal {
    pub fn quarantined(&self, derivation: &StorePath) -> Option<&Quarantined> {
        self.quarantine.iter().find(|entry| &entry.derivation == derivation)
    }

    pub fn is_settled(&self, transaction: &Transaction) -> bool {
        self.settled.as_deref() == Some(&transaction.id)
    }

    fn unreachable_undone(&self, generation: Generation) -> u32 {
        self.unreachable.filter(|entry| entry.generation == generation).map_or(0, |entry| entry.undone)
    }

    /// Whether this generation may be tried again as soon as the controller answers.
    pub fn may_retry(&self, generation: Generation) -> bool {
        self.tried == Some(generation)
            && matches!(self.unreachable_undone(generation), 1..=UNREACHABLE_RETRIES)
    }

    /// Takes in a transaction that is over. Doing it twice is doing it once.
    pub fn settle(&mut self, transaction: &Transaction, running: Option<&StorePath>, at: UnixMillis) {
        if self.is_settled(transaction) {
            return;
        }
        let generation = transaction.generation();
        let quarantines = transaction.quarantines(self);
        match &transaction.state {
            State::Confirmed { .. } if transaction.is_rollback() => {
                self.confirmed = None;
                self.previous = None;
            }
            State::Confirmed { .. } => {
                let output = transaction.output().clone();
                let before = transaction.old.as_ref().and_then(Old::system);
                // The same system under a new number keeps the one before it.
                if before != Some(&output) {
                    self.previous = before.cloned();
                }
                let derivation = transaction.derivation().cloned();
                self.confirmed = Some(Known { generation, output, derivation, at });
            }
            State::RolledBack { reason: Reason::ControllerUnreachable, .. } => {
                let undone = self.unreachable_undone(generation) + 1;
                self.unreachable = Some(Unreachable { generation, undone });
            }
            _ => {}
        }
        // Whichever other end it came to is no reason to try it again.
        if !matches!(transaction.state, State::RolledBack { reason: Reason::ControllerUnreachable, .. }) {
            self.unreachable = None;
        }
        if let (true, Some(derivation)) = (quarantines, transaction.derivation())
            && self.quarantined(derivation).is_none()
        {
            let detail = transaction.state.note().unwrap_or("undone at the machine").to_owned();
            self.quarantine.push(Quarantined { derivation: derivation.clone(), generation, detail, at });
        }
        // What came to its end before the activation changed nothing, and so expects nothing new.
        if transaction.old.is_some() && !matches!(transaction.state, State::Finished { .. }) {
            self.expected = running.cloned();
        }
        self.tried = self.tried.max(Some(generation));
        self.last = Some(Last {
            generation,
            phase: match &transaction.state {
                State::Confirmed { .. } if transaction.is_rollback() => Phase::RolledBack,
                state => state.phase(),
            },
            note: transaction.state.note().map(str::to_owned),
            at,
        });
        self.settled = Some(transaction.id.clone());
        self.version = VERSION;
    }
}

#[cfg(test)]
pub(crate) mod tests;
