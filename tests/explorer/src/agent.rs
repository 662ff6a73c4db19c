//! The agent: `core::plan` says what is next and `core::book` what is written for it, both as they ship; a
//! crash comes between any two of those writes. This follows `runner/work.rs` of the agent.

use std::time::Duration;

use muster_agent::core::book::{Book, Document, Moment, Write};
use muster_agent::core::health::CheckResult;
use muster_agent::core::plan::{self, Controller, Observed, Probed, Step};
use muster_agent::core::policy::{Circumstances, Rules};
use muster_agent::core::records::{GivenVerdict, Journal, Old, Settled, Transaction};
use muster_agent::core::rollout::{Says, Turn};
use muster_agent::core::state::{Input, State};
use muster_protocol::ids::Epoch;
use muster_protocol::plan::{Gate, Lack};
use muster_protocol::policy::Policy;
use muster_protocol::report::{EventKind, UpdateStep as Ended};

use crate::activator;
use crate::scene::{Behaviour, Break, Scene, number, path, place};
use crate::world::{Agent, Effect, World, is_own_fault};

/// Takes the agent one change further. `None` where it has nothing to do before something else happens.
pub fn step(world: &World, scene: &Scene) -> Option<World> {
    let agent = world.agent.as_ref()?;
    let mut next = world.clone();
    if agent.todo.is_empty() {
        next.history.decided_before = false;
    }
    if let Some(effect) = next.agent.as_mut()?.todo.pop_front() {
        apply(&mut next, scene, effect);
        return Some(next);
    }
    let step = plan(world, agent, scene);
    match step {
        Step::Idle | Step::Wait(_) | Step::Watch => None,
        step => take(&mut next, scene, step).then_some(next),
    }
}

/// The disk takes no write just now: what a step still had to do is not done, and the plan looks again.
pub fn full_disk(world: &World) -> Option<World> {
    let mut next = world.clone();
    let agent = next.agent.as_mut()?;
    if !matches!(agent.todo.front(), Some(Effect::Write(write)) if !matches!(write, Write::Clear(_))) {
        return None;
    }
    agent.todo.clear();
    Some(next)
}

/// What the next agent does first: it pushes what was written down and not pushed.
pub fn start(world: &mut World, scene: &Scene) {
    let told = if scene.breaks(Break::TellTwice) { 0 } else { world.disk.told.len() as u64 };
    let book = Book::new(world.disk.journal.clone(), world.disk.transaction.clone(), told);
    let todo = book.flush().into_iter().map(Effect::Write).collect();
    world.agent = Some(Agent { book, todo, ..Agent::default() });
}

fn plan(world: &World, agent: &Agent, scene: &Scene) -> Step {
    let running = path(world.running);
    let boot = world.boot_name();
    let outcome = |well| if well { Ok(()) } else { Err("ill".to_owned()) };
    let probed = agent.probed.map(|well| Probed {
        checks: vec![CheckResult { name: "it".into(), outcome: outcome(well) }],
        failed_after: Vec::new(),
    });
    let mut journal = agent.book.journal().clone();
    if scene.breaks(Break::ForgetTried) {
        journal.tried = None;
    }
    if scene.breaks(Break::ForgetQuarantine) {
        journal.quarantine.clear();
    }
    let wanted = world.disk.held.and_then(|held| scene.target(held));
    let reached = agent.reached || scene.breaks(Break::ConfirmUnreached);
    let (rules, circumstances) =
        (Rules::new(&Policy::default(), &Policy::default()), Circumstances::default());
    let turn = scene.gated.then(|| {
        let skips = scene.breaks(Break::SkipGate) && agent.leave;
        Turn {
            place: place(),
            missing: None,
            is_expired: false,
            gate: agent.proven.map(|open| if open || skips { Gate::Open } else { closed() }),
            says: if agent.leave { Says::Go } else { Says::Nothing },
        }
    });
    let is_new = world.disk.new_epoch && !scene.breaks(Break::IgnoreEpoch);
    let epoch = if is_new { Epoch::new(1).unwrap_or_default() } else { Epoch::default() };
    let observed = Observed {
        epoch,
        transaction: agent.book.transaction(),
        activation: world.disk.activation.as_ref(),
        activator_alive: world.activator.is_some(),
        given: world.disk.confirmation.as_ref(),
        running: running.as_ref(),
        boot: &boot,
        probed: probed.as_ref(),
        controller: Controller { answers: agent.answers, reached_since_activation: reached && agent.probing },
        rollback_asked: agent.rollback_asked,
        asked: false,
        console: None,
        rules: &rules,
        circumstances: Some(&circumstances),
        turn: turn.as_ref(),
        due: None,
        blockers: None,
        at: 0,
        not_before: None,
        now: Duration::ZERO,
    };
    plan::next(&observed, &journal, wanted.as_ref())
}

