//! `muster machines add --from-flake`: tokens for every machine that a flake describes and the controller
//! does not know.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;

use anyhow::{Context as _, Result};
use muster_protocol::api::{OPERATOR_INVITATIONS, OPERATOR_SUMMARIES};
use muster_protocol::ids::{MachineName, Tag};
use muster_protocol::operator::{
    AddMachine, AddMachines, MAX_ADDED, MAX_REQUEST_BYTES, MachineSummary, MachineView, MachinesAdded,
    Standing,
};
use serde_json::json;

use super::kind::{Written, decide};
use super::token::{Destination, Kind, Made, Making, known};
use crate::api::client::Api;
use crate::config::Config;
use crate::flake::discover::Found;
use crate::flake::evaluate::{Flake, Lock};
use crate::flake::notes::{tell_of, with_hint};
use crate::flake::options::Options;
use crate::fleet::witnesses;
use crate::keys::keyfile;
use crate::release::highest;
use crate::terminal::count::count;
use crate::terminal::list::listed;
use crate::terminal::spinner::spinner;
use crate::terminal::table;

/// How many Nix processes evaluate at once.
const JOBS: usize = 2;

pub struct AddMany {
    pub reference: String,
    pub options: Options,
    pub tags: BTreeSet<Tag>,
    pub hours: u32,
    pub invited: bool,
    pub to: Destination,
}

impl AddMany {
    pub async fn run(self, config: &Config, api: &Api) -> Result<()> {
        if let Some(folder) = &self.to.tokens {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.with_context(|| format!("cannot write {}", folder.display()))?;
        }
        let progress = spinner();
        progress.set_message(format!("reading {}", self.reference));
        let opened = Flake::open_with(&self.reference, &self.options, Lock::Keep).await;
        let mut flake = opened.map_err(with_hint)?;
        let machines: Vec<MachineSummary> = api.get(OPERATOR_SUMMARIES).await?;
        let choice = choose(&flake.found, &machines, self.invited);
        progress.set_message("evaluating the systems of machines");
        flake.find_systems(JOBS, |name| choice.new.iter().any(|new| new.as_str() == name)).await;
        flake.require_unchanged().await.map_err(with_hint)?;
        progress.finish_and_clear();
        tell_of(&flake);

        let making = Making::prepare(config, api, self.hours).await?;
        let by_name: BTreeMap<&str, &Found> =
            flake.found.iter().map(|found| (found.machine.as_str(), found)).collect();
        let mut made = Vec::new();
        for machine in &choice.new {
            let found = by_name.get(machine.as_str()).copied();
            let (class, system) = match decide(machine, &Written::default(), found) {
                Ok(kind) => kind,
                Err(error) => {
                    tell!("left out: {machine}: {error:#}");
                    continue;
                }
            };
            let known = match choice.again.contains(machine) {
                true => known(api, machine).await?,
                false => None,
            };
            let lowest = highest::lowest(config, api, &making.trusted, known.as_ref()).await?;
            made.push(making.one(
                machine.clone(),
                Kind { class, system, tags: self.tags_beside(known.as_ref()) },
                lowest,
            )?);
        }
        let added = made.len();
        for some in in_requests(made) {
            self.announce(config, api, some).await?;
        }
        choice.tell();
        self.tell(added);
        Ok(())
    }

    /// A machine that had a token keeps its tags if none were given.
    fn tags_beside(&self, known: Option<&MachineView>) -> BTreeSet<Tag> {
        match known {
            Some(known) if self.tags.is_empty() => known.tags.clone(),
            _ => self.tags.clone(),
        }
    }

    /// Announces tokens to the controller, and hands them out once it has taken all of them.
    async fn announce(&self, config: &Config, api: &Api, made: Vec<Made>) -> Result<()> {
        let (machines, tokens): (Vec<AddMachine>, Vec<_>) =
            made.into_iter().map(|made| (made.request, made.token)).unzip();
        let _: MachinesAdded = api.post(OPERATOR_INVITATIONS, &AddMachines { machines }).await?;
        for token in tokens {
            // Before anybody can use it; see `muster machines add`.
            witnesses::keep(config, &token.machine, &token.secret.witness())?;
            let text = token.encode()?;
            match &self.to.tokens {
                Some(folder) => {
                    let file = folder.join(format!("{}.token", token.machine));
                    keyfile::replace_private(&file, &format!("{text}\n"))?;
                }
                None => say!("{}", json!({ "machine": token.machine, "token": text })),
            }
        }
        Ok(())
    }

