//! The controller's store in memory: the same rows, and every change applied to them as `store/sqlite`
//! applies it.
//! `memory/tests.rs` holds the two against each other.

mod facts;
mod rollouts;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::hash::{Hash, Hasher};
use std::rc::Rc;

use muster_protocol::audit::{Checkpoint, Entry, LOG_CUT, origin};
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Generation, MachineName, Sha256, Tag};
use muster_protocol::keys::PublicKey;
use muster_protocol::machine::{Class, System};
use muster_protocol::operator::BrakeView;
use muster_server::core::Change;
use muster_server::core::change::{Bearer, CheckedIn, Enrolled, Invited, ReportsThrough};
use muster_server::core::garbage::Mark;
use muster_server::core::retention::{AT_ONCE, cost};
use muster_server::core::rollouts::facts::{Recorded, Void};
use muster_server::core::rollouts::{StoredRollout, Turn};
use muster_server::core::rows::{
    EarlierCheckIn, Granted, LastCheckIn, Outcome, Request, StoredAttack, StoredDraft, StoredEvent,
    StoredGeneration, Timestamp, Token, TokenUse,
};

/// Everything that a controller keeps.
#[derive(Debug, Clone)]
pub struct Memory {
    pub machines: BTreeMap<MachineName, Row>,
    pub tokens: BTreeMap<Sha256, Token>,
    pub bearers: BTreeMap<Sha256, Bearer>,
    /// By machine and ID.
    pub requests: BTreeMap<(MachineName, Sha256), Request>,
    /// By machine, enrolment and the controller's number.
    pub events: BTreeMap<(MachineName, u64, u64), Rc<StoredEvent>>,
    /// By the order in which they came.
    pub attacks: BTreeMap<u64, StoredAttack>,
    pub generations: BTreeMap<(MachineName, Generation), Rc<StoredGeneration>>,
    pub drafts: BTreeMap<Sha256, StoredDraft>,
    pub cache_marks: BTreeMap<String, Mark>,
    pub rollouts: BTreeMap<Sha256, StoredRollout>,
    /// What is recorded of machines in rollouts, by plan and machine.
    pub members: BTreeMap<(Sha256, MachineName), Recorded>,
    pub brake: Option<BrakeView>,
    pub root_logged: u64,
    pub log: Log,
    /// The newest change of each machine, by its number.
    pub changes: BTreeMap<MachineName, u64>,
    pub last_change: u64,
    pub last_attack: u64,
}

/// The audit log.
#[derive(Debug, Clone)]
pub struct Log {
    /// What its first entry is chained to: its origin, or the entry that it was cut at.
    pub origin: Checkpoint,
    pub entries: Vec<Rc<Entry>>,
}

/// One machine.
#[derive(Debug, Clone)]
pub struct Row {
    pub class: Class,
    pub system: System,
    pub tags: BTreeSet<Tag>,
    pub key: Option<PublicKey>,
    pub age: Option<String>,
    pub agent: Option<String>,
    pub enrolled_at: Option<UnixMillis>,
    pub revoked_at: Option<UnixMillis>,
    pub seen_at: Option<UnixMillis>,
    pub clock_skew_ms: Option<i64>,
    pub clone_alarm_at: Option<UnixMillis>,
    pub key_rotated_at: Option<UnixMillis>,
    pub key_rotation_asked_at: Option<UnixMillis>,
    pub enrolment: u64,
    pub bearer_counter: u64,
    pub seq: u64,
    pub last: Option<LastCheckIn>,
    pub earlier: Vec<EarlierCheckIn>,
    pub observed: Option<String>,
    pub reports_through: u64,
    pub report_stream: Option<String>,
    pub outcome: Option<Outcome>,
    pub events_bytes: u64,
    pub published: Option<Generation>,
    pub timestamp: Option<Timestamp>,
    pub timestamp_version: u64,
    pub generations_forgotten: u64,
    pub turn: Option<Turn>,
    pub turn_changed: bool,
    pub vouched: Option<Sha256>,
}

