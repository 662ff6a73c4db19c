//! Why a machine is where it is: what it waits for, and what would change that. Pure.

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::Generation;
use muster_protocol::operator::{Condition, MachineSummary, MemberState};
use serde::Serialize;

use super::condition::{dangers, due_reboot, failed_units};
use crate::terminal::table;

/// One thing that a machine waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// What is so.
    pub what: String,
    /// What would change it; `None` where `what` says so itself.
    pub change: Option<String>,
}

/// A machine's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Why {
    pub machine: String,
    pub condition: Condition,
    pub runs: Option<Generation>,
    pub published: Option<Generation>,
    /// The most pressing first; empty: it waits for nothing.
    pub reasons: Vec<Reason>,
}

/// What the controller knows of it. `now` in Unix milliseconds.
pub fn why(view: &MachineSummary, now: UnixMillis) -> Why {
    let mut reasons = Vec::new();
    let mut add = |what: String, change: Option<String>| reasons.push(Reason { what, change });
    let mut dangers = dangers(view, now).into_iter().peekable();
    while let Some((name, text)) = dangers.next() {
        let change = dangers.next_if(|(next, _)| *next == "how it ends").map(|(_, end)| end);
        add(format!("{name}: {text}"), change);
    }
    standing(view, now, &mut add);
    if let Some(until) = view.health.paused_until {
        let until =
            if until == UnixMillis::MAX { String::new() } else { format!(" until {}", table::date(until)) };
        add(
            format!("somebody at the machine paused updates{until}"),
            Some("`muster-agent resume` on the machine".to_owned()),
        );
    }
    // The controller knows more of its turn than the machine; of everything else the machine knows more.
    let turn = view.rollout.as_ref().filter(|rollout| {
        use MemberState as M;
        matches!(rollout.state, M::Waiting | M::InFlight | M::Failed | M::Away)
    });
    if let Some(turn) = turn {
        // Its sentence says what would change it.
        add(format!("wave '{}' of rollout {}: {}", turn.wave_name, turn.name, turn.why), None);
    }
    // What it was told of its turn, when it last asked, is older than that.
    let repeats = turn.is_some_and(|turn| turn.state == MemberState::Waiting);
    let own = view.note.as_deref().filter(|note| !repeats && !note.trim().is_empty());
    match (view.condition, own) {
        (Condition::RolledBack | Condition::Failed, note) if turn.is_none() => add(
            note.unwrap_or("it could not take its generation").to_owned(),
            Some(format!(
                "`muster history {0}` tells what happened; correct the system and publish it, or try the same again \
                 with `muster update {0} --force`",
                view.machine
            )),
        ),
        (Condition::NeedsHuman, note) => add(
            note.unwrap_or("only a person at the machine can go on").to_owned(),
            Some("`muster-agent status` on the machine says what it needs".to_owned()),
        ),
        (_, Some(note)) => add(format!("in the machine's own words: {note}"), None),
        (Condition::Updating, None) if turn.is_none() => {
            let published = view.published.as_ref().map(|published| published.target.generation);
            let phase = view.phase.filter(|_| published.is_some() && view.phase_generation == published);
            let what = match phase {
                Some(phase) => format!("it is at work: {}", phase.as_str()),
                None => "it has yet to hear of its generation".to_owned(),
            };
            add(what, Some("it goes on by itself".to_owned()));
        }
        _ => {}
    }
    if let Some(failed) = failed_units(&view.health) {
        add(failed, Some("repair them on the machine, or publish a system in which they run".to_owned()));
    }
    if let Some(due) = due_reboot(&view.health) {
        add(due, Some("reboot it, or let its policy do so".to_owned()));
    }
    Why {
        machine: view.machine.to_string(),
        condition: view.condition,
        runs: view.runs.as_ref().and_then(|runs| runs.generation),
        published: view.published.as_ref().map(|published| published.target.generation),
        reasons,
    }
}

