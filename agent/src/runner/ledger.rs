//! What the runner knows durably: journal, transaction and outbox, changed together so that every event is told once.
//!
//! An event is written into the transaction (or the journal) with the number that the outbox will give it, and only then
//! pushed. After a crash between the two, a number that the outbox has not reached yet tells what is still to be pushed.

use std::path::Path;

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Generation, StorePath};
use muster_protocol::report::EventKind;
use muster_protocol::target::Target;

use crate::core::records::{Activation, Journal, Last, Telling, Transaction};
use crate::core::state::{Impossible, Input, State};
use crate::journal::{Files, Found, JournalError};
use crate::outbox::{FOLDER, Outbox, OutboxError};

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    #[error(transparent)]
    Impossible(#[from] Impossible),
    #[error("there is no transaction; this is a mistake in muster-agent, please report it")]
    NoTransaction,
}

pub struct Ledger {
    pub files: Files,
    pub outbox: Outbox,
    journal: Journal,
    transaction: Option<Transaction>,
    /// Written down, not pushed yet.
    untold: Vec<Telling>,
}

impl Ledger {
    /// Reads what the last run left, and pushes what it wrote down but did not push. What is damaged is replaced by what
    /// the machine itself shows: `held` is the newest verified target, `running` what runs.
    pub fn open(
        state_dir: &Path,
        held: Option<&Target>,
        running: Option<&StorePath>,
        now: UnixMillis,
    ) -> Result<Self, LedgerError> {
        let files = Files::new(state_dir);
        let outbox = Outbox::open(&state_dir.join(FOLDER))?;
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
                let transaction = files.activation()?.whole().and_then(|record| regained(&record, held, now));
                if let Some(transaction) = &transaction {
                    files.write_transaction(transaction)?;
                }
                transaction
            }
        };
        let mut ledger = Self { files, outbox, journal, transaction, untold: Vec::new() };
        let written = ledger.transaction.iter().flat_map(|transaction| &transaction.telling);
        ledger.untold = ledger
            .journal
            .telling
            .iter()
            .chain(written)
            .filter(|telling| telling.seq > ledger.outbox.last())
            .cloned()
            .collect();
        ledger.flush()?;
        Ok(ledger)
    }

    pub fn journal(&self) -> &Journal {
        &self.journal
    }
    pub fn transaction(&self) -> Option<&Transaction> {
        self.transaction.as_ref()
    }

    /// Opens a transaction.
    pub fn begin(
        &mut self,
        mut transaction: Transaction,
        events: Vec<EventKind>,
        now: UnixMillis,
    ) -> Result<(), LedgerError> {
        self.flush()?;
        // Left over from an earlier transaction they would only be looked through.
        self.files.clear()?;
        transaction.telling = self.numbered(Some(transaction.generation()), events, now);
        self.store(transaction)
    }

    /// Moves the transaction by `input` after `change` was made to it, with events that belong to the new state. A final
    /// state brings its own event.
    pub fn advance(
        &mut self,
        input: Input,
        mut events: Vec<EventKind>,
        seen: &Seen<'_>,
        change: impl FnOnce(&mut Transaction),
    ) -> Result<(), LedgerError> {
        self.flush()?;
        let mut transaction = self.transaction.clone().ok_or(LedgerError::NoTransaction)?;
        transaction.state = transaction.state.after(input)?;
        change(&mut transaction);
        if transaction.state.is_final() {
            events.extend(transaction.final_event(&self.journal, seen.running, seen.ms));
        }
        transaction.telling = self.numbered(Some(transaction.generation()), events, seen.now);
        self.store(transaction)
    }

    /// Takes a transaction that is over into the journal, and forgets it.
    pub fn settle(&mut self, running: Option<&StorePath>, now: UnixMillis) -> Result<(), LedgerError> {
        self.flush()?;
        let Some(transaction) = &self.transaction else { return Ok(()) };
        let mut journal = self.journal.clone();
        journal.settle(transaction, running, now);
        self.files.write_journal(&journal)?;
        self.journal = journal;
        self.files.clear()?;
        self.transaction = None;
        Ok(())
    }

    /// Forgets a transaction that changed nothing.
    pub fn supersede(&mut self) -> Result<(), LedgerError> {
        self.flush()?;
        if self.transaction.as_ref().is_some_and(|transaction| transaction.state.is_before_activation()) {
            self.files.clear()?;
            self.transaction = None;
        }
        Ok(())
    }

    /// Tells an event that belongs to no transaction. A crash may lose it or, at worst, leave it to be told anew.
    pub fn tell(
        &mut self,
        generation: Option<Generation>,
        kind: EventKind,
        now: UnixMillis,
    ) -> Result<(), LedgerError> {
        self.flush()?;
        self.outbox.push(now, generation, kind)?;
        Ok(())
    }

    /// Notes whether the machine runs what it was left on, and tells each change once.
    pub fn drift(&mut self, running: &StorePath, now: UnixMillis) -> Result<bool, LedgerError> {
        if self.transaction.is_some() {
            return Ok(false);
        }
        let Some(expected) = self.journal.expected.clone() else { return Ok(false) };
        let drift = (*running != expected).then(|| running.clone());
        if drift == self.journal.drift {
            return Ok(false);
        }
        self.flush()?;
        let mut journal = self.journal.clone();
        journal.telling = match &drift {
            Some(running) => {
                let event = EventKind::Drift { running: running.clone(), expected };
                self.numbered(journal.confirmed.as_ref().map(|known| known.generation), vec![event], now)
            }
            None => Vec::new(),
        };
        journal.drift = drift;
        self.files.write_journal(&journal)?;
        self.untold.clone_from(&journal.telling);
        self.journal = journal;
        self.flush()?;
        Ok(true)
    }

    fn numbered(
        &self,
        generation: Option<Generation>,
        events: Vec<EventKind>,
        at: UnixMillis,
    ) -> Vec<Telling> {
        (self.outbox.last() + 1..)
            .zip(events)
            .map(|(seq, event)| Telling { seq, at, generation, event })
            .collect()
    }

    fn store(&mut self, transaction: Transaction) -> Result<(), LedgerError> {
        self.files.write_transaction(&transaction)?;
        self.untold.clone_from(&transaction.telling);
        self.transaction = Some(transaction);
        self.flush()
    }

    /// Pushes what is written down. Nothing else is pushed or written before this succeeds.
    fn flush(&mut self) -> Result<(), LedgerError> {
        while let Some(first) = self.untold.first() {
            self.outbox.push(first.at, first.generation, first.event.clone())?;
            self.untold.remove(0);
        }
        Ok(())
    }
}

