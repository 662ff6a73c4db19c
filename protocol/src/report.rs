//! What a machine tells of what it did. Events are numbered per machine and arrive once and in order (I7).

use serde::{Deserialize, Serialize};

use crate::bounded;
use crate::clock::UnixMillis;
use crate::ids::{Generation, IdError, MachineName, StorePath, from_hex, to_hex};
use crate::keys::PublicKey;
use crate::random::{self, RandomError};

/// The most events in one batch, and the largest batch in bytes.
pub const MAX_BATCH_EVENTS: usize = 256;
pub const MAX_BATCH_BYTES: usize = 1024 * 1024;
/// How much of a build's or an activation's output an event carries, in bytes, from the end.
pub const MAX_LOG_TAIL: usize = 4096;
/// The highest number of an event. No count reaches it: whoever is beyond was told a lie.
pub const MAX_EVENT_NUMBER: u64 = (1 << 48) - 1;

/// The body of `POST /v1/reports`, signed by the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    pub machine: MachineName,
    /// The count that the numbers are of. Another one than before begins anew: numbers of the old one say nothing of it.
    /// Agents of 0.1 have one count alone, without a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<Stream>,
    /// The lowest number that the machine still holds. A controller that was restored from a backup and misses
    /// numbers below it will never get them, and goes on from here.
    pub oldest: u64,
    /// By number. What is missing in between was dropped by the machine, which tells so by [`EventKind::Dropped`].
    pub events: Vec<Event>,
}

/// The reply: everything through this number is stored durably, and the machine may forget it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    #[serde(deserialize_with = "bounded::number::<_, 0, MAX_EVENT_NUMBER>")]
    pub through: u64,
    /// The count that it speaks of. A controller that says it takes numbers that are not one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<Stream>,
}

/// The name of one count of events, drawn at random: 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Stream([u8; 8]);

impl Stream {
    pub fn generate() -> Result<Self, RandomError> {
        random::bytes().map(Self)
    }
}
impl std::str::FromStr for Stream {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        from_hex(text).map(Self).ok_or_else(|| IdError::Stream(text.to_owned()))
    }
}
impl TryFrom<String> for Stream {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}
impl From<Stream> for String {
    fn from(stream: Stream) -> String {
        stream.to_string()
    }
}
impl std::fmt::Display for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counted from 1 on each machine, without gaps.
    pub seq: u64,
    /// The machine's wall clock.
    #[serde(deserialize_with = "bounded::time")]
    pub at: UnixMillis,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    #[serde(flatten)]
    pub kind: EventKind,
}

/// Durations are in milliseconds of time awake.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
        step: UpdateStep,
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
    /// It waits for a better time, at most until then where that is known.
    Deferred {
        why: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<UnixMillis>,
    },
    /// How far a fetch or a build is, now and then.
    Progress(Progress),
    /// How long each step took, and what the new system changes of the old one. Comes after the end.
    Summary(Box<Summary>),
    /// A hook after a switch failed; the switch stands as it is.
    HookFailed {
        hook: String,
        #[serde(default)]
        detail: String,
    },
    /// The machine reboots by itself, for what its system wants a reboot for.
    Rebooting {
        why: String,
    },
    /// Somebody said that a generation is to be tried again; `quarantined` says whether its derivation was held back
    /// until then.
    Retried {
        derivation: StorePath,
        #[serde(default)]
        quarantined: bool,
        by: Asker,
    },
    /// The machine had no room for so many events that nobody took, and dropped them; they were told between these times.
    Dropped {
        events: u64,
        since: UnixMillis,
        until: UnixMillis,
    },
    /// A kind that this program does not know yet; the stored bytes keep it whole.
    #[serde(other)]
    Unknown,
}

/// Who asked a machine for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "who", rename_all = "kebab-case")]
pub enum Asker {
    /// Somebody at the machine, with this user ID where that is known.
    Local {
        #[serde(default)]
        user: Option<u32>,
    },
    /// An operator, who signed the request with this key.
    Operator { key: PublicKey },
    /// An asker of a later version.
    #[serde(other)]
    Unknown,
}

/// Counts of derivations and bytes; a count is 0 where Nix does not say it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Progress {
    pub step: UpdateStep,
    /// Derivations that are built, that are to be built, and that are being built.
    #[serde(default)]
    pub built: u64,
    #[serde(default)]
    pub to_build: u64,
    #[serde(default)]
    pub building: u64,
    /// Paths that are copied or downloaded, and that are to be.
    #[serde(default)]
    pub copied: u64,
    #[serde(default)]
    pub to_copy: u64,
    #[serde(default)]
    pub bytes: u64,
    #[serde(default)]
    pub bytes_expected: u64,
    /// What is worked on, the name of a derivation for example.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
}

/// Durations in milliseconds of time awake; a step that was not taken has none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Summary {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fetch_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_ms: Option<u64>,
    /// The system's own checks, and the hooks before the switch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preflight_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undo_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closure: Option<ClosureChange>,
}

