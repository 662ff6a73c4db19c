use muster_protocol::ids::Generation;
use muster_protocol::keys::SecretKey;
use muster_protocol::plan::{MAX_MEMBERS, Place, Wave};
use muster_protocol::report::Reason;

use super::*;
use crate::core::rollouts::facts::{Health, Observed as Told};
use crate::core::rollouts::{StoredRollout, Turn};
use crate::core::rows::Outcome;

const NOW: i64 = 1_800_000_000_000;

fn plan(sizes: &[usize], max_in_flight: u32) -> Plan {
    let wave = |(wave, size): (usize, &usize)| Wave {
        name: format!("w{wave}"),
        members: (0..*size).map(|number| format!("m{wave}-{number}").parse().unwrap()).collect(),
        vouchers: vec![],
        at_least: 0,
        percent: 0,
        soak_seconds: 1,
        max_in_flight,
        windows: vec![],
    };
    Plan {
        fleet: Sha256::of(b"fleet"),
        epoch: Default::default(),
        name: "weekly".parse().unwrap(),
        nonce: Sha256::of(b"nonce"),
        waves: sizes.iter().enumerate().map(wave).collect(),
        after: vec![],
        budget: 0,
        failures: Failure::all(),
    }
}

fn told(phase: Phase, awaits: Option<Sha256>) -> Told {
    let phase_generation = Some(Generation::FIRST);
    Told { runs: None, phase, phase_generation, note: None, health: Health::default(), awaits }
}

fn hash(plan: &Plan) -> Sha256 {
    Sha256::of(&plan.to_bytes().unwrap())
}

/// Every machine waits for its turn.
fn facts(plan: &Plan) -> Facts {
    let hash = hash(plan);
    let seen = |(name, wave): (&MachineName, usize)| {
        let place = Place { plan: hash, wave: u32::try_from(wave).unwrap() };
        let seen = Seen {
            revoked: false,
            seen_at: Some(NOW),
            observed: Some(told(Phase::Checked, Some(hash))),
            outcome: None,
            published: Some(Generation::FIRST),
            turn: Turn::of_new(plan, place),
            named: true,
        };
        (name.clone(), seen)
    };
    Facts {
        rollout: StoredRollout {
            plan: hash,
            name: plan.name.clone(),
            budget: plan.budget,
            at: NOW,
            by: SecretKey::generate().unwrap().public(),
            asked: None,
            verdict: None,
            open: true,
        },
        brake: None,
        machines: plan.waves_of().into_iter().map(seen).collect(),
        members: BTreeMap::new(),
    }
}

fn decided(plan: &Plan, facts: &Facts, asking: Option<Asking<'_>>) -> Decided<Next> {
    let of = Of {
        hash: hash(plan),
        plan,
        epoch: Default::default(),
        away_ms: 300_000,
        now: NOW,
        is_signed: &|_, _, _| true,
    };
    decide(&of, Some(facts), asking).unwrap()
}

/// What is stored once these changes are applied.
fn after(mut facts: Facts, changes: &[Change]) -> Facts {
    for change in changes {
        match change {
            Change::TurnChanged(new) => {
                facts.machines.get_mut(&new.machine).unwrap().turn = Some(new.turn.clone());
            }
            Change::RolloutDecided { verdict, .. } => facts.rollout.verdict = Some(verdict.clone()),
            Change::RolloutAsked { asked, .. } => facts.rollout.asked = Some(asked.clone()),
            Change::MemberFailed { failed, .. } => {
                facts.members.entry(failed.machine.clone()).or_default().failed = Some(failed.failure);
            }
            Change::MembersForgiven { machines, .. } => {
                for name in machines {
                    facts.members.entry(name.clone()).or_default().forgiven = true;
                }
            }
            Change::MemberTriesAgain { machine, .. } => {
                let member = facts.members.get_mut(machine).unwrap();
                (member.failed, member.forgiven) = (None, false);
            }
            _ => {}
        }
    }
    facts
}

