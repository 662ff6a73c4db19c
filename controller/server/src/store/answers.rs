//! What the store answers beside rows.

use muster_protocol::ids::{Generation, Sha256};
use muster_protocol::report::Event;

/// The number of the newest change of the fleet; it only grows.
pub type Cursor = u64;

/// A stored file of a machine's repository.
#[derive(Debug, Clone, Copy)]
pub enum File {
    Targets(Generation),
    Snapshot(Generation),
    Target(Sha256),
}

/// What the next check-in of a machine would be told.
#[derive(Debug, Clone, Copy, Default)]
pub struct News {
    /// Its latest published generation.
    pub generation: Option<Generation>,
    /// Whether there is something that only the reply of a check-in carries.
    pub check_in: bool,
}

/// The events of one generation: the newest, the oldest of those first, and how many were left out.
#[derive(Debug, Clone, Default)]
pub struct Told {
    pub events: Vec<Event>,
    pub left_out: u64,
}

/// What applying changes brought about.
#[derive(Debug, Clone, Copy, Default)]
pub struct Applied {
    /// Where the fleet's changes stand, if one of them was a machine's.
    pub cursor: Option<Cursor>,
    /// How many old events went.
    pub forgotten: u64,
}

/// A decision that is carried out.
#[derive(Debug, Clone)]
pub struct Committed<A> {
    pub answer: A,
    pub applied: Applied,
}