    fn tell(&self, added: usize) {
        if added == 0 {
            tell!("The controller knows every machine of {}: no token was made.", self.reference);
            return;
        }
        let machines = count(added, "machine", "machines");
        let span = table::span(i64::from(self.hours) * 3600);
        match &self.to.tokens {
            Some(folder) => tell!(
                "{machines} may enrol within {span}, each once, with its token in {}. On each machine, as \
                 root:  muster-agent enrol - < MACHINE.token",
                folder.display()
            ),
            None => tell!("{machines} may enrol within {span}, each once, with its token."),
        }
    }
}

/// Which machines of a flake get a token. Pure.
#[derive(Debug, Default, PartialEq, Eq)]
struct Choice {
    new: Vec<MachineName>,
    /// Those of them that had a token already.
    again: BTreeSet<MachineName>,
    enrolled: Vec<MachineName>,
    invited: Vec<MachineName>,
    revoked: Vec<MachineName>,
    unusable: Vec<String>,
}

fn choose(found: &[Found], machines: &[MachineSummary], invited: bool) -> Choice {
    let known: BTreeMap<&str, Standing> =
        machines.iter().map(|view| (view.machine.as_str(), view.standing)).collect();
    let mut choice = Choice::default();
    for found in found {
        let Ok(machine) = found.machine.parse::<MachineName>() else {
            choice.unusable.push(found.machine.clone());
            continue;
        };
        match known.get(machine.as_str()) {
            None => choice.new.push(machine),
            Some(Standing::Enrolled) => choice.enrolled.push(machine),
            Some(Standing::Revoked) => choice.revoked.push(machine),
            Some(Standing::Invited) if invited => {
                choice.again.insert(machine.clone());
                choice.new.push(machine);
            }
            Some(Standing::Invited) => choice.invited.push(machine),
        }
    }
    choice
}

impl Choice {
    fn tell(&self) {
        for (why, machines) in [
            ("enrolled already", &self.enrolled),
            ("they have tokens, and --invited makes new ones", &self.invited),
            ("revoked; `muster machines add NAME` brings one back", &self.revoked),
        ] {
            if !machines.is_empty() {
                tell!("left alone, {why}: {}", listed(machines));
            }
        }
        if !self.unusable.is_empty() {
            tell!("left out, since no machine can have such a name: {}", listed(&self.unusable));
        }
    }
}

/// In groups that the controller takes in one request each.
fn in_requests(made: Vec<Made>) -> Vec<Vec<Made>> {
    // Room for the list around them.
    const MOST_BYTES: usize = MAX_REQUEST_BYTES - 1024;
    let (mut groups, mut bytes) = (Vec::new(), 0);
    for one in made {
        let more = serde_json::to_vec(&one.request).map_or(0, |text| text.len() + 1);
        match groups.last_mut() {
            Some(group) if Vec::len(group) < MAX_ADDED && bytes + more <= MOST_BYTES => {
                group.push(one);
                bytes += more;
            }
            _ => {
                groups.push(vec![one]);
                bytes = more;
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str) -> Found {
        Found {
            machine: name.into(),
            class: None,
            system: None,
            tags: BTreeSet::new(),
            description: None,
            build_host: None,
            roles: BTreeMap::new(),
            known_from: vec![],
            notes: vec![],
        }
    }

    fn known(name: &str, standing: Standing) -> MachineSummary {
        serde_json::from_value(json!({
            "machine": name, "class": "nixos", "standing": standing, "condition": "offline",
        }))
        .unwrap()
    }

    #[test]
    fn only_machines_that_have_no_key_and_no_token_get_one() {
        let flake = ["new", "in", "waits", "gone", "a b"].map(found);
        let controller = [
            known("in", Standing::Enrolled),
            known("waits", Standing::Invited),
            known("gone", Standing::Revoked),
            known("elsewhere", Standing::Enrolled),
        ];
        let names = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<_>>();
        let choice = choose(&flake, &controller, false);
        assert_eq!(choice.new, names(&["new"]));
        assert_eq!((choice.enrolled, choice.invited), (names(&["in"]), names(&["waits"])));
        assert_eq!((choice.revoked, choice.unusable), (names(&["gone"]), vec!["a b".to_owned()]));
        let choice = choose(&flake, &controller, true);
        assert_eq!(choice.new, names(&["new", "waits"]));
        assert_eq!(choice.again.into_iter().collect::<Vec<_>>(), names(&["waits"]));
    }
}
