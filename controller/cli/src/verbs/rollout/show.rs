//! `muster rollout list` and `show`.

use muster_protocol::clock::UnixMillis;
use muster_protocol::operator::{MemberState, RolloutState, RolloutView};

use crate::fleet::rollouts::progress;
use crate::release::rollout::duration;
use crate::terminal::count::count;
use crate::terminal::table::{self, Table, danger_cell};

pub fn list(views: &[RolloutView], now: UnixMillis, all: bool) {
    if views.is_empty() {
        match all {
            true => say!("No rollouts yet. `muster update --rollout NAME` begins one."),
            false => say!("No rollout is open; --all lists those that have ended."),
        }
        return;
    }
    let mut rows = table::table(["ROLLOUT", "PLAN", "STATE", "BEGAN", "WAITS FOR"]);
    for view in views {
        rows.add_row([
            view.name.as_str().into(),
            view.plan.short().into(),
            state_cell(view.state),
            table::ago(view.at, now).into(),
            view.why.as_str().into(),
        ]);
    }
    rows.print();
}

fn state_cell(state: RolloutState) -> table::Cell {
    danger_cell(state.as_str(), state == RolloutState::Halted)
}

pub fn show(view: &RolloutView, now: UnixMillis) {
    say!("{} ({}) is {}: {}", view.name, view.plan.short(), view.state.as_str(), view.why);
    let failed = count(view.failures, "machine has failed", "machines have failed");
    say!("begun {}; {failed}, and {} may", table::ago(view.at, now), view.budget);
    if let Some(advice) = advice(view) {
        say!("{advice}");
    }
    say!();
    waves(view).print();
    if !view.members.is_empty() {
        say!();
        members(view).print();
    }
}

fn waves(view: &RolloutView) -> Table {
    let mut rows = table::table(["WAVE", "GATE", "MUST SOAK", "SOAK", "AT ONCE", "MACHINES"]);
    let last = view.waves.len().saturating_sub(1);
    for (number, wave) in view.waves.iter().enumerate() {
        let must = if number == last && wave.at_least == 0 { "-".into() } else { wave.at_least.to_string() };
        rows.add_row([
            wave.name.as_str().into(),
            if wave.open { "open" } else { "closed" }.into(),
            must.into(),
            duration::shown(wave.soak_seconds).into(),
            wave.max_in_flight.to_string().into(),
            danger_cell(&progress(wave), wave.failed > 0),
        ]);
    }
    rows
}

fn members(view: &RolloutView) -> Table {
    let mut rows = table::table(["MACHINE", "WAVE", "STATE", "WHY"]);
    for member in &view.members {
        let wave = usize::try_from(member.wave).ok().and_then(|number| view.waves.get(number));
        rows.add_row([
            member.machine.as_str().into(),
            wave.map_or_else(|| (member.wave.saturating_add(1)).to_string(), |wave| wave.name.clone()).into(),
            danger_cell(member.state.as_str(), member.state == MemberState::Failed),
            member.why.as_str().into(),
        ]);
    }
    rows
}

/// What an operator can do about it.
fn advice(view: &RolloutView) -> Option<String> {
    let plan = view.plan.short();
    Some(match view.state {
        RolloutState::Halted => format!(
            "look at the machines that failed (`muster history MACHINE`). Then `muster rollout retry {plan}` \
             forgives them, `stop` ends it, `undo` brings back who began, or publish what is right with \
             `muster update`"
        ),
        RolloutState::Paused => {
            format!(
                "`muster rollout resume {plan}` goes on; `muster brake --show` says whether the brake is on"
            )
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_halted_rollout_says_what_to_do_and_who_failed() {
        let view: RolloutView = serde_json::from_value(serde_json::json!({
            "plan": muster_protocol::ids::Sha256::of(b"x"), "name": "weekly", "at": 0,
            "by": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "state": "halted", "why": "2 machines failed", "budget": 1, "failures": 2,
            "waves": [
                { "name": "canaries", "atLeast": 2, "soakSeconds": 7200, "maxInFlight": 1, "open": true,
                  "failed": 2 },
                { "name": "rest", "atLeast": 0, "soakSeconds": 900, "maxInFlight": 9, "waiting": 30 },
            ],
            "members": [
                { "machine": "tin", "wave": 0, "state": "failed", "why": "it went back", "said": null },
                { "machine": "lead", "wave": 9, "state": "waiting", "why": "for tin", "said": null },
            ],
        }))
        .unwrap();
        let told = advice(&view).unwrap();
        assert!(told.contains("rollout retry") && told.contains("undo"), "{told}");
        let waves = waves(&view).text();
        for words in ["canaries", "open", "2h", "2 FAILED", "closed", "30 waiting"] {
            assert!(waves.contains(words), "{words}: {waves}");
        }
        let members = members(&view).text();
        assert!(members.contains("it went back") && members.contains("10"), "{members}");
        assert!(advice(&RolloutView { state: RolloutState::Running, ..view }).is_none());
    }
}
