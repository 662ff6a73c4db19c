//! The states of a switch transaction, and what leads from one to the next.
//!
//! ```text
//! verified --fetched--> fetched --built--> built --passed--> checked --started--> activating
//! activating --activated--> probing --confirmed--> confirmed
//! activating --activated-to-boot--> awaiting-reboot --rebooted--> probing
//! activating --undo--> rolling-back --undone--> rolled-back
//! probing --undo--> rolling-back --undo-failed--> undo-failed
//! awaiting-reboot --undo--> rolling-back
//! activating --finished--> finished
//!
//! verified --failed--> failed
//! fetched --failed--> failed
//! built --failed--> failed
//! checked --failed--> failed
//!
//! built --blocked--> needs-human --retried--> built
//! checked --blocked--> needs-human --failed--> failed
//!
//! verified --deferred--> deferred --retried--> verified
//! fetched --deferred--> deferred --retried--> fetched
//! built --deferred--> deferred --retried--> built
//! checked --deferred--> deferred --failed--> failed
//! deferred --deferred--> deferred
//! activating --untouched--> deferred
//!
//! unknown --activated--> probing
//! unknown --activated-to-boot--> awaiting-reboot
//! unknown --undo--> rolling-back
//! unknown --untouched--> deferred
//! unknown --finished--> finished
//! ```
//!
//! `idle` is the absence of a transaction; `unknown` is a state that a later version wrote before this one took its place
//! again. A test holds this drawing, [`TRANSITIONS`] and [`State::after`] together.

use muster_protocol::checkin::Phase;
use muster_protocol::report::{Reason, UpdateStep};
use serde::{Deserialize, Serialize};

use super::policy::{Deferral, Stage};

/// Where a transaction stands. Stored by these names; later versions only add to them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum State {
    /// Metadata and target are verified.
    Verified,
    /// The derivation and all that it needs is in the store.
    Fetched,
    /// The output is in the store, and it is the signed one.
    Built,
    /// The system's own checks passed; nothing is changed yet.
    Checked,
    /// It waits for a better time to go on with `stage`.
    Deferred {
        #[serde(flatten)]
        deferral: Deferral,
        #[serde(default)]
        stage: Stage,
    },
    /// It waits for a person; nothing is changed yet.
    NeedsHuman {
        detail: String,
    },
    /// The activator works on it, or is about to.
    Activating,
    /// The new system runs, and nobody has confirmed it yet.
    Probing,
    /// The new system runs after the next reboot.
    AwaitingReboot,
    /// The activator goes back to the old system, or is about to.
    RollingBack {
        reason: Reason,
        detail: String,
    },
    Confirmed {
        #[serde(default)]
        degraded: Vec<String>,
    },
    /// A trial run ended; it was to change nothing.
    Finished {
        exit: i32,
        /// The end of what it said.
        #[serde(default)]
        detail: String,
    },
    RolledBack {
        reason: Reason,
        detail: String,
    },
    /// Neither the new nor the old system could be activated.
    UndoFailed {
        reason: Reason,
        detail: String,
    },
    /// It ended before anything was activated.
    Failed {
        step: UpdateStep,
        detail: String,
        quarantined: bool,
    },
    /// A state of a later version. The machine itself and the activator's record say the rest.
    #[serde(other)]
    Unknown,
}

/// What happened to a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    Fetched,
    Built,
    Passed,
    Blocked {
        detail: String,
    },
    Deferred {
        deferral: Deferral,
    },
    /// The reason to wait is gone, or may be.
    Retried,
    Started,
    /// The activator gave up before it changed anything.
    Untouched {
        deferral: Deferral,
    },
    Activated,
    ActivatedToBoot,
    Rebooted,
    Confirmed {
        degraded: Vec<String>,
    },
    Finished {
        exit: i32,
        detail: String,
    },
    Undo {
        reason: Reason,
        detail: String,
    },
    Undone,
    UndoFailed {
        detail: String,
    },
    Failed {
        step: UpdateStep,
        detail: String,
        quarantined: bool,
    },
}

