//! `muster machines list --flake`: the machines that a flake describes, whether a controller knows them or not.

use anyhow::{Error, Result};

use super::super::error::Hint;
use super::super::spinner::spinner;
use super::super::table;
use super::print_json;
use crate::flake::discover::{Found, Source};
use crate::flake::evaluate::{Flake, FlakeError};

/// How many machines are evaluated at once where they have to be evaluated one by one.
const JOBS: usize = 2;

pub async fn list(reference: &str, evaluate_systems: bool, json: bool) -> Result<()> {
    let progress = spinner();
    progress.set_message(format!("reading {reference}"));
    let mut flake = Flake::open(reference).await.map_err(with_hint)?;
    if evaluate_systems {
        progress.set_message("evaluating the systems of machines");
        flake.find_systems(JOBS).await;
    }
    progress.finish_and_clear();
    if json {
        return print_json(&flake.found);
    }
    if flake.found.is_empty() {
        say!(
            "The flake {reference} describes no machines: it has no nixosConfigurations, no darwinConfigurations and no \
             inventory."
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

/// Without those that every machine has by itself.
fn shown_tags(found: &Found) -> Vec<&str> {
    let by_itself = |tag: &&str| *tag == "all" || found.class.is_some_and(|class| *tag == class.as_str());
    found.tags.iter().map(String::as_str).filter(|tag| !by_itself(tag)).collect()
}

fn with_hint(error: FlakeError) -> Error {
    let hint = match &error {
        FlakeError::Lock { .. } => {
            "see that --flake names a flake, and that `nix flake metadata` reads it".to_owned()
        }
        FlakeError::Evaluate { reference, attribute, .. } => {
            format!("mend the flake until `nix eval {reference}#{attribute}` succeeds")
        }
        _ => "correct it in the flake".to_owned(),
    };
    Error::new(error).context(Hint(hint))
}
