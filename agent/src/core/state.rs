//! The states of a switch transaction, and the transitions between them.
//!
//! ```text
//! verified --fetched--> fetched --built--> built --passed--> checked --started--> activating
//! activating --activated--> probing --confirmed--> confirmed
//! activating --activated-to-boot--> awaiting-reboot --rebooted--> probing
//! activating --undo--> rolling-back --undone--> rolled-back
//! probing --undo--> rolling-back --undo-failed--> undo-failed
//! awaiting-reboot --undo--> rolling-back
//! activating --finished--> finished
//!
//! verified --failed--> failed
//! fetched --failed--> failed
//! built --failed--> failed
//! checked --failed--> failed
//!
//! built --blocked--> needs-human --retried--> built
//! checked --blocked--> needs-human --failed--> failed
//!
//! verified --deferred--> deferred --retried--> verified
//! fetched --deferred--> deferred --retried--> fetched
//! built --deferred--> deferred --retried--> built
//! checked --deferred--> deferred --failed--> failed
//! deferred --deferred--> deferred
//! activating --untouched--> deferred
//!
//! unknown --activated--> probing
//! unknown --activated-to-boot--> awaiting-reboot
//! unknown --undo--> rolling-back
//! unknown --untouched--> deferred
//! unknown --finished--> finished
//! ```
//!
//! `idle` is the absence of a transaction; `unknown` is a state written by a later version before this one
//! took over again. A test keeps this drawing, [`TRANSITIONS`] and [`State::after`] in agreement.

use muster_protocol::checkin::Phase;
use muster_protocol::report::{Reason, UpdateStep};
use serde::{Deserialize, Serialize};

use super::policy::{Deferral, Stage};

/// The state of a transaction. Stored by these names; later versions only add to them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum State {
    /// Metadata and target are verified.
    Verified,
    /// The derivation and everything it needs are in the store.
    Fetched,
    /// The output is in the store, and it is the signed one.
    Built,
    /// The system's own checks passed; nothing has changed yet.
    Checked,
    /// Waits for a better time to continue with `stage`.
    Deferred {
        #[serde(flatten)]
        deferral: Deferral,
        #[serde(default)]
        stage: Stage,
    },
    /// Waits for a person; nothing has changed yet.
    NeedsHuman {
        detail: String,
    },
    /// The activator is working on it, or is about to.
    Activating,
    /// The new system runs but is not confirmed yet.
    Probing,
    /// The new system runs after the next reboot.
    AwaitingReboot,
    /// The activator is going back to the old system, or is about to.
    RollingBack {
        reason: Reason,
        detail: String,
    },
    Confirmed {
        #[serde(default)]
        degraded: Vec<String>,
    },
    /// A trial run ended; it was meant to change nothing.
    Finished {
        exit: i32,
        /// The end of its output.
        #[serde(default)]
        detail: String,
    },
    RolledBack {
        reason: Reason,
        detail: String,
    },
    /// Neither the new nor the old system could be activated.
    UndoFailed {
        reason: Reason,
        detail: String,
    },
    /// It ended before anything was activated.
    Failed {
        step: UpdateStep,
        detail: String,
        quarantined: bool,
    },
    /// A state of a later version. The machine itself and the activator's record tell the rest.
    #[serde(other)]
    Unknown,
}

/// What happened to a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    Fetched,
    Built,
    Passed,
    Blocked {
        detail: String,
    },
    Deferred {
        deferral: Deferral,
    },
    /// The reason to wait is gone, or may be.
    Retried,
    Started,
    /// The activator gave up before changing anything.
    Untouched {
        deferral: Deferral,
    },
    Activated,
    ActivatedToBoot,
    Rebooted,
    Confirmed {
        degraded: Vec<String>,
    },
    Finished {
        exit: i32,
        detail: String,
    },
    Undo {
        reason: Reason,
        detail: String,
    },
    Undone,
    UndoFailed {
        detail: String,
    },
    Failed {
        step: UpdateStep,
        detail: String,
        quarantined: bool,
    },
}

