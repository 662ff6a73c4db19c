//! What a machine tells of what it did. Events are numbered per machine and arrive once and in order (I7).

use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::ids::{Generation, MachineName, StorePath};
use crate::keys::PublicKey;

/// The most events in one batch, and the largest batch in bytes.
pub const MAX_BATCH_EVENTS: usize = 256;
pub const MAX_BATCH_BYTES: usize = 1024 * 1024;
/// How much of a build's or an activation's output an event carries, in bytes, from the end.
pub const MAX_LOG_TAIL: usize = 4096;

/// The body of `POST /v1/reports`, signed by the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    pub machine: MachineName,
    /// The lowest number that the machine still holds. A controller that was restored from a backup and misses
    /// numbers below it will never get them, and goes on from here.
    pub oldest: u64,
    pub events: Vec<Event>,
}

/// The reply: everything through this number is stored durably, and the machine may forget it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    pub through: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counted from 1 on each machine, without gaps.
    pub seq: u64,
    /// The machine's wall clock.
    pub at: UnixMillis,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    #[serde(flatten)]
    pub kind: EventKind,
}

/// Durations are in milliseconds of time awake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum EventKind {
    Enrolled {
        agent: String,
    },
    AgentStarted {
        agent: String,
        boot_id: String,
    },
    /// The metadata and the target of this generation are verified.
    Verified,
    Fetched {
        ms: u64,
    },
    Built {
        output: StorePath,
        ms: u64,
    },
    Activating {
        old: StorePath,
        new: StorePath,
    },
    Activated {
        exit: i32,
        ms: u64,
    },
    Confirmed {
        running: StorePath,
        ms: u64,
        /// Units that failed in the switch or before it, though the generation is confirmed.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        degraded: Vec<String>,
    },
    RolledBack {
        running: StorePath,
        reason: Reason,
        #[serde(default)]
        detail: String,
        /// Whether this derivation is not tried again.
        quarantined: bool,
    },
    /// It ended before anything was activated.
    Failed {
        step: Step,
        #[serde(default)]
        detail: String,
        quarantined: bool,
    },
    /// The undo failed too; a person must look.
    NeedsHuman {
        detail: String,
    },
    /// The agent refused what it was given, and as what.
    Refused {
        attack: Attack,
        #[serde(default)]
        detail: String,
    },
    /// The machine signs with a new key; the old one is worth nothing any more.
    KeyRotated {
        key: PublicKey,
    },
    /// Somebody else changed the running system.
    Drift {
        running: StorePath,
        expected: StorePath,
    },
    /// A kind that this program does not know yet; the stored bytes keep it whole.
    #[serde(other)]
    Unknown,
}

/// Why a generation was undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    ActivationFailed,
    HealthCheckFailed,
    NotRunning,
    ControllerUnreachable,
    Deadline,
    Interrupted,
    Operator,
}

/// Where an update ended before activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    Verify,
    Fetch,
    Build,
    Compare,
    Preflight,
}

/// What a refused answer would have been, had it been believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attack {
    Rollback,
    Freeze,
    ForgedSignature,
    ForeignMachine,
    EndlessData,
    MixAndMatch,
    WrongOutput,
    WrongClass,
    Malformed,
    Clone,
    /// A file of the cache is not what its name says, or lacks a signature that counts.
    AlteredArchive,
    /// A kind that this program does not know yet.
    #[serde(other)]
    Unknown,
}

impl Attack {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rollback => "rollback",
            Self::Freeze => "freeze",
            Self::ForgedSignature => "forged signature",
            Self::ForeignMachine => "foreign machine",
            Self::EndlessData => "endless data",
            Self::MixAndMatch => "mix and match",
            Self::WrongOutput => "wrong output",
            Self::WrongClass => "wrong class",
            Self::Malformed => "malformed metadata",
            Self::Clone => "clone",
            Self::AlteredArchive => "altered archive",
            Self::Unknown => "an attack of a kind that this version does not know",
        }
    }
    /// As a check-in tells it: a controller of version 0.1 takes no check-in with a kind that came later. The event has
    /// the kind itself.
    pub fn in_check_in(self) -> Self {
        match self {
            Self::AlteredArchive | Self::Unknown => Self::WrongOutput,
            known => known,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_the_future_parses_as_unknown() {
        let event: Event =
            serde_json::from_str(r#"{"seq":9,"at":1,"kind":"teleported","to":"mars"}"#).unwrap();
        assert_eq!(event.kind, EventKind::Unknown);
    }

    #[test]
    fn an_attack_of_the_future_parses_as_unknown_and_check_ins_tell_only_those_of_0_1() {
        let attack: Attack = serde_json::from_str("\"time-travel\"").unwrap();
        assert_eq!(attack, Attack::Unknown);
        let first = [
            "rollback",
            "freeze",
            "forged-signature",
            "foreign-machine",
            "endless-data",
            "mix-and-match",
            "wrong-output",
            "wrong-class",
            "malformed",
            "clone",
        ];
        for attack in [Attack::AlteredArchive, Attack::Unknown, Attack::Clone, Attack::Freeze] {
            let told = serde_json::to_value(attack.in_check_in()).unwrap();
            assert!(first.contains(&told.as_str().unwrap()), "{told}");
        }
    }

    #[test]
    fn a_recorded_event_of_version_0_1_still_parses() {
        let text = r#"{"seq":4,"at":1700000000000,"generation":3,"kind":"rolled-back",
            "running":"/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system",
            "reason":"health-check-failed","detail":"ssh: refused","quarantined":true}"#;
        let event: Event = serde_json::from_str(text).unwrap();
        assert!(matches!(
            event.kind,
            EventKind::RolledBack { reason: Reason::HealthCheckFailed, quarantined: true, .. }
        ));
    }
}
