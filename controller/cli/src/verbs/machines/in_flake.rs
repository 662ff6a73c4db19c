//! `muster machines list --flake`: the machines that a flake describes, whether or not a controller knows
//! them.

use anyhow::Result;

use crate::flake::discover::{Found, Source};
use crate::flake::evaluate::{Flake, Lock};
use crate::flake::notes::{tell_of, with_hint};
use crate::flake::options::Options;
use crate::terminal::json::print_json;
use crate::terminal::spinner::spinner;
use crate::terminal::table;

/// How many machines are evaluated at once, where they have to be evaluated one by one.
const JOBS: usize = 2;

pub async fn list(reference: &str, options: &Options, evaluate_systems: bool, json: bool) -> Result<()> {
    let progress = spinner();
    progress.set_message(format!("reading {reference}"));
    let mut flake = Flake::open_with(reference, options, Lock::Keep).await.map_err(with_hint)?;
    if evaluate_systems {
        progress.set_message("evaluating the systems of machines");
        flake.find_systems(JOBS, |_| true).await;
        flake.require_unchanged().await.map_err(with_hint)?;
    }
    progress.finish_and_clear();
    tell_of(&flake);
    if json {
        return print_json(&flake.found);
    }
    if flake.found.is_empty() {
        say!(
            "The flake {reference} describes no machines: it has no nixosConfigurations, no \
             darwinConfigurations and no inventory."
        );
        return Ok(());
    }
    print_table(&flake.found);
    Ok(())
}

fn print_table(machines: &[Found]) {
    let mut rows = table::table(["MACHINE", "CLASS", "SYSTEM", "TAGS", "KNOWN FROM"]);
    for found in machines {
        rows.add_row([
            found.machine.clone(),
            found.class.map_or_else(unknown, |class| class.to_string()),
            found.system.as_ref().map_or_else(unknown, ToString::to_string),
            shown_tags(found).join(", "),
            found.known_from.iter().copied().map(Source::as_str).collect::<Vec<_>>().join(", "),
        ]);
    }
    rows.print();
    for found in machines {
        for note in &found.notes {
            tell!("note: {}: {}", found.machine, note.replace('\n', " "));
        }
    }
}

fn unknown() -> String {
    "-".to_owned()
}

/// Without the tags that every machine has by default.
fn shown_tags(found: &Found) -> Vec<&str> {
    let by_itself = |tag: &&str| *tag == "all" || found.class.is_some_and(|class| *tag == class.as_str());
    found.tags.iter().map(String::as_str).filter(|tag| !by_itself(tag)).collect()
}