impl Row {
    fn new(invited: &Invited) -> Self {
        Self {
            class: invited.class,
            system: invited.system.clone(),
            tags: invited.tags.clone(),
            key: None,
            age: None,
            agent: None,
            enrolled_at: None,
            revoked_at: None,
            seen_at: None,
            clock_skew_ms: None,
            clone_alarm_at: None,
            key_rotated_at: None,
            key_rotation_asked_at: None,
            enrolment: 0,
            bearer_counter: 0,
            seq: 0,
            last: None,
            earlier: Vec::new(),
            observed: None,
            reports_through: 0,
            report_stream: None,
            outcome: None,
            events_bytes: 0,
            published: None,
            timestamp: None,
            timestamp_version: 0,
            generations_forgotten: 0,
            turn: None,
            turn_changed: false,
            vouched: None,
        }
    }
}

/// A change that the tables' own rules forbid: then nothing of the decision is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forbidden;

impl Memory {
    pub fn new(fleet: &Sha256) -> Self {
        Self {
            machines: BTreeMap::new(),
            tokens: BTreeMap::new(),
            bearers: BTreeMap::new(),
            requests: BTreeMap::new(),
            events: BTreeMap::new(),
            attacks: BTreeMap::new(),
            generations: BTreeMap::new(),
            drafts: BTreeMap::new(),
            cache_marks: BTreeMap::new(),
            rollouts: BTreeMap::new(),
            members: BTreeMap::new(),
            brake: None,
            root_logged: 0,
            log: Log { origin: origin(fleet), entries: Vec::new() },
            changes: BTreeMap::new(),
            last_change: 0,
            last_attack: 0,
        }
    }

    /// This store with the changes, all or none of them.
    pub fn with(&self, changes: &[Change]) -> Result<Self, Forbidden> {
        let mut next = self.clone();
        changes.iter().try_for_each(|change| next.apply(change))?;
        Ok(next)
    }