/// What the new system's closure has that the old one's has not, by the names of packages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct ClosureChange {
    /// `NAME OLD -> NEW`, the first of them.
    pub changed: Vec<String>,
    /// `NAME VERSION`
    pub added: Vec<String>,
    pub removed: Vec<String>,
    /// How many more there are of all three.
    pub more: u64,
    /// Bytes that the new closure has more than the old one.
    pub bytes: i64,
}

/// Why a generation was undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    ActivationFailed,
    HealthCheckFailed,
    NotRunning,
    ControllerUnreachable,
    Deadline,
    Interrupted,
    Operator,
    /// Something on the machine was in its way that only a person can clear.
    NeedsHuman,
    /// A reason of a later version.
    #[serde(other)]
    Unknown,
}

/// Where an update ended before activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateStep {
    Verify,
    Fetch,
    Build,
    Compare,
    Preflight,
    /// A step of a later version.
    #[serde(other)]
    Unknown,
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
    /// A number so far above the one that is held that hardly any would be left.
    FastForward,
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
            Self::FastForward => "fast-forward",
            Self::Unknown => "an attack of a kind that this version does not know",
        }
    }
    /// As a check-in tells it: a controller of version 0.1 takes no check-in with a kind that came later. The event has
    /// the kind itself.
    pub fn in_check_in(self) -> Self {
        match self {
            Self::AlteredArchive | Self::Unknown => Self::WrongOutput,
            Self::FastForward => Self::Malformed,
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

    /// An event and its kind share one object: a field of the one must not be a field of the other.
    #[test]
    fn every_kind_of_event_comes_back_as_it_was_sent() {
        let path: StorePath = "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system".parse().unwrap();
        let progress = Progress {
            step: UpdateStep::Build,
            built: 1,
            to_build: 2,
            building: 3,
            copied: 4,
            to_copy: 5,
            bytes: 6,
            bytes_expected: 7,
            current: Some("bash".into()),
        };
        let closure =
            ClosureChange { changed: vec!["a 1 -> 2".into()], bytes: -5, ..ClosureChange::default() };
        let ms = Some(3);
        let summary = Summary {
            fetch_ms: ms,
            build_ms: ms,
            preflight_ms: ms,
            activation_ms: ms,
            probe_ms: ms,
            undo_ms: ms,
            total_ms: ms,
            closure: Some(closure),
        };
        let (running, detail) = (path.clone(), "why".to_owned());
        for kind in [
            EventKind::Enrolled { agent: "1".into() },
            EventKind::AgentStarted { agent: "1".into(), boot_id: "b".into() },
            EventKind::Verified,
            EventKind::Fetched { ms: 1 },
            EventKind::Built { output: path.clone(), ms: 1 },
            EventKind::Activating { old: path.clone(), new: path.clone() },
            EventKind::Activated { exit: 4, ms: 1 },
            EventKind::Confirmed { running: path.clone(), ms: 1, degraded: vec!["x.service".into()] },
            EventKind::RolledBack {
                running,
                reason: Reason::NeedsHuman,
                detail: detail.clone(),
                quarantined: true,
            },
            EventKind::Failed { step: UpdateStep::Compare, detail: detail.clone(), quarantined: false },
            EventKind::NeedsHuman { detail: detail.clone() },
            EventKind::Refused { attack: Attack::Clone, detail: detail.clone() },
            EventKind::Drift { running: path.clone(), expected: path.clone() },
            EventKind::Deferred { why: "w".into(), until: Some(9) },
            EventKind::Progress(progress),
            EventKind::Summary(Box::new(summary)),
            EventKind::HookFailed { hook: "h".into(), detail },
            EventKind::Rebooting { why: "w".into() },
            EventKind::Retried {
                derivation: path.clone(),
                quarantined: true,
                by: Asker::Local { user: Some(0) },
            },
            EventKind::Retried {
                derivation: path,
                quarantined: false,
                by: Asker::Operator { key: crate::keys::SecretKey::generate().unwrap().public() },
            },
            EventKind::Dropped { events: 3, since: 4, until: 5 },
            EventKind::Unknown,
        ] {
            let event = Event { seq: 3, at: 5, generation: Some(Generation::FIRST), kind };
            let text = serde_json::to_string(&event).unwrap();
            assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event, "{text}");
        }
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
    fn a_word_of_the_future_does_not_hide_what_is_known_of_an_event() {
        let text =
            r#"{"seq":9,"at":1,"kind":"failed","step":"weigh","detail":"too heavy","quarantined":true}"#;
        let event: Event = serde_json::from_str(text).unwrap();
        assert!(matches!(event.kind, EventKind::Failed { step: UpdateStep::Unknown, quarantined: true, .. }));
        let text = r#"{"seq":9,"at":1,"kind":"progress","step":"build","built":3,"cosmic_rays":4}"#;
        let event: Event = serde_json::from_str(text).unwrap();
        assert!(matches!(event.kind, EventKind::Progress(Progress { built: 3, to_build: 0, .. })));
    }

    #[test]
    fn failure_mode_26_a_recorded_event_of_version_0_1_still_parses() {
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
