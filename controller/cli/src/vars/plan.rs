//! Which generators to run, and why; and what is wrong with the existing files. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use muster_protocol::ids::MachineName;

use super::generators::{Generator, Generators};
use super::layout;
use super::names::{GeneratorId, VarName};
use super::order::Order;
use super::repository::Snapshot;
use crate::terminal::list::listed;

/// The state of a generator's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Complete,
    Missing,
    /// Some files exist and others do not. The script makes all of them anew.
    Incomplete {
        has: Vec<VarName>,
        lacks: Vec<VarName>,
    },
    /// What the flake says that it depends on has changed.
    Outdated,
}

/// The state of a generator.
pub fn state(snapshot: &Snapshot, generator: &Generator) -> State {
    let there = |(name, file): &(&VarName, &super::generators::File)| {
        snapshot.has(&layout::file(&generator.id, name), file.secret)
    };
    let (has, lacks): (Vec<_>, Vec<_>) = generator.files.iter().partition(there);
    let names =
        |files: Vec<(&VarName, _)>| files.into_iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    if has.is_empty() {
        State::Missing
    } else if !lacks.is_empty() {
        State::Incomplete { has: names(has), lacks: names(lacks) }
    } else if snapshot.hashes.get(&layout::generator(&generator.id)) != generator.validation.as_ref() {
        State::Outdated
    } else {
        State::Complete
    }
}

/// Why a generator runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    Missing,
    /// It was asked for, though it exists.
    Asked,
    /// It is missing, and the given generator needs it.
    NeededBy(GeneratorId),
    /// It exists, but was made from one that is made anew.
    MadeFrom(GeneratorId),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("missing"),
            Self::Asked => f.write_str("made anew, as you ask"),
            Self::NeededBy(id) => write!(f, "missing, and {id} needs it"),
            Self::MadeFrom(id) => write!(f, "made anew, for it is made from {id}"),
        }
    }
}

/// What a run of `generate` is to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which they run.
    pub make: Vec<(GeneratorId, Why)>,
    /// Left as it is, though something is wrong with it.
    pub leave: Vec<(GeneratorId, State)>,
}

/// What was asked for.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Empty: all.
    pub machines: BTreeSet<MachineName>,
    /// Empty: all.
    pub generators: BTreeSet<VarName>,
    /// The generators to make anew.
    pub again: BTreeSet<VarName>,
    /// Everything of the chosen machines is made anew.
    pub all_again: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("the flake has no machine {0} with a system; it has {1}")]
    UnknownMachine(MachineName, String),
    #[error("none of these machines declares a generator {0}; they declare {1}")]
    UnknownGenerator(VarName, String),
    #[error("{generator} needs {needs}, of which there is {there}: make that anew with --regenerate {again}")]
    HalfThere { generator: String, needs: String, there: String, again: String },
}

pub fn plan(
    generators: &Generators,
    order: &Order,
    snapshot: &Snapshot,
    wish: &Wish,
) -> Result<Plan, PlanError> {
    let chosen = chosen(generators, wish)?;
    let states: BTreeMap<&GeneratorId, State> =
        generators.all.values().map(|generator| (&generator.id, state(snapshot, generator))).collect();
    let missing = |id: &GeneratorId| states.get(id) == Some(&State::Missing);
    let mut why: BTreeMap<&GeneratorId, Why> = BTreeMap::new();
    let mut leave = Vec::new();
    for generator in &chosen {
        let id = &generator.id;
        if wish.all_again || wish.again.contains(&id.name) {
            why.insert(id, if missing(id) { Why::Missing } else { Why::Asked });
        } else if missing(id) {
            why.insert(id, Why::Missing);
        } else if let Some(state) = states.get(id).filter(|state| **state != State::Complete) {
            leave.push((id.clone(), state.clone()));
        }
    }
    // What was made from a generator that is made anew no longer fits. Nothing is known to be made from what
    // is missing.
    let mut left: Vec<&GeneratorId> =
        why.iter().filter(|(_, why)| **why == Why::Asked).map(|(id, _)| *id).collect();
    while let Some(id) = left.pop() {
        for user in order.needed_by(id).filter(|user| !missing(user)) {
            if let std::collections::btree_map::Entry::Vacant(entry) = why.entry(user) {
                entry.insert(Why::MadeFrom(id.clone()));
                left.push(user);
            }
        }
    }
    let mut left: Vec<&GeneratorId> = why.keys().copied().collect();
    while let Some(id) = left.pop() {
        for needs in order.needs(id).filter(|needs| missing(needs)) {
            if let std::collections::btree_map::Entry::Vacant(entry) = why.entry(needs) {
                entry.insert(Why::NeededBy(id.clone()));
                left.push(needs);
            }
        }
    }
    for id in why.keys() {
        for needs in order.needs(id).filter(|needs| !why.contains_key(needs)) {
            if let Some(State::Incomplete { has, lacks }) = states.get(needs) {
                return Err(PlanError::HalfThere {
                    generator: id.to_string(),
                    needs: needs.to_string(),
                    there: format!("{} and not {}", listed(has), listed(lacks)),
                    again: needs.name.to_string(),
                });
            }
        }
    }
    leave.retain(|(id, _)| !why.contains_key(id));
    let make = order.sorted.iter().filter_map(|id| Some((id.clone(), why.get(id)?.clone()))).collect();
    Ok(Plan { make, leave })
}

