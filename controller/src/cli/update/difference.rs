//! What will change, told before anything is signed.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::target::Target;

use crate::flake::evaluate;

const SHOWN: usize = 12;

/// What a new target changes of the last one.
#[derive(Debug, PartialEq, Eq)]
pub enum Difference {
    /// Nothing was ever published for this machine.
    First,
    /// The same system, checks and all: there is nothing to sign.
    Same,
    /// The same system, with another action, deadline, checks or keys.
    Terms,
    System(Packages),
}

/// Derivations that came, went, or have another version. `None` where the old closure is not in this store.
pub type Packages = Option<PackageChanges>;

#[derive(Debug, Default, PartialEq, Eq)]
pub struct PackageChanges {
    pub changed: Vec<String>,
    pub added: Vec<String>,
    pub removed: Vec<String>,
}

impl Difference {
    /// In one sentence, and the lines that belong under it.
    pub fn words(&self) -> (&'static str, Vec<String>) {
        match self {
            Self::First => ("its first generation", vec![]),
            Self::Same => ("unchanged", vec![]),
            Self::Terms => ("the same system, with other checks or terms", vec![]),
            Self::System(None) => {
                ("a new system (the old one is not in this store, so its packages are not compared)", vec![])
            }
            Self::System(Some(changes)) if *changes == PackageChanges::default() => {
                ("a new system with the same packages", vec![])
            }
            Self::System(Some(changes)) => ("a new system", changes.lines()),
        }
    }
}

/// Compares a new target with the last, packages too where both closures are in this store.
pub async fn between(old: Option<&Target>, new: &Target) -> Difference {
    let mut difference = terms(old, new);
    if let (Difference::System(packages), Some(old)) = (&mut difference, old) {
        let closures = tokio::join!(evaluate::closure(&old.derivation), evaluate::closure(&new.derivation));
        if let (Some(old), Some(new)) = closures {
            *packages = Some(self::packages(&old, &new));
        }
    }
    difference
}

/// Compares the terms; whether packages differ is for [`packages`] to say.
pub fn terms(old: Option<&Target>, new: &Target) -> Difference {
    let Some(old) = old else { return Difference::First };
    if old.derivation != new.derivation || old.output != new.output {
        return Difference::System(None);
    }
    // The generation's number and the message are no change of the machine.
    let same = Target { generation: old.generation, message: old.message.clone(), ..new.clone() } == *old;
    if same { Difference::Same } else { Difference::Terms }
}

/// Compares two closures by the names of their derivations.
pub fn packages(old: &BTreeSet<String>, new: &BTreeSet<String>) -> PackageChanges {
    let (gone, come) = (by_name(old.difference(new)), by_name(new.difference(old)));
    let mut changes = PackageChanges::default();
    for (name, versions) in &come {
        match gone.get(name) {
            Some(before) => {
                changes.changed.push(format!("{name} {} -> {}", or_none(before), or_none(versions)));
            }
            None => changes.added.push(whole(name, versions)),
        }
    }
    let removed = gone.iter().filter(|(name, _)| !come.contains_key(*name));
    changes.removed.extend(removed.map(|(name, versions)| whole(name, versions)));
    changes
}

/// `name-1.2` in its two parts: the version begins at the first dash that a digit follows (`builtins.parseDrvName`).
fn split(package: &str) -> (&str, &str) {
    let bytes = package.as_bytes();
    let dash = (1..bytes.len()).find(|&at| bytes[at - 1] == b'-' && bytes[at].is_ascii_digit());
    dash.map_or((package, ""), |at| (&package[..at - 1], &package[at..]))
}

fn by_name<'a>(packages: impl Iterator<Item = &'a String>) -> BTreeMap<&'a str, Vec<&'a str>> {
    let mut names: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, version) in packages.map(|package| split(package)) {
        names.entry(name).or_default().push(version);
    }
    names
}

fn or_none(versions: &[&str]) -> String {
    let named: Vec<&str> = versions.iter().copied().filter(|version| !version.is_empty()).collect();
    if named.is_empty() { "(no version)".to_owned() } else { named.join(", ") }
}

fn whole(name: &str, versions: &[&str]) -> String {
    let named: Vec<&str> = versions.iter().copied().filter(|version| !version.is_empty()).collect();
    if named.is_empty() { name.to_owned() } else { format!("{name} {}", named.join(", ")) }
}

impl PackageChanges {
    /// One line for each kind of change.
    pub fn lines(&self) -> Vec<String> {
        let line = |word: &str, names: &[String]| {
            let more = names.len().saturating_sub(SHOWN);
            let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("{word}: {}{tail}", names[..names.len() - more].join(", "))
        };
        [("changed", &self.changed), ("added", &self.added), ("removed", &self.removed)]
            .into_iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(word, names)| line(word, names))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::ids::Generation;
    use muster_protocol::machine::Class;
    use muster_protocol::target::Action;

    use super::*;

    fn target() -> Target {
        Target {
            machine: "cinnabar".parse().unwrap(),
            class: Class::Nixos,
            generation: Generation::FIRST,
            system: "x86_64-linux".parse().unwrap(),
            derivation: "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv".parse().unwrap(),
            output: "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system".parse().unwrap(),
            action: Action::Switch,
            deadline_seconds: 300,
            checks: vec![],
            trusted_nix_keys: vec![],
            message: None,
        }
    }

    #[test]
    fn a_new_number_or_message_alone_is_no_change() {
        let next = Target { generation: Generation::FIRST.next(), message: Some("x".into()), ..target() };
        assert_eq!(terms(Some(&target()), &next), Difference::Same);
        assert_eq!(terms(None, &next), Difference::First);
        assert_eq!(terms(Some(&target()), &Target { deadline_seconds: 60, ..next }), Difference::Terms);
    }

    #[test]
    fn versions_additions_and_removals_are_told_apart() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let changes =
            packages(&set(&["bash-5.1", "etc", "nano-7.2"]), &set(&["bash-5.2", "etc", "vim-9.1", "motd"]));
        assert_eq!(
            changes.lines(),
            ["changed: bash 5.1 -> 5.2", "added: motd, vim 9.1", "removed: nano 7.2"]
        );
    }

    #[test]
    fn names_are_split_as_nix_splits_them() {
        assert_eq!(split("bash-5.2-p15"), ("bash", "5.2-p15"));
        assert_eq!(split("hicolor-icon-theme-0.17"), ("hicolor-icon-theme", "0.17"));
        assert_eq!(split("source"), ("source", ""));
    }
}
