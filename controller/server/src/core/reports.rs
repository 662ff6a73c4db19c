//! Events of machines: each stored once and in order (I7), as the bytes received.
//!
//! A machine numbers its events itself, and names a new count when it has to start over: the numbers already
//! stored then say nothing about the new count. Here each event gets a number after the last one, so that
//! they stay in order.

use std::collections::BTreeSet;

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Generation, MachineName};
use muster_protocol::report::{Asker, Attack, Event, EventKind, MAX_EVENT_NUMBER, MAX_LOG_TAIL, Stream};

use super::audit::NewEntry;
use super::change::{Change, Decided, ReportsThrough};
use super::retention;
use super::rows::{NUMBERS_END, Outcome, StoredAttack, StoredEvent};

/// How many attacks are kept for one machine: the newest.
const ATTACKS_KEPT: u32 = 500;
/// The minimum time between audit entries for an ongoing attack, in milliseconds, however often a machine
/// reports it.
pub const LOGGED_APART_MS: i64 = 3_600_000;
pub const ATTACK_REFUSED: &str = "attack-refused";

/// How many audit entries about retries one machine may cause in a day: entries cannot be removed.
const RETRIES_LOGGED: u64 = 16;
pub const DAY_MS: i64 = 24 * 60 * 60 * 1000;
/// The audit action for a retry that somebody allowed on a machine.
pub const QUARANTINE_LIFTED: &str = "quarantine-lifted";
pub const RETRIED: &str = "retried";

/// One event of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    pub seq: u64,
    pub generation: Option<Generation>,
    /// JSON, as received, or what it was cut down to.
    pub raw: String,
    /// The parsed event; `None` if this version cannot parse it, which is not a reason to refuse it.
    pub read: Option<Event>,
}

impl NewEvent {
    pub fn new(seq: u64, generation: Option<Generation>, raw: String) -> Self {
        let read = serde_json::from_str(&raw).ok();
        Self { seq, generation, raw, read }
    }

    fn kind(&self) -> &EventKind {
        self.read.as_ref().map_or(&EventKind::Unknown, |event| &event.kind)
    }
}

/// A batch with a verified signature.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    pub machine: &'a MachineName,
    /// The name of the machine's count; agents of 0.1 do not send one.
    pub stream: Option<Stream>,
    /// Events with lower numbers that have not arrived never will.
    pub oldest: u64,
    pub events: &'a [NewEvent],
}

impl Batch<'_> {
    /// Whether the audit entries about attacks are needed.
    pub fn tells_of_attacks(&self) -> bool {
        self.events.iter().any(|event| matches!(event.kind(), EventKind::Refused { .. }))
    }
    /// Whether the number of audit entries about retries is needed.
    pub fn tells_of_retries(&self) -> bool {
        self.events.iter().any(|event| matches!(event.kind(), EventKind::Retried { .. }))
    }
}

/// What is stored of a machine that is enrolled with the batch's key.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Stored {
    pub enrolment: u64,
    /// Every event up to this number is stored, or never will be.
    pub through: u64,
    pub stream: Option<String>,
    pub outcome: Option<Outcome>,
    /// Whether the last check-in says that an attack is ongoing.
    pub refuses: bool,
    pub events_bytes: u64,
    /// The controller's number for its newest event of this enrolment.
    pub newest: u64,
    /// The attacks of this machine logged within [`LOGGED_APART_MS`], by [`Attack::as_str`].
    pub attacks_logged: BTreeSet<String>,
    /// How many of this machine's retries were logged within [`DAY_MS`].
    pub retries_logged: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReportRefusal {
    #[error("machine {0} is not enrolled with this key: enrol it with a token of `muster machines add {0}`")]
    NotEnrolled(MachineName),
    #[error(
        "the events of {machine} continue with {found}, but {wanted} is next: send them in order, from \
            {wanted} on"
    )]
    Order { machine: MachineName, wanted: u64, found: u64 },
    #[error("{found} is not a valid event number of {machine}: start another count, with a new name")]
    OutOfRange { machine: MachineName, found: u64 },
}

/// Refuses numbers that no count of events reaches.
pub fn require_range(batch: &Batch<'_>) -> Result<(), ReportRefusal> {
    let found = batch.events.iter().map(|event| event.seq).max().unwrap_or(0).max(batch.oldest);
    // Agents of 0.1 have one count only, and continued where the controller told them to.
    if (batch.stream.is_some() && found > MAX_EVENT_NUMBER) || found >= NUMBERS_END {
        return Err(ReportRefusal::OutOfRange { machine: batch.machine.clone(), found });
    }
    Ok(())
}

