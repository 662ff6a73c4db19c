use muster_protocol::machine::Class;
use muster_protocol::report::{Reason, UpdateStep};

use super::*;
use crate::core::records::tests::{path, target, transaction};
use crate::core::records::{GivenVerdict, Known};

const MOMENT: Moment<'static> = Moment { running: None, now: 2, ms: 3 };

/// What is durable: the book, and every pushed event.
#[derive(Debug, Clone, Default)]
struct World {
    book: Book,
    outbox: Vec<Telling>,
}

impl World {
    /// Does the first `count` writes; the rest is lost in a crash or rejected by a full disk.
    fn does(&mut self, writes: &[Write], count: usize) {
        for write in &writes[..count] {
            if let Write::Push(telling) = write {
                assert_eq!(
                    telling.seq,
                    self.outbox.last().map_or(0, |last| last.seq) + 1,
                    "no gap, no repetition"
                );
                self.outbox.push((**telling).clone());
            }
            self.book.apply(write);
        }
    }
    fn whole(&mut self, writes: &[Write]) {
        self.does(writes, writes.len());
    }
    fn events(&self) -> Vec<EventKind> {
        self.outbox.iter().map(|telling| telling.event.clone()).collect()
    }
}

/// The life of a transaction, each step cut short after each of its writes and then repeated: in the end
/// every event was reported once and in order, and the journal is the same.
#[test]
fn i7_wherever_a_step_is_cut_short_every_event_is_told_once_and_in_order() {
    type Step = fn(&Book) -> Vec<Write>;
    let steps: [Step; 5] = [
        |book| book.begin(transaction(2, State::Verified), vec![EventKind::Verified], 1),
        |book| book.advance(Input::Fetched, vec![EventKind::Fetched { ms: 4 }], &MOMENT, |_| ()).unwrap(),
        |book| {
            let failed = Input::Failed {
                step: muster_protocol::report::UpdateStep::Build,
                detail: "x".into(),
                quarantined: true,
            };
            book.advance(failed, vec![], &MOMENT, |_| ()).unwrap()
        },
        |book| book.settle(Settled::default()),
        |book| book.tell(None, EventKind::Unknown, 9),
    ];
    let mut straight = World::default();
    for step in &steps {
        let writes = step(&straight.book);
        straight.whole(&writes);
    }
    assert_eq!(straight.events().len(), 4);
    for cut_step in 0..steps.len() {
        let cuts = {
            let mut world = World::default();
            for step in &steps[..cut_step] {
                let writes = step(&world.book);
                world.whole(&writes);
            }
            steps[cut_step](&world.book).len()
        };
        for cut in 0..=cuts {
            let mut world = World::default();
            for (place, step) in steps.iter().enumerate() {
                let writes = step(&world.book);
                if place == cut_step {
                    world.does(&writes, cut);
                    // The next process starts from what is durable.
                    let flush = world.book.flush();
                    world.whole(&flush);
                    let moved = match place {
                        0 => world.book.transaction().is_some(),
                        1 => world.book.transaction().map(|open| &open.state) == Some(&State::Fetched),
                        2 => world.book.transaction().is_some_and(|open| open.state.is_final()),
                        3 => world.book.transaction().is_none(),
                        _ => world.outbox.len() == 4,
                    };
                    if moved {
                        continue;
                    }
                    let again = step(&world.book);
                    world.whole(&again);
                } else {
                    world.whole(&writes);
                }
            }
            assert_eq!(world.events(), straight.events(), "step {cut_step} cut after {cut}");
            assert_eq!(world.book.journal(), straight.book.journal(), "step {cut_step} cut after {cut}");
        }
    }
}

#[test]
fn a_transaction_is_written_before_it_is_told_and_its_own_file_goes_last() {
    let book = Book::default();
    let writes = book.begin(transaction(2, State::Verified), vec![EventKind::Verified], 1);
    let place = |wanted: fn(&Write) -> bool| writes.iter().position(wanted).unwrap();
    let (written, pushed) = (
        place(|write| matches!(write, Write::Transaction(_))),
        place(|write| matches!(write, Write::Push(_))),
    );
    assert!(written < pushed);
    let mut book = book;
    writes.iter().for_each(|write| book.apply(write));
    let writes = book.settle(Settled::default());
    assert!(matches!(writes[0], Write::Journal(_)), "{writes:?}");
    assert_eq!(writes.last(), Some(&Write::Clear(Document::Transaction)));
}

