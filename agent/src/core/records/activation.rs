//! The activator's own record.

use muster_protocol::ids::StorePath;
use muster_protocol::machine::Class;
use muster_protocol::report::Reason;
use muster_protocol::target::Action;
use serde::{Deserialize, Serialize};

use super::transaction::{Old, Transaction, Unknown, VERSION};

/// `activation.json`: how far the activator is. Only the activator writes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    /// How many activators have taken this up.
    pub starts: u32,
    /// The exit code of the new system's activation, and its duration in milliseconds of awake time.
    #[serde(default)]
    pub exit: Option<i32>,
    #[serde(default)]
    pub ms: u64,
    /// Why it is being undone.
    #[serde(default)]
    pub reason: Option<Reason>,
    #[serde(default)]
    pub detail: String,
    #[serde(default)]
    pub undo_exit: Option<i32>,
    #[serde(default)]
    pub undo_ms: Option<u64>,
    /// How much of the deadline had passed when this was written, in milliseconds of awake time in this boot.
    /// An activator that takes the record up counts on from here.
    #[serde(default)]
    pub spent_ms: u64,
    #[serde(default)]
    pub degraded: Vec<String>,
    /// What failed according to the new system's activation: units, and users whose own units did not follow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sessions: Vec<String>,
    /// Systems that could not be undone and may have left parts behind.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leftovers: Vec<StorePath>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Each phase is durable before the step it names begins, or after the one it reports as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActivationPhase {
    /// OLD is recorded; nothing has changed.
    Recorded,
    /// The profile is NEW.
    ProfileSet,
    /// NEW's activation is about to run, or is running.
    Activating,
    /// NEW's activation succeeded; waiting for confirmation.
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
    /// Given up before anything changed.
    Untouched,
    /// A phase of a later version: how far the new system was brought is unknown.
    #[serde(other)]
    Unknown,
}

impl ActivationPhase {
    pub const ALL: [Self; 12] = [
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
        Self::Untouched,
        Self::Unknown,
    ];

    pub fn is_final(self) -> bool {
        matches!(self, Self::Confirmed | Self::Undone | Self::UndoFailed | Self::Finished | Self::Untouched)
    }
}

/// test and dry-activate leave the profile alone.
pub fn sets_profile(action: Action) -> bool {
    matches!(action, Action::Switch | Action::Boot)
}

impl Activation {
    /// The record of an activation that has not started.
    pub fn new(transaction: &Transaction, boot: &str) -> Self {
        Self {
            version: VERSION,
            transaction: transaction.id.clone(),
            class: transaction.class(),
            action: transaction.action(),
            new: transaction.output().clone(),
            old: transaction.old.clone().unwrap_or_default(),
            deadline_seconds: transaction.deadline_seconds(),
            boot: boot.to_owned(),
            phase: ActivationPhase::Recorded,
            starts: 0,
            exit: None,
            ms: 0,
            reason: None,
            detail: String::new(),
            undo_exit: None,
            undo_ms: None,
            spent_ms: 0,
            degraded: Vec::new(),
            failed: Vec::new(),
            sessions: Vec::new(),
            leftovers: Vec::new(),
            unknown: Unknown::new(),
        }
    }
}
