//! The agent: `core::plan::next` as it ships, and each step that it names taken apart into what a crash comes between.
//!
//! This follows `runner/work.rs` and `runner/ledger.rs` of the agent.

use std::collections::VecDeque;

use muster_agent::core::health::CheckResult;
use muster_agent::core::plan::{self, Controller, Observed, Probed, Step};
use muster_agent::core::records::{
    Confirmation, GivenVerdict, Journal, Old, Telling, Transaction, Unreachable,
};
use muster_agent::core::state::{Input, State};
use muster_protocol::ids::Generation;
use muster_protocol::report::{EventKind, Step as Ended};
use std::time::Duration;

use crate::activator;
use crate::scene::{Behaviour, Break, Scene, number, path};
use crate::world::{Agent, Effect, World, is_own_fault};

/// Takes the agent one change further. `None` where it has nothing to do before something else happens.
pub fn step(world: &World, scene: &Scene) -> Option<World> {
    let agent = world.agent.as_ref()?;
    if agent.todo.is_empty() {
        let step = plan(world, scene);
        if matches!(step, Step::Idle | Step::Wait(_) | Step::Watch) {
            return None;
        }
        let mut next = world.clone();
        return take(&mut next, scene, step).then_some(next);
    }
    let mut next = world.clone();
    let effect = next.agent.as_mut()?.todo.pop_front()?;
    apply(&mut next, scene, effect);
    Some(next)
}

/// What the next agent does first: it pushes what was written down and not pushed.
pub fn start(world: &mut World, scene: &Scene) {
    let written = world.disk.transaction.iter().flat_map(|transaction| &transaction.telling);
    let last = world.disk.told.len() as u64;
    let untold: Vec<Telling> = world
        .disk
        .journal
        .telling
        .iter()
        .chain(written)
        .filter(|telling| telling.seq > last || scene.breaks(Break::TellTwice))
        .cloned()
        .collect();
    let todo = untold.iter().map(|_| Effect::Push).collect();
    world.agent = Some(Agent { untold, todo, ..Agent::default() });
}

fn plan(world: &World, scene: &Scene) -> Step {
    let Some(agent) = &world.agent else { return Step::Idle };
    let running = path(world.running);
    let boot = world.boot_name();
    let probed = agent.probed.map(|well| Probed {
        checks: vec![CheckResult {
            name: "it".into(),
            outcome: if well { Ok(()) } else { Err("ill".into()) },
        }],
        failed_after: Vec::new(),
    });
    let mut journal = world.disk.journal.clone();
    if scene.breaks(Break::ForgetTried) {
        journal.tried = None;
    }
    if scene.breaks(Break::ForgetQuarantine) {
        journal.quarantine.clear();
    }
    let wanted = world.disk.held.and_then(|held| scene.target(held));
    let reached = agent.reached || scene.breaks(Break::ConfirmUnreached);
    let observed = Observed {
        transaction: world.disk.transaction.as_ref(),
        activation: world.disk.activation.as_ref(),
        activator_alive: world.activator.is_some(),
        given: world.disk.confirmation.as_ref(),
        running: running.as_ref(),
        boot: &boot,
        probed: probed.as_ref(),
        controller: Controller { answers: agent.answers, reached_since_activation: reached && agent.probing },
        rollback_asked: agent.rollback_asked,
        not_before: None,
        now: Duration::ZERO,
    };
    plan::next(&observed, &journal, wanted.as_ref())
}

