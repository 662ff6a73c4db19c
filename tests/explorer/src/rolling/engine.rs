//! What an honest controller decides, by `deciding` and the engine that ship: what is stored is made into
//! their facts, and the changes are made small again.

use std::collections::BTreeMap;

use muster_protocol::checkin::{Phase as Said, Runs};
use muster_protocol::ids::{Epoch, Generation, MachineName};
use muster_protocol::operator::{AskRollout, BrakeView, MachineRollout, MemberState, RolloutState, Wish};
use muster_protocol::plan::{Failure, Leave, Plan};
use muster_protocol::report::{Asker, EventKind, Reason};
use muster_server::core::Change;
use muster_server::core::audit::AuditContext;
use muster_server::core::rollouts::facts::{Facts, Health, Observed, Recorded, Seen, Void};
use muster_server::core::rollouts::{Asked as Wished, StoredRollout, Turn};
use muster_server::core::rows::Outcome;
use muster_server::rollout::deciding::{self, Of};

use super::desk::{Ask, Asked, Desk, Phase, Row, Ruling, Told};
use super::guard::Break;
use super::machine::End;
use super::plans::{MOST, Planned, Signed, TICK_MS, path};
use super::stage::{Stage, once};
use muster_protocol::plan::Said as Word;

const NOW: i64 = 1_800_000_000_000;

fn tick_ms() -> i64 {
    i64::try_from(TICK_MS).unwrap_or(1)
}

/// Decides about the rollout of this plan.
pub fn decide(stage: &Stage, desk: &Desk, plan: u8, ask: Option<Ask>) -> Ruling {
    once(&stage.known.rulings, (*desk, plan, ask), || {
        let ruled = rule(stage, desk, plan, ask);
        ruled.unwrap_or(Ruling {
            desk: *desk,
            state: RolloutState::Stopped,
            given: 0,
            fresh: 0,
            members: [None; MOST],
            mute: false,
        })
    })
}

/// What the reply to a check-in says of leave.
pub fn leave(stage: &Stage, desk: &Desk, who: usize) -> Option<Leave> {
    Some(turn(stage, &desk.rows[who], who)?.leave(NOW))
}

fn generation(number: u8) -> Option<Generation> {
    Generation::of(Epoch::default(), number.into()).ok()
}

fn turn(stage: &Stage, row: &Row, who: usize) -> Option<Turn> {
    let (planned, wave) = (stage.plan(row.published)?, stage.wave(row.published, who)?);
    Some(Turn {
        at: MachineRollout {
            plan: planned.hash,
            name: planned.plan.name.clone(),
            wave: u32::try_from(wave).ok()?,
            wave_name: planned.plan.waves[wave].name.clone(),
            state: MemberState::Waiting,
            why: "its turn is about to be decided".to_owned(),
        },
        until: row.until.map(|ticks| NOW + i64::from(ticks) * tick_ms()),
        taken_back: row.taken_back,
    })
}

fn observed(stage: &Stage, told: &Told) -> Option<Observed> {
    let phase = match told.phase {
        Phase::Idle => Said::Idle,
        Phase::Waits => Said::Deferred,
        Phase::Switches => Said::Activating,
        Phase::Confirmed => Said::Confirmed,
        Phase::RolledBack => Said::RolledBack,
    };
    let running = path(stage.system(told.runs), "")?;
    Some(Observed {
        runs: Some(Runs {
            running,
            profile: None,
            generation: generation(told.runs).filter(|_| told.runs > 0),
        }),
        phase,
        phase_generation: generation(told.about).filter(|_| told.about > 0),
        note: None,
        health: Health { degraded: Some(if told.ill { vec!["app.service".to_owned()] } else { vec![] }) },
        awaits: stage.plan(told.awaits).map(|plan| plan.hash),
    })
}

fn event(end: End) -> Option<EventKind> {
    let (running, detail) = (path(0, "")?, String::new());
    Some(match end {
        End::Confirmed => EventKind::Confirmed { running, ms: 0, degraded: vec![] },
        End::Failed => {
            EventKind::RolledBack { running, reason: Reason::HealthCheckFailed, detail, quarantined: true }
        }
    })
}

