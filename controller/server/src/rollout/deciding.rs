//! A rollout from its rows to what is written of it: what the engine is told, and what its decision changes.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::checkin::Phase;
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Epoch, MachineName, Sha256};
use muster_protocol::keys::Signature;
use muster_protocol::operator::{
    AskRollout, MemberState, MemberView, RolloutState, RolloutView, WaveView, Wish,
};
use muster_protocol::plan::{Failure, Plan, Said};
use muster_protocol::report::EventKind;

use super::engine::{Belongs, Decision, Given, LEAVE_MS, Member, Observed, Stage, decide as next};
use crate::core::audit::{AuditContext, NewEntry};
use crate::core::change::{Change, Decided};
use crate::core::rollouts::facts::{Facts, Seen, Void};
use crate::core::rollouts::{Asked, Failed, NewTurn, RolloutRefusal, StoredRollout, Verdict, cut, logged};

/// The rollout, and what does not come from its rows.
pub struct Of<'a> {
    pub hash: Sha256,
    pub plan: &'a Plan,
    /// The epoch of the newest root.
    pub epoch: Epoch,
    /// How long a machine may be silent before it counts as away, in milliseconds.
    pub away_ms: UnixMillis,
    pub now: UnixMillis,
    /// Whether the plan's key of this machine signed this.
    pub is_signed: &'a (dyn Fn(&MachineName, Said, &Signature) -> bool + Sync),
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Next {
    /// Machines whose leave has changed, or that hear for the first time what they wait for.
    pub rings: Vec<MachineName>,
    /// When to decide again although nothing changes.
    pub look_again: Option<UnixMillis>,
    pub view: RolloutView,
}

/// An operator's wish, and who has it.
pub type Asking<'a> = (&'a AskRollout, AuditContext<'a>);

/// Decides about a rollout, after an operator asked something of it or at any time.
pub fn decide(
    of: &Of<'_>,
    facts: Option<&Facts>,
    asking: Option<Asking<'_>>,
) -> Result<Decided<Next>, RolloutRefusal> {
    let facts = facts.ok_or(RolloutRefusal::Unknown(of.hash))?;
    let names = || of.plan.waves.iter().flat_map(|wave| &wave.members);
    let mut members: BTreeMap<MachineName, Member> =
        names().map(|name| (name.clone(), member(of, facts, name))).collect();
    let mut changes = Vec::new();
    for (name, member) in &mut members {
        if let Some(failure) = new_failure(of.plan, member, facts, name) {
            member.failed = Some(failure);
            let failed = Failed { machine: name.clone(), failure };
            changes.push(Change::MemberFailed { plan: of.hash, failed });
        }
    }
    let mut forgiven: BTreeSet<MachineName> = facts
        .members
        .iter()
        .filter(|(_, recorded)| recorded.forgiven)
        .map(|(name, _)| name.clone())
        .collect();
    let mut asked = facts.rollout.asked.clone();
    if let Some(asking) = &asking {
        let wished = wish(of, facts, asking)?;
        if let Some(wished) = wished {
            changes.extend(logged_wish(of, facts, &wished, asking));
            asked = Some(wished);
        }
        let new: Vec<MachineName> = members
            .iter()
            .filter(|(name, member)| asking.0.forgive && is_blamed(member) && !forgiven.contains(*name))
            .map(|(name, _)| name.clone())
            .collect();
        if !new.is_empty() {
            forgiven.extend(new.iter().cloned());
            let detail = format!("{}: machines {}", titled(&facts.rollout), new.len());
            changes.push(Change::MembersForgiven { plan: of.hash, machines: new });
            changes.push(Change::Audited(NewEntry::by(&asking.1, "rollout-failures-forgiven", detail)));
        }
    }
    for (name, member) in &mut members {
        // Another failure is another one to look at. A revocation is none that could be tried again.
        let tries = member.failed.is_some() && member.stage == Stage::Switching && !member.is_revoked();
        if tries && forgiven.remove(name) {
            member.failed = None;
            changes.push(Change::MemberTriesAgain { plan: of.hash, machine: name.clone() });
        }
    }
    let proven = proven(of, facts);
    let decision = match of.plan.epoch == of.epoch {
        true => next(&Observed {
            plan: of.plan,
            wish: asked.as_ref().map_or(Wish::Run, |asked| asked.wish),
            wish_why: asked.as_ref().and_then(|asked| asked.why.as_deref()),
            brake: facts.brake.as_ref().map(|brake| brake.why.as_deref().unwrap_or_default()),
            members: &members,
            proven: &proven,
            forgiven: &forgiven,
            away_ms: of.away_ms,
            now: of.now,
        }),
        false => outdated(of, &members),
    };
    // It may have begun before it hears of that, and counts until then; it is told why it must not.
    let held = |name: &MachineName| members.get(name).is_some_and(|one| one.stage != Stage::Switching);
    Ok(written(of, facts, changes, decision, held))
}

