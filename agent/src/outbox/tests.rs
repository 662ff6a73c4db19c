use muster_protocol::report::{Attack, MAX_LOG_TAIL, Reason, UpdateStep};

use super::*;

/// In milliseconds.
const NOW: i64 = 1_800_000_000_000;

fn machine() -> MachineName {
    "cinnabar".parse().unwrap()
}
fn open(folder: &Path) -> Outbox {
    Outbox::open(folder, NOW).unwrap()
}
/// A distinguishable event.
fn event(n: u64) -> EventKind {
    EventKind::Fetched { ms: n }
}
fn push(outbox: &mut Outbox, n: u64) -> u64 {
    outbox.push(1000, None, event(n)).unwrap()
}
/// The controller confirms that it has everything through this number.
fn accept(outbox: &mut Outbox, through: u64) {
    outbox.sending(through);
    outbox.accepted(through).unwrap();
}
/// The queue, as numbers and contents.
fn waiting(outbox: &Outbox) -> Vec<(u64, EventKind)> {
    let events = outbox.batch(&machine(), true).map(|batch| batch.events).unwrap_or_default();
    events.into_iter().map(|event| (event.seq, event.kind)).collect()
}
/// All but the spare ones, of which there are a few at most.
fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    let all = names.len();
    names.retain(|name| !name.ends_with(".spare") && name != "stream");
    assert!(all - names.len() <= SPARES + 1);
    names.sort();
    names
}

#[test]
fn i7_events_wait_in_order_until_they_are_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = open(folder.path());
    assert!(outbox.batch(&machine(), true).is_none());
    for n in 1..=12 {
        assert_eq!(push(&mut outbox, n), n);
    }
    let again = open(folder.path());
    assert_eq!(waiting(&again), (1..=12).map(|n| (n, event(n))).collect::<Vec<_>>());
    accept(&mut outbox, 7);
    let again = open(folder.path());
    let batch = again.batch(&machine(), true).unwrap();
    assert_eq!((batch.oldest, batch.events.len()), (8, 5));
    // A repeated or late reply changes nothing.
    accept(&mut outbox, 7);
    accept(&mut outbox, 3);
    assert_eq!(outbox.len(), 5);
}

#[test]
fn i7_no_number_is_used_twice_though_the_queue_is_empty_and_the_agent_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let mut number = 0;
    for round in 1..=5 {
        let mut outbox = open(folder.path());
        for _ in 0..round {
            number += 1;
            assert_eq!(push(&mut outbox, number), number);
        }
        accept(&mut outbox, number);
        assert!(outbox.is_empty());
        assert_eq!(files(folder.path()), [format!("{number}.done")], "nothing piles up");
    }
}

#[test]
fn in_the_long_run_events_are_written_over_files_that_are_there() {
    use std::os::unix::fs::MetadataExt as _;
    let folder = tempfile::tempdir().unwrap();
    let inodes = || -> std::collections::BTreeSet<u64> {
        fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().ino()).collect()
    };
    let mut number = 0;
    let mut update = |outbox: &mut Outbox| {
        for _ in 0..SPARES {
            number += 1;
            push(outbox, number);
        }
        accept(outbox, number);
    };
    let mut outbox = open(folder.path());
    update(&mut outbox);
    update(&mut outbox);
    let before = inodes();
    for _ in 0..3 {
        update(&mut outbox);
        assert_eq!(inodes(), before);
        outbox = open(folder.path());
    }
}

/// Every state that a crash in [`Outbox::accepted`] can leave: the marker is created first, then files are
/// removed one by one.
#[test]
fn i7_a_crash_while_events_are_forgotten_repeats_none_and_loses_none() {
    for removed in 0..=3u64 {
        let folder = tempfile::tempdir().unwrap();
        let mut outbox = open(folder.path());
        for n in 1..=4 {
            push(&mut outbox, n);
        }
        fs::rename(folder.path().join("4.json"), folder.path().join("4.done")).unwrap();
        for n in 1..=removed {
            fs::remove_file(folder.path().join(format!("{n}.json"))).unwrap();
        }
        let mut outbox = open(folder.path());
        assert!(outbox.is_empty(), "after {removed} files");
        assert_eq!(push(&mut outbox, 5), 5);
    }
}

