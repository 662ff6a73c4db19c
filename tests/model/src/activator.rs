//! The activator's steps, as `activator.rs` and `activator/run.rs` of the agent take them. What it does with a record that
//! it finds is `core::resume` as it ships.

use muster_agent::core::records::{
    Activation, ActivationPhase as Phase, GivenVerdict, Transaction, Unknown, VERSION,
};
use muster_agent::core::resume::{Resume, resume};
use muster_agent::core::state::State;
use muster_protocol::machine::Class;
use muster_protocol::report::Reason;
use muster_protocol::target::Action;

use crate::scene::{Behaviour, Break, Scene, System, number};
use crate::world::{Activator, Script, Step, World};

/// The last stage of a script; after it the script has ended.
const LAST: u8 = 2;

/// Its supervisor starts it; a second one finds the lock taken and ends.
pub fn start(world: &mut World) {
    if world.activator.is_none() {
        world.activator = Some(Activator { record: None, step: Step::Look });
    }
}

/// One change further; `None` where it waits.
pub fn step(world: &World, scene: &Scene) -> Option<World> {
    let mut next = world.clone();
    let step = next.activator.as_ref()?.step;
    match step {
        Step::Look => look(&mut next, scene),
        Step::Begin => {
            record(&mut next)?.starts += 1;
            write(&mut next, Phase::Recorded, Step::SetProfile);
        }
        Step::SetProfile => {
            let new = number(&record(&mut next)?.new);
            next.disk.profile = new;
            go(&mut next, Step::RecordProfile);
        }
        Step::RecordProfile => write(&mut next, Phase::ProfileSet, Step::RecordActivating),
        Step::RecordActivating => {
            let script = Script { system: number(&record(&mut next)?.new), stage: 0 };
            write(&mut next, Phase::Activating, Step::Activate(script));
        }
        Step::Activate(script) => return activate(next, scene, script),
        Step::RecordActivated => {
            record(&mut next)?.exit = Some(0);
            write(&mut next, Phase::Activated, Step::EnsureAgent);
        }
        Step::EnsureAgent => ensure(&mut next, scene, Step::Wait),
        Step::Wait => return wait(next),
        Step::Confirm => write(&mut next, Phase::Confirmed, Step::EnsureAfterConfirm),
        Step::EnsureAfterConfirm | Step::EnsureAfterUndo => ensure(&mut next, scene, Step::End),
        Step::RecordReboot => {
            record(&mut next)?.exit = Some(100);
            write(&mut next, Phase::AwaitingReboot, Step::End);
        }
        Step::RecordUndoing => write(&mut next, Phase::Undoing, Step::UndoProfile),
        Step::UndoProfile => undo_profile(&mut next, scene),
        Step::Undo(script) => undo(&mut next, scene, script),
        Step::RecordUndone => write(&mut next, Phase::Undone, Step::EnsureAfterUndo),
        Step::RecordUndoFailed => write(&mut next, Phase::UndoFailed, Step::EnsureAfterUndo),
        Step::End => next.activator = None,
    }
    Some(next)
}

/// The deadline passes, however late: NEW's activation is ended, or the wait for a verdict.
pub fn deadline(world: &World, scene: &Scene) -> Option<World> {
    if scene.breaks(Break::NoDeadline) {
        return None;
    }
    let mut next = world.clone();
    let missing = match (next.activator.as_ref()?.step, verdict(world)) {
        (Step::Wait, Some(GivenVerdict::Waiting { missing })) => missing,
        (Step::Wait, None) => Reason::Deadline,
        (Step::Activate(script), _) if scene.behaviour(script.system) == Behaviour::Hangs => Reason::Deadline,
        _ => return None,
    };
    begin_undo(&mut next, missing);
    Some(next)
}

/// A script whose activator was killed runs on.
pub fn leftover(world: &World, scene: &Scene) -> Option<World> {
    let mut next = world.clone();
    let script = next.leftover?;
    next.leftover = match stage(&mut next, scene, script) {
        Ran::On => Some(Script { stage: script.stage + 1, ..script }),
        Ran::Hangs => return None,
        Ran::Ended | Ran::Failed | Ran::NeedsReboot => None,
    };
    Some(next)
}

