//! What operators are shown of machines.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::audit::ShownLog;
use crate::bounded;
use crate::checkin::{Health, Holds, MAX_UNDERSTANDS, Phase, Runs};
use crate::clock::UnixMillis;
use crate::ids::{Epoch, Generation, IdError, MachineName, Sha256, Tag};
use crate::keys::PublicKey;
use crate::machine::{Class, System};
use crate::report::Attack;
use crate::target::Target;
use crate::witness::KeyClaim;

/// Whether a machine may talk to the controller.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// There is a token that nobody has used.
    Invited,
    /// It has a key that the controller accepts.
    Enrolled,
    /// An operator revoked it; the controller refuses its key.
    Revoked,
}

/// How a machine is doing. Only the controller decides this, from what it was told and when.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// There is a token that nobody has used.
    Invited,
    /// An operator revoked it.
    Revoked,
    /// Enrolled, and nothing has been published for it.
    NoGeneration,
    /// It runs the latest generation and has confirmed it.
    UpToDate,
    /// Like `UpToDate`, with failed units.
    Degraded,
    /// A generation is waiting for it, or it is working on one.
    Updating,
    /// It tried the latest generation and runs its old system again.
    RolledBack,
    /// It could not even try the latest generation.
    Failed,
    /// Only a person at the machine can go on.
    NeedsHuman,
    /// It refused what it was given; see `refused`.
    UnderAttack,
    /// Somebody at the machine paused updates, and a generation is waiting.
    Paused,
    /// It has not checked in for some time. It catches up when it is back.
    Offline,
    /// A condition of a later version.
    #[serde(other)]
    Unknown,
}

impl Condition {
    /// The condition as people read it: its wire name with spaces.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invited => "invited",
            Self::Revoked => "revoked",
            Self::NoGeneration => "no generation",
            Self::UpToDate => "up to date",
            Self::Degraded => "degraded",
            Self::Updating => "updating",
            Self::RolledBack => "rolled back",
            Self::Failed => "failed",
            Self::NeedsHuman => "needs human",
            Self::UnderAttack => "under attack",
            Self::Paused => "paused",
            Self::Offline => "offline",
            Self::Unknown => "a condition that this version does not know",
        }
    }
    /// Whether the machine will not go on by itself: `update --watch` stops waiting for it.
    pub fn is_bad(self) -> bool {
        matches!(self, Self::RolledBack | Self::Failed | Self::NeedsHuman | Self::UnderAttack | Self::Revoked)
    }
}

/// `GET /v1/operator/machines` and `…/NAME`. Unsigned: a controller that lies can say anything here.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineView {
    /// Its name in the flake.
    pub machine: MachineName,
    /// The class it was invited as.
    pub class: Class,
    /// The Nix system it builds for.
    pub system: System,
    /// Its tags, as sent with [`AddMachine`].
    pub tags: BTreeSet<Tag>,
    /// Whether it may talk to the controller.
    pub standing: Standing,
    /// How it is doing.
    pub condition: Condition,
    /// The latest generation published for it.
    pub published: Option<Published>,
    /// The system it runs, by its last check-in.
    pub runs: Option<Runs>,
    /// Its phase, by its last check-in.
    pub phase: Option<Phase>,
    /// The generation that `phase` is about.
    pub phase_generation: Option<Generation>,
    /// What it is waiting for, or what is wrong, in its own words.
    pub note: Option<String>,
    /// The kind of the last reply it refused, until it accepts one.
    pub refused: Option<Attack>,
    /// The attack it refused and that has not ended, as far as it has reported it.
    #[serde(default)]
    pub attack: Option<AttackView>,
    /// The controller has seen more than one machine with this key.
    pub clone_alarm: bool,
    /// Since when, in Unix milliseconds.
    #[serde(default, deserialize_with = "bounded::some_time")]
    pub clone_alarm_at: Option<UnixMillis>,
    /// The metadata versions it trusts, by its last check-in.
    pub holds: Holds,
    /// Failed units, pending reboots and pauses, by its last check-in.
    #[serde(default)]
    pub health: Health,
    /// The agent's version; `None` before it enrols.
    pub agent: Option<String>,
    /// The age recipient of its secrets; see `age_proof`.
    pub age: Option<String>,
    /// The machine's proof that `age` is its own; see [`crate::witness`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_proof: Option<Sha256>,
    /// The key it signs with; `None` before it enrols.
    pub key: Option<PublicKey>,
    /// The machine's own claim of that key, with its proof; see [`crate::witness`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing: Option<KeyClaim>,
    /// What its agent knows of ([`crate::checkin::CheckIn::understands`]), by its last check-in.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "bounded::list::<_, _, MAX_UNDERSTANDS>"
    )]
    pub understands: Vec<String>,
    /// When this key replaced an older one, in Unix milliseconds; `None` where it is the one that enrolled.
    #[serde(default, deserialize_with = "bounded::some_time")]
    pub key_rotated_at: Option<UnixMillis>,
    /// An operator has asked for a new key, and the machine has not made it yet.
    #[serde(default)]
    pub key_rotation_asked: bool,
    /// When it enrolled, in Unix milliseconds.
    #[serde(default, deserialize_with = "bounded::some_time")]
    pub enrolled_at: Option<UnixMillis>,
    /// When it last checked in, in Unix milliseconds of the controller's clock.
    #[serde(default, deserialize_with = "bounded::some_time")]
    pub last_seen: Option<UnixMillis>,
    /// The machine's clock minus the controller's at the last check-in, in milliseconds.
    #[serde(default, deserialize_with = "bounded::some_time")]
    pub clock_skew_ms: Option<i64>,
    /// What it says it was shown of the audit log, signed by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown: Option<ShownLog>,
    /// How many of its oldest generations the controller has forgotten.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub generations_forgotten: u64,
}

