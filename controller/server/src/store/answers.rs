//! What the store returns besides rows.

use std::collections::BTreeMap;

use muster_protocol::audit::Checkpoint;
use muster_protocol::ids::{Generation, MachineName, Sha256};
use muster_protocol::report::Event;

use crate::core::rows::{GenerationFiles, Timestamp};

/// A stored file of a machine's repository.
#[derive(Debug, Clone, Copy)]
pub enum File {
    Targets(Generation),
    Snapshot(Generation),
    /// A target without a place in a rollout.
    Target(Sha256),
    /// One that has a place.
    Gated(Sha256),
}

/// The files of a machine's latest generation, read at one moment.
#[derive(Debug, Clone)]
pub struct Latest {
    pub timestamp: Timestamp,
    pub files: GenerationFiles,
}

/// What is waiting for a machine's next check-in.
#[derive(Debug, Clone, Copy, Default)]
pub struct News {
    /// Its latest published generation.
    pub generation: Option<Generation>,
    /// Whether there is something that only the reply to a check-in carries.
    pub check_in: bool,
}

pub type EventsByGeneration = BTreeMap<Generation, GenerationEvents>;

/// The newest events of one generation, oldest first, and how many were left out.
#[derive(Debug, Clone, Default)]
pub struct GenerationEvents {
    pub events: Vec<Event>,
    pub left_out: u64,
}

/// Some of the targets whose files the cache must keep, and where the next page begins: nowhere if it is the
/// last.
#[derive(Debug, Clone, Default)]
pub struct NeededPage {
    /// As they were signed.
    pub targets: Vec<Vec<u8>>,
    pub after: Option<(MachineName, Generation)>,
}

/// The result of applying changes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Applied {
    /// How many old rows were removed.
    pub forgotten: u64,
    /// The newest entry of the log, if one was added.
    pub log: Option<Checkpoint>,
}

/// A decision that was carried out.
#[derive(Debug, Clone)]
pub struct Committed<A> {
    pub answer: A,
    /// Whether anything was written.
    pub changed: bool,
    pub applied: Applied,
}

/// What another controller on the same database said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// These machines have news, or are not what they were.
    Machines(Vec<MachineName>),
    /// Anything may have changed.
    Everything,
}
