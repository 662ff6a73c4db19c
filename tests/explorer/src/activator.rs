//! The activator: `core::activate` says the steps, as it ships; here they are done to the machine, and a kill
//! or a power cut comes between any two of them, or in the middle of a system's own script.

use std::time::Duration;

use muster_agent::core::activate::{Act, Ailing, Course, Done, Outcome, Ran, Sight};
use muster_agent::core::records::{Activation, ActivationPhase as Phase, GivenVerdict, Transaction};
use muster_agent::core::state::State;
use muster_protocol::machine::Class;
use muster_protocol::target::Action;

use crate::scene::{Behaviour, Break, Scene, System, number, path};
use crate::world::{Activator, Script, World};

/// The last stage of a script; after it the script has ended.
const LAST: u8 = 2;
/// Before the deadline, and late enough for a note of the time: a sixteenth of a rollback's 300 seconds, or
/// of 60.
const SOON: Duration = Duration::from_secs(30);
/// Behind every deadline.
const LATE: Duration = Duration::from_secs(100_000);

/// Its supervisor starts it; a second one finds the lock taken and ends. The next boot starts it as well,
/// until it ends.
pub fn start(world: &mut World, scene: &Scene) {
    world.job = !scene.breaks(Break::NoRestart);
    world.disk.boot_job = !scene.breaks(Break::NoStartAtBoot);
    if world.activator.is_none() {
        world.activator = Some(Activator { course: None, script: None });
    }
}

/// Its supervisor starts it again: it was killed, or the machine has booted.
pub fn restart(world: &World) -> Option<World> {
    if world.activator.is_some() || !world.job {
        return None;
    }
    Some(World { activator: Some(Activator { course: None, script: None }), ..world.clone() })
}

/// One change further; `None` where it waits.
pub fn step(world: &World, scene: &Scene) -> Option<World> {
    further(world, scene, Duration::ZERO)
}

/// The deadline passes, however late: NEW's activation is ended, or the wait for a verdict.
pub fn deadline(world: &World, scene: &Scene) -> Option<World> {
    if scene.breaks(Break::NoDeadline) {
        return None;
    }
    let activator = world.activator.as_ref()?;
    match activator.script {
        Some(script) if scene.behaviour(script.system) == Behaviour::Hangs => {
            let mut next = world.clone();
            done(&mut next, Done::Ran(Ran { timed_out: true, ..ran(Outcome::Failed, 143) }));
            Some(next)
        }
        Some(_) => None,
        None => {
            let course = activator.course.as_ref()?;
            let waits = matches!(course.clone().next(&sight(world).as_sight(Duration::ZERO)), Act::Pause(_));
            if waits { further(world, scene, LATE) } else { None }
        }
    }
}

/// The disk does not take the record.
pub fn full_disk(world: &World) -> Option<World> {
    let mut next = world.clone();
    let eyes = sight(world);
    let course = next.activator.as_mut()?.course.as_mut()?;
    if course.next(&eyes.as_sight(Duration::ZERO)) != Act::Write {
        return None;
    }
    done(&mut next, Done::Failed("no space".into()));
    Some(next)
}

/// A script whose activator was killed runs on.
pub fn leftover(world: &World, scene: &Scene) -> Option<World> {
    let mut next = world.clone();
    let script = next.leftover?;
    next.leftover = match stage(&mut next, scene, script) {
        Stage::On => Some(Script { stage: script.stage + 1, ..script }),
        Stage::Hangs => return None,
        Stage::Ended(_) => None,
    };
    Some(next)
}

/// What an activator sees.
struct Eyes {
    running: Option<muster_protocol::ids::StorePath>,
    profile: Option<muster_protocol::ids::StorePath>,
    verdict: Option<GivenVerdict>,
}

impl Eyes {
    fn as_sight(&self, now: Duration) -> Sight<'_> {
        Sight {
            running: self.running.as_ref(),
            profile: self.profile.as_ref(),
            verdict: self.verdict.as_ref(),
            now,
        }
    }
}

fn sight(world: &World) -> Eyes {
    let record = world.activator.as_ref().and_then(|activator| activator.course.as_ref());
    let id = record.map(|course| course.record.transaction.clone());
    let id = id.or_else(|| world.disk.activation.as_ref().map(|record| record.transaction.clone()));
    let given = world.disk.confirmation.as_ref().filter(|given| Some(&given.transaction) == id.as_ref());
    Eyes {
        running: path(world.running),
        profile: path(world.disk.profile),
        verdict: given.map(|given| given.verdict.clone()),
    }
}

