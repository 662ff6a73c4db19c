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
    for line in include_str!("../state.rs").lines().filter_map(|line| line.strip_prefix("//! ")) {
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
