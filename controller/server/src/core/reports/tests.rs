use serde_json::json;

use super::*;

const NOW: UnixMillis = 1_800_000_000_000;
const KEEP: u64 = 1024 * 1024;

fn name() -> MachineName {
    "cinnabar".parse().unwrap()
}
fn event(seq: u64, rest: &serde_json::Value) -> NewEvent {
    let mut event = json!({ "seq": seq, "at": NOW });
    event.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    let generation = event.get("generation").and_then(|number| serde_json::from_value(number.clone()).ok());
    NewEvent::new(seq, generation, event.to_string())
}
fn plain(seq: u64) -> NewEvent {
    event(seq, &json!({ "kind": "needs-human", "detail": "x" }))
}
fn outcome(seq: u64, generation: u64, kind: &str) -> NewEvent {
    event(seq, &json!({ "kind": kind, "generation": generation, "detail": "x" }))
}
fn stream(digit: char) -> Option<Stream> {
    Some(String::from(digit).repeat(16).parse().unwrap())
}
fn batch<'a>(machine: &'a MachineName, oldest: u64, events: &'a [NewEvent]) -> Batch<'a> {
    Batch { machine, stream: stream('a'), oldest, events }
}
fn named(stream: char, through: u64) -> Stored {
    Stored {
        enrolment: 1,
        through,
        newest: through,
        stream: Some(String::from(stream).repeat(16)),
        ..Stored::default()
    }
}
fn events(changes: &[Change]) -> Vec<u64> {
    let stored = changes.iter().filter_map(|change| match change {
        Change::EventStored(event) => Some(event.seq),
        _ => None,
    });
    stored.collect()
}
fn count(changes: &[Change]) -> &ReportsThrough {
    let count = changes.iter().find_map(|change| match change {
        Change::ReportsThrough(count) => Some(count),
        _ => None,
    });
    count.unwrap()
}
fn logged(changes: &[Change]) -> Vec<&'static str> {
    let entries = changes.iter().filter_map(|change| match change {
        Change::Audited(entry) => Some(entry.action),
        _ => None,
    });
    entries.collect()
}

#[test]
fn each_event_is_stored_once_and_behind_the_last_one() {
    let (name, sent) = (name(), [plain(3), plain(4), plain(7)]);
    let decided = report(Some(&named('a', 3)), &batch(&name, 1, &sent), KEEP, NOW).unwrap();
    assert_eq!((decided.answer, events(&decided.changes)), (7, vec![4, 5]));
    assert_eq!(count(&decided.changes).through, 7);
    // The answer was lost, and the batch is sent again.
    let again = report(Some(&named('a', 7)), &batch(&name, 1, &sent), KEEP, NOW).unwrap();
    assert_eq!((again.answer, again.changes.len()), (7, 0));
}

#[test]
fn a_batch_out_of_order_is_refused_whole() {
    let (name, sent) = (name(), [plain(4), plain(6), plain(5)]);
    let refusal = report(Some(&named('a', 3)), &batch(&name, 1, &sent), KEEP, NOW).unwrap_err();
    assert_eq!(refusal, ReportRefusal::Order { machine: name, wanted: 7, found: 5 });
}

#[test]
fn numbers_below_the_oldest_that_never_came_are_gone() {
    let name = name();
    let decided = report(Some(&named('a', 3)), &batch(&name, 9, &[]), KEEP, NOW).unwrap();
    assert_eq!((decided.answer, events(&decided.changes).len()), (8, 0));
}

#[test]
fn a_count_with_another_name_begins_anew_and_its_events_stay_in_order() {
    let (name, sent) = (name(), [plain(1), plain(2)]);
    let renamed = report(Some(&named('b', 40)), &batch(&name, 1, &sent), KEEP, NOW).unwrap();
    assert_eq!((renamed.answer, events(&renamed.changes)), (2, vec![41, 42]));
    assert_eq!(count(&renamed.changes).stream, stream('a').map(|stream| stream.to_string()));
    // Also for an empty batch: the count's name is new.
    let empty = report(Some(&named('b', 0)), &batch(&name, 1, &[]), KEEP, NOW).unwrap();
    assert_eq!((empty.answer, empty.changes.len()), (0, 2));
}

#[test]
fn the_first_name_of_a_count_says_nothing_of_its_numbers() {
    let (name, sent) = (name(), [plain(5), plain(6)]);
    let unnamed = Stored { stream: None, ..named('a', 5) };
    let decided = report(Some(&unnamed), &batch(&name, 1, &sent), KEEP, NOW).unwrap();
    assert_eq!((decided.answer, events(&decided.changes)), (6, vec![6]));
    // An agent of 0.1 replaced it: it sends no name, and the stored name stays.
    let older = Batch { stream: None, ..batch(&name, 1, &sent) };
    let decided = report(Some(&named('b', 5)), &older, KEEP, NOW).unwrap();
    assert_eq!(count(&decided.changes).stream, named('b', 5).stream);
}