fn outcome((about, end): (u8, End)) -> Option<Outcome> {
    Some(Outcome { generation: generation(about)?, kind: event(end)? })
}

/// What is stored as the outcome once it is reported how this generation ended, or that it is tried again.
pub fn reported(stage: &Stage, held: Option<(u8, End)>, about: u8, end: Option<End>) -> Option<(u8, End)> {
    if end.is_none() && stage.breaks(Break::ForgetRetries) {
        return held;
    }
    let kind = match end {
        Some(end) => event(end)?,
        None => {
            let derivation = path(stage.system(about), ".drv")?;
            EventKind::Retried { derivation, quarantined: true, by: Asker::Local { user: None } }
        }
    };
    let stored = Outcome::after(held.and_then(outcome), generation(about), &kind)?;
    let end = if matches!(stored.kind, EventKind::Confirmed { .. }) { End::Confirmed } else { End::Failed };
    Some((u8::try_from(stored.generation.get()).ok()?, end))
}

fn seen(stage: &Stage, row: &Row, who: usize, plan: u8) -> Option<Seen> {
    let outcome = row.outcome.and_then(outcome);
    let age = if stage.breaks(Break::CountAway) { 0 } else { row.age };
    Some(Seen {
        revoked: false,
        seen_at: Some(NOW - i64::from(age) * tick_ms()),
        observed: row.told.as_ref().and_then(|told| observed(stage, told)),
        outcome,
        published: generation(row.published).filter(|_| row.published > 0),
        turn: turn(stage, row, who),
        named: row.published >= plan,
    })
}

fn facts(stage: &Stage, planned: &Planned, desk: &Desk, plan: u8) -> Option<Facts> {
    let by = stage.cast.key(crate::server::MACHINES);
    let wish = match desk.wishes[usize::from(plan - 1)] {
        _ if stage.breaks(Break::ForgetWish) => Wish::Run,
        Asked::Run => Wish::Run,
        Asked::Pause => Wish::Pause,
        Asked::Stop => Wish::Stop,
    };
    let (mut machines, mut members) = (BTreeMap::new(), BTreeMap::new());
    for who in stage.everyone() {
        let (name, row) = (stage.names[who].clone(), &desk.rows[who]);
        let recorded = row.recorded(plan);
        let word = |said, has: bool| has.then(|| planned.word(who, said, Signed::Itself));
        // A machine that was confirmed and is away, as if it had soaked.
        let counted = stage.breaks(Break::CountAway) && row.is_away(stage.patience) && recorded.confirmed;
        let kept = Recorded {
            confirmed: word(Word::Confirmed, recorded.confirmed),
            soaked: word(Word::Soaked, recorded.soaked || counted),
            withdrawn: word(Word::Withdrawn, recorded.withdrawn && !stage.breaks(Break::IgnoreWithdrawn)),
            failed: recorded.failed.then_some(Failure::RolledBack),
            forgiven: recorded.forgiven,
            void: Void::No,
        };
        machines.insert(name.clone(), seen(stage, row, who, plan)?);
        members.insert(name, kept);
    }
    Some(Facts {
        rollout: StoredRollout {
            plan: planned.hash,
            name: planned.plan.name.clone(),
            budget: planned.plan.budget,
            at: 0,
            by,
            asked: Some(Wished { wish, why: None, at: 0, by }),
            verdict: None,
            open: true,
        },
        brake: (desk.brake && !stage.breaks(Break::IgnoreBrake)).then_some(BrakeView {
            at: 0,
            by,
            why: None,
        }),
        machines,
        members,
    })
}

