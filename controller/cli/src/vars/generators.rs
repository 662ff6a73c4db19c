//! The generators of a fleet, as declared in its flake. Pure: `flake` evaluates; this parses the result and
//! joins what several machines share.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::ids::MachineName;
use muster_protocol::machine::Class;
use serde::{Deserialize, Serialize};

use super::names::{GeneratorId, NameError, Place, VarName};

/// What Nix prints of one machine.
#[derive(Debug, Clone, Deserialize)]
pub struct Declared {
    /// `sops`, or a store of Clan's that Muster does not support.
    #[serde(default)]
    pub store: Option<String>,
    /// The groups that every new secret is encrypted to.
    #[serde(default)]
    pub groups: BTreeSet<String>,
    #[serde(default)]
    pub generators: BTreeMap<String, DeclaredGenerator>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeclaredGenerator {
    pub share: bool,
    #[serde(default)]
    pub dependencies: Vec<String>,
    #[serde(default)]
    pub validation_hash: Option<String>,
    #[serde(default)]
    pub prompts: BTreeMap<String, Prompt>,
    #[serde(default)]
    pub files: BTreeMap<String, DeclaredFile>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeclaredFile {
    pub secret: bool,
    pub deploy: bool,
    #[serde(default)]
    pub needed_for: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Prompt {
    #[serde(rename = "type")]
    pub kind: PromptKind,
    pub description: String,
    /// Stored as a file of the same name.
    pub persist: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromptKind {
    Line,
    Hidden,
    Multiline,
    MultilineHidden,
}

impl PromptKind {
    pub fn is_hidden(self) -> bool {
        matches!(self, Self::Hidden | Self::MultilineHidden)
    }
    pub fn has_lines(self) -> bool {
        matches!(self, Self::Multiline | Self::MultilineHidden)
    }
}

/// One file of a generator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub secret: bool,
    /// The machines that may read it.
    pub readers: BTreeSet<MachineName>,
    pub needed_for: Option<String>,
}

/// One generator of the fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generator {
    pub id: GeneratorId,
    /// The machines that declare it: one, or all that share it.
    pub machines: BTreeSet<MachineName>,
    pub files: BTreeMap<VarName, File>,
    pub prompts: BTreeMap<VarName, Prompt>,
    /// As the flake names them; `order` resolves them.
    pub dependencies: BTreeSet<VarName>,
    pub validation: Option<String>,
    /// The groups of the machines that declare it.
    pub groups: BTreeSet<String>,
}

impl Generator {
    pub fn secrets(&self) -> impl Iterator<Item = (&VarName, &File)> {
        self.files.iter().filter(|(_, file)| file.secret)
    }
}

/// All generators of a fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Generators {
    pub all: BTreeMap<GeneratorId, Generator>,
    pub machines: BTreeMap<MachineName, Class>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeclarationError {
    #[error("{machine} declares a generator, file or prompt that cannot be one: {source}")]
    Name { machine: MachineName, source: NameError },
    #[error(
        "{machine} keeps its secrets with '{store}', and Muster reads those of sops: set \
         vars.settings.secretStore to \"sops\""
    )]
    Store { machine: MachineName, store: String },
    #[error(
        "{first} and {second} share the generator {generator} and declare other {what} for it: declare it \
         the same on both"
    )]
    Conflict { first: MachineName, second: MachineName, generator: VarName, what: &'static str },
    #[error("{generator} of {machine} declares no file: give it one in `files`")]
    NoFile { machine: MachineName, generator: VarName },
}

impl Generators {
    /// Joins the declarations of all machines.
    pub fn join(declared: BTreeMap<MachineName, (Class, Declared)>) -> Result<Self, DeclarationError> {
        let mut joined = Self::default();
        for (machine, (class, declared)) in declared {
            if let Some(store) = declared.store.filter(|store| store != "sops")
                && !declared.generators.is_empty()
            {
                return Err(DeclarationError::Store { machine, store });
            }
            for (name, generator) in declared.generators {
                let name_error = |source| DeclarationError::Name { machine: machine.clone(), source };
                let name: VarName = name.parse().map_err(name_error)?;
                let generator = read(&machine, name, generator, &declared.groups).map_err(name_error)?;
                if generator.files.is_empty() {
                    return Err(DeclarationError::NoFile { machine, generator: generator.id.name });
                }
                joined.add(generator)?;
            }
            joined.machines.insert(machine, class);
        }
        Ok(joined)
    }

    fn add(&mut self, new: Generator) -> Result<(), DeclarationError> {
        let Some(known) = self.all.get_mut(&new.id) else {
            self.all.insert(new.id.clone(), new);
            return Ok(());
        };
        if let Some(what) = difference(known, &new)
            && let (Some(first), Some(second)) = (known.machines.first(), new.machines.first())
        {
            return Err(DeclarationError::Conflict {
                first: first.clone(),
                second: second.clone(),
                generator: new.id.name,
                what,
            });
        }
        known.machines.extend(new.machines);
        known.groups.extend(new.groups);
        for (name, file) in new.files {
            if let Some(known) = known.files.get_mut(&name) {
                known.readers.extend(file.readers);
            }
        }
        Ok(())
    }

    /// The generators that a machine declares.
    pub fn of<'a>(&'a self, machine: &'a MachineName) -> impl Iterator<Item = &'a Generator> {
        self.all.values().filter(move |generator| generator.machines.contains(machine))
    }