fn done(world: &mut World, what: Done) {
    let eyes = sight(world);
    if let Some(activator) = &mut world.activator {
        activator.script = None;
        if let Some(course) = &mut activator.course {
            course.done(what, &eyes.as_sight(Duration::ZERO));
        }
    }
}

fn further(world: &World, scene: &Scene, now: Duration) -> Option<World> {
    let mut next = world.clone();
    let activator = next.activator.as_mut()?;
    if activator.course.is_none() {
        look(&mut next, scene);
        return Some(next);
    }
    if let Some(script) = activator.script {
        return run(next, scene, script);
    }
    let eyes = sight(world);
    let course = activator.course.as_mut()?;
    let act = course.next(&eyes.as_sight(now));
    match act {
        Act::Write => {
            next.disk.activation = Some(course.record.clone());
            done(&mut next, Done::Well);
        }
        Act::AskOthers => done(&mut next, Done::Others(None)),
        Act::SetProfile(system) => {
            next.disk.profile = number(&system);
            done(&mut next, Done::Well);
        }
        Act::Run { system, action, .. } => {
            activator.script = Some(Script { system: number(&system), action, stage: 0 });
        }
        Act::RemoveProfile => done(&mut next, Done::Well),
        Act::Tidy { from, to } => {
            for from in from.iter().map(number) {
                if from != number(&to) && !scene.breaks(Break::LeaveDaemons) {
                    next.plists &= !(1 << from);
                }
            }
            done(&mut next, Done::Well);
        }
        Act::EnsureAgent { from, to } => {
            // Of all systems only one that breaks the agent brings another unit of it, so only there it is
            // restarted.
            let breaks = |system| scene.behaviour(system) == Behaviour::BreaksAgent;
            let other = from.is_some_and(|from| breaks(number(&from)) != breaks(number(&to)));
            if scene.class == Class::Nixos && other && !scene.breaks(Break::KeepOldAgent) {
                next.agent = None;
            }
            next.loaded |= !scene.breaks(Break::LeaveAgentOut);
            done(&mut next, Done::Well);
        }
        // A pause of one that waits for a verdict changes nothing; one between two tries passes.
        Act::Pause(_) => {
            let before = course.clone();
            course.done(Done::Well, &eyes.as_sight(Duration::ZERO));
            if *course == before {
                // While it waits it notes from time to time how much of the deadline is gone.
                let unwritten =
                    next.disk.activation.as_ref().map(|found| found.phase) != Some(course.record.phase);
                return if unwritten && now.is_zero() { further(world, scene, SOON) } else { None };
            }
        }
        Act::End => (next.activator, next.job, next.disk.boot_job) = (None, false, false),
    }
    Some(next)
}

/// Which record it goes by, and what it does with it.
fn look(world: &mut World, scene: &Scene) {
    let (found, open) = (world.disk.activation.clone(), world.disk.transaction.clone());
    let (found, fresh) = match (found, open) {
        (Some(found), _) if !found.phase.is_final() => (found, false),
        (Some(found), Some(open)) if found.transaction == open.id => (found, false),
        (_, Some(open)) => match from_transaction(world, &open) {
            Some(made) => made,
            None => return gone(world),
        },
        _ => return gone(world),
    };
    let boot = world.boot_name();
    let eyes = sight(world);
    let course = if fresh {
        Course::begin(found, &boot, Duration::ZERO)
    } else {
        world.leftover = None;
        let mut found = found;
        let linked = world.running == number(&found.new);
        let half = scene.breaks(Break::TrustHalfActivation) && found.phase == Phase::Activating;
        let booted = scene.breaks(Break::TrustBootLink)
            && matches!(found.phase, Phase::Recorded | Phase::ProfileSet | Phase::Activating);
        if linked && (half || booted) {
            found.phase = Phase::Activated;
        }
        Course::resume(found, &boot, &eyes.as_sight(Duration::ZERO))
    };
    if let Some(activator) = &mut world.activator {
        let mut course = course;
        if scene.breaks(Break::UndoToProfile) {
            course.record.old.running = course.record.old.profile.clone();
        }
        activator.course = Some(course);
    }
}

fn gone(world: &mut World) {
    (world.activator, world.job, world.disk.boot_job) = (None, false, false);
}

