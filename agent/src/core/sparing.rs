//! Which events are dropped when nobody accepts reports and the queue is full.
//!
//! The least important go first, the oldest of those before the rest: progress and reasons to wait, then the
//! steps of an update, then results that a later result of the same generation supersedes. The latest result
//! of a generation is never dropped.

use std::collections::BTreeMap;

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::Generation;
use muster_protocol::report::EventKind;

/// The most queued events, and the most bytes they take: enough for some weeks under a controller that lies
/// all the time.
pub const MOST_EVENTS: usize = 10_000;
pub const MOST_BYTES: u64 = 16 * 1024 * 1024;

/// One queued event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    pub seq: u64,
    pub bytes: u64,
    pub at: UnixMillis,
    pub generation: Option<Generation>,
    pub weight: Weight,
}

/// The lightest is dropped first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Progress, and what a step waits for.
    Way,
    /// A step of an update, or anything else that happened.
    Step,
    /// The result of a generation.
    End,
    /// The number of events dropped before it.
    Dropped(u64, UnixMillis),
}

impl Weight {
    pub fn of(kind: &EventKind) -> Self {
        use EventKind as K;
        match kind {
            K::Progress(_) | K::Deferred { .. } | K::Summary(_) | K::AgentStarted { .. } | K::Unknown => {
                Self::Way
            }
            K::Verified
            | K::Fetched { .. }
            | K::Built { .. }
            | K::Activating { .. }
            | K::Activated { .. }
            | K::Enrolled { .. }
            | K::KeyRotated { .. }
            | K::Refused { .. }
            | K::Drift { .. }
            | K::HookFailed { .. }
            | K::Retried { .. }
            | K::Rebooting { .. } => Self::Step,
            K::Confirmed { .. } | K::RolledBack { .. } | K::Failed { .. } | K::NeedsHuman { .. } => Self::End,
            K::Dropped { events, since, .. } => Self::Dropped(*events, *since),
        }
    }
}

/// The events to drop, by number, and the event that reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excess {
    pub numbers: Vec<u64>,
    pub event: EventKind,
}

/// What to drop so that at most three quarters of the queue are used, or as much as may be dropped. `None`
/// while there is room.
pub fn excess(items: &[Item], most_events: usize, most_bytes: u64) -> Option<Excess> {
    let mut events = items.len();
    let mut bytes: u64 = items.iter().map(|item| item.bytes).fold(0, u64::saturating_add);
    if events <= most_events && bytes <= most_bytes {
        return None;
    }
    let mut newest: BTreeMap<Option<Generation>, u64> = BTreeMap::new();
    for item in items.iter().filter(|item| item.weight == Weight::End) {
        let seq = newest.entry(item.generation).or_default();
        *seq = item.seq.max(*seq);
    }
    let stays = |item: &&Item| item.weight != Weight::End || newest.get(&item.generation) != Some(&item.seq);
    let mut candidates: Vec<&Item> = items.iter().filter(stays).collect();
    candidates.sort_by_key(|item| {
        let class = match item.weight {
            Weight::Way => 0,
            Weight::Step => 1,
            Weight::End => 2,
            // Added to the event that replaces it.
            Weight::Dropped(..) => 3,
        };
        (class, item.seq)
    });
    let (mut numbers, mut count) = (Vec::new(), 0u64);
    let (mut since, mut until) = (UnixMillis::MAX, UnixMillis::MIN);
    for item in candidates {
        let gone_already = matches!(item.weight, Weight::Dropped(..));
        let room = events <= most_events / 4 * 3 && bytes <= most_bytes / 4 * 3;
        // One event reports everything that was ever dropped: it absorbs an earlier one.
        if room && !gone_already {
            continue;
        }
        let (times, first) = match item.weight {
            Weight::Dropped(times, first) => (times, first),
            _ => (1, item.at),
        };
        count = count.saturating_add(times);
        (since, until) = (since.min(first), until.max(item.at));
        (events, bytes) = (events.saturating_sub(1), bytes.saturating_sub(item.bytes));
        numbers.push(item.seq);
    }
    let event = EventKind::Dropped { events: count, since, until };
    (!numbers.is_empty()).then_some(Excess { numbers, event })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(seq: u64, generation: u64, weight: Weight) -> Item {
        let at = i64::try_from(seq).unwrap() * 10;
        Item { seq, bytes: 100, at, generation: Generation::new(generation).ok(), weight }
    }

    #[test]
    fn nothing_goes_while_there_is_room() {
        let items = [item(1, 1, Weight::Way), item(2, 1, Weight::End)];
        assert_eq!(excess(&items, 2, 200), None);
    }

    #[test]
    fn the_lightest_and_oldest_go_first_and_the_newest_end_of_a_generation_never() {
        let mut items = Vec::new();
        for n in 0..100 {
            let generation = n / 10 + 1;
            items.push(item(3 * n + 1, generation, Weight::Way));
            items.push(item(3 * n + 2, generation, Weight::Step));
            items.push(item(3 * n + 3, generation, Weight::End));
        }
        let left = |most: usize| {
            let gone = excess(&items, most, u64::MAX).unwrap();
            let stay = |item: &&Item| !gone.numbers.contains(&item.seq);
            (items.iter().filter(stay).copied().collect::<Vec<_>>(), gone.event)
        };
        let (some, event) = left(296);
        assert_eq!(some.len(), 222);
        assert_eq!(event, EventKind::Dropped { events: 78, since: 10, until: 2320 });
        assert_eq!(
            some.iter().filter(|item| item.weight == Weight::Way).count(),
            22,
            "the newest of the lightest"
        );
        assert_eq!(some.iter().filter(|item| item.weight == Weight::End).count(), 100);
        let (few, _) = left(4);
        let ends: Vec<u64> = few.iter().map(|item| item.seq).collect();
        assert_eq!(
            ends,
            (1..=10).map(|n| n * 30).collect::<Vec<_>>(),
            "the last end of each of ten generations"
        );
    }

    #[test]
    fn what_went_before_is_counted_on() {
        let items = [item(5, 1, Weight::Dropped(40, 7)), item(6, 1, Weight::Way), item(7, 1, Weight::Way)];
        let gone = excess(&items, 2, u64::MAX).unwrap();
        assert_eq!(gone.event, EventKind::Dropped { events: 42, since: 7, until: 70 });
        assert_eq!(excess(&items, 3, 200).unwrap().numbers, [6, 7, 5]);
    }
}
