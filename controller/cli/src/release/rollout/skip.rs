//! The plan that takes another one's place and no longer waits for the wave that holds it up.
//!
//! It is of the machines that do not run their output yet: the waves after the blocking one move to the
//! front, and what is unfinished of the blocking one and of those before goes to the end. All else stays as
//! it was.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::ids::{MachineName, Sha256};
use muster_protocol::operator::{MemberState, MemberView};
use muster_protocol::plan::{Lack, MAX_WAVE_NAME, Plan, PlanError, Said, Voucher, Wave, wave_lacks};

use super::work::by_default;
use crate::fleet::said::Proven;
use crate::terminal::count::count;

/// A plan without the wave that blocked, and what that gives up.
#[derive(Debug)]
pub struct Skipped {
    pub plan: Plan,
    /// In sentences, for the question.
    pub loosened: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum SkipError {
    #[error("no wave holds it up: the gate of each wave is open, or nobody waits")]
    NothingBlocks,
    #[error("every machine that waits is in the wave that would be skipped, or before it")]
    NobodyWaits,
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// The wave that the first closed gate waits for, by what its machines are proven to have said.
pub fn blocking(plan: &Plan, proven: &Proven) -> Option<usize> {
    let says = |voucher: &Voucher, said: Said| proven.has(&voucher.machine, said);
    (1..plan.waves.len()).find_map(|number| match wave_lacks(plan, number, &says)? {
        Lack::Wave { wave, .. } => Some(wave),
        Lack::Machine { .. } | Lack::NoSuchWave => None,
    })
}

/// `members` are what the controller says of the plan's machines. Whoever has left the rollout must be
/// verified. Else its word only leaves machines out where nobody waits for them: they stay as they are.
pub fn skip(
    old: &Plan,
    proven: &Proven,
    members: &[MemberView],
    nonce: Sha256,
) -> Result<Skipped, SkipError> {
    let blocking = blocking(old, proven).ok_or(SkipError::NothingBlocks)?;
    let states: BTreeMap<&MachineName, MemberState> =
        members.iter().map(|member| (&member.machine, member.state)).collect();
    let places = old.waves_of();
    let awaited: BTreeSet<&MachineName> =
        old.waves[blocking].vouchers.iter().map(|voucher| &voucher.machine).collect();
    let runs = |name: &MachineName| match states.get(name) {
        _ if proven.ran(name) => true,
        Some(MemberState::Left) => true,
        Some(MemberState::Confirmed | MemberState::Soaked) => {
            places.get(name).is_some_and(|wave| *wave <= blocking) && !awaited.contains(name)
        }
        _ => false,
    };
    let unfinished = |wave: &Wave| Wave {
        members: wave.members.iter().filter(|name| !runs(name)).cloned().collect(),
        vouchers: wave.vouchers.iter().filter(|voucher| !runs(&voucher.machine)).cloned().collect(),
        ..wave.clone()
    };
    let ahead: Vec<Wave> =
        old.waves[blocking + 1..].iter().map(unfinished).filter(|wave| !wave.members.is_empty()).collect();
    if ahead.is_empty() {
        return Err(SkipError::NobodyWaits);
    }
    let mut loosened = vec![given_up(&old.waves[blocking], proven, &states)];
    let behind = left_behind(old, blocking, unfinished);
    if let Some(behind) = &behind {
        let many = count(behind.members.len(), "machine", "machines");
        loosened.push(format!("{many} of it and of earlier waves come last, in a wave '{}'", behind.name));
    }
    loosened.push(format!("wave '{}' begins as soon as it is published: it waits for nobody", ahead[0].name));
    let waves = joined(ahead.into_iter().chain(behind).collect(), &mut loosened);

    let inside: BTreeSet<&MachineName> = waves.iter().flat_map(|wave| &wave.members).collect();
    let (after, dropped): (Vec<_>, Vec<_>) = old
        .after
        .iter()
        .filter(|after| inside.contains(&after.machine))
        .cloned()
        .partition(|after| inside.contains(&after.first));
    let unmet = dropped.iter().filter(|after| !proven.ran(&after.first));
    loosened.extend(unmet.map(|after| format!("{} no longer waits for {}", after.machine, after.first)));
    let (after, backwards) = in_order(after, &waves);
    loosened.extend(backwards.iter().map(|(machine, first)| {
        format!("{machine} no longer waits for {first}, which is in a later wave now")
    }));
    let plan = Plan { nonce, waves, after, ..old.clone() };
    plan.check()?;
    Ok(Skipped { plan, loosened })
}

fn given_up(wave: &Wave, proven: &Proven, states: &BTreeMap<&MachineName, MemberState>) -> String {
    let has_soaked = |name: &MachineName| proven.has(name, Said::Soaked);
    let soaked = wave.vouchers.iter().filter(|voucher| has_soaked(&voucher.machine)).count();
    let others = wave.members.iter().filter(|name| !has_soaked(name));
    let others = others.map(|name| {
        let state = states.get(name).copied().unwrap_or(MemberState::Unknown);
        format!("{name} ({})", state.as_str())
    });
    format!(
        "wave '{}' is no longer waited for: {soaked} of {} have proved that they soaked; the controller says of \
         the others: {}",
        wave.name,
        wave.at_least,
        crate::terminal::list::listed(others)
    )
}

/// What is unfinished of the blocking wave and of those before it, as one wave.
fn left_behind(old: &Plan, blocking: usize, unfinished: impl Fn(&Wave) -> Wave) -> Option<Wave> {
    let mut behind: Option<Wave> = None;
    for wave in old.waves[..=blocking].iter().rev().map(unfinished).filter(|wave| !wave.members.is_empty()) {
        behind = Some(match behind {
            None => Wave { name: later(&wave.name, old), ..wave },
            Some(all) => merged(all, wave),
        });
    }
    behind
}

fn later(name: &str, old: &Plan) -> String {
    let wanted = format!("{name} later");
    match wanted.len() > MAX_WAVE_NAME || old.waves.iter().any(|wave| wave.name == wanted) {
        true => "later".to_owned(),
        false => wanted,
    }
}

/// Two waves as one; the settings are the first one's, and the longer soak.
fn merged(first: Wave, second: Wave) -> Wave {
    Wave {
        members: first.members.into_iter().chain(second.members).collect(),
        vouchers: first
            .vouchers
            .into_iter()
            .chain(second.vouchers)
            .take(muster_protocol::plan::MAX_VOUCHERS)
            .collect(),
        soak_seconds: first.soak_seconds.max(second.soak_seconds),
        ..first
    }
}

/// Gives each wave but the last one a gate that can open; one in which nobody vouches is joined to the next.
fn joined(waves: Vec<Wave>, loosened: &mut Vec<String>) -> Vec<Wave> {
    let count = waves.len();
    let mut joined: Vec<Wave> = Vec::new();
    let mut held: Option<Wave> = None;
    for (number, wave) in waves.into_iter().enumerate() {
        let wave = match held.take() {
            Some(before) => Wave { name: wave.name.clone(), ..merged(wave, before) },
            None => wave,
        };
        let vouchers = wave.vouchers.len();
        if number + 1 == count {
            joined.push(Wave { at_least: 0, percent: 0, ..wave });
        } else if vouchers == 0 {
            loosened.push(format!("wave '{}' is joined to the next one: nobody in it can vouch", wave.name));
            held = Some(wave);
        } else {
            let (all, percent) = by_default(wave.members.len(), vouchers);
            joined.push(match wave.at_least {
                // It was the last one, for which nobody waited.
                0 => Wave { at_least: all, percent, ..wave },
                asked => {
                    let at_least = asked.min(u32::try_from(vouchers).unwrap_or(asked));
                    if at_least < asked {
                        let name = &wave.name;
                        loosened.push(format!(
                            "wave '{name}' is passed when {at_least} have soaked, not {asked}"
                        ));
                    }
                    Wave { at_least, ..wave }
                }
            });
        }
    }
    joined
}

type Order = (Vec<muster_protocol::plan::After>, Vec<(MachineName, MachineName)>);

/// Drops the orders between machines that the new waves turn round.
fn in_order(after: Vec<muster_protocol::plan::After>, waves: &[Wave]) -> Order {
    let place = |name: &MachineName| waves.iter().position(|wave| wave.members.contains(name));
    let vouches =
        |name: &MachineName| waves.iter().flat_map(|wave| &wave.vouchers).any(|one| &one.machine == name);
    let (kept, dropped): (Vec<_>, Vec<_>) = after
        .into_iter()
        .partition(|after| place(&after.first) <= place(&after.machine) && vouches(&after.first));
    (kept, dropped.into_iter().map(|after| (after.machine, after.first)).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::undo::tests::view;
    use super::super::work::tests::plan_of;
    use super::*;
    use crate::fleet::said::tests::of;

    fn old() -> Plan {
        plan_of(
            &json!({
                "waves": [
                    { "name": "canaries", "machines": ["a", "b"], "soak": "2h" },
                    { "name": "some", "machines": ["c", "d"] },
                ],
                "after": { "e": ["b"], "d": ["c"] },
            }),
            &["a", "b", "c", "d", "e", "f"],
        )
    }

    fn members(states: [MemberState; 6]) -> Vec<MemberView> {
        let places = [("a", 0), ("b", 0), ("c", 1), ("d", 1), ("e", 2), ("f", 2)];
        places.into_iter().zip(states).map(|((name, wave), state)| view(name, wave, state)).collect()
    }

    use MemberState::{Away, Soaked, Waiting};

    fn soaked(names: &[&str]) -> Proven {
        of(&names.iter().map(|name| (*name, Said::Soaked)).collect::<Vec<_>>())
    }

    #[test]
    fn the_blocking_wave_goes_to_the_end_and_the_next_one_begins() {
        let old = old();
        let members = members([Soaked, Away, Waiting, Waiting, Waiting, Waiting]);
        let skipped = skip(&old, &soaked(&["a"]), &members, Sha256::of(b"new")).unwrap();
        let new = &skipped.plan;
        let found: Vec<(&str, usize, u32)> =
            new.waves.iter().map(|wave| (wave.name.as_str(), wave.members.len(), wave.at_least)).collect();
        assert_eq!(found, [("some", 2, 2), ("rest", 2, 2), ("canaries later", 1, 0)]);
        assert_eq!(new.waves[2].members, ["b".parse().unwrap()]);
        assert_eq!(new.waves[2].soak_seconds, 7200);
        assert!(new.nonce != old.nonce && new.budget == old.budget);
        // e waited for b, which comes last now.
        assert_eq!(new.after.len(), 1);
        let told = skipped.loosened.join("\n");
        for words in [
            "'canaries' is no longer waited for: 1 of 2 have proved that they soaked; the controller says of \
             the others: b (away)",
            "1 machine of it and of earlier waves come last, in a wave 'canaries later'",
            "'some' begins as soon as it is published",
            "e no longer waits for b, which is in a later wave now",
        ] {
            assert!(told.contains(words), "{words}\n{told}");
        }
    }

    #[test]
    fn whoever_runs_its_output_is_left_alone() {
        let old = old();
        let members = members([Soaked, Soaked, MemberState::Confirmed, MemberState::Failed, Waiting, Away]);
        let proven = of(&[("a", Said::Soaked), ("b", Said::Soaked), ("c", Said::Confirmed)]);
        let skipped = skip(&old, &proven, &members, Sha256::of(b"new")).unwrap();
        let names: Vec<String> =
            skipped.plan.waves.iter().flat_map(|wave| &wave.members).map(ToString::to_string).collect();
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(!names.contains(&"c".to_owned()) && names[2] == "d");
        assert!(skipped.plan.after.is_empty(), "c and b are confirmed");
        assert!(!skipped.loosened.join("\n").contains("no longer waits for"));
    }

    #[test]
    fn nothing_is_skipped_where_nothing_blocks() {
        let old = old();
        let all = members([Waiting; 6]);
        let open = soaked(&["a", "b", "c", "d"]);
        assert!(matches!(skip(&old, &open, &all, old.nonce), Err(SkipError::NothingBlocks)));
        let done = members([Soaked, Soaked, Waiting, Waiting, Soaked, MemberState::Left]);
        let proven = soaked(&["a", "b", "e"]);
        assert!(matches!(skip(&old, &proven, &done, old.nonce), Err(SkipError::NobodyWaits)));
    }

    #[test]
    fn a_canary_that_went_back_blocks_again() {
        let old = old();
        assert_eq!(blocking(&old, &soaked(&["a", "c", "d"])), Some(0));
        assert_eq!(blocking(&old, &soaked(&["a", "b", "c"])), Some(1));
        assert_eq!(blocking(&old, &soaked(&["a", "b"])), Some(1));
        assert_eq!(blocking(&old, &soaked(&[])), Some(0));
    }

    #[test]
    fn that_all_have_soaked_counts_only_as_far_as_they_signed_it() {
        let old = old();
        // Whoever holds the controller would skip the second wave, as if the canaries were well.
        let members = members([Soaked, Soaked, Soaked, Soaked, Soaked, Soaked]);
        let skipped = skip(&old, &soaked(&["a"]), &members, Sha256::of(b"new")).unwrap();
        let found: Vec<(&str, usize, u32)> = skipped
            .plan
            .waves
            .iter()
            .map(|wave| (wave.name.as_str(), wave.members.len(), wave.at_least))
            .collect();
        assert_eq!(found, [("some", 2, 2), ("rest", 2, 2), ("canaries later", 1, 0)]);
        let told = skipped.loosened.join("\n");
        assert!(told.contains("1 of 2 have proved that they soaked"), "{told}");
        assert!(told.contains("the others: b (soaked)"), "{told}");
        // Where many have left, fewer are asked for, and that is told.
        let members = self::members([Soaked, Away, MemberState::Left, Waiting, Waiting, Waiting]);
        let told = skip(&old, &soaked(&["a"]), &members, old.nonce).unwrap().loosened.join("\n");
        assert!(told.contains("wave 'some' is passed when 1 have soaked, not 2"), "{told}");
    }

    #[test]
    fn a_wave_in_which_nobody_vouches_is_joined_to_the_next() {
        let mut old = old();
        old.after.clear();
        old.waves[2].vouchers.clear();
        let members = members([Soaked, Away, Waiting, Waiting, Waiting, Waiting]);
        let skipped = skip(&old, &soaked(&["a"]), &members, Sha256::of(b"new")).unwrap();
        assert_eq!(skipped.plan.waves.len(), 2);
        assert_eq!(skipped.plan.waves[1].members.len(), 3);
        assert!(skipped.loosened.iter().any(|line| line.contains("nobody in it can vouch")));
    }
}
