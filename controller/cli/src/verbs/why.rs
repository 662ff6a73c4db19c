//! `muster why`: what a machine waits for, and what would change that.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use muster_protocol::api::operator_machine;
use muster_protocol::clock::Clock as _;
use muster_protocol::ids::{Generation, MachineName};
use muster_protocol::operator::MachineView;

use crate::api::client::Api;
use crate::config::Config;
use crate::fleet::why::{Why as Answer, why};
use crate::terminal::error::WithHint as _;
use crate::terminal::json::print_json;

#[derive(Debug, Args)]
pub struct Why {
    machine: MachineName,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Why {
    pub async fn run(self, config: Option<PathBuf>) -> Result<()> {
        let api = Api::to_read(&Config::load(config)?)?;
        let known: Result<MachineView> = api.get(&operator_machine(&self.machine)).await;
        let view = known.hint("check the spelling: `muster machines list` shows who is known")?;
        let answer = why(&view.into(), api.clock.unix_ms());
        if self.json {
            return print_json(&answer);
        }
        for line in lines(&answer) {
            say!("{line}");
        }
        Ok(())
    }
}

fn lines(answer: &Answer) -> Vec<String> {
    let number = |generation: Option<Generation>| generation.map(|it| format!("generation {it}"));
    let runs = number(answer.runs).unwrap_or_else(|| "no generation".to_owned());
    let published = match answer.published {
        None => "nothing is published for it".to_owned(),
        published if published == answer.runs => "that is the newest published".to_owned(),
        published => format!("{} is published", number(published).unwrap_or_default()),
    };
    let mut lines =
        vec![format!("{} ({}) runs {runs}; {published}.", answer.machine, answer.condition.as_str())];
    if answer.reasons.is_empty() {
        lines.push("It waits for nothing.".to_owned());
    }
    for reason in &answer.reasons {
        lines.push(format!("- {}", reason.what));
        lines.extend(reason.change.iter().map(|change| format!("  what would change that: {change}")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use muster_protocol::operator::Condition;

    use super::*;
    use crate::fleet::why::Reason;

    #[test]
    fn an_answer_reads_as_sentences() {
        let mut answer = Answer {
            machine: "tin".into(),
            condition: Condition::UpToDate,
            runs: "4".parse().ok(),
            published: "4".parse().ok(),
            reasons: Vec::new(),
        };
        let calm = lines(&answer);
        assert_eq!(
            calm,
            ["tin (up to date) runs generation 4; that is the newest published.", "It waits for nothing."]
        );
        answer.published = "5".parse().ok();
        answer.reasons = vec![Reason { what: "it waits for its wave".into(), change: Some("a soak".into()) }];
        let waits = lines(&answer);
        assert_eq!(waits[0], "tin (up to date) runs generation 4; generation 5 is published.");
        assert_eq!(waits[1..], ["- it waits for its wave", "  what would change that: a soak"]);
    }
}
