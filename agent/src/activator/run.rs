//! The steps of an activator, forwards and back.

use std::time::Duration;

use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::StorePath;
use muster_protocol::report::Reason;
use muster_protocol::target::Action;

use super::{ActivatorError, undo_action};
use crate::core::backoff::look;
use crate::core::records::{Activation, ActivationPhase as Phase, GivenVerdict};
use crate::core::resume::{Resume, resume};
use crate::journal::Files;
use crate::nix::Nix;
use crate::platform::process::{self, Finished};
use crate::platform::{Outcome, Platform};

/// The longest pause between two looks for the verdict.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// The pause before a lock that somebody else holds is tried again.
const LOCKED_PAUSE: Duration = Duration::from_millis(500);
/// How often OLD is tried, and the pause between two tries.
const UNDO_TRIES: u32 = 3;
const UNDO_PAUSE: Duration = Duration::from_secs(1);
/// The least time that one run of OLD's activation gets.
const UNDO_LIMIT: Duration = Duration::from_secs(300);
/// How often a result that the disk does not take is written again, a second apart.
const WRITE_TRIES: u32 = 60;

pub struct Activator {
    pub files: Files,
    pub platform: Box<dyn Platform>,
    pub nix: Nix,
    pub clock: SystemClock,
    pub record: Activation,
    /// The boot that this process runs in.
    pub boot: String,
}

/// How NEW's activation ended.
enum Ended {
    Well,
    RebootNeeded,
    Badly { reason: Reason, detail: String },
}

impl Activator {
    /// Takes up the record of an activator that is gone.
    pub fn resume(&mut self) -> Result<(), ActivatorError> {
        for system in [Some(&self.record.new), self.record.old.system()].into_iter().flatten() {
            if let Err(error) = process::end_leftovers(&self.platform.script(system)) {
                tracing::warn!(%error, "processes of an earlier activation cannot be looked for");
            }
        }
        let verdict = self.verdict();
        let decision = resume(&self.record, self.new_runs(), &self.boot, verdict.as_ref());
        tracing::info!(phase = ?self.record.phase, ?decision, "taking up an activation that was interrupted");
        match decision {
            Resume::Begin => self.begin(),
            Resume::Wait => {
                self.record.starts += 1;
                self.write(Phase::Activated)?;
                self.await_verdict(self.deadline())
            }
            Resume::Undo { reason, detail } => self.undo(reason, detail),
            Resume::Stay | Resume::Nothing => Ok(()),
        }
    }

    /// From OLD to NEW. What cannot be written down before it is done is not done.
    pub fn begin(&mut self) -> Result<(), ActivatorError> {
        let deadline = self.deadline();
        self.record.starts += 1;
        self.write(Phase::Recorded)?;
        if sets_profile(self.record.action) {
            if let Err(error) = self.nix.set_profile(&self.record.new) {
                return self.undo(Reason::ActivationFailed, error.to_string());
            }
            if let Err(error) = self.write(Phase::ProfileSet) {
                return self.undo(Reason::ActivationFailed, error.to_string());
            }
        }
        if let Err(error) = self.write(Phase::Activating) {
            return self.undo(Reason::ActivationFailed, error.to_string());
        }
        let started = self.clock.awake();
        let ended = self.run_new(deadline);
        self.record.ms =
            u64::try_from(self.clock.awake().saturating_sub(started).as_millis()).unwrap_or(u64::MAX);
        match ended {
            _ if self.record.action == Action::DryActivate => self.finish(Phase::Finished),
            Ended::Badly { reason, detail } => self.undo(reason, detail),
            Ended::RebootNeeded => self.finish(Phase::AwaitingReboot),
            Ended::Well if self.record.action == Action::Boot => self.finish(Phase::AwaitingReboot),
            Ended::Well => {
                // Unwritten it stays unconfirmed, and the deadline takes it back.
                if let Err(error) = self.write(Phase::Activated) {
                    tracing::error!(%error, "the activation cannot be recorded");
                }
                self.platform.ensure_agent(self.record.old.system(), &self.record.new);
                self.await_verdict(deadline)
            }
        }
    }

    fn run_new(&mut self, deadline: Duration) -> Ended {
        loop {
            let left = deadline.saturating_sub(self.clock.awake());
            let finished = match self.platform.activate(&self.record.new, self.record.action, left) {
                Ok(finished) => finished,
                Err(error) => {
                    return Ended::Badly { reason: Reason::ActivationFailed, detail: error.to_string() };
                }
            };
            self.record.exit = Some(finished.exit);
            if finished.timed_out {
                let limit = self.record.deadline_seconds;
                let detail = format!("the activation did not end within {limit} s and was ended: ");
                return Ended::Badly { reason: Reason::Deadline, detail: detail + finished.output.trim() };
            }
            match self.platform.outcome(finished.exit) {
                Outcome::Done | Outcome::UnitsFailed => return Ended::Well,
                Outcome::RebootNeeded => return Ended::RebootNeeded,
                Outcome::Locked if self.clock.awake() + LOCKED_PAUSE < deadline => {
                    tracing::info!("somebody else switches this machine: waiting");
                    std::thread::sleep(LOCKED_PAUSE);
                }
                Outcome::Locked => {
                    let detail = "somebody else's switch did not end before the deadline".to_owned();
                    return Ended::Badly { reason: Reason::Interrupted, detail };
                }
                Outcome::Failed => return self.failed(&finished),
            }
        }
    }

