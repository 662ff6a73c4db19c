//! What is remembered of one machine, as small as it can be, and what can happen to it.

use muster_protocol::plan::Said;

use super::plans::Key;

/// One machine: the parts of its disk and of its agent's memory that a rollout rests on. Generations are
/// numbered from 1, and so are their plans; 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Machine {
    /// The newest target that it has verified.
    pub newest: u8,
    /// It has the plan of that one.
    pub has_plan: bool,
    /// The generation that it waits to switch to, or switches to.
    pub open: u8,
    pub switches: bool,
    /// The highest generation that ended, and how.
    pub tried: u8,
    pub ended: Option<End>,
    /// Its end has not been reported yet.
    pub untold: bool,
    /// Somebody asked for another try of it, which has not been reported yet.
    pub retries: bool,
    /// That may begin.
    pub lifted: bool,
    /// The systems in quarantine, a bit for each.
    pub condemned: u8,
    pub confirmed: u8,
    pub followed: Option<Following>,
    /// Somebody else changed its system.
    pub drifted: bool,
    /// A unit of it fails that did not before.
    pub ill: bool,
    pub asleep: bool,
    pub key: Key,
    /// What the controller said last.
    pub answer: Option<Answer>,
    /// Leave was used in this process.
    pub used: bool,
    /// About which plan something was proven, and whether that opens its gate.
    pub proof: Option<(u8, bool)>,
}

/// How a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    Confirmed,
    Failed,
}

/// What it vouches for, and how far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Following {
    pub plan: u8,
    pub ticks: u8,
    pub said: Said,
}

/// Leave, or that it must wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Answer {
    pub plan: u8,
    pub go: bool,
    /// How old it is in ticks, by time awake and by the wall clock; one is as good as many.
    pub awake: u8,
    pub wall: u8,
}

/// What a machine is handed as proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lot {
    /// What the controller's own selection hands out.
    Honest,
    /// Everything that was signed, and nothing of what was withdrawn.
    Kept,
    /// The same thrice, and that of other plans.
    Mixed,
    /// Whoever has confirmed is said to have soaked.
    Raised,
    /// Everybody is said to have soaked, by another machine's key and by nobody's.
    Forged,
    Nothing,
}

/// What can happen to a machine by itself, or with what it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Move {
    /// It verifies this generation's target, with its plan or without, and prepares it.
    Prepares {
        generation: u8,
        with_plan: bool,
    },
    /// It is shown the plan of this generation.
    IsShown(u8),
    /// A reply to a check-in of so many ticks ago, before the last start or after it.
    Hears {
        answer: Option<(u8, bool)>,
        ticks: u8,
        stale: bool,
    },
    /// It is handed statements; who signed what is a bit each.
    IsHanded(Lot, u32),
    Begins,
    Ends(End),
    /// Somebody at the machine goes back.
    GoesBack,
    IsLifted,
    Passes,
    Drifts,
    IsRestored,
    Reboots,
    IsReplaced,
}

/// What a machine does next, as far as a rollout is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// It would start the activator now.
    Starts,
    /// It waits for its turn alone.
    Awaits,
    /// It waits for something else, or does something else.
    Other,
    /// It would open a transaction for the newest target.
    Opens,
    /// It refuses it: its derivation is in quarantine.
    Refuses,
}