impl MachineView {
    /// [`next_generation`] for this machine.
    pub fn next_generation(&self, epoch: Epoch) -> Result<Generation, IdError> {
        let published = self.published.as_ref().map(|published| published.target.generation);
        next_generation(epoch, published, &self.holds)
    }
}

/// What `GET /v1/operator/machines?fields=summary` gives of each machine: the part of a [`MachineView`] that
/// a list shows, in the same form. A controller that does not know `fields` gives all of it, which reads as
/// well.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSummary {
    /// Its name in the flake.
    pub machine: MachineName,
    /// The class it was invited as.
    pub class: Class,
    /// Whether it may talk to the controller.
    pub standing: Standing,
    /// How it is doing.
    pub condition: Condition,
    /// The latest generation published for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<PublishedSummary>,
    /// The confirmed generation that it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs: Option<RunsSummary>,
    /// Its phase, by its last check-in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The generation that `phase` is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase_generation: Option<Generation>,
    /// What it is waiting for, or what is wrong, in its own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The kind of the last reply it refused, until it accepts one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Attack>,
    /// The attack it refused and that has not ended, as far as it has reported it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attack: Option<AttackView>,
    /// The controller has seen more than one machine with this key.
    #[serde(default, skip_serializing_if = "is_false")]
    pub clone_alarm: bool,
    /// Since when, in Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "bounded::some_time")]
    pub clone_alarm_at: Option<UnixMillis>,
    /// Failed units, pending reboots and pauses, by its last check-in.
    #[serde(default, skip_serializing_if = "Health::is_empty")]
    pub health: Health,
    /// When it last checked in, in Unix milliseconds of the controller's clock.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "bounded::some_time")]
    pub last_seen: Option<UnixMillis>,
}

/// The part of a [`Published`] that a list shows.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedSummary {
    /// What was signed.
    pub target: TargetSummary,
    /// When the operators' signatures expire, in Unix seconds.
    #[serde(deserialize_with = "bounded::seconds")]
    pub expires: i64,
}

/// The part of a [`Target`] that a list shows.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetSummary {
    /// Its number.
    pub generation: Generation,
}

/// The part of [`Runs`] that a list shows.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunsSummary {
    /// The confirmed generation that the running system is, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
}

impl From<MachineView> for MachineSummary {
    fn from(view: MachineView) -> Self {
        Self {
            machine: view.machine,
            class: view.class,
            standing: view.standing,
            condition: view.condition,
            published: view.published.map(|published| PublishedSummary {
                target: TargetSummary { generation: published.target.generation },
                expires: published.expires,
            }),
            runs: view.runs.map(|runs| RunsSummary { generation: runs.generation }),
            phase: view.phase,
            phase_generation: view.phase_generation,
            note: view.note,
            refused: view.refused,
            attack: view.attack,
            clone_alarm: view.clone_alarm,
            clone_alarm_at: view.clone_alarm_at,
            health: view.health,
            last_seen: view.last_seen,
        }
    }
}

pub(super) fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn is_false(it: &bool) -> bool {
    !it
}

/// The number of the next generation in the root's epoch: above what is published, and above what the
/// machine says it holds. After the controller was restored from a backup, the machine knows numbers that
/// the controller does not, and refuses to go back. Other epochs do not count.
pub fn next_generation(
    epoch: Epoch,
    published: Option<Generation>,
    holds: &Holds,
) -> Result<Generation, IdError> {
    let held = match holds.targets {
        0 => None,
        _ if holds.epoch != epoch => None,
        number => Some(Generation::of(epoch, number)?),
    };
    let published = published.filter(|published| published.epoch() == epoch);
    published.max(held).map_or(Ok(Generation::first_of(epoch)), Generation::next)
}

