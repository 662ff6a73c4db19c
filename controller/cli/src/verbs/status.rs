//! `muster status`: the state of the fleet.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use muster_protocol::api::{OPERATOR_MACHINES, OPERATOR_SUMMARIES};
use muster_protocol::clock::Clock as _;
use muster_protocol::ids::Generation;
use muster_protocol::operator::{Condition, MachineSummary, MachineView};

use crate::api::client::Api;
use crate::config::Config;
use crate::fleet::condition::{dangers, members, note, tell_of_gone};
use crate::terminal::count::count;
use crate::terminal::json::print_json;
use crate::terminal::table;
use crate::trust::roots::{self, Trusted};

#[derive(Debug, Args)]
pub struct Status {
    /// Those that were removed or revoked, too
    #[arg(long)]
    all: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

impl Status {
    pub async fn run(self, config: Option<PathBuf>) -> Result<()> {
        let config = Config::load(config)?;
        let api = Api::to_read(&config)?;
        if self.json {
            let machines: Vec<MachineView> = api.get(OPERATOR_MACHINES).await?;
            return print_json(&members(machines, |view| view.standing, self.all).0);
        }
        let machines: Vec<MachineSummary> = api.get(OPERATOR_SUMMARIES).await?;
        let (machines, gone) = members(machines, |view| view.standing, self.all);
        print(&machines, api.clock.unix_ms());
        tell_of_gone(gone);
        if let Some(line) = root_end(&api, &config).await? {
            say!("{line}");
        }
        Ok(())
    }
}

/// A warning if the root ends soon. Judged by the stored root; a newer one is fetched only then.
async fn root_end(api: &Api, config: &Config) -> Result<Option<String>> {
    let now = api.clock.unix_seconds();
    // If root.json is missing, whatever needs it will say so.
    let ends = Trusted::load(config).is_ok_and(|trusted| roots::end_of(&trusted.root, now).is_some());
    if !ends {
        return Ok(None);
    }
    Ok(roots::end_of(&roots::follow(api, config).await?.root, now))
}

/// How many days before the end of a generation's signature a warning is shown.
const SIGNATURE_DAYS: i64 = 14;

/// The table, and the lines with counts.
fn print(machines: &[MachineSummary], now: i64) {
    let (rows, lines) = render(machines, now);
    if let Some(rows) = rows {
        rows.print();
        say!();
    }
    for line in lines {
        say!("{line}");
    }
}

fn render(machines: &[MachineSummary], now: i64) -> (Option<table::Table>, Vec<String>) {
    if machines.is_empty() {
        let line = "No machines yet. Add one with `muster machines add NAME --class nixos|darwin`.";
        return (None, vec![line.to_owned()]);
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
            table::danger_cell(&with_end(view, now), !dangers(view, now).is_empty()),
        ]);
    }
    let mut lines = vec![counts(machines)];
    let attacked: Vec<&str> = machines
        .iter()
        .filter(|view| !dangers(view, now).is_empty())
        .map(|view| view.machine.as_str())
        .collect();
    if let [one, ..] = attacked.as_slice() {
        lines
            .push(format!("Under attack: {}. `muster machines show {one}` tells more.", attacked.join(", ")));
    }
    (Some(rows), lines)
}

/// The note, with a warning if the signature ends soon.
fn with_end(view: &MachineSummary, now: i64) -> String {
    let mut note = note(view);
    let left = view.published.as_ref().map(|published| published.expires.saturating_sub(now / 1000));
    let end = match left {
        Some(..=0) => "the signature has ended: `muster update --refresh`".to_owned(),
        Some(left) if left < SIGNATURE_DAYS * 86_400 => {
            format!("the signature ends in {}: `muster update --refresh`", table::span(left))
        }
        _ => return note,
    };
    if !note.is_empty() {
        note.push_str("; ");
    }
    note + &end
}

fn counts(machines: &[MachineSummary]) -> String {
    let mut counted: Vec<(Condition, usize)> = Vec::new();
    for view in machines {
        match counted.iter_mut().find(|(condition, _)| *condition == view.condition) {
            Some((_, count)) => *count += 1,
            None => counted.push((view.condition, 1)),
        }
    }
    let parts: Vec<String> =
        counted.iter().map(|(condition, count)| format!("{count} {}", condition.as_str())).collect();
    format!("{}: {}", count(machines.len(), "machine", "machines"), parts.join(", "))
}

#[cfg(test)]
mod tests {
    use muster_protocol::operator::{AttackView, Standing};
    use muster_protocol::report::Attack;

    use super::*;

    fn text(machines: &[MachineSummary], now: i64) -> String {
        let (rows, lines) = render(machines, now);
        format!("{}\n{}", rows.unwrap().text(), lines.join("\n"))
    }

    fn view(condition: Condition) -> MachineSummary {
        serde_json::from_value(serde_json::json!({
            "machine": "cinnabar", "class": "nixos", "system": "x86_64-linux", "tags": [],
            "standing": Standing::Enrolled, "condition": condition, "clone_alarm": false,
            "holds": {"root": 1, "timestamp": 1, "snapshot": 1, "targets": 1},
        }))
        .unwrap()
    }

    #[test]
    fn a_view_of_version_0_1_is_read_and_calm() {
        let calm = view(Condition::UpToDate);
        assert!(dangers(&calm, 0).is_empty());
        let text = text(&[calm], 0);
        assert!(!text.contains("attack") && !text.contains("ATTACK"), "{text}");
    }

    #[test]
    fn an_attack_is_told_in_words_with_its_time_and_its_end() {
        let mut attacked = view(Condition::UnderAttack);
        attacked.refused = Some(Attack::WrongOutput);
        attacked.attack = Some(AttackView {
            attack: Attack::AlteredArchive,
            detail: "hash mismatch\u{1b}[2J\nmore".into(),
            generation: None,
            at: 0,
            received_at: 0,
            ended_at: None,
        });
        attacked.clone_alarm = true;
        attacked.clone_alarm_at = Some(60_000);
        let text = text(std::slice::from_ref(&attacked), 3_600_000);
        for words in ["under attack", "ATTACK REFUSED: altered archive", "CLONE", "Under attack: cinnabar"] {
            assert!(text.contains(words), "{words}: {text}");
        }
        let told: Vec<String> = dangers(&attacked, 3_600_000)
            .into_iter()
            .map(|(name, words)| format!("{name}: {words}"))
            .collect();
        let told = told.join("\n");
        assert!(told.contains("altered archive, 60 min ago: hash mismatch"), "{told}");
        assert!(told.contains("update --force cinnabar"), "{told}");
        assert!(told.contains("machines acknowledge cinnabar"), "{told}");
        // An older controller only gives the kind.
        attacked.attack = None;
        assert!(note(&attacked).contains("ATTACK REFUSED: wrong output"));
        attacked.refused = Some(Attack::Rollback);
        assert!(dangers(&attacked, 0).iter().any(|(_, words)| words.contains("ends by itself")));
    }
}
