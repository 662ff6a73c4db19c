//! Which events go when nobody takes reports and there is room for no more.
//!
//! The least important go first, and of those the oldest: first how far something was and why it waited, then the steps of an
//! update, then ends that another end of the same generation followed. The newest end of a generation never goes.

use std::collections::BTreeMap;

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::Generation;
use muster_protocol::report::EventKind;

/// The most events that wait, and the most bytes of them: some weeks of an agent that is lied to all the time.
pub const MOST_EVENTS: usize = 10_000;
pub const MOST_BYTES: u64 = 16 * 1024 * 1024;

/// One event that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    pub seq: u64,
    pub bytes: u64,
    pub at: UnixMillis,
    pub generation: Option<Generation>,
    pub weight: Weight,
}

/// The lighter one goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// How far something is, and what it waits for.
    Way,
    /// A step of an update, and what else happened.
    Step,
    /// How a generation ended.
    End,
    /// So many that went before it.
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

/// What goes, by number, and the event that tells so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excess {
    pub numbers: Vec<u64>,
    pub told: EventKind,
}

/// What goes so that three quarters of the room are taken at most, or as much as may go. `None` where there is room.
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
            // Counted on in the one that takes its place.
            Weight::Dropped(..) => 3,
        };
        (class, item.seq)
    });
    let (mut numbers, mut count) = (Vec::new(), 0u64);
    let (mut since, mut until) = (UnixMillis::MAX, UnixMillis::MIN);
    for item in candidates {
        let gone_already = matches!(item.weight, Weight::Dropped(..));
        let room = events <= most_events / 4 * 3 && bytes <= most_bytes / 4 * 3;
        // One event tells of all that ever went: an earlier one is taken into it.
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
    let told = EventKind::Dropped { events: count, since, until };
    (!numbers.is_empty()).then_some(Excess { numbers, told })
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
            (items.iter().filter(stay).copied().collect::<Vec<_>>(), gone.told)
        };
        let (some, told) = left(296);
        assert_eq!(some.len(), 222);
        assert_eq!(told, EventKind::Dropped { events: 78, since: 10, until: 2320 });
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
        assert_eq!(gone.told, EventKind::Dropped { events: 42, since: 7, until: 70 });
        assert_eq!(excess(&items, 3, 200).unwrap().numbers, [6, 7, 5]);
    }
}
