//! What the agent remembers.

use muster_protocol::bounded;
use muster_protocol::checkin::Phase;
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Generation, StorePath};
use muster_protocol::report::{Reason, UpdateStep};
use muster_protocol::target::{Action, Target};
use serde::{Deserialize, Serialize};

use super::known::Known;
use super::transaction::{Old, Telling, Transaction, Unknown, VERSION};
use crate::core::policy::Pause;
use crate::core::reboot::Rebooted;
use crate::core::rollout::Followed;
use crate::core::state::State;

/// How long a machine waits before it retries a generation by itself after failing for a reason of its own.
pub(super) const LATER_MS: i64 = 60 * 60 * 1000;
/// How often a generation that was undone for a passing reason is retried at once. After that retries become
/// available with time: an hour after the undo, then twice as long each time, up to a day. So cutting the
/// controller off decides nothing permanently.
pub const UNREACHABLE_RETRIES: u32 = 3;
const FIRST_PAUSE_MS: i64 = 3_600_000;
const LONGEST_PAUSE_MS: i64 = 24 * FIRST_PAUSE_MS;
/// Higher counts change nothing: the pause is already the longest.
const MOST_UNDONE: u32 = UNREACHABLE_RETRIES + 6;
/// How many systems in a row that could not be undone are remembered.
const MOST_LEFTOVERS: usize = 8;
/// How many quarantined derivations are remembered.
const MAX_QUARANTINE: usize = 256;

/// `journal.json`: what remains after a transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Journal {
    #[serde(default)]
    pub version: u32,
    #[serde(default)]
    pub confirmed: Option<Known>,
    /// What ran before the confirmed generation.
    #[serde(default)]
    pub previous: Option<StorePath>,
    /// The system that the machine was left on, by a confirmation or an undo; any other is drift.
    #[serde(default)]
    pub expected: Option<StorePath>,
    /// The highest generation that ended, with any result.
    #[serde(default)]
    pub tried: Option<Generation>,
    #[serde(default)]
    pub quarantine: Vec<Quarantined>,
    /// The generation that may be tried again although it was undone. (Earlier versions read it by its first
    /// name, from when only an absent controller was a reason to retry.)
    #[serde(default, rename = "unreachable")]
    pub again: Option<Again>,
    /// The ID of the last transaction taken into this journal.
    #[serde(default)]
    pub settled: Option<String>,
    #[serde(default)]
    pub last: Option<Last>,
    /// The drift last reported.
    #[serde(default)]
    pub drift: Option<StorePath>,
    /// The system that the confirmed one was to replace, but could not: left alone until something changes.
    #[serde(default)]
    pub left: Option<StorePath>,
    /// Systems that could not be undone and may have left parts behind: the next activation looks for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leftovers: Vec<StorePath>,
    /// What the next boot brings in place of a system that is only a trial (action `test`), or that was
    /// undone but runs until then.
    #[serde(default)]
    pub after_boot: Option<StorePath>,
    /// The boot in which the expected system was last seen running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_in: Option<String>,
    /// The last expected system that a boot brought up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booted: Option<StorePath>,
    /// The generation of a plan that this machine vouches for.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "bounded::if_well_formed")]
    pub followed: Option<Followed>,
    #[serde(default)]
    pub pause: Option<Pause>,
    #[serde(default)]
    pub rebooted: Option<Rebooted>,
    #[serde(default)]
    pub telling: Vec<Telling>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A quarantined derivation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Quarantined {
    pub derivation: StorePath,
    pub generation: Generation,
    pub detail: String,
    pub at: UnixMillis,
}

/// A generation that was undone for a reason that may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Again {
    pub generation: Generation,
    pub undone: u32,
    #[serde(default)]
    pub cause: Cause,
    /// The user at the Mac's screen when it was undone.
    #[serde(default)]
    pub console: Option<u32>,
    /// When it ended.
    #[serde(default)]
    pub at: UnixMillis,
}

impl Again {
    /// The time between the undo and the next automatic retry, once the first retries are used up, in
    /// milliseconds.
    fn pause(&self) -> i64 {
        let more = self.undone.saturating_sub(UNREACHABLE_RETRIES + 1).min(MOST_UNDONE);
        FIRST_PAUSE_MS.saturating_mul(1 << more).min(LONGEST_PAUSE_MS)
    }
}

/// What has to change before it is retried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// A person has to act, and then to say so or to log in.
    Person,
    /// Somebody asked for another try.
    Lifted,
    /// The machine itself was the obstacle (memory, disk, caches), which may pass.
    Machine,
    /// The controller has to answer.
    #[default]
    #[serde(other)]
    Controller,
}

