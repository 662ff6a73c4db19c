//! Evaluating a flake: the machines that it describes, and the derivation of each.

use std::collections::BTreeSet;

use muster_protocol::ids::{MachineName, StorePath};
use muster_protocol::machine::{Class, MachineError, System, can_take};
use serde::Deserialize;

use super::discover::{Found, Outputs, discover};
use super::facts::Muster;
use super::inventory::{CLAN_OUTPUT, Inventory, OF_CLAN};
use super::nix::{EVALUATION_LIMIT, NixError, nix, run};
use super::systems::systems;

/// A flake, locked once: everything is read from the same source, whatever happens to the folder meanwhile.
#[derive(Debug)]
pub struct Flake {
    /// What the operator wrote.
    pub reference: String,
    url: String,
    nixos: BTreeSet<String>,
    darwin: BTreeSet<String>,
    /// What the flake says of its machines; their tags are those of every inventory.
    pub muster: Muster,
    /// Every machine that the flake tells of, and from where.
    pub found: Vec<Found>,
}

/// What one machine's system evaluates to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evaluated {
    pub class: Class,
    pub system: System,
    pub derivation: StorePath,
    pub output: StorePath,
}

#[derive(Debug, thiserror::Error)]
pub enum FlakeError {
    #[error("cannot read the flake {reference}")]
    Lock { reference: String, source: NixError },
    #[error("cannot evaluate {attribute} of {reference}")]
    Evaluate { reference: String, attribute: String, source: NixError },
    #[error("{attribute} of {reference} is not what it should be: {reason}")]
    Shape { reference: String, attribute: String, reason: String },
    #[error("the flake {reference} describes no machine {machine} in {output}; it has {known}")]
    NotInFlake { reference: String, machine: MachineName, output: &'static str, known: String },
    #[error("{machine} is a {wanted} machine, and the flake {reference} describes it in {output}")]
    OtherClass { reference: String, machine: MachineName, wanted: Class, output: &'static str },
    #[error("the system of {machine} cannot go to it")]
    CannotTake { machine: MachineName, source: MachineError },
}

/// What `nix flake metadata` prints.
#[doc(hidden)]
#[derive(Deserialize)]
pub struct Metadata {
    pub url: String,
}

/// What [`SYSTEM_FACTS`] makes `nix eval` print.
#[doc(hidden)]
#[derive(Deserialize)]
pub struct Facts {
    pub drv: String,
    pub out: String,
}

/// Settings are for people to look at, and would need every service to be evaluated.
const OF_MUSTER: &str = r#"muster: builtins.removeAttrs muster [ "settings" ]"#;

/// What counts as one system; the names keep clear of `outPath`, which Nix would print in place of the set.
const SYSTEM_FACTS: &str = "s: { drv = s.drvPath; out = s.outPath; }";

impl Flake {
    /// Locks the flake and lists what it describes; evaluates no system yet.
    pub async fn open(reference: &str) -> Result<Self, FlakeError> {
        let lock = |source| FlakeError::Lock { reference: reference.to_owned(), source };
        let printed =
            nix(&["flake", "metadata", "--json", reference], EVALUATION_LIMIT).await.map_err(lock)?;
        let metadata: Metadata = serde_json::from_slice(&printed)
            .map_err(|error| lock(NixError::Format { program: "nix", reason: error.to_string() }))?;
        let mut flake = Self {
            reference: reference.to_owned(),
            url: metadata.url,
            nixos: BTreeSet::new(),
            darwin: BTreeSet::new(),
            muster: Muster::default(),
            found: Vec::new(),
        };
        let names = |output| flake.optional(output, "builtins.attrNames");
        let (nixos, darwin, muster, clan) = tokio::try_join!(
            names(Class::Nixos.flake_output()),
            names(Class::Darwin.flake_output()),
            flake.optional("muster", OF_MUSTER),
            flake.optional(CLAN_OUTPUT, OF_CLAN),
        )?;
        let clan: Option<Inventory> = flake.parse(CLAN_OUTPUT, clan)?;
        let parsed = (
            flake.parse(Class::Nixos.flake_output(), nixos)?,
            flake.parse(Class::Darwin.flake_output(), darwin)?,
            flake.parse("muster", muster)?,
        );
        (flake.nixos, flake.darwin, flake.muster) = parsed;
        flake.found = discover(&Outputs {
            nixos: &flake.nixos,
            darwin: &flake.darwin,
            clan: clan.as_ref(),
            muster: &flake.muster,
        });
        for (machine, tags) in clan.iter().chain(&flake.muster.inventory).flat_map(Inventory::usable_tags) {
            flake.muster.machines.entry(machine).or_default().tags.extend(tags);
        }
        Ok(flake)
    }

    /// The flake as it was locked; read from nothing else, so that all that is said of it is of one moment.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Evaluates the systems of the machines whose inventory does not say them.
    pub async fn find_systems(&mut self, jobs: usize) {
        for class in Class::ALL {
            let unknown = |found: &&mut Found| found.system.is_none() && found.output() == Some(class);
            let names: Vec<String> =
                self.found.iter_mut().filter(unknown).map(|found| found.machine.clone()).collect();
            let mut told = systems(&self.url, class, &names, jobs).await;
            for found in self.found.iter_mut().filter(unknown) {
                match told.remove(&found.machine) {
                    Some(Ok(system)) => found.set_system(system),
                    Some(Err(reason)) => found.notes.push(format!("its system is not known: {reason}")),
                    None => {}
                }
            }
        }
    }

    fn names(&self, class: Class) -> &BTreeSet<String> {
        match class {
            Class::Nixos => &self.nixos,
            Class::Darwin => &self.darwin,
        }
    }

    /// The names in both outputs that could be machines.
    pub fn machines(&self) -> impl Iterator<Item = &str> {
        self.nixos.iter().chain(&self.darwin).map(String::as_str)
    }

    pub fn describes(&self, machine: &MachineName) -> bool {
        self.machines().any(|name| name == machine.as_str())
    }

    /// Evaluates one machine's system and asks whether it may go to it (I6).
    pub async fn evaluate(
        &self,
        machine: &MachineName,
        class: Class,
        system: &System,
    ) -> Result<Evaluated, FlakeError> {
        self.require_described(machine, class)?;
        let attribute = attribute(machine, class);
        let installable = format!("{}#{attribute}", self.url);
        let arguments = ["eval", "--json", "--no-write-lock-file", &installable, "--apply", SYSTEM_FACTS];
        let fail = |source| FlakeError::Evaluate {
            reference: self.reference.clone(),
            attribute: attribute.clone(),
            source,
        };
        let printed = nix(&arguments, EVALUATION_LIMIT).await.map_err(fail)?;
        let shape = |reason: String| FlakeError::Shape {
            reference: self.reference.clone(),
            attribute: attribute.clone(),
            reason,
        };
        let facts: Facts = serde_json::from_slice(&printed).map_err(|error| shape(error.to_string()))?;
        let derivation: StorePath = facts.drv.parse().map_err(|error| shape(format!("{error}")))?;
        let derivation = derivation.require_derivation().map_err(|error| shape(error.to_string()))?;
        let output = facts.out.parse().map_err(|error| shape(format!("{error}")))?;
        // The derivation itself is asked, not the attribute `system`, which a flake may set as it likes.
        let found = describe(&derivation).await.map_err(fail)?;
        can_take((class, system), class, &found.system)
            .map_err(|source| FlakeError::CannotTake { machine: machine.clone(), source })?;
        Ok(Evaluated { class, system: found.system, derivation, output })
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

    /// An output that a flake need not have; `null` where it has not.
    pub(crate) async fn optional(&self, output: &str, apply: &str) -> Result<serde_json::Value, FlakeError> {
        let installable = format!("{}#{output}", self.url);
        let arguments = ["eval", "--json", "--no-write-lock-file", &installable, "--apply", apply];
        match nix(&arguments, EVALUATION_LIMIT).await {
            Ok(printed) => serde_json::from_slice(&printed)
                .map_err(|error| NixError::Format { program: "nix", reason: error.to_string() }),
            Err(NixError::Failed(message)) if message.contains("does not provide attribute") => {
                Ok(serde_json::Value::Null)
            }
            Err(error) => Err(error),
        }
        .map_err(|source| FlakeError::Evaluate {
            reference: self.reference.clone(),
            attribute: output.to_owned(),
            source,
        })
    }

    /// What an output says; where the flake has no such output, what stands for that.
    pub(crate) fn parse<T: Default + serde::de::DeserializeOwned>(
        &self,
        output: &str,
        value: serde_json::Value,
    ) -> Result<T, FlakeError> {
        serde_json::from_value::<Option<T>>(value).map(Option::unwrap_or_default).map_err(|error| {
            FlakeError::Shape {
                reference: self.reference.clone(),
                attribute: output.to_owned(),
                reason: error.to_string(),
            }
        })
    }
}

/// Where a machine's system stands in a flake.
pub fn attribute(machine: &MachineName, class: Class) -> String {
    match class {
        Class::Nixos => format!("nixosConfigurations.\"{machine}\".config.system.build.toplevel"),
        Class::Darwin => format!("darwinConfigurations.\"{machine}\".system"),
    }
}

/// What a derivation in this store says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// The Nix system that it names as its builder's.
    pub system: System,
    /// Every path that it makes.
    pub outputs: Vec<String>,
}

/// Asks a derivation that is in this store.
pub async fn describe(derivation: &StorePath) -> Result<Described, NixError> {
    let path = derivation.as_str();
    let printed = match nix(&["derivation", "show", path], EVALUATION_LIMIT).await {
        // Before Nix 2.12 the command had another name.
        Err(NixError::Failed(_)) => nix(&["show-derivation", path], EVALUATION_LIMIT).await?,
        printed => printed?,
    };
    let format = |reason: String| NixError::Format { program: "nix derivation show", reason };
    let value = serde_json::from_slice(&printed).map_err(|error| format(error.to_string()))?;
    let (system, outputs) = described_in(&value).ok_or_else(|| format("it names no system".to_owned()))?;
    Ok(Described { system: system.parse().map_err(|error| format(format!("{error}")))?, outputs })
}

/// The one derivation's `system` and outputs, whether it stands under the path, or, as in newer versions, under
/// `derivations`, with the paths of outputs whole or without the store's folder.
#[doc(hidden)]
pub fn described_in(value: &serde_json::Value) -> Option<(&str, Vec<String>)> {
    let derivations = value.get("derivations").unwrap_or(value).as_object()?;
    let derivation = derivations.values().find(|derivation| derivation.get("system").is_some())?;
    let outputs = derivation.get("outputs").and_then(serde_json::Value::as_object);
    let paths = outputs.into_iter().flat_map(|outputs| outputs.values()).filter_map(|output| {
        let path = output.get("path")?.as_str()?;
        Some(if path.starts_with('/') { path.to_owned() } else { format!("/nix/store/{path}") })
    });
    Some((derivation.get("system")?.as_str()?, paths.collect()))
}

/// The names and versions in a derivation's closure, or `None` where this store does not hold it.
pub async fn closure(derivation: &StorePath) -> Option<BTreeSet<String>> {
    let limit = std::time::Duration::from_secs(60);
    run("nix-store", &["--check-validity", derivation.as_str()], limit).await.ok()?;
    let printed = run("nix-store", &["--query", "--requisites", derivation.as_str()], limit).await.ok()?;
    let lines = String::from_utf8(printed).ok()?;
    let paths = lines.lines().filter_map(|line| line.parse::<StorePath>().ok());
    Some(paths.filter_map(|path| path.name().strip_suffix(".drv").map(str::to_owned)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_shown_derivation_are_read() {
        let old = serde_json::json!({"/nix/store/x.drv": {
            "system": "x86_64-linux", "new": 1, "outputs": {"out": {"path": "/nix/store/a-x"}}}});
        let new = serde_json::json!({"version": 4, "derivations": {"x.drv": {
            "system": "aarch64-darwin", "outputs": {"out": {"path": "a-x"}, "floating": {}}}}});
        assert_eq!(described_in(&old), Some(("x86_64-linux", vec!["/nix/store/a-x".to_owned()])));
        assert_eq!(described_in(&new), Some(("aarch64-darwin", vec!["/nix/store/a-x".to_owned()])));
        assert_eq!(described_in(&serde_json::json!([])), None);
    }

    #[test]
    fn names_are_quoted_in_attributes() {
        let machine = "mac.local".parse().unwrap();
        assert_eq!(attribute(&machine, Class::Darwin), "darwinConfigurations.\"mac.local\".system");
    }
}
