//! From OLD to NEW, and the wait for the verdict.

use std::time::Duration;

use muster_protocol::machine::Class;
use muster_protocol::report::Reason;
use muster_protocol::target::Action;

use super::act::{Act, Done, Outcome, Ran, Sight};
use super::place::{After, At, Begun, Course, OTHERS_LIMIT, OTHERS_PAUSE, millis, patience};
use crate::core::backoff::look;
use crate::core::cause::with_cause;
use crate::core::records::{Activation, ActivationPhase as Phase, GivenVerdict, sets_profile};
use crate::core::resume::{Resume, resume};

/// The longest pause between two looks for the verdict.
const LONGEST_LOOK: Duration = Duration::from_millis(200);
/// How often to retry writing a result that the disk refuses, and the pause between two tries.
const WRITE_TRIES: u32 = 60;
const WRITE_PAUSE: Duration = Duration::from_secs(1);
/// How much of the deadline may pass unrecorded: a sixteenth, within these bounds.
const SHORTEST_NOTE: Duration = Duration::from_secs(1);
const LONGEST_NOTE: Duration = Duration::from_secs(60);

impl Course {
    /// From the start: OLD is recorded and nothing was done.
    pub fn begin(mut record: Activation, boot: &str, now: Duration) -> Self {
        record.starts += 1;
        record.phase = Phase::Recorded;
        Self::at(record, boot, now, At::Write(After::Recorded))
    }

    /// Takes up the record of an activator that is gone.
    pub fn resume(mut record: Activation, boot: &str, sight: &Sight<'_>) -> Self {
        let (now, same_boot) = (sight.now, record.boot == boot);
        let new_runs = sight.running == Some(&record.new);
        match resume(&record, new_runs, sight.profile, boot, sight.verdict) {
            Resume::Begin => Self::begin(record, boot, now),
            Resume::Again => {
                record.starts += 1;
                record.phase = Phase::Activating;
                let course = Self::at(record, boot, now, At::Write(After::Again));
                Self { again: true, ..course }
            }
            Resume::Wait => {
                record.starts += 1;
                // A machine that has just booted gets the whole time again.
                let spent = if same_boot { record.spent_ms } else { 0 };
                let course = Self::at(record, boot, now, At::Ensure);
                Self { spent: Duration::from_millis(spent), ..course }
            }
            Resume::Undo { reason, detail } => {
                let mut course = Self::at(record, boot, now, At::End);
                let begun = course.begun();
                course.undo(reason, detail, begun);
                course
            }
            // Everything is written, but the agent's job may not have been checked: the previous activator
            // was killed in between.
            Resume::Nothing if matches!(record.phase, Phase::Undone | Phase::UndoFailed) => {
                let (new, old) = (record.new.clone(), record.old.system().cloned());
                let last = old.map(|to| At::EnsureLast { from: Some(new), to });
                Self::at(record, boot, now, last.unwrap_or(At::End))
            }
            Resume::Stay | Resume::Nothing => Self::at(record, boot, now, At::End),
        }
    }

    /// Whether nothing is left to do.
    pub fn is_over(&self) -> bool {
        self.at == At::End
    }

    /// The next step.
    pub fn next(&mut self, sight: &Sight<'_>) -> Act {
        if let At::Await(since) = self.at {
            self.judge(sight, since);
        }
        match &self.at {
            At::Write(_) => {
                self.noted = self.used(sight.now);
                self.record.spent_ms = millis(self.noted);
                Act::Write
            }
            At::Ask(_) => Act::AskOthers,
            At::AskAgain(_) => Act::Pause(OTHERS_PAUSE),
            At::RunAgain(since) => Act::Pause(patience(sight.now.saturating_sub(*since))),
            At::SetProfile => Act::SetProfile(self.record.new.clone()),
            At::Run(_) => {
                let (system, action) = (self.record.new.clone(), self.record.action);
                Act::Run { system, action, limit: self.left(sight.now) }
            }
            At::Tidy => {
                let from = self.record.old.system().into_iter().chain(&self.record.leftovers);
                Act::Tidy { from: from.cloned().collect(), to: self.record.new.clone() }
            }
            At::Ensure => {
                let (from, to) = (self.record.old.system().cloned(), self.record.new.clone());
                Act::EnsureAgent { from, to }
            }
            At::Await(since) => {
                let pause = look(sight.now.saturating_sub(*since), LONGEST_LOOK);
                Act::Pause(pause.min(self.left(sight.now)))
            }
            At::UndoProfile(undo) => match &undo.old {
                Some(old) => Act::SetProfile(old.clone()),
                None => Act::RemoveProfile,
            },
            At::UndoRun(undo) => self.run_old(undo),
            At::UndoTidy(undo) => match undo.old.clone() {
                Some(to) => {
                    let from = std::iter::once(&self.record.new).chain(&self.record.leftovers);
                    Act::Tidy { from: from.cloned().collect(), to }
                }
                None => Act::Pause(Duration::ZERO),
            },
            At::UndoAgain(_, pause) => Act::Pause(*pause),
            At::WriteAgain(_) => Act::Pause(WRITE_PAUSE),
            At::EnsureLast { from, to } => Act::EnsureAgent { from: from.clone(), to: to.clone() },
            At::End => Act::End,
        }
    }