/// Stores the new events of a batch, keeping at most `keep` bytes of the machine's events. Answers with the
/// number up to which everything is stored, or never will be.
pub fn report(
    stored: Option<&Stored>,
    batch: &Batch<'_>,
    keep: u64,
    now: UnixMillis,
) -> Result<Decided<u64>, ReportRefusal> {
    let (machine, oldest) = (batch.machine, batch.oldest);
    require_range(batch)?;
    let stored = stored.ok_or_else(|| ReportRefusal::NotEnrolled(machine.clone()))?;
    let (before, renamed) = stored.count(batch);
    let mut taking = Taking::new(stored, machine, now);
    let mut last = before;
    for event in batch.events.iter().filter(|event| event.seq > before) {
        if event.seq <= last && last > before {
            let wanted = last.saturating_add(1);
            return Err(ReportRefusal::Order { machine: machine.clone(), wanted, found: event.seq });
        }
        last = event.seq;
        taking.take(event);
    }
    let through = last.max(oldest.saturating_sub(1));
    if through == before && !renamed {
        return Ok(Decided::unchanged(through));
    }
    let Taking { mut changes, outcome, bytes, .. } = taking;
    changes.push(Change::ReportsThrough(Box::new(ReportsThrough {
        machine: machine.clone(),
        through,
        outcome,
        seen_at: now,
        stream: batch.stream.map(|stream| stream.to_string()).or_else(|| stored.stream.clone()),
        events_bytes: bytes,
    })));
    if let Some(wanted) = retention::cut_down_to(bytes, keep) {
        changes.push(Change::EventsTrimmed { machine: machine.clone(), bytes, wanted });
    }
    changes.push(Change::MachineChanged { machine: machine.clone() });
    Ok(Decided { changes, answer: through })
}

impl Stored {
    /// The position of the machine's count, and whether it has a new name: then it starts over. The first
    /// name says nothing about the numbers: the agent was updated to a version that sends one. Nor does a
    /// missing name: an older agent replaced it.
    fn count(&self, batch: &Batch<'_>) -> (u64, bool) {
        let known = self.stream.as_ref();
        let renamed = batch.stream.zip(known).is_some_and(|(stream, known)| stream.to_string() != *known);
        let through = if renamed { 0 } else { self.through };
        // Events that a machine has dropped never arrive. A number that no count reaches was never stored.
        let beyond = batch.stream.is_some() && through > MAX_EVENT_NUMBER;
        (if beyond { batch.oldest.saturating_sub(1) } else { through }, renamed)
    }
}

/// A batch being processed.
struct Taking<'a> {
    stored: &'a Stored,
    machine: &'a MachineName,
    now: UnixMillis,
    changes: Vec<Change>,
    newest: u64,
    bytes: u64,
    outcome: Option<Outcome>,
    attacks_logged: BTreeSet<String>,
    retries_logged: u64,
}

impl<'a> Taking<'a> {
    fn new(stored: &'a Stored, machine: &'a MachineName, now: UnixMillis) -> Self {
        Self {
            stored,
            machine,
            now,
            changes: Vec::new(),
            newest: stored.newest,
            bytes: stored.events_bytes,
            outcome: stored.outcome.clone(),
            attacks_logged: stored.attacks_logged.clone(),
            retries_logged: stored.retries_logged,
        }
    }

    fn take(&mut self, event: &NewEvent) {
        self.newest = self.newest.saturating_add(1);
        let decides = Outcome::of(event.generation, event.kind()).is_some();
        self.changes.push(Change::EventStored(Box::new(StoredEvent {
            machine: self.machine.clone(),
            enrolment: self.stored.enrolment,
            seq: self.newest,
            generation: event.generation,
            received_at: self.now,
            raw: event.raw.clone(),
            decides,
        })));
        self.bytes = self.bytes.saturating_add(retention::cost(event.raw.len()));
        match &event.read {
            Some(told @ Event { kind: EventKind::Refused { attack, detail }, .. }) => {
                self.attack(*attack, detail, told);
            }
            Some(Event { kind: EventKind::Retried { derivation, quarantined, by }, .. }) => {
                let action = if *quarantined { QUARANTINE_LIFTED } else { RETRIED };
                self.retried(action, format!("{} ({})", derivation.name(), asker(by)));
            }
            _ => {}
        }
        self.outcome = Outcome::after(self.outcome.take(), event.generation, event.kind());
    }

    /// An attack that the last check-in no longer mentions is already over.
    fn attack(&mut self, attack: Attack, detail: &str, event: &Event) {
        self.changes.push(Change::AttackOpened(Box::new(StoredAttack {
            machine: self.machine.clone(),
            attack,
            detail: detail[..detail.floor_char_boundary(MAX_LOG_TAIL)].to_owned(),
            generation: event.generation,
            at: event.at,
            received_at: self.now,
            ended_at: (!self.stored.refuses).then_some(self.now),
        })));
        self.changes.push(Change::AttacksTrimmed { machine: self.machine.clone(), keep: ATTACKS_KEPT });
        if self.attacks_logged.insert(attack.as_str().to_owned()) {
            self.log(ATTACK_REFUSED, attack.as_str().to_owned());
        }
    }

    fn retried(&mut self, action: &'static str, detail: String) {
        if self.retries_logged < RETRIES_LOGGED {
            self.retries_logged += 1;
            self.log(action, detail);
        }
    }

    fn log(&mut self, action: &'static str, detail: String) {
        let entry = NewEntry::by_itself(self.now, action, detail).on(self.machine);
        self.changes.push(Change::Audited(entry));
    }
}

/// Who allowed it, as the machine reports it.
fn asker(by: &Asker) -> String {
    match by {
        Asker::Local { user: Some(0) } => "by root at the machine".to_owned(),
        Asker::Local { user: Some(user) } => format!("by user {user} at the machine"),
        Asker::Local { user: None } => "at the machine".to_owned(),
        Asker::Operator { key } => format!("as the operator with key {} asked", key.short()),
        Asker::Unknown => "asked for in a way that this version does not know".to_owned(),
    }
}

#[cfg(test)]
mod tests;
