//! Which generators depend on which, and in what order they run. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::generators::{Generator, Generators};
use super::names::{GeneratorId, Place, VarName};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    #[error("{generator} depends on {dependency}, which no machine of this flake declares for it")]
    Unknown { generator: GeneratorId, dependency: VarName },
    #[error(
        "{generator} depends on {dependency}, which is one machine's: what is shared can depend only on what \
         is shared"
    )]
    SharedOnOwn { generator: GeneratorId, dependency: VarName },
    #[error("these generators depend on one another in a circle: {0}; take one of the dependencies away")]
    Cycle(String),
}

/// The whole fleet's dependencies, resolved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Order {
    needs: BTreeMap<GeneratorId, BTreeSet<GeneratorId>>,
    /// Every generator, after everything that it needs.
    pub sorted: Vec<GeneratorId>,
}

impl Order {
    pub fn of(generators: &Generators) -> Result<Self, OrderError> {
        let mut needs = BTreeMap::new();
        for generator in generators.all.values() {
            let resolved = generator.dependencies.iter().map(|name| resolve(generators, generator, name));
            needs.insert(generator.id.clone(), resolved.collect::<Result<BTreeSet<_>, _>>()?);
        }
        let sorted = sort(&needs)?;
        Ok(Self { needs, sorted })
    }

    /// What a generator needs directly.
    pub fn needs(&self, id: &GeneratorId) -> impl Iterator<Item = &GeneratorId> {
        self.needs.get(id).into_iter().flatten()
    }

    /// What needs it directly.
    pub fn needed_by<'a>(&'a self, id: &'a GeneratorId) -> impl Iterator<Item = &'a GeneratorId> {
        self.needs.iter().filter(move |(_, needs)| needs.contains(id)).map(|(other, _)| other)
    }
}

fn resolve(generators: &Generators, of: &Generator, name: &VarName) -> Result<GeneratorId, OrderError> {
    let shared = GeneratorId { place: Place::Shared, name: name.clone() };
    if let Place::Machine(_) = &of.id.place {
        let own = GeneratorId { place: of.id.place.clone(), name: name.clone() };
        if generators.all.contains_key(&own) {
            return Ok(own);
        }
    }
    // A shared generator may be declared only by other machines.
    if generators.all.contains_key(&shared) {
        return Ok(shared);
    }
    let (generator, dependency) = (of.id.clone(), name.clone());
    match generators.all.keys().any(|id| id.name == *name) && of.id.place == Place::Shared {
        true => Err(OrderError::SharedOnOwn { generator, dependency }),
        false => Err(OrderError::Unknown { generator, dependency }),
    }
}

/// Depth first, in the order of names: the same fleet always has the same order.
fn sort(needs: &BTreeMap<GeneratorId, BTreeSet<GeneratorId>>) -> Result<Vec<GeneratorId>, OrderError> {
    let mut sorted = Vec::new();
    let mut done: BTreeSet<&GeneratorId> = BTreeSet::new();
    for start in needs.keys() {
        // The path so far, each with its dependencies that were not visited yet.
        let mut way: Vec<(&GeneratorId, Vec<&GeneratorId>)> = Vec::new();
        let enter = |id| (id, needs.get(id).into_iter().flatten().rev().collect::<Vec<_>>());
        if !done.contains(start) {
            way.push(enter(start));
        }
        while let Some((id, left)) = way.last_mut() {
            let id = *id;
            let Some(next) = left.pop() else {
                done.insert(id);
                sorted.push(id.clone());
                way.pop();
                continue;
            };
            if let Some(from) = way.iter().position(|(on_the_way, _)| *on_the_way == next) {
                let circle = way[from..].iter().map(|(id, _)| id.to_string()).chain([next.to_string()]);
                return Err(OrderError::Cycle(circle.collect::<Vec<_>>().join(" → ")));
            }
            if !done.contains(next) {
                way.push(enter(next));
            }
        }
    }
    Ok(sorted)
}

#[cfg(test)]
mod tests {
    use super::super::generators::tests::generators;
    use super::*;

    fn fleet(parts: &[(&str, &str, bool, &[&str])]) -> Generators {
        let mut machines: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (machine, name, share, needs) in parts {
            let needs = serde_json::to_string(needs).unwrap();
            machines.entry(machine).or_default().push(format!(
                r#""{name}":{{"share":{share},"dependencies":{needs},"files":{{"f":{{"secret":true,
                "deploy":true}}}}}}"#
            ));
        }
        let machines: Vec<String> = machines
            .into_iter()
            .map(|(machine, all)| format!(r#""{machine}":{{"generators":{{{}}}}}"#, all.join(",")))
            .collect();
        generators(&format!("{{{}}}", machines.join(","))).unwrap()
    }
    fn sorted(fleet: &Generators) -> Vec<String> {
        Order::of(fleet).unwrap().sorted.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_runs_after_what_it_needs() {
        let fleet = fleet(&[
            ("tin", "a", false, &["b", "ca"]),
            ("tin", "b", false, &["ca"]),
            ("lead", "a", false, &["ca"]),
            ("tin", "ca", true, &[]),
        ]);
        assert_eq!(sorted(&fleet), ["ca (shared)", "a of lead", "b of tin", "a of tin"]);
        let order = Order::of(&fleet).unwrap();
        let ca = order.sorted[0].clone();
        assert_eq!(order.needed_by(&ca).count(), 3);
        assert_eq!(order.needs(&order.sorted[3]).count(), 2);
    }

    #[test]
    fn a_circle_is_named() {
        let fleet =
            fleet(&[("tin", "a", false, &["b"]), ("tin", "b", false, &["c"]), ("tin", "c", false, &["b"])]);
        assert_eq!(
            Order::of(&fleet).unwrap_err().to_string(),
            "these generators depend on one another in a circle: b of tin → c of tin → b of tin; take one of \
             the dependencies away"
        );
        let fleet = self::fleet(&[("tin", "a", true, &["a"])]);
        assert!(Order::of(&fleet).unwrap_err().to_string().contains("a (shared) → a (shared)"));
    }

    #[test]
    fn a_dependency_that_is_not_there_is_named() {
        let fleet = fleet(&[("tin", "a", false, &["b"]), ("lead", "b", false, &[])]);
        let error = Order::of(&fleet).unwrap_err();
        assert!(matches!(error, OrderError::Unknown { .. }), "{error}");
        let fleet = self::fleet(&[("tin", "a", true, &["b"]), ("tin", "b", false, &[])]);
        assert!(matches!(Order::of(&fleet).unwrap_err(), OrderError::SharedOnOwn { .. }));
    }

    #[test]
    fn a_long_chain_does_not_overflow() {
        let names: Vec<String> = (0..2_000).map(|n| format!("g{n:05}")).collect();
        let needs: Vec<[&str; 1]> = names[1..].iter().map(|name| [name.as_str()]).collect();
        let mut parts: Vec<(&str, &str, bool, &[&str])> =
            needs.iter().zip(&names).map(|(needs, name)| ("tin", name.as_str(), false, &needs[..])).collect();
        parts.push(("tin", names[1_999].as_str(), false, &[]));
        let sorted = sorted(&fleet(&parts));
        assert_eq!(sorted[0], "g01999 of tin");
        assert_eq!(sorted.len(), 2_000);
    }
}
