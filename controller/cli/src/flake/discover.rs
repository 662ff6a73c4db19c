//! Which machines a flake describes, and where each is known from. Pure.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::ids::{MachineName, Tag};
use muster_protocol::machine::{Class, System};
use serde::Serialize;

use super::facts::Muster;
use super::inventory::Inventory;

/// The outputs of a flake that describe machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Source {
    #[serde(rename = "nixosConfigurations")]
    Nixos,
    #[serde(rename = "darwinConfigurations")]
    Darwin,
    #[serde(rename = "clanInternals")]
    Clan,
    #[serde(rename = "muster.inventory")]
    Inventory,
    #[serde(rename = "muster.machines")]
    Facts,
}

impl Source {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nixos => Class::Nixos.flake_output(),
            Self::Darwin => Class::Darwin.flake_output(),
            Self::Clan => super::inventory::CLAN_OUTPUT,
            Self::Inventory => "muster.inventory",
            Self::Facts => "muster.machines",
        }
    }
}

/// The outputs' contents, as read.
#[derive(Debug)]
pub struct Outputs<'a> {
    pub nixos: &'a BTreeSet<String>,
    pub darwin: &'a BTreeSet<String>,
    pub clan: Option<&'a Inventory>,
    pub muster: &'a Muster,
}

/// One machine of the flake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    pub machine: String,
    pub class: Option<Class>,
    pub system: Option<System>,
    pub tags: BTreeSet<String>,
    pub description: Option<String>,
    pub build_host: Option<String>,
    /// The machine's roles by instance, if the inventory gives them.
    pub roles: BTreeMap<String, Vec<String>>,
    pub known_from: Vec<Source>,
    /// Anything odd about it, in sentences.
    pub notes: Vec<String>,
}

impl Found {
    /// The output that has its system, if there is exactly one.
    pub fn output(&self) -> Option<Class> {
        let of = |class: Class| match class {
            Class::Nixos => Source::Nixos,
            Class::Darwin => Source::Darwin,
        };
        let mut classes = Class::ALL.into_iter().filter(|class| self.known_from.contains(&of(*class)));
        classes.next().filter(|_| classes.next().is_none())
    }

    /// Sets the system; notes if its class differs from that of its output.
    pub fn set_system(&mut self, system: System) {
        if let Some(class) = self.class.filter(|class| *class != system.class()) {
            self.notes.push(format!("{system} is not a system of a {class} machine"));
        }
        self.system = Some(system);
    }
}

/// Every machine that any output names, sorted by name.
pub fn discover(outputs: &Outputs<'_>) -> Vec<Found> {
    let inventories = outputs.clan.into_iter().chain(&outputs.muster.inventory);
    let mut names: BTreeSet<&str> = outputs.nixos.iter().chain(outputs.darwin).map(String::as_str).collect();
    names.extend(inventories.flat_map(|inventory| inventory.machines.keys()).map(String::as_str));
    names.extend(outputs.muster.machines.keys().map(MachineName::as_str));
    names.into_iter().map(|name| found(name, outputs)).collect()
}

fn found(name: &str, outputs: &Outputs<'_>) -> Found {
    let ours = outputs.muster.inventory.as_ref();
    let entries = [(Source::Clan, outputs.clan), (Source::Inventory, ours)];
    let entries = entries.into_iter().filter_map(|(source, inventory)| {
        let inventory = inventory?;
        Some((source, inventory, inventory.machines.get(name)?))
    });
    let facts = name.parse().ok().and_then(|name: MachineName| outputs.muster.machines.get(&name));

    let mut machine = Found {
        machine: name.to_owned(),
        class: None,
        system: None,
        tags: BTreeSet::from(["all".to_owned()]),
        description: None,
        build_host: None,
        roles: BTreeMap::new(),
        known_from: Vec::new(),
        notes: Vec::new(),
    };
    let in_nixos = outputs.nixos.contains(name);
    let in_darwin = outputs.darwin.contains(name);
    machine.known_from.extend(in_nixos.then_some(Source::Nixos));
    machine.known_from.extend(in_darwin.then_some(Source::Darwin));
    match (in_nixos, in_darwin) {
        (true, false) => machine.class = Some(Class::Nixos),
        (false, true) => machine.class = Some(Class::Darwin),
        (true, true) => machine.notes.push(
            "it is in nixosConfigurations and in darwinConfigurations; a name is of one machine".to_owned(),
        ),
        (false, false) => {}
    }

    for (source, inventory, entry) in entries {
        machine.known_from.push(source);
        note_class(&mut machine, source, entry.class.as_deref());
        if let Some(system) = entry.system.as_deref() {
            match system.parse() {
                Ok(system) => machine.set_system(system),
                Err(error) => machine.notes.push(format!("{error}")),
            }
        }
        machine.tags.extend(inventory.tags_of(name));
        machine.description = machine.description.or_else(|| entry.description.clone());
        machine.build_host = machine.build_host.or_else(|| entry.build_host.clone());
        machine.roles.extend(entry.roles.clone());
    }
    if let Some(facts) = facts {
        machine.known_from.push(Source::Facts);
        machine.tags.extend(facts.tags.iter().map(ToString::to_string));
    }
    machine.tags.extend(machine.class.map(|class| class.to_string()));

    if !in_nixos && !in_darwin {
        machine.notes.push("neither nixosConfigurations nor darwinConfigurations has its system".to_owned());
    }
    if let Err(error) = name.parse::<MachineName>() {
        machine.notes.push(format!("it cannot be enrolled: {error}"));
    }
    for tag in machine.tags.iter().filter(|tag| tag.parse::<Tag>().is_err()) {
        machine.notes.push(format!("the tag '{tag}' cannot be written as @TAG"));
    }
    machine
}

