//! When the agent contacts the controller, and why: checking in, reporting, fetching the trusted metadata,
//! polling, and backing off after a failure. The caller of [`Schedule::next`] does what it says and reports
//! the result.
//!
//! ```text
//! Start ──► Saying ──► Reporting ──► Refreshing ──► Opening ──► Listening ──► Start
//!                ▲                        │                     │    ▲
//!                │                        └── a poll is open ───┼────┘
//!                └────────── Gathering ◄── something to tell ───┘        any failure ──► Pausing ──► Start
//! ```

use std::time::Duration;

use muster_protocol::checkin::BEARER_SECONDS;
use muster_protocol::ids::Generation;

use super::backoff::{Backoff, part};
use super::hints::Hints;
use super::pace::Pace;

/// The longest wait while a generation waits only for the controller to be reached.
const PROBING_PAUSE: Duration = Duration::from_secs(1);
/// How long a change waits so that others can be sent along with it.
const MOMENT: Duration = Duration::from_millis(250);
/// A poll that ends sooner than this and brings nothing new is hasty.
const TOO_SOON: Duration = Duration::from_millis(500);
/// This many hasty polls in a row are harmless: calls to check in may follow each other closely. One more
/// counts as a failure, so that the agent does not spin.
const HASTY: u32 = 3;
/// One unanswered check-in, and one with what is new since.
const CHECK_INS_AT_ONCE: u8 = 2;

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Next {
    /// Send the unanswered check-in, or a new one.
    CheckIn,
    /// Send the waiting reports.
    Report,
    /// Fetch the trusted metadata.
    Refresh,
    /// End the next [`Next::Listen`] or [`Next::Pause`] at once: there is something to report, after handling
    /// what the poll brought. Returned once.
    Remind,
    /// Open a poll.
    Poll,
    /// Wait for the poll, for something to report, or until this awake time.
    Listen { until: Option<Duration> },
    /// Collect what else there is to report until this awake time, unless somebody waits for it.
    Gather { until: Duration },
    /// Leave the controller alone until this awake time, or until there is something to report.
    Pause { until: Duration },
}

/// What is observed before each step.
#[derive(Debug, Clone, Copy, Default)]
pub struct Observed {
    /// Awake time.
    pub now: Duration,
    /// The generation held.
    pub held: Option<Generation>,
    /// Something has changed that the controller does not know about.
    pub to_tell: bool,
    /// There are waiting reports.
    pub reports: bool,
    /// A refresh of the metadata was requested.
    pub refresh: bool,
}

/// What a check-in brought.
#[derive(Debug, Clone, Copy)]
pub struct CheckedIn {
    /// When it was sent, in awake time.
    pub sent: Duration,
    /// How long its bearer is valid, in seconds.
    pub bearer_seconds: u64,
    /// How long a poll may take, in seconds.
    pub poll_seconds: u64,
    pub hint: Option<Generation>,
}

/// How a request failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Failure {
    /// The bearer or the key is unknown to the controller.
    pub unauthorised: bool,
    /// How long the controller asks to be left alone.
    pub retry_after: Option<Duration>,
    /// A generation waits for confirmation: it is tried every second, which says nothing about how long the
    /// controller is away.
    pub probing: bool,
    /// Spreads machines that failed at the same moment.
    pub random: u64,
}

/// The controller answers polls at once and has nothing new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spinning;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum At {
    Start,
    /// How many check-ins may follow at once.
    Saying(u8),
    /// `then`: whether to refresh the metadata as well.
    Reporting {
        then_refresh: bool,
    },
    Refreshing,
    Opening,
    Listening,
    /// Since when.
    Gathering(Duration),
    /// Until when, and how often it had failed before.
    Pausing(Duration, Backoff),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Schedule {
    at: At,
    /// When the open poll began, in awake time.
    polling: Option<Duration>,
    backoff: Backoff,
    /// When to renew the bearer, in awake time.
    bearer_until: Option<Duration>,
    hints: Hints,
    reports: Pace,
    /// Which of the previous keys signs, while the controller does not know the newest one.
    older: Option<usize>,
    /// How many polls in a row were hasty.
    hasty: u32,
    /// The last poll was answered, and not with a call to check in.
    heard: bool,
    /// How long a poll takes by this machine's own settings, and currently.
    longest_poll: u64,
    poll_seconds: u64,
}