    fn apply(&mut self, change: &Change) -> Result<(), Forbidden> {
        match change {
            Change::MachineAdded { machine, at: _ } => {
                insert(&mut self.machines, machine.machine.clone(), Row::new(machine))?;
            }
            Change::MachineInvited(machine) => self.row(&machine.machine, |row| {
                let Invited { machine: _, class, system, tags } = machine.clone();
                (row.class, row.system, row.tags) = (class, system, tags);
                (row.key, row.revoked_at) = (None, None);
            }),
            Change::TagsReplaced { machine, tags } => self.row(machine, |row| row.tags = tags.clone()),
            Change::MachineRevoked { machine, at } => {
                self.row(machine, |row| row.revoked_at = Some(*at));
                self.void(machine, Void::Revoked);
            }
            Change::MachineSeen { machine, at } => self.row(machine, |row| row.seen_at = Some(*at)),
            Change::TokenMade(token) => {
                self.known(&token.machine)?;
                insert(&mut self.tokens, token.id, Token { used: None, ..token.clone() })?;
            }
            Change::TokenUsed { token, by, at } => {
                if let Some(token) = self.tokens.get_mut(token) {
                    token.used = Some(TokenUse { at: *at, by: *by });
                }
            }
            Change::TokensEnded { machine } => {
                self.tokens.retain(|_, token| token.machine != *machine || token.used.is_some());
            }
            Change::Enrolled(enrolled) => {
                self.enrol(enrolled)?;
                self.void(&enrolled.machine, Void::Replaced);
            }
            Change::CheckedIn(checked_in) => self.check_in(checked_in),
            Change::KeyReplaced { machine, key, at } => {
                self.key_is_free(machine, key)?;
                self.row(machine, |row| {
                    (row.key, row.key_rotated_at) = (Some(*key), Some(*at));
                    row.key_rotation_asked_at = None;
                });
            }
            Change::CloneAlarm { machine, at } => self.row(machine, |row| row.clone_alarm_at = Some(*at)),
            Change::CloneAlarmEnded { machine } => self.row(machine, |row| row.clone_alarm_at = None),
            Change::BearersEnded { machine } => self.row(machine, |row| row.bearer_counter += 1),
            Change::CounterRaised { machine, to } => {
                let named = |name: &MachineName| machine.as_ref().is_none_or(|machine| machine == name);
                for (_, row) in self.machines.iter_mut().filter(|(name, _)| named(name)) {
                    row.bearer_counter = (row.bearer_counter + 1).max(*to);
                }
            }
            Change::AccessEnded => {
                self.bearers.clear();
                self.tokens.retain(|_, token| token.used.is_some());
            }
            Change::BearerGranted(bearer) => insert(&mut self.bearers, bearer.hash, bearer.clone())?,
            Change::RequestKept { machine, request } => {
                self.known(machine)?;
                insert(&mut self.requests, (machine.clone(), request.id), request.clone())?;
            }
            Change::RequestsDropped { machine, ids } => {
                self.requests.retain(|(of, id), _| of != machine || !ids.contains(id));
            }
            Change::RequestsHandedOn { machine } => {
                let of_it = self.requests.iter_mut().filter(|((of, _), _)| of == machine);
                of_it.for_each(|(_, request)| request.handed_on = true);
            }
            Change::KeyRotationAsked { machine, at } => {
                self.row(machine, |row| row.key_rotation_asked_at = Some(*at));
            }
            Change::EventStored(event) => {
                self.known(&event.machine)?;
                let place = (event.machine.clone(), event.enrolment, event.seq);
                insert(&mut self.events, place, Rc::new(StoredEvent::clone(event)))?;
            }
            Change::ReportsThrough(count) => {
                let ReportsThrough { machine, through, outcome, seen_at, stream, events_bytes } = &**count;
                self.row(machine, |row| {
                    (row.reports_through, row.outcome) = (*through, outcome.clone());
                    (row.seen_at, row.report_stream) = (Some(*seen_at), stream.clone());
                    row.events_bytes = *events_bytes;
                });
            }
            Change::EventsTrimmed { machine, bytes, wanted } => self.trim_events(machine, *bytes, *wanted),
            Change::EventsForgotten { before, most } => self.forget_events(*before, *most),
            Change::AttackOpened(attack) => {
                self.known(&attack.machine)?;
                self.last_attack += 1;
                self.attacks.insert(self.last_attack, StoredAttack::clone(attack));
            }
            Change::AttacksTrimmed { machine, keep } => {
                let of_it = self.attacks.iter().filter(|(_, attack)| attack.machine == *machine);
                let gone: Vec<u64> = of_it.rev().skip(*keep as usize).map(|(id, _)| *id).collect();
                self.attacks.retain(|id, _| !gone.contains(id));
            }
            Change::AttacksEnded { machine, at } => {
                let of_it = self.attacks.values_mut().filter(|attack| attack.machine == *machine);
                of_it.for_each(|attack| attack.ended_at = attack.ended_at.or(Some(*at)));
            }
            Change::GenerationStored(new) => {
                self.known(&new.machine)?;
                let place = (new.machine.clone(), new.generation);
                insert(&mut self.generations, place, Rc::new(StoredGeneration::clone(new)))?;
            }
            Change::Published { machine, generation, turn } => self.row(machine, |row| {
                row.published = Some(*generation);
                (row.turn, row.turn_changed) = (turn.as_deref().cloned(), false);
            }),
            Change::TimestampStored { machine, timestamp } => self.row(machine, |row| {
                row.timestamp_version = timestamp.version;
                row.timestamp = Some(timestamp.clone());
            }),
            Change::DraftKept(kept) => {
                self.drafts.insert(kept.id, StoredDraft::clone(kept));
            }
            Change::DraftDropped { id } => drop(self.drafts.remove(id)),
            Change::RootInForce { version } => self.root_logged = *version,
            Change::Audited(entry) => {
                let entry = entry.chained(&self.log.newest());
                self.log.entries.push(Rc::new(entry));
            }
            Change::MachineChanged { machine } => {
                self.known(machine)?;
                self.last_change += 1;
                self.changes.insert(machine.clone(), self.last_change);
            }
            Change::LogCut { through } => self.log.cut(through)?,
            Change::CutEntriesForgotten { most: _ } => {}
            Change::EndedForgotten { now_s, most: _ } => self.sweep(*now_s),
            Change::TokensForgotten { before_s, most: _ } => {
                self.tokens.retain(|_, token| token.expires >= *before_s);
            }
            Change::AttacksForgotten { before, most: _ } => {
                self.attacks.retain(|_, attack| attack.ended_at.is_none_or(|ended| ended >= *before));
            }
            Change::GenerationsForgotten { machine, generations } => {
                for generation in generations {
                    if self.generations.remove(&(machine.clone(), *generation)).is_some() {
                        self.row(machine, |row| row.generations_forgotten += 1);
                    }
                }
            }
            Change::PlanStored(_)
            | Change::RolloutAsked { .. }
            | Change::RolloutDecided { .. }
            | Change::MemberFailed { .. }
            | Change::MembersForgiven { .. }
            | Change::MemberTriesAgain { .. }
            | Change::Said(_)
            | Change::TurnChanged(_)
            | Change::BrakeSet { .. }
            | Change::PlansForgotten { .. } => self.roll(change)?,
            Change::CacheMarked { names, mark } => {
                for name in names {
                    match mark {
                        Some(mark) => drop(self.cache_marks.insert(name.clone(), *mark)),
                        None => drop(self.cache_marks.remove(name)),
                    }
                }
            }
        }
        Ok(())
    }

