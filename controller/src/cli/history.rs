//! `muster history`: a machine's generations and what became of them.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use muster_protocol::api::operator_machine;
use muster_protocol::ids::MachineName;
use muster_protocol::keys::PublicKey;
use muster_protocol::operator::{AttackView, HistoryEntry, Published};
use muster_protocol::report::{Event, EventKind};

use super::api::Api;
use super::config::Config;
use super::machines::print_json;
use super::table;

#[derive(Debug, Args)]
pub struct History {
    machine: MachineName,
    /// How many generations, the newest first
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Only the attacks that the machine refused
    #[arg(long)]
    attacks: bool,
    /// Print JSON, with every event, instead of a table
    #[arg(long)]
    json: bool,
}

impl History {
    pub async fn run(self, config: Option<PathBuf>) -> Result<()> {
        let api = Api::open(&Config::load(config)?)?;
        let path = format!("{}/history?limit={}", operator_machine(&self.machine), self.limit);
        let entries: Vec<HistoryEntry> = api.get(&path).await?;
        let path = format!("{}/attacks?limit={}", operator_machine(&self.machine), self.limit);
        let attacks: Vec<AttackView> = api.get(&path).await?;
        if self.json {
            return if self.attacks { print_json(&attacks) } else { print_json(&entries) };
        }
        if !self.attacks {
            self.tell_generations(&entries);
        }
        if self.attacks && attacks.is_empty() {
            println!("{} has told of no attack.", self.machine);
        }
        if !attacks.is_empty() {
            self.tell_attacks(&attacks);
        }
        Ok(())
    }

    fn tell_attacks(&self, attacks: &[AttackView]) {
        if !self.attacks {
            println!("\nAttacks that {} refused:", self.machine);
        }
        let mut rows = table::table(["ATTACK", "TOLD", "ENDED", "GENERATION", "DETAIL"]);
        for one in attacks {
            rows.add_row([
                table::danger_cell(one.attack.as_str(), one.ended_at.is_none()),
                table::date(one.received_at).into(),
                one.ended_at.map_or_else(|| "goes on".to_owned(), table::date).into(),
                one.generation.map_or_else(|| "-".to_owned(), |generation| generation.to_string()).into(),
                table::harmless(one.detail.lines().next().unwrap_or_default()).into(),
            ]);
        }
        println!("{rows}");
    }

    fn tell_generations(&self, entries: &[HistoryEntry]) {
        if entries.is_empty() {
            println!("Nothing was published for {} yet. Do so with `muster update {0}`.", self.machine);
            return;
        }
        let mut rows = table::table(["GENERATION", "PUBLISHED", "BY", "SYSTEM", "OUTCOME", "MESSAGE"]);
        for entry in entries {
            let target = &entry.published.target;
            rows.add_row([
                target.generation.to_string(),
                table::date(entry.published.at),
                by(&entry.published),
                target.output.name().to_owned(),
                table::harmless(&outcome(&entry.events)),
                table::harmless(target.message.as_deref().unwrap_or_default()),
            ]);
        }
        println!("{rows}");
    }
}

/// Who signed it.
fn by(published: &Published) -> String {
    match published.signers.as_slice() {
        [] => published.by.short(),
        signers => signers.iter().map(PublicKey::short).collect::<Vec<_>>().join(", "),
    }
}

/// The last thing that settled the generation, in words; what stands before it where nothing did.
fn outcome(events: &[Event]) -> String {
    let told: Vec<String> = events.iter().filter_map(|event| word(&event.kind)).collect();
    told.last().cloned().unwrap_or_else(|| "not heard of yet".to_owned())
}

fn word(kind: &EventKind) -> Option<String> {
    let seconds = |ms: u64| format!("{:.1} s", ms as f64 / 1000.0);
    Some(match kind {
        EventKind::Verified => "verified".to_owned(),
        EventKind::Fetched { ms } => format!("fetched in {}", seconds(*ms)),
        EventKind::Built { ms, .. } => format!("built in {}", seconds(*ms)),
        EventKind::Activating { .. } => "activating".to_owned(),
        EventKind::Activated { exit, ms } => format!("activated in {} (exit {exit})", seconds(*ms)),
        EventKind::Confirmed { ms, degraded, .. } if degraded.is_empty() => {
            format!("confirmed after {}", seconds(*ms))
        }
        EventKind::Confirmed { degraded, .. } => {
            format!("confirmed, degraded: {}", degraded.join(", "))
        }
        EventKind::RolledBack { reason, detail, quarantined, .. } => {
            let reason = serde_json::to_value(reason).ok()?.as_str()?.replace('-', " ");
            let again = if *quarantined { ", quarantined" } else { "" };
            let detail = detail.lines().next().unwrap_or_default();
            format!("rolled back{again}: {reason}{}{detail}", if detail.is_empty() { "" } else { ": " })
        }
        EventKind::Failed { step, detail, .. } => {
            let step = serde_json::to_value(step).ok()?.as_str()?.to_owned();
            format!("failed to {step}: {}", detail.lines().next().unwrap_or_default())
        }
        EventKind::NeedsHuman { detail } => format!("needs human: {detail}"),
        EventKind::Refused { attack, .. } => format!("refused: {}", attack.as_str()),
        EventKind::Enrolled { .. }
        | EventKind::AgentStarted { .. }
        | EventKind::KeyRotated { .. }
        | EventKind::Drift { .. }
        | EventKind::Unknown => return None,
    })
}

#[cfg(test)]
mod tests {
    use muster_protocol::report::Reason;

    use super::*;

    fn event(kind: EventKind) -> Event {
        Event { seq: 1, at: 0, generation: None, kind }
    }

    #[test]
    fn the_last_word_on_a_generation_is_shown() {
        let running: muster_protocol::ids::StorePath =
            "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system".parse().unwrap();
        let undone = EventKind::RolledBack {
            running,
            reason: Reason::HealthCheckFailed,
            detail: "web: status 500\nmore".into(),
            quarantined: true,
        };
        let events = [event(EventKind::Verified), event(undone), event(EventKind::Unknown)];
        assert_eq!(outcome(&events), "rolled back, quarantined: health check failed: web: status 500");
        assert_eq!(outcome(&[]), "not heard of yet");
    }
}