    /// Takes in the result of the step that [`Course::next`] returned.
    pub fn done(&mut self, done: Done, sight: &Sight<'_>) {
        let at = std::mem::replace(&mut self.at, At::End);
        match (at, done) {
            (At::Write(after), done) => self.written(after, done, sight),
            (At::Ask(since), Done::Others(Some(who))) => self.busy(&who, since, sight),
            (At::Ask(_), _) => self.alone(sight),
            (At::AskAgain(since), _) => self.at = At::Ask(since),
            (At::SetProfile, Done::Failed(why)) => self.undo(Reason::ActivationFailed, why, self.begun()),
            (At::SetProfile, _) if self.again => self.at = At::Run(sight.now),
            (At::SetProfile, _) => self.write(Phase::ProfileSet, After::ProfileSet),
            (At::Run(since), Done::Ran(ran)) => self.ran(ran, since, sight),
            (At::Run(_), Done::Failed(why)) => self.undo(Reason::ActivationFailed, why, Begun::Activation),
            (At::RunAgain(since) | At::Run(since), _) => self.at = At::Run(since),
            (At::Tidy, _) => self.at = At::Ensure,
            // Only now: an agent of OLD that is about to be restarted must not be the one that confirms NEW.
            (At::Ensure, _) => self.write(Phase::Activated, After::Activated),
            (At::Await(since), _) => self.at = At::Await(since),
            (At::UndoProfile(undo), Done::Failed(why)) => self.undo_failed(undo, &why, sight),
            (At::UndoProfile(undo), _) => self.profile_undone(undo, sight),
            (At::UndoRun(undo), done) => self.old_ran(undo, done, sight),
            (At::UndoTidy(undo), _) => self.undone(undo, sight),
            (At::UndoAgain(undo, _), _) => self.try_old(undo, sight),
            (At::WriteAgain(after), _) => self.at = At::Write(after),
            (At::EnsureLast { .. } | At::End, _) => self.at = At::End,
        }
    }

    fn written(&mut self, after: After, done: Done, sight: &Sight<'_>) {
        let failed = match done {
            Done::Failed(why) => Some(why),
            _ => None,
        };
        match (after, failed) {
            // What cannot be recorded beforehand is not done.
            (After::Recorded | After::Again, Some(_)) => self.at = At::End,
            (After::Recorded | After::Again, None) => self.at = At::Ask(sight.now),
            (After::ProfileSet | After::Activating, Some(why)) => {
                self.undo(Reason::ActivationFailed, why, Begun::Nothing);
            }
            (After::ProfileSet, None) => self.write(Phase::Activating, After::Activating),
            (After::Activating, None) => self.at = At::Run(sight.now),
            // Unrecorded it stays unconfirmed, and the deadline takes it back.
            (After::Activated, failed) => {
                if failed.is_some() {
                    self.noted = Duration::ZERO;
                }
                self.at = At::Await(sight.now);
            }
            (After::Noted(since), _) => self.at = At::Await(since),
            // What cannot be recorded is undone all the same.
            (After::Undoing(begun), _) => self.choose(begun, sight),
            (After::Finished(tries, then), Some(_)) if tries < WRITE_TRIES => {
                self.at = At::WriteAgain(After::Finished(tries + 1, then));
            }
            // The next activator finds the earlier record, and looks at the machine.
            (After::Finished(_, Some((from, to))), _) => self.at = At::EnsureLast { from, to },
            (After::Finished(_, None), _) => self.at = At::End,
        }
    }

    fn busy(&mut self, who: &str, since: Duration, sight: &Sight<'_>) {
        if sight.now.saturating_sub(since) < OTHERS_LIMIT {
            self.at = At::AskAgain(since);
            return;
        }
        let limit = OTHERS_LIMIT.as_secs();
        self.leave(
            &format!("somebody else has been switching this machine for more than {limit} s: {who}"),
            sight,
        );
    }

    /// Nobody else is switching: what was recorded as OLD must still be current.
    fn alone(&mut self, sight: &Sight<'_>) {
        let (old, new) = (&self.record.old, Some(&self.record.new));
        let same_profile = sight.profile == old.profile.as_ref() || sight.profile == new;
        let again = self.again;
        // The link says nothing about an activation that was cut short: a boot may have moved it, or it was
        // not moved yet.
        let same_running = sight.running == old.running.as_ref()
            || again && sight.running.is_none_or(|running| *running == self.record.new);
        if !same_running || !same_profile {
            self.leave("somebody else switched this machine just now", sight);
            return;
        }
        // The deadline starts here.
        (self.since, self.spent) = (sight.now, Duration::ZERO);
        if again && sight.profile == new {
            self.at = At::Run(sight.now);
        } else if sets_profile(self.record.action) {
            self.at = At::SetProfile;
        } else {
            self.write(Phase::Activating, After::Activating);
        }
    }

