//! The forms in which rollouts are stored.

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Generation, MachineName, Sha256};
use muster_protocol::keys::PublicKey;
use muster_protocol::operator::{MachineRollout, MemberState, RolloutState, WaveView, Wish};
use muster_protocol::plan::{Failure, Leave, MAX_WHY_BYTES, Place, Plan, RolloutName, Vouch};
use serde::{Deserialize, Serialize};

/// Where a machine is in the rollout of its latest generation: a part of its own row, so that a check-in
/// reads nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    #[serde(flatten)]
    pub at: MachineRollout,
    /// Until when it may begin to switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<UnixMillis>,
    /// That was taken back.
    #[serde(default)]
    pub taken_back: bool,
}

impl Turn {
    /// Of a generation that was published just now.
    pub fn of_new(plan: &Plan, place: Place) -> Option<Self> {
        let wave = usize::try_from(place.wave).ok().and_then(|wave| plan.waves.get(wave))?;
        Some(Self {
            at: MachineRollout {
                plan: place.plan,
                name: plan.name.clone(),
                wave: place.wave,
                wave_name: wave.name.clone(),
                state: MemberState::Waiting,
                why: "it was published just now, and its turn is about to be decided".into(),
            },
            until: None,
            taken_back: false,
        })
    }

    /// What the machine is told: how long it may begin from now on, counted anew each time, so that a reply
    /// that is repeated gives no more than is left.
    pub fn leave(&self, now: UnixMillis) -> Leave {
        let until = self.until.filter(|_| !self.taken_back);
        let left = until.map_or(0, |until| until.saturating_sub(now).div_euclid(1000));
        let seconds = u64::try_from(left).unwrap_or(0);
        let why = (seconds == 0).then(|| self.at.why.clone());
        Leave { plan: self.at.plan, seconds, why }
    }
}

/// What an operator asked of a rollout last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    pub wish: Wish,
    pub why: Option<String>,
    pub at: UnixMillis,
    pub by: PublicKey,
}

/// How far a rollout is, as it was decided last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub state: RolloutState,
    pub why: String,
    pub failures: u32,
    pub waves: Vec<WaveView>,
    /// Whether any machine was given a generation of it.
    #[serde(default)]
    pub published: bool,
}

impl Verdict {
    /// Whether time or machines may change it without an operator. One that is done is so while machines that
    /// are away may come back.
    pub fn is_open(&self) -> bool {
        let away = self.waves.iter().any(|wave| wave.away > 0);
        matches!(self.state, RolloutState::Running | RolloutState::Paused | RolloutState::Halted)
            || (self.state == RolloutState::Done && away)
    }
}

/// A rollout as it is stored, without its plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRollout {
    pub plan: Sha256,
    pub name: RolloutName,
    pub budget: u32,
    pub at: UnixMillis,
    pub by: PublicKey,
    pub asked: Option<Asked>,
    pub verdict: Option<Verdict>,
    pub open: bool,
}

/// A plan that was sent just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRollout {
    pub plan: Sha256,
    pub document: Vec<u8>,
    pub name: RolloutName,
    pub budget: u32,
    pub at: UnixMillis,
    pub by: PublicKey,
}

/// The turn of one machine, if this is still its latest generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTurn {
    pub machine: MachineName,
    pub generation: Generation,
    pub turn: Turn,
    /// Whether the machine has to hear of it at once.
    pub rings: bool,
}

/// What a machine said of a plan, verified by the key that the plan has of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    pub machine: MachineName,
    pub vouch: Vouch,
}

/// A machine's first failure in a rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    pub machine: MachineName,
    pub failure: Failure,
}

/// What one statement is remembered by, to see whether the next check-in says the same.
pub fn mark(vouch: &Vouch) -> Sha256 {
    let said = vouch.said.as_str().as_bytes();
    Sha256::of(&[vouch.plan.as_bytes().as_slice(), vouch.signature.as_bytes(), said].concat())
}

/// A text for a row, which is shown to machines and operators.
pub fn cut(text: &str) -> String {
    let mut end = text.len().min(MAX_WHY_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