/// The state machine as a table: from, by, to.
pub const TRANSITIONS: &[(&str, &str, &str)] = &[
    ("verified", "fetched", "fetched"),
    ("fetched", "built", "built"),
    ("built", "passed", "checked"),
    ("checked", "started", "activating"),
    ("activating", "activated", "probing"),
    ("probing", "confirmed", "confirmed"),
    ("activating", "activated-to-boot", "awaiting-reboot"),
    ("awaiting-reboot", "rebooted", "probing"),
    ("activating", "undo", "rolling-back"),
    ("probing", "undo", "rolling-back"),
    ("awaiting-reboot", "undo", "rolling-back"),
    ("rolling-back", "undone", "rolled-back"),
    ("rolling-back", "undo-failed", "undo-failed"),
    ("activating", "finished", "finished"),
    ("verified", "failed", "failed"),
    ("fetched", "failed", "failed"),
    ("built", "failed", "failed"),
    ("checked", "failed", "failed"),
    ("needs-human", "failed", "failed"),
    ("deferred", "failed", "failed"),
    ("built", "blocked", "needs-human"),
    ("checked", "blocked", "needs-human"),
    ("needs-human", "retried", "built"),
    ("verified", "deferred", "deferred"),
    ("fetched", "deferred", "deferred"),
    ("built", "deferred", "deferred"),
    ("checked", "deferred", "deferred"),
    ("deferred", "deferred", "deferred"),
    ("deferred", "retried", "verified"),
    ("deferred", "retried", "fetched"),
    ("deferred", "retried", "built"),
    ("activating", "untouched", "deferred"),
    ("unknown", "activated", "probing"),
    ("unknown", "activated-to-boot", "awaiting-reboot"),
    ("unknown", "undo", "rolling-back"),
    ("unknown", "untouched", "deferred"),
    ("unknown", "finished", "finished"),
];

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a transaction that is {from} cannot become {input}; this is a mistake in muster-agent, please report it"
)]
pub struct Impossible {
    pub from: &'static str,
    pub input: &'static str,
}

impl State {
    /// The state after `input`, or why there is none.
    pub fn after(self, input: Input) -> Result<Self, Impossible> {
        use State as S;
        let (from, name) = (self.name(), input.name());
        let next = match (self, input) {
            (S::Verified, Input::Fetched) => S::Fetched,
            (S::Fetched, Input::Built) => S::Built,
            (S::NeedsHuman { .. }, Input::Retried) => S::Built,
            (S::Deferred { stage, .. }, Input::Retried) => match stage {
                Stage::Fetch => S::Verified,
                Stage::Build => S::Fetched,
                Stage::Switch => S::Built,
            },
            (S::Built, Input::Passed) => S::Checked,
            (S::Built | S::Checked, Input::Blocked { detail }) => S::NeedsHuman { detail },
            (S::Verified, Input::Deferred { deferral }) => S::Deferred { deferral, stage: Stage::Fetch },
            (S::Fetched, Input::Deferred { deferral }) => S::Deferred { deferral, stage: Stage::Build },
            (S::Built | S::Checked, Input::Deferred { deferral })
            | (S::Activating | S::Unknown, Input::Untouched { deferral }) => {
                S::Deferred { deferral, stage: Stage::Switch }
            }
            (S::Deferred { stage, .. }, Input::Deferred { deferral }) => S::Deferred { deferral, stage },
            (S::Checked, Input::Started) => S::Activating,
            (S::Activating | S::Unknown, Input::Activated) | (S::AwaitingReboot, Input::Rebooted) => {
                S::Probing
            }
            (S::Activating | S::Unknown, Input::ActivatedToBoot) => S::AwaitingReboot,
            (S::Activating | S::Unknown, Input::Finished { exit, detail }) => S::Finished { exit, detail },
            (S::Probing, Input::Confirmed { degraded }) => S::Confirmed { degraded },
            (S::Activating | S::Probing | S::AwaitingReboot | S::Unknown, Input::Undo { reason, detail }) => {
                S::RollingBack { reason, detail }
            }
            (S::RollingBack { reason, detail }, Input::Undone) => S::RolledBack { reason, detail },
            (S::RollingBack { reason, detail: first }, Input::UndoFailed { detail }) => {
                S::UndoFailed { reason, detail: join(&first, &detail) }
            }
            (state, Input::Failed { step, detail, quarantined }) if state.is_before_activation() => {
                S::Failed { step, detail, quarantined }
            }
            _ => return Err(Impossible { from, input: name }),
        };
        Ok(next)
    }

