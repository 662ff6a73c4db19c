//! What a controller has stored of a rollout, as small as it can be, and what comes of a decision.

use muster_protocol::operator::{MemberState, RolloutState};

use super::machine::End;
use super::plans::MOST;

/// Everything that is stored. Times are in ticks from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Desk {
    pub rows: [Row; MOST],
    /// What operators asked of each plan.
    pub wishes: [Asked; 2],
    pub brake: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Asked {
    #[default]
    Run,
    Pause,
    Stop,
}

/// What is stored of one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Row {
    /// Its newest generation.
    pub published: u8,
    /// How long ago it was seen, and what it said then.
    pub age: u8,
    pub told: Option<Told>,
    pub outcome: Option<(u8, End)>,
    /// Until when it has leave, and whether that was taken back.
    pub until: Option<i8>,
    pub taken_back: bool,
    pub recorded: [Recorded; 2],
}

/// What a check-in says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Told {
    pub phase: Phase,
    /// The generation that the phase is about, and the confirmed one that runs.
    pub about: u8,
    pub runs: u8,
    pub awaits: u8,
    pub ill: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    Idle,
    Waits,
    Switches,
    Confirmed,
    RolledBack,
}

/// What is recorded of a machine in one plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Recorded {
    pub confirmed: bool,
    pub soaked: bool,
    pub withdrawn: bool,
    pub failed: bool,
    pub forgiven: bool,
}

/// What an operator asks of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ask {
    pub wish: Asked,
    pub forgive: bool,
}

/// A decision: what is stored after it, and what people are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruling {
    pub desk: Desk,
    pub state: RolloutState,
    /// The machines that were given leave, a bit each.
    pub given: u8,
    /// Those of them that had no place among their wave's `maxInFlight` before.
    pub fresh: u8,
    /// Where each machine is; none that is not in the plan.
    pub members: [Option<MemberState>; MOST],
    /// Whose sentence is empty, or nobody's.
    pub mute: bool,
}

impl Desk {
    /// A tick passes; more than `patience` without a word is as good as for ever.
    pub fn passes(&mut self, patience: u8) {
        let most = i8::try_from(patience).unwrap_or(i8::MAX);
        for row in &mut self.rows {
            row.age = row.age.saturating_add(1).min(patience);
            row.until = row.until.map(|until| until.saturating_sub(1).max(-most));
        }
    }
}

impl Row {
    /// Whether it has been silent for so many ticks.
    pub fn is_away(&self, patience: u8) -> bool {
        self.told.is_none() || self.age >= patience
    }

    pub fn recorded(&self, plan: u8) -> Recorded {
        self.recorded[usize::from(plan.saturating_sub(1)) % 2]
    }

    /// Whether its word is that it has soaked, as far as the controller has heard.
    pub fn has_soaked(&self, plan: u8) -> bool {
        let recorded = self.recorded(plan);
        recorded.soaked && !recorded.withdrawn
    }

    pub fn has_leave(&self) -> bool {
        self.until.is_some_and(|until| until > 0) && !self.taken_back
    }
}