    /// The generator of this name that a machine declares.
    pub fn find(&self, machine: &MachineName, name: &VarName) -> Option<&Generator> {
        let own = GeneratorId { place: Place::Machine(machine.clone()), name: name.clone() };
        let shared = GeneratorId { place: Place::Shared, name: name.clone() };
        self.all
            .get(&own)
            .or_else(|| self.all.get(&shared).filter(|generator| generator.machines.contains(machine)))
    }
}

/// What a shared generator must have in common on all machines. Which machine may read a file is up to each
/// machine.
fn difference(known: &Generator, new: &Generator) -> Option<&'static str> {
    let files = |generator: &Generator| -> BTreeMap<VarName, bool> {
        generator.files.iter().map(|(name, file)| (name.clone(), file.secret)).collect()
    };
    if files(known) != files(new) {
        Some("files")
    } else if known.prompts != new.prompts {
        Some("prompts")
    } else if known.dependencies != new.dependencies {
        Some("dependencies")
    } else if known.validation != new.validation {
        Some("validation")
    } else {
        None
    }
}

fn read(
    machine: &MachineName,
    name: VarName,
    declared: DeclaredGenerator,
    groups: &BTreeSet<String>,
) -> Result<Generator, NameError> {
    let place = if declared.share { Place::Shared } else { Place::Machine(machine.clone()) };
    let file = |(name, file): (String, DeclaredFile)| -> Result<(VarName, File), NameError> {
        let readers = (file.secret && file.deploy).then(|| machine.clone()).into_iter().collect();
        Ok((name.parse()?, File { secret: file.secret, readers, needed_for: file.needed_for }))
    };
    Ok(Generator {
        id: GeneratorId { place, name },
        machines: BTreeSet::from([machine.clone()]),
        files: declared.files.into_iter().map(file).collect::<Result<_, _>>()?,
        prompts: declared
            .prompts
            .into_iter()
            .map(|(name, prompt)| Ok((name.parse()?, prompt)))
            .collect::<Result<_, NameError>>()?,
        dependencies: declared.dependencies.iter().map(|name| name.parse()).collect::<Result<_, _>>()?,
        validation: declared.validation_hash,
        groups: groups.clone(),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Generators of machines, from the JSON that Nix prints for each: `{"tin": {"x": {...}}}`. Names with
    /// `mac` are Macs.
    pub fn generators(text: &str) -> Result<Generators, DeclarationError> {
        let machines: BTreeMap<MachineName, Declared> = serde_json::from_str(text).unwrap();
        let class = |name: &MachineName| {
            if name.as_str().contains("mac") { Class::Darwin } else { Class::Nixos }
        };
        Generators::join(machines.into_iter().map(|(name, it)| (name.clone(), (class(&name), it))).collect())
    }

    fn shared(deploy: bool, validation: &str) -> String {
        format!(
            r#"{{"share":true,"validationHash":{validation},"files":{{"key":{{"secret":true,
            "deploy":{deploy}}},
            "pub":{{"secret":false,"deploy":true}}}}}}"#
        )
    }

    #[test]
    fn what_machines_share_is_joined_with_the_readers_of_each() {
        let text = format!(
            r#"{{"tin":{{"groups":["admins"],"generators":{{"ca":{}}}}},"mac":{{"generators":{{"ca":{},
            "own":{{"share":false,"dependencies":["ca"],"files":{{"x":{{"secret":true,
            "deploy":true}}}}}}}}}}}}"#,
            shared(false, "null"),
            shared(true, "null")
        );
        let found = generators(&text).unwrap();
        let mac: MachineName = "mac".parse().unwrap();
        let ca = found.find(&mac, &"ca".parse().unwrap()).unwrap();
        assert_eq!(ca.machines.len(), 2);
        let readers: Vec<&str> =
            ca.files[&"key".parse().unwrap()].readers.iter().map(MachineName::as_str).collect();
        assert_eq!(readers, ["mac"]);
        assert!(ca.files[&"pub".parse().unwrap()].readers.is_empty(), "what is public needs no reader");
        assert_eq!(ca.groups, BTreeSet::from(["admins".to_owned()]));
        assert_eq!(found.of(&mac).count(), 2);
        assert_eq!(found.machines[&mac], Class::Darwin);
    }

    #[test]
    fn machines_that_declare_a_shared_generator_differently_are_named() {
        let text = format!(
            r#"{{"tin":{{"generators":{{"ca":{}}}}},"lead":{{"generators":{{"ca":{}}}}}}}"#,
            shared(true, "null"),
            shared(true, r#""ab""#)
        );
        assert_eq!(
            generators(&text).unwrap_err().to_string(),
            "lead and tin share the generator ca and declare other validation for it: declare it the same on \
             both"
        );
    }

    #[test]
    fn names_that_lead_elsewhere_and_other_stores_are_refused() {
        let escape =
            r#"{"tin":{"generators":{"../x":{"share":false,"files":{"y":{"secret":true,"deploy":true}}}}}}"#;
        assert!(generators(escape).unwrap_err().to_string().contains("'../x'"));
        let file =
            r#"{"tin":{"generators":{"x":{"share":false,"files":{"a/b":{"secret":true,"deploy":true}}}}}}"#;
        assert!(generators(file).unwrap_err().to_string().contains("'a/b'"));
        let store = r#"{"tin":{"store":"password-store","generators":{"x":{"share":false,"files":{}}}}}"#;
        assert!(generators(store).unwrap_err().to_string().contains("'password-store'"));
        let none = r#"{"tin":{"generators":{"x":{"share":false,"files":{}}}}}"#;
        assert!(generators(none).unwrap_err().to_string().contains("no file"));
    }
}
