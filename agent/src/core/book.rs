//! What the agent knows durably, and the order in which it is written: journal, transaction and outbox change
//! together so that every event is reported exactly once.
//!
//! Nothing here writes. Each change is a list of [`Write`]s to be done in order; [`Book::apply`] takes in
//! each one that is done, so a crash or a full disk may stop the list anywhere. An event is written into the
//! transaction (or the journal) with the number that the outbox will give it, and only then pushed: a number
//! that the outbox has not reached marks what is still to be pushed.

use muster_protocol::checkin::Phase;
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Generation, StorePath};
use muster_protocol::report::{Asker, EventKind, MAX_EVENT_NUMBER};
use muster_protocol::target::Target;

use super::policy::Pause;
use super::reboot::Rebooted;
use super::records::{Activation, Confirmation, Journal, Last, Settled, Telling, Transaction};
use super::rollout::Followed;
use super::state::{Impossible, Input, State};

/// One durable change. It happens completely or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Write {
    Journal(Box<Journal>),
    Transaction(Box<Transaction>),
    Confirmation(Box<Confirmation>),
    /// Removes a document; one that is already gone is no error.
    Clear(Document),
    /// Appends to the outbox.
    Push(Box<Telling>),
}

impl Write {
    fn push(telling: Telling) -> Self {
        Self::Push(Box::new(telling))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Document {
    Transaction,
    Activation,
    Confirmation,
}

/// Forgets a transaction. Its own file goes last: while it exists the rest is looked for.
const FORGET: [Write; 3] = [
    Write::Clear(Document::Confirmation),
    Write::Clear(Document::Activation),
    Write::Clear(Document::Transaction),
];

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BookError {
    #[error(transparent)]
    Impossible(#[from] Impossible),
    #[error("there is no transaction; this is a bug in muster-agent, please report it")]
    NoTransaction,
}

/// Why there is nothing to retry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NothingToRetry {
    #[error("generation {0} is confirmed and runs: there is nothing to try again")]
    Confirmed(Generation),
    #[error("{what} is {state}: try again when that is over")]
    Underway { what: String, state: &'static str },
}

/// What was observed around a change of state.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moment<'a> {
    pub running: Option<&'a StorePath>,
    pub now: UnixMillis,
    /// The transaction's duration so far, in milliseconds of awake time.
    pub ms: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Book {
    journal: Journal,
    transaction: Option<Transaction>,
    /// The highest number in the outbox.
    pushed: u64,
}

impl Book {
    /// From what was found on disk.
    pub fn new(journal: Journal, transaction: Option<Transaction>, pushed: u64) -> Self {
        Self { journal, transaction, pushed }
    }

    pub fn journal(&self) -> &Journal {
        &self.journal
    }
    pub fn transaction(&self) -> Option<&Transaction> {
        self.transaction.as_ref()
    }

    /// Takes in a change that is durable.
    pub fn apply(&mut self, write: &Write) {
        match write {
            Write::Journal(journal) => self.journal = (**journal).clone(),
            Write::Transaction(transaction) => self.transaction = Some((**transaction).clone()),
            Write::Clear(Document::Transaction) => self.transaction = None,
            Write::Push(telling) => self.pushed = self.pushed.max(telling.seq),
            Write::Clear(_) | Write::Confirmation(_) => {}
        }
    }

    /// What is written down but not pushed yet. Nothing else is pushed or written before it.
    pub fn flush(&self) -> Vec<Write> {
        let written = self.transaction.iter().flat_map(|transaction| &transaction.telling);
        let mut pending: Vec<Telling> = self.journal.telling.iter().chain(written).cloned().collect();
        pending.retain(|telling| telling.seq > self.pushed);
        pending.sort_by_key(|telling| telling.seq);
        pending.dedup_by_key(|telling| telling.seq);
        pending.into_iter().map(Write::push).collect()
    }

    /// Removes from the documents the events with numbers beyond [`MAX_EVENT_NUMBER`]; those up to
    /// `delivered` are already in the outbox. The others are pushed first, so a crash in between repeats one
    /// rather than losing it.
    pub fn renumbered(&self, delivered: u64) -> Vec<Write> {
        let beyond = |telling: &Telling| telling.seq > MAX_EVENT_NUMBER;
        let written = self.transaction.iter().flat_map(|transaction| &transaction.telling);
        let mut lost: Vec<Telling> =
            self.journal.telling.iter().chain(written).filter(|t| beyond(t)).cloned().collect();
        if lost.is_empty() {
            return Vec::new();
        }
        lost.sort_by_key(|telling| telling.seq);
        lost.dedup_by_key(|telling| telling.seq);
        lost.retain(|telling| telling.seq > delivered);
        let first = self.pushed.saturating_add(1);
        let mut writes: Vec<Write> =
            (first..).zip(lost).map(|(seq, telling)| Write::push(Telling { seq, ..telling })).collect();
        if self.journal.telling.iter().any(beyond) {
            writes.push(Write::Journal(Box::new(Journal { telling: Vec::new(), ..self.journal.clone() })));
        }
        if let Some(open) = self.transaction.as_ref().filter(|open| open.telling.iter().any(beyond)) {
            writes.push(Write::Transaction(Box::new(Transaction { telling: Vec::new(), ..open.clone() })));
        }
        writes
    }

    /// Opens a transaction.
    pub fn begin(&self, mut transaction: Transaction, events: Vec<EventKind>, now: UnixMillis) -> Vec<Write> {
        let mut writes = self.flush();
        transaction.telling = numbered(self.next(&writes), Some(transaction.generation()), events, now);
        // Leftovers of an earlier transaction.
        writes.extend(FORGET);
        stored(writes, transaction)
    }

    /// Opens a transaction that ends at once. If opening and ending were two documents, a crash between them
    /// would leave a transaction that goes on to be built and activated.
    pub fn begin_and_end(
        &self,
        mut transaction: Transaction,
        mut events: Vec<EventKind>,
        input: Input,
        seen: &Moment<'_>,
    ) -> Result<Vec<Write>, BookError> {
        transaction.state = transaction.state.after(input)?;
        events.extend(transaction.final_event(seen.running, seen.ms));
        Ok(self.begin(transaction, events, seen.now))
    }

    /// Moves the transaction by `input` after `change` was applied to it, with events that belong to the new
    /// state. A final state adds its own event.
    pub fn advance(
        &self,
        input: Input,
        mut events: Vec<EventKind>,
        seen: &Moment<'_>,
        change: impl FnOnce(&mut Transaction),
    ) -> Result<Vec<Write>, BookError> {
        let mut writes = self.flush();
        let mut transaction = self.transaction.clone().ok_or(BookError::NoTransaction)?;
        transaction.state = transaction.state.after(input)?;
        change(&mut transaction);
        if transaction.state.is_final() {
            events.extend(transaction.final_event(seen.running, seen.ms));
        }
        transaction.telling = numbered(self.next(&writes), Some(transaction.generation()), events, seen.now);
        if transaction.state == State::Activating {
            // What an earlier attempt of this transaction left does not belong to this one.
            writes.extend([Write::Clear(Document::Confirmation), Write::Clear(Document::Activation)]);
        }
        Ok(stored(writes, transaction))
    }

    /// Takes a finished transaction into the journal and forgets it.
    pub fn settle(&self, seen: Settled<'_>) -> Vec<Write> {
        let mut writes = self.flush();
        let Some(transaction) = &self.transaction else { return writes };
        let mut journal = self.journal.clone();
        journal.settle(transaction, seen);
        writes.push(Write::Journal(Box::new(journal)));
        writes.extend(FORGET);
        writes
    }

    /// Forgets a transaction that changed nothing.
    pub fn supersede(&self) -> Vec<Write> {
        let mut writes = self.flush();
        let untouched = self.transaction.as_ref().is_some_and(|transaction| {
            transaction.state.is_before_activation() || transaction.state == State::Unknown
        });
        if untouched {
            writes.extend(FORGET);
        }
        writes
    }

    /// Reports an event that belongs to no state. A crash may lose it or, at worst, report it again.
    pub fn tell(&self, generation: Option<Generation>, event: EventKind, now: UnixMillis) -> Vec<Write> {
        let mut writes = self.flush();
        writes
            .extend(numbered(self.next(&writes), generation, vec![event], now).into_iter().map(Write::push));
        writes
    }

    /// Gives the activator a verdict on the open transaction.
    pub fn give(&self, verdict: super::records::GivenVerdict) -> Vec<Write> {
        let Some(transaction) = &self.transaction else { return Vec::new() };
        let transaction = transaction.id.clone();
        vec![Write::Confirmation(Box::new(Confirmation { transaction, verdict }))]
    }

    /// Records that the expected system runs in this boot, and whether the boot itself brought it up: a later
    /// boot that comes up on another one is compared with it.
    pub fn came_up(&self, running: &StorePath, boot: &str, booted: Option<&StorePath>) -> Vec<Write> {
        let expected = self.journal.expected.as_ref() == Some(running);
        let booted = booted.filter(|booted| *booted == running).or(self.journal.booted.as_ref());
        let known = self.journal.seen_in.as_deref() == Some(boot) && self.journal.booted.as_ref() == booted;
        if !expected || self.transaction.is_some() || known {
            return Vec::new();
        }
        let (seen_in, booted) = (Some(boot.to_owned()), booted.cloned());
        let mut journal = Journal { seen_in, booted, ..self.journal.clone() };
        journal.telling = Vec::new();
        self.noted(journal)
    }

    /// Records whether the machine runs what it was left on, and reports each change once.
    pub fn drift(&self, running: &StorePath, now: UnixMillis) -> Vec<Write> {
        let Some(expected) = self.journal.expected.clone().filter(|_| self.transaction.is_none()) else {
            return Vec::new();
        };
        let mut journal = self.journal.clone();
        if self.journal.after_boot.as_ref() == Some(running) {
            // A trial system ends with the boot: that is not drift.
            (journal.expected, journal.drift) = (Some(running.clone()), None);
            (journal.after_boot, journal.telling) = (None, Vec::new());
            return self.noted(journal);
        }
        let drift = (*running != expected).then(|| running.clone());
        if drift == self.journal.drift {
            return Vec::new();
        }
        if journal.left != drift {
            journal.left = None;
        }
        let pending = self.flush();
        journal.telling = match &drift {
            Some(running) => {
                let event = EventKind::Drift { running: running.clone(), expected };
                let generation = journal.confirmed.as_ref().map(|known| known.generation);
                numbered(self.next(&pending), generation, vec![event], now)
            }
            None => Vec::new(),
        };
        journal.drift = drift;
        self.noted(journal)
    }

    /// Allows another try of `wanted` although it failed, and reports who asked. If it is under way and
    /// nothing has changed yet there is nothing to write: it only has to be looked at again.
    pub fn lift(
        &self,
        wanted: &Target,
        by: Asker,
        running: Option<&StorePath>,
        now: UnixMillis,
    ) -> Result<Vec<Write>, NothingToRetry> {
        if let Some(open) = &self.transaction {
            let waits = open.state.is_before_activation() && !open.is_rollback();
            if waits && open.derivation() == Some(&wanted.derivation) {
                return Ok(Vec::new());
            }
            let what = match open.is_rollback() {
                true => "the rollback at this machine".to_owned(),
                false => format!("generation {}", open.generation()),
            };
            return Err(NothingToRetry::Underway { what, state: open.state.name() });
        }
        let confirmed = self.journal.confirmed.as_ref();
        if confirmed
            .is_some_and(|known| known.generation == wanted.generation && running == Some(&known.output))
        {
            return Err(NothingToRetry::Confirmed(wanted.generation));
        }
        let mut journal = self.journal.clone();
        let quarantined = journal.lift(wanted);
        let event = EventKind::Retried { derivation: wanted.derivation.clone(), quarantined, by };
        journal.telling = numbered(self.next(&self.flush()), Some(wanted.generation), vec![event], now);
        Ok(self.noted(journal))
    }

    /// Records what the machine has to say in its rollout.
    pub fn follow(&self, followed: Followed) -> Vec<Write> {
        if self.journal.followed.as_ref() == Some(&followed) {
            return Vec::new();
        }
        self.noted(Journal { followed: Some(followed), ..self.journal.clone() })
    }

    /// Pauses updates, or resumes them.
    pub fn pause(&self, pause: Option<Pause>) -> Vec<Write> {
        if self.journal.pause == pause {
            return Vec::new();
        }
        self.noted(Journal { pause, ..self.journal.clone() })
    }

    /// Records a reboot before it is requested, so that it is requested once.
    pub fn reboot(&self, rebooted: Rebooted, why: String, now: UnixMillis) -> Vec<Write> {
        let generation = self.journal.confirmed.as_ref().map(|known| known.generation);
        let generation = self.transaction.as_ref().map(Transaction::generation).or(generation);
        let telling = numbered(self.next(&self.flush()), generation, vec![EventKind::Rebooting { why }], now);
        self.noted(Journal { rebooted: Some(rebooted), telling, ..self.journal.clone() })
    }

    /// Records that nobody accepted the request for a reboot.
    pub fn not_rebooting(&self) -> Vec<Write> {
        self.noted(Journal { rebooted: None, ..self.journal.clone() })
    }

    /// A journal with its events behind those still pending.
    fn noted(&self, journal: Journal) -> Vec<Write> {
        let mut writes = self.flush();
        let events: Vec<Write> = journal
            .telling
            .iter()
            .filter(|t| t.seq >= self.next(&writes))
            .cloned()
            .map(Write::push)
            .collect();
        writes.push(Write::Journal(Box::new(journal)));
        writes.extend(events);
        writes
    }

    /// The number of the next event once `writes` are done.
    fn next(&self, writes: &[Write]) -> u64 {
        let pushed = writes.iter().filter_map(|write| match write {
            Write::Push(telling) => Some(telling.seq),
            _ => None,
        });
        pushed.max().unwrap_or(0).max(self.pushed).saturating_add(1)
    }
}

fn numbered(
    first: u64,
    generation: Option<Generation>,
    events: Vec<EventKind>,
    at: UnixMillis,
) -> Vec<Telling> {
    (first..).zip(events).map(|(seq, event)| Telling { seq, at, generation, event }).collect()
}

fn stored(mut writes: Vec<Write>, transaction: Transaction) -> Vec<Write> {
    let events: Vec<Write> = transaction.telling.iter().cloned().map(Write::push).collect();
    writes.push(Write::Transaction(Box::new(transaction)));
    writes.extend(events);
    writes
}

/// Replaces a damaged journal. The held generation counts as tried, so that a lost quarantine does no harm.
pub fn rebuilt(held: Option<&Target>, running: Option<&StorePath>, at: UnixMillis) -> Journal {
    let mut journal = Journal { expected: running.cloned(), ..Journal::default() };
    let Some(held) = held else { return journal };
    if Some(&held.output) == running {
        let mut transaction = Transaction::signed("rebuilt".to_owned(), held.clone(), at);
        transaction.state = State::Confirmed { degraded: Vec::new() };
        journal.settle(&transaction, Settled { running, at, ..Settled::default() });
        journal.previous = None;
        return journal;
    }
    let note = format!(
        "journal.json was damaged, so nobody knows whether generation {} failed: publish it again under a \
         new number",
        held.generation
    );
    journal.tried = Some(held.generation);
    journal.last = Some(Last { generation: held.generation, phase: Phase::Failed, note: Some(note), at });
    journal
}

/// The transaction of an activator's record, where its own file was lost.
pub fn regained(record: &Activation, held: Option<&Target>, at: UnixMillis) -> Option<Transaction> {
    let held = held.filter(|held| held.output == record.new)?;
    let mut transaction = Transaction::signed(record.transaction.clone(), held.clone(), at);
    transaction.state = State::Activating;
    transaction.old = Some(record.old.clone());
    Some(transaction)
}

#[cfg(test)]
mod tests;