/// The generators that the wish selects.
pub fn chosen<'a>(generators: &'a Generators, wish: &Wish) -> Result<Vec<&'a Generator>, PlanError> {
    for machine in &wish.machines {
        if !generators.machines.contains_key(machine) {
            let known = generators.machines.keys().map(MachineName::as_str);
            return Err(PlanError::UnknownMachine(machine.clone(), listed(known)));
        }
    }
    let on_machines: Vec<&Generator> = generators
        .all
        .values()
        .filter(|generator| wish.machines.is_empty() || !generator.machines.is_disjoint(&wish.machines))
        .collect();
    let known: BTreeSet<&VarName> = on_machines.iter().map(|generator| &generator.id.name).collect();
    for name in wish.generators.iter().chain(&wish.again) {
        if !known.contains(name) {
            return Err(PlanError::UnknownGenerator(name.clone(), listed(known)));
        }
    }
    let named = |generator: &&Generator| {
        let all = wish.generators.is_empty() && wish.again.is_empty();
        all || wish.generators.contains(&generator.id.name) || wish.again.contains(&generator.id.name)
    };
    Ok(on_machines.into_iter().filter(named).collect())
}

#[cfg(test)]
mod tests {
    use super::super::generators::tests::generators;
    use super::super::recipients::tests::secret;
    use super::*;

