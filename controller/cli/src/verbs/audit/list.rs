//! `muster audit`: the newest entries, verified.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use muster_protocol::audit::Entry;
use muster_protocol::ids::MachineName;
use muster_protocol::signed_cut::SignedCut;

use crate::api::client::Api;
use crate::config::Config;
use crate::log::beginning::Cut;
use crate::log::{cut, follow, seen};
use crate::terminal::count::{count, from_one};
use crate::terminal::json::print_json;
use crate::terminal::table;
use crate::trust::roots;

#[derive(Debug, Args)]
pub struct List {
    /// How many entries, the newest
    #[arg(long, default_value_t = 50, value_parser = from_one)]
    limit: u64,
    /// Only what was done to this machine, or by it
    #[arg(long, value_name = "MACHINE")]
    machine: Option<MachineName>,
    /// Check the log from where it begins, and not only from the last entry that was checked here
    #[arg(long)]
    whole: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

impl List {
    pub async fn run(self, config: Option<PathBuf>) -> Result<()> {
        let config = Config::load(config)?;
        let api = Api::to_read(&config)?;
        let trusted = roots::follow(&api, &config).await?;
        let before = seen::seen(&config)?;
        let (last, _) = follow::ends(&api).await?;
        // All that is shown hangs on the newest entry, so what is older need not be read again.
        let from = match &before {
            Some(seen) if !self.whole && self.machine.is_none() => {
                seen.at.id.min(last.saturating_sub(self.limit))
            }
            _ => 0,
        };
        let wanted: BTreeSet<u64> = before.iter().map(|seen| seen.at.id).collect();
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let mut shown: std::collections::VecDeque<Entry> = Default::default();
        let mut keep = |entry: &Entry| {
            if self.machine.is_none() || entry.machine == self.machine {
                shown.push_back(entry.clone());
                if shown.len() > limit {
                    shown.pop_front();
                }
            }
        };
        let found = cut::follow(&api, &config, before.as_ref(), from, &wanted, &mut keep).await?;
        seen::require(before.as_ref(), &found)?;
        seen::keep(&config, before.as_ref(), &found)?;
        let shown: Vec<Entry> = shown.into();
        if self.json {
            return print_json(&shown);
        }
        let mut rows = table::table(["NUMBER", "WHEN", "WHO", "WHAT", "MACHINE", "DETAIL"]);
        for entry in &shown {
            rows.add_row([
                entry.id.to_string(),
                table::date(entry.at),
                entry.by.map_or_else(|| "-".to_owned(), |key| trusted.name(&key)),
                entry.action.replace('-', " "),
                entry.machine.as_ref().map(ToString::to_string).unwrap_or_default(),
                SignedCut::for_people(&entry.detail).to_owned(),
            ]);
        }
        match (shown.is_empty(), &self.machine) {
            (true, Some(machine)) => {
                say!("No entry is about {machine}; `muster machines list --all` shows who is known.");
            }
            _ => rows.print(),
        }
        say!();
        let begins = from.max(found.anchor.id.saturating_add(1));
        let of = match found.anchor.id {
            0 => count(found.last, "entry", "entries"),
            cut => format!(
                "{} after entry {cut}, where the log was cut{}",
                count(found.last.saturating_sub(cut), "entry", "entries"),
                match &found.cut {
                    Cut::Proven(cut) => format!(" {}", cut.who_and_when(&trusted)),
                    _ => String::new(),
                }
            ),
        };
        say!(
            "{of}, each fits the one before it{}{}.",
            if begins > found.anchor.id + 1 { format!(" from entry {begins} on") } else { String::new() },
            match &before {
                Some(seen) => format!(", and entry {} is the one that was seen before", seen.at.id),
                None => String::new(),
            }
        );
        Ok(())
    }
}
