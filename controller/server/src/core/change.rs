//! Everything that a decision may write. A store applies the changes of one decision in order and atomically,
//! and writes nothing else: applied to in-memory maps, they have the same result as in a database.

use std::collections::BTreeSet;
use std::sync::Arc;

use muster_protocol::audit::Checkpoint;
use muster_protocol::checkin::CheckInReply;
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Generation, MachineName, Sha256, Tag};
use muster_protocol::keys::PublicKey;
use muster_protocol::machine::{Class, System};
use muster_protocol::operator::BrakeView;

use super::audit::NewEntry;
use super::rollouts::stored::{Asked, Failed, NewRollout, NewTurn, Said, Turn, Verdict};
use super::rows::{
    EarlierCheckIn, Grant, Mark, Outcome, Request, StoredAttack, StoredDraft, StoredEvent, StoredGeneration,
    Timestamp, Token,
};

/// What to write, and what to answer once it is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Decided<A> {
    pub changes: Vec<Change>,
    pub answer: A,
}

impl<A> Decided<A> {
    /// Nothing to write.
    pub fn unchanged(answer: A) -> Self {
        Self { changes: Vec::new(), answer }
    }
}

/// One change of what is stored.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A new machine.
    MachineAdded {
        machine: Invited,
        at: UnixMillis,
    },
    /// A known machine without a key, or a revoked one, becomes an invited one: its key and its revocation
    /// are cleared.
    MachineInvited(Invited),
    TagsReplaced {
        machine: MachineName,
        tags: BTreeSet<Tag>,
    },
    MachineRevoked {
        machine: MachineName,
        at: UnixMillis,
    },
    MachineSeen {
        machine: MachineName,
        at: UnixMillis,
    },
    TokenMade(Token),
    TokenUsed {
        token: Sha256,
        by: PublicKey,
        at: UnixMillis,
    },
    /// This machine's unused tokens expire.
    TokensEnded {
        machine: MachineName,
    },
    /// A machine enrols: its last check-in, event count, outcome, alarm and rotation are cleared.
    Enrolled(Box<Enrolled>),

    CheckedIn(Box<CheckedIn>),
    /// Also clears a pending key rotation.
    KeyReplaced {
        machine: MachineName,
        key: PublicKey,
        at: UnixMillis,
    },
    CloneAlarm {
        machine: MachineName,
        at: UnixMillis,
    },
    CloneAlarmEnded {
        machine: MachineName,
    },
    /// Ends all bearers and sessions of this machine: raises the counter that each of them names.
    BearersEnded {
        machine: MachineName,
    },
    BearerGranted(Bearer),
    /// Raises the counter of this machine's bearers, or of everybody's if none is named: by one, and to this
    /// at least.
    CounterRaised {
        machine: Option<MachineName>,
        to: u64,
    },
    /// Removes all stored bearers and all unused tokens.
    AccessEnded,

    RequestKept {
        machine: MachineName,
        request: Request,
    },
    RequestsDropped {
        machine: MachineName,
        ids: Vec<Sha256>,
    },
    /// Removes all requests waiting for this machine.
    RequestsHandedOn {
        machine: MachineName,
    },
    KeyRotationAsked {
        machine: MachineName,
        at: UnixMillis,
    },

    EventStored(Box<StoredEvent>),
    /// The position of a machine's event count.
    ReportsThrough(Box<ReportsThrough>),
    /// Removes a machine's oldest events until they take at most `wanted` of their `bytes`; events that
    /// decided a generation are removed last. More may be removed than necessary. The new size is recorded.
    EventsTrimmed {
        machine: MachineName,
        bytes: u64,
        wanted: u64,
    },
    /// Removes events of all machines that arrived before this and decided no generation: the oldest, `most`
    /// of them.
    EventsForgotten {
        before: UnixMillis,
        most: u32,
    },
    AttackOpened(Box<StoredAttack>),
    /// Removes all but this machine's newest `keep`.
    AttacksTrimmed {
        machine: MachineName,
        keep: u32,
    },
    /// Ends this machine's ongoing attacks.
    AttacksEnded {
        machine: MachineName,
        at: UnixMillis,
    },

    GenerationStored(Box<StoredGeneration>),
    /// The generation that the machine is offered.
    Published {
        machine: MachineName,
        generation: Generation,
        /// Where the machine is in its rollout, if it has one.
        turn: Option<Box<Turn>>,
    },
    TimestampStored {
        machine: MachineName,
        timestamp: Timestamp,
    },
    /// A new draft, or more signatures for a stored one, whose time, author and expiry stay the same.
    DraftKept(Box<StoredDraft>),
    DraftDropped {
        id: Sha256,
    },
    /// The newest root in the log.
    RootInForce {
        version: u64,
    },

    /// A plan, and its rollout.
    PlanStored(Box<NewRollout>),
    /// What an operator asks of a rollout now.
    RolloutAsked {
        plan: Sha256,
        asked: Asked,
    },
    /// What was decided of a rollout; whether it is open follows from that.
    RolloutDecided {
        plan: Sha256,
        verdict: Verdict,
    },
    /// The first failure of a machine in a rollout; one that is there already stays.
    MemberFailed {
        plan: Sha256,
        failed: Failed,
    },
    /// The failures, or the revocation, of these machines of a rollout no longer count.
    MembersForgiven {
        plan: Sha256,
        machines: Vec<MachineName>,
    },
    /// A machine whose failure was forgiven tries again: what it comes to counts anew.
    MemberTriesAgain {
        plan: Sha256,
        machine: MachineName,
    },
    /// What a machine said of a plan; nothing if the plan is gone.
    Said(Said),
    /// The turn of a machine, if the generation is still its latest.
    TurnChanged(Box<NewTurn>),
    BrakeSet {
        brake: Option<BrakeView>,
    },
    /// Removes plans, and their rollouts, that were sent before this and that no generation names, `most` of
    /// them.
    PlansForgotten {
        before: UnixMillis,
        most: u32,
    },

    /// The mark of these files of the cache: a new one, or none any more.
    CacheMarked {
        names: Vec<String>,
        mark: Option<Mark>,
    },

    /// Chained to the previous entry: [`NewEntry::chained`].
    Audited(NewEntry),
    /// The log begins after this entry; the newest entry says so.
    LogCut {
        through: Checkpoint,
    },
    /// Removes the oldest entries that were cut, `most` of them.
    CutEntriesForgotten {
        most: u32,
    },
    /// Moves the fleet's cursor: this machine's change is the newest. Nothing is stored.
    MachineChanged {
        machine: MachineName,
    },
    /// Removes bearers, nonces, drafts and requests that have expired by then, `most` of each, and a pending
    /// key rotation whose request is gone.
    EndedForgotten {
        now_s: i64,
        most: u32,
    },
    /// Removes tokens that expired before this (Unix seconds), `most` of them.
    TokensForgotten {
        before_s: i64,
        most: u32,
    },
    /// Removes attacks that ended before this, `most` of them.
    AttacksForgotten {
        before: UnixMillis,
        most: u32,
    },
    /// Removes these generations of a machine, and counts them.
    GenerationsForgotten {
        machine: MachineName,
        generations: Vec<Generation>,
    },
}