/// What follows from whether it belongs to the fleet, answers, and has a generation.
fn standing(view: &MachineSummary, now: UnixMillis, add: &mut impl FnMut(String, Option<String>)) {
    let name = &view.machine;
    match view.condition {
        Condition::Invited => add(
            "it has never enrolled: nobody has used its token".to_owned(),
            Some(format!(
                "set its agent up with the token; `muster machines add {name} --replace` makes another one"
            )),
        ),
        Condition::Revoked => add(
            "it was removed or revoked, and takes nothing any more".to_owned(),
            Some(format!("`muster machines add {name} --replace` invites it anew")),
        ),
        Condition::NoGeneration => add(
            "nothing is published for it".to_owned(),
            Some(format!("`muster update {name}` signs and publishes its system")),
        ),
        Condition::Offline => {
            let since = view.last_seen.map_or("never".to_owned(), |then| table::ago(then, now));
            add(
                format!("it does not answer; it was last seen {since}"),
                Some(
                    "it goes on by itself when it is back; if it is on and has a network, see `muster-agent status` \
                     there"
                        .to_owned(),
                ),
            );
        }
        _ => {}
    }
    if let Some(published) = &view.published
        && published.expires <= now.div_euclid(1000)
    {
        add(
            "the signatures over its generation have expired".to_owned(),
            Some(format!("`muster update {name} --refresh` signs it again")),
        );
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::operator::Standing;

    use super::*;

    const NOW: UnixMillis = 3_600_000;

    fn view(condition: Condition, more: &serde_json::Value) -> MachineSummary {
        let mut all = serde_json::json!({
            "machine": "tin", "class": "nixos", "standing": Standing::Enrolled, "condition": condition,
        });
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    fn told(condition: Condition, more: &serde_json::Value) -> Vec<String> {
        let answer = why(&view(condition, more), NOW);
        let text = |it: &Reason| format!("{} -> {}", it.what, it.change.as_deref().unwrap_or_default());
        answer.reasons.iter().map(text).collect()
    }

    #[test]
    fn a_machine_that_is_well_waits_for_nothing() {
        assert!(told(Condition::UpToDate, &serde_json::json!({})).is_empty());
    }

    #[test]
    fn whoever_does_not_go_on_has_a_reason_and_a_way_out() {
        for condition in [
            Condition::Invited,
            Condition::Revoked,
            Condition::NoGeneration,
            Condition::Updating,
            Condition::RolledBack,
            Condition::Failed,
            Condition::NeedsHuman,
            Condition::Offline,
        ] {
            let answer = why(&view(condition, &serde_json::json!({})), NOW);
            assert!(!answer.reasons.is_empty(), "{condition:?}");
            assert!(answer.reasons.iter().all(|reason| reason.change.is_some()), "{condition:?}");
        }
    }

    #[test]
    fn a_machine_in_a_rollout_has_the_sentence_of_its_turn() {
        let turn = serde_json::json!({
            "note": "waits for its wave",
            "rollout": {
                "plan": "11".repeat(32), "name": "weekly", "wave": 1, "wave_name": "rest", "state": "waiting",
                "why": "its turn comes when 2 machines of wave 'canaries' have soaked; none has",
            },
        });
        let told = told(Condition::Updating, &turn);
        assert!(told[0].starts_with("wave 'rest' of rollout weekly: its turn comes when 2"), "{told:?}");
        assert_eq!(told.len(), 1, "what the machine was told before is no other reason: {told:?}");
    }

    #[test]
    fn an_attack_comes_first_with_its_end() {
        let more = serde_json::json!({ "refused": "skipped-wave", "health": { "paused_until": i64::MAX } });
        let told = told(Condition::UnderAttack, &more);
        assert!(told[0].starts_with("attack refused: skipped wave -> the machine is untouched"), "{told:?}");
        assert_eq!(told[1], "somebody at the machine paused updates -> `muster-agent resume` on the machine");
    }
}
