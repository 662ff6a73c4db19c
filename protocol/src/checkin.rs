//! `POST /v1/checkin`: a machine says who it is, what it runs and holds, and gets a bearer for its GETs.

use serde::{Deserialize, Serialize};

use crate::api::MAX_POLL_SECONDS;
use crate::bounded;
use crate::clock::UnixMillis;
use crate::ids::{Epoch, Generation, MachineName, Sha256, StorePath};
use crate::keys::PublicKey;
use crate::machine::{Class, System};
use crate::report::{Attack, MAX_EVENT_NUMBER};
use crate::request::{MAX_REQUESTS, SignedRequest};
use crate::witness::AgeClaim;

/// How long a bearer is good, in seconds.
pub const BEARER_SECONDS: u64 = 3600;
/// The largest check-in, in bytes.
pub const MAX_CHECKIN_BYTES: usize = 64 * 1024;
/// The longest bearer, in bytes.
pub const MAX_BEARER_BYTES: usize = 256;

/// The body, signed by the machine in `Context::CheckIn`; the signature travels in a header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckIn {
    /// The fleet (SHA-256 of `1.root.json`), so that a check-in for one fleet is worth nothing in another.
    pub audience: Sha256,
    pub machine: MachineName,
    pub class: Class,
    pub system: System,
    /// Changes at each boot.
    pub boot_id: String,
    /// Made durable before it is sent; the controller wants it higher than the last.
    pub seq: u64,
    /// The machine's wall clock; recorded and warned of, never a reason to refuse.
    pub clock: UnixMillis,
    /// The agent's version.
    pub agent: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs: Option<Runs>,
    #[serde(default)]
    pub holds: Holds,
    pub phase: Phase,
    /// The generation that `phase` speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase_generation: Option<Generation>,
    /// What the machine waits for, or what is wrong, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The last answer that was refused, until one is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Attack>,
    #[serde(default, skip_serializing_if = "Health::is_empty")]
    pub health: Health,
    /// The key that takes the place of the machine's from this check-in on. The body is signed by both, the second time
    /// in `Context::KeyRotation`. Sent again it means the same, so that a lost reply locks nobody out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_key: Option<PublicKey>,
    /// What its secrets are to be encrypted to from now on. Agents of 0.1 said it at their enrolment alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age: Option<AgeClaim>,
    /// The operators' requests of the last reply that were followed or are void: the controller need not hand them on.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "bounded::list::<_, _, MAX_REQUESTS>"
    )]
    pub followed: Vec<Sha256>,
}

/// What a machine knows of itself beside its phase.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// Units that have failed, as they were last looked at; `None` where they were not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub degraded: Option<Vec<String>>,
    /// What a reboot would bring: `kernel`, `initrd`, `kernel-modules`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reboot: Vec<String>,
    /// Why that reboot does not come yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reboot_waits: Option<String>,
    /// When the wait that `note` speaks of ends by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits_until: Option<UnixMillis>,
    /// Somebody at the machine paused its updates, until then or for good (the largest number).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused_until: Option<UnixMillis>,
}

impl Health {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The system that a machine runs, as it finds it by looking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runs {
    /// What /run/current-system points to.
    pub running: StorePath,
    /// What the system profile points to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<StorePath>,
    /// The confirmed generation that this is, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
}

/// The versions of trusted metadata that a machine holds; 0 for none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Holds {
    pub root: u64,
    pub timestamp: u64,
    pub snapshot: u64,
    pub targets: u64,
    /// The epoch of the root, in which the other numbers are counted.
    #[serde(skip_serializing_if = "Epoch::is_first")]
    pub epoch: Epoch,
}

/// Where a machine stands, in the words of the switch transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    Idle,
    Verified,
    Fetching,
    Building,
    Checked,
    Activating,
    Probing,
    Confirmed,
    RollingBack,
    RolledBack,
    Failed,
    Deferred,
    AwaitingReboot,
    NeedsHuman,
    #[serde(other)]
    Unknown,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Verified => "verified",
            Self::Fetching => "fetching",
            Self::Building => "building",
            Self::Checked => "checked",
            Self::Activating => "activating",
            Self::Probing => "probing",
            Self::Confirmed => "confirmed",
            Self::RollingBack => "rolling back",
            Self::RolledBack => "rolled back",
            Self::Failed => "failed",
            Self::Deferred => "deferred",
            Self::AwaitingReboot => "awaiting reboot",
            Self::NeedsHuman => "needs human",
            Self::Unknown => "unknown",
        }
    }
}

/// Nobody signs it: it is whoever answers that says this.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckInReply {
    /// For `authorization: Bearer …`, and as the password of HTTP Basic for the cache.
    #[serde(deserialize_with = "bounded::text::<_, MAX_BEARER_BYTES>")]
    pub bearer: String,
    /// Seconds from now.
    #[serde(deserialize_with = "bounded::number::<_, 60, BEARER_SECONDS>")]
    pub bearer_expires_in: u64,
    /// The latest published generation: a hint when to refresh, nothing to be trusted.
    #[serde(default)]
    pub generation: Option<Generation>,
    /// How long a long poll may wait, in seconds; the machine keeps it within bounds of its own.
    #[serde(deserialize_with = "bounded::number::<_, 1, MAX_POLL_SECONDS>")]
    pub poll_seconds: u64,
    /// The number of the last event that is stored, of whichever count: agents let events go by the answer to a batch alone.
    #[serde(deserialize_with = "bounded::number::<_, 0, MAX_EVENT_NUMBER>")]
    pub reports_through: u64,
    /// What version 0.1 asked for a new key by. Whoever answers can say it, so that agents no longer follow it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rotate_key: bool,
    /// What operators ask of this machine, signed by them.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "bounded::list::<_, _, MAX_REQUESTS>"
    )]
    pub requests: Vec<SignedRequest>,
}

/// The reply of the long poll: the latest generation, again only a hint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PollReply {
    #[serde(default)]
    pub generation: Option<Generation>,
    /// The controller has something to say that only the reply of a check-in carries.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub check_in: bool,
}