fn record(world: &mut World) -> Option<&mut Activation> {
    world.activator.as_mut()?.record.as_mut()
}

fn go(world: &mut World, step: Step) {
    if let Some(activator) = &mut world.activator {
        activator.step = step;
    }
}

fn write(world: &mut World, phase: Phase, step: Step) {
    let boot = world.boot_name();
    if let Some(record) = record(world) {
        (record.phase, record.boot) = (phase, boot);
        world.disk.activation = world.activator.as_ref().and_then(|activator| activator.record.clone());
    }
    go(world, step);
}

fn begin_undo(world: &mut World, reason: Reason) {
    if let Some(record) = record(world) {
        record.reason = Some(reason);
    }
    go(world, Step::RecordUndoing);
}

fn ensure(world: &mut World, scene: &Scene, step: Step) {
    if !scene.breaks(Break::LeaveAgentOut) {
        world.loaded = true;
    }
    go(world, step);
}

fn verdict(world: &World) -> Option<GivenVerdict> {
    let record = world.activator.as_ref()?.record.as_ref()?;
    let found = world.disk.confirmation.as_ref()?;
    (found.transaction == record.transaction).then(|| found.verdict.clone())
}

/// Which record it goes by, and what it does with it.
fn look(world: &mut World, scene: &Scene) {
    let (found, open) = (world.disk.activation.clone(), world.disk.transaction.clone());
    let (found, fresh) = match (found, open) {
        (Some(found), _) if !found.phase.is_final() => (found, false),
        (Some(found), Some(open)) if found.transaction == open.id => (found, false),
        (_, Some(open)) => match from_transaction(world, &open) {
            Some(made) => made,
            None => return world.activator = None,
        },
        _ => return world.activator = None,
    };
    if let Some(activator) = &mut world.activator {
        activator.record = Some(found.clone());
    }
    if fresh {
        return go(world, Step::Begin);
    }
    world.leftover = None;
    let new_runs = world.running == number(&found.new);
    let given = verdict(world);
    let mut decision = resume(&found, new_runs, &world.boot_name(), given.as_ref());
    if scene.breaks(Break::TrustHalfActivation) && found.phase == Phase::Activating && new_runs {
        decision = Resume::Wait;
    }
    match decision {
        Resume::Begin => go(world, Step::Begin),
        Resume::Wait => {
            if let Some(record) = record(world) {
                record.starts += 1;
            }
            write(world, Phase::Activated, Step::Wait);
        }
        Resume::Undo { reason, .. } => begin_undo(world, reason),
        Resume::Stay | Resume::Nothing => world.activator = None,
    }
}

fn from_transaction(world: &World, open: &Transaction) -> Option<(Activation, bool)> {
    let new_runs = world.running == number(open.output());
    let (phase, reason) = match &open.state {
        State::Activating => (Phase::Recorded, None),
        State::Probing => (Phase::Activated, None),
        State::AwaitingReboot if new_runs => (Phase::Activated, None),
        State::AwaitingReboot => (Phase::AwaitingReboot, None),
        State::RollingBack { reason, .. } => (Phase::Undoing, Some(*reason)),
        _ => return None,
    };
    let record = Activation {
        version: VERSION,
        transaction: open.id.clone(),
        class: open.class(),
        action: open.action(),
        new: open.output().clone(),
        old: open.old.clone().unwrap_or_default(),
        deadline_seconds: open.deadline_seconds(),
        boot: world.boot_name(),
        phase,
        starts: 0,
        exit: None,
        ms: 0,
        reason,
        detail: String::new(),
        undo_exit: None,
        degraded: Vec::new(),
        unknown: Unknown::new(),
    };
    Some((record, phase == Phase::Recorded))
}

enum Ran {
    On,
    Ended,
    Failed,
    Hangs,
    NeedsReboot,
}

