//! `muster history`: a machine's generations and what became of them.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use muster_protocol::api::operator_machine;
use muster_protocol::ids::{Generation, MachineName};
use muster_protocol::keys::PublicKey;
use muster_protocol::operator::{AttackView, HistoryEntry, MachineView, Published};
use muster_protocol::report::{Event, EventKind, Progress, UpdateStep};
use muster_protocol::target::Target;

use crate::api::client::Api;
use crate::config::Config;
use crate::fleet::past;
use crate::terminal::count::count;
use crate::terminal::error::WithHint as _;
use crate::terminal::json::print_json;
use crate::terminal::table;

#[derive(Debug, Args)]
pub struct History {
    machine: MachineName,
    /// How many generations, the newest first
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Only those before this generation
    #[arg(long, value_name = "GENERATION", conflicts_with = "attacks")]
    before: Option<Generation>,
    /// Only the attacks that the machine refused
    #[arg(long)]
    attacks: bool,
    /// Print JSON, with every event, instead of a table
    #[arg(long)]
    json: bool,
}

impl History {
    pub async fn run(self, config: Option<PathBuf>) -> Result<()> {
        let api = Api::to_read(&Config::load(config)?)?;
        let entries = if self.attacks {
            Vec::new()
        } else {
            past::entries(&api, &self.machine, self.before, self.limit as usize).await?
        };
        let path = format!("{}/attacks?limit={}", operator_machine(&self.machine), self.limit);
        let attacks: Vec<AttackView> = api.get(&path).await?;
        let attacks = if self.before.is_some() { Vec::new() } else { attacks };
        if entries.is_empty() && attacks.is_empty() {
            // An unknown name has no history either, but deserves its own message.
            let known: Result<MachineView> = api.get(&operator_machine(&self.machine)).await;
            known.hint("check the spelling: `muster machines list` shows who is known")?;
        }
        if self.json {
            return if self.attacks { print_json(&attacks) } else { print_json(&entries) };
        }
        if !self.attacks {
            self.tell_generations(&entries);
            if entries.len() < self.limit as usize {
                self.tell_forgotten(&api).await?;
            }
        }
        if self.attacks && attacks.is_empty() {
            say!("{} has reported no attack.", self.machine);
        }
        if !attacks.is_empty() {
            self.tell_attacks(&attacks);
        }
        Ok(())
    }

    /// The end of the history need not be its beginning.
    async fn tell_forgotten(&self, api: &Api) -> Result<()> {
        let view: MachineView = api.get(&operator_machine(&self.machine)).await?;
        if view.generations_forgotten > 0 {
            let many = count(view.generations_forgotten, "older generation was", "older generations were");
            say!("{many} forgotten (`generations` and `generation_days` in the controller's limits).");
        }
        Ok(())
    }

    fn tell_attacks(&self, attacks: &[AttackView]) {
        if !self.attacks {
            say!();
            say!("Attacks that {} refused:", self.machine);
        }
        let mut rows = table::table(["ATTACK", "TOLD", "ENDED", "GENERATION", "DETAIL"]);
        for one in attacks {
            rows.add_row([
                table::danger_cell(one.attack.as_str(), one.ended_at.is_none()),
                table::date(one.received_at).into(),
                one.ended_at.map_or_else(|| "goes on".to_owned(), table::date).into(),
                one.generation.map_or_else(|| "-".to_owned(), |generation| generation.to_string()).into(),
                one.detail.lines().next().unwrap_or_default().into(),
            ]);
        }
        rows.print();
    }

    fn tell_generations(&self, entries: &[HistoryEntry]) {
        if let (true, Some(before)) = (entries.is_empty(), self.before) {
            say!("Nothing was published for {} before generation {before}.", self.machine);
            return;
        }
        if entries.is_empty() {
            say!("Nothing was published for {} yet. Do so with `muster update {0}`.", self.machine);
            return;
        }
        let mut rows =
            table::table(["GENERATION", "PUBLISHED", "BY", "SYSTEM", "OUTCOME", "CHANGES", "MESSAGE"]);
        for entry in entries {
            let target = &entry.published.target;
            rows.add_row([
                target.generation.to_string(),
                table::date(entry.published.at),
                by(&entry.published),
                target.output.name().to_owned(),
                outcome(&entry.events),
                changes(&entry.events),
                message(target),
            ]);
        }
        rows.print();
    }
}

