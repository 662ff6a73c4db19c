//! What the systems of a flake's machines evaluate to: one derivation and one output each.

use std::collections::BTreeMap;

use muster_protocol::ids::{MachineName, StorePath};
use muster_protocol::machine::{Class, System, can_take};
use serde::Deserialize;
use serde_json::Value;

use super::derivations::{Derivations, Described};
use super::each::Question;
use super::evaluate::{Flake, FlakeError};
use super::nix::{EVALUATION_LIMIT, NixError};

/// What one machine's system evaluates to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evaluated {
    pub class: Class,
    pub system: System,
    pub derivation: StorePath,
    pub output: StorePath,
}

/// A machine whose system is wanted, and what it builds by the controller's record.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub machine: &'a MachineName,
    pub class: Class,
    pub system: &'a System,
}

/// What [`SYSTEM_FACTS`] makes `nix eval` print.
#[doc(hidden)]
#[derive(Deserialize)]
pub struct Facts {
    pub drv: String,
    pub out: String,
}

/// What makes up a system; the names avoid `outPath`, which Nix would print in place of the set.
const SYSTEM_FACTS: &str = "s: { drv = s.drvPath; out = s.outPath; }";

impl Flake {
    /// Evaluates the systems of these machines and checks that each may go to its machine (I6); in their
    /// order. `told` hears how many more have been evaluated.
    pub async fn evaluate(
        &self,
        wanted: &[Wanted<'_>],
        derivations: &mut Derivations,
        jobs: usize,
        told: impl Fn(usize),
    ) -> Vec<Result<Evaluated, FlakeError>> {
        let mut made: Vec<Result<(StorePath, StorePath), FlakeError>> = Vec::with_capacity(wanted.len());
        let mut values = BTreeMap::new();
        for class in Class::ALL {
            let here: Vec<&str> = wanted
                .iter()
                .filter(|one| one.class == class && self.names(class).contains(one.machine.as_str()))
                .map(|one| one.machine.as_str())
                .collect();
            let found = self.systems_of(class, &here, jobs, &told).await;
            values.extend(here.into_iter().map(|name| (class, name)).zip(found));
        }
        for one in wanted {
            let value = values.remove(&(one.class, one.machine.as_str()));
            made.push(match value {
                Some(value) => self.paths_in(one, value),
                None => self.require_described(one.machine, one.class).and_then(|()| {
                    let source = NixError::Failed("it was not evaluated".to_owned());
                    Err(self.failed(one, source))
                }),
            });
        }
        let paths: Vec<StorePath> = made.iter().flatten().map(|(derivation, _)| derivation.clone()).collect();
        let mut described = derivations.described(&paths).await.into_iter();
        let each = wanted.iter().zip(made).map(|(one, made)| {
            let (derivation, output) = made?;
            let nothing = || Err(NixError::Failed("its derivation was not read".to_owned()));
            let described = described.next().unwrap_or_else(nothing);
            let described = described.map_err(|source| self.failed(one, source))?;
            evaluated(one, derivation, output, described)
        });
        each.collect()
    }

    /// Each machine's value of [`SYSTEM_FACTS`], in the order of the names.
    async fn systems_of(
        &self,
        class: Class,
        names: &[&str],
        jobs: usize,
        told: impl Fn(usize),
    ) -> Vec<Result<Value, NixError>> {
        let path = match class {
            Class::Nixos => "config.system.build.toplevel",
            Class::Darwin => "system",
        };
        let function = format!("configuration: ({SYSTEM_FACTS}) configuration.{path}");
        let question =
            Question { output: class.flake_output(), function: &function, limit: EVALUATION_LIMIT };
        let alone = |name: String| async move {
            let printed = self.eval(&attribute(&name, class), SYSTEM_FACTS, EVALUATION_LIMIT).await?;
            serde_json::from_slice(&printed)
                .map_err(|error| NixError::Format { program: "nix", reason: error.to_string() })
        };
        self.eval_each(&question, names, jobs, (alone, told)).await
    }

    /// The derivation and the output that a machine's value names.
    fn paths_in(
        &self,
        one: &Wanted<'_>,
        value: Result<Value, NixError>,
    ) -> Result<(StorePath, StorePath), FlakeError> {
        let value = value.map_err(|source| self.failed(one, source))?;
        let shape = |reason: String| FlakeError::Shape {
            reference: self.reference.clone(),
            attribute: attribute(one.machine.as_str(), one.class),
            reason,
        };
        let facts: Facts = serde_json::from_value(value).map_err(|error| shape(error.to_string()))?;
        let derivation: StorePath = facts.drv.parse().map_err(|error| shape(format!("{error}")))?;
        let derivation = derivation.require_derivation().map_err(|error| shape(error.to_string()))?;
        Ok((derivation, facts.out.parse().map_err(|error| shape(format!("{error}")))?))
    }

    fn failed(&self, one: &Wanted<'_>, source: NixError) -> FlakeError {
        FlakeError::Evaluate {
            reference: self.reference.clone(),
            attribute: attribute(one.machine.as_str(), one.class),
            source,
        }
    }

    fn require_described(&self, machine: &MachineName, class: Class) -> Result<(), FlakeError> {
        if self.names(class).contains(machine.as_str()) {
            return Ok(());
        }
        let reference = self.reference.clone();
        for other in Class::ALL {
            if self.names(other).contains(machine.as_str()) {
                return Err(FlakeError::OtherClass {
                    reference,
                    machine: machine.clone(),
                    wanted: class,
                    output: other.flake_output(),
                });
            }
        }
        let known: Vec<&str> = self.names(class).iter().map(String::as_str).take(20).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Err(FlakeError::NotInFlake {
            reference,
            machine: machine.clone(),
            output: class.flake_output(),
            known,
        })
    }
}

/// Asks the derivation itself for its system, not the attribute `system`, which a flake may set freely.
fn evaluated(
    one: &Wanted<'_>,
    derivation: StorePath,
    output: StorePath,
    described: Described,
) -> Result<Evaluated, FlakeError> {
    can_take((one.class, one.system), one.class, &described.system)
        .map_err(|source| FlakeError::CannotTake { machine: one.machine.clone(), source })?;
    Ok(Evaluated { class: one.class, system: described.system, derivation, output })
}

/// The attribute of a machine's system in a flake.
fn attribute(machine: &str, class: Class) -> String {
    match class {
        Class::Nixos => format!("nixosConfigurations.\"{machine}\".config.system.build.toplevel"),
        Class::Darwin => format!("darwinConfigurations.\"{machine}\".system"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_in_attributes() {
        assert_eq!(attribute("mac.local", Class::Darwin), "darwinConfigurations.\"mac.local\".system");
    }
}
