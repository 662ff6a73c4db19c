//! `muster vars list`: every variable of the fleet, and who reads it.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use muster_protocol::ids::MachineName;
use serde::Serialize;

use crate::config::FlakeArgument;
use crate::terminal::json::print_json;
use crate::terminal::table;
use crate::vars::check::{left_over, readers};
use crate::vars::layout;
use crate::vars::names::Place;
use crate::vars::plan::{State, Wish, chosen, state};
use crate::vars::repository;
use crate::vars::workspace::Looked;

#[derive(Debug, Args)]
pub struct List {
    /// Machines [default: all]
    #[arg(value_name = "MACHINE")]
    machines: Vec<MachineName>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flake: FlakeArgument,
}

/// One file. Never contains a secret's value.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    generator: String,
    file: String,
    /// The machine, or `None` if it is shared.
    machine: Option<MachineName>,
    shared_by: Vec<MachineName>,
    secret: bool,
    state: &'static str,
    needed_for: Option<String>,
    readers: Vec<String>,
    value: Option<String>,
}

impl List {
    pub async fn run(self, config: Option<PathBuf>) -> Result<()> {
        let looked = Looked::at(&self.flake.reference(config)?).await?;
        let wish = Wish { machines: self.machines.into_iter().collect(), ..Wish::default() };
        let mut rows = Vec::new();
        for generator in chosen(&looked.generators, &wish)? {
            let outdated = state(&looked.snapshot, generator) == State::Outdated;
            for (name, file) in &generator.files {
                let folder = layout::file(&generator.id, name);
                let there = looked.snapshot.has(&folder, file.secret);
                let value = match file.secret {
                    true => None,
                    false => repository::value(&looked.flake.root, &folder)?,
                };
                rows.push(Row {
                    generator: generator.id.name.to_string(),
                    file: name.to_string(),
                    machine: match &generator.id.place {
                        Place::Machine(machine) => Some(machine.clone()),
                        Place::Shared => None,
                    },
                    shared_by: match &generator.id.place {
                        Place::Machine(_) => Vec::new(),
                        Place::Shared => generator.machines.iter().cloned().collect(),
                    },
                    secret: file.secret,
                    state: match (there, outdated) {
                        (false, _) => "missing",
                        (true, true) => "outdated",
                        (true, false) => "there",
                    },
                    needed_for: file.needed_for.clone(),
                    readers: readers(&looked.snapshot, &folder),
                    value: value.map(|value| String::from_utf8_lossy(&value).into_owned()),
                });
            }
        }
        if self.json {
            return print_json(&rows);
        }
        looked.tell_of_pending();
        if rows.is_empty() {
            say!("No machine declares a generator.");
            return Ok(());
        }
        print(&rows);
        for folder in left_over(&looked.generators, &looked.snapshot) {
            tell!("note: {}: no machine declares it any more", folder.display());
        }
        Ok(())
    }
}

fn print(rows: &[Row]) {
    let mut printed = table::table(["MACHINE", "VARIABLE", "STATE", "VALUE", "READ BY"]);
    for row in rows {
        let value = match (&row.value, row.secret) {
            (_, true) => "secret".to_owned(),
            (Some(value), false) => shortened(value),
            (None, false) => "-".to_owned(),
        };
        printed.add_row([
            row.machine.as_ref().map_or_else(|| "(shared)".to_owned(), ToString::to_string),
            format!("{}/{}", row.generator, row.file),
            row.state.to_owned(),
            value,
            if row.secret { row.readers.join(", ") } else { "everybody".to_owned() },
        ]);
    }
    printed.print();
}

/// The first line, as far as the table has room.
fn shortened(value: &str) -> String {
    const LONGEST: usize = 48;
    let line = value.lines().next().unwrap_or_default();
    let short: String = line.chars().take(LONGEST).collect();
    if short.len() < value.trim_end().len() { short + "…" } else { short }
}
