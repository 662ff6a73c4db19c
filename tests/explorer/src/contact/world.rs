//! One moment of the contact: the schedule, what waits to be told, the controller, and time.

use std::time::Duration;

use muster_agent::core::answers::ends_check_in;
use muster_agent::core::schedule::{CheckedIn, Failure, Next, Observed, Schedule};
use muster_protocol::ids::Generation;

use crate::scene::Break;

const POLL_SECONDS: u64 = 25;
/// What a controller asks for that wants to silence a machine.
const SILENCE: Duration = Duration::from_secs(86_400);

/// How much may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Budget {
    pub faults: u8,
    pub changes: u8,
    pub events: u8,
    pub publications: u8,
    /// Polls that end with nothing new.
    pub polls: u8,
}

/// A check-in: its number, and what it says, as a count of the changes that it tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct CheckIn {
    number: u8,
    says: u8,
}

#[derive(Debug, Clone, Hash)]
pub struct World {
    schedule: Schedule,
    broken: Option<Break>,
    pub now: Duration,
    /// How long the controller asked to be left alone, where that is obeyed whatever the schedule says.
    silent_until: Duration,
    budget: Budget,
    /// The agent's memory: what wakes the contact, and whether somebody waits for the metadata.
    to_tell: bool,
    hurry: bool,
    woken: bool,
    refresh: bool,
    polling: bool,
    /// The machine: how often it changed, how many events it wrote, what it holds.
    changes: u8,
    events: u8,
    accepted: u8,
    held: u8,
    /// Its disk: the last number used, and the check-in that waits for its answer.
    number: u8,
    unanswered: Option<CheckIn>,
    /// The controller: the last check-in, whether its answer was lost, what it stored and published, and
    /// whether it knows the bearer.
    last: Option<CheckIn>,
    lost: bool,
    stored: u8,
    published: u8,
    bearer: bool,
    /// It answers polls at once, with whatever keeps a machine busy, until time passes.
    lies: bool,
    /// Requests since time passed.
    pub requests: u8,
    pub violation: Option<String>,
}

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// What the schedule says is done, and answered well.
    Answered,
    ReplyLost,
    Unreachable,
    /// 429, with a `Retry-After` of a day.
    TooMany,
    /// 401: the controller knows the bearer no longer.
    Unauthorised,
    /// 200, with metadata that is forged.
    Forged,
    PollBringsNews,
    PollEnds,
    PollCallsToCheckIn,
    /// What was waited for has come.
    TimePasses,
    BeginsToLie,
    Publish,
    Change,
    ChangeInAHurry,
    Happening,
    AskForMetadata,
    Kill,
}

impl Event {
    pub const ALL: [Self; 17] = [
        Self::Answered,
        Self::ReplyLost,
        Self::Unreachable,
        Self::TooMany,
        Self::Unauthorised,
        Self::Forged,
        Self::PollBringsNews,
        Self::PollEnds,
        Self::PollCallsToCheckIn,
        Self::TimePasses,
        Self::BeginsToLie,
        Self::Publish,
        Self::Change,
        Self::ChangeInAHurry,
        Self::Happening,
        Self::AskForMetadata,
        Self::Kill,
    ];

    fn is_fault(self) -> bool {
        matches!(
            self,
            Self::ReplyLost
                | Self::Unreachable
                | Self::TooMany
                | Self::Unauthorised
                | Self::Forged
                | Self::BeginsToLie
                | Self::Kill
        )
    }

    fn status(self) -> u16 {
        match self {
            Self::TooMany => 429,
            Self::Unauthorised => 401,
            _ => 0,
        }
    }
}

impl World {
    pub fn new(budget: Budget, broken: Option<Break>) -> Self {
        let mut world = Self {
            schedule: Schedule::new(POLL_SECONDS),
            broken,
            now: Duration::ZERO,
            silent_until: Duration::ZERO,
            budget,
            to_tell: true,
            hurry: true,
            woken: false,
            refresh: false,
            polling: false,
            changes: 1,
            events: 1,
            accepted: 0,
            held: 0,
            number: 0,
            unanswered: None,
            last: None,
            lost: false,
            stored: 0,
            published: 0,
            bearer: false,
            lies: false,
            requests: 0,
            violation: None,
        };
        world.settle();
        world
    }

    /// The same with nothing that goes wrong any more, and as many polls as it takes.
    pub fn well(mut self) -> Self {
        (self.budget, self.lies) =
            (Budget { faults: 0, changes: 0, events: 0, publications: 0, polls: 1 }, false);
        self
    }