#[test]
fn deciding_again_writes_nothing_where_nothing_has_changed() {
    let plan = plan(&[5], 2);
    let before = facts(&plan);
    let first = decided(&plan, &before, None);
    assert_eq!(first.answer.rings.len(), 2);
    let then = after(before, &first.changes);
    let second = decided(&plan, &then, None);
    assert_eq!((second.changes, second.answer.rings), (vec![], vec![]));
}

#[test]
fn a_machine_that_left_meanwhile_is_not_touched() {
    let plan = plan(&[2], 2);
    let mut facts = facts(&plan);
    facts.machines.get_mut(&"m0-0".parse::<MachineName>().unwrap()).unwrap().turn = None;
    let decided = decided(&plan, &facts, None);
    let turns = decided.changes.iter().filter_map(|change| match change {
        Change::TurnChanged(new) => Some(new.machine.as_str()),
        _ => None,
    });
    assert_eq!(turns.collect::<Vec<_>>(), ["m0-1"]);
    assert_eq!(decided.answer.view.members[0].state, MemberState::Left);
}

#[test]
fn what_is_undone_for_a_reason_that_passes_is_no_failure() {
    let plan = plan(&[1], 1);
    let name: MachineName = "m0-0".parse().unwrap();
    let with = |phase, kind: Option<EventKind>| {
        let mut facts = facts(&plan);
        let seen = facts.machines.get_mut(&name).unwrap();
        seen.observed = Some(told(phase, None));
        seen.outcome = kind.map(|kind| Outcome { generation: Generation::FIRST, kind });
        stage(hash(&plan), &facts.machines[&name])
    };
    let back = |quarantined| EventKind::RolledBack {
        running: "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system".parse().unwrap(),
        reason: Reason::NeedsHuman,
        detail: String::new(),
        quarantined,
    };
    assert_eq!(with(Phase::RolledBack, Some(back(false))), Stage::Behind);
    assert_eq!(with(Phase::RolledBack, Some(back(true))), Stage::Failed);
    assert_eq!(with(Phase::RolledBack, None), Stage::Switching, "its report is on the way");
    let confirmed = EventKind::Confirmed {
        running: "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system".parse().unwrap(),
        ms: 0,
        degraded: vec![],
    };
    assert_eq!(with(Phase::RolledBack, Some(confirmed)), Stage::Switching, "somebody went back since");
    assert_eq!(with(Phase::Failed, None), Stage::Behind);
    assert_eq!(with(Phase::NeedsHuman, None), Stage::Failed);
    assert_eq!(with(Phase::Activating, None), Stage::Switching);
    assert_eq!(with(Phase::Confirmed, None), Stage::Confirmed);
}

#[test]
fn a_failure_is_recorded_once_and_forgiven_by_an_operator() {
    let plan = plan(&[2], 1);
    let name: MachineName = "m0-0".parse().unwrap();
    let mut facts = facts(&plan);
    facts.machines.get_mut(&name).unwrap().observed = Some(told(Phase::NeedsHuman, None));
    let first = decided(&plan, &facts, None);
    assert_eq!(first.answer.view.state, RolloutState::Halted);
    let mut then = after(facts, &first.changes);
    assert_eq!(then.members[&name].failed, Some(Failure::NeedsHuman));
    // It tries again, and the failure still counts.
    then.machines.get_mut(&name).unwrap().observed = Some(told(Phase::Building, None));
    assert_eq!(decided(&plan, &then, None).answer.view.failures, 1);
    let operator = SecretKey::generate().unwrap().public();
    let context = AuditContext { operator: &operator, at: NOW };
    let ask = AskRollout { wish: Wish::Run, forgive: true, why: None };
    let forgiven = decided(&plan, &then, Some((&ask, context)));
    assert_eq!((forgiven.answer.view.state, forgiven.answer.view.failures), (RolloutState::Running, 0));
    let then = after(then, &forgiven.changes);
    assert_eq!(decided(&plan, &then, Some((&ask, context))).changes, []);
}