#[test]
fn numbers_that_no_count_reaches_are_refused_or_were_never_stored() {
    let (name, far) = (name(), [plain(MAX_EVENT_NUMBER + 1)]);
    let refusal = report(Some(&named('a', 3)), &batch(&name, 1, &far), KEEP, NOW).unwrap_err();
    assert_eq!(refusal, ReportRefusal::OutOfRange { machine: name.clone(), found: MAX_EVENT_NUMBER + 1 });
    let older = Batch { stream: None, ..batch(&name, 1, &far) };
    assert!(
        report(Some(&named('a', 3)), &older, KEEP, NOW).is_ok(),
        "agents of 0.1 went where they were told"
    );
    let lied = Stored { newest: 3, ..named('a', MAX_EVENT_NUMBER + 9) };
    let sent = [plain(4)];
    let decided = report(Some(&lied), &batch(&name, 4, &sent), KEEP, NOW).unwrap();
    assert_eq!((decided.answer, events(&decided.changes)), (4, vec![4]));
}

#[test]
fn who_is_not_enrolled_stores_nothing() {
    let name = name();
    let refusal = report(None, &batch(&name, 1, &[]), KEEP, NOW).unwrap_err();
    assert_eq!(refusal, ReportRefusal::NotEnrolled(name));
}

#[test]
fn what_became_of_the_newest_generation_stays_known() {
    let (name, sent) = (name(), [outcome(1, 5, "needs-human"), outcome(2, 4, "needs-human")]);
    let decided = report(Some(&named('a', 0)), &batch(&name, 1, &sent), KEEP, NOW).unwrap();
    let held = count(&decided.changes).outcome.clone();
    assert_eq!(held.map(|outcome| outcome.generation.packed()), Some(5));
}

#[test]
fn of_a_generation_that_is_tried_again_nothing_is_decided() {
    let path = format!("/nix/store/{}-system.drv", "9".repeat(32));
    let retried = |generation: u64| {
        let by = json!({ "who": "local" });
        let told = json!({ "kind": "retried", "derivation": path, "quarantined": true, "by": by,
            "generation": generation });
        event(2, &told)
    };
    let decided = |second: NewEvent| {
        let (name, sent) = (name(), [outcome(1, 5, "needs-human"), second]);
        let decided = report(Some(&named('a', 0)), &batch(&name, 1, &sent), KEEP, NOW).unwrap();
        count(&decided.changes).outcome.is_some()
    };
    assert!(!decided(retried(5)));
    assert!(decided(retried(4)), "another generation's");
}

#[test]
fn an_attack_is_kept_each_time_and_logged_once_an_hour() {
    let attack = |seq| event(seq, &json!({ "kind": "refused", "attack": "rollback", "detail": "older" }));
    let (name, sent) = (name(), [attack(1), attack(2)]);
    let batch = batch(&name, 1, &sent);
    assert!(batch.tells_of_attacks() && !batch.tells_of_retries());
    let decided = report(Some(&named('a', 0)), &batch, KEEP, NOW).unwrap();
    let opened: Vec<_> = decided
        .changes
        .iter()
        .filter_map(|change| match change {
            Change::AttackOpened(attack) => Some(attack.ended_at),
            _ => None,
        })
        .collect();
    assert_eq!(opened, [Some(NOW), Some(NOW)], "the last check-in no longer reports it");
    assert_eq!(logged(&decided.changes), [ATTACK_REFUSED]);
    let logged_before = BTreeSet::from(["rollback".to_owned()]);
    let stored = Stored { attacks_logged: logged_before, refuses: true, ..named('a', 0) };
    let decided = report(Some(&stored), &batch, KEEP, NOW).unwrap();
    assert!(logged(&decided.changes).is_empty());
    assert!(matches!(&decided.changes[1], Change::AttackOpened(attack) if attack.ended_at.is_none()));
}

#[test]
fn a_machine_causes_few_entries_about_retries() {
    let path = format!("/nix/store/{}-system.drv", "9".repeat(32));
    let retried = |seq| {
        let by = json!({ "who": "local" });
        event(seq, &json!({ "kind": "retried", "derivation": path, "quarantined": seq == 1, "by": by }))
    };
    let (name, sent) = (name(), [retried(1), retried(2), retried(3)]);
    let batch = batch(&name, 1, &sent);
    assert!(batch.tells_of_retries());
    let stored = Stored { retries_logged: RETRIES_LOGGED - 2, ..named('a', 0) };
    let decided = report(Some(&stored), &batch, KEEP, NOW).unwrap();
    assert_eq!(logged(&decided.changes), [QUARANTINE_LIFTED, RETRIED]);
    assert_eq!(events(&decided.changes).len(), 3, "each is stored");
}

#[test]
fn an_event_that_cannot_be_read_is_stored_and_decides_nothing() {
    let (name, sent) = (name(), [NewEvent::new(1, None, "{\"seq\":1,\"kind\":[]}".into())]);
    let decided = report(Some(&named('a', 0)), &batch(&name, 1, &sent), KEEP, NOW).unwrap();
    assert!(matches!(&decided.changes[0], Change::EventStored(event) if !event.decides));
}

#[test]
fn beyond_its_bound_a_machine_loses_its_oldest_events() {
    let (name, sent) = (name(), [plain(1)]);
    let stored = Stored { events_bytes: KEEP, ..named('a', 0) };
    let decided = report(Some(&stored), &batch(&name, 1, &sent), KEEP, NOW).unwrap();
    let bytes = KEEP + retention::cost(sent[0].raw.len());
    let trimmed = Change::EventsTrimmed { machine: name, bytes, wanted: KEEP - KEEP / 64 };
    assert!(decided.changes.contains(&trimmed));
}