    pub fn next(&self) -> Next {
        self.schedule.clone().next(&self.observed())
    }

    /// At rest, with everything told and the newest held.
    pub fn is_settled(&self) -> bool {
        let told = self.last.is_some_and(|last| last.says == self.changes);
        matches!(self.next(), Next::Listen { until: None })
            && (told && !self.to_tell && self.unanswered.is_none())
            && (self.stored, self.accepted) == (self.events, self.events)
            && self.held == self.published
    }

    /// The moment after `event`, or `None` where it cannot happen now.
    pub fn after(&self, event: Event) -> Option<Self> {
        let mut world = self.clone();
        if event.is_fault() {
            world.budget.faults = world.budget.faults.checked_sub(1)?;
        }
        world.happen(event)?;
        world.settle();
        Some(world)
    }

    fn happen(&mut self, event: Event) -> Option<()> {
        let next = self.next();
        let listens = matches!(next, Next::Listen { .. });
        match event {
            Event::Answered
            | Event::ReplyLost
            | Event::Unreachable
            | Event::TooMany
            | Event::Unauthorised
            | Event::Forged => self.ask(next, event)?,
            Event::PollBringsNews => {
                (listens && self.poll_has_news()).then_some(())?;
                self.polled(generation(self.published), false);
            }
            Event::PollEnds => {
                (listens && !self.poll_has_news() && !self.lies).then_some(())?;
                self.budget.polls = self.budget.polls.checked_sub(1)?;
                self.pass(self.now + Duration::from_secs(POLL_SECONDS));
                self.polled(self.schedule.hint(), false);
            }
            Event::PollCallsToCheckIn => {
                (listens && self.lies).then_some(())?;
                // Another hint each time, too.
                self.polled(generation(self.requests.saturating_add(50)), true);
            }
            Event::TimePasses => match next {
                Next::Listen { until: Some(until) } => {
                    self.pass(until);
                    self.schedule.reports_due();
                }
                Next::Gather { until } => {
                    self.pass(until);
                    self.schedule.gathered();
                }
                Next::Pause { until } => self.pass(until.max(self.silent_until)),
                _ => return None,
            },
            Event::BeginsToLie => self.lies = (!self.lies).then_some(true)?,
            Event::Publish => {
                self.budget.publications = self.budget.publications.checked_sub(1)?;
                self.published += 1;
            }
            Event::Change | Event::ChangeInAHurry => {
                self.budget.changes = self.budget.changes.checked_sub(1)?;
                self.changes += 1;
                (self.to_tell, self.woken) = (true, true);
                self.hurry |= event == Event::ChangeInAHurry;
            }
            Event::Happening => {
                self.budget.events = self.budget.events.checked_sub(1)?;
                self.events += 1;
                (self.to_tell, self.woken) = (true, true);
            }
            Event::AskForMetadata => {
                self.budget.changes = self.budget.changes.checked_sub(1)?;
                (self.refresh, self.to_tell, self.hurry, self.woken) = (true, true, true, true);
            }
            Event::Kill => {
                self.schedule = Schedule::new(POLL_SECONDS);
                (self.to_tell, self.hurry, self.woken, self.refresh) = (true, true, false, false);
                self.polling = false;
            }
        }
        Some(())
    }

    pub fn poll_has_news(&self) -> bool {
        let have = self.schedule.hint().or(generation(self.held));
        self.polling && generation(self.published) != have
    }

    fn observed(&self) -> Observed {
        Observed {
            now: self.now,
            held: generation(self.held),
            to_tell: self.to_tell,
            reports: self.accepted < self.events,
            refresh: self.refresh,
        }
    }

    fn pass(&mut self, until: Duration) {
        self.now = self.now.max(until);
        (self.requests, self.lies) = (0, false);
    }

    /// What follows without anything happening.
    fn settle(&mut self) {
        loop {
            let next = self.schedule.next(&self.observed());
            match next {
                Next::Remind => self.woken = true,
                Next::Gather { .. } if std::mem::take(&mut self.hurry) => self.schedule.gathered(),
                Next::Listen { .. } | Next::Pause { .. } if std::mem::take(&mut self.woken) => {
                    self.polling &= matches!(next, Next::Listen { .. });
                    self.schedule.woken(self.now);
                }
                // Nothing is sent where nothing waits.
                Next::Report if self.accepted == self.events => self.schedule.reported(false, self.now),
                _ => return,
            }
        }
    }

