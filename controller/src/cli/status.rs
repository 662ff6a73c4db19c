//! `muster status`: how the fleet fares.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use muster_protocol::api::OPERATOR_MACHINES;
use muster_protocol::clock::{Clock as _, UnixMillis};
use muster_protocol::ids::Generation;
use muster_protocol::operator::{Condition, MachineView};

use super::api::Api;
use super::config::Config;
use super::machines::print_json;
use super::table;

#[derive(Debug, Args)]
pub struct Status {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

impl Status {
    pub async fn run(self, config: Option<PathBuf>) -> Result<()> {
        let api = Api::open(&Config::load(config)?)?;
        let machines: Vec<MachineView> = api.get(OPERATOR_MACHINES).await?;
        if self.json {
            return print_json(&machines);
        }
        println!("{}", render(&machines, api.clock.unix_ms()));
        Ok(())
    }
}

/// The table, and one line that counts.
pub fn render(machines: &[MachineView], now: i64) -> String {
    if machines.is_empty() {
        return "No machines yet. Add one with `muster machines add NAME --class nixos|darwin`.".to_owned();
    }
    let mut rows = table::table(["MACHINE", "CLASS", "CONDITION", "RUNS", "PUBLISHED", "SEEN", "NOTE"]);
    for view in machines {
        let number = |generation: Option<Generation>| {
            generation.map_or_else(|| "-".to_owned(), |generation| generation.to_string())
        };
        rows.add_row([
            view.machine.as_str().into(),
            view.class.as_str().into(),
            table::condition_cell(view.condition),
            number(view.runs.as_ref().and_then(|runs| runs.generation)).into(),
            number(view.published.as_ref().map(|published| published.target.generation)).into(),
            view.last_seen.map_or_else(|| "never".to_owned(), |then| table::ago(then, now)).into(),
            note(view).into(),
        ]);
    }
    format!("{rows}\n\n{}", counts(machines))
}

/// What is wrong or waited for, in a few words.
pub fn note(view: &MachineView) -> String {
    let mut parts = Vec::new();
    if view.clone_alarm {
        parts.push("CLONE: somebody else holds this machine's key".to_owned());
    }
    if let Some(attack) = view.refused {
        parts.push(format!("refused: {}", attack.as_str()));
    }
    if let (Condition::Updating, Some(phase), generation) =
        (view.condition, view.phase, view.phase_generation)
    {
        let of = generation.map_or_else(String::new, |generation| format!(" {generation}"));
        parts.push(format!("{}{of}", phase.as_str()));
    }
    parts.extend(view.note.as_deref().map(first_line));
    if let Some(units) = view.health.degraded.as_ref().filter(|units| !units.is_empty()) {
        parts.push(first_line(&format!("failed: {}", units.join(", "))));
    }
    if !view.health.reboot.is_empty() {
        let waits = view.health.reboot_waits.as_deref().map(|why| format!(", {why}")).unwrap_or_default();
        parts.push(first_line(&format!("reboot due for {}{waits}", view.health.reboot.join(", "))));
    }
    if let Some(until) = view.health.paused_until {
        let until = if until == UnixMillis::MAX { "resumed".to_owned() } else { table::date(until) };
        parts.push(format!("paused at the machine until {until}"));
    }
    parts.join("; ")
}

/// A note may be as long as a log; the table has room for its beginning. `machines show` has all of it.
fn first_line(note: &str) -> String {
    const SHOWN: usize = 160;
    let line = table::harmless(note.lines().next().unwrap_or_default());
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

fn counts(machines: &[MachineView]) -> String {
    let mut counted: Vec<(Condition, usize)> = Vec::new();
    for view in machines {
        match counted.iter_mut().find(|(condition, _)| *condition == view.condition) {
            Some((_, count)) => *count += 1,
            None => counted.push((view.condition, 1)),
        }
    }
    let parts: Vec<String> =
        counted.iter().map(|(condition, count)| format!("{count} {}", condition.as_str())).collect();
    format!("{} machines: {}", machines.len(), parts.join(", "))
}