#[test]
fn a_push_that_a_crash_cut_short_never_was() {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = open(folder.path());
    push(&mut outbox, 1);
    for text in ["", "{\"seq\":2,\"at\":1,\"ki"] {
        fs::write(folder.path().join("2.json.new"), text).unwrap();
        fs::write(folder.path().join("2.spare"), text).unwrap();
        let again = open(folder.path());
        assert_eq!(waiting(&again), [(1, event(1))]);
        assert_eq!(files(folder.path()), ["1.json"]);
        assert_eq!(again.last(), 1);
        assert_eq!(again.bytes(), outbox.bytes());
        drop(again);
        outbox = open(folder.path());
    }
    assert_eq!(push(&mut outbox, 2), 2);
}

#[test]
fn an_event_that_the_disk_lost_keeps_its_number_and_holds_nothing_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = open(folder.path());
    for n in 1..=3 {
        push(&mut outbox, n);
    }
    let whole = fs::read(folder.path().join("2.json")).unwrap();
    for cut in 0..whole.len() {
        fs::write(folder.path().join("2.json"), &whole[..cut]).unwrap();
        let again = open(folder.path());
        assert_eq!(waiting(&again), [(1, event(1)), (2, EventKind::Unknown), (3, event(3))], "cut at {cut}");
        let sent = serde_json::to_vec(&again.batch(&machine(), true)).unwrap();
        assert_eq!(serde_json::from_slice::<Batch>(&sent).unwrap().events.len(), 3);
    }
}

#[test]
fn a_batch_keeps_to_its_bounds_and_the_rest_follows() {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = open(folder.path());
    let long = || EventKind::Failed {
        step: UpdateStep::Build,
        detail: "\u{1}".repeat(MAX_LOG_TAIL),
        quarantined: true,
    };
    for _ in 0..60 {
        outbox.push(1, None, long()).unwrap();
    }
    for n in 61..=400 {
        push(&mut outbox, n);
    }
    let mut next = 1;
    while let Some(batch) = outbox.batch(&machine(), true) {
        assert_eq!(batch.oldest, next);
        assert!(batch.events.len() <= MAX_BATCH_EVENTS);
        assert!(serde_json::to_vec(&batch).unwrap().len() <= MAX_BATCH_BYTES);
        for event in &batch.events {
            assert_eq!(event.seq, next);
            next += 1;
        }
        accept(&mut outbox, next - 1);
    }
    assert_eq!(next, 401);
}

#[test]
fn texts_are_cut_to_what_a_report_carries() {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = open(folder.path());
    let running = "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-x".parse().unwrap();
    let long = format!("{}the end", "é".repeat(100_000));
    let reason = Reason::Deadline;
    for kind in [
        EventKind::NeedsHuman { detail: long.clone() },
        EventKind::Refused { attack: Attack::Freeze, detail: long.clone() },
        EventKind::RolledBack { running, reason, detail: long.clone(), quarantined: false },
    ] {
        outbox.push(1, None, kind).unwrap();
    }
    let degraded = vec![long; 1000];
    let running = "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-x".parse().unwrap();
    outbox.push(1, None, EventKind::Confirmed { running, ms: 1, degraded }).unwrap();
    let batch = outbox.batch(&machine(), true).unwrap();
    assert_eq!(batch.events.len(), 4);
    let text = serde_json::to_string(&batch).unwrap();
    assert!(text.len() < 6 * MAX_LOG_TAIL && text.matches("the end").count() == 3, "{}", text.len());
}

#[test]
fn what_a_full_disk_refuses_does_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = open(folder.path());
    push(&mut outbox, 1);
    // A folder in place of the temporary file makes the write fail as a full disk does.
    fs::create_dir(folder.path().join("2.spare")).unwrap();
    assert!(outbox.push(1, None, event(2)).is_err());
    assert_eq!((outbox.last(), outbox.len()), (1, 1));
    fs::remove_dir(folder.path().join("2.spare")).unwrap();
    assert_eq!(push(&mut outbox, 2), 2);
}

#[test]
fn nothing_is_believed_beyond_what_was_sent() {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = open(folder.path());
    for claimed in [1, 41, 1 << 47, (1 << 63) - 2, u64::MAX] {
        outbox.accepted(claimed).unwrap();
        assert_eq!((outbox.last(), outbox.len()), (0, 0), "{claimed}");
    }
    for n in 1..=3 {
        push(&mut outbox, n);
    }
    outbox.accepted(3).unwrap();
    assert_eq!(outbox.len(), 3, "they were not sent yet");
    outbox.sending(2);
    outbox.accepted(u64::MAX).unwrap();
    assert_eq!(waiting(&outbox), [(3, event(3))]);
    outbox.sending(u64::MAX);
    outbox.accepted(u64::MAX).unwrap();
    assert!(outbox.is_empty());
    assert_eq!(files(folder.path()), ["3.done"]);
    assert_eq!(push(&mut open(folder.path()), 4), 4);
}