fn closed() -> Gate {
    Gate::Closed(Lack::Wave { wave: 0, name: "canaries".to_owned(), have: 0, need: 1 })
}

/// Whether the step changed anything.
fn take(world: &mut World, scene: &Scene, step: Step) -> bool {
    let wanted = || world.disk.held.and_then(|held| scene.target(held));
    match step {
        Step::Begin => {
            let Some(target) = wanted() else { return false };
            let transaction = Transaction::signed(id(world), target, 0);
            open(world, |book| book.begin(transaction, vec![EventKind::Verified], 0));
        }
        Step::Refuse(entry) => {
            let Some(target) = wanted() else { return false };
            let transaction = Transaction::signed(id(world), target, 0);
            let failed = Input::Failed { step: Ended::Verify, detail: entry.detail, quarantined: true };
            if scene.breaks(Break::RefuseInTwoSteps) {
                open(world, |book| book.begin(transaction, vec![], 0));
            } else {
                let running = path(world.running);
                let seen = Moment { running: running.as_ref(), now: 0, ms: 0 };
                open(world, |book| {
                    book.begin_and_end(transaction, vec![], failed, &seen).unwrap_or_default()
                });
            }
        }
        Step::BeginRollback(previous) => {
            let Some(agent) = &mut world.agent else { return false };
            agent.rollback_asked = false;
            let Some(known) = agent.book.journal().confirmed.clone() else { return true };
            let transaction = Transaction::rollback(id(world), &known, previous, scene.class, 0);
            open(world, |book| book.begin(transaction, vec![], 0));
        }
        Step::Supersede => write(world, scene, |book| book.supersede()),
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
        Step::Give(verdict) => write(world, scene, |book| book.give(verdict)),
        Step::Settle => {
            let running = path(world.running);
            let settled = Settled { running: running.as_ref(), ..Settled::default() };
            write(world, scene, |book| book.settle(settled));
        }
        Step::Defer(deferral) => advance(world, scene, Input::Deferred { deferral }, vec![], |_| ()),
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

fn write(world: &mut World, scene: &Scene, writes: impl FnOnce(&Book) -> Vec<Write>) {
    let Some(agent) = &world.agent else { return };
    let mut writes = writes(&agent.book);
    // What is not there is not removed.
    writes.retain(|write| match write {
        Write::Clear(Document::Activation) => world.disk.activation.is_some(),
        Write::Clear(Document::Confirmation) => world.disk.confirmation.is_some(),
        Write::Clear(Document::Transaction) => world.disk.transaction.is_some(),
        _ => true,
    });
    if scene.breaks(Break::TellUnwritten) {
        // The events go out first, and only then is it written down what they belong to.
        writes.sort_by_key(|write| !matches!(write, Write::Push(_)));
    }
    todo(world, writes.into_iter().map(Effect::Write));
}

fn open(world: &mut World, writes: impl FnOnce(&Book) -> Vec<Write>) {
    if let Some(agent) = &mut world.agent {
        (agent.probed, agent.probing) = (None, false);
        let writes = writes(&agent.book);
        agent.todo.extend(writes.into_iter().map(Effect::Write));
    }
}

fn advance(
    world: &mut World,
    scene: &Scene,
    input: Input,
    events: Vec<EventKind>,
    change: impl FnOnce(&mut Transaction),
) {
    let running = path(world.running);
    let seen = Moment { running: running.as_ref(), now: 0, ms: 0 };
    let Some(agent) = &world.agent else { return };
    match agent.book.advance(input, events, &seen, change) {
        Ok(writes) => write(world, scene, |_| writes),
        Err(impossible) => world.violate(impossible.to_string()),
    }
}

fn transaction(world: &World) -> Option<&Transaction> {
    world.agent.as_ref()?.book.transaction()
}

fn build(world: &mut World, scene: &Scene) {
    let Some(output) = transaction(world).map(|open| open.output().clone()) else { return };
    if scene.behaviour(number(&output)) == Behaviour::BuildFails {
        let failed = Input::Failed { step: Ended::Build, detail: "it".into(), quarantined: true };
        return advance(world, scene, failed, vec![], |_| ());
    }
    advance(world, scene, Input::Built, vec![EventKind::Built { output, ms: 0 }], |_| ());
}

fn start_activator(world: &mut World, scene: &Scene) {
    let Some(new) = transaction(world).map(|open| open.output().clone()) else { return };
    let old = Old { running: path(world.running), profile: path(world.disk.profile) };
    let event = EventKind::Activating { old: path(world.running).unwrap_or_else(|| new.clone()), new };
    advance(world, scene, Input::Started, vec![event], |transaction| transaction.old = Some(old));
    if let Some(agent) = &mut world.agent {
        agent.leave = false;
    }
    todo(world, [Effect::StartActivator]);
}

fn enter(world: &mut World, scene: &Scene, input: Input) {
    let activating = transaction(world).is_some_and(|open| open.state == State::Activating);
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

fn apply(world: &mut World, scene: &Scene, effect: Effect) {
    let write = match effect {
        Effect::StartActivator => return activator::start(world, scene),
        Effect::Write(write) => write,
    };
    match &write {
        Write::Clear(Document::Confirmation) => world.disk.confirmation = None,
        Write::Clear(Document::Activation) => world.disk.activation = None,
        Write::Clear(Document::Transaction) => {
            world.disk.transaction = None;
            if let Some(agent) = &mut world.agent {
                (agent.probed, agent.probing) = (None, false);
            }
        }
        Write::Transaction(transaction) => {
            note_failure(world, scene, transaction);
            note_begin(world, scene, transaction);
            world.disk.transaction = Some((**transaction).clone());
        }
        Write::Journal(journal) => {
            if journal.tried < world.disk.journal.tried {
                world.violate("I2: the highest generation that was tried became lower");
            }
            world.disk.journal = Journal::clone(journal);
        }
        Write::Confirmation(confirmation) => {
            if matches!(confirmation.verdict, GivenVerdict::Confirm { .. }) {
                judge(world, scene);
            }
            world.disk.confirmation = Some((**confirmation).clone());
        }
        Write::Push(telling) => {
            let owner = world.disk.transaction.as_ref().map_or_else(String::new, |open| open.id.clone());
            let owner = if scene.breaks(Break::TellUnwritten) { String::new() } else { owner };
            if telling.seq != world.disk.told.len() as u64 + 1 && !scene.breaks(Break::TellTwice) {
                world.violate(format!("I7: an event gets the number {} out of turn", telling.seq));
            }
            world.push(&owner, &telling.event);
        }
    }
    if let Some(agent) = &mut world.agent {
        agent.book.apply(&write);
    }
}

/// I2 and I5, where an activation is about to begin.
fn note_begin(world: &mut World, scene: &Scene, transaction: &Transaction) {
    let before = world.disk.transaction.as_ref().map(|open| &open.state);
    if transaction.state != State::Activating || before == Some(&State::Activating) {
        return;
    }
    let system = number(transaction.output());
    (world.history.old, world.history.new) = (world.running, system);
    if transaction.is_rollback() {
        return;
    }
    if scene.gated && !transaction.enforcing && !world.gate {
        world.violate("a machine switches before its turn: no gate was open");
    }
    let generation = scene.place(transaction.generation());
    let decided_before = std::mem::take(&mut world.history.decided_before);
    if world.disk.new_epoch && !decided_before && transaction.generation().epoch().is_first() {
        world.violate(format!("I2: generation {generation} is activated though its epoch has ended"));
    }
    if generation < world.history.highest {
        let highest = world.history.highest;
        world.violate(format!("I2: generation {generation} is activated after {highest}"));
    }
    world.history.highest = world.history.highest.max(generation);
    if world.history.failed.contains(&system) {
        world.violate(format!("I5: system {system} failed and is activated again"));
    }
    let Some(times) = world.history.begun.get_mut(usize::from(generation)) else { return };
    *times += 1;
    let times = u32::from(*times);
    let again = world.disk.journal.again.filter(|again| scene.place(again.generation) == generation);
    if times > 1 + again.map_or(0, |again| again.undone) {
        world.violate(format!("I5: generation {generation} is activated again, which nothing asked for"));
    }
}

/// I4, where a verdict is given: a system that cuts the network, that breaks the agent, or that is ill, is
/// not confirmed.
fn judge(world: &mut World, scene: &Scene) {
    let behaviour = scene.behaviour(world.running);
    if matches!(behaviour, Behaviour::Ill | Behaviour::CutsNetwork | Behaviour::BreaksAgent) {
        world.violate(format!("I4: a system that is {behaviour:?} is confirmed"));
    }
}

fn note_failure(world: &mut World, scene: &Scene, transaction: &Transaction) {
    let system = match &transaction.state {
        State::RolledBack { reason, .. } | State::UndoFailed { reason, .. }
            if !transaction.is_rollback() && is_own_fault(*reason) =>
        {
            number(transaction.output())
        }
        State::Failed { quarantined: true, .. } => number(transaction.output()),
        // What somebody went back from by hand counts as failed, too.
        State::Confirmed { .. } if transaction.is_rollback() => {
            scene.system(scene.place(transaction.generation()))
        }
        _ => return,
    };
    if !world.history.failed.contains(&system) {
        world.history.failed.push(system);
    }
}

/// Whether the controller can be reached just now.
pub fn reachable(world: &World, scene: &Scene) -> bool {
    world.network && scene.behaviour(world.daemons) != Behaviour::CutsNetwork
}
