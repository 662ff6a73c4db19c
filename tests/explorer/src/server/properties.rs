//! What must hold between controllers and machines: after each step, and of what every moment leads to.

use muster_protocol::audit::{Entry, verify};
use muster_protocol::checkin::CheckInReply;
use muster_protocol::ids::Sha256;
use muster_server::core::checkin::CheckInRefusal;
use muster_server::core::rows::StoredEvent;

use super::documents::draft;
use super::machine::{Content, Machine, Said};
use super::memory::{Memory, Row};
use super::stage::Scene;
use super::world::World;

/// What a decision changed.
pub fn of_changes(world: &mut World, scene: &Scene, before: &Memory) {
    let kept = world.kept.clone();
    let after = &kept.memory;
    for name in &scene.cast.names {
        // That a machine was seen is told by no cursor.
        let shown = |memory: &Memory| {
            let mut machine = memory.machine(name)?;
            machine.seen_at = None;
            Some(format!("{machine:?}"))
        };
        let newest = after.changes.get(name).copied().unwrap_or(0);
        let told = newest > before.last_change && newest == after.last_change;
        if shown(before) != shown(after) && !told {
            world.violate("a machine changed, and the cursor does not tell");
        }
        let row = |memory: &Memory| memory.machines.get(name).map(|row| row.timestamp.clone());
        if let (Some(Some(old)), Some(Some(new))) = (row(before), row(after))
            && new != old
            && new.version <= old.version
        {
            world.violate("the version of a timestamp does not rise");
        }
    }
    let log: Vec<Entry> = after.log.entries.iter().map(|entry| Entry::clone(entry)).collect();
    if verify(after.log.origin, &log).is_err() {
        world.violate("the audit log's chain is broken");
    }
}

/// A token enrols one key.
pub fn of_enrolment(world: &mut World, token: u8, key: u8) {
    if *world.seen.tokens.entry(token).or_insert(key) != key {
        world.violate("two machines enrolled by one token");
    }
    of_access(world, true);
}

pub fn of_access(world: &mut World, granted: bool) {
    if granted && world.seen.revoked {
        world.violate("a revoked machine is answered");
    }
}

pub fn of_check_in(
    world: &mut World,
    said: &Said,
    body: &Sha256,
    answer: &Result<CheckInReply, CheckInRefusal>,
) {
    of_access(world, answer.is_ok());
    if let Ok(reply) = answer {
        world.seen.bearers.insert(reply.bearer.clone(), said.next_key.unwrap_or(said.by));
        let reply = format!("{reply:?}");
        if *world.seen.replies.entry(*body).or_insert_with(|| reply.clone()) != reply {
            world.violate("the same check-in has two answers");
        }
    }
    if answer.is_ok() || matches!(answer, Err(CheckInRefusal::Sequence { .. })) {
        world.seen.spoke.extend(said.own_words());
    }
}

/// What is published is the machine's, and stays.
pub fn of_publication(world: &mut World, content: &Content, scene: &Scene) {
    let row = world.kept.memory.machines.get(&scene.cast.names[usize::from(content.machine)]);
    let fits = row.is_some_and(|row| (row.class.as_str() == "darwin") == content.darwin);
    if !fits {
        world.violate("I6: a generation is published for a machine of the other class");
    }
    let highest = world.seen.highest.get(&content.machine).copied();
    if highest.is_some_and(|highest| content.generation < highest) {
        world.violate("I2: a machine is pointed to an older generation than before");
    }
    let published = world.seen.published.entry((content.machine, content.generation));
    if *published.or_insert_with(|| content.clone()) != *content {
        world.violate("two generations of one number were both taken");
    }
    world.seen.highest.insert(content.machine, content.generation);
}

pub fn of_update(world: &mut World, scene: &Scene, taken: &Content) {
    let of_it = |signed: &&Content| *signed == taken;
    if world.seen.signed.iter().find(of_it).is_none() || usize::from(taken.machine) >= scene.cast.names.len()
    {
        world.violate("I8: a machine takes what no operator signed");
    }
}

/// What does not hold in this moment, if anything.
pub fn violated(world: &World, scene: &Scene) -> Option<String> {
    if let Some(violation) = &world.seen.violation {
        return Some(violation.clone());
    }
    let broken = stored_in_order(world, scene)
        .or_else(|| alarmed_for_nothing(world, scene))
        .or_else(|| revoked_is_over(world, scene))
        .or_else(|| draft_is_whole(world, scene));
    broken.map(str::to_owned)
}