fn from_transaction(world: &World, open: &Transaction) -> Option<(Activation, bool)> {
    let running = path(world.running);
    let new_runs = running.as_ref() == Some(open.output());
    let mut record = Activation::new(open, &world.boot_name());
    let set = boot_began(world, open, &record);
    match &open.state {
        State::Activating if new_runs && record.old.running != running => record.phase = Phase::Activating,
        State::Activating if set => record.phase = Phase::Activating,
        State::Activating => {}
        State::Probing => record.phase = Phase::Activated,
        State::AwaitingReboot if new_runs => record.phase = Phase::Activated,
        State::AwaitingReboot => record.phase = Phase::AwaitingReboot,
        State::RollingBack { reason, .. } => {
            record.phase = Phase::Undoing;
            record.reason = Some(*reason);
        }
        _ => return None,
    }
    let fresh = record.phase == Phase::Recorded;
    Some((record, fresh))
}

/// Whether a Mac's boot may have begun with NEW.
fn boot_began(world: &World, open: &Transaction, record: &Activation) -> bool {
    let profile = path(world.disk.profile);
    open.class() == Class::Darwin && profile.as_ref() == Some(open.output()) && record.old.profile != profile
}

fn ran(outcome: Outcome, exit: i32) -> Ran {
    Ran { exit, output: String::new(), timed_out: false, outcome, person: None, ailing: Ailing::default() }
}

enum Stage {
    On,
    Hangs,
    Ended(Outcome),
}

fn run(mut world: World, scene: &Scene, script: Script) -> Option<World> {
    let course = world.activator.as_ref()?.course.as_ref()?;
    let undoes = script.system != number(&course.record.new);
    if undoes && scene.old_fails {
        done(&mut world, Done::Ran(ran(Outcome::Failed, 1)));
        return Some(world);
    }
    match stage(&mut world, scene, script) {
        Stage::Hangs => return None,
        Stage::On => {
            world.activator.as_mut()?.script = Some(Script { stage: script.stage + 1, ..script });
        }
        Stage::Ended(outcome) => {
            let exit = i32::from(outcome != Outcome::Done);
            done(&mut world, Done::Ran(ran(outcome, exit)));
        }
    }
    Some(world)
}

/// One stage of a system's activation. NixOS: boot loader, the link, units. A Mac: users and daemons out,
/// daemons in, the link.
fn stage(world: &mut World, scene: &Scene, script: Script) -> Stage {
    let behaviour = scene.behaviour(script.system);
    match (scene.class, script.stage) {
        (Class::Darwin, 0) if behaviour == Behaviour::Refuses => return Stage::Ended(Outcome::Untouched),
        (_, 0) if behaviour == Behaviour::Refuses => return Stage::Ended(Outcome::Refused),
        (Class::Nixos, 0) => {
            world.disk.entry = script.system;
            // `boot` writes the boot loader and nothing else.
            if script.action == Action::Boot {
                return Stage::Ended(Outcome::Done);
            }
            if behaviour == Behaviour::NeedsReboot && world.running != script.system {
                return Stage::Ended(Outcome::RebootNeeded);
            }
        }
        (Class::Nixos, 1) => world.running = script.system,
        (Class::Darwin, 0) => {
            world.users = script.system;
            let reloads = |system: System| {
                matches!(scene.behaviour(system), Behaviour::ReloadsAgent | Behaviour::LosesAgent)
            };
            if reloads(script.system) || reloads(world.daemons) {
                (world.agent, world.loaded) = (None, false);
            }
        }
        (Class::Darwin, LAST..) => world.running = script.system,
        (Class::Darwin, _) | (Class::Nixos, _) => {
            if behaviour == Behaviour::Hangs {
                return Stage::Hangs;
            }
            world.daemons = script.system;
            if scene.class == Class::Darwin {
                // Its jobs come first, the boot's own among them, and then those of what the link points at
                // go.
                world.plists |= 1 << script.system;
                let before = world.running;
                if behaviour == Behaviour::ChangesBootJob {
                    world.running = world.disk.profile;
                }
                if behaviour != Behaviour::ChangesBootJob && before != script.system {
                    world.plists &= !(1 << before);
                }
            }
            if behaviour == Behaviour::ActivationFails {
                return Stage::Ended(Outcome::ScriptFailed);
            }
            // nix-darwin loads it again, as a rule.
            world.loaded |= behaviour != Behaviour::LosesAgent;
        }
    }
    // NixOS leaves the running agent alone (`restartIfChanged`), a Mac loads the new one in its place.
    if scene.class == Class::Darwin && scene.behaviour(world.daemons) == Behaviour::BreaksAgent {
        world.agent = None;
    }
    if script.stage >= LAST { Stage::Ended(Outcome::Done) } else { Stage::On }
}