/// Version 0.1 trusted a controller's number, and stored it.
#[test]
fn an_outbox_that_holds_a_number_that_was_a_lie_recovers_by_itself_and_keeps_its_events() {
    let seconds = u64::try_from(NOW / 1000).unwrap();
    for poison in [1 << 48, (1 << 63) - 2, u64::MAX - 1, u64::MAX] {
        let folder = tempfile::tempdir().unwrap();
        let stream = open(folder.path()).stream();
        fs::write(folder.path().join(format!("{poison}.done")), "").unwrap();
        let mut outbox = open(folder.path());
        assert_eq!(outbox.left_behind(), Some(poison));
        assert_ne!(outbox.stream(), stream, "the controller is to know");
        assert_eq!(push(&mut outbox, 1), seconds + 1, "no count has come that far");
        let again = open(folder.path());
        assert_eq!((again.left_behind(), waiting(&again).len()), (None, 1));
        assert_eq!(again.stream(), outbox.stream());
    }
    // Events that were numbered after it keep their order; a crash may come between any two of them.
    let poison = (1u64 << 63) - 2;
    for crash in 0..=4u64 {
        let folder = tempfile::tempdir().unwrap();
        let mut outbox = open(folder.path());
        for n in 1..=4 {
            push(&mut outbox, n);
        }
        for n in 1..=4u64 {
            let name =
                if n <= crash { format!("{}.json", seconds + n) } else { format!("{}.json", poison + n) };
            fs::rename(folder.path().join(format!("{n}.json")), folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join(format!("{poison}.done")), "").unwrap();
        let outbox = open(folder.path());
        let expected: Vec<_> = (1..=4).map(|n| (seconds + n, event(n))).collect();
        assert_eq!(waiting(&outbox), expected, "{crash} moved");
        assert_eq!(waiting(&open(folder.path())), expected);
        assert!(files(folder.path()).iter().all(|name| !name.starts_with("92233")));
    }
}

#[test]
fn the_count_keeps_its_name_and_gets_another_when_it_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = open(folder.path());
    push(&mut outbox, 1);
    let name = outbox.stream();
    assert_eq!(open(folder.path()).stream(), name);
    outbox.sending(1);
    outbox.begin_stream().unwrap();
    outbox.accepted(1).unwrap();
    assert_eq!(outbox.len(), 1, "it was sent under another name");
    assert_ne!(outbox.stream(), name);
    assert_eq!(open(folder.path()).stream(), outbox.stream());
    fs::write(folder.path().join("stream/name"), "?").unwrap();
    assert_ne!(open(folder.path()).stream(), outbox.stream(), "a damaged one is replaced");
    assert_eq!(waiting(&open(folder.path())), [(1, event(1))]);
}

#[test]
fn what_was_dropped_leaves_holes_that_only_a_controller_of_0_1_is_spared() {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = open(folder.path());
    for n in 1..=9 {
        push(&mut outbox, n);
    }
    outbox.discard(&[2, 3, 6, 9]).unwrap();
    for outbox in [&outbox, &open(folder.path())] {
        let numbers: Vec<u64> = waiting(outbox).iter().map(|(seq, _)| *seq).collect();
        assert_eq!(numbers, [1, 4, 5, 7, 8, 9], "the newest stays, so that no number is used twice");
    }
    for wanted in [&[1][..], &[4, 5], &[7, 8, 9]] {
        let batch = outbox.batch(&machine(), false).unwrap();
        assert_eq!(batch.events.iter().map(|event| event.seq).collect::<Vec<_>>(), wanted);
        assert_eq!(batch.oldest, wanted[0]);
        accept(&mut outbox, wanted[wanted.len() - 1]);
    }
    assert!(outbox.is_empty());
}

#[test]
fn there_is_room_for_so_many_events_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = open(folder.path());
    push(&mut outbox, 1);
    assert!(outbox.excess().is_none());
    // As if they had been pushed one by one.
    let whole = fs::read(folder.path().join("1.json")).unwrap();
    for n in 2..=MOST_EVENTS as u64 + 1 {
        fs::write(folder.path().join(format!("{n}.json")), &whole).unwrap();
    }
    let mut outbox = open(folder.path());
    let excess = outbox.excess().unwrap();
    assert!(outbox.len() - excess.numbers.len() <= MOST_EVENTS / 4 * 3);
    outbox.discard(&excess.numbers).unwrap();
    assert!(outbox.excess().is_none() && open(folder.path()).excess().is_none());
}