/// I7: of each enrolment the events are in order, each once, and none left out where no disk and no store
/// was brought back.
fn stored_in_order(world: &World, scene: &Scene) -> Option<&'static str> {
    // A disk that is brought back, or is there twice, tells again what it told, under another name of its
    // count.
    if world.seen.brought_back || world.seen.cloned {
        return None;
    }
    let what = |event: &StoredEvent| {
        let value: serde_json::Value = serde_json::from_str(&event.raw).unwrap_or_default();
        value["at"].as_i64().unwrap_or(0)
    };
    let mut before: Option<(u64, i64)> = None;
    for ((name, enrolment, _), event) in &world.kept.memory.events {
        if *name != scene.cast.names[0] {
            continue;
        }
        let now = what(event);
        let last = before.filter(|(of, _)| of == enrolment).map(|(_, last)| last);
        if last.is_some_and(|last| now <= last) {
            return Some("I7: an event is stored twice, or out of order");
        }
        // Another computer goes on where the first one was.
        let wanted = last.or((*enrolment == 1).then_some(0)).map(|last| last + 1);
        if wanted.is_some_and(|wanted| now != wanted) && !world.seen.restored {
            return Some("I7: an event was left out");
        }
        before = Some((*enrolment, now));
    }
    None
}

/// A message that is slow, lost or repeated raises no alarm; two machines with one key do once both have
/// spoken.
fn alarmed_for_nothing(world: &World, scene: &Scene) -> Option<&'static str> {
    let row = world.kept.memory.machines.get(&scene.cast.names[0])?;
    let two = world.seen.cloned || world.seen.brought_back || world.seen.restored;
    match row.clone_alarm_at {
        Some(_) if !two => Some("a clone alarm without a clone"),
        None if world.seen.cloned && !world.seen.acknowledged && world.seen.spoke.len() > 1 => {
            Some("two machines share a key, without an alarm")
        }
        _ => None,
    }
}

/// A bearer ends with its machine, and with the key of the check-in that it came with.
fn revoked_is_over(world: &World, scene: &Scene) -> Option<&'static str> {
    let (memory, seals) = (&world.kept.memory, scene.cast.seals());
    for (bearer, key) in &world.seen.bearers {
        let Some(claims) = seals.read_bearer(bearer) else { return Some("a bearer is not the controller's") };
        let known = memory.known_machine(&claims.machine);
        let Some(known) = known.filter(|known| claims.hold(known, world.now() / 1000)) else { continue };
        if world.seen.revoked && claims.machine == scene.cast.names[0] {
            return Some("a revoked machine's bearer is good");
        }
        if known.key != scene.cast.key(*key) {
            return Some("a bearer of a key that was replaced is good");
        }
    }
    None
}

fn draft_is_whole(world: &World, scene: &Scene) -> Option<&'static str> {
    if world.seen.drafted.is_empty() {
        return None;
    }
    let id = draft(&scene.cast)?.id().ok()?;
    let kept = world.kept.memory.drafts.get(&id);
    let signed = kept.and_then(|kept| kept.draft.progress(&scene.cast.root).ok()).map(|all| all.signed);
    let all = world
        .seen
        .drafted
        .iter()
        .all(|n| signed.as_ref().is_some_and(|signed| signed.contains(&scene.cast.key(*n))));
    (!all).then_some("a draft lost a signature")
}

/// The machine, where the controller takes it for who it says.
fn is_enrolled(world: &World, scene: &Scene, machine: &Machine) -> bool {
    let row = world.kept.memory.machines.get(&scene.cast.names[usize::from(machine.name)]);
    let by = |row: &&Row| row.key == Some(scene.cast.key(machine.key)) && row.revoked_at.is_none();
    machine.token.is_none() && row.filter(by).is_some()
}

/// I7: every moment leads to one in which all that was told is stored, and told no more.
pub fn all_is_stored(world: &World, scene: &Scene) -> bool {
    let mut enrolled = world.machines.iter().filter(|machine| is_enrolled(world, scene, machine));
    let lossy = world.seen.restored || world.seen.brought_back || world.seen.cloned;
    // Of one computer all is there; what another one told before it was replaced may be gone with it.
    let told = usize::from(world.seen.told.get(&0).copied().unwrap_or(0));
    let alone = world.machines.len() == 1 && !lossy;
    enrolled.all(|machine| machine.waiting.is_empty() && (!alone || world.kept.memory.events.len() == told))
}

/// Every moment leads to one in which each machine has what is published, or something newer, and has
/// followed what it was
/// asked.
pub fn all_is_taken(world: &World, scene: &Scene) -> bool {
    world.machines.iter().filter(|machine| is_enrolled(world, scene, machine)).all(|machine| {
        let row = world.kept.memory.machines.get(&scene.cast.names[usize::from(machine.name)]);
        let published = row.and_then(|row| row.published);
        let has = machine.held.as_ref().map(|held| held.generation) >= published;
        let epoch = published.is_none_or(|published| published.epoch().get() == u64::from(world.epoch));
        let alarmed = row.is_some_and(|row| row.clone_alarm_at.is_some());
        let asked = world.seen.asked.iter().all(|id| machine.followed.contains(id));
        (has || !epoch || world.seen.taken_over) && (asked || alarmed || world.seen.taken_over)
    })
}
