//! `POST /v1/checkin`: a machine says who it is, what it runs and what it holds, and gets a bearer token
//! for its GETs.

use serde::{Deserialize, Serialize};

use crate::api::MAX_POLL_SECONDS;
use crate::audit::{Checkpoint, ShownLog};
use crate::bounded;
use crate::clock::UnixMillis;
use crate::ids::{Epoch, Generation, MachineName, Sha256, StorePath};
use crate::keys::{PublicKey, SECURITY_KEY};
use crate::machine::{Class, System};
use crate::plan::{self, Leave, Vouch};
use crate::report::{Attack, MAX_EVENT_NUMBER};
use crate::request::{MAX_REQUESTS, SignedRequest};
use crate::session::{ExchangeKey, SessionOffer};
use crate::witness::{AgeClaim, KeyClaim};

/// How long a bearer token is valid, in seconds.
pub const BEARER_SECONDS: u64 = 3600;
/// The largest check-in, in bytes.
pub const MAX_CHECKIN_BYTES: usize = 64 * 1024;
/// What this version's agents know of.
pub const UNDERSTANDS: [&str; 2] = [plan::FEATURE, SECURITY_KEY];
/// The most words in [`CheckIn::understands`].
pub const MAX_UNDERSTANDS: usize = 32;
/// The longest bearer token, in bytes.
pub const MAX_BEARER_BYTES: usize = 256;

/// The body, signed by the machine in `Context::CheckIn`; the signature travels in a header.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckIn {
    /// The fleet (SHA-256 of `1.root.json`), so that a check-in for one fleet is worthless in another.
    pub audience: Sha256,
    /// The machine's name in the flake; the controller looks up its key by it.
    pub machine: MachineName,
    /// The class it was enrolled with; the controller refuses another one.
    pub class: Class,
    /// The Nix system it builds for.
    pub system: System,
    /// Different after each boot (on Linux random(4)'s `boot_id`).
    pub boot_id: String,
    /// Made durable before it is sent, and higher in each check-in: the controller refuses a number it has
    /// seen, which is how a cloned machine shows.
    pub seq: u64,
    /// The machine's wall clock, in Unix milliseconds. It is recorded and warned about, never a reason to
    /// refuse.
    pub clock: UnixMillis,
    /// The agent's version.
    pub agent: String,
    /// The system it runs; `None` where the agent could not find out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs: Option<Runs>,
    /// The versions of the metadata it trusts.
    #[serde(default)]
    pub holds: Holds,
    /// Where it is in the switch transaction.
    pub phase: Phase,
    /// The generation that `phase` is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase_generation: Option<Generation>,
    /// What the machine is waiting for, or what is wrong, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The kind of the last reply that the machine refused; `None` again once it accepts one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Attack>,
    /// Failed units, pending reboots and pauses.
    #[serde(default, skip_serializing_if = "Health::is_empty")]
    pub health: Health,
    /// The key that replaces the machine's from this check-in on. Both keys sign the body, the new one in
    /// `Context::KeyRotation`. Sending it again means the same, so a lost reply locks nobody out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_key: Option<PublicKey>,
    /// The age recipient that secrets for this machine are encrypted to from now on. Agents of version 0.1
    /// send it only when they enrol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age: Option<AgeClaim>,
    /// The IDs of the operators' requests in the last reply that were carried out or are void: the
    /// controller need not send them again.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "bounded::list::<_, _, MAX_REQUESTS>"
    )]
    pub followed: Vec<Sha256>,
    /// What the machine was shown of the audit log. Agents of version 0.1 send none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown: Option<ShownLog>,
    /// A fresh key, to set up a session with: then the check-in is signed, and the reply offers one.
    /// Controllers of version 0.1 ignore it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<ExchangeKey>,
    /// What its agent knows of, for operators to see before they sign something that needs it
    /// ([`UNDERSTANDS`]). Agents of version 0.1 send nothing.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "bounded::list::<_, _, MAX_UNDERSTANDS>"
    )]
    pub understands: Vec<String>,
    /// The key that signs its next check-in, with the proof that it is this machine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing: Option<KeyClaim>,
    /// What it says of the rollout that it is a voucher of; repeated, since a controller may be restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vouch: Option<Vouch>,
    /// The plan in whose rollout it is about to switch, and waits only for its turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub awaits: Option<Sha256>,
}

/// What a machine knows about itself besides its phase.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// Units that had failed when the agent last looked; `None` where it has not looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub degraded: Option<Vec<String>>,
    /// What changes with a reboot: `kernel`, `initrd`, `kernel-modules`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reboot: Vec<String>,
    /// Why that reboot has not happened yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reboot_waits: Option<String>,
    /// When the wait described by `note` ends by itself, in Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits_until: Option<UnixMillis>,
    /// Until when somebody at the machine has paused updates, in Unix milliseconds; the largest number
    /// means until they resume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused_until: Option<UnixMillis>,
}

impl Health {
    /// Whether there is nothing to report.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The system that a machine runs, as the agent found it.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runs {
    /// The target of `/run/current-system`.
    pub running: StorePath,
    /// The target of the system profile, which is what the next boot starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<StorePath>,
    /// The confirmed generation that this system is, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
}

/// The versions of trusted metadata that a machine holds; 0 where it holds none.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Holds {
    /// Version of `root.json`; never lower than the enrolment token's.
    pub root: u64,
    /// Version of `timestamp.json`.
    pub timestamp: u64,
    /// Version of `snapshot.json`.
    pub snapshot: u64,
    /// Version of `targets.json`, which is the number of the generation.
    pub targets: u64,
    /// The epoch of the root, which the other numbers are counted in.
    #[serde(skip_serializing_if = "Epoch::is_first")]
    pub epoch: Epoch,
}