/// A plan of another epoch: nothing that names it can be signed any more.
fn outdated(of: &Of<'_>, members: &BTreeMap<MachineName, Member>) -> Decision {
    let why = "a new epoch has begun, and every machine gets other generations in it";
    let has_leave = |member: &Member| member.leave.is_some_and(|given| !given.taken_back);
    let view = |wave: &muster_protocol::plan::Wave| WaveView {
        name: wave.name.clone(),
        at_least: wave.at_least,
        soak_seconds: wave.soak_seconds,
        max_in_flight: wave.max_in_flight,
        left: u32::try_from(wave.members.len()).unwrap_or(u32::MAX),
        ..WaveView::default()
    };
    Decision {
        state: RolloutState::Superseded,
        why: why.to_owned(),
        failures: 0,
        leave: Vec::new(),
        take_back: members.iter().filter(|(_, one)| has_leave(one)).map(|(name, _)| name.clone()).collect(),
        members: members.keys().map(|name| (name.clone(), (MemberState::Left, why.to_owned()))).collect(),
        waves: of.plan.waves.iter().map(view).collect(),
        look_again: None,
    }
}

/// What is written of a decision: only what differs from what is stored.
fn written(
    of: &Of<'_>,
    facts: &Facts,
    mut changes: Vec<Change>,
    decision: Decision,
    is_held: impl Fn(&MachineName) -> bool,
) -> Decided<Next> {
    let Decision { state, why, failures, leave, take_back, mut members, waves, look_again } = decision;
    let (leave, take_back): (BTreeSet<_>, BTreeSet<_>) =
        (leave.into_iter().collect(), take_back.into_iter().collect());
    let (mut rings, mut changed, mut turns) = (Vec::new(), Vec::new(), Vec::new());
    let whole = why.clone();
    for (name, (state, why)) in &mut members {
        let Some(seen) = facts.machines.get(name) else { continue };
        let here = seen.turn.as_ref().filter(|turn| turn.at.plan == of.hash);
        let (Some(held), Some(generation)) = (here, seen.published) else { continue };
        let mut turn = held.clone();
        // A machine that is ready hears at once what it waits for; later changes of that come with its
        // check-ins.
        let waits = *state == MemberState::Waiting && held.at.state != MemberState::Waiting;
        let rings_it = waits || leave.contains(name) || take_back.contains(name);
        if leave.contains(name) {
            (turn.until, turn.taken_back) = (Some(of.now.saturating_add(LEAVE_MS)), false);
        } else if take_back.contains(name) {
            turn.taken_back = true;
        }
        if turn.taken_back && *state == MemberState::InFlight && is_held(name) {
            why.clone_from(&whole);
        }
        (turn.at.state, turn.at.why) = (*state, cut(why));
        if turn != *held {
            if rings_it {
                rings.push(name.clone());
            }
            let new = NewTurn { machine: name.clone(), generation, turn, rings: rings_it };
            turns.push(Change::TurnChanged(Box::new(new)));
            changed.push(name.clone());
        }
    }
    changes.extend(turns);
    let published = facts.machines.values().any(|seen| seen.named);
    let verdict = Verdict { state, why, failures, waves, published };
    if facts.rollout.verdict.as_ref() != Some(&verdict) {
        let was = facts.rollout.verdict.as_ref().map(|verdict| verdict.state);
        if state == RolloutState::Halted && was != Some(RolloutState::Halted) {
            let detail = logged(&titled(&facts.rollout), Some(&verdict.why));
            changes.push(Change::Audited(NewEntry::by_itself(of.now, "rollout-halted", detail)));
        }
        changes.push(Change::RolloutDecided { plan: of.hash, verdict: verdict.clone() });
    }
    if !changes.is_empty() {
        // Whoever follows the fleet looks again, also where no machine's own row has changed.
        let first = changed.is_empty().then(|| facts.machines.keys().next().cloned()).flatten();
        let told = changed.into_iter().chain(first);
        changes.extend(told.map(|machine| Change::MachineChanged { machine }));
    }
    let mut view = view(&facts.rollout, Some(&verdict));
    view.members = shown(of, facts, &members);
    Decided { changes, answer: Next { rings, look_again, view } }
}