    /// Whether it can still be dropped without a trace.
    pub fn is_before_activation(&self) -> bool {
        matches!(
            self,
            Self::Verified
                | Self::Fetched
                | Self::Built
                | Self::Checked
                | Self::Deferred { .. }
                | Self::NeedsHuman { .. }
        )
    }

    /// Whether nothing more comes.
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Confirmed { .. }
                | Self::Finished { .. }
                | Self::RolledBack { .. }
                | Self::UndoFailed { .. }
                | Self::Failed { .. }
        )
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Fetched => "fetched",
            Self::Built => "built",
            Self::Checked => "checked",
            Self::Deferred { .. } => "deferred",
            Self::NeedsHuman { .. } => "needs-human",
            Self::Activating => "activating",
            Self::Probing => "probing",
            Self::AwaitingReboot => "awaiting-reboot",
            Self::RollingBack { .. } => "rolling-back",
            Self::Confirmed { .. } => "confirmed",
            Self::Finished { .. } => "finished",
            Self::RolledBack { .. } => "rolled-back",
            Self::UndoFailed { .. } => "undo-failed",
            Self::Failed { .. } => "failed",
            Self::Unknown => "unknown",
        }
    }

    /// The state in the words of a check-in: there it is told what is being done, here what is done.
    pub fn phase(&self) -> Phase {
        match self {
            Self::Verified => Phase::Fetching,
            Self::Fetched => Phase::Building,
            Self::Built | Self::Checked => Phase::Checked,
            Self::Deferred { .. } => Phase::Deferred,
            Self::NeedsHuman { .. } | Self::UndoFailed { .. } => Phase::NeedsHuman,
            Self::Activating => Phase::Activating,
            Self::Probing => Phase::Probing,
            Self::AwaitingReboot => Phase::AwaitingReboot,
            Self::RollingBack { .. } => Phase::RollingBack,
            Self::Confirmed { .. } => Phase::Confirmed,
            Self::Finished { .. } => Phase::Idle,
            Self::RolledBack { reason: Reason::NeedsHuman, .. } => Phase::NeedsHuman,
            Self::RolledBack { .. } => Phase::RolledBack,
            Self::Failed { .. } => Phase::Failed,
            Self::Unknown => Phase::Unknown,
        }
    }

    /// What it waits for or what went wrong, in words for people.
    ///
    /// Whatever did not end well, or waits, has words: its own, or the next best.
    pub fn note(&self) -> Option<&str> {
        fn or<'a>(words: &'a str, instead: &'static str) -> Option<&'a str> {
            Some(if words.trim().is_empty() { instead } else { words })
        }
        match self {
            Self::Deferred { deferral, .. } => or(&deferral.why, "it waits for a better time"),
            Self::NeedsHuman { detail } => or(detail, "a person is needed: 'muster-agent logs' says more"),
            Self::RollingBack { detail, .. } | Self::RolledBack { detail, .. } => {
                or(detail, "it was undone without words: 'muster-agent logs' says more")
            }
            Self::UndoFailed { detail, .. } => {
                or(detail, "neither forward nor back: 'muster-agent logs' says more")
            }
            Self::Failed { detail, .. } => {
                or(detail, "it failed without words: 'muster-agent logs' says more")
            }
            Self::Unknown => {
                Some("a later version of muster-agent left it in a state that this one does not know")
            }
            Self::Finished { detail, .. } if !detail.is_empty() => Some(detail),
            _ => None,
        }
    }
}