impl Schedule {
    pub fn new(poll_seconds: u64) -> Self {
        Self {
            at: At::Start,
            polling: None,
            backoff: Backoff::default(),
            bearer_until: None,
            hints: Hints::default(),
            reports: Pace::default(),
            older: None,
            hasty: 0,
            heard: false,
            longest_poll: poll_seconds,
            poll_seconds,
        }
    }

    /// What to do now. Asking again before that is done returns the same, except for [`Next::Remind`].
    pub fn next(&mut self, seen: &Observed) -> Next {
        loop {
            self.at = match self.at {
                At::Start if std::mem::take(&mut self.heard) => {
                    self.at = At::Refreshing;
                    if self.bearer_due(seen.now) || seen.to_tell || seen.reports {
                        return Next::Remind;
                    }
                    At::Refreshing
                }
                At::Start => At::Saying(CHECK_INS_AT_ONCE),
                At::Saying(left) if left > 0 && (seen.to_tell || self.bearer_due(seen.now)) => {
                    return Next::CheckIn;
                }
                At::Saying(_) => At::Reporting { then_refresh: true },
                At::Reporting { .. } if self.reports.may(seen.now) => return Next::Report,
                At::Reporting { then_refresh } => after_reports(then_refresh),
                At::Refreshing if self.must_refresh(seen) => return Next::Refresh,
                At::Refreshing => self.after_refresh(),
                At::Opening => return Next::Poll,
                At::Listening => {
                    return Next::Listen { until: self.reports.again().filter(|_| seen.reports) };
                }
                At::Gathering(since) => return Next::Gather { until: since.saturating_add(MOMENT) },
                At::Pausing(until, _) if seen.now >= until => At::Start,
                At::Pausing(until, _) => return Next::Pause { until },
            };
        }
    }

    /// A check-in was answered.
    pub fn checked_in(&mut self, answer: &CheckedIn) {
        if let At::Saying(left) = self.at {
            self.at = At::Saying(left.saturating_sub(1));
        }
        self.key_known();
        let good = Duration::from_secs(answer.bearer_seconds.min(BEARER_SECONDS)) * 3 / 4;
        self.bearer_until = Some(answer.sent.saturating_add(good));
        self.poll_seconds = answer.poll_seconds.min(self.longest_poll).max(1);
        self.hints.heard(answer.hint.or(self.hints.hint()));
        self.reports.reached();
    }

    /// Reports were accepted; `more` are still waiting.
    pub fn reported(&mut self, more: bool, now: Duration) {
        self.reports.sent(more, now);
        self.leave_reports();
    }

    /// Reports were not accepted, which delays nothing else. Returns how long they wait, and whether this is
    /// the first failure in a row.
    pub fn not_reported(&mut self, failure: &Failure, refused: bool, now: Duration) -> (Duration, bool) {
        let wait = self.reports.failed(failure.random, failure.retry_after, refused, now);
        self.leave_reports();
        wait
    }

    /// The metadata was fetched and is good; `held` is the generation it names.
    pub fn refreshed(&mut self, held: Option<Generation>, now: Duration) {
        self.hints.refreshed(held, now);
        self.at = self.after_refresh();
    }

    /// The metadata was fetched and refused. [`Schedule::failed`] follows.
    pub fn refused(&mut self, now: Duration) {
        self.hints.refused(now);
    }

    /// A poll was opened.
    pub fn polling(&mut self, now: Duration) {
        self.polling = Some(now);
        self.at = At::Listening;
    }