/// Whether the step changed anything.
fn take(world: &mut World, scene: &Scene, step: Step) -> bool {
    match step {
        Step::Idle | Step::Wait(_) | Step::Watch => return false,
        Step::Begin => {
            let Some(target) = world.disk.held.and_then(|held| scene.target(held)) else { return false };
            let transaction = Transaction::signed(id(world), target, 0);
            open(world, scene, transaction, vec![EventKind::Verified]);
        }
        Step::Refuse(entry) => {
            let Some(target) = world.disk.held.and_then(|held| scene.target(held)) else { return false };
            let transaction = Transaction::signed(id(world), target, 0);
            refuse(world, scene, transaction, &entry.detail);
        }
        Step::BeginRollback(previous) => {
            let Some(known) = world.disk.journal.confirmed.clone() else { return false };
            let transaction = Transaction::rollback(id(world), &known, previous, scene.class, 0);
            open(world, scene, transaction, vec![]);
            if let Some(agent) = &mut world.agent {
                agent.rollback_asked = false;
            }
        }
        Step::Supersede => clear(world),
        Step::Fetch => {
            if !reachable(world, scene) {
                return false;
            }
            advance(world, scene, Input::Fetched, vec![EventKind::Fetched { ms: 0 }], |_| ());
        }
        Step::Build => build(world, scene),
        Step::Preflight => advance(world, scene, Input::Passed, vec![], |_| ()),
        Step::StartActivator => start_activator(world, scene),
        Step::RestartActivator => todo(world, [Effect::StartActivator]),
        Step::Enter(input) => enter(world, scene, input),
        Step::Probe => probe(world, scene),
        Step::Give(verdict) => {
            let transaction = world.disk.transaction.as_ref().map(|open| open.id.clone());
            let transaction = transaction.unwrap_or_default();
            todo(world, [Effect::WriteConfirmation(Confirmation { transaction, verdict })]);
        }
        Step::Settle => settle(world),
        #[allow(unreachable_patterns)]
        other => world.violate(format!("the model does not know the step {other:?}")),
    }
    true
}

fn id(world: &mut World) -> String {
    let id = format!("t{}", world.disk.next_id);
    world.disk.next_id += 1;
    id
}

fn todo(world: &mut World, effects: impl IntoIterator<Item = Effect>) {
    if let Some(agent) = &mut world.agent {
        agent.todo.extend(effects);
    }
}

/// What is not there is not removed.
fn clear(world: &mut World) {
    let there = [
        (Effect::RemoveConfirmation, world.disk.confirmation.is_some()),
        (Effect::RemoveActivation, world.disk.activation.is_some()),
        (Effect::RemoveTransaction, world.disk.transaction.is_some()),
    ];
    todo(world, there.into_iter().filter(|(_, there)| *there).map(|(effect, _)| effect));
}

fn numbered(world: &World, generation: Generation, events: Vec<EventKind>) -> Vec<Telling> {
    let first = world.disk.told.len() as u64 + 1;
    (first..)
        .zip(events)
        .map(|(seq, event)| Telling { seq, at: 0, generation: Some(generation), event })
        .collect()
}

fn store(world: &mut World, scene: &Scene, transaction: Transaction) {
    let pushes: VecDeque<Effect> = transaction.telling.iter().map(|_| Effect::Push).collect();
    let write = Effect::WriteTransaction(Box::new(transaction.clone()));
    if scene.breaks(Break::TellUnwritten) {
        // The events go out first, and only then is it written down what they belong to.
        if let Some(agent) = &mut world.agent {
            agent.untold = transaction.telling;
        }
        todo(world, pushes.into_iter().chain([write]));
    } else {
        todo(world, [write].into_iter().chain(pushes));
    }
}

fn open(world: &mut World, scene: &Scene, mut transaction: Transaction, events: Vec<EventKind>) {
    if let Some(agent) = &mut world.agent {
        (agent.probed, agent.probing) = (None, false);
    }
    transaction.telling = numbered(world, transaction.generation(), events);
    clear(world);
    store(world, scene, transaction);
}