/// Each machine, by wave and in the plan's order.
fn shown(
    of: &Of<'_>,
    facts: &Facts,
    members: &BTreeMap<MachineName, (MemberState, String)>,
) -> Vec<MemberView> {
    let mut views = Vec::with_capacity(members.len());
    for (number, wave) in (0_u32..).zip(&of.plan.waves) {
        for name in &wave.members {
            let Some((state, why)) = members.get(name) else { continue };
            let recorded = facts.members.get(name);
            let said = recorded.and_then(|recorded| {
                let mut said = recorded.said().filter(|(said, by)| (of.is_signed)(name, *said, by));
                said.next().map(|(said, _)| said)
            });
            let (machine, state, why) = (name.clone(), *state, why.clone());
            views.push(MemberView { machine, wave: number, state, why, said });
        }
    }
    views
}

/// A rollout as operators see it, without its machines.
pub fn view(rollout: &StoredRollout, verdict: Option<&Verdict>) -> RolloutView {
    RolloutView {
        plan: rollout.plan,
        name: rollout.name.clone(),
        at: rollout.at,
        by: rollout.by,
        state: verdict.map_or(RolloutState::Running, |verdict| verdict.state),
        why: verdict.map_or_else(|| "it is about to be decided".to_owned(), |verdict| verdict.why.clone()),
        budget: rollout.budget,
        failures: verdict.map_or(0, |verdict| verdict.failures),
        waves: verdict.map(|verdict| verdict.waves.clone()).unwrap_or_default(),
        published: verdict.is_some_and(|verdict| verdict.published),
        members: Vec::new(),
    }
}

fn titled(rollout: &StoredRollout) -> String {
    format!("{} {}", rollout.name, rollout.plan.short())
}

/// What the operator asks, if it is something new.
fn wish(of: &Of<'_>, facts: &Facts, (ask, by): &Asking<'_>) -> Result<Option<Asked>, RolloutRefusal> {
    let held = facts.rollout.asked.as_ref();
    let wish = held.map_or(Wish::Run, |held| held.wish);
    if wish == Wish::Stop && ask.wish != Wish::Stop {
        return Err(RolloutRefusal::Stopped(titled(&facts.rollout)));
    }
    if wish == ask.wish {
        return Ok(None);
    }
    let (why, at, by) = (ask.why.as_deref().map(cut), of.now.max(by.at), *by.operator);
    Ok(Some(Asked { wish: ask.wish, why, at, by }))
}

fn logged_wish(of: &Of<'_>, facts: &Facts, asked: &Asked, (_, by): &Asking<'_>) -> [Change; 2] {
    let action = match asked.wish {
        Wish::Run => "rollout-resumed",
        Wish::Pause => "rollout-paused",
        Wish::Stop => "rollout-stopped",
    };
    let detail = logged(&titled(&facts.rollout), asked.why.as_deref());
    [
        Change::RolloutAsked { plan: of.hash, asked: asked.clone() },
        Change::Audited(NewEntry::by(by, action, detail)),
    ]
}

/// Whether the machine holds the rollout back by what became of it.
fn is_blamed(member: &Member) -> bool {
    let degraded = member.stage == Stage::Confirmed && member.degraded;
    member.failed.is_some() || member.stage == Stage::Failed || degraded || member.is_revoked()
}

/// The statements that the plan's keys signed.
fn proven(of: &Of<'_>, facts: &Facts) -> BTreeSet<(MachineName, Said)> {
    let mut proven = BTreeSet::new();
    for (name, recorded) in &facts.members {
        let signed = recorded.said().filter(|(said, by)| (of.is_signed)(name, *said, by));
        proven.extend(signed.map(|(said, _)| (name.clone(), said)));
    }
    proven
}