/// The activator's last words begin with why it went back, and are not said twice.
fn join(first: &str, second: &str) -> String {
    let cause = first.lines().next().unwrap_or_default();
    if second.starts_with(cause) { second.to_owned() } else { format!("{first}; {second}") }
}

impl Input {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Fetched => "fetched",
            Self::Built => "built",
            Self::Passed => "passed",
            Self::Blocked { .. } => "blocked",
            Self::Deferred { .. } => "deferred",
            Self::Retried => "retried",
            Self::Started => "started",
            Self::Untouched { .. } => "untouched",
            Self::Activated => "activated",
            Self::ActivatedToBoot => "activated-to-boot",
            Self::Rebooted => "rebooted",
            Self::Confirmed { .. } => "confirmed",
            Self::Finished { .. } => "finished",
            Self::Undo { .. } => "undo",
            Self::Undone => "undone",
            Self::UndoFailed { .. } => "undo-failed",
            Self::Failed { .. } => "failed",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::policy::Hold;
    use super::*;

    #[test]
    fn why_it_went_back_and_why_that_failed_are_said_once() {
        let undo = |detail: &str| Input::Undo { reason: Reason::ActivationFailed, detail: detail.to_owned() };
        let failed = |detail: &str| Input::UndoFailed { detail: detail.to_owned() };
        for (first, last, said) in [
            (
                "it broke off\nits output",
                "it broke off; going back failed too\nits output",
                "it broke off; going back failed too\nits output",
            ),
            ("a health check failed", "going back failed", "a health check failed; going back failed"),
            ("", "going back failed", "going back failed"),
        ] {
            let state = State::Activating.after(undo(first)).unwrap().after(failed(last)).unwrap();
            let State::UndoFailed { detail, .. } = state else { panic!("{state:?}") };
            assert_eq!(detail, said);
        }
    }

    fn words() -> (Reason, String) {
        (Reason::Deadline, "words".to_owned())
    }

    fn deferral() -> Deferral {
        Deferral { hold: Hold::Window, why: "words".to_owned(), until: Some(7) }
    }

    fn states() -> Vec<State> {
        let (reason, detail) = words();
        vec![
            State::Verified,
            State::Fetched,
            State::Built,
            State::Checked,
            State::Deferred { deferral: deferral(), stage: Stage::Fetch },
            State::Deferred { deferral: deferral(), stage: Stage::Build },
            State::Deferred { deferral: deferral(), stage: Stage::Switch },
            State::NeedsHuman { detail: detail.clone() },
            State::Activating,
            State::Probing,
            State::AwaitingReboot,
            State::RollingBack { reason, detail: detail.clone() },
            State::Confirmed { degraded: vec![] },
            State::Finished { exit: 0, detail: detail.clone() },
            State::RolledBack { reason, detail: detail.clone() },
            State::UndoFailed { reason, detail: detail.clone() },
            State::Failed { step: UpdateStep::Build, detail, quarantined: true },
            State::Unknown,
        ]
    }

    fn inputs() -> Vec<Input> {
        let (reason, detail) = words();
        vec![
            Input::Fetched,
            Input::Built,
            Input::Passed,
            Input::Blocked { detail: detail.clone() },
            Input::Deferred { deferral: deferral() },
            Input::Retried,
            Input::Started,
            Input::Untouched { deferral: deferral() },
            Input::Activated,
            Input::ActivatedToBoot,
            Input::Rebooted,
            Input::Confirmed { degraded: vec![] },
            Input::Finished { exit: 0, detail: detail.clone() },
            Input::Undo { reason, detail: detail.clone() },
            Input::Undone,
            Input::UndoFailed { detail: detail.clone() },
            Input::Failed { step: UpdateStep::Build, detail, quarantined: true },
        ]
    }

