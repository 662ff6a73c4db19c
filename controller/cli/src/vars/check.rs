//! What is wrong in the fleet's folder. Pure.

use std::path::{Path, PathBuf};

use muster_protocol::ids::MachineName;
use serde::Serialize;

use super::generators::{Generator, Generators};
use super::layout::{self, Kind};
use super::members::Policy;
use super::names::Place;
use super::plan::{State, state};
use super::recipients::{RecipientsError, settle};
use super::repository::{Member, Snapshot};
use crate::terminal::list::listed;

/// How serious a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weight {
    /// A machine lacks something, or somebody can read what they should not.
    Wrong,
    /// Worth knowing.
    Note,
}

/// One finding, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    pub weight: Weight,
    /// The generator, secret or member that it is about.
    pub about: String,
    pub what: String,
}

impl Finding {
    fn wrong(about: &impl ToString, what: impl Into<String>) -> Self {
        Self { weight: Weight::Wrong, about: about.to_string(), what: what.into() }
    }
    fn note(about: &impl ToString, what: impl Into<String>) -> Self {
        Self { weight: Weight::Note, about: about.to_string(), what: what.into() }
    }
}

/// Checks these generators, and everybody's keys.
pub fn check(generators: &Generators, chosen: &[&Generator], snapshot: &Snapshot) -> Vec<Finding> {
    let policy = Policy::new(generators, snapshot, &snapshot.members);
    let mut found = Vec::new();
    for generator in chosen {
        found.extend(of_state(generator, snapshot));
        for (name, file) in &generator.files {
            let folder = layout::file(&generator.id, name);
            if file.secret && snapshot.values.contains(&folder) {
                let path = folder.join(layout::VALUE);
                found.push(Finding::wrong(
                    &generator.id,
                    format!(
                        "{} is in the clear, and should be secret: take it out of git, and make a new value",
                        path.display()
                    ),
                ));
            }
            found.extend(of_access(&policy, snapshot, &folder));
        }
    }
    for ((kind, name), keys) in &snapshot.members.keys {
        if let Err(error) = keys {
            let path = layout::key_file(*kind, name);
            found.push(Finding::wrong(
                &format!("{kind} {name}"),
                format!("{} cannot be used: {error}", path.display()),
            ));
        }
    }
    let machines =
        chosen.iter().flat_map(|generator| generator.secrets()).flat_map(|(_, file)| &file.readers);
    let mut unknown: Vec<&MachineName> =
        machines.filter(|machine| !snapshot.members.has(&(Kind::Machine, machine.to_string()))).collect();
    unknown.sort();
    unknown.dedup();
    for machine in unknown {
        found.push(Finding::note(
            machine,
            format!("it has no key yet, and reads no secret until `muster machines accept {machine}`"),
        ));
    }
    found.sort();
    found.dedup();
    found
}

fn of_state(generator: &Generator, snapshot: &Snapshot) -> Option<Finding> {
    let name = &generator.id.name;
    match state(snapshot, generator) {
        State::Complete => None,
        State::Missing => {
            let machines = match &generator.id.place {
                Place::Machine(machine) => machine.to_string(),
                Place::Shared => listed(generator.machines.iter().take(1)),
            };
            let what = format!("it is not made yet: `muster vars generate {machines} --generator {name}`");
            Some(Finding::wrong(&generator.id, what))
        }
        State::Incomplete { has, lacks } => {
            let (has, lacks) = (listed(has), listed(lacks));
            let what = format!("there is {has} and not {lacks}; --regenerate {name} makes all of it anew");
            Some(Finding::wrong(&generator.id, what))
        }
        State::Outdated => {
            let what = format!("what it depends on has changed; --regenerate {name} makes it anew");
            Some(Finding::wrong(&generator.id, what))
        }
    }
}

/// What `fix` would change.
fn of_access(policy: &Policy<'_>, snapshot: &Snapshot, folder: &Path) -> Vec<Finding> {
    if !snapshot.secrets.contains_key(folder) {
        return Vec::new();
    }
    let about = layout::shown(folder);
    let wrong = |error: RecipientsError| vec![Finding::wrong(&about, error.to_string())];
    let links = match policy.links(folder) {
        Ok(links) => links,
        Err(error) => return wrong(error),
    };
    let draft = match settle(snapshot, &snapshot.members, folder, &links) {
        Ok(draft) => draft,
        Err(error) => return wrong(error),
    };
    let mut found = Vec::new();
    for rekey in &draft.rekeys {
        if !rekey.gains.is_empty() {
            let what =
                format!("{} should be able to read it and cannot: `muster vars fix`", listed(&rekey.gains));
            found.push(Finding::wrong(&about, what));
        }
        if !rekey.loses.is_empty() {
            let what = format!("{} can read it and should not: `muster vars fix`", listed(&rekey.loses));
            found.push(Finding::wrong(&about, what));
        }
    }
    if draft.rekeys.is_empty() && !draft.changes.is_empty() {
        found
            .push(Finding::wrong(&about, "the links beside it are not as they should be: `muster vars fix`"));
    }
    found
}

