//! How much is kept. Of what machines report: the newest, bounded in bytes and in age; events that decided a
//! generation are removed last. Of generations: the newest and the youngest, what a machine runs or holds,
//! and the last ones that it confirmed, to one of which `muster rollback` may go back.

use std::collections::BTreeSet;

use muster_protocol::checkin::CheckIn;
use muster_protocol::clock::UnixMillis;
use muster_protocol::draft::DRAFT_SECONDS;
use muster_protocol::ids::{Generation, MachineName};
use muster_protocol::report::EventKind;

use super::change::{Change, Decided};
use super::rows::Outcome;

/// How many events one transaction removes, which is how long other writers wait.
pub const AT_ONCE: u32 = 512;
/// The same for generations, whose rows are larger.
pub const GENERATIONS_AT_ONCE: u32 = 64;
/// How many confirmed generations of a machine are kept, whatever their age.
pub const CONFIRMED: usize = 3;
/// How many decisions are looked through for them.
pub const DECISIONS: u32 = 512;
/// The same for plans, which may be large.
pub const PLANS_AT_ONCE: u32 = 8;
/// How long a plan is kept that no generation names, in milliseconds: longer than a draft waits for
/// signatures.
pub const PLANS_KEPT_MS: i64 = (DRAFT_SECONDS + 86_400) * 1000;
/// How long a token is kept after it expired, in seconds: a machine whose enrolment was not answered repeats
/// it, and somebody may wonder what became of a token.
pub const TOKENS_KEPT_S: i64 = 30 * 86_400;

/// The cost of an event of this many bytes.
pub fn cost(bytes: usize) -> u64 {
    bytes as u64 + 128
}

/// What a machine's events are cut down to if they take more than allowed. A little less than allowed, so
/// that this is not repeated for every event.
pub fn cut_down_to(bytes: u64, keep: u64) -> Option<u64> {
    (bytes > keep).then(|| keep - keep / 64)
}

/// Removes expired bearers, nonces, drafts and requests; the caller repeats it until none is left.
pub fn sweep(now_s: i64) -> Decided<()> {
    Decided { changes: vec![Change::EndedForgotten { now_s, most: AT_ONCE }], answer: () }
}

/// Removes tokens that ended long ago; the caller repeats it until none is left.
pub fn forget_tokens(now_s: i64) -> Decided<()> {
    let before_s = now_s.saturating_sub(TOKENS_KEPT_S);
    Decided { changes: vec![Change::TokensForgotten { before_s, most: AT_ONCE }], answer: () }
}

/// Removes attacks that ended before `before`; the caller repeats it until none is left.
pub fn forget_attacks(before: UnixMillis) -> Decided<()> {
    Decided { changes: vec![Change::AttacksForgotten { before, most: AT_ONCE }], answer: () }
}

/// Removes entries of the log that were cut; the caller repeats it until none is left.
pub fn forget_cut_entries() -> Decided<()> {
    Decided { changes: vec![Change::CutEntriesForgotten { most: AT_ONCE }], answer: () }
}

/// Which generations are kept of each machine: the newest, and those that were published recently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// How many of the newest, at least 1.
    pub newest: u32,
    /// All that were published since then.
    pub since: UnixMillis,
}

/// What is stored of a machine that has old generations.
#[derive(Debug, Clone, PartialEq)]
pub struct Old {
    pub published: Option<Generation>,
    pub observed: Option<CheckIn>,
    /// Those that are neither among the newest nor recent; not necessarily all.
    pub generations: Vec<Generation>,
    /// What the machine reported of generations, the newest first; [`DECISIONS`] at most.
    pub decisions: Vec<Outcome>,
}

/// The last generations that a machine confirmed and did not go back from later, by its decisions, the newest
/// first.
pub fn last_confirmed(decisions: &[Outcome]) -> Vec<Generation> {
    let (mut seen, mut confirmed) = (BTreeSet::new(), BTreeSet::new());
    for Outcome { generation, kind } in decisions {
        let is_last_word = seen.insert(*generation);
        if is_last_word && matches!(kind, EventKind::Confirmed { .. }) {
            confirmed.insert(*generation);
        }
    }
    confirmed.into_iter().rev().take(CONFIRMED).collect()
}