/// One published generation, for display and comparison.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// What was signed.
    pub target: Target,
    /// When it was published, in Unix milliseconds of the controller's clock.
    #[serde(deserialize_with = "bounded::time")]
    pub at: UnixMillis,
    /// The operator's key that published it.
    pub by: PublicKey,
    /// When the operators' signatures expire, in Unix seconds.
    #[serde(deserialize_with = "bounded::seconds")]
    pub expires: i64,
    /// The operators' keys that signed it, according to the controller. Version 0.1 does not send them.
    #[serde(default)]
    pub signers: Vec<PublicKey>,
}

impl Published {
    /// Whether its signatures still reach the threshold of these operators. If not, machines refuse it as
    /// forged until it is signed again.
    pub fn is_signed_by(&self, operators: &[PublicKey], threshold: u32) -> bool {
        // Before there were thresholds, whoever published it had signed it.
        let by = std::slice::from_ref(&self.by);
        let signers = if self.signers.is_empty() { by } else { &self.signers };
        let good: BTreeSet<&[u8; 32]> =
            signers.iter().filter(|key| operators.contains(key)).map(PublicKey::as_bytes).collect();
        good.len() >= threshold as usize
    }
}

/// An attack that a machine refused: `GET /v1/operator/machines/NAME/attacks`, newest first.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttackView {
    /// What believing the reply would have been.
    pub attack: Attack,
    /// What the machine says about it.
    #[serde(default)]
    pub detail: String,
    /// The generation that the controller had announced.
    #[serde(default)]
    pub generation: Option<Generation>,
    /// When, in Unix milliseconds of the machine's clock.
    #[serde(deserialize_with = "bounded::time")]
    pub at: UnixMillis,
    /// When the controller received it, in Unix milliseconds of its clock.
    #[serde(deserialize_with = "bounded::time")]
    pub received_at: UnixMillis,
    /// When the machine accepted something again, in Unix milliseconds of the controller's clock.
    #[serde(default, deserialize_with = "bounded::some_time")]
    pub ended_at: Option<UnixMillis>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::SecretKey;

    #[test]
    fn a_published_generation_counts_while_a_threshold_of_todays_operators_has_signed_it() {
        let [alice, bob, carol] = [(); 3].map(|()| SecretKey::generate().unwrap().public());
        let target = r#"{"machine":"stibnite","class":"darwin","generation":1,"system":"aarch64-darwin",
            "derivation":"/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv",
            "output":"/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system"}"#;
        let target = Target::parse(target.as_bytes()).unwrap();
        let signed = |signers: &[PublicKey]| Published {
            target: target.clone(),
            at: 0,
            by: alice,
            expires: 0,
            signers: signers.to_vec(),
        };
        assert!(signed(&[alice, bob]).is_signed_by(&[alice, bob, carol], 2));
        assert!(!signed(&[alice, bob]).is_signed_by(&[alice, carol], 2), "bob left");
        assert!(!signed(&[alice, alice]).is_signed_by(&[alice, bob], 2), "one key counts once");
        assert!(signed(&[]).is_signed_by(&[alice], 1), "published by version 0.1");
        assert!(!signed(&[]).is_signed_by(&[bob], 1));
    }

    #[test]
    fn a_summary_is_read_from_a_whole_view_and_from_itself() {
        let view = serde_json::json!({
            "machine": "tin", "class": "nixos", "system": "x86_64-linux", "tags": ["a"],
            "standing": "enrolled", "condition": "degraded", "clone_alarm": true, "clone_alarm_at": 7,
            "published": {
                "at": 1, "by": SecretKey::generate().unwrap().public(), "expires": 9,
                "target": {
                    "machine": "tin", "class": "nixos", "generation": 3, "system": "x86_64-linux",
                    "derivation": "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv",
                    "output": "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system",
                },
            },
            "runs": {"running": "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system", "generation": 2},
            "phase": "building", "phase_generation": 3, "note": "x", "refused": null, "last_seen": 5,
            "holds": {}, "health": {"degraded": ["x.service"]},
        });
        let whole: MachineView = serde_json::from_value(view.clone()).unwrap();
        let summary = MachineSummary::from(whole);
        assert_eq!(serde_json::from_value::<MachineSummary>(view).unwrap(), summary);
        let written = serde_json::to_value(&summary).unwrap();
        assert_eq!(serde_json::from_value::<MachineSummary>(written).unwrap(), summary);
    }
}
