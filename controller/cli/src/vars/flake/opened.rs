//! A flake in a folder, and the generators that it declares.

use std::collections::BTreeMap;
use std::path::PathBuf;

use muster_protocol::ids::MachineName;
use muster_protocol::machine::Class;
use serde::Deserialize;

use super::folder::{self, FolderError};
use crate::flake::evaluate::{Flake, FlakeError};
use crate::flake::inventory::CLAN_OUTPUT;
use crate::flake::nix::{EVALUATION_LIMIT, NixError, run};
use crate::flake::text::nix_list;
use crate::vars::generators::{DeclarationError, Declared, Generators};
use crate::vars::names::GeneratorId;

#[derive(Debug, thiserror::Error)]
pub enum VarsFlakeError {
    #[error(transparent)]
    Flake(#[from] FlakeError),
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Declaration(#[from] DeclarationError),
    #[error("the generators of {what} cannot be evaluated: {source}")]
    Evaluate { what: String, source: NixError },
    #[error("the generators of {what} are not what they should be: {reason}")]
    Shape { what: String, reason: String },
    #[error("the script of {generator} cannot be evaluated for {system}: {source}")]
    Script { generator: GeneratorId, system: String, source: NixError },
    #[error("the scripts of generators, or the programs that they use, cannot be built: {0}")]
    Build(NixError),
    #[error("Nix does not say which system it builds for: {0}")]
    System(NixError),
}

/// Reads the generators' declarations of one configuration without evaluating scripts or values. Uses Clan's
/// names if it has Clan's options, otherwise Muster's.
const DESCRIBE: &str = r#"
configuration:
let
  inherit (configuration) config;
  core = config.clan.core or { };
  generators = core.vars.generators or config.muster.vars.generators or { };
in
{
  store = core.vars.settings.secretStore or null;
  groups = core.sops.defaultGroups or config.muster.vars.defaultGroups or [ ];
  generators = builtins.mapAttrs (_: generator: {
    inherit (generator) share;
    dependencies =
      if builtins.isAttrs generator.dependencies then
        builtins.attrNames generator.dependencies
      else
        generator.dependencies;
    validationHash = generator.validationHash or null;
    prompts = builtins.mapAttrs (_: prompt: { inherit (prompt) type description persist; }) generator.prompts;
    files = builtins.mapAttrs (_: file: {
      inherit (file) secret deploy;
      neededFor = file.neededFor or null;
    }) generator.files;
  }) generators;
}
"#;

/// What is read of a Clan: its folder in the flake, and the systems for which it evaluates its machines.
const OF_CLAN: &str = r#"
clan: {
  folder = clan.inventoryClass.relativeDirectory or "";
  systems = builtins.attrNames (clan.machines or { });
}
"#;

#[derive(Debug, Default, Deserialize)]
struct Clan {
    folder: String,
    systems: Vec<String>,
}

/// The fleet's folder in a flake, without evaluating its machines.
pub async fn root_of(reference: &str) -> Result<PathBuf, VarsFlakeError> {
    let folder = folder::local(reference).await?;
    // If the fleet's folder is the flake's own, as usual, nothing needs to be evaluated.
    if ["vars", "sops"].iter().any(|name| folder.join(name).is_dir()) {
        return Ok(folder);
    }
    Ok(VarsFlake::open(reference).await?.root)
}

/// A flake in a folder, and what it declares.
#[derive(Debug)]
pub struct VarsFlake {
    pub(super) flake: Flake,
    /// The fleet's folder, with `vars/` and `sops/`.
    pub root: PathBuf,
    /// The Nix system of this computer.
    pub system: String,
    /// Whether its machines are evaluated the way Clan does it, for this computer's system.
    pub(super) is_clan: bool,
}

impl VarsFlake {
    pub async fn open(reference: &str) -> Result<Self, VarsFlakeError> {
        let flake = Flake::open(reference).await?;
        let folder = folder::local(reference).await?;
        let system =
            run("nix-instantiate", &["--eval", "--json", "-E", "builtins.currentSystem"], EVALUATION_LIMIT);
        let (system, clan) =
            tokio::try_join!(async { system.await.map_err(VarsFlakeError::System) }, async {
                let clan = flake.optional(CLAN_OUTPUT, OF_CLAN).await?;
                Ok(flake.parse::<Clan>(CLAN_OUTPUT, clan)?)
            })?;
        let system: String = serde_json::from_slice(&system).map_err(|error| {
            VarsFlakeError::System(NixError::Format { program: "nix-instantiate", reason: error.to_string() })
        })?;
        let is_clan = clan.systems.contains(&system);
        // Paths in a flake never lead out of it.
        let root = folder.join(clan.folder.trim_matches('/'));
        Ok(Self { flake, root, system, is_clan })
    }

    /// The flake itself, for Nix's warnings.
    pub fn flake(&self) -> &Flake {
        &self.flake
    }

    /// All generators of all machines.
    pub async fn generators(&self) -> Result<Generators, VarsFlakeError> {
        let mut declared: BTreeMap<MachineName, (Class, Declared)> = BTreeMap::new();
        let classes = self.classes();
        for (attribute, names) in self.attributes(&classes) {
            for (name, it) in self.describe(&attribute, &names).await? {
                if let (Ok(machine), Some(class)) = (name.parse::<MachineName>(), classes.get(&name)) {
                    declared.insert(machine, (*class, it));
                }
            }
        }
        Ok(Generators::join(declared)?)
    }

    /// The machines that have a system, by name. Names that Muster cannot use are skipped.
    fn classes(&self) -> BTreeMap<String, Class> {
        let found = self.flake.found.iter();
        found
            .filter(|found| found.machine.parse::<MachineName>().is_ok())
            .filter_map(|found| Some((found.machine.clone(), found.output()?)))
            .collect()
    }

    /// The attributes with configurations, and the machines looked up in each.
    fn attributes(&self, classes: &BTreeMap<String, Class>) -> Vec<(String, Vec<String>)> {
        if self.is_clan {
            return vec![(self.clan_attribute(), classes.keys().cloned().collect())];
        }
        let of =
            |class: Class| classes.iter().filter(move |(_, it)| **it == class).map(|(name, _)| name.clone());
        let all = Class::ALL.map(|class| (class.flake_output().to_owned(), of(class).collect::<Vec<_>>()));
        all.into_iter().filter(|(_, names)| !names.is_empty()).collect()
    }

    pub(super) fn clan_attribute(&self) -> String {
        format!("{}.machines.\"{}\"", CLAN_OUTPUT, self.system)
    }

    /// All at once; if that fails, one by one, so that a mistake is reported for the machine that has it.
    async fn describe(
        &self,
        attribute: &str,
        names: &[String],
    ) -> Result<BTreeMap<String, Declared>, VarsFlakeError> {
        if let Ok(declared) = self.ask(attribute, names).await {
            return Ok(declared);
        }
        let mut all = BTreeMap::new();
        for name in names {
            all.extend(self.ask(attribute, std::slice::from_ref(name)).await?);
        }
        Ok(all)
    }

    async fn ask(
        &self,
        attribute: &str,
        names: &[String],
    ) -> Result<BTreeMap<String, Declared>, VarsFlakeError> {
        let what = names.join(", ");
        let apply = format!(
            "all: builtins.listToAttrs (map (name: {{ inherit name; value = ({DESCRIBE}) all.${{name}}; }}) \
             {})",
            nix_list(names.iter().map(String::as_str))
        );
        let printed = self
            .flake
            .eval(attribute, &apply, EVALUATION_LIMIT)
            .await
            .map_err(|source| VarsFlakeError::Evaluate { what: what.clone(), source })?;
        serde_json::from_slice(&printed)
            .map_err(|error| VarsFlakeError::Shape { what, reason: error.to_string() })
    }
}
