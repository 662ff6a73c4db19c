//! The fleet in numbers: how many machines are in which condition, how far they are behind, what ends soon.

use std::collections::BTreeMap;

use muster_protocol::clock::UnixMillis;
use muster_protocol::machine::Class;
use muster_protocol::operator::{Condition, Standing};

use super::condition::condition;
use super::rows::Machine;

/// A signature ends soon within this many seconds.
pub const SOON_S: i64 = 14 * 86_400;

/// The conditions that a machine can be in.
const CONDITIONS: [Condition; 12] = [
    Condition::Invited,
    Condition::Revoked,
    Condition::NoGeneration,
    Condition::UpToDate,
    Condition::Degraded,
    Condition::Updating,
    Condition::RolledBack,
    Condition::Failed,
    Condition::NeedsHuman,
    Condition::UnderAttack,
    Condition::Paused,
    Condition::Offline,
];

/// How many generations a machine is behind its newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Behind {
    Nothing,
    One,
    Two,
    /// From three to nine.
    Few,
    /// Ten or more.
    Many,
    /// It runs something of an earlier epoch, or does not say which generation it runs.
    Unknown,
}

impl Behind {
    pub const ALL: [Self; 6] = [Self::Nothing, Self::One, Self::Two, Self::Few, Self::Many, Self::Unknown];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "0",
            Self::One => "1",
            Self::Two => "2",
            Self::Few => "3-9",
            Self::Many => "10+",
            Self::Unknown => "unknown",
        }
    }

    /// `None` for a machine that has no generation to run.
    fn of(machine: &Machine) -> Option<Self> {
        let newest = machine.published.as_ref()?.target.generation;
        let runs = machine.observed.as_ref().and_then(|observed| observed.runs.as_ref()?.generation);
        Some(match runs {
            Some(runs) if runs.epoch() == newest.epoch() => match newest.get().checked_sub(runs.get()) {
                // A restored controller knows less than its machines.
                None | Some(0) => Self::Nothing,
                Some(1) => Self::One,
                Some(2) => Self::Two,
                Some(3..=9) => Self::Few,
                Some(_) => Self::Many,
            },
            _ => Self::Unknown,
        })
    }
}

/// The fleet in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census {
    /// Every condition of every class, also where no machine is in it.
    pub conditions: BTreeMap<(Class, &'static str), u64>,
    /// Enrolled machines by how far they are behind.
    pub behind: BTreeMap<Behind, u64>,
    /// Attacks that enrolled machines refuse now.
    pub attacks: BTreeMap<&'static str, u64>,
    /// Machines with a clone alarm.
    pub clone_alarms: u64,
    /// When the first signature of a newest generation of an enrolled machine ends, in Unix seconds.
    pub first_end: Option<i64>,
    /// How many of them end within [`SOON_S`], or have ended.
    pub ending: u64,
}

/// Counts the fleet.
pub fn census(machines: &[Machine], poll_seconds: u64, now: UnixMillis) -> Census {
    let mut census = Census::default();
    for class in Class::ALL {
        census.conditions.extend(CONDITIONS.map(|condition| ((class, condition.as_str()), 0)));
    }
    census.behind.extend(Behind::ALL.map(|behind| (behind, 0)));
    let now_s = now.div_euclid(1000);
    for machine in machines {
        let condition = condition(machine, poll_seconds, now);
        *census.conditions.entry((machine.class, condition.as_str())).or_default() += 1;
        if machine.standing() != Standing::Enrolled {
            continue;
        }
        census.clone_alarms += u64::from(machine.clone_alarm_at.is_some());
        if let Some(behind) = Behind::of(machine) {
            *census.behind.entry(behind).or_default() += 1;
        }
        if let Some(attack) = machine.observed.as_ref().and_then(|observed| observed.refused) {
            *census.attacks.entry(attack.as_str()).or_default() += 1;
        }
        if let Some(published) = &machine.published {
            let first = census.first_end.get_or_insert(published.expires);
            *first = published.expires.min(*first);
            census.ending += u64::from(published.expires.saturating_sub(now_s) < SOON_S);
        }
    }
    census
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::samples::{NOW, NOW_S, machine, name, target};

    /// A machine that says which generation it runs.
    fn enrolled(runs: Option<u64>, newest: u64) -> Machine {
        let observed = serde_json::json!({
            "audience": "0".repeat(64), "machine": name(), "class": "nixos", "system": "x86_64-linux",
            "boot_id": "boot", "seq": 1, "clock": NOW, "agent": "0.1.0", "holds": {}, "phase": "idle",
            "runs": {"running": target(1).output, "generation": runs},
        });
        let observed = Some(serde_json::from_value(observed).unwrap());
        Machine { seen_at: Some(NOW), observed, ..machine(Some(newest)) }
    }

    #[test]
    fn machines_are_counted_by_condition_and_by_how_far_they_are_behind() {
        let fleet = [
            enrolled(Some(5), 5),
            enrolled(Some(4), 5),
            enrolled(Some(2), 5),
            enrolled(Some(1), 50),
            enrolled(Some(7), 5),
            enrolled(None, 5),
            Machine { has_key: false, ..machine(None) },
        ];
        let census = census(&fleet, 55, NOW);
        let behind: Vec<u64> = census.behind.values().copied().collect();
        assert_eq!(behind, [2, 1, 0, 1, 1, 1], "{census:?}");
        assert_eq!(census.conditions[&(Class::Nixos, "invited")], 1);
        assert_eq!(census.conditions.values().sum::<u64>(), 7);
    }

    #[test]
    fn what_ends_soon_is_counted_for_enrolled_machines_alone() {
        let mut soon = enrolled(Some(1), 1);
        soon.published.as_mut().unwrap().expires = NOW_S + SOON_S - 1;
        let mut late = enrolled(Some(1), 1);
        late.published.as_mut().unwrap().expires = NOW_S + SOON_S;
        let mut revoked = soon.clone();
        revoked.revoked_at = Some(NOW);
        revoked.published.as_mut().unwrap().expires = NOW_S;
        revoked.clone_alarm_at = Some(NOW);
        let census = census(&[soon, late, revoked], 55, NOW);
        assert_eq!((census.first_end, census.ending), (Some(NOW_S + SOON_S - 1), 1));
        assert_eq!(census.clone_alarms, 0);
    }
}