#[test]
fn an_activator_begins_with_no_record_and_no_verdict_of_an_earlier_attempt() {
    let book = Book::new(Journal::default(), Some(transaction(2, State::Checked)), 0);
    let writes = book.advance(Input::Started, vec![], &MOMENT, |_| ()).unwrap();
    let cleared = |document| writes.iter().position(|write| *write == Write::Clear(document));
    let written = writes.iter().position(|write| matches!(write, Write::Transaction(_)));
    assert!(cleared(Document::Activation) < written && cleared(Document::Confirmation) < written);
    assert!(cleared(Document::Activation).is_some() && cleared(Document::Transaction).is_none());
}

#[test]
fn a_verdict_is_on_the_open_transaction_and_without_one_there_is_none() {
    let verdict = GivenVerdict::Undo { reason: Reason::Operator, detail: String::new() };
    assert_eq!(Book::default().give(verdict.clone()), []);
    let book = Book::new(Journal::default(), Some(transaction(2, State::Probing)), 0);
    assert!(matches!(&book.give(verdict)[..], [Write::Confirmation(given)] if given.transaction == "t2"));
}

#[test]
fn a_step_that_does_not_fit_changes_nothing() {
    let book = Book::new(Journal::default(), Some(transaction(2, State::Verified)), 0);
    assert!(book.advance(Input::Undone, vec![EventKind::Verified], &MOMENT, |_| ()).is_err());
    assert_eq!(
        Book::default().advance(Input::Undone, vec![], &MOMENT, |_| ()),
        Err(BookError::NoTransaction)
    );
}

#[test]
fn only_what_changed_nothing_is_superseded() {
    let clears = |state| {
        let book = Book::new(Journal::default(), Some(transaction(2, state)), 0);
        book.supersede().contains(&Write::Clear(Document::Transaction))
    };
    assert!(clears(State::Built) && clears(State::Unknown));
    assert!(!clears(State::Activating) && !clears(State::Probing));
}

fn resting() -> World {
    let known = Known {
        generation: Generation::new(2).unwrap(),
        output: path("system-2"),
        derivation: None,
        at: 1,
        target: Some(Box::new(target(2, Class::Nixos))),
    };
    let journal = Journal { confirmed: Some(known), expected: Some(path("system-2")), ..Journal::default() };
    World { book: Book::new(journal, None, 0), outbox: vec![] }
}

#[test]
fn failure_mode_20_drift_is_told_once_per_change() {
    let mut world = resting();
    for (running, count) in [("system-2", 0), ("x", 1), ("x", 1), ("y", 2), ("system-2", 2), ("x", 3)] {
        for _ in 0..2 {
            let writes = world.book.drift(&path(running), 3);
            world.whole(&writes);
        }
        assert_eq!(world.outbox.len(), count, "{running}");
    }
    assert_eq!(world.outbox[0].generation.map(Generation::get), Some(2));
}

#[test]
fn a_system_that_was_left_is_left_until_somebody_changes_it_again() {
    let mut world = resting();
    let journal = Journal { left: Some(path("x")), drift: Some(path("x")), ..world.book.journal().clone() };
    world.book.apply(&Write::Journal(Box::new(journal)));
    assert_eq!(world.book.drift(&path("x"), 3), []);
    let writes = world.book.drift(&path("y"), 3);
    world.whole(&writes);
    assert_eq!(
        (world.book.journal().left.clone(), world.book.journal().drift.clone()),
        (None, Some(path("y")))
    );
}

#[test]
fn a_system_that_was_only_tried_out_ends_with_the_boot_and_that_is_no_drift() {
    let mut world = resting();
    let journal = Journal { after_boot: Some(path("old")), ..world.book.journal().clone() };
    world.book.apply(&Write::Journal(Box::new(journal)));
    let writes = world.book.drift(&path("old"), 3);
    world.whole(&writes);
    assert_eq!(world.outbox.len(), 0);
    assert_eq!(world.book.journal().expected, Some(path("old")));
    let writes = world.book.drift(&path("system-2"), 3);
    world.whole(&writes);
    assert_eq!(world.outbox.len(), 1, "from then on it is");
}

