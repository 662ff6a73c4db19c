//! What is stored, as plain data: no database types, no text left to parse.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::checkin::{CheckIn, CheckInReply};
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Generation, MachineName, Sha256, Tag};
use muster_protocol::keys::PublicKey;
use muster_protocol::machine::{Class, System};
use muster_protocol::operator::{AttackView, Publication, Published, Standing};
use muster_protocol::report::{Attack, EventKind};
use muster_protocol::request::SignedRequest;
use serde::{Deserialize, Serialize};

use super::rollouts::stored::Turn;

/// No honest machine numbers check-ins or events this high, and database integers do not hold such numbers.
pub const NUMBERS_END: u64 = i64::MAX as u64;

/// Everything known about one machine, for operators.
#[derive(Debug, Clone)]
pub struct Machine {
    pub name: MachineName,
    pub class: Class,
    pub system: System,
    pub tags: BTreeSet<Tag>,
    pub has_key: bool,
    /// The key, where it was wanted.
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
    /// Its last check-in.
    pub observed: Option<CheckIn>,
    /// The outcome of the last generation that it reported on.
    pub outcome: Option<Outcome>,
    pub published: Option<Published>,
    /// The newest attack that it reported and that is ongoing.
    pub attack: Option<AttackView>,
    /// How many of its generations were forgotten.
    pub generations_forgotten: u64,
    /// Where it is in the rollout of its latest generation.
    pub turn: Option<Turn>,
}

impl Machine {
    pub fn standing(&self) -> Standing {
        match (self.revoked_at, self.has_key) {
            (Some(_), _) => Standing::Revoked,
            (None, true) => Standing::Enrolled,
            (None, false) => Standing::Invited,
        }
    }
}

/// What the requests of an enrolled machine are checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownMachine {
    pub key: PublicKey,
    pub class: Class,
    pub revoked: bool,
    /// Which of its lives it is in.
    pub enrolment: u64,
    /// How often its bearers and sessions have been ended.
    pub counter: u64,
    /// The number of its last check-in.
    pub seq: u64,
    /// When it was last heard of; 0 if never.
    pub seen_at: UnixMillis,
}

/// The last event that decided a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub generation: Generation,
    #[serde(flatten)]
    pub kind: EventKind,
}

impl Outcome {
    /// The outcome that an event reports, if it decides a generation.
    pub fn of(generation: Option<Generation>, kind: &EventKind) -> Option<Self> {
        let decides = matches!(
            kind,
            EventKind::Confirmed { .. }
                | EventKind::RolledBack { .. }
                | EventKind::Failed { .. }
                | EventKind::NeedsHuman { .. }
        );
        Some(Self { generation: generation.filter(|_| decides)?, kind: kind.clone() })
    }

    /// What has decided the newest generation once this has happened, too. A local rollback concerns an older
    /// one, and the newest one's outcome stays. Of a generation that is tried again nothing is decided.
    pub fn after(held: Option<Self>, generation: Option<Generation>, kind: &EventKind) -> Option<Self> {
        if matches!(kind, EventKind::Retried { .. }) {
            return held.filter(|held| Some(held.generation) != generation);
        }
        let stays = held.as_ref().map(|held| held.generation);
        let new = Self::of(generation, kind).filter(|new| stays.is_none_or(|held| new.generation >= held));
        new.or(held)
    }
}

/// The principal of a bearer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Principal {
    Machine(MachineName),
    Operator(PublicKey),
}

/// A token of `muster machines add`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub id: Sha256,
    pub machine: MachineName,
    pub class: Class,
    pub check_key: Sha256,
    /// Unix seconds.
    pub expires: i64,
    pub made_at: UnixMillis,
    /// When and by which key it was used.
    pub used: Option<TokenUse>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenUse {
    pub at: UnixMillis,
    pub by: PublicKey,
}

/// A machine's last check-in, and the reply to send if it is repeated.
#[derive(Debug, Clone, PartialEq)]
pub struct LastCheckIn {
    pub body: Sha256,
    pub granted: Granted,
    /// Without its bearer; `None` if it cannot be parsed.
    pub reply: Option<CheckInReply>,
}

/// What the bearer of a check-in is made again from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granted {
    Sealed(Grant),
    /// By version 0.1: from this salt and the check-in's signature.
    Salted([u8; 32]),
}

/// What a bearer is sealed with: the same text each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// The number of the key that sealed it.
    pub key: u32,
    /// Unix seconds.
    pub expires: i64,
}

/// A check-in before the last one, kept so that a delayed one raises no alarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EarlierCheckIn {
    pub seq: u64,
    /// The first bytes of the body's SHA-256.
    pub body: [u8; 16],
}

/// An operator's request to a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub id: Sha256,
    /// What it asks for ([`muster_protocol::request::Asked::as_str`]).
    pub asks: String,
    /// `None` if this version cannot parse it.
    pub document: Option<SignedRequest>,
    /// Unix seconds.
    pub ends: i64,
    pub handed_on: bool,
}

/// An event as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    pub machine: MachineName,
    /// Each enrolment has events of its own.
    pub enrolment: u64,
    /// The controller's own number, not the machine's.
    pub seq: u64,
    pub generation: Option<Generation>,
    pub received_at: UnixMillis,
    /// JSON, as received.
    pub raw: String,
    /// Whether it decided a generation: such events are kept longest.
    pub decides: bool,
}

/// An attack that a machine refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAttack {
    pub machine: MachineName,
    pub attack: Attack,
    pub detail: String,
    pub generation: Option<Generation>,
    /// By the machine's clock.
    pub at: UnixMillis,
    pub received_at: UnixMillis,
    pub ended_at: Option<UnixMillis>,
}

/// A published generation: the files that operators signed, and what is known about them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredGeneration {
    pub machine: MachineName,
    pub generation: Generation,
    pub files: GenerationFiles,
    pub target_sha256: Sha256,
    /// When the operators' signature expires, in Unix seconds.
    pub expires: i64,
    pub published_at: UnixMillis,
    pub published_by: PublicKey,
    /// The operators who signed it.
    pub signers: Vec<PublicKey>,
    /// The plan that its target names.
    pub plan: Option<Sha256>,
}

/// The files of one generation, each as the bytes that were signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerationFiles {
    pub targets: Vec<u8>,
    pub snapshot: Vec<u8>,
    pub target: Vec<u8>,
}

impl GenerationFiles {
    /// Whether these are the files of this publication.
    pub fn is(&self, publication: &Publication) -> bool {
        let Publication { generation: _, targets, snapshot, target } = publication;
        (&self.targets[..], &self.snapshot[..], &self.target[..])
            == (targets.as_bytes(), snapshot.as_bytes(), target.as_bytes())
    }
}

/// A signed `timestamp.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timestamp {
    pub bytes: Vec<u8>,
    pub version: u64,
    /// Unix seconds.
    pub expires: i64,
    /// The online key that signed it.
    pub key: PublicKey,
}

/// A stored draft.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredDraft {
    pub id: Sha256,
    pub draft: muster_protocol::draft::Draft,
}

/// What is recorded of a file that nothing needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// When it was condemned, or when its removal began.
    pub at: UnixMillis,
    pub removing: bool,
}

/// The marks of some files; those without one are not in it.
pub type Marks = BTreeMap<String, Mark>;

/// Where the counter of a machine's bearers goes on if a lost database may have had a higher one.
pub fn counters_go_on(now: UnixMillis) -> u64 {
    u64::try_from(now.div_euclid(1000)).unwrap_or(0)
}