/// Opened and ended in one document: a crash finds no transaction that could go on.
fn refuse(world: &mut World, scene: &Scene, mut transaction: Transaction, detail: &str) {
    if scene.breaks(Break::RefuseInTwoSteps) {
        return open(world, scene, transaction, vec![]);
    }
    let detail = format!("failed before: {detail}");
    let failed = Input::Failed { step: Ended::Verify, detail, quarantined: true };
    match transaction.state.clone().after(failed) {
        Ok(state) => transaction.state = state,
        Err(impossible) => world.violate(impossible.to_string()),
    }
    let event = transaction.final_event(&world.disk.journal, path(world.running).as_ref(), 0);
    open(world, scene, transaction, event.into_iter().collect());
}

fn advance(
    world: &mut World,
    scene: &Scene,
    input: Input,
    mut events: Vec<EventKind>,
    change: impl FnOnce(&mut Transaction),
) {
    let Some(mut transaction) = world.disk.transaction.clone() else {
        return world.violate("a step was taken without a transaction");
    };
    match transaction.state.clone().after(input) {
        Ok(state) => transaction.state = state,
        Err(impossible) => return world.violate(impossible.to_string()),
    }
    change(&mut transaction);
    if transaction.state.is_final() {
        events.extend(transaction.final_event(&world.disk.journal, path(world.running).as_ref(), 0));
    }
    transaction.telling = numbered(world, transaction.generation(), events);
    store(world, scene, transaction);
}

fn build(world: &mut World, scene: &Scene) {
    let Some(output) = world.disk.transaction.as_ref().map(|open| open.output().clone()) else { return };
    if scene.behaviour(number(&output)) == Behaviour::BuildFails {
        let failed = Input::Failed { step: Ended::Build, detail: "it".into(), quarantined: true };
        return advance(world, scene, failed, vec![], |_| ());
    }
    advance(world, scene, Input::Built, vec![EventKind::Built { output, ms: 0 }], |_| ());
}

fn start_activator(world: &mut World, scene: &Scene) {
    let Some(open) = world.disk.transaction.clone() else { return };
    let old = Old { running: path(world.running), profile: path(world.disk.profile) };
    let new = open.output().clone();
    let event = EventKind::Activating { old: path(world.running).unwrap_or_else(|| new.clone()), new };
    advance(world, scene, Input::Started, vec![event], |transaction| transaction.old = Some(old));
    todo(world, [Effect::StartActivator]);
}

/// I2 and I5, where an activation is about to begin.
fn begun(world: &mut World, generation: u8, system: u8) {
    if generation < world.seen.highest {
        let highest = world.seen.highest;
        world.violate(format!("I2: generation {generation} is activated after {highest}"));
    }
    world.seen.highest = world.seen.highest.max(generation);
    if world.seen.failed.contains(&system) {
        world.violate(format!("I5: system {system} failed and is activated again"));
    }
    let Some(times) = world.seen.begun.get_mut(usize::from(generation)) else { return };
    *times += 1;
    let times = *times;
    let unreachable = world
        .disk
        .journal
        .unreachable
        .filter(|entry: &Unreachable| entry.generation.get() == u64::from(generation))
        .map_or(0, |entry| entry.undone);
    if u32::from(times) > 1 + unreachable {
        world.violate(format!("I5: generation {generation} is activated again, which nothing asked for"));
    }
}

fn enter(world: &mut World, scene: &Scene, input: Input) {
    let activating = world.disk.transaction.as_ref().is_some_and(|open| open.state == State::Activating);
    let exit = world.disk.activation.as_ref().and_then(|record| record.exit).filter(|_| activating);
    let events = exit.map(|exit| EventKind::Activated { exit, ms: 0 }).into_iter().collect();
    if matches!(input, Input::Activated | Input::Rebooted)
        && let Some(agent) = &mut world.agent
    {
        (agent.probed, agent.probing, agent.reached) = (None, true, false);
    }
    advance(world, scene, input, events, |_| ());
}

fn probe(world: &mut World, scene: &Scene) {
    let well = scene.behaviour(world.running) != Behaviour::Ill;
    let Some(agent) = &mut world.agent else { return };
    if !agent.probing {
        (agent.probing, agent.reached) = (true, false);
    }
    agent.probed = Some(well);
}