#[test]
fn in_which_boot_the_expected_system_ran_is_written_once_and_whether_a_boot_brought_it_up() {
    let mut world = resting();
    let (own, old) = (path("system-2"), path("old"));
    for (running, boot, booted, writes) in [
        (&own, "b1", &old, 1),
        (&own, "b1", &old, 0),
        (&old, "b2", &old, 0),
        (&own, "b2", &own, 1),
        (&own, "b2", &own, 0),
        (&own, "b3", &old, 1),
    ] {
        let written = world.book.came_up(running, boot, Some(booted));
        assert_eq!(written.len(), writes, "{running} in {boot}");
        world.whole(&written);
    }
    let journal = world.book.journal();
    assert_eq!((journal.seen_in.as_deref(), &journal.booted), (Some("b3"), &Some(own)));
    assert_eq!(world.outbox.len(), 0);
}

#[test]
fn a_pause_is_written_once_and_ends_once() {
    let mut world = resting();
    let pause = Pause { until: Some(9), since: 1, by: Some(0) };
    for pause in [Some(pause), None] {
        let writes = world.book.pause(pause.clone());
        assert!(matches!(&writes[..], [Write::Journal(_)]));
        world.whole(&writes);
        assert_eq!(world.book.journal().pause, pause);
        assert_eq!(world.book.pause(pause), []);
    }
}

#[test]
fn a_reboot_is_noted_before_it_is_told() {
    let mut world = resting();
    let rebooted = Rebooted { mark: "k".into(), boot: "b".into() };
    let writes = world.book.reboot(rebooted.clone(), "for kernel".into(), 4);
    assert!(matches!(&writes[..], [Write::Journal(_), Write::Push(_)]), "{writes:?}");
    world.whole(&writes);
    assert_eq!(world.book.journal().rebooted, Some(rebooted));
    // A crash in between loses nothing.
    let mut cut = resting();
    cut.does(&writes, 1);
    let flush = cut.book.flush();
    cut.whole(&flush);
    assert_eq!(cut.events(), world.events());
    let writes = world.book.not_rebooting();
    world.whole(&writes);
    assert_eq!((world.book.journal().rebooted.clone(), world.outbox.len()), (None, 1));
}

#[test]
fn a_quarantine_is_lifted_and_told_once_wherever_it_is_cut_short() {
    let by = Asker::Local { user: Some(0) };
    let wanted = target(2, Class::Nixos);
    let mut journal = Journal::default();
    let failed = State::Failed { step: UpdateStep::Build, detail: "x".into(), quarantined: true };
    journal.settle(&transaction(2, failed), Settled::default());
    let held = World { book: Book::new(journal, None, 0), outbox: Vec::new() };
    let writes = held.book.lift(&wanted, by, None, 7).unwrap();
    for cut in 0..=writes.len() {
        let mut world = held.clone();
        world.does(&writes, cut);
        let flush = world.book.flush();
        world.whole(&flush);
        if cut == 0 {
            assert!(world.book.journal().quarantined(&wanted.derivation).is_some());
            continue;
        }
        assert!(world.book.journal().quarantined(&wanted.derivation).is_none());
        let event = EventKind::Retried { derivation: wanted.derivation.clone(), quarantined: true, by };
        assert_eq!(world.events(), [event], "cut after {cut}");
    }
}

#[test]
fn nothing_is_lifted_under_a_switch_or_where_all_is_well_and_what_waits_needs_no_lifting() {
    let by = Asker::Unknown;
    let wanted = target(2, Class::Nixos);
    let open = |state| Book::new(Journal::default(), Some(transaction(2, state)), 0);
    assert_eq!(open(State::Built).lift(&wanted, by, None, 7), Ok(vec![]));
    let error = open(State::Probing).lift(&wanted, by, None, 7).unwrap_err();
    assert_eq!(error.to_string(), "generation 2 is probing: try again when that is over");
    let mut journal = Journal::default();
    journal.settle(&transaction(2, State::Confirmed { degraded: vec![] }), Settled::default());
    let book = Book::new(journal, None, 0);
    let refused = book.lift(&wanted, by, Some(&wanted.output), 7).unwrap_err();
    assert_eq!(refused, NothingToRetry::Confirmed(wanted.generation));
    assert!(book.lift(&wanted, by, Some(&path("other")), 7).is_ok(), "somebody else changed it");
}