/// The files of generators that no machine declares any longer.
pub fn left_over(generators: &Generators, snapshot: &Snapshot) -> Vec<PathBuf> {
    let declared: Vec<PathBuf> = generators.all.keys().map(layout::generator).collect();
    let mut left: Vec<PathBuf> = snapshot
        .secrets
        .keys()
        .chain(&snapshot.values)
        .filter(|path| path.starts_with(layout::VARS))
        .filter_map(|path| path.parent())
        .filter(|generator| !declared.iter().any(|known| known == generator))
        .map(Path::to_owned)
        .collect();
    left.sort();
    left.dedup();
    left
}

/// Who can read a secret, according to its links; for lists.
pub fn readers(snapshot: &Snapshot, folder: &Path) -> Vec<String> {
    let links = snapshot.secrets.get(folder).map(|secret| secret.links.keys());
    links
        .into_iter()
        .flatten()
        .map(|(kind, name): &Member| match kind {
            Kind::Group => format!("@{name}"),
            Kind::Machine | Kind::User => name.clone(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::generators::tests::generators;
    use super::super::recipients::tests::{members, secret};
    use super::*;

    #[test]
    fn everything_that_is_wrong_is_told_with_what_to_do() {
        let text = r#"{"tin":{"generators":{
            "gone":{"share":false,"files":{"a":{"secret":true,"deploy":true}}},
            "half":{"share":false,"files":{"a":{"secret":true,"deploy":true},"b":{"secret":false,
            "deploy":true}}},
            "old":{"share":false,"validationHash":"v2","files":{"a":{"secret":true,"deploy":false}}},
            "well":{"share":false,"files":{"a":{"secret":true,"deploy":true}}}}}}"#;
        let generators = generators(text).unwrap();
        let joe = (Kind::User, "joe");
        let mut snapshot = Snapshot {
            members: members(&[(Kind::User, "joe", "j")]),
            secrets: BTreeMap::from([
                secret("vars/per-machine/tin/half/a", &[joe], &["j", "x"]),
                secret("vars/per-machine/tin/old/a", &[joe], &["j"]),
                secret("vars/per-machine/tin/well/a", &[joe], &["j"]),
                secret("vars/shared/nobodys/a", &[joe], &["j"]),
            ]),
            ..Snapshot::default()
        };
        snapshot.values.insert("vars/per-machine/tin/well/a".into());
        let all: Vec<&Generator> = generators.all.values().collect();
        let told: Vec<String> = check(&generators, &all, &snapshot)
            .iter()
            .map(|it| format!("{:?} {}: {}", it.weight, it.about, it.what))
            .collect();
        for expected in [
            "Wrong gone of tin: it is not made yet: `muster vars generate tin --generator gone`",
            "Wrong half of tin: there is a and not b; --regenerate half makes all of it anew",
            "Wrong old of tin: what it depends on has changed; --regenerate old makes it anew",
            "Wrong well of tin: vars/per-machine/tin/well/a/value is in the clear",
            "Wrong half/a of tin: age1xxxxxxxxxxxx can read it and should not",
            "Note tin: it has no key yet",
        ] {
            assert!(told.iter().any(|it| it.starts_with(expected)), "{expected} is not in {told:#?}");
        }
        assert_eq!(told.len(), 6, "{told:#?}");
        assert_eq!(left_over(&generators, &snapshot), [PathBuf::from("vars/shared/nobodys")]);
        assert_eq!(readers(&snapshot, Path::new("vars/shared/nobodys/a")), ["joe"]);
    }

    #[test]
    fn a_secret_that_a_machine_shall_read_and_cannot_is_told() {
        let text =
            r#"{"tin":{"generators":{"x":{"share":false,"files":{"a":{"secret":true,"deploy":true}}}}}}"#;
        let generators = generators(text).unwrap();
        let joe = (Kind::User, "joe");
        let snapshot = Snapshot {
            members: members(&[(Kind::User, "joe", "j"), (Kind::Machine, "tin", "t")]),
            secrets: BTreeMap::from([secret("vars/per-machine/tin/x/a", &[joe], &["j"])]),
            ..Snapshot::default()
        };
        let all: Vec<&Generator> = generators.all.values().collect();
        let found = check(&generators, &all, &snapshot);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].what, "tin should be able to read it and cannot: `muster vars fix`");
    }
}
