//! `muster machines readmit`: machines that a lost database knew, admitted by the keys that they have.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use muster_protocol::api::{OPERATOR_MACHINES, operator_machine};
use muster_protocol::ids::{MachineName, Tag};
use muster_protocol::keys::PublicKey;
use muster_protocol::machine::{Class, System};
use muster_protocol::operator::{MachineView, Readmit as Known, Standing};
use serde::Deserialize;

use crate::api::client::Api;
use crate::terminal::count::count;
use crate::terminal::error::{self, WithHint as _};

/// The list says which key is which machine's: take it from a time when you trusted the controller.
#[derive(Debug, Args)]
pub struct Readmit {
    /// What `muster machines list --json` printed before the database was lost
    list: PathBuf,
    /// Only these machines [default: all that were enrolled]
    machines: Vec<MachineName>,
    /// Those that are enrolled with another key, too: that key is revoked
    #[arg(long)]
    replace: bool,
}

/// One machine of the list, as far as it counts.
#[derive(Debug, Clone, Deserialize)]
struct Listed {
    machine: MachineName,
    class: Class,
    system: System,
    #[serde(default)]
    tags: BTreeSet<Tag>,
    standing: Standing,
    key: Option<PublicKey>,
}

impl Readmit {
    pub async fn run(self, api: &Api) -> Result<()> {
        let text =
            std::fs::read(&self.list).with_context(|| format!("cannot read {}", self.list.display()))?;
        let listed: Vec<Listed> = serde_json::from_slice(&text)
            .with_context(|| format!("{} is not a list of machines", self.list.display()))
            .hint("name what `muster machines list --json` printed")?;
        let chosen = chosen(listed, &self.machines, self.replace)?;
        let there: Vec<MachineView> = api.get(OPERATOR_MACHINES).await?;
        let is_there = |machine: &MachineName, key: &PublicKey| {
            let same = |view: &MachineView| view.machine == *machine && view.key.as_ref() == Some(key);
            there.iter().any(|view| same(view) && view.standing == Standing::Enrolled)
        };
        let (mut admitted, mut known, mut refused) = (0, 0, 0);
        for (machine, sent) in chosen {
            if is_there(&machine, &sent.key) {
                known += 1;
                continue;
            }
            let path = format!("{}/readmit", operator_machine(&machine));
            match api.post::<MachineView>(&path, &sent).await {
                Ok(_) => admitted += 1,
                Err(error) => {
                    refused += 1;
                    error::print(&error.context(format!("{machine} was not admitted")));
                }
            }
        }
        say!(
            "{} admitted, {known} known already. Publish for them once `muster status` has heard from them.",
            count(admitted, "machine", "machines")
        );
        match refused {
            0 => Ok(()),
            _ => Err(anyhow!("{} not admitted", count(refused, "machine was", "machines were")))
                .hint("fix what is said above of each, and repeat"),
        }
    }
}

/// The machines that were enrolled, or those of them that are named.
fn chosen(listed: Vec<Listed>, names: &[MachineName], replace: bool) -> Result<Vec<(MachineName, Known)>> {
    let is_named = |listed: &Listed| names.is_empty() || names.contains(&listed.machine);
    let mut chosen = Vec::new();
    for Listed { machine, class, system, tags, standing, key } in listed.into_iter().filter(is_named) {
        if let (Standing::Enrolled, Some(key)) = (standing, key) {
            chosen.push((machine, Known { class, system, tags, key, replace }));
        }
    }
    match names.iter().find(|name| !chosen.iter().any(|(machine, _)| machine == *name)) {
        None => Ok(chosen),
        Some(name) => Err(anyhow!("the list has no enrolled machine {name}"))
            .hint(format!("name another list, or enrol it anew: `muster machines add {name}`")),
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::keys::SecretKey;

    use super::*;

    #[test]
    fn those_that_were_enrolled_are_chosen_with_their_keys_and_no_others() {
        let key = SecretKey::generate().unwrap().public();
        let one = |name: &str, standing: &str, key: Option<PublicKey>| {
            serde_json::json!({
                "machine": name, "class": "nixos", "system": "x86_64-linux", "tags": ["lab"], "age": null,
                "standing": standing, "key": key, "last_seen": "2026-11-28T10:31:15.250Z"
            })
        };
        let text = serde_json::json!([
            one("a", "enrolled", Some(key)),
            one("b", "invited", None),
            one("c", "revoked", Some(key))
        ]);
        let listed: Vec<Listed> = serde_json::from_value(text).unwrap();
        let found = chosen(listed.clone(), &[], false).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].0.as_str(), found[0].1.key), ("a", key));
        for name in ["b", "c", "d"] {
            let error = chosen(listed.clone(), &[name.parse().unwrap()], false).unwrap_err();
            let said = format!("{error:#}");
            assert!(said.contains(&format!("the list has no enrolled machine {name}")), "{said}");
        }
    }
}
