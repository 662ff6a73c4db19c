//! What a machine reports. Events are numbered per machine and arrive once and in order (I7).

use serde::{Deserialize, Serialize};

use crate::bounded;
use crate::clock::UnixMillis;
use crate::ids::{Generation, IdError, MachineName, StorePath, from_hex, to_hex};
use crate::keys::PublicKey;
use crate::random::{self, RandomError};

/// The most events in one batch.
pub const MAX_BATCH_EVENTS: usize = 256;
/// The largest batch, in bytes.
pub const MAX_BATCH_BYTES: usize = 1024 * 1024;
/// How much of the output of a build or an activation an event carries, in bytes, from the end.
pub const MAX_LOG_TAIL: usize = 4096;
/// The highest number of an event. No honest count reaches it.
pub const MAX_EVENT_NUMBER: u64 = (1 << 48) - 1;

/// The body of `POST /v1/reports`, signed by the machine in `Context::Reports`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The machine whose events these are.
    pub machine: MachineName,
    /// The stream that the numbers belong to. A different stream starts over; numbers of the old one say
    /// nothing about it. Agents of version 0.1 have one stream, without a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<Stream>,
    /// The lowest number that the machine still holds. A controller that was restored from a backup and
    /// misses numbers below it will never get them, and continues from here.
    pub oldest: u64,
    /// In order of their numbers. The machine has dropped the missing ones and says so with
    /// [`EventKind::Dropped`].
    pub events: Vec<Event>,
}

/// The reply to a batch. The machine may forget what it covers.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The highest number that is stored durably, with all numbers below it.
    #[serde(deserialize_with = "bounded::number::<_, 0, MAX_EVENT_NUMBER>")]
    pub through: u64,
    /// The stream it is about. A controller that sends it accepts numbers with gaps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<Stream>,
}

/// The name of one stream of events, drawn at random: 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Stream([u8; 8]);

impl Stream {
    /// A new stream from the system's random source.
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

/// One thing that happened on a machine.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number in the machine's stream, from 1.
    pub seq: u64,
    /// When, in Unix milliseconds of the machine's clock.
    #[serde(deserialize_with = "bounded::time")]
    pub at: UnixMillis,
    /// The generation it is about, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    /// What happened. Its fields are on the same level in JSON.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened on a machine. Durations are in milliseconds of time awake.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum EventKind {
    /// The machine enrolled.
    Enrolled {
        /// The agent's version.
        agent: String,
    },
    /// The agent started.
    AgentStarted {
        /// The agent's version.
        agent: String,
        /// Different after each boot.
        boot_id: String,
    },
    /// The metadata and the target of this generation are verified.
    Verified,
    /// The derivation and its inputs are in the store.
    Fetched {
        /// How long that took.
        ms: u64,
    },
    /// The system is in the store, built or downloaded.
    Built {
        /// Its output path.
        output: StorePath,
        /// How long that took.
        ms: u64,
    },
    /// The activation starts.
    Activating {
        /// The system that ran before.
        old: StorePath,
        /// The system to run.
        new: StorePath,
    },
    /// The activation ended; it may have failed.
    Activated {
        /// The exit code of the activation script.
        exit: i32,
        /// How long it took.
        ms: u64,
    },
    /// The generation passed its checks and is kept.
    Confirmed {
        /// The system that runs.
        running: StorePath,
        /// From the start of the activation until now.
        ms: u64,
        /// Units that failed during the switch or before it, though the generation is confirmed.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        degraded: Vec<String>,
    },
    /// The old system runs again.
    RolledBack {
        /// The system that runs.
        running: StorePath,
        /// Why.
        reason: Reason,
        /// The end of the output, or what a check found.
        #[serde(default)]
        detail: String,
        /// Whether this derivation is not tried again.
        quarantined: bool,
    },
    /// It ended before anything was activated.
    Failed {
        /// What was being done.
        step: UpdateStep,
        /// The end of the output, or the error.
        #[serde(default)]
        detail: String,
        /// Whether this derivation is not tried again.
        quarantined: bool,
    },
    /// The undo failed too; a person must look.
    NeedsHuman {
        /// What failed and what is left.
        detail: String,
    },
    /// The agent refused what it was given.
    Refused {
        /// What believing it would have been.
        attack: Attack,
        /// What was wrong, in one sentence.
        #[serde(default)]
        detail: String,
    },
    /// The machine signs with a new key; the old one is worthless from now on.
    KeyRotated {
        /// The new key.
        key: PublicKey,
    },
    /// Somebody else changed the running system.
    Drift {
        /// The system that runs.
        running: StorePath,
        /// The system of the confirmed generation.
        expected: StorePath,
    },
    /// Waiting for a better time.
    Deferred {
        /// What it is waiting for, in one sentence.
        why: String,
        /// When the wait ends at the latest, in Unix milliseconds, if known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<UnixMillis>,
    },
    /// How far a fetch or a build has got; sent now and then.
    Progress(Progress),
    /// How long each step took, and how the new system differs from the old one. Sent last.
    Summary(Box<Summary>),
    /// A hook after a switch failed; the switch stands.
    HookFailed {
        /// Its name.
        hook: String,
        /// The end of its output.
        #[serde(default)]
        detail: String,
    },
    /// The machine reboots by itself.
    Rebooting {
        /// What the reboot is for.
        why: String,
    },
    /// Somebody asked for a generation to be tried again.
    Retried {
        /// What is tried again.
        derivation: StorePath,
        /// Whether it had been in quarantine.
        #[serde(default)]
        quarantined: bool,
        /// Who asked.
        by: Asker,
    },
    /// The machine ran out of room for events that nobody accepted, and dropped some.
    Dropped {
        /// How many.
        events: u64,
        /// When the first of them happened, in Unix milliseconds.
        since: UnixMillis,
        /// When the last of them happened, in Unix milliseconds.
        until: UnixMillis,
    },
    /// A kind of a later version; the stored bytes keep all of it.
    #[serde(other)]
    Unknown,
}

