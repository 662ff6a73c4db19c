//! What must hold: in every moment, and of what every moment leads to.

use std::collections::BTreeMap;

use muster_agent::core::records::ActivationPhase as Phase;
use muster_agent::core::state::State;
use muster_protocol::machine::Class;

use crate::scene::{Behaviour, Scene};
use crate::world::World;

/// What does not hold in this moment, if anything.
pub fn violated(world: &World, scene: &Scene) -> Option<String> {
    if let Some(seen) = &world.history.violation {
        return Some(seen.clone());
    }
    told_once(world).or_else(|| settled_well(world, scene)).or_else(|| undone_for_nothing(world, scene))
}

/// A generation that is well is not undone where nothing went wrong.
fn undone_for_nothing(world: &World, scene: &Scene) -> Option<String> {
    let well = |behaviour| {
        use Behaviour as B;
        matches!(behaviour, B::Good | B::ReloadsAgent | B::LosesAgent | B::ChangesBootJob)
    };
    let all_well = scene.published.iter().all(|published| well(published.behaviour));
    let undone = world.disk.told.iter().any(|told| told.kind == "rolled-back Deadline");
    (all_well && undone && world.budget.faults == scene.budget.faults)
        .then(|| "a generation that is well was undone though nothing went wrong".to_owned())
}

/// I3 and I7: of one transaction each step is told once, and exactly one end.
fn told_once(world: &World) -> Option<String> {
    let mut counts: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    let mut ends: BTreeMap<&str, u32> = BTreeMap::new();
    for told in &world.disk.told {
        *counts.entry((&told.transaction, &told.kind)).or_default() += 1;
        if is_end(&told.kind) {
            *ends.entry(&told.transaction).or_default() += 1;
        }
    }
    let twice = counts.into_iter().find(|(_, count)| *count > 1);
    if let Some(((transaction, kind), _)) = twice {
        return Some(format!("I7: '{kind}' of {transaction} is told twice"));
    }
    let ended_twice = ends.into_iter().find(|(_, count)| *count > 1);
    ended_twice.map(|(transaction, _)| format!("I3: two ends of {transaction} are told"))
}

fn is_end(kind: &str) -> bool {
    kind.starts_with("rolled-back") || matches!(kind, "confirmed" | "failed" | "needs-human")
}

/// I3: where nothing is under way, profile, boot entry, link, daemons and users are of one system, and it is
/// OLD or NEW.
fn settled_well(world: &World, scene: &Scene) -> Option<String> {
    // Before the first activation the machine is as somebody else left it.
    let untouched = world.history.highest == 0;
    if !is_at_rest(world) || gave_up(world) || untouched {
        return None;
    }
    let on = world.running;
    let entry = if scene.class == Class::Nixos { world.disk.entry } else { on };
    if (world.disk.profile, world.daemons, entry) != (on, on, on) {
        let (profile, daemons) = (world.disk.profile, world.daemons);
        return Some(format!(
            "I3: at rest it runs system {on} with the daemons of {daemons}, and profile {profile} and boot \
             entry {entry}"
        ));
    }
    if scene.class == Class::Darwin && (world.users, world.plists) != (on, 1 << on) {
        let (users, plists) = (world.users, world.plists);
        return Some(format!(
            "I3: at rest it runs system {on} with the users of {users} and launchd jobs of the systems \
             {plists:#b}"
        ));
    }
    if on != world.history.old && on != world.history.new {
        return Some(format!("I3: at rest it runs system {on}, which is neither OLD nor NEW"));
    }
    let bad = scene.behaviour(on);
    if matches!(
        bad,
        Behaviour::BreaksAgent | Behaviour::CutsNetwork | Behaviour::Ill | Behaviour::DoesNotBoot
    ) {
        return Some(format!("I4: at rest it runs a system that is {bad:?}"));
    }
    None
}

/// Nothing is open that was begun to be activated, and nothing runs.
fn is_at_rest(world: &World) -> bool {
    let before = world.disk.transaction.as_ref().is_none_or(|open| open.state.is_before_activation());
    let over = world.disk.activation.as_ref().is_none_or(|record| record.phase.is_final());
    before && over && world.activator.is_none() && world.leftover.is_none() && !world.job
}

/// Neither NEW nor OLD could be activated: only a person can help.
fn gave_up(world: &World) -> bool {
    let open = world.disk.transaction.as_ref();
    open.is_some_and(|open| matches!(open.state, State::UndoFailed { .. }))
        || world.disk.told.iter().any(|told| told.kind == "needs-human")
}

/// A generation that waits for a reboot has done its part.
fn awaits_reboot(world: &World) -> bool {
    let record = world.disk.activation.as_ref();
    let waits = record
        .is_some_and(|record| record.phase == Phase::AwaitingReboot && record.boot == world.boot_name());
    waits && world.activator.is_none()
}

/// I4: every moment leads to one like this by what the machine does alone, without network, agent's luck or a
/// person.
pub fn machine_is_safe(world: &World) -> bool {
    let over = world.disk.activation.as_ref().is_none_or(|record| record.phase.is_final());
    let begun = world.disk.transaction.as_ref().is_some_and(|open| {
        matches!(open.state, State::Activating | State::Probing | State::RollingBack { .. })
    });
    world.activator.is_none() && world.leftover.is_none() && (over && !begun || awaits_reboot(world))
}

/// I3 and I7: every moment leads to one like this once the network is back: all is settled, told, stored,
/// forgotten.
pub fn all_is_told(world: &World, scene: &Scene) -> bool {
    let told = world.disk.told.len();
    let open = world.disk.transaction.is_some();
    let quiet = world.agent.as_ref().is_some_and(|agent| agent.todo.is_empty());
    quiet
        && (!open || awaits_reboot(world))
        && (!scene.reports || (world.disk.stored, world.disk.acknowledged) == (told, told))
}