    fn owned(edges: &[(&str, &str, &str)]) -> BTreeSet<(String, String, String)> {
        edges.iter().map(|(a, b, c)| ((*a).to_owned(), (*b).to_owned(), (*c).to_owned())).collect()
    }

    #[test]
    fn the_code_goes_exactly_where_the_table_says() {
        let mut found = BTreeSet::new();
        for state in states() {
            for input in inputs() {
                let (from, by) = (state.name(), input.name());
                match state.clone().after(input) {
                    Ok(next) => drop(found.insert((from.to_owned(), by.to_owned(), next.name().to_owned()))),
                    Err(impossible) => assert_eq!((impossible.from, impossible.input), (from, by)),
                }
            }
        }
        assert_eq!(found, owned(TRANSITIONS));
        assert_eq!(found.len(), TRANSITIONS.len(), "a line of the table is there twice");
    }

    #[test]
    fn the_drawing_shows_exactly_the_table() {
        let mut drawn = BTreeSet::new();
        for line in include_str!("state.rs").lines().filter_map(|line| line.strip_prefix("//! ")) {
            if !line.contains("-->") {
                continue;
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            for edge in words.windows(3).step_by(2) {
                let by = edge[1].trim_start_matches("--").trim_end_matches("-->");
                drawn.insert((edge[0].to_owned(), by.to_owned(), edge[2].to_owned()));
            }
        }
        assert_eq!(drawn, owned(TRANSITIONS));
    }

    #[test]
    fn nothing_leads_out_of_a_final_state_and_everything_leads_to_one() {
        for state in states() {
            let leaves = TRANSITIONS.iter().any(|(from, _, _)| *from == state.name());
            assert_eq!(leaves, !state.is_final(), "{}", state.name());
            let can_fail = TRANSITIONS.contains(&(state.name(), "failed", "failed"));
            assert_eq!(can_fail, state.is_before_activation(), "{}", state.name());
        }
    }

    #[test]
    fn no_state_that_waits_or_did_not_end_well_has_an_empty_note() {
        let plain = [Phase::Fetching, Phase::Building, Phase::Checked, Phase::Activating, Phase::Probing];
        let plain = [plain.as_slice(), &[Phase::AwaitingReboot, Phase::Confirmed, Phase::Idle]].concat();
        for state in states() {
            let text = serde_json::to_string(&state).unwrap().replace("words", "");
            let silent: State = serde_json::from_str(&text).unwrap();
            for state in [state, silent] {
                let note = state.note();
                assert!(note.is_none_or(|note| !note.trim().is_empty()), "{}", state.name());
                assert!(note.is_some() || plain.contains(&state.phase()), "{}", state.name());
            }
        }
    }

    #[test]
    fn states_are_stored_by_their_names() {
        for state in states() {
            let text = serde_json::to_string(&state).unwrap();
            assert!(text.contains(&format!(r#""state":"{}""#, state.name())), "{text}");
            assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
        }
    }

    #[test]
    fn what_an_earlier_version_deferred_and_what_a_later_one_does_is_read() {
        let earlier: State = serde_json::from_str(r#"{"state":"deferred","why":"battery"}"#).unwrap();
        assert!(
            matches!(&earlier, State::Deferred { deferral, stage: Stage::Switch } if deferral.why == "battery")
        );
        assert_eq!(earlier.after(Input::Retried).unwrap(), State::Built);
        let later: State = serde_json::from_str(r#"{"state":"teleporting","to":"mars"}"#).unwrap();
        assert_eq!(later, State::Unknown);
    }

    #[test]
    fn an_undo_that_fails_tells_both_reasons() {
        let rolling = State::RollingBack { reason: Reason::HealthCheckFailed, detail: "ssh: refused".into() };
        let State::UndoFailed { detail, .. } =
            rolling.after(Input::UndoFailed { detail: "exit 2".into() }).unwrap()
        else {
            panic!("an undo that fails ends in undo-failed");
        };
        assert_eq!(detail, "ssh: refused; exit 2");
    }
}
