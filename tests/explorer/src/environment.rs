//! What happens round the machine: faults, the controller, the network, time.

use muster_protocol::machine::Class;

use crate::activator;
use crate::agent::{self, reachable};
use crate::scene::{Behaviour, Break, Scene};
use crate::world::{Activator, World};

/// Everything that can happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Action {
    AgentStep,
    AgentStarts,
    ActivatorStep,
    ActivatorRestarts,
    Deadline,
    LeftoverStep,
    Contact,
    ContactReplyLost,
    NetworkReturns,
    GateOpens,
    /// True or not: the machine asks for the proof.
    LeaveComes,
    /// From here on: what need not happen.
    Publish,
    NewEpoch,
    KillAgent,
    KillActivator,
    KillBoth,
    AgentDiskFull,
    ActivatorDiskFull,
    Reboot,
    NetworkGoes,
    LeaveGoes,
    AskRollback,
}

impl Action {
    pub const ALL: [Self; 22] = [
        Self::AgentStep,
        Self::AgentStarts,
        Self::ActivatorStep,
        Self::ActivatorRestarts,
        Self::Deadline,
        Self::LeftoverStep,
        Self::Contact,
        Self::ContactReplyLost,
        Self::NetworkReturns,
        Self::GateOpens,
        Self::LeaveComes,
        Self::Publish,
        Self::NewEpoch,
        Self::KillAgent,
        Self::KillActivator,
        Self::KillBoth,
        Self::AgentDiskFull,
        Self::ActivatorDiskFull,
        Self::Reboot,
        Self::NetworkGoes,
        Self::LeaveGoes,
        Self::AskRollback,
    ];

    /// What the machine does by itself, with nobody's help; a network that is gone stays gone.
    pub fn is_the_machines(self) -> bool {
        matches!(
            self,
            Self::AgentStep
                | Self::AgentStarts
                | Self::ActivatorStep
                | Self::ActivatorRestarts
                | Self::Deadline
                | Self::LeftoverStep
                | Self::Contact
        )
    }

    /// What comes about sooner or later.
    pub fn is_sure(self) -> bool {
        self.is_the_machines() || matches!(self, Self::NetworkReturns | Self::GateOpens | Self::LeaveComes)
    }
}

/// The moment after `action`, or `None` where it cannot happen now.
pub fn after(world: &World, scene: &Scene, action: Action) -> Option<World> {
    match action {
        Action::AgentStep => agent::step(world, scene),
        Action::ActivatorStep => activator::step(world, scene),
        Action::ActivatorRestarts => activator::restart(world),
        Action::Deadline => deadline(world, scene),
        Action::LeftoverStep => activator::leftover(world, scene),
        Action::AgentStarts => agent_starts(world, scene),
        Action::Contact => contact(world, scene, true),
        Action::ContactReplyLost => contact(world, scene, false),
        Action::NetworkReturns => (!world.network).then(|| World { network: true, ..world.clone() }),
        Action::GateOpens => (scene.gated && !world.gate).then(|| World { gate: true, ..world.clone() }),
        Action::LeaveComes => {
            let mut next = world.clone();
            let agent = next.agent.as_mut().filter(|_| scene.gated && reachable(world, scene))?;
            let proven = Some(world.gate || agent.proven == Some(true));
            if agent.leave && agent.proven == proven {
                return None;
            }
            (agent.leave, agent.proven) = (true, proven);
            Some(next)
        }
        Action::LeaveGoes => {
            let mut next = world.clone();
            next.agent.as_mut().filter(|agent| agent.leave)?.leave = false;
            Some(next)
        }
        Action::Publish => {
            let of_the_new = scene.epoch_from == Some(world.published + 1);
            let possible =
                usize::from(world.published) < scene.published.len() && (!of_the_new || world.new_epoch);
            possible.then(|| World { published: world.published + 1, ..world.clone() })
        }
        Action::NewEpoch => {
            let possible = scene.epoch_from == Some(world.published + 1) && !world.new_epoch;
            possible.then(|| World { new_epoch: true, ..world.clone() })
        }
        Action::KillAgent => {
            world.agent.as_ref()?;
            spend(world, |next| &mut next.budget.faults, |next| next.agent = None)
        }
        Action::KillActivator => {
            world.activator.as_ref()?;
            spend(world, |next| &mut next.budget.faults, kill_activator)
        }
        Action::KillBoth => {
            world.agent.as_ref()?;
            world.activator.as_ref()?;
            spend(
                world,
                |next| &mut next.budget.faults,
                |next| {
                    next.agent = None;
                    kill_activator(next);
                },
            )
        }
        Action::AgentDiskFull => {
            let next = agent::full_disk(world)?;
            spend(&next, |next| &mut next.budget.faults, |_| ())
        }
        Action::ActivatorDiskFull => {
            let next = activator::full_disk(world)?;
            spend(&next, |next| &mut next.budget.faults, |_| ())
        }
        Action::Reboot => spend(world, |next| &mut next.budget.faults, |next| reboot(next, scene)),
        Action::NetworkGoes => {
            if !world.network {
                return None;
            }
            spend(world, |next| &mut next.budget.faults, |next| next.network = false)
        }
        Action::AskRollback => {
            world.agent.as_ref().filter(|agent| !agent.rollback_asked)?;
            world.disk.journal.previous.as_ref()?;
            if world.disk.transaction.is_some()
                || world.agent.as_ref().is_some_and(|agent| !agent.todo.is_empty())
            {
                return None;
            }
            spend(
                world,
                |next| &mut next.budget.rollbacks,
                |next| {
                    if let Some(agent) = &mut next.agent {
                        agent.rollback_asked = true;
                    }
                },
            )
        }
    }
}