    /// Changes a machine's row; of one that is not there nothing is changed.
    fn row(&mut self, machine: &MachineName, change: impl FnOnce(&mut Row)) {
        if let Some(row) = self.machines.get_mut(machine) {
            change(row);
        }
    }

    fn known(&self, machine: &MachineName) -> Result<(), Forbidden> {
        self.machines.contains_key(machine).then_some(()).ok_or(Forbidden)
    }

    /// No two machines have one key.
    fn key_is_free(&self, machine: &MachineName, key: &PublicKey) -> Result<(), Forbidden> {
        (!self.another_has(machine, key)).then_some(()).ok_or(Forbidden)
    }

    fn enrol(&mut self, enrolled: &Enrolled) -> Result<(), Forbidden> {
        let Enrolled { machine, class, system, key, age, agent, at } = enrolled.clone();
        self.key_is_free(&machine, &key)?;
        self.row(&machine, |row| {
            let before = row.clone();
            *row = Row {
                key: Some(key),
                age: Some(age),
                agent: Some(agent),
                enrolled_at: Some(at),
                seen_at: Some(at),
                enrolment: before.enrolment + 1,
                bearer_counter: before.bearer_counter,
                events_bytes: before.events_bytes,
                published: before.published,
                timestamp: before.timestamp,
                timestamp_version: before.timestamp_version,
                generations_forgotten: before.generations_forgotten,
                turn: before.turn,
                turn_changed: before.turn_changed,
                vouched: before.vouched,
                ..Row::new(&Invited { machine: enrolled.machine.clone(), class, system, tags: before.tags })
            };
        });
        Ok(())
    }

    fn check_in(&mut self, checked_in: &CheckedIn) {
        let CheckedIn {
            machine,
            seq,
            observed,
            body,
            grant,
            reply,
            agent,
            at,
            clock_skew_ms,
            earlier,
            told: _,
            vouched,
            turn: _,
        } = checked_in;
        self.row(machine, |row| {
            row.seq = *seq;
            row.last = Some(LastCheckIn {
                body: *body,
                granted: Granted::Sealed(*grant),
                reply: Some(reply.clone()),
            });
            (row.observed, row.agent) = (Some(observed.to_string()), Some(agent.clone()));
            (row.seen_at, row.clock_skew_ms) = (Some(*at), Some(*clock_skew_ms));
            row.earlier.clone_from(earlier);
            (row.vouched, row.turn_changed) = (*vouched, false);
        });
    }