/// The operator's message, and their options for Nix.
fn message(target: &Target) -> String {
    let options = target.evaluation.describe();
    let evaluated = (!options.is_empty()).then(|| format!("(evaluated with {})", options.join(" ")));
    target.message.iter().cloned().chain(evaluated).collect::<Vec<_>>().join(" ")
}

/// Its signers.
fn by(published: &Published) -> String {
    match published.signers.as_slice() {
        [] => published.by.short(),
        signers => signers.iter().map(PublicKey::short).collect::<Vec<_>>().join(", "),
    }
}

/// The last event that settled the generation; otherwise the last one before.
fn outcome(events: &[Event]) -> String {
    let settled: Vec<String> = events.iter().filter_map(|event| word(&event.kind)).collect();
    settled.last().cloned().unwrap_or_else(|| "not heard of yet".to_owned())
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
        EventKind::Deferred { why, .. } => format!("put off: {}", why.lines().next().unwrap_or_default()),
        EventKind::Progress(progress) => progressed(progress),
        EventKind::Rebooting { why } => format!("rebooting {why}"),
        // These say nothing about how it ended.
        EventKind::Summary(_)
        | EventKind::HookFailed { .. }
        | EventKind::Retried { .. }
        | EventKind::Enrolled { .. }
        | EventKind::AgentStarted { .. }
        | EventKind::KeyRotated { .. }
        | EventKind::Drift { .. }
        | EventKind::Dropped { .. }
        | EventKind::Unknown => return None,
    })
}

fn progressed(progress: &Progress) -> String {
    let step = if progress.step == UpdateStep::Fetch { "fetching" } else { "building" };
    let count = |done: u64, all: u64, word: &str| (all > 0).then(|| format!(", {done} of {all} {word}"));
    let counts = [
        count(progress.built, progress.to_build, "built"),
        count(progress.copied, progress.to_copy, "copied"),
    ];
    format!("{step}{}", counts.into_iter().flatten().collect::<String>())
}

/// How a generation differs from the one before, briefly.
fn changes(events: &[Event]) -> String {
    let summary = events.iter().rev().find_map(|event| match &event.kind {
        EventKind::Summary(summary) => summary.closure.as_ref(),
        _ => None,
    });
    let Some(closure) = summary else { return String::new() };
    let count = |names: &[String], sign: &str| (!names.is_empty()).then(|| format!("{sign}{}", names.len()));
    let counts = [count(&closure.changed, "~"), count(&closure.added, "+"), count(&closure.removed, "-")];
    let mut parts: Vec<String> = counts.into_iter().flatten().collect();
    if closure.more > 0 {
        parts.push(format!("and {} more", closure.more));
    }
    parts.push(format!("{:+.1} MiB", closure.bytes as f64 / 1024.0 / 1024.0));
    parts.join(" ")
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

    #[test]
    fn waiting_and_working_are_shown_and_what_comes_after_the_end_does_not_hide_it() {
        let text = r#"{"seq":1,"at":1,"kind":"progress","step":"build","built":3,"to_build":40}"#;
        let progress: Event = serde_json::from_str(text).unwrap();
        assert_eq!(outcome(&[progress]), "building, 3 of 40 built");
        let deferred = EventKind::Deferred { why: "outside its window\nmore".into(), until: Some(5) };
        assert_eq!(outcome(&[event(deferred)]), "put off: outside its window");
        let text = r#"{"seq":2,"at":1,"kind":"summary","build_ms":5,"closure":{"changed":["bash 5.1 -> 5.2"],
            "added":["vim 9.1","motd"],"bytes":-2097152}}"#;
        let summary: Event = serde_json::from_str(text).unwrap();
        let failed = EventKind::HookFailed { hook: "tell".into(), detail: String::new() };
        let events = [event(EventKind::Verified), summary, event(failed)];
        assert_eq!(outcome(&events), "verified");
        assert_eq!(changes(&events), "~1 +2 -2.0 MiB");
        assert_eq!(changes(&[]), "");
    }
}