fn rule(stage: &Stage, desk: &Desk, number: u8, ask: Option<Ask>) -> Option<Ruling> {
    let planned = stage.plan(number)?;
    let mut facts = facts(stage, planned, desk, number)?;
    let mut plan = planned.plan.clone();
    loosen(stage, &mut plan);
    if stage.breaks(Break::ForgetGiven) {
        facts.machines.values_mut().filter_map(|seen| seen.turn.as_mut()).for_each(|turn| turn.until = None);
    }
    let is_signed = |_: &MachineName, _, _: &_| true;
    // A machine that was seen half a tick later than that is not.
    let away_ms = i64::from(stage.patience) * tick_ms() - tick_ms() / 2;
    let of = Of {
        hash: planned.hash,
        plan: &plan,
        epoch: Epoch::default(),
        away_ms,
        now: NOW,
        is_signed: &is_signed,
    };
    let operator = stage.cast.key(crate::server::MACHINES);
    let asks = ask.map(|ask| {
        let wish = match ask.wish {
            Asked::Run => Wish::Run,
            Asked::Pause => Wish::Pause,
            Asked::Stop => Wish::Stop,
        };
        AskRollout { wish, forgive: ask.forgive, why: None }
    });
    let context = || AuditContext { operator: &operator, at: 0 };
    let asking = asks.as_ref().map(|ask| (ask, context()));
    let decided = deciding::decide(&of, Some(&facts), asking).ok()?;
    let mut ruling = Ruling {
        desk: *desk,
        state: decided.answer.view.state,
        given: 0,
        fresh: 0,
        members: [None; MOST],
        mute: decided.answer.view.why.is_empty(),
    };
    for member in &decided.answer.view.members {
        let who = stage.number(&member.machine);
        ruling.members[who] = Some(member.state);
        ruling.mute |= member.why.is_empty();
    }
    for change in decided.changes {
        apply(stage, &mut ruling, number, change);
    }
    Some(ruling)
}

fn loosen(stage: &Stage, plan: &mut Plan) {
    if stage.breaks(Break::IgnoreBudget) {
        plan.budget = u32::MAX;
    }
    if stage.breaks(Break::IgnoreMaxInFlight) {
        plan.waves.iter_mut().for_each(|wave| wave.max_in_flight = 9);
    }
}

fn apply(stage: &Stage, ruling: &mut Ruling, plan: u8, change: Change) {
    let place = usize::from(plan - 1);
    match change {
        Change::TurnChanged(new) => {
            let who = stage.number(&new.machine);
            let row = &mut ruling.desk.rows[who];
            let until = new.turn.until.map(|until| (until - NOW).div_euclid(tick_ms()));
            let until = until.and_then(|ticks| i8::try_from(ticks).ok());
            if until.is_some_and(|until| until > 0) && !new.turn.taken_back && !row.has_leave() {
                ruling.given |= 1 << who;
                // Leave that was taken back, and would not have ended yet, has kept its place.
                let again = row.taken_back && row.until.is_some_and(|until| until >= 0);
                ruling.fresh |= u8::from(!again) << who;
            }
            if stage.breaks(Break::NeverTakeBack) && new.turn.taken_back {
                return;
            }
            if stage.breaks(Break::GiveOnce) && row.until.is_some_and(|until| until <= 0) {
                ruling.given &= !(1 << who);
                ruling.fresh &= ruling.given;
                return;
            }
            if stage.breaks(Break::ForgetGiven) && until.is_none() {
                return;
            }
            (row.until, row.taken_back) = (until, new.turn.taken_back);
        }
        Change::MemberFailed { failed, .. } => {
            ruling.desk.rows[stage.number(&failed.machine)].recorded[place].failed = true;
        }
        Change::MembersForgiven { machines, .. } => {
            for machine in machines {
                ruling.desk.rows[stage.number(&machine)].recorded[place].forgiven = true;
            }
        }
        Change::MemberTriesAgain { machine, .. } => {
            let recorded = &mut ruling.desk.rows[stage.number(&machine)].recorded[place];
            (recorded.failed, recorded.forgiven) = (false, false);
        }
        Change::RolloutAsked { asked, .. } => {
            ruling.desk.wishes[place] = match asked.wish {
                Wish::Run => Asked::Run,
                Wish::Pause => Asked::Pause,
                Wish::Stop => Asked::Stop,
            };
        }
        _ => {}
    }
}
