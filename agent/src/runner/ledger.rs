//! Does the writes of [`Book`] in order, and reports each one that is done back to it.

use std::path::Path;

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Generation, StorePath};
use muster_protocol::report::{Asker, EventKind};
use muster_protocol::target::Target;

use crate::core::book::{Book, BookError, Document, NothingToRetry, Write, rebuilt, regained};
use crate::core::policy::Pause;
use crate::core::reboot::Rebooted;
use crate::core::records::{GivenVerdict, Journal, Settled, Transaction};
use crate::core::rollout::Followed;
use crate::core::state::Input;
use crate::journal::{Files, Found, JournalError};
use crate::outbox::{FOLDER, Outbox, OutboxError};

pub use crate::core::book::Moment;

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    #[error(transparent)]
    Book(#[from] BookError),
    #[error(transparent)]
    Nothing(#[from] NothingToRetry),
}

pub struct Ledger {
    pub files: Files,
    pub outbox: Outbox,
    book: Book,
}

impl Ledger {
    /// Reads what the last run left, and pushes what it wrote down but did not push. Damaged documents are
    /// replaced by what the machine itself shows: `held` is the newest verified target, `running` what runs.
    pub fn open(
        state_dir: &Path,
        held: Option<&Target>,
        running: Option<&StorePath>,
        now: UnixMillis,
    ) -> Result<Self, LedgerError> {
        let files = Files::new(state_dir);
        let outbox = Outbox::open(&state_dir.join(FOLDER), now)?;
        let journal = match files.journal()? {
            Found::Whole(journal) => journal,
            Found::Nothing => Journal::default(),
            Found::Damaged(_) => {
                let journal = rebuilt(held, running, now);
                files.write_journal(&journal)?;
                journal
            }
        };
        let transaction = match files.transaction()? {
            Found::Whole(transaction) => Some(transaction),
            Found::Nothing | Found::Damaged(_) => {
                // What the journal has taken in is over, whatever was removed of it.
                let record = files.activation()?.whole();
                let record = record.filter(|record| journal.settled.as_ref() != Some(&record.transaction));
                let transaction = record.and_then(|record| regained(&record, held, now));
                if let Some(transaction) = &transaction {
                    files.write_transaction(transaction)?;
                }
                transaction
            }
        };
        let book = Book::new(journal, transaction, outbox.last());
        let mut ledger = Self { files, outbox, book };
        ledger.come_back()?;
        ledger.perform(ledger.book.flush())?;
        Ok(ledger)
    }

    pub fn journal(&self) -> &Journal {
        self.book.journal()
    }
    pub fn transaction(&self) -> Option<&Transaction> {
        self.book.transaction()
    }

    pub fn begin(
        &mut self,
        transaction: Transaction,
        events: Vec<EventKind>,
        now: UnixMillis,
    ) -> Result<(), LedgerError> {
        self.perform(self.book.begin(transaction, events, now))
    }

    pub fn begin_and_end(
        &mut self,
        transaction: Transaction,
        events: Vec<EventKind>,
        input: Input,
        seen: &Moment<'_>,
    ) -> Result<(), LedgerError> {
        self.perform(self.book.begin_and_end(transaction, events, input, seen)?)
    }

    pub fn advance(
        &mut self,
        input: Input,
        events: Vec<EventKind>,
        seen: &Moment<'_>,
        change: impl FnOnce(&mut Transaction),
    ) -> Result<(), LedgerError> {
        self.perform(self.book.advance(input, events, seen, change)?)
    }

    pub fn settle(&mut self, seen: Settled<'_>) -> Result<(), LedgerError> {
        self.perform(self.book.settle(seen))
    }

    pub fn supersede(&mut self) -> Result<(), LedgerError> {
        self.perform(self.book.supersede())
    }

    pub fn tell(
        &mut self,
        generation: Option<Generation>,
        event: EventKind,
        now: UnixMillis,
    ) -> Result<(), LedgerError> {
        self.perform(self.book.tell(generation, event, now))
    }

    pub fn give(&mut self, verdict: GivenVerdict) -> Result<(), LedgerError> {
        self.perform(self.book.give(verdict))
    }

    pub fn came_up(
        &mut self,
        running: &StorePath,
        boot: &str,
        booted: Option<&StorePath>,
    ) -> Result<(), LedgerError> {
        self.perform(self.book.came_up(running, boot, booted))
    }

    /// Returns whether there was news about what runs.
    pub fn drift(&mut self, running: &StorePath, now: UnixMillis) -> Result<bool, LedgerError> {
        let writes = self.book.drift(running, now);
        let new = !writes.is_empty();
        self.perform(writes)?;
        Ok(new)
    }

    /// Allows another try of `wanted` although it failed.
    pub fn lift(
        &mut self,
        wanted: &Target,
        by: Asker,
        running: Option<&StorePath>,
        now: UnixMillis,
    ) -> Result<(), LedgerError> {
        self.perform(self.book.lift(wanted, by, running, now)?)
    }

    pub fn follow(&mut self, followed: Followed) -> Result<(), LedgerError> {
        self.perform(self.book.follow(followed))
    }

    pub fn pause(&mut self, pause: Option<Pause>) -> Result<(), LedgerError> {
        self.perform(self.book.pause(pause))
    }

    pub fn reboot(&mut self, rebooted: Rebooted, why: String, now: UnixMillis) -> Result<(), LedgerError> {
        self.perform(self.book.reboot(rebooted, why, now))
    }

    pub fn not_rebooting(&mut self) -> Result<(), LedgerError> {
        self.perform(self.book.not_rebooting())
    }

    /// The controller has everything through this number, as far as it was sent.
    pub fn accepted(&mut self, through: u64) -> Result<(), LedgerError> {
        Ok(self.outbox.accepted(through)?)
    }

    /// Events written down under numbers beyond the limit are reported under new ones, unless the outbox had
    /// them.
    fn come_back(&mut self) -> Result<(), LedgerError> {
        let delivered = self.outbox.left_behind().unwrap_or(0);
        for write in self.book.renumbered(delivered) {
            self.perform(vec![write])?;
        }
        Ok(())
    }

    /// Drops what exceeds the room. The loss is reported first.
    fn make_room(&mut self, now: UnixMillis) -> Result<(), LedgerError> {
        let Some(excess) = self.outbox.excess() else { return Ok(()) };
        tracing::warn!(events = excess.numbers.len(), "nobody accepts reports: dropping the least important");
        for write in self.book.tell(None, excess.event, now) {
            self.put(&write)?;
        }
        Ok(self.outbox.discard(&excess.numbers)?)
    }

    /// A write that fails, and everything after it, was not done; the book knows.
    fn perform(&mut self, writes: Vec<Write>) -> Result<(), LedgerError> {
        let mut pushed = None;
        for write in writes {
            self.put(&write)?;
            if let Write::Push(telling) = write {
                pushed = Some(telling.at);
            }
        }
        // Only now: events in the list already have their numbers.
        pushed.map_or(Ok(()), |now| self.make_room(now))
    }

    fn put(&mut self, write: &Write) -> Result<(), LedgerError> {
        match write {
            Write::Journal(journal) => self.files.write_journal(journal)?,
            Write::Transaction(transaction) => self.files.write_transaction(transaction)?,
            Write::Confirmation(confirmation) => self.files.write_confirmation(confirmation)?,
            Write::Clear(Document::Transaction) => self.files.clear_transaction()?,
            Write::Clear(Document::Activation) => self.files.clear_activation()?,
            Write::Clear(Document::Confirmation) => self.files.clear_confirmation()?,
            Write::Push(telling) => {
                self.outbox.push(telling.at, telling.generation, telling.event.clone())?;
            }
        }
        self.book.apply(write);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::machine::Class;
    use muster_protocol::report::{Event, Reason};

    use super::*;
    use crate::core::records::Telling;
    use crate::core::records::tests::{path, target, transaction};
    use crate::core::records::{Activation, ActivationPhase};
    use crate::core::state::State;

    const MOMENT: Moment<'static> = Moment { running: None, now: 2, ms: 3 };

    fn on(running: &StorePath) -> Settled<'_> {
        Settled { running: Some(running), at: 3, ..Settled::default() }
    }

    fn open(folder: &Path) -> Ledger {
        Ledger::open(folder, None, None, 1).unwrap()
    }

    fn events(ledger: &Ledger) -> Vec<Event> {
        ledger.outbox.batch(&"m".parse().unwrap(), true).map_or_else(Vec::new, |batch| batch.events)
    }

    #[test]
    fn i7_a_crash_between_writing_an_event_down_and_pushing_it_loses_and_repeats_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = open(folder.path());
        ledger.begin(transaction(2, State::Verified), vec![EventKind::Verified], 1).unwrap();
        assert_eq!(events(&ledger).len(), 1);
        // As if the push had never happened.
        let mut written = ledger.transaction().unwrap().clone();
        written.state = State::Fetched;
        written.telling =
            vec![Telling { seq: 2, at: 2, generation: None, event: EventKind::Fetched { ms: 4 } }];
        ledger.files.write_transaction(&written).unwrap();
        drop(ledger);
        for _ in 0..3 {
            let ledger = open(folder.path());
            let kinds: Vec<EventKind> = events(&ledger).into_iter().map(|event| event.kind).collect();
            assert_eq!(kinds, [EventKind::Verified, EventKind::Fetched { ms: 4 }]);
        }
    }

    #[test]
    fn i3_a_transaction_that_is_over_is_told_and_taken_in_once_however_often_the_agent_dies() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = open(folder.path());
        let rolling = State::RollingBack { reason: Reason::Deadline, detail: "late".into() };
        ledger.begin(transaction(2, rolling), vec![], 1).unwrap();
        ledger.advance(Input::Undone, vec![], &MOMENT, |_| ()).unwrap();
        let written = ledger.transaction().unwrap().clone();
        drop(ledger);
        let mut ledger = open(folder.path());
        ledger.settle(on(&path("old"))).unwrap();
        let journal = ledger.journal().clone();
        // Killed after the journal was written and before the transaction was removed.
        ledger.files.write_transaction(&written).unwrap();
        drop(ledger);
        let mut ledger = open(folder.path());
        ledger.settle(on(&path("old"))).unwrap();
        assert_eq!(ledger.journal(), &journal);
        assert!(ledger.transaction().is_none());
        assert_eq!(events(&ledger).len(), 1);
        assert!(matches!(events(&ledger)[0].kind, EventKind::RolledBack { quarantined: true, .. }));
    }

    #[test]
    fn drift_is_told_once_per_change() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = open(folder.path());
        assert!(!ledger.drift(&path("x"), 1).unwrap(), "nothing is expected yet");
        ledger.begin(transaction(2, State::Confirmed { degraded: vec![] }), vec![], 1).unwrap();
        ledger.settle(on(&path("system-2"))).unwrap();
        for (running, count) in [("system-2", 0), ("x", 1), ("x", 1), ("y", 2), ("system-2", 2), ("x", 3)] {
            ledger.drift(&path(running), 3).unwrap();
            ledger.drift(&path(running), 3).unwrap();
            assert_eq!(events(&ledger).len(), count, "{running}");
            drop(ledger);
            ledger = open(folder.path());
        }
    }

    #[test]
    fn a_damaged_journal_is_rebuilt_from_the_machine_and_tries_nothing_by_itself() {
        let held = target(5, Class::Nixos);
        for (running, confirmed) in [(path("system-5"), true), (path("other"), false)] {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("journal.json"), "{").unwrap();
            let ledger = Ledger::open(folder.path(), Some(&held), Some(&running), 1).unwrap();
            let journal = ledger.journal();
            assert_eq!(journal.tried, Some(held.generation));
            assert_eq!(journal.confirmed.is_some(), confirmed);
            let note = journal.last.as_ref().and_then(|last| last.note.clone()).unwrap_or_default();
            assert_eq!(note.contains("publish it again"), !confirmed);
        }
    }

    #[test]
    fn a_damaged_transaction_is_regained_from_the_activators_record() {
        let folder = tempfile::tempdir().unwrap();
        let held = target(5, Class::Nixos);
        let mut lost = Transaction::signed("t".into(), held.clone(), 1);
        lost.old = Some(crate::core::records::Old { running: Some(path("old")), profile: None });
        let record = Activation { phase: ActivationPhase::Activated, ..Activation::new(&lost, "b") };
        Files::new(folder.path()).write_activation(&record).unwrap();
        std::fs::write(folder.path().join("transaction.json"), "damaged").unwrap();
        let ledger = Ledger::open(folder.path(), Some(&held), None, 1).unwrap();
        let regained = ledger.transaction().unwrap();
        assert_eq!((regained.id.as_str(), &regained.state), ("t", &State::Activating));
        assert_eq!(regained.old.as_ref().unwrap().running, Some(path("old")));
        let other = target(6, Class::Nixos);
        let folder = tempfile::tempdir().unwrap();
        Files::new(folder.path()).write_activation(&record).unwrap();
        assert!(Ledger::open(folder.path(), Some(&other), None, 1).unwrap().transaction().is_none());
    }

    #[test]
    fn a_record_of_a_settled_transaction_is_not_regained() {
        let folder = tempfile::tempdir().unwrap();
        let held = target(5, Class::Nixos);
        let over = Transaction::signed("t".into(), held.clone(), 1);
        let record = Activation { phase: ActivationPhase::Activated, ..Activation::new(&over, "b") };
        let files = Files::new(folder.path());
        files.write_activation(&record).unwrap();
        // The transaction was durably removed; a power cut brought the activator's record back.
        for (settled, regained) in [(Some("t"), false), (Some("other"), true), (None, true)] {
            let journal = Journal { settled: settled.map(str::to_owned), ..Journal::default() };
            files.write_journal(&journal).unwrap();
            let _ = files.clear_transaction();
            let ledger = Ledger::open(folder.path(), Some(&held), None, 1).unwrap();
            assert_eq!(ledger.transaction().is_some(), regained, "{settled:?}");
        }
    }

    #[test]
    fn a_step_that_does_not_fit_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = open(folder.path());
        ledger.begin(transaction(2, State::Verified), vec![], 1).unwrap();
        assert!(ledger.advance(Input::Undone, vec![EventKind::Verified], &MOMENT, |_| ()).is_err());
        assert_eq!(ledger.transaction().unwrap().state, State::Verified);
        assert!(events(&ledger).is_empty());
    }
}