/// The state machine as a table: from, event, to.
pub const TRANSITIONS: &[(&str, &str, &str)] = &[
    ("verified", "fetched", "fetched"),
    ("fetched", "built", "built"),
    ("built", "passed", "checked"),
    ("checked", "started", "activating"),
    ("activating", "activated", "probing"),
    ("probing", "confirmed", "confirmed"),
    ("activating", "activated-to-boot", "awaiting-reboot"),
    ("awaiting-reboot", "rebooted", "probing"),
    ("activating", "undo", "rolling-back"),
    ("probing", "undo", "rolling-back"),
    ("awaiting-reboot", "undo", "rolling-back"),
    ("rolling-back", "undone", "rolled-back"),
    ("rolling-back", "undo-failed", "undo-failed"),
    ("activating", "finished", "finished"),
    ("verified", "failed", "failed"),
    ("fetched", "failed", "failed"),
    ("built", "failed", "failed"),
    ("checked", "failed", "failed"),
    ("needs-human", "failed", "failed"),
    ("deferred", "failed", "failed"),
    ("built", "blocked", "needs-human"),
    ("checked", "blocked", "needs-human"),
    ("needs-human", "retried", "built"),
    ("verified", "deferred", "deferred"),
    ("fetched", "deferred", "deferred"),
    ("built", "deferred", "deferred"),
    ("checked", "deferred", "deferred"),
    ("deferred", "deferred", "deferred"),
    ("deferred", "retried", "verified"),
    ("deferred", "retried", "fetched"),
    ("deferred", "retried", "built"),
    ("activating", "untouched", "deferred"),
    ("unknown", "activated", "probing"),
    ("unknown", "activated-to-boot", "awaiting-reboot"),
    ("unknown", "undo", "rolling-back"),
    ("unknown", "untouched", "deferred"),
    ("unknown", "finished", "finished"),
];

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a transaction that is {from} cannot become {input}; this is a bug in muster-agent, please report it"
)]
pub struct Impossible {
    pub from: &'static str,
    pub input: &'static str,
}

impl State {
    /// The state after `input`, or why there is none.
    pub fn after(self, input: Input) -> Result<Self, Impossible> {
        use State as S;
        let (from, name) = (self.name(), input.name());
        let next = match (self, input) {
            (S::Verified, Input::Fetched) => S::Fetched,
            (S::Fetched, Input::Built) => S::Built,
            (S::NeedsHuman { .. }, Input::Retried) => S::Built,
            (S::Deferred { stage, .. }, Input::Retried) => match stage {
                Stage::Fetch => S::Verified,
                Stage::Build => S::Fetched,
                Stage::Switch => S::Built,
            },
            (S::Built, Input::Passed) => S::Checked,
            (S::Built | S::Checked, Input::Blocked { detail }) => S::NeedsHuman { detail },
            (S::Verified, Input::Deferred { deferral }) => S::Deferred { deferral, stage: Stage::Fetch },
            (S::Fetched, Input::Deferred { deferral }) => S::Deferred { deferral, stage: Stage::Build },
            (S::Built | S::Checked, Input::Deferred { deferral })
            | (S::Activating | S::Unknown, Input::Untouched { deferral }) => {
                S::Deferred { deferral, stage: Stage::Switch }
            }
            (S::Deferred { stage, .. }, Input::Deferred { deferral }) => S::Deferred { deferral, stage },
            (S::Checked, Input::Started) => S::Activating,
            (S::Activating | S::Unknown, Input::Activated) | (S::AwaitingReboot, Input::Rebooted) => {
                S::Probing
            }
            (S::Activating | S::Unknown, Input::ActivatedToBoot) => S::AwaitingReboot,
            (S::Activating | S::Unknown, Input::Finished { exit, detail }) => S::Finished { exit, detail },
            (S::Probing, Input::Confirmed { degraded }) => S::Confirmed { degraded },
            (S::Activating | S::Probing | S::AwaitingReboot | S::Unknown, Input::Undo { reason, detail }) => {
                S::RollingBack { reason, detail }
            }
            (S::RollingBack { reason, detail }, Input::Undone) => S::RolledBack { reason, detail },
            (S::RollingBack { reason, detail: first }, Input::UndoFailed { detail }) => {
                S::UndoFailed { reason, detail: join(&first, &detail) }
            }
            (state, Input::Failed { step, detail, quarantined }) if state.is_before_activation() => {
                S::Failed { step, detail, quarantined }
            }
            _ => return Err(Impossible { from, input: name }),
        };
        Ok(next)
    }