/// One stage of a system's activation. NixOS: boot loader, the link, units. A Mac: daemons out, daemons in, the link.
fn stage(world: &mut World, scene: &Scene, script: Script) -> Ran {
    let behaviour = scene.behaviour(script.system);
    match (scene.class, script.stage) {
        (Class::Nixos, 0) => {
            world.disk.entry = script.system;
            if behaviour == Behaviour::NeedsReboot && world.running != script.system {
                return Ran::NeedsReboot;
            }
        }
        (Class::Nixos, 1) => world.running = script.system,
        (Class::Darwin, 0) => {
            if behaviour == Behaviour::ReloadsAgent || scene.behaviour(world.running) == Behaviour::ReloadsAgent {
                (world.agent, world.loaded) = (None, false);
            }
        }
        (Class::Darwin, 1) => match behaviour {
            Behaviour::Hangs => return Ran::Hangs,
            Behaviour::ActivationFails => {
                world.daemons = script.system;
                return Ran::Failed;
            }
            _ => world.daemons = script.system,
        },
        (Class::Darwin, _) => world.running = script.system,
        (Class::Nixos, _) => match behaviour {
            Behaviour::Hangs => return Ran::Hangs,
            Behaviour::ActivationFails => {
                world.daemons = script.system;
                return Ran::Failed;
            }
            _ => world.daemons = script.system,
        },
    }
    if scene.behaviour(world.daemons) == Behaviour::BreaksAgent {
        world.agent = None;
    }
    if script.stage >= LAST { Ran::Ended } else { Ran::On }
}

fn activate(mut world: World, scene: &Scene, script: Script) -> Option<World> {
    let action = record(&mut world)?.action;
    let ran = stage(&mut world, scene, script);
    let step = match ran {
        Ran::Hangs => return None,
        Ran::NeedsReboot => Step::RecordReboot,
        // `boot` writes the boot loader and nothing else.
        _ if action == Action::Boot => Step::RecordReboot,
        Ran::On => Step::Activate(Script { stage: script.stage + 1, ..script }),
        Ran::Ended => Step::RecordActivated,
        Ran::Failed => {
            record(&mut world)?.exit = Some(2);
            begin_undo(&mut world, Reason::ActivationFailed);
            return Some(world);
        }
    };
    go(&mut world, step);
    Some(world)
}

fn wait(mut world: World) -> Option<World> {
    match verdict(&world)? {
        GivenVerdict::Confirm { .. } => go(&mut world, Step::Confirm),
        GivenVerdict::Undo { reason, .. } => begin_undo(&mut world, reason),
        GivenVerdict::Waiting { .. } => return None,
    }
    Some(world)
}

fn old(world: &mut World, scene: &Scene) -> Option<System> {
    let old = record(world)?.old.clone();
    let system = if scene.breaks(Break::UndoToProfile) {
        old.profile.as_ref().or(old.running.as_ref())
    } else {
        old.system()
    };
    system.map(number)
}

fn undo_profile(world: &mut World, scene: &Scene) {
    match old(world, scene) {
        Some(system) => {
            world.disk.profile = system;
            go(world, Step::Undo(Script { system, stage: 0 }));
        }
        None => go(world, Step::RecordUndoFailed),
    }
}

fn undo(world: &mut World, scene: &Scene, script: Script) {
    let boot_alone = record(world).is_some_and(|record| record.action == Action::Boot)
        && record(world).map(|record| number(&record.new)) != Some(world.running);
    if scene.old_fails {
        return go(world, Step::RecordUndoFailed);
    }
    match stage(world, scene, script) {
        _ if boot_alone => go(world, Step::RecordUndone),
        Ran::On => go(world, Step::Undo(Script { stage: script.stage + 1, ..script })),
        // Success is believed only by looking.
        Ran::Ended if world.running == script.system && world.disk.profile == script.system => {
            go(world, Step::RecordUndone);
        }
        _ => go(world, Step::RecordUndoFailed),
    }
}