/// Where agent and controller could still confirm in time, a deadline that passes first is a fault like any
/// other.
fn deadline(world: &World, scene: &Scene) -> Option<World> {
    let mut next = activator::deadline(world, scene)?;
    let hangs = matches!(world.activator, Some(Activator { script: Some(_), .. }));
    if !hangs && reachable(world, scene) && agent_can_run(world, scene) {
        next.budget.faults = next.budget.faults.checked_sub(1)?;
    }
    Some(next)
}

fn agent_can_run(world: &World, scene: &Scene) -> bool {
    world.loaded && scene.behaviour(world.daemons) != Behaviour::BreaksAgent
}

fn spend(
    world: &World,
    of: impl Fn(&mut World) -> &mut u8,
    change: impl FnOnce(&mut World),
) -> Option<World> {
    let mut next = world.clone();
    let left = of(&mut next);
    *left = left.checked_sub(1)?;
    change(&mut next);
    Some(next)
}

fn agent_starts(world: &World, scene: &Scene) -> Option<World> {
    if world.agent.is_some() || !agent_can_run(world, scene) {
        return None;
    }
    let mut next = world.clone();
    agent::start(&mut next, scene);
    Some(next)
}

/// The script lives on; the next activator ends it.
fn kill_activator(world: &mut World) {
    world.leftover = world.activator.as_ref().and_then(|activator| activator.script).or(world.leftover);
    world.activator = None;
}

fn reboot(world: &mut World, scene: &Scene) {
    (world.agent, world.activator, world.leftover, world.loaded) = (None, None, None, true);
    world.job = world.disk.boot_job;
    world.boot += 1;
    // NixOS boots its boot loader's entry, all of it. A Mac's boot points the link at the profile; daemons
    // and users are what was left on the disk.
    match scene.class {
        Class::Nixos => {
            if scene.behaviour(world.disk.entry) != Behaviour::DoesNotBoot {
                world.running = world.disk.entry;
            }
            world.daemons = world.running;
        }
        Class::Darwin => world.running = world.disk.profile,
    }
}

/// A check-in, the reports, and the trusted metadata. A reply that is lost leaves the controller knowing and
/// the machine not.
fn contact(world: &World, scene: &Scene, reply: bool) -> Option<World> {
    let reachable = reachable(world, scene);
    // Without reports there is nothing that a lost reply leaves behind.
    if world.agent.is_none() || !reply && (world.budget.faults == 0 || !scene.reports) {
        return None;
    }
    let mut next = world.clone();
    if !reply {
        next.budget.faults -= 1;
    }
    let agent = next.agent.as_mut()?;
    if !reachable {
        if !reply || !agent.answers {
            return None;
        }
        agent.answers = false;
        return Some(next);
    }
    if !scene.reports {
        return Some(known(next, scene));
    }
    // The batch begins with the oldest that waits; what the controller has already it does not store again
    // (I7).
    let (oldest, newest) = (next.disk.acknowledged, next.disk.told.len());
    if oldest > next.disk.stored {
        next.violate("I7: a report is gone that the controller has not stored");
    }
    next.disk.stored = next.disk.stored.max(newest);
    if !reply {
        if scene.breaks(Break::ForgetReports) {
            next.disk.acknowledged = newest + 1;
        }
        return Some(next);
    }
    next.disk.acknowledged = next.disk.acknowledged.max(next.disk.stored);
    Some(known(next, scene))
}

/// What a reply tells the machine.
fn known(mut next: World, scene: &Scene) -> World {
    if let Some(agent) = &mut next.agent {
        agent.answers = true;
        agent.reached |= agent.probing;
    }
    if next.new_epoch && !next.disk.new_epoch {
        // The root comes first; from then on nothing that was held before it is.
        (next.disk.new_epoch, next.disk.held) = (true, None);
        next.history.decided_before = next.agent.as_ref().is_some_and(|agent| !agent.todo.is_empty());
    }
    let left = next.new_epoch && scene.epoch_from.is_some_and(|from| next.published < from);
    let newer = next.disk.held.is_none_or(|held| next.published > held);
    if next.published > 0 && newer && !left {
        next.disk.held = Some(next.published);
    }
    if scene.breaks(Break::AcceptOlder) && next.published > 1 && next.disk.held == Some(next.published) {
        next.disk.held = Some(next.published - 1);
        forget_tried(&mut next);
    }
    next
}

fn forget_tried(world: &mut World) {
    world.disk.journal.tried = None;
    if let Some(agent) = &mut world.agent {
        let told = world.disk.told.len() as u64;
        let journal = world.disk.journal.clone();
        agent.book = muster_agent::core::book::Book::new(journal, world.disk.transaction.clone(), told);
    }
}