    /// tin: ca (shared) ← cert ← bundle, and `lone`, which has two files. lead shares ca.
    fn fleet() -> Generators {
        let one = |name: &str, share: bool, needs: &str| {
            format!(
                r#""{name}":{{"share":{share},"dependencies":{needs},"validationHash":null,
                "files":{{"f":{{"secret":true,"deploy":true}}}}}}"#
            )
        };
        let lone = r#""lone":{"share":false,"validationHash":"v1","files":{"a":{"secret":true,"deploy":true},
            "b":{"secret":false,"deploy":true}}}"#;
        let (ca, cert, bundle) =
            (one("ca", true, "[]"), one("cert", false, r#"["ca"]"#), one("bundle", false, r#"["cert"]"#));
        generators(&format!(
            r#"{{"tin":{{"generators":{{{ca},{cert},{bundle},{lone}}}}},"lead":{{"generators":{{{ca},
            {cert}}}}}}}"#
        ))
        .unwrap()
    }
    fn with(secrets: &[&str]) -> Snapshot {
        Snapshot {
            secrets: secrets.iter().map(|path| secret(path, &[], &[])).collect(),
            ..Snapshot::default()
        }
    }
    fn made(snapshot: &Snapshot, wish: &Wish) -> Vec<String> {
        let generators = fleet();
        let order = Order::of(&generators).unwrap();
        let plan = plan(&generators, &order, snapshot, wish).unwrap();
        plan.make.iter().map(|(id, why)| format!("{id}: {why}")).collect()
    }
    fn wish(machines: &[&str], names: &[&str], again: &[&str]) -> Wish {
        Wish {
            machines: machines.iter().map(|it| it.parse().unwrap()).collect(),
            generators: names.iter().map(|it| it.parse().unwrap()).collect(),
            again: again.iter().map(|it| it.parse().unwrap()).collect(),
            all_again: false,
        }
    }
    const ALL: [&str; 5] = [
        "vars/shared/ca/f",
        "vars/per-machine/tin/cert/f",
        "vars/per-machine/lead/cert/f",
        "vars/per-machine/tin/bundle/f",
        "vars/per-machine/tin/lone/a",
    ];

    #[test]
    fn everything_that_is_missing_is_made_once_and_in_order() {
        assert_eq!(
            made(&with(&[]), &wish(&[], &[], &[])),
            [
                "ca (shared): missing",
                "cert of lead: missing",
                "cert of tin: missing",
                "bundle of tin: missing",
                "lone of tin: missing"
            ]
        );
    }

    #[test]
    fn what_a_missing_generator_needs_comes_with_it() {
        assert_eq!(
            made(&with(&[]), &wish(&["tin"], &["bundle"], &[])),
            [
                "ca (shared): missing, and cert of tin needs it",
                "cert of tin: missing, and bundle of tin needs it",
                "bundle of tin: missing"
            ]
        );
    }

    #[test]
    fn what_is_there_is_never_made_again_unless_it_is_named() {
        let mut snapshot = with(&ALL);
        snapshot.values.insert("vars/per-machine/tin/lone/b".into());
        snapshot.hashes.insert("vars/per-machine/tin/lone".into(), "v1".into());
        assert!(made(&snapshot, &wish(&[], &[], &[])).is_empty());
        // A shared generator that is gone is made; what was made from its predecessor is left.
        snapshot.secrets.remove(std::path::Path::new("vars/shared/ca/f"));
        assert_eq!(made(&snapshot, &wish(&[], &[], &[])), ["ca (shared): missing"]);
        let snapshot = with(&ALL);
        assert_eq!(
            made(&snapshot, &wish(&["lead"], &[], &["ca"])),
            [
                "ca (shared): made anew, as you ask",
                "cert of lead: made anew, for it is made from ca (shared)",
                "cert of tin: made anew, for it is made from ca (shared)",
                "bundle of tin: made anew, for it is made from cert of tin"
            ]
        );
        assert_eq!(
            made(&snapshot, &Wish { all_again: true, ..wish(&["lead"], &["cert"], &[]) }),
            ["cert of lead: made anew, as you ask"]
        );
    }

    #[test]
    fn what_is_half_there_or_outdated_is_left_and_told() {
        let generators = fleet();
        let order = Order::of(&generators).unwrap();
        let mut snapshot = with(&ALL);
        let left = plan(&generators, &order, &snapshot, &wish(&[], &[], &[])).unwrap();
        assert!(left.make.is_empty());
        let [(_, State::Incomplete { has, lacks })] = &left.leave[..] else { panic!("{:?}", left.leave) };
        assert_eq!((has.len(), lacks.len()), (1, 1));
        snapshot.values.insert("vars/per-machine/tin/lone/b".into());
        for hash in [None, Some("v0")] {
            if let Some(hash) = hash {
                snapshot.hashes.insert("vars/per-machine/tin/lone".into(), hash.into());
            }
            let left = plan(&generators, &order, &snapshot, &wish(&[], &[], &[])).unwrap();
            assert!(matches!(&left.leave[..], [(_, State::Outdated)]), "{left:?}");
        }
    }

    #[test]
    fn one_that_needs_what_is_half_there_says_so() {
        let text = r#"{"tin":{"generators":{
            "base":{"share":false,"files":{"a":{"secret":true,"deploy":true},"b":{"secret":true,
            "deploy":true}}},
            "user":{"share":false,"dependencies":["base"],"files":{"f":{"secret":true,"deploy":true}}}}}}"#;
        let generators = generators(text).unwrap();
        let order = Order::of(&generators).unwrap();
        let snapshot = with(&["vars/per-machine/tin/base/a"]);
        let error = plan(&generators, &order, &snapshot, &wish(&[], &[], &[])).unwrap_err().to_string();
        assert_eq!(
            error,
            "user of tin needs base of tin, of which there is a and not b: make that anew with --regenerate \
             base"
        );
    }

    #[test]
    fn what_is_unknown_is_named_beside_what_is_known() {
        let generators = fleet();
        let told = |wish: &Wish| chosen(&generators, wish).unwrap_err().to_string();
        assert_eq!(
            told(&wish(&["gold"], &[], &[])),
            "the flake has no machine gold with a system; it has lead, tin"
        );
        assert_eq!(
            told(&wish(&["lead"], &["lone"], &[])),
            "none of these machines declares a generator lone; they declare ca, cert"
        );
    }
}