    /// Whether it can still be dropped without a trace.
    pub fn is_before_activation(&self) -> bool {
        matches!(
            self,
            Self::Verified
                | Self::Fetched
                | Self::Built
                | Self::Checked
                | Self::Deferred { .. }
                | Self::NeedsHuman { .. }
        )
    }

    /// Whether this state is final.
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Confirmed { .. }
                | Self::Finished { .. }
                | Self::RolledBack { .. }
                | Self::UndoFailed { .. }
                | Self::Failed { .. }
        )
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Fetched => "fetched",
            Self::Built => "built",
            Self::Checked => "checked",
            Self::Deferred { .. } => "deferred",
            Self::NeedsHuman { .. } => "needs-human",
            Self::Activating => "activating",
            Self::Probing => "probing",
            Self::AwaitingReboot => "awaiting-reboot",
            Self::RollingBack { .. } => "rolling-back",
            Self::Confirmed { .. } => "confirmed",
            Self::Finished { .. } => "finished",
            Self::RolledBack { .. } => "rolled-back",
            Self::UndoFailed { .. } => "undo-failed",
            Self::Failed { .. } => "failed",
            Self::Unknown => "unknown",
        }
    }

    /// The state as a check-in names it: a check-in says what is being done, the transaction what is done.
    pub fn phase(&self) -> Phase {
        match self {
            Self::Verified => Phase::Fetching,
            Self::Fetched => Phase::Building,
            Self::Built | Self::Checked => Phase::Checked,
            Self::Deferred { .. } => Phase::Deferred,
            Self::NeedsHuman { .. } | Self::UndoFailed { .. } => Phase::NeedsHuman,
            Self::Activating => Phase::Activating,
            Self::Probing => Phase::Probing,
            Self::AwaitingReboot => Phase::AwaitingReboot,
            Self::RollingBack { .. } => Phase::RollingBack,
            Self::Confirmed { .. } => Phase::Confirmed,
            Self::Finished { .. } => Phase::Idle,
            Self::RolledBack { reason: Reason::NeedsHuman, .. } => Phase::NeedsHuman,
            Self::RolledBack { .. } => Phase::RolledBack,
            Self::Failed { .. } => Phase::Failed,
            Self::Unknown => Phase::Unknown,
        }
    }

    /// What it waits for or what went wrong, in plain text.
    ///
    /// Every state that waits or did not end well has a text: its own, or a default.
    pub fn note(&self) -> Option<&str> {
        fn or<'a>(words: &'a str, instead: &'static str) -> Option<&'a str> {
            Some(if words.trim().is_empty() { instead } else { words })
        }
        match self {
            Self::Deferred { deferral, .. } => or(&deferral.why, "waiting for a better time"),
            Self::NeedsHuman { detail } => or(detail, "a person is needed: see 'muster-agent logs'"),
            Self::RollingBack { detail, .. } | Self::RolledBack { detail, .. } => {
                or(detail, "undone without a message: see 'muster-agent logs'")
            }
            Self::UndoFailed { detail, .. } => {
                or(detail, "neither the new nor the old system could be activated: see 'muster-agent logs'")
            }
            Self::Failed { detail, .. } => or(detail, "failed without a message: see 'muster-agent logs'"),
            Self::Unknown => {
                Some("a later version of muster-agent left it in a state that this one does not know")
            }
            Self::Finished { detail, .. } if !detail.is_empty() => Some(detail),
            _ => None,
        }
    }
}

/// The activator's last message begins with why it went back; do not repeat that.
fn join(first: &str, second: &str) -> String {
    let cause = first.lines().next().unwrap_or_default();
    if second.starts_with(cause) { second.to_owned() } else { format!("{first}; {second}") }
}

impl Input {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Fetched => "fetched",
            Self::Built => "built",
            Self::Passed => "passed",
            Self::Blocked { .. } => "blocked",
            Self::Deferred { .. } => "deferred",
            Self::Retried => "retried",
            Self::Started => "started",
            Self::Untouched { .. } => "untouched",
            Self::Activated => "activated",
            Self::ActivatedToBoot => "activated-to-boot",
            Self::Rebooted => "rebooted",
            Self::Confirmed { .. } => "confirmed",
            Self::Finished { .. } => "finished",
            Self::Undo { .. } => "undo",
            Self::Undone => "undone",
            Self::UndoFailed { .. } => "undo-failed",
            Self::Failed { .. } => "failed",
        }
    }
}

#[cfg(test)]
mod tests;
