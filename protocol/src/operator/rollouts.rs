//! What operators send and are shown of rollouts.

use serde::{Deserialize, Serialize};

use crate::bounded;
use crate::clock::UnixMillis;
use crate::ids::{MachineName, Sha256};
use crate::keys::PublicKey;
use crate::plan::{MAX_WAVE_NAME, RolloutName, Said};

/// `POST /v1/operator/plans`: a plan, before the generations that name it are published.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewPlan {
    /// The plan's bytes, a text of JSON; its hash is what targets name.
    pub plan: String,
}

/// What an operator asks of a running rollout. None of it opens a gate.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wish {
    /// Go on.
    Run,
    /// Begin on no machine until an operator resumes it.
    Pause,
    /// Begin on no machine any more. What machines run instead is published as other generations.
    Stop,
}

/// `POST /v1/operator/rollouts/HASH`: what an operator asks of it.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskRollout {
    /// What is asked.
    pub wish: Wish,
    /// Failures up to now no longer count against the budget: an operator has looked at them.
    #[serde(default)]
    pub forgive: bool,
    /// Why, for the others.
    #[serde(default, deserialize_with = "bounded::some_truncated::<_, 512>")]
    pub why: Option<String>,
}

/// `POST /v1/operator/brake`: while it is on, no rollout begins on any machine.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetBrake {
    /// Whether it is on.
    pub on: bool,
    /// Why, for the others.
    #[serde(default, deserialize_with = "bounded::some_truncated::<_, 512>")]
    pub why: Option<String>,
}

/// Who pulled the brake.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrakeView {
    /// When, in Unix milliseconds.
    #[serde(deserialize_with = "bounded::time")]
    pub at: UnixMillis,
    /// The operator.
    pub by: PublicKey,
    /// Why.
    pub why: Option<String>,
}

/// Where a rollout is.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RolloutState {
    /// It goes on; `why` says what it waits for.
    Running,
    /// An operator paused it, or the brake is on.
    Paused,
    /// More machines failed than its budget allows, or one that vouches was revoked.
    Halted,
    /// An operator stopped it for good.
    Stopped,
    /// Every machine that answers has taken it, or has failed within the budget.
    Done,
    /// Later generations took the place of its own on every machine.
    Superseded,
    /// A state of a later version.
    #[serde(other)]
    Unknown,
}

impl RolloutState {
    /// The state as people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Halted => "halted",
            Self::Stopped => "stopped",
            Self::Done => "done",
            Self::Superseded => "superseded",
            Self::Unknown => "unknown",
        }
    }
}

/// Where one machine of a rollout is.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberState {
    /// It waits for its turn.
    Waiting,
    /// It fetches, builds, or waits for something of its own.
    Preparing,
    /// It may begin, or has begun.
    InFlight,
    /// It runs its output, confirmed.
    Confirmed,
    /// It has run it well for the whole soak.
    Soaked,
    /// It failed.
    Failed,
    /// It does not answer.
    Away,
    /// It left the rollout: another generation was published for it, or it was revoked.
    Left,
    /// A state of a later version.
    #[serde(other)]
    Unknown,
}

impl MemberState {
    /// The state as people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Preparing => "preparing",
            Self::InFlight => "in flight",
            Self::Confirmed => "confirmed",
            Self::Soaked => "soaked",
            Self::Failed => "failed",
            Self::Away => "away",
            Self::Left => "left",
            Self::Unknown => "unknown",
        }
    }
}

/// `GET /v1/operator/rollouts`: each as here, without `members`; `GET /v1/operator/rollouts/HASH` with them.
/// Unsigned: a controller that lies can say anything here.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutView {
    /// SHA-256 of its plan.
    pub plan: Sha256,
    /// The plan's name.
    pub name: RolloutName,
    /// When the plan was sent, in Unix milliseconds.
    #[serde(deserialize_with = "bounded::time")]
    pub at: UnixMillis,
    /// Who sent it.
    pub by: PublicKey,
    /// Where it is.
    pub state: RolloutState,
    /// What it waits for and what would change that, or how it ended, in one sentence.
    pub why: String,
    /// The plan's budget.
    pub budget: u32,
    /// How many failures count against it.
    pub failures: u32,
    /// Its waves, in order.
    pub waves: Vec<WaveView>,
    /// Whether a generation that names it has been published for any machine.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub published: bool,
    /// Its machines, by wave and in their order; empty in the list of rollouts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberView>,
}

fn yes() -> bool {
    true
}

// Serde passes a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_true(value: &bool) -> bool {
    *value
}

/// How far one wave is. The numbers of machines add up to its size.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WaveView {
    /// Its name.
    pub name: String,
    /// How many vouchers must have soaked before the next wave.
    pub at_least: u32,
    /// How long a soak is, in seconds of time awake.
    pub soak_seconds: u64,
    /// How many may switch at the same time.
    pub max_in_flight: u32,
    /// Whether its gate is proven.
    pub open: bool,
    /// Machines that wait for their turn.
    pub waiting: u32,
    /// Machines that fetch, build, or wait for something of their own.
    pub preparing: u32,
    /// Machines that may begin, or have begun.
    pub in_flight: u32,
    /// Machines that run it and have not soaked yet.
    pub confirmed: u32,
    /// Machines that have soaked.
    pub soaked: u32,
    /// Machines that failed.
    pub failed: u32,
    /// Machines that do not answer.
    pub away: u32,
    /// Machines that left the rollout.
    pub left: u32,
}

/// One machine of a rollout.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    /// Its name.
    pub machine: MachineName,
    /// Its wave, counted from 0.
    pub wave: u32,
    /// Where it is.
    pub state: MemberState,
    /// What it waits for and what would change that, in one sentence.
    pub why: String,
    /// The most that it has said of the plan.
    pub said: Option<Said>,
}

/// Where a machine is in the rollout of its latest generation.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRollout {
    /// SHA-256 of its plan.
    pub plan: Sha256,
    /// The plan's name.
    pub name: RolloutName,
    /// The machine's wave, counted from 0.
    pub wave: u32,
    /// The wave's name.
    #[serde(deserialize_with = "bounded::text::<_, MAX_WAVE_NAME>")]
    pub wave_name: String,
    /// Where it is.
    pub state: MemberState,
    /// What it waits for and what would change that, in one sentence.
    pub why: String,
}
