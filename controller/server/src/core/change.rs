//! Everything that a decision may write. A store applies the changes of one decision in their order and all at once, and
//! writes nothing else: applied to maps in memory they leave what they leave in a database.

use std::collections::BTreeSet;

use muster_protocol::checkin::CheckInReply;
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{MachineName, Sha256, Tag};
use muster_protocol::keys::PublicKey;
use muster_protocol::machine::{Class, System};

use super::audit::NewEntry;
use super::rows::{
    EarlierCheckIn, Outcome, Principal, Request, StoredAttack, StoredDraft, StoredEvent, StoredGeneration,
    Timestamp, Token,
};

/// What to write, and what to answer once it is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Decided<A> {
    pub changes: Vec<Change>,
    pub answer: A,
}

impl<A> Decided<A> {
    /// Nothing is to be written.
    pub fn unchanged(answer: A) -> Self {
        Self { changes: Vec::new(), answer }
    }
}

/// One change of what is stored.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A machine that was not known.
    MachineAdded {
        machine: Invited,
        at: UnixMillis,
    },
    /// A known machine without a key, or a revoked one, becomes an invited one: its key and its revocation go.
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
    /// The tokens of this machine that nobody used end.
    TokensEnded {
        machine: MachineName,
    },
    /// A new life of a machine: everything of its last check-in, its reports' count, outcome, alarm and rotation goes.
    Enrolled(Box<Enrolled>),

    CheckedIn(Box<CheckedIn>),
    /// Also ends the wish for a new key.
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
    /// All of this machine's.
    BearersEnded {
        machine: MachineName,
    },
    /// Of this machine's, those that end by `now_s`, and all but the newest `keep`, counted by their check-ins.
    BearersTrimmed {
        machine: MachineName,
        now_s: i64,
        keep: u32,
    },
    BearerGranted(Bearer),

    RequestKept {
        machine: MachineName,
        request: Request,
    },
    RequestsDropped {
        machine: MachineName,
        ids: Vec<Sha256>,
    },
    /// All that wait for this machine.
    RequestsHandedOn {
        machine: MachineName,
    },
    KeyRotationAsked {
        machine: MachineName,
        at: UnixMillis,
    },

    EventStored(Box<StoredEvent>),
    /// Where a machine's events stand.
    ReportsThrough(Box<ReportsThrough>),
    /// Removes a machine's oldest events until they take `wanted` bytes or less of the `bytes` that they take; those that
    /// decided on a generation go last. More may go than would have to. What they take then is noted.
    EventsTrimmed {
        machine: MachineName,
        bytes: u64,
        wanted: u64,
    },
    /// Removes events that came before this and decided on nothing, of all machines: the oldest, `most` of them.
    EventsForgotten {
        before: UnixMillis,
        most: u32,
    },
    AttackOpened(Box<StoredAttack>),
    /// All but the newest `keep` of this machine's go.
    AttacksTrimmed {
        machine: MachineName,
        keep: u32,
    },
    /// Those of this machine that have not ended end.
    AttacksEnded {
        machine: MachineName,
        at: UnixMillis,
    },

    GenerationStored(Box<StoredGeneration>),
    /// The generation that the machine is to be told of.
    Published {
        machine: MachineName,
        generation: muster_protocol::ids::Generation,
    },
    TimestampStored {
        machine: MachineName,
        timestamp: Timestamp,
    },
    /// A new draft, or more signatures of one that is kept: then its time, maker and end stay what they are.
    DraftKept(Box<StoredDraft>),
    DraftDropped {
        id: Sha256,
    },
    /// The newest root that the log knows.
    RootInForce {
        version: u64,
    },

    /// Chained to the entry before it: [`NewEntry::chained`].
    Audited(NewEntry),
    /// Moves the fleet's cursor: this machine's change is the newest.
    MachineChanged {
        machine: MachineName,
    },
    /// Bearers, nonces, drafts and requests that have ended by then go, and the wish for a new key where its request went.
    EndedForgotten {
        now_s: i64,
    },
}

/// What an operator says of a machine.
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

/// A check-in that was taken.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckedIn {
    pub machine: MachineName,
    pub seq: u64,
    /// What the machine said, as it came.
    pub observed: String,
    pub body: Sha256,
    pub salt: [u8; 32],
    /// Without its bearer.
    pub reply: CheckInReply,
    pub agent: String,
    pub at: UnixMillis,
    pub clock_skew_ms: i64,
    pub earlier: Vec<EarlierCheckIn>,
}

/// A bearer that is good from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearer {
    /// SHA-256 of the bearer: nobody can read it from the store.
    pub hash: Sha256,
    pub of: Principal,
    /// The check-in that a machine's came with.
    pub seq: u64,
    /// Unix seconds.
    pub expires: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportsThrough {
    pub machine: MachineName,
    /// Everything through this number of the machine's is stored, or never will be.
    pub through: u64,
    pub outcome: Option<Outcome>,
    pub seen_at: UnixMillis,
    pub stream: Option<String>,
    /// What the machine's events take.
    pub events_bytes: u64,
}
