//! One moment of a rollout: its machines, what the controller has stored, what is on its way, and what is
//! true whatever anybody says of it.

use super::desk::{Desk, Told};
use super::machine::Machine;
use super::plans::MOST;
use super::stage::Budget;
use muster_protocol::plan::Said;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct World {
    pub machines: [Machine; MOST],
    pub desk: Desk,
    /// The newest generation that operators signed.
    pub published: u8,
    pub wire: Option<Wire>,
    /// Everything that was ever signed, for whoever stole the controller.
    pub signed: u32,
    pub truths: [Truth; MOST],
    /// For how many ticks each plan has been held, while it is; one is as good as many.
    pub held: [Option<u8>; 2],
    pub left: Budget,
    pub violation: Option<&'static str>,
}

/// What the world knows of a machine, by its own count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Truth {
    /// For how many ticks it has run well what it confirmed last.
    pub well: u8,
    /// The plans whose output it has run well for the soak, and those that it has confirmed; a bit for each.
    pub soaked: u8,
    pub confirmed: u8,
    /// The plan in which it was told last that it may begin, while that holds.
    pub may: u8,
}

/// A message that is slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wire {
    /// A check-in; its machine no longer waits for the reply.
    CheckIn { who: u8, told: Told, says: Option<(u8, Said)> },
    /// The reply to one, from so many ticks ago, before the machine's last start or after it.
    Reply { who: u8, answer: Option<(u8, bool)>, ticks: u8, stale: bool },
}

impl Wire {
    /// The machine whose message it is, or for whom.
    pub fn whose(self) -> u8 {
        match self {
            Self::CheckIn { who, .. } | Self::Reply { who, .. } => who,
        }
    }
}

impl World {
    pub fn violate(&mut self, what: &'static str) {
        self.violation.get_or_insert(what);
    }
}