#[test]
fn a_machine_that_is_asked_to_try_again_gets_leave_and_another_failure_counts_anew() {
    let plan = plan(&[2], 1);
    let name: MachineName = "m0-0".parse().unwrap();
    let failed = || {
        let kind = EventKind::RolledBack {
            running: "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system".parse().unwrap(),
            reason: Reason::NeedsHuman,
            detail: String::new(),
            quarantined: true,
        };
        Some(Outcome { generation: Generation::FIRST, kind })
    };
    let mut facts = facts(&plan);
    let set = |facts: &mut Facts, phase, awaits| {
        let seen = facts.machines.get_mut(&name).unwrap();
        seen.observed = Some(told(phase, awaits));
        // That it is tried again makes it undecided.
        seen.outcome = if phase == Phase::RolledBack { failed() } else { None };
    };
    set(&mut facts, Phase::RolledBack, None);
    let first = decided(&plan, &facts, None);
    assert_eq!(first.answer.view.state, RolloutState::Halted);
    let facts = after(facts, &first.changes);
    let operator = SecretKey::generate().unwrap().public();
    let context = AuditContext { operator: &operator, at: NOW };
    let ask = AskRollout { wish: Wish::Run, forgive: true, why: None };
    let mut facts = after(facts.clone(), &decided(&plan, &facts, Some((&ask, context))).changes);
    // It was asked to, and waits for its turn once more.
    set(&mut facts, Phase::Checked, Some(hash(&plan)));
    facts.machines.get_mut(&"m0-1".parse::<MachineName>().unwrap()).unwrap().seen_at = None;
    let again = decided(&plan, &facts, None);
    assert_eq!(again.answer.rings, std::slice::from_ref(&name), "{}", again.answer.view.why);
    let mut facts = after(facts, &again.changes);
    set(&mut facts, Phase::Activating, None);
    let begins = decided(&plan, &facts, None);
    assert_eq!(begins.answer.view.failures, 0);
    let mut facts = after(facts, &begins.changes);
    set(&mut facts, Phase::RolledBack, None);
    let second = decided(&plan, &facts, None);
    assert_eq!((second.answer.view.state, second.answer.view.failures), (RolloutState::Halted, 1));
}

#[test]
fn a_machine_that_waits_is_not_quoted_with_what_it_was_told() {
    let plan = plan(&[1], 1);
    let mut facts = facts(&plan);
    let seen = facts.machines.values_mut().next().unwrap();
    let note = Some("its turn comes when 2 machines have soaked".to_owned());
    seen.observed = Some(Told { note, ..told(Phase::NeedsHuman, Some(hash(&plan))) });
    let view = decided(&plan, &facts, None).answer.view;
    assert!(!view.members[0].why.contains("its turn comes"), "{}", view.members[0].why);
}

#[test]
fn what_was_stopped_is_not_resumed() {
    let plan = plan(&[1], 1);
    let (mut facts, operator) = (facts(&plan), SecretKey::generate().unwrap().public());
    facts.rollout.asked = Some(Asked { wish: Wish::Stop, why: None, at: NOW, by: operator });
    let of = Of {
        hash: hash(&plan),
        plan: &plan,
        epoch: Default::default(),
        away_ms: 300_000,
        now: NOW,
        is_signed: &|_, _, _| true,
    };
    for wish in [Wish::Run, Wish::Pause] {
        let ask = AskRollout { wish, forgive: true, why: None };
        let asking = Some((&ask, AuditContext { operator: &operator, at: NOW }));
        assert!(matches!(decide(&of, Some(&facts), asking), Err(RolloutRefusal::Stopped(_))));
    }
    let next = Of { epoch: Epoch::new(1).unwrap(), ..of };
    let decided = decide(&next, Some(&facts), None).unwrap();
    assert_eq!(decided.answer.view.state, RolloutState::Superseded, "a new epoch has begun");
}

#[test]
fn of_the_largest_plan_as_many_begin_as_may() {
    let plan = plan(&[MAX_MEMBERS / 2, MAX_MEMBERS / 2], 100);
    let facts = facts(&plan);
    let decided = decided(&plan, &facts, None);
    assert_eq!(decided.answer.rings.len(), 200);
}