/// Forgets a machine's old generations, except those that it is offered, runs, holds, is working on, or
/// confirmed last.
pub fn forget_generations(machine: &MachineName, old: &Old) -> Decided<()> {
    let observed = old.observed.as_ref();
    let holds = observed.and_then(|last| Generation::of(last.holds.epoch, last.holds.targets).ok());
    let runs = observed.and_then(|last| last.runs.as_ref()?.generation);
    let works_on = observed.and_then(|last| last.phase_generation);
    let mut needed: BTreeSet<Generation> =
        [old.published, holds, runs, works_on].into_iter().flatten().collect();
    needed.extend(last_confirmed(&old.decisions));
    let generations: Vec<Generation> =
        old.generations.iter().copied().filter(|generation| !needed.contains(generation)).collect();
    if generations.is_empty() {
        return Decided::unchanged(());
    }
    let machine = machine.clone();
    Decided { changes: vec![Change::GenerationsForgotten { machine, generations }], answer: () }
}

/// Removes events that arrived before `before`, except those that decided a generation; the caller repeats it
/// until none is left.
pub fn forget_events(before: UnixMillis) -> Decided<()> {
    Decided { changes: vec![Change::EventsForgotten { before, most: AT_ONCE }], answer: () }
}

/// Removes plans that were sent before `before` and that no generation names; the caller repeats it until
/// none is left.
pub fn forget_plans(before: UnixMillis) -> Decided<()> {
    Decided { changes: vec![Change::PlansForgotten { before, most: PLANS_AT_ONCE }], answer: () }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_is_offered_runs_holds_or_works_on_is_not_forgotten() {
        let generation = |number| Generation::new(number).unwrap();
        let last: CheckIn = serde_json::from_value(serde_json::json!({
            "audience": muster_protocol::ids::Sha256::of(b"fleet"), "machine": "tin", "class": "nixos",
            "system": "x86_64-linux", "boot_id": "b", "seq": 1, "clock": 5, "agent": "1",
            "runs": {"running": "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system", "generation": 2},
            "holds": {"targets": 3}, "phase": "building", "phase_generation": 4,
        }))
        .unwrap();
        let old = |numbers: &[u64], observed| Old {
            published: Some(generation(6)),
            observed,
            generations: numbers.iter().map(|number| generation(*number)).collect(),
            decisions: vec![],
        };
        let tin: MachineName = "tin".parse().unwrap();
        let forgotten = |old: &Old| match forget_generations(&tin, old).changes.pop() {
            Some(Change::GenerationsForgotten { generations, .. }) => generations,
            other => panic!("{other:?}"),
        };
        let all = [1, 2, 3, 4, 5, 6];
        assert_eq!(forgotten(&old(&all, Some(last.clone()))), [generation(1), generation(5)]);
        assert_eq!(forgotten(&old(&all, None)).len(), 5, "of a machine that never checked in");
        assert!(forget_generations(&tin, &old(&[2, 3, 4, 6], Some(last))).changes.is_empty());
    }

    #[test]
    fn the_last_three_that_a_machine_confirmed_and_kept_are_not_forgotten() {
        let generation = |number| Generation::new(number).unwrap();
        let running = || "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system".parse().unwrap();
        let confirmed = |number| Outcome {
            generation: generation(number),
            kind: EventKind::Confirmed { running: running(), ms: 1, degraded: vec![] },
        };
        let back = |number| Outcome {
            generation: generation(number),
            kind: EventKind::RolledBack {
                running: running(),
                reason: muster_protocol::report::Reason::DidNotBoot,
                detail: String::new(),
                quarantined: true,
            },
        };
        // The newest first: 8 was confirmed, and did not boot later; 6 was tried twice.
        let decisions = vec![
            back(8),
            confirmed(8),
            confirmed(7),
            confirmed(6),
            back(6),
            back(5),
            confirmed(4),
            confirmed(3),
            confirmed(2),
        ];
        assert_eq!(last_confirmed(&decisions), [7, 6, 4].map(generation));
        assert_eq!(last_confirmed(&[]), []);
        let generations = (1..=9).map(generation).collect();
        let old = Old { published: Some(generation(9)), observed: None, generations, decisions };
        let forgotten = match forget_generations(&"tin".parse().unwrap(), &old).changes.pop() {
            Some(Change::GenerationsForgotten { generations, .. }) => generations,
            other => panic!("{other:?}"),
        };
        assert_eq!(forgotten, [1, 2, 3, 5, 8].map(generation));
    }
}