/// Who asked a machine for something.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "who", rename_all = "kebab-case")]
pub enum Asker {
    /// Somebody at the machine.
    Local {
        /// Their user ID, if known.
        #[serde(default)]
        user: Option<u32>,
    },
    /// An operator.
    Operator {
        /// The key that signed the request.
        key: PublicKey,
    },
    /// An asker of a later version.
    #[serde(other)]
    Unknown,
}

/// How far a fetch or a build has got. A count is 0 where Nix does not report it.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Progress {
    /// `Fetch` or `Build`.
    pub step: UpdateStep,
    /// Derivations already built.
    #[serde(default)]
    pub built: u64,
    /// Derivations to build in all.
    #[serde(default)]
    pub to_build: u64,
    /// Derivations being built now.
    #[serde(default)]
    pub building: u64,
    /// Paths already copied or downloaded.
    #[serde(default)]
    pub copied: u64,
    /// Paths to copy in all.
    #[serde(default)]
    pub to_copy: u64,
    /// Bytes already downloaded.
    #[serde(default)]
    pub bytes: u64,
    /// Bytes to download in all.
    #[serde(default)]
    pub bytes_expected: u64,
    /// What is being worked on, the name of a derivation for example.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
}

/// How long each step took, in milliseconds of time awake; `None` for a step that was not taken.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Summary {
    /// Fetching the derivation and its inputs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fetch_ms: Option<u64>,
    /// Building or downloading the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_ms: Option<u64>,
    /// The system's own checks, and the hooks before the switch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preflight_ms: Option<u64>,
    /// The activation script.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation_ms: Option<u64>,
    /// The health checks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe_ms: Option<u64>,
    /// Going back to the old system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undo_ms: Option<u64>,
    /// From the verified target to the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_ms: Option<u64>,
    /// How the closures differ; `None` where they were not compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closure: Option<ClosureChange>,
}

/// How the new system's closure differs from the old one's, by package names.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct ClosureChange {
    /// `NAME OLD -> NEW`; only the first few.
    pub changed: Vec<String>,
    /// `NAME VERSION`; only the first few.
    pub added: Vec<String>,
    /// `NAME VERSION`; only the first few.
    pub removed: Vec<String>,
    /// How many more there are in all three lists.
    pub more: u64,
    /// Size of the new closure minus the old one's, in bytes.
    pub bytes: i64,
}

/// Why a generation was undone.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The activation script failed.
    ActivationFailed,
    /// A health check failed on all its tries.
    HealthCheckFailed,
    /// The new system is not the one that runs.
    NotRunning,
    /// The controller did not answer the new system.
    ControllerUnreachable,
    /// The deadline passed without a confirmation.
    Deadline,
    /// A crash or a power cut interrupted the activation.
    Interrupted,
    /// A boot did not bring the new system up.
    DidNotBoot,
    /// Somebody at the machine or an operator asked for it.
    Operator,
    /// Something on the machine was in the way that only a person can clear.
    NeedsHuman,
    /// A reason of a later version.
    #[serde(other)]
    Unknown,
}

/// Where an update ended before its activation.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateStep {
    /// Verifying the target.
    Verify,
    /// Fetching the derivation and its inputs.
    Fetch,
    /// Building or downloading the system.
    Build,
    /// Comparing the output with the signed one.
    Compare,
    /// The system's own checks, and the hooks before the switch.
    Preflight,
    /// A step of a later version.
    #[serde(other)]
    Unknown,
}

/// What believing a refused reply would have been (TUF 1.5.2).
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attack {
    /// A version older than one seen before.
    Rollback,
    /// Metadata that has expired: perhaps a replay that hides newer versions.
    Freeze,
    /// Too few valid signatures.
    ForgedSignature,
    /// Signed, but for another machine.
    ForeignMachine,
    /// More bytes than signed or allowed.
    EndlessData,
    /// Documents that do not belong together.
    MixAndMatch,
    /// A build that gave another output than the signed one.
    WrongOutput,
    /// Signed for the other class or for another system.
    WrongClass,
    /// Not what the format requires, though signed or from the controller.
    Malformed,
    /// Perhaps a second machine with this machine's key: the controller has seen a higher number.
    Clone,
    /// A file of the cache does not match its name, or lacks a valid signature.
    AlteredArchive,
    /// A version so far above the one held that hardly any would be left.
    FastForward,
    /// The controller gave leave to switch without the proof that the plan asks for.
    SkippedWave,
    /// A kind that this program does not know yet.
    #[serde(other)]
    Unknown,
}

impl Attack {
    /// The kind as people read it.
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
            Self::SkippedWave => "skipped wave",
            Self::Unknown => "an attack of a kind that this version does not know",
        }
    }
    /// The kind as a check-in sends it: a controller of version 0.1 refuses check-ins with a kind that came
    /// later. The event keeps the kind itself.
    pub fn in_check_in(self) -> Self {
        match self {
            Self::AlteredArchive | Self::Unknown => Self::WrongOutput,
            Self::FastForward => Self::Malformed,
            Self::SkippedWave => Self::MixAndMatch,
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

    /// An event and its kind share one JSON object, so their fields must not collide.
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
            let sent = serde_json::to_value(attack.in_check_in()).unwrap();
            assert!(first.contains(&sent.as_str().unwrap()), "{sent}");
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
