//! From NEW to OLD, by OLD's own script. Nothing stops it, and success is only believed when observed.

use std::time::Duration;

use muster_protocol::ids::StorePath;
use muster_protocol::machine::Class;
use muster_protocol::report::Reason;
use muster_protocol::target::Action;

use super::act::{Act, Done, Outcome, Sight};
use super::place::{After, At, Begun, Course, OTHERS_LIMIT, Undo, millis, patience};
use crate::core::cause::with_cause;
use crate::core::records::{Activation, ActivationPhase as Phase, sets_profile};

/// How often OLD is tried, and the pause after the first try; the next pause is four times as long. What NEW
/// has stopped may need a moment to come back.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);
/// The minimum time for one run of OLD's activation.
const LIMIT: Duration = Duration::from_secs(300);

impl Course {
    /// Goes back for this reason.
    pub(super) fn undo(&mut self, reason: Reason, detail: String, begun: Begun) {
        (self.record.reason, self.record.detail) = (Some(reason), detail);
        self.write(Phase::Undoing, After::Undoing(begun));
    }

    /// Adds what else is known to the reason for which it goes back.
    pub fn explain(&mut self, words: &str) {
        self.add(words);
    }

    /// What there is to undo.
    pub(super) fn choose(&mut self, begun: Begun, sight: &Sight<'_>) {
        let new_runs = sight.running == Some(&self.record.new);
        // A reboot may have brought up what was only set as the profile.
        let nothing = begun == Begun::Nothing && !new_runs;
        // After a boot that did not bring NEW up, nothing of NEW was ever started: OLD only has to be booted
        // again.
        let began = begun == Begun::Undo && self.record.reason != Some(Reason::DidNotBoot);
        let action = if nothing { None } else { undo_action(&self.record, new_runs || began) };
        let old = &self.record.old;
        // The profile alone goes back to what it was, whether that runs or not.
        let old = if action.is_some() { old.system() } else { old.profile.as_ref().or(old.system()) };
        let old = old.cloned();
        if old.is_none() && action.is_some() {
            self.add("there is no earlier system to go back to");
            self.write(Phase::UndoFailed, After::Finished(1, None));
            return;
        }
        let sets_profile = sets_profile(action.unwrap_or(self.record.action));
        self.try_old(Undo { old, action, sets_profile, tries: 1, since: sight.now }, sight);
    }

    pub(super) fn try_old(&mut self, undo: Undo, sight: &Sight<'_>) {
        // If OLD's script has to run, its profile is set again in any case: the script reads it.
        let set = undo.sets_profile && (undo.action.is_some() || sight.profile != undo.old.as_ref());
        if set {
            self.at = At::UndoProfile(undo);
        } else {
            self.profile_undone(undo, sight);
        }
    }

    pub(super) fn profile_undone(&mut self, undo: Undo, sight: &Sight<'_>) {
        if undo.action.is_some() {
            self.at = At::UndoRun(undo);
        } else {
            self.look(undo, sight);
        }
    }

    pub(super) fn run_old(&self, undo: &Undo) -> Act {
        let (action, limit) = (undo.action.unwrap_or_default(), LIMIT.max(self.deadline()));
        match undo.old.clone() {
            Some(system) => Act::Run { system, action, limit },
            None => Act::Pause(Duration::ZERO),
        }
    }

    pub(super) fn old_ran(&mut self, undo: Undo, done: Done, sight: &Sight<'_>) {
        let ran = match done {
            Done::Ran(ran) => ran,
            Done::Failed(why) => return self.undo_failed(undo, &why, sight),
            Done::Well | Done::Others(_) => return self.look(undo, sight),
        };
        self.record.undo_exit = Some(ran.exit);
        match ran.outcome {
            _ if ran.timed_out => {
                let words = with_cause("its activation did not end and was ended", &ran.output);
                self.undo_failed(undo, &words, sight);
            }
            // Somebody else's switch is no failure of OLD: wait for it.
            Outcome::Locked if sight.now.saturating_sub(undo.since) < OTHERS_LIMIT => {
                let pause = patience(sight.now.saturating_sub(undo.since));
                self.at = At::UndoAgain(undo, pause);
            }
            Outcome::Done | Outcome::UnitsFailed => self.look(undo, sight),
            Outcome::RebootNeeded => self.back_at_boot(undo, sight),
            _ => {
                let words = with_cause(&format!("its activation ended with {}", ran.exit), &ran.output);
                self.undo_failed(undo, &words, sight);
            }
        }
    }

    fn look(&mut self, undo: Undo, sight: &Sight<'_>) {
        let runs = sight.running == undo.old.as_ref();
        let profile = sight.profile == undo.old.as_ref();
        if undo.action.is_some_and(|action| action != Action::Boot) && !runs {
            let words = "its activation said that it succeeded, but another system runs";
            return self.undo_failed(undo, words, sight);
        }
        if undo.sets_profile && !profile {
            return self.undo_failed(undo, "the system profile points elsewhere", sight);
        }
        if undo.action.is_some() && self.record.class == Class::Darwin {
            self.at = At::UndoTidy(undo);
        } else {
            self.undone(undo, sight);
        }
    }

    /// OLD has a different init, which a running system cannot change. Its boot entry is written, and the
    /// next boot brings it back: the reboot policy decides when.
    fn back_at_boot(&mut self, undo: Undo, sight: &Sight<'_>) {
        if sight.profile != undo.old.as_ref() {
            return self.undo_failed(undo, "the system profile points elsewhere", sight);
        }
        self.add("the old system has a different init, so it comes back with the next reboot");
        self.undone(undo, sight);
    }

    pub(super) fn undone(&mut self, undo: Undo, sight: &Sight<'_>) {
        self.write_end(Phase::Undone, undo, sight);
    }

    fn write_end(&mut self, phase: Phase, undo: Undo, sight: &Sight<'_>) {
        self.record.undo_ms = Some(millis(sight.now.saturating_sub(undo.since)));
        let then = undo.old.map(|old| (Some(self.record.new.clone()), old));
        self.write(phase, After::Finished(1, then));
    }

    pub(super) fn undo_failed(&mut self, undo: Undo, why: &str, sight: &Sight<'_>) {
        if undo.tries < TRIES {
            let pause = PAUSE * 4u32.pow(undo.tries - 1);
            self.at = At::UndoAgain(Undo { tries: undo.tries + 1, ..undo }, pause);
            return;
        }
        let old = undo.old.as_ref().map_or("no system", StorePath::as_str);
        self.add(&format!("going back to {old} failed too: {why}"));
        self.write_end(Phase::UndoFailed, undo, sight);
    }

    fn add(&mut self, words: &str) {
        let detail = &mut self.record.detail;
        // Inserted after the first line's message; the activation's output follows.
        let end = detail.find('\n').unwrap_or(detail.len());
        let words = if end == 0 { words.to_owned() } else { format!("; {words}") };
        detail.insert_str(end, &words);
    }
}

/// The action that takes `record` back, or `None` where no script is needed.
fn undo_action(record: &Activation, new_ran: bool) -> Option<Action> {
    match record.action {
        Action::DryActivate => None,
        // A system that was only to be booted, and was, has to be switched away from.
        Action::Boot if new_ran => Some(Action::Switch),
        action => Some(action),
    }
}