/// The facts that allow a retry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Chance {
    /// The controller answered the last request.
    pub answers: bool,
    /// Somebody at the machine asked for it.
    pub asked: bool,
    /// The user at a Mac's screen, if any.
    pub console: Option<u32>,
    /// The wall clock.
    pub at: UnixMillis,
}

/// What is observed when a transaction is taken in.
#[derive(Debug, Clone, Copy, Default)]
pub struct Settled<'a> {
    pub running: Option<&'a StorePath>,
    /// The ID of the present boot, if it is known.
    pub boot: Option<&'a str>,
    pub at: UnixMillis,
    pub console: Option<u32>,
}

/// How the last transaction ended, for check-ins and people.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

    /// What to report about an idle machine besides how its last transaction ended: never empty when it does
    /// not run the system it was left on.
    pub fn remark(&self, specialisation: Option<&str>) -> Option<String> {
        let expected = self.expected.as_ref();
        match (&self.drift, specialisation) {
            (Some(running), _) => {
                let was = expected.map_or_else(String::new, |was| format!(" in place of {was}"));
                let back = self.confirmed.as_ref().map(|_| "; 'muster-agent retry' brings that back");
                Some(format!("somebody else switched it to {running}{was}{}", back.unwrap_or_default()))
            }
            (None, Some(name)) => Some(format!("runs the specialisation '{name}' of its system")),
            (None, None) => None,
        }
    }

    pub fn is_settled(&self, transaction: &Transaction) -> bool {
        self.settled.as_deref() == Some(&transaction.id)
    }

    /// How often this generation was undone for this cause.
    pub(super) fn undone(&self, generation: Generation, cause: Cause) -> u32 {
        let again = self.again.filter(|again| again.generation == generation && again.cause == cause);
        again.map_or(0, |again| again.undone)
    }

    /// Whether this generation may be tried again now. Automatic retries are limited to a few; an explicit
    /// request is always honoured.
    pub fn may_retry(&self, generation: Generation, chance: Chance) -> bool {
        let Some(again) = self.again.filter(|again| again.generation == generation) else { return false };
        if self.tried != Some(generation) {
            return false;
        }
        let few = again.undone <= UNREACHABLE_RETRIES;
        match again.cause {
            Cause::Controller => {
                // A clock that was set back says nothing about how long ago that was; count it as later.
                let later = i64::try_from(chance.at.abs_diff(again.at)).is_ok_and(|ago| ago >= again.pause());
                chance.answers && (few || chance.asked || later)
            }
            Cause::Person => {
                chance.asked || (few && chance.console.is_some() && chance.console != again.console)
            }
            Cause::Lifted => true,
            Cause::Machine => {
                // Retries become available with time, so no quarantine outlasts a cache that lied or a disk
                // that was full for a week.
                let wait = if few { LATER_MS } else { again.pause() };
                let later = i64::try_from(chance.at.abs_diff(again.at)).is_ok_and(|ago| ago >= wait);
                chance.asked || later
            }
        }
    }

    /// Allows another try of this target, whatever happened to it; returns whether its derivation was in
    /// quarantine.
    pub fn lift(&mut self, target: &Target) -> bool {
        let held = self.quarantine.len();
        self.quarantine.retain(|entry| entry.derivation != target.derivation);
        let generation = target.generation;
        if self.tried == Some(generation) {
            let cause = Cause::Lifted;
            self.again = Some(Again { generation, undone: 0, cause, console: None, at: 0 });
        }
        self.quarantine.len() < held
    }

    /// Takes in a transaction that has ended. Idempotent.
    pub fn settle(&mut self, transaction: &Transaction, seen: Settled<'_>) {
        if self.is_settled(transaction) {
            return;
        }
        let (generation, at) = (transaction.generation(), seen.at);
        self.condemn(transaction, at);
        self.again = self.forgive(transaction, seen);
        if matches!(transaction.state, State::Confirmed { .. }) {
            self.confirm(transaction, at);
        }
        match &transaction.state {
            State::UndoFailed { .. } => {
                self.leftovers.push(transaction.output().clone());
                let more = self.leftovers.len().saturating_sub(MOST_LEFTOVERS);
                self.leftovers.drain(..more);
            }
            State::Confirmed { .. } | State::RolledBack { .. } => self.leftovers.clear(),
            _ => {}
        }
        if transaction.enforcing {
            let old = transaction.old.as_ref().and_then(Old::system);
            let well = matches!(transaction.state, State::Confirmed { .. });
            self.left = if well { None } else { old.cloned() };
        }
        // What ended before the activation changed nothing, so the expectation stays; the same for a system
        // that could not be brought back.
        let changed = transaction.old.is_some() && !matches!(transaction.state, State::Finished { .. });
        if changed && self.left.is_none() {
            self.expected = seen.running.cloned();
            let old = transaction.old.as_ref().and_then(Old::system).filter(|old| Some(*old) != seen.running);
            if let (State::RolledBack { .. }, Some(old)) = (&transaction.state, old) {
                // OLD has a different init: the next boot brings it back, which is not drift.
                self.after_boot = Some(old.clone());
            }
        }
        self.unconfirm(transaction);
        if let Some(boot) = seen.boot.filter(|_| self.expected.as_ref() == seen.running) {
            self.seen_in = Some(boot.to_owned());
        }
        self.tried = self.tried.max(Some(generation));
        self.last = Some(Last {
            generation,
            phase: match &transaction.state {
                State::Confirmed { .. } if transaction.is_rollback() => Phase::RolledBack,
                State::Finished { exit: 0, .. } => Phase::Confirmed,
                state => state.phase(),
            },
            note: transaction.state.note().map(str::to_owned).or_else(|| transaction.remark.clone()),
            at,
        });
        self.settled = Some(transaction.id.clone());
        self.version = VERSION;
    }

    fn condemn(&mut self, transaction: &Transaction, at: UnixMillis) {
        let Some(derivation) = transaction.derivation() else { return };
        if !transaction.quarantines() || self.quarantined(derivation).is_some() {
            return;
        }
        let note = transaction.state.note().and_then(|note| note.lines().next());
        let detail = note.unwrap_or("undone at the machine").to_owned();
        let generation = transaction.generation();
        self.quarantine.push(Quarantined { derivation: derivation.clone(), generation, detail, at });
        // The oldest are dropped: operators have published hundreds of others since.
        let over = self.quarantine.len().saturating_sub(MAX_QUARANTINE);
        self.quarantine.drain(..over);
    }

    /// Whether, and for which cause, the generation may be retried. No other result is a reason to.
    fn forgive(&self, transaction: &Transaction, seen: Settled<'_>) -> Option<Again> {
        let Settled { console, at, .. } = seen;
        let cause = match &transaction.state {
            State::RolledBack { reason: Reason::ControllerUnreachable, .. } => Cause::Controller,
            State::RolledBack { reason: Reason::NeedsHuman, .. } => Cause::Person,
            State::Failed { step: UpdateStep::Fetch | UpdateStep::Build, quarantined: false, .. } => {
                Cause::Machine
            }
            _ => return None,
        };
        if transaction.is_rollback() || transaction.enforcing {
            return None;
        }
        let generation = transaction.generation();
        Some(Again {
            generation,
            undone: self.undone(generation, cause).saturating_add(1).min(MOST_UNDONE),
            cause,
            console,
            at,
        })
    }

    /// A confirmed generation that a later boot did not bring up is confirmed no longer. Which generation the
    /// older system was is not remembered, as after a rollback at the machine.
    fn unconfirm(&mut self, transaction: &Transaction) {
        let undone = matches!(
            transaction.state,
            State::RolledBack { reason: Reason::DidNotBoot, .. }
                | State::UndoFailed { reason: Reason::DidNotBoot, .. }
        );
        let generation = transaction.generation();
        if undone && self.confirmed.as_ref().is_some_and(|known| known.generation == generation) {
            (self.confirmed, self.previous) = (None, None);
            // What it said of it in a rollout is taken back.
            self.followed = self.followed.take().map(|known| known.went_back(generation));
        }
    }

    fn confirm(&mut self, transaction: &Transaction, at: UnixMillis) {
        self.after_boot = None;
        if transaction.is_rollback() {
            self.followed = self.followed.take().map(|known| known.went_back(transaction.generation()));
            (self.confirmed, self.previous) = (None, None);
            return;
        }
        let output = transaction.output().clone();
        let old = transaction.old.as_ref();
        let before = old.and_then(Old::system);
        // The same system under a new number keeps its predecessor, and so does one that was only restored.
        if before != Some(&output) && !transaction.enforcing {
            self.previous = before.cloned();
        }
        if let (false, Some(target)) = (transaction.enforcing, transaction.target())
            && let State::Confirmed { degraded } = &transaction.state
        {
            let begins = transaction.follows.as_deref().cloned();
            self.followed = Followed::confirmed(self.followed.take(), begins, target.rollout, degraded);
        }
        if transaction.action() == Action::Test {
            self.after_boot = old.and_then(|old| old.profile.clone()).filter(|profile| *profile != output);
        }
        self.confirmed = Some(Known {
            generation: transaction.generation(),
            output,
            derivation: transaction.derivation().cloned(),
            at,
            target: transaction.target().cloned().map(Box::new),
        });
    }
}