/// If the inventory's class differs from the output that has the system, the output decides.
fn note_class(machine: &mut Found, source: Source, said: Option<&str>) {
    let Some(said) = said else { return };
    match (said.parse::<Class>(), machine.class) {
        (Err(error), _) => machine.notes.push(format!("{}: {error}", source.as_str())),
        (Ok(class), None) => {
            // Both outputs have it, and no inventory can say which one is meant.
            if !machine.known_from.contains(&Source::Nixos) {
                machine.class = Some(class);
            }
        }
        (Ok(class), Some(known)) if class != known => machine.notes.push(format!(
            "{} says {class}, and its system is in {}",
            source.as_str(),
            known.flake_output()
        )),
        (Ok(_), Some(_)) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    fn by_name(nixos: &[&str], darwin: &[&str], clan: Option<&str>, muster: &str) -> BTreeMap<String, Found> {
        let clan: Option<Inventory> = clan.map(|text| serde_json::from_str(text).unwrap());
        let outputs = Outputs {
            nixos: &names(nixos),
            darwin: &names(darwin),
            clan: clan.as_ref(),
            muster: &serde_json::from_str(muster).unwrap(),
        };
        discover(&outputs).into_iter().map(|found| (found.machine.clone(), found)).collect()
    }

    #[test]
    fn a_plain_flake_is_known_by_its_outputs() {
        let found = by_name(&["tin"], &["iron"], None, "{}");
        assert_eq!(found["tin"].class, Some(Class::Nixos));
        assert_eq!(found["iron"].tags, names(&["all", "darwin"]));
        assert_eq!(found["iron"].known_from, [Source::Darwin]);
        assert!(found.values().all(|machine| machine.notes.is_empty()));
    }

    #[test]
    fn inventories_add_tags_systems_and_machines_without_a_system() {
        let clan = r#"{"machines":{"iron":{"class":"darwin","tags":["laptop"],"description":"A Mac"},
            "new":{"class":"nixos"}}}"#;
        let muster = r#"{"machines":{"iron":{"tags":["vip"]}},
            "inventory":{"machines":{"iron":{"system":"aarch64-darwin"}}}}"#;
        let found = by_name(&[], &["iron"], Some(clan), muster);
        let iron = &found["iron"];
        assert_eq!(iron.tags, names(&["all", "darwin", "laptop", "vip"]));
        assert_eq!(iron.system.as_ref().map(System::as_str), Some("aarch64-darwin"));
        assert_eq!(iron.known_from, [Source::Darwin, Source::Clan, Source::Inventory, Source::Facts]);
        assert_eq!(iron.description.as_deref(), Some("A Mac"));
        assert!(iron.notes.is_empty(), "{:?}", iron.notes);
        assert_eq!(found["new"].class, Some(Class::Nixos));
        assert_eq!(
            found["new"].notes,
            ["neither nixosConfigurations nor darwinConfigurations has its system"]
        );
    }

    #[test]
    fn what_disagrees_is_noted_and_the_system_decides() {
        let clan = r#"{"machines":{"tin":{"class":"darwin","system":"aarch64-darwin","tags":["a b"]},
            "lead":{"class":"bsd"}}}"#;
        let found = by_name(&["tin", "lead", "both", "me@host"], &["both"], Some(clan), "{}");
        assert_eq!(found["tin"].class, Some(Class::Nixos));
        assert_eq!(
            found["tin"].notes,
            [
                "clanInternals says darwin, and its system is in nixosConfigurations",
                "aarch64-darwin is not a system of a nixos machine",
                "the tag 'a b' cannot be written as @TAG"
            ]
        );
        assert_eq!(found["lead"].notes, ["clanInternals: 'bsd' is not a class: write nixos or darwin"]);
        assert_eq!(found["both"].class, None);
        assert_eq!(found["both"].output(), None);
        assert!(found["me@host"].notes[0].starts_with("it cannot be enrolled"));
    }
}