    fn trim_events(&mut self, machine: &MachineName, bytes: u64, wanted: u64) {
        let mut left = bytes;
        for decides in [false, true] {
            while left > wanted {
                let most = if left - wanted > 1024 * 1024 { AT_ONCE } else { AT_ONCE / 8 };
                let of_it = self.events.iter().filter(|((of, ..), _)| of == machine);
                let gone: Vec<_> = of_it
                    .filter(|(_, event)| event.decides == decides)
                    .take(most as usize)
                    .map(|(place, event)| (place.clone(), cost(event.raw.len())))
                    .collect();
                if gone.is_empty() {
                    break;
                }
                for (place, bytes) in gone {
                    self.events.remove(&place);
                    left = left.saturating_sub(bytes);
                }
            }
        }
        self.row(machine, |row| row.events_bytes = left);
    }

    fn forget_events(&mut self, before: UnixMillis, most: u32) {
        let mut gone: Vec<_> = self
            .events
            .iter()
            .filter(|(_, event)| !event.decides && event.received_at < before)
            .map(|(place, event)| (event.received_at, place.clone()))
            .collect();
        gone.sort();
        for (_, place) in gone.into_iter().take(most as usize) {
            let Some(event) = self.events.remove(&place) else { continue };
            self.row(&place.0, |row| {
                row.events_bytes = row.events_bytes.saturating_sub(cost(event.raw.len()));
            });
        }
    }

    fn sweep(&mut self, now_s: i64) {
        self.bearers.retain(|_, bearer| bearer.expires > now_s);
        self.drafts.retain(|_, kept| kept.draft.ends > now_s);
        self.requests.retain(|_, request| request.ends > now_s);
        for (name, row) in &mut self.machines {
            let waits = |((of, _), request): (&(MachineName, Sha256), &Request)| {
                of == name && request.asks == "rotate-key"
            };
            row.key_rotation_asked_at = row.key_rotation_asked_at.filter(|_| self.requests.iter().any(waits));
        }
    }
}

fn insert<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: V) -> Result<(), Forbidden> {
    map.insert(key, value).map_or(Ok(()), |_| Err(Forbidden))
}

impl Log {
    /// Only at one of its entries, and not at the newest, which tells of the cut.
    fn cut(&mut self, through: &Checkpoint) -> Result<(), Forbidden> {
        let is_it = |entry: &Rc<Entry>| entry.id == through.id && entry.hash == through.hash;
        let place = self.entries.iter().position(is_it).ok_or(Forbidden)?;
        let told = self.entries.last().is_some_and(|newest| newest.action == LOG_CUT);
        if !told || place + 1 == self.entries.len() {
            return Err(Forbidden);
        }
        self.entries.drain(..=place);
        self.origin = *through;
        Ok(())
    }

    pub fn newest(&self) -> Checkpoint {
        let newest = self.entries.last();
        newest.map_or(self.origin, |entry| Checkpoint { id: entry.id, hash: entry.hash })
    }
}

/// What decisions are made by. Of the log that is what it tells, in whatever order it came; of changes it is
/// nothing.
impl Hash for Memory {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { machines, tokens, bearers, requests, events, attacks, generations, drafts, .. } = self;
        let _ = write!(
            Text(state),
            "{machines:?}{tokens:?}{bearers:?}{requests:?}{events:?}{attacks:?}{drafts:?}{}{:?}{:?}{:?}",
            self.root_logged,
            self.rollouts,
            self.members,
            self.brake
        );
        for ((machine, generation), stored) in generations {
            (machine.as_str(), generation, &stored.files.targets).hash(state);
        }
        let mut told: Vec<_> =
            self.log.entries.iter().map(|entry| (&entry.action, &entry.machine, &entry.detail)).collect();
        told.sort();
        told.hash(state);
    }
}

struct Text<'a, H: Hasher>(&'a mut H);

impl<H: Hasher> fmt::Write for Text<'_, H> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}