    /// The poll was answered. If it spins, [`Schedule::failed`] follows.
    pub fn polled(
        &mut self,
        hint: Option<Generation>,
        check_in: bool,
        now: Duration,
    ) -> Result<(), Spinning> {
        self.hints.heard(hint);
        // Hints that change all the time are no news either; what they lead to is.
        let soon = self.polling.take().is_some_and(|asked| now.saturating_sub(asked) < TOO_SOON);
        self.hasty = if soon { self.hasty.saturating_add(1) } else { 0 };
        self.heard = !check_in;
        if self.hasty > HASTY {
            return Err(Spinning);
        }
        self.backoff.succeeded();
        self.at = At::Start;
        Ok(())
    }

    /// Something signed by operators or root holders arrived. Timestamps do not count: a controller can make
    /// any number.
    pub fn signed_news(&mut self) {
        self.hasty = 0;
    }

    /// There is something to report.
    pub fn woken(&mut self, now: Duration) {
        match self.at {
            At::Listening => self.at = At::Gathering(now),
            At::Pausing(_, before) => {
                // A try out of turn is no sign that the controller is away for longer.
                if before.failures() > 0 {
                    self.backoff = before;
                }
                self.at = At::Start;
            }
            _ => {}
        }
    }

    /// The time given by [`Next::Listen`] has come.
    pub fn reports_due(&mut self) {
        if self.at == At::Listening {
            self.at = At::Reporting { then_refresh: false };
        }
    }

    /// The changes to send along are complete, or the wait for them is over.
    pub fn gathered(&mut self) {
        if matches!(self.at, At::Gathering(_)) {
            self.at = At::Saying(CHECK_INS_AT_ONCE);
        }
    }

    /// A request failed, other than one with reports. Returns how long the controller is left alone, and
    /// whether this is the first failure in a row.
    pub fn failed(&mut self, failure: &Failure, now: Duration) -> (Duration, bool) {
        if failure.unauthorised {
            self.bearer_until = None;
        }
        let before = self.backoff;
        let wait = self.backoff.failed(failure.random, failure.retry_after);
        let wait = if failure.probing { wait.min(PROBING_PAUSE) } else { wait };
        let first = self.backoff.failures() == 1;
        if failure.probing && before.failures() > 0 {
            self.backoff = before;
        }
        self.polling = None;
        self.at = At::Pausing(now.saturating_add(wait), before);
        (wait, first)
    }

    /// Which of the `previous` keys signs the next check-in, if not the newest.
    pub fn older_key(&self) -> Option<usize> {
        self.older
    }

    /// The controller does not know the key that signed. It may know a previous one: it was restored from a
    /// backup, or falsely claimed to have accepted the new key.
    pub fn key_not_known(&mut self, previous: usize) {
        let next = self.older.map_or(0, |older| older.saturating_add(1));
        self.older = (next < previous).then_some(next);
    }

    /// A check-in was answered, so the controller knows the newest key.
    pub fn key_known(&mut self) {
        self.older = None;
    }

    /// The controller's last hint; never trusted.
    pub fn hint(&self) -> Option<Generation> {
        self.hints.hint()
    }

    /// Whether it hints at a generation that is not held and was not requested recently.
    pub fn is_news(&self, held: Option<Generation>, now: Duration) -> bool {
        self.hints.is_news(held, now)
    }

    /// How long to poll, in seconds; machines that began together drift apart by up to a tenth.
    pub fn poll_wait(&self, random: u64) -> u64 {
        let whole = Duration::from_secs(self.poll_seconds);
        (whole - part(whole / 10, random)).as_secs().max(1)
    }

    fn bearer_due(&self, now: Duration) -> bool {
        self.bearer_until.is_none_or(|until| now >= until)
    }

    fn must_refresh(&self, seen: &Observed) -> bool {
        seen.refresh || self.hints.must_refresh(seen.held, seen.now)
    }

    fn leave_reports(&mut self) {
        if let At::Reporting { then_refresh } = self.at {
            self.at = after_reports(then_refresh);
        }
    }

    fn after_refresh(&self) -> At {
        if self.polling.is_some() { At::Listening } else { At::Opening }
    }
}

fn after_reports(then_refresh: bool) -> At {
    if then_refresh { At::Refreshing } else { At::Listening }
}

#[cfg(test)]
mod tests;
