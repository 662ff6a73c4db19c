//! A machine's condition: one pure function of what is known about it and the time, used everywhere.

use muster_protocol::checkin::{CheckIn, Phase};
use muster_protocol::clock::UnixMillis;
use muster_protocol::operator::{Condition, MachineView, Published, Standing};
use muster_protocol::report::EventKind;
use muster_protocol::target::Action;

use super::rows::Machine;

/// How long a machine may be silent before it counts as offline.
fn silence_ms(poll_seconds: u64) -> i64 {
    i64::try_from(poll_seconds)
        .unwrap_or(i64::MAX / 4000)
        .saturating_mul(3)
        .saturating_add(120)
        .saturating_mul(1000)
}

/// A machine that works on a generation does not block on a long poll: it polls all the time, so its absence
/// shows sooner.
fn silence_at_work_ms(poll_seconds: u64) -> i64 {
    i64::try_from(poll_seconds).unwrap_or(i64::MAX / 4000).saturating_add(45).saturating_mul(1000)
}

/// Decides a machine's condition. What is unknown is never healthy.
pub fn condition(machine: &Machine, poll_seconds: u64, now: UnixMillis) -> Condition {
    match machine.standing() {
        Standing::Invited => return Condition::Invited,
        Standing::Revoked => return Condition::Revoked,
        Standing::Enrolled => {}
    }
    let silent = |seen: UnixMillis| now.saturating_sub(seen) > silence_ms(poll_seconds);
    if machine.seen_at.is_none_or(silent) {
        return Condition::Offline;
    }
    let observed = machine.observed.as_ref();
    if machine.clone_alarm_at.is_some() || observed.is_some_and(|observed| observed.refused.is_some()) {
        return Condition::UnderAttack;
    }
    match (&machine.published, observed) {
        (None, _) => Condition::NoGeneration,
        (Some(_), None) => Condition::Updating,
        (Some(published), Some(observed)) => match progress(machine, published, observed) {
            Condition::Updating => at_work(machine, poll_seconds, now),
            other => other,
        },
    }
}

/// The condition of a machine that has not reached its generation: only one that is online and not paused is
/// updating.
fn at_work(machine: &Machine, poll_seconds: u64, now: UnixMillis) -> Condition {
    let silent = |seen: UnixMillis| now.saturating_sub(seen) > silence_at_work_ms(poll_seconds);
    let observed = machine.observed.as_ref();
    let paused = observed.and_then(|observed| observed.health.paused_until).is_some_and(|until| until > now);
    // An activation that has begun is finished even while paused.
    let begun = observed.is_some_and(|observed| {
        matches!(
            observed.phase,
            Phase::Activating | Phase::Probing | Phase::RollingBack | Phase::AwaitingReboot
        )
    });
    match (machine.seen_at.is_none_or(silent), paused && !begun) {
        (true, _) => Condition::Offline,
        (false, true) => Condition::Paused,
        (false, false) => Condition::Updating,
    }
}

/// Where a machine is on the way to its latest generation.
fn progress(machine: &Machine, published: &Published, observed: &CheckIn) -> Condition {
    let latest = published.target.generation;
    let outcome = machine.outcome.as_ref().filter(|outcome| outcome.generation == latest).map(|o| &o.kind);
    let phase = (observed.phase_generation == Some(latest)).then_some(observed.phase);
    if observed.phase == Phase::NeedsHuman {
        return Condition::NeedsHuman;
    }
    let at_the_switch =
        matches!(outcome, Some(EventKind::Confirmed { degraded, .. }) if !degraded.is_empty());
    // What the machine sees now takes precedence over what it reported at the switch.
    let degraded = observed.health.degraded.as_ref().map_or(at_the_switch, |units| !units.is_empty());
    let healthy = if degraded { Condition::Degraded } else { Condition::UpToDate };
    if confirmed(published, observed) {
        return healthy;
    }
    match phase {
        Some(Phase::RolledBack) => Condition::RolledBack,
        Some(Phase::Failed) => Condition::Failed,
        // It was confirmed once and now runs something else: somebody changed it by hand, and it stays that
        // way.
        Some(Phase::Confirmed) => match outcome {
            Some(EventKind::Confirmed { .. }) => Condition::NeedsHuman,
            _ => Condition::Updating,
        },
        // It is idle: its last report is the outcome.
        Some(Phase::Idle | Phase::Unknown) | None => match outcome {
            Some(EventKind::RolledBack { .. }) => Condition::RolledBack,
            Some(EventKind::Failed { .. }) => Condition::Failed,
            Some(EventKind::NeedsHuman { .. }) => Condition::NeedsHuman,
            // An event may arrive before the check-in that shows it.
            _ => Condition::Updating,
        },
        Some(_) => Condition::Updating,
    }
}

/// Whether the machine says that it has confirmed the latest generation, and is seen to run it.
fn confirmed(published: &Published, observed: &CheckIn) -> bool {
    let latest = published.target.generation;
    let by_phase = observed.phase == Phase::Confirmed && observed.phase_generation == Some(latest);
    // Nothing is expected to run after a dry activation, nor after the reboot that ends a trial.
    if matches!(published.target.action, Action::DryActivate | Action::Test) && by_phase {
        return true;
    }
    observed.runs.as_ref().is_some_and(|runs| {
        runs.running == published.target.output && (runs.generation == Some(latest) || by_phase)
    })
}

/// What operators see of a machine.
pub fn view(machine: Machine, poll_seconds: u64, now: UnixMillis) -> MachineView {
    let (condition, standing) = (condition(&machine, poll_seconds, now), machine.standing());
    let observed = machine.observed;
    let claim = observed.as_ref().and_then(|observed| observed.age.clone());
    MachineView {
        machine: machine.name,
        class: machine.class,
        system: machine.system,
        tags: machine.tags,
        standing,
        condition,
        published: machine.published,
        phase: observed.as_ref().map(|observed| observed.phase),
        phase_generation: observed.as_ref().and_then(|observed| observed.phase_generation),
        note: observed.as_ref().and_then(|observed| observed.note.clone()),
        refused: observed.as_ref().and_then(|observed| observed.refused),
        // An event may arrive after the check-in that says that the attack is over.
        attack: machine
            .attack
            .filter(|_| observed.as_ref().is_some_and(|observed| observed.refused.is_some())),
        clone_alarm: machine.clone_alarm_at.is_some(),
        clone_alarm_at: machine.clone_alarm_at,
        holds: observed.as_ref().map(|observed| observed.holds).unwrap_or_default(),
        health: observed.as_ref().map(|observed| observed.health.clone()).unwrap_or_default(),
        agent: machine.agent,
        age_proof: claim.as_ref().and_then(|claim| claim.proof),
        age: claim.map(|claim| claim.recipient).or(machine.age),
        generations_forgotten: machine.generations_forgotten,
        shown: observed.as_ref().and_then(|observed| observed.shown.clone()),
        runs: observed.and_then(|observed| observed.runs),
        key: machine.key,
        signing: None,
        understands: Vec::new(),
        key_rotated_at: machine.key_rotated_at,
        key_rotation_asked: machine.key_rotation_asked_at.is_some(),
        enrolled_at: machine.enrolled_at,
        last_seen: machine.seen_at,
        clock_skew_ms: machine.clock_skew_ms,
    }
}

#[cfg(test)]
mod tests;