    /// Gives up before anything was changed; or, if an earlier activator had set the profile, undoes that.
    fn leave(&mut self, why: &str, sight: &Sight<'_>) {
        if sight.profile == Some(&self.record.new) && self.record.old.profile.as_ref() != sight.profile {
            self.undo(Reason::Interrupted, why.to_owned(), self.begun());
            return;
        }
        why.clone_into(&mut self.record.detail);
        self.write(Phase::Untouched, After::Finished(1, None));
    }

    fn ran(&mut self, ran: Ran, since: Duration, sight: &Sight<'_>) {
        let now = sight.now;
        // On a Mac the link does not say how far it got.
        let moved = self.record.class != Class::Darwin && sight.running == Some(&self.record.new);
        self.record.exit = Some(ran.exit);
        (self.record.failed, self.record.sessions) = (ran.ailing.units.clone(), ran.ailing.sessions.clone());
        self.record.ms = millis(now.saturating_sub(since));
        if self.record.action == Action::DryActivate {
            self.record.detail = ran.output.trim().to_owned();
            self.write(Phase::Finished, After::Finished(1, None));
            return;
        }
        if ran.timed_out {
            let limit = self.record.deadline_seconds;
            let words = with_cause(
                &format!("the activation did not end within {limit} s and was ended"),
                &ran.output,
            );
            self.undo(Reason::Deadline, words, Begun::Activation);
            return;
        }
        let boots = self.record.action == Action::Boot;
        match ran.outcome {
            Outcome::RebootNeeded => self.write(Phase::AwaitingReboot, After::Finished(1, None)),
            Outcome::Done | Outcome::UnitsFailed if boots => {
                self.write(Phase::AwaitingReboot, After::Finished(1, None));
            }
            Outcome::Done | Outcome::UnitsFailed if self.record.class == Class::Darwin => self.at = At::Tidy,
            Outcome::Done | Outcome::UnitsFailed => self.at = At::Ensure,
            Outcome::Locked
                if now.saturating_sub(since) < OTHERS_LIMIT
                    && patience(now.saturating_sub(since)) < self.left(now) =>
            {
                self.at = At::RunAgain(since);
            }
            Outcome::Locked => {
                let words = "somebody else was switching this machine, and did not finish in time".to_owned();
                self.undo(Reason::Interrupted, words, Begun::Activation);
            }
            Outcome::Refused | Outcome::Untouched | Outcome::ScriptFailed | Outcome::Failed => {
                let untouched = ran.outcome == Outcome::Untouched && !self.again;
                let begun = if untouched { Begun::Nothing } else { Begun::Activation };
                match ran.person {
                    // Not the generation's fault, so its derivation may be used again.
                    Some(words) => self.undo(Reason::NeedsHuman, words, begun),
                    None => self.undo(Reason::ActivationFailed, failure(&ran, moved), begun),
                }
            }
        }
    }

    /// Looks for the agent's verdict; at the deadline its absence is a verdict.
    fn judge(&mut self, sight: &Sight<'_>, since: Duration) {
        let missing = match sight.verdict {
            Some(GivenVerdict::Confirm { degraded }) => {
                self.record.degraded.clone_from(degraded);
                self.record.degraded.extend(self.record.sessions.iter().cloned());
                let then = Some((None, self.record.new.clone()));
                self.write(Phase::Confirmed, After::Finished(1, then));
                return;
            }
            Some(GivenVerdict::Undo { reason, detail }) => {
                self.undo(*reason, detail.clone(), Begun::Activation);
                return;
            }
            Some(GivenVerdict::Waiting { missing }) => *missing,
            None => Reason::Deadline,
        };
        if self.left(sight.now).is_zero() {
            let what = match missing {
                Reason::ControllerUnreachable => "the controller was not reached",
                _ => "the agent did not confirm",
            };
            let words = format!("{what} within {} s", self.record.deadline_seconds);
            self.undo(missing, words, Begun::Activation);
            return;
        }
        let note = (self.deadline() / 16).clamp(SHORTEST_NOTE, LONGEST_NOTE);
        if self.used(sight.now).saturating_sub(self.noted) >= note {
            self.at = At::Write(After::Noted(since));
        }
    }
}

/// What failed, and how far it got, as the machine shows it: an exit code may belong to any stage.
fn failure(ran: &Ran, moved: bool) -> String {
    let what = match (ran.outcome, moved) {
        (Outcome::Refused, false) | (Outcome::Untouched, _) => {
            "the system's own checks or its boot loader refused"
        }
        (Outcome::ScriptFailed, _) => "the system's activation script failed",
        (_, true) => "the activation broke off after the new system was in place",
        (_, false) => "the activation broke off before the new system was in place",
    };
    with_cause(&format!("{what} (exit {})", ran.exit), &ran.output)
}