    fn polled(&mut self, hint: Option<Generation>, check_in: bool) {
        self.polling = false;
        if self.broken == Some(Break::SpinOnPolls) {
            self.schedule.signed_news();
        }
        let polled = self.schedule.polled(hint, check_in, self.now);
        self.to_tell |= check_in;
        if polled.is_err() {
            self.failed(&Failure::default());
        }
    }

    fn failed(&mut self, failure: &Failure) {
        self.polling = false;
        let mut failure = *failure;
        if self.broken == Some(Break::KeepDeadBearer) {
            failure.unauthorised = false;
        }
        self.schedule.failed(&failure, self.now);
        if self.broken == Some(Break::ObeyRetryAfter)
            && let Some(asked) = failure.retry_after
        {
            self.silent_until = self.now + asked;
        }
    }

    /// Does what is next, with this answer.
    fn ask(&mut self, next: Next, answer: Event) -> Option<()> {
        // A bearer that is not known is not answered. Check-ins and reports are signed, and need none.
        let by_bearer = matches!(next, Next::Poll | Next::Refresh);
        let answer = match answer {
            Event::Answered if by_bearer && !self.bearer => Event::Unauthorised,
            answer => answer,
        };
        if answer == Event::Unauthorised && by_bearer {
            self.bearer = false;
        }
        self.requests = self.requests.saturating_add(1);
        let failure = Failure {
            unauthorised: answer == Event::Unauthorised,
            retry_after: (answer == Event::TooMany).then_some(SILENCE),
            ..Failure::default()
        };
        match next {
            Next::CheckIn => self.check_in(answer, &failure)?,
            Next::Report => match answer {
                Event::Answered | Event::ReplyLost => {
                    self.stored = self.events;
                    if answer == Event::Answered {
                        self.accepted = self.stored;
                        self.schedule.reported(false, self.now);
                    } else {
                        self.schedule.not_reported(&failure, false, self.now);
                    }
                }
                Event::Forged => return None,
                _ => {
                    let refused = answer != Event::Unreachable;
                    self.schedule.not_reported(&failure, refused, self.now);
                }
            },
            Next::Refresh => {
                self.refresh = false;
                match answer {
                    Event::Answered => {
                        self.held = self.published;
                        self.schedule.refreshed(generation(self.held), self.now);
                    }
                    Event::Forged => {
                        self.schedule.refused(self.now);
                        self.failed(&failure);
                    }
                    _ => self.failed(&failure),
                }
            }
            Next::Poll => match answer {
                Event::Answered => {
                    self.polling = true;
                    self.schedule.polling(self.now);
                }
                Event::Forged => return None,
                _ => self.failed(&failure),
            },
            Next::Remind | Next::Listen { .. } | Next::Gather { .. } | Next::Pause { .. } => return None,
        }
        Some(())
    }

    /// The check-in that waits for its answer, or the next one; as `runner/unanswered.rs` keeps it.
    fn check_in(&mut self, answer: Event, failure: &Failure) -> Option<()> {
        self.to_tell = false;
        let fresh = self.unanswered.is_none();
        if fresh {
            self.number += 1;
        }
        let sent = self.unanswered.unwrap_or(CheckIn { number: self.number, says: self.changes });
        self.unanswered = Some(sent);
        match answer {
            Event::Forged => return None,
            Event::Answered | Event::ReplyLost => self.hear(sent),
            _ => {}
        }
        if answer == Event::Answered {
            (self.unanswered, self.lost) = (None, false);
            self.to_tell |= !fresh;
            let hint = generation(self.published);
            let (bearer_seconds, poll_seconds) = (3600, POLL_SECONDS);
            self.schedule.checked_in(&CheckedIn { sent: self.now, bearer_seconds, poll_seconds, hint });
            return Some(());
        }
        self.lost |= answer == Event::ReplyLost;
        if ends_check_in(answer.status()) || self.broken == Some(Break::ForgetUnanswered) {
            self.unanswered = None;
        }
        self.to_tell = self.broken != Some(Break::ForgetToTell);
        self.failed(failure);
        Some(())
    }

    /// The controller takes a check-in.
    fn hear(&mut self, sent: CheckIn) {
        self.bearer = true;
        let Some(last) = self.last.replace(sent) else { return };
        let wrong = if sent.number < last.number {
            "a number below the last one: the machine is taken for a clone"
        } else if sent.number == last.number && sent != last {
            "the last number with other bytes: the machine is taken for a clone"
        } else if self.lost && sent != last {
            "what was not answered is not sent again as the same bytes"
        } else {
            return;
        };
        self.violation.get_or_insert(wrong.to_owned());
    }
}

fn generation(number: u8) -> Option<Generation> {
    Generation::new(number.into()).ok()
}