    fn failed(&self, finished: &Finished) -> Ended {
        let (exit, output) = (finished.exit, finished.output.trim());
        match self.platform.needs_human(exit, output) {
            // Not the generation's fault, so its derivation may come again.
            Some(words) => Ended::Badly { reason: Reason::Interrupted, detail: words },
            None => {
                let detail = format!("the activation ended with {exit}: {output}");
                Ended::Badly { reason: Reason::ActivationFailed, detail }
            }
        }
    }

    /// Waits for the agent's verdict; at the deadline its absence is one.
    fn await_verdict(&mut self, deadline: Duration) -> Result<(), ActivatorError> {
        let began = self.clock.awake();
        let mut unwritten = self.record.phase != Phase::Activated;
        loop {
            if unwritten {
                unwritten = self.write(Phase::Activated).is_err();
            }
            let missing = match self.verdict() {
                Some(GivenVerdict::Confirm { degraded }) => {
                    self.record.degraded = degraded;
                    self.finish(Phase::Confirmed)?;
                    self.platform.ensure_agent(None, &self.record.new);
                    return Ok(());
                }
                Some(GivenVerdict::Undo { reason, detail }) => return self.undo(reason, detail),
                Some(GivenVerdict::Waiting { missing }) => missing,
                None => Reason::Deadline,
            };
            let now = self.clock.awake();
            let left = deadline.saturating_sub(now);
            if left.is_zero() {
                let what = match missing {
                    Reason::ControllerUnreachable => "the controller was not reached",
                    _ => "the agent did not confirm",
                };
                let detail = format!("{what} within {} s", self.record.deadline_seconds);
                return self.undo(missing, detail);
            }
            std::thread::sleep(look(now.saturating_sub(began), LONGEST_PAUSE).min(left));
        }
    }

    /// From NEW to OLD, by OLD's own script. Nothing stops it: what cannot be written is done all the same.
    fn undo(&mut self, reason: Reason, detail: String) -> Result<(), ActivatorError> {
        tracing::warn!(?reason, "undoing: {detail}");
        (self.record.reason, self.record.detail) = (Some(reason), detail);
        if let Err(error) = self.write(Phase::Undoing) {
            tracing::error!(%error, "the undo cannot be recorded; it is done all the same");
        }
        let Some(old) = self.record.old.system().cloned() else {
            self.add("there is no earlier system to go back to");
            return self.finish(Phase::UndoFailed);
        };
        let mut went_wrong = String::new();
        for attempt in 1..=UNDO_TRIES {
            match self.undo_once(&old) {
                Ok(()) => {
                    self.finish(Phase::Undone)?;
                    self.platform.ensure_agent(Some(&self.record.new), &old);
                    return Ok(());
                }
                Err(detail) => {
                    tracing::error!(attempt, "the undo failed: {detail}");
                    went_wrong = detail;
                }
            }
            std::thread::sleep(UNDO_PAUSE);
        }
        self.add(&format!("going back to {old} failed too: {went_wrong}"));
        self.finish(Phase::UndoFailed)?;
        self.platform.ensure_agent(Some(&self.record.new), &old);
        Ok(())
    }

    fn undo_once(&mut self, old: &StorePath) -> Result<(), String> {
        let Some(action) = undo_action(&self.record, self.new_runs()) else { return Ok(()) };
        if sets_profile(action) {
            self.nix.set_profile(old).map_err(|error| error.to_string())?;
        }
        let limit = UNDO_LIMIT.max(Duration::from_secs(self.record.deadline_seconds.into()));
        let finished = self.platform.activate(old, action, limit).map_err(|error| error.to_string())?;
        self.record.undo_exit = Some(finished.exit);
        let outcome = self.platform.outcome(finished.exit);
        if finished.timed_out || !matches!(outcome, Outcome::Done | Outcome::UnitsFailed) {
            return Err(format!("its activation ended with {}: {}", finished.exit, finished.output.trim()));
        }
        // Success is believed only by looking.
        let layout = self.platform.layout();
        if action != Action::Boot && layout.running().as_ref() != Some(old) {
            return Err("its activation said that it succeeded, but another system runs".to_owned());
        }
        if sets_profile(action) && layout.profile_target().as_ref() != Some(old) {
            return Err("the system profile points elsewhere".to_owned());
        }
        Ok(())
    }

    fn add(&mut self, words: &str) {
        if !self.record.detail.is_empty() {
            self.record.detail.push_str("; ");
        }
        self.record.detail.push_str(words);
    }

    fn deadline(&self) -> Duration {
        self.clock.awake() + Duration::from_secs(self.record.deadline_seconds.into())
    }

    fn new_runs(&self) -> bool {
        self.platform.layout().running().as_ref() == Some(&self.record.new)
    }

    /// The agent's verdict on this very record.
    fn verdict(&self) -> Option<GivenVerdict> {
        let found = self.files.confirmation().ok()?.whole()?;
        (found.transaction == self.record.transaction).then_some(found.verdict)
    }

    fn write(&mut self, phase: Phase) -> Result<(), ActivatorError> {
        self.record.phase = phase;
        self.record.boot.clone_from(&self.boot);
        tracing::info!(?phase, transaction = self.record.transaction, "activation");
        Ok(self.files.write_activation(&self.record)?)
    }

    /// Writes a phase that ends this process. A full disk is given a minute; after that the next activator finds the
    /// earlier record, and looks at the machine.
    fn finish(&mut self, phase: Phase) -> Result<(), ActivatorError> {
        for _ in 1..WRITE_TRIES {
            match self.write(phase) {
                Ok(()) => return Ok(()),
                Err(error) => tracing::error!(%error, "the result cannot be recorded yet"),
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        self.write(phase)
    }
}

/// test and dry-activate leave the profile as it is.
fn sets_profile(action: Action) -> bool {
    matches!(action, Action::Switch | Action::Boot)
}