/// What is known of a machine of the plan.
fn member(of: &Of<'_>, facts: &Facts, name: &MachineName) -> Member {
    let recorded = facts.members.get(name);
    let failed = recorded.and_then(|recorded| recorded.failed);
    let was_revoked = recorded.is_some_and(|recorded| recorded.void == Void::Revoked);
    let Some(seen) = facts.machines.get(name) else {
        return Member { belongs: Belongs::Gone, failed, was_revoked, ..Member::default() };
    };
    let here = seen.turn.as_ref().filter(|turn| turn.at.plan == of.hash);
    let belongs = match (seen.revoked, here) {
        (true, _) => Belongs::Revoked,
        (false, Some(_)) => Belongs::Here,
        (false, None) if seen.named => Belongs::Elsewhere,
        (false, None) => Belongs::Unpublished,
    };
    let leave = here.and_then(|turn| Some(Given { until: turn.until?, taken_back: turn.taken_back }));
    Member {
        // One that has only enrolled has said nothing yet.
        seen: seen.seen_at.filter(|_| seen.observed.is_some()),
        belongs,
        stage: if belongs == Belongs::Here { stage(of.hash, seen) } else { Stage::Behind },
        // One that waits for its turn repeats what it was told.
        note: seen
            .observed
            .as_ref()
            .filter(|observed| observed.awaits.is_none())
            .and_then(|observed| observed.note.clone()),
        leave,
        failed,
        degraded: is_degraded(seen),
        was_revoked,
    }
}

/// What its last report on its latest generation says.
fn outcome(seen: &Seen) -> Option<&EventKind> {
    seen.outcome.as_ref().filter(|outcome| Some(outcome.generation) == seen.published).map(|one| &one.kind)
}

/// Where a machine is with its latest generation. Whether it failed for good is in its report: one that was
/// undone only because the controller could not be reached is tried again, and so is what failed before its
/// activation for a reason that passes.
fn stage(plan: Sha256, seen: &Seen) -> Stage {
    let outcome = outcome(seen);
    let Some(observed) = &seen.observed else { return Stage::Behind };
    let about = observed.phase_generation.is_some() && observed.phase_generation == seen.published;
    let runs = observed.runs.as_ref().and_then(|runs| runs.generation);
    let by_phase = about && observed.phase == Phase::Confirmed;
    if by_phase || (runs.is_some() && runs == seen.published) {
        return Stage::Confirmed;
    }
    match observed.phase {
        Phase::Activating | Phase::Probing | Phase::RollingBack | Phase::AwaitingReboot if about => {
            return Stage::Switching;
        }
        Phase::NeedsHuman if about => return Stage::Failed,
        // Its report is on the way, also where an earlier one says that it was confirmed.
        Phase::RolledBack if about && matches!(outcome, None | Some(EventKind::Confirmed { .. })) => {
            return Stage::Switching;
        }
        _ => {}
    }
    match outcome {
        Some(EventKind::NeedsHuman { .. }) => Stage::Failed,
        Some(
            EventKind::RolledBack { quarantined: true, .. } | EventKind::Failed { quarantined: true, .. },
        ) => Stage::Failed,
        Some(EventKind::Confirmed { .. }) => Stage::Confirmed,
        _ if observed.awaits == Some(plan) => Stage::Ready,
        _ => Stage::Behind,
    }
}

/// What the machine sees now counts more than what it reported at the switch.
fn is_degraded(seen: &Seen) -> bool {
    let at_the_switch =
        matches!(outcome(seen), Some(EventKind::Confirmed { degraded, .. }) if !degraded.is_empty());
    let now = seen.observed.as_ref().and_then(|observed| observed.health.degraded.as_ref());
    now.map_or(at_the_switch, |units| !units.is_empty())
}

/// A failure that is to be recorded: the first one of a kind that counts in this plan.
fn new_failure(plan: &Plan, member: &Member, facts: &Facts, name: &MachineName) -> Option<Failure> {
    let seen = facts.machines.get(name)?;
    if member.failed.is_some() || member.belongs != Belongs::Here {
        return None;
    }
    let needs_human = seen.observed.as_ref().is_some_and(|observed| observed.phase == Phase::NeedsHuman)
        || matches!(outcome(seen), Some(EventKind::NeedsHuman { .. }));
    let failure = match member.stage {
        Stage::Failed if needs_human => Failure::NeedsHuman,
        Stage::Failed => Failure::RolledBack,
        Stage::Confirmed if member.degraded => Failure::Degraded,
        _ => return None,
    };
    plan.failures.contains(&failure).then_some(failure)
}

#[cfg(test)]
mod tests;