fn settle(world: &mut World) {
    let Some(transaction) = world.disk.transaction.clone() else { return };
    let mut journal: Journal = world.disk.journal.clone();
    journal.settle(&transaction, path(world.running).as_ref(), 0);
    todo(world, [Effect::WriteJournal(Box::new(journal))]);
    clear(world);
}

fn apply(world: &mut World, scene: &Scene, effect: Effect) {
    match effect {
        Effect::RemoveConfirmation => world.disk.confirmation = None,
        Effect::RemoveActivation => world.disk.activation = None,
        Effect::RemoveTransaction => {
            world.disk.transaction = None;
            if let Some(agent) = &mut world.agent {
                (agent.probed, agent.probing) = (None, false);
            }
        }
        Effect::WriteTransaction(transaction) => {
            note_failure(world, scene, &transaction);
            let before = world.disk.transaction.as_ref().map(|open| &open.state);
            if transaction.state == State::Activating && before != Some(&State::Activating) {
                world.seen.old = world.running;
                if !transaction.is_rollback() {
                    let generation = u8::try_from(transaction.generation().get()).unwrap_or(u8::MAX);
                    begun(world, generation, number(transaction.output()));
                }
            }
            if let Some(agent) = &mut world.agent
                && !scene.breaks(Break::TellUnwritten)
            {
                agent.untold.clone_from(&transaction.telling);
            }
            world.disk.transaction = Some(*transaction);
        }
        Effect::WriteJournal(journal) => {
            if journal.tried < world.disk.journal.tried {
                world.violate("I2: the highest generation that was tried became lower");
            }
            world.disk.journal = *journal;
        }
        Effect::WriteConfirmation(confirmation) => {
            if matches!(confirmation.verdict, GivenVerdict::Confirm { .. }) {
                judge(world, scene);
            }
            world.disk.confirmation = Some(confirmation);
        }
        Effect::Push => {
            let Some(agent) = &mut world.agent else { return };
            if agent.untold.is_empty() {
                return;
            }
            let telling = agent.untold.remove(0);
            let owner = world.disk.transaction.as_ref().map_or_else(String::new, |open| open.id.clone());
            let owner = if scene.breaks(Break::TellUnwritten) { String::new() } else { owner };
            world.push(&owner, &telling.event);
        }
        Effect::StartActivator => activator::start(world),
    }
}

/// I4, where a verdict is given: a system that cuts the network, or that is ill, is not confirmed.
fn judge(world: &mut World, scene: &Scene) {
    let behaviour = scene.behaviour(world.running);
    if matches!(behaviour, Behaviour::Ill | Behaviour::CutsNetwork) {
        world.violate(format!("I4: a system that is {behaviour:?} is confirmed"));
    }
}

fn note_failure(world: &mut World, scene: &Scene, transaction: &Transaction) {
    let own_fault = match &transaction.state {
        State::RolledBack { reason, .. } | State::UndoFailed { reason, .. } => {
            !transaction.is_rollback() && is_own_fault(*reason)
        }
        State::Failed { quarantined, .. } => *quarantined,
        _ => false,
    };
    let system = number(transaction.output());
    if own_fault && !world.seen.failed.contains(&system) {
        world.seen.failed.push(system);
    }
    // What somebody went back from by hand counts as failed, too.
    if let (State::Confirmed { .. }, true) = (&transaction.state, transaction.is_rollback()) {
        let from = scene.system(u8::try_from(transaction.generation().get()).unwrap_or(0));
        if !world.seen.failed.contains(&from) {
            world.seen.failed.push(from);
        }
    }
}

/// Whether the controller can be reached just now.
pub fn reachable(world: &World, scene: &Scene) -> bool {
    world.network && scene.behaviour(world.daemons) != Behaviour::CutsNetwork
}
