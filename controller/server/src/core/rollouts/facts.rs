//! What is stored of a rollout and its machines, as it is decided by.

use std::collections::BTreeMap;

use muster_protocol::checkin::{Phase, Runs};
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Generation, MachineName, Sha256};
use muster_protocol::keys::Signature;
use muster_protocol::operator::BrakeView;
use muster_protocol::plan::{Failure, Said, Statement};
use serde::Deserialize;

use super::{StoredRollout, Turn};
use crate::core::rows::Outcome;

/// Everything that one rollout is decided by, besides its plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    pub rollout: StoredRollout,
    pub brake: Option<BrakeView>,
    /// Those of its machines that the controller knows.
    pub machines: BTreeMap<MachineName, Seen>,
    /// Those of which something is recorded.
    pub members: BTreeMap<MachineName, Recorded>,
}

/// A machine of a rollout.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    pub revoked: bool,
    pub seen_at: Option<UnixMillis>,
    pub observed: Option<Observed>,
    pub outcome: Option<Outcome>,
    /// Its latest generation.
    pub published: Option<Generation>,
    /// Where it is in the rollout of that one.
    pub turn: Option<Turn>,
    /// Whether any generation of it names this plan.
    pub named: bool,
}

/// The part of its last check-in that counts here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Observed {
    #[serde(default)]
    pub runs: Option<Runs>,
    pub phase: Phase,
    #[serde(default)]
    pub phase_generation: Option<Generation>,
    #[serde(default)]
    pub note: Option<String>,
    #[serde(default)]
    pub health: Health,
    #[serde(default)]
    pub awaits: Option<Sha256>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Health {
    #[serde(default)]
    pub degraded: Option<Vec<String>>,
}

impl Observed {
    /// What this version cannot read is as good as never said.
    pub fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

/// What is recorded of a machine in a rollout.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recorded {
    pub confirmed: Option<Signature>,
    pub soaked: Option<Signature>,
    pub withdrawn: Option<Signature>,
    pub failed: Option<Failure>,
    pub forgiven: bool,
    pub void: Void,
}

/// Why a machine's word no longer counts, also once another one has its name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Void {
    #[default]
    No,
    /// It enrolled anew: what had said so need not be what comes.
    Replaced,
    /// An operator revoked it: somebody else may have said so.
    Revoked,
}

impl Void {
    /// As it is stored.
    pub fn number(self) -> i64 {
        match self {
            Self::No => 0,
            Self::Replaced => 1,
            Self::Revoked => 2,
        }
    }

    pub fn of_number(number: i64) -> Self {
        match number {
            ..=0 => Self::No,
            1 => Self::Replaced,
            2.. => Self::Revoked,
        }
    }
}

impl Recorded {
    /// What the machine signed and that still counts. That it takes something back always does.
    pub fn said(&self) -> impl Iterator<Item = (Said, Signature)> {
        let all = [
            (Said::Withdrawn, self.withdrawn),
            (Said::Soaked, self.soaked),
            (Said::Confirmed, self.confirmed),
        ];
        let counts = move |said| self.void == Void::No || said == Said::Withdrawn;
        all.into_iter().filter_map(move |(said, signature)| Some((said, signature.filter(|_| counts(said))?)))
    }

    /// The same as it is passed on.
    pub fn statements<'a>(&'a self, machine: &'a MachineName) -> impl Iterator<Item = Statement> + 'a {
        self.said().map(|(said, signature)| Statement { machine: machine.clone(), said, signature })
    }
}