/// What was seen around a change of state.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    pub running: Option<&'a StorePath>,
    pub now: UnixMillis,
    /// How long the transaction took until now, in milliseconds of time awake.
    pub ms: u64,
}

/// A journal in the place of a damaged one. What is held was tried, so that a quarantine that is lost does no harm.
fn rebuilt(held: Option<&Target>, running: Option<&StorePath>, at: UnixMillis) -> Journal {
    let mut journal = Journal { expected: running.cloned(), ..Journal::default() };
    let Some(held) = held else { return journal };
    if Some(&held.output) == running {
        let mut transaction = Transaction::signed("rebuilt".to_owned(), held.clone(), at);
        transaction.state = State::Confirmed { degraded: Vec::new() };
        journal.settle(&transaction, running, at);
        journal.previous = None;
        return journal;
    }
    let note = format!(
        "journal.json was damaged, so nobody knows whether generation {} failed: publish it again under a new number",
        held.generation
    );
    journal.tried = Some(held.generation);
    journal.last = Some(Last {
        generation: held.generation,
        phase: muster_protocol::checkin::Phase::Failed,
        note: Some(note),
        at,
    });
    journal
}

/// The transaction of an activator's record, where its own file was lost.
fn regained(record: &Activation, held: Option<&Target>, at: UnixMillis) -> Option<Transaction> {
    let held = held.filter(|held| held.output == record.new)?;
    let mut transaction = Transaction::signed(record.transaction.clone(), held.clone(), at);
    transaction.state = State::Activating;
    transaction.old = Some(record.old.clone());
    Some(transaction)
}

#[cfg(test)]
mod tests {
    use muster_protocol::machine::Class;
    use muster_protocol::report::{Event, Reason};

    use super::*;
    use crate::core::records::ActivationPhase;
    use crate::core::records::tests::{path, target, transaction};

    const SEEN: Seen<'static> = Seen { running: None, now: 2, ms: 3 };

    fn open(folder: &Path) -> Ledger {
        Ledger::open(folder, None, None, 1).unwrap()
    }

    fn events(ledger: &Ledger) -> Vec<Event> {
        ledger.outbox.batch(&"m".parse().unwrap()).map_or_else(Vec::new, |batch| batch.events)
    }

    #[test]
    fn i7_a_crash_between_writing_an_event_down_and_pushing_it_loses_and_repeats_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = open(folder.path());
        ledger.begin(transaction(2, State::Verified), vec![EventKind::Verified], 1).unwrap();
        assert_eq!(events(&ledger).len(), 1);
        // As it is when the push never happened.
        let mut written = ledger.transaction().unwrap().clone();
        written.state = State::Fetched;
        written.telling = ledger.numbered(None, vec![EventKind::Fetched { ms: 4 }], 2);
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
        ledger.advance(Input::Undone, vec![], &SEEN, |_| ()).unwrap();
        let written = ledger.transaction().unwrap().clone();
        drop(ledger);
        let mut ledger = open(folder.path());
        ledger.settle(Some(&path("old")), 3).unwrap();
        let journal = ledger.journal().clone();
        // Killed after the journal was written and before the transaction was cleared.
        ledger.files.write_transaction(&written).unwrap();
        drop(ledger);
        let mut ledger = open(folder.path());
        ledger.settle(Some(&path("old")), 4).unwrap();
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
        ledger.settle(Some(&path("system-2")), 2).unwrap();
        for (running, told) in [("system-2", 0), ("x", 1), ("x", 1), ("y", 2), ("system-2", 2), ("x", 3)] {
            ledger.drift(&path(running), 3).unwrap();
            ledger.drift(&path(running), 3).unwrap();
            assert_eq!(events(&ledger).len(), told, "{running}");
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
        let record = Activation {
            version: 1,
            transaction: "t".into(),
            class: Class::Nixos,
            action: held.action,
            new: held.output.clone(),
            old: crate::core::records::Old { running: Some(path("old")), profile: None },
            deadline_seconds: 60,
            boot: "b".into(),
            phase: ActivationPhase::Activated,
            starts: 1,
            exit: Some(0),
            ms: 1,
            reason: None,
            detail: String::new(),
            undo_exit: None,
            degraded: vec![],
            unknown: std::collections::BTreeMap::new(),
        };
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
    fn a_step_that_does_not_fit_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = open(folder.path());
        ledger.begin(transaction(2, State::Verified), vec![], 1).unwrap();
        assert!(ledger.advance(Input::Undone, vec![EventKind::Verified], &SEEN, |_| ()).is_err());
        assert_eq!(ledger.transaction().unwrap().state, State::Verified);
        assert!(events(&ledger).is_empty());
    }
}
