//! The position of an activator: its record, its next step, and how much of its deadline is left.

use std::time::Duration;

use muster_protocol::ids::StorePath;
use muster_protocol::target::Action;

use crate::core::records::{Activation, ActivationPhase as Phase};

/// How long to wait for somebody else's switch, the pause before asking again, and the longest pause before a
/// script that found the lock taken is run again.
pub(super) const OTHERS_LIMIT: Duration = Duration::from_secs(600);
pub(super) const OTHERS_PAUSE: Duration = Duration::from_millis(500);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// An activator. A kill loses everything but the record as last written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Course {
    pub record: Activation,
    pub(super) at: At,
    /// When the deadline started in this process, and how much of it earlier ones used.
    pub(super) since: Duration,
    pub(super) spent: Duration,
    /// How much of the deadline had passed when that was last recorded.
    pub(super) noted: Duration,
    /// Whether an earlier run of NEW's activation was cut short.
    pub(super) again: bool,
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum At {
    Write(After),
    /// Since when it waits for somebody else's switch.
    Ask(Duration),
    AskAgain(Duration),
    SetProfile,
    /// Since when NEW's activation has been running or retried.
    Run(Duration),
    RunAgain(Duration),
    Tidy,
    Ensure,
    /// Since when it waits for the verdict.
    Await(Duration),
    UndoProfile(Undo),
    UndoRun(Undo),
    UndoTidy(Undo),
    UndoAgain(Undo, Duration),
    WriteAgain(After),
    EnsureLast {
        from: Option<StorePath>,
        to: StorePath,
    },
    End,
}

/// What comes after the record is written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum After {
    Recorded,
    /// That NEW's activation, which was cut short, is run again.
    Again,
    ProfileSet,
    Activating,
    Activated,
    Noted(Duration),
    Undoing(Begun),
    /// How often it was tried, and between which systems the agent's job is then checked.
    Finished(u32, Option<(Option<StorePath>, StorePath)>),
}

/// What may already have been done when it goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Begun {
    Nothing,
    /// NEW's own activation.
    Activation,
    /// An interrupted undo: its script may have stopped half way, with the link on OLD and NEW's units
    /// running.
    Undo,
}

/// The way back.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Undo {
    /// `None` where there was no system, and none was activated: the profile is removed again.
    pub old: Option<StorePath>,
    /// What OLD's script is asked for; `None` where the running system was not touched and only the profile
    /// goes back.
    pub action: Option<Action>,
    pub sets_profile: bool,
    pub tries: u32,
    pub since: Duration,
}

impl Course {
    pub(super) fn at(mut record: Activation, boot: &str, now: Duration, at: At) -> Self {
        boot.clone_into(&mut record.boot);
        let (spent, noted) = (Duration::ZERO, Duration::ZERO);
        Self { record, at, since: now, spent, noted, again: false }
    }

    /// Whether NEW's activation was started, by this activator or an earlier one.
    pub(super) fn begun(&self) -> Begun {
        match self.record.phase {
            Phase::Recorded | Phase::ProfileSet => Begun::Nothing,
            Phase::Undoing => Begun::Undo,
            _ => Begun::Activation,
        }
    }

    pub(super) fn write(&mut self, phase: Phase, after: After) {
        self.record.phase = phase;
        self.at = At::Write(after);
    }

    pub(super) fn deadline(&self) -> Duration {
        Duration::from_secs(self.record.deadline_seconds.into())
    }
    pub(super) fn used(&self, now: Duration) -> Duration {
        self.spent + now.saturating_sub(self.since)
    }
    pub(super) fn left(&self, now: Duration) -> Duration {
        self.deadline().saturating_sub(self.used(now))
    }
}

/// The pause before a script that found the lock taken is run again: half of the time waited so far.
pub(super) fn patience(waited: Duration) -> Duration {
    (waited / 2).clamp(OTHERS_PAUSE, LONGEST_PAUSE)
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
