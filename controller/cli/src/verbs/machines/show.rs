//! `muster machines show` and `list`: what the controller knows of one machine, or of all.

use anyhow::Result;
use muster_protocol::api::OPERATOR_MACHINES;
use muster_protocol::ids::Tag;
use muster_protocol::operator::MachineView;

use crate::api::client::Api;
use crate::fleet::condition;
use crate::terminal::json::print_json;
use crate::terminal::table;

pub async fn list(api: &Api, json: bool, all: bool) -> Result<()> {
    let machines: Vec<MachineView> = api.get(OPERATOR_MACHINES).await?;
    let (machines, gone) = condition::members(machines, |view| view.standing, all);
    if json {
        return print_json(&machines);
    }
    if machines.is_empty() {
        say!("No machines yet. Add one with `muster machines add NAME --flake .`.");
        condition::tell_of_gone(gone);
        return Ok(());
    }
    let mut rows = table::table(["MACHINE", "CLASS", "SYSTEM", "TAGS", "CONDITION"]);
    for view in &machines {
        rows.add_row([
            view.machine.as_str().into(),
            view.class.as_str().into(),
            view.system.as_str().into(),
            tags(view).into(),
            table::condition_cell(view.condition),
        ]);
    }
    rows.print();
    condition::tell_of_gone(gone);
    Ok(())
}

fn tags(view: &MachineView) -> String {
    view.tags.iter().map(Tag::as_str).collect::<Vec<_>>().join(", ")
}

pub fn show(view: &MachineView, now: i64) -> Result<()> {
    let mut rows = table::table(["MACHINE", view.machine.as_str()]);
    let mut row = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            rows.add_row([name.into(), table::long_cell(&value)]);
        }
    };
    row("condition", Some(view.condition.as_str().to_owned()));
    row("class", Some(view.class.to_string()));
    row("system", Some(view.system.to_string()));
    row("tags", Some(tags(view)));
    row("runs", view.runs.as_ref().map(|runs| runs.running.to_string()));
    row("generation", view.runs.as_ref().and_then(|runs| runs.generation).map(|n| n.to_string()));
    row(
        "published",
        view.published.as_ref().map(|published| {
            format!("generation {}, {}", published.target.generation, published.target.output)
        }),
    );
    let place = view.published.as_ref().and_then(|published| published.target.rollout);
    row(
        "rollout",
        place.map(|place| {
            let (wave, plan) = (place.wave.saturating_add(1), place.plan.short());
            format!("wave {wave} of plan {plan}: `muster rollout show {plan}`")
        }),
    );
    row("signature ends", view.published.as_ref().map(|published| table::date(published.expires * 1000)));
    row("phase", view.phase.map(|phase| phase.as_str().to_owned()));
    row("note", view.note.clone());
    for (name, text) in condition::dangers(&view.clone().into(), now) {
        row(name, Some(text));
    }
    if view.key_rotation_asked {
        row("new key", Some("asked for, and not made yet".to_owned()));
    }
    row("key changed", view.key_rotated_at.map(table::date));
    row("last seen", view.last_seen.map(|then| table::ago(then, now)));
    row("enrolled", view.enrolled_at.map(table::date));
    row("clock", view.clock_skew_ms.map(|ms| format!("{:+.1} s", ms as f64 / 1000.0)));
    row("agent", view.agent.clone());
    row("key", view.key.map(|key| key.hex()));
    row("age", view.age.clone());
    row(
        "log shown",
        view.shown
            .as_ref()
            .and_then(|shown| shown.log.last())
            .map(|at| format!("entry {} {}", at.id, at.hash)),
    );
    rows.print();
    Ok(())
}