/// What an operator says about a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invited {
    pub machine: MachineName,
    pub class: Class,
    pub system: System,
    pub tags: BTreeSet<Tag>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    pub machine: MachineName,
    pub class: Class,
    pub system: System,
    pub key: PublicKey,
    pub age: String,
    pub agent: String,
    pub at: UnixMillis,
}

/// An accepted check-in.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckedIn {
    pub machine: MachineName,
    pub seq: u64,
    /// The check-in's body, as received.
    pub observed: Arc<str>,
    pub body: Sha256,
    pub grant: Grant,
    /// Without its bearer.
    pub reply: CheckInReply,
    pub agent: String,
    pub at: UnixMillis,
    pub clock_skew_ms: i64,
    pub earlier: Vec<EarlierCheckIn>,
    /// What it tells operators ([`super::checkin::told`]); not stored.
    pub told: u64,
    /// What it last said of a plan and is stored ([`super::rollouts::mark`]).
    pub vouched: Option<Sha256>,
    /// The rollout that its machine is in, and what counts there, as a number; not stored.
    pub turn: Option<(Sha256, u64)>,
}

/// A newly issued bearer of an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearer {
    /// SHA-256 of the bearer, which cannot be recovered from the store.
    pub hash: Sha256,
    pub of: PublicKey,
    /// Unix seconds.
    pub expires: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportsThrough {
    pub machine: MachineName,
    /// Every event of the machine up to this number is stored, or never will be.
    pub through: u64,
    pub outcome: Option<Outcome>,
    pub seen_at: UnixMillis,
    pub stream: Option<String>,
    /// The size of the machine's events, in bytes.
    pub events_bytes: u64,
}