/// Where a machine is in the switch transaction. The agent's own states are finer; several map to one
/// phase.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Nothing is in progress.
    Idle,
    /// A generation's metadata and target are verified.
    Verified,
    /// The derivation and its inputs are being fetched into the store.
    Fetching,
    /// The system is being built or its output downloaded.
    Building,
    /// The output in the store is the signed one; the system's own checks run or have passed. Nothing is
    /// changed yet.
    Checked,
    /// The new system is being activated.
    Activating,
    /// The new system runs and its health checks are being asked.
    Probing,
    /// The generation passed and is kept.
    Confirmed,
    /// The activator is going back to the old system.
    RollingBack,
    /// The old system runs again.
    RolledBack,
    /// It ended before anything was activated.
    Failed,
    /// Waiting for a window, for power or for a network.
    Deferred,
    /// The new system is what the next boot starts.
    AwaitingReboot,
    /// Only a person at the machine can go on.
    NeedsHuman,
    /// A phase of a later version.
    #[serde(other)]
    Unknown,
}

impl Phase {
    /// The phase as people read it: its wire name with spaces.
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

/// The reply to a check-in. It is not signed: a controller that lies can say anything here, so nothing in
/// it is trusted.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckInReply {
    /// For `authorization: Bearer …`, and as the password of HTTP Basic for the cache.
    #[serde(deserialize_with = "bounded::text::<_, MAX_BEARER_BYTES>")]
    pub bearer: String,
    /// How long the bearer token is valid, in seconds from now.
    #[serde(deserialize_with = "bounded::number::<_, 60, BEARER_SECONDS>")]
    pub bearer_expires_in: u64,
    /// The latest published generation: a hint to refresh, nothing more.
    #[serde(default)]
    pub generation: Option<Generation>,
    /// How long a long poll may wait, in seconds; the machine keeps within limits of its own.
    #[serde(deserialize_with = "bounded::number::<_, 1, MAX_POLL_SECONDS>")]
    pub poll_seconds: u64,
    /// The number of the last event that is stored, in whichever stream. Agents forget events only after
    /// the reply to a batch.
    #[serde(deserialize_with = "bounded::number::<_, 0, MAX_EVENT_NUMBER>")]
    pub reports_through: u64,
    /// How controllers of version 0.1 asked for a new key. Anybody who answers can set it, so agents no
    /// longer act on it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rotate_key: bool,
    /// What operators ask of this machine, each signed by one of them.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "bounded::list::<_, _, MAX_REQUESTS>"
    )]
    pub requests: Vec<SignedRequest>,
    /// The newest entry of the audit log that the controller knows of, for the machine to carry and show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<Checkpoint>,
    /// The session that the check-in asked for; none from controllers of version 0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionOffer>,
    /// What it says to a machine whose target has a plan: it can hold the machine back, and nothing more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Leave>,
}

/// The most roots in one [`Files`].
pub const MAX_SENT_ROOTS: usize = 8;
/// The most bytes that one text of [`Files`] may have.
pub const MAX_SENT_FILE_BYTES: usize = 32 * 1024;
/// How many bytes of JSON [`Files`] may take; what is larger is fetched file by file.
pub const MAX_SENT_BYTES: usize = 48 * 1024;

/// The files of a machine's latest generation, sent along with the news of it. They save requests and prove
/// nothing: the machine checks each as if it had fetched it, and fetches what is not here. Each text has the
/// bytes of its file.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// The version of the newest root.
    pub root: u64,
    /// The roots that follow the one that the machine named, in order; the rest is fetched.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "bounded::list::<_, _, MAX_SENT_ROOTS>"
    )]
    pub roots: Vec<String>,
    /// `timestamp.json`.
    #[serde(deserialize_with = "bounded::text::<_, MAX_SENT_FILE_BYTES>")]
    pub timestamp: String,
    /// `N.snapshot.json`.
    #[serde(deserialize_with = "bounded::text::<_, MAX_SENT_FILE_BYTES>")]
    pub snapshot: String,
    /// `N.targets.json`.
    #[serde(deserialize_with = "bounded::text::<_, MAX_SENT_FILE_BYTES>")]
    pub targets: String,
    /// `generation.json`.
    #[serde(deserialize_with = "bounded::text::<_, MAX_SENT_FILE_BYTES>")]
    pub target: String,
}

impl Files {
    /// These files, unless they are too large to be sent along.
    pub fn if_small(self) -> Option<Self> {
        /// The longest form of a byte in JSON, `\u0000`.
        const LONGEST: usize = 6;
        /// More than what is around the texts.
        const FRAME: usize = 256;
        let texts = [&self.timestamp, &self.snapshot, &self.targets, &self.target];
        let bytes: usize = texts.into_iter().chain(&self.roots).map(String::len).sum();
        let fits = texts.iter().all(|text| text.len() <= MAX_SENT_FILE_BYTES)
            && (LONGEST * bytes + FRAME <= MAX_SENT_BYTES
                || serde_json::to_string(&self).is_ok_and(|text| text.len() <= MAX_SENT_BYTES));
        fits.then_some(self)
    }
}

/// The reply to the long poll.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PollReply {
    /// The latest published generation: a hint to refresh, nothing more.
    #[serde(default)]
    pub generation: Option<Generation>,
    /// Whether the controller has something that only the reply to a check-in carries.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub check_in: bool,
    /// The files of that generation, for agents that ask for them. What is not of this form counts as not
    /// sent: the agent fetches it, and sees there what is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "bounded::if_well_formed")]
    pub files: Option<Box<Files>>,
}
