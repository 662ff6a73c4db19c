//! The finished scripts of generators. A script runs on the operator's computer, so its programs must be
//! built for that system: Clan evaluates each machine once more with such packages
//! (`clanInternals.machines.SYSTEM`), and machines of other flakes are extended in the same way here. The
//! machine's own system is never built here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_protocol::ids::{MachineName, StorePath};
use muster_protocol::machine::{Class, System};
use serde::Deserialize;

use super::opened::{VarsFlake, VarsFlakeError};
use crate::flake::nix::{EVALUATION_LIMIT, NixError, run};
use crate::flake::text::{nix_list, nix_string};
use crate::vars::generators::{Generator, Generators};
use crate::vars::names::GeneratorId;

/// The time limit for building scripts and fetching their programs.
const BUILD_LIMIT: Duration = Duration::from_secs(60 * 60);

/// A script that can be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    pub path: StorePath,
    /// bash, by its name in the store.
    pub bash: PathBuf,
}

#[derive(Clone, Deserialize)]
struct Derivations {
    script: Built,
    bash: Built,
}

#[derive(Clone, Deserialize)]
struct Built {
    /// What to realise, as `DERIVATION!OUTPUTS`.
    drvs: Vec<String>,
    out: StorePath,
}

/// The configuration with packages for the operator's system.
const FOR_OPERATOR: &str = r#"
configuration:
let
  packages = configuration.pkgs or configuration._module.args.pkgs;
in
if packages.stdenv.hostPlatform.system == operator then
  configuration
else
  configuration.extendModules {
    modules = [
      {
        _module.args.pkgs = {
          _type = "override";
          priority = 10;
          content = import packages.path {
            system = operator;
            config = packages.config or { };
            overlays = packages.overlays or [ ];
          };
        };
      }
    ];
  }
"#;

/// The scripts of some generators of one configuration; null for those that cannot be evaluated.
const SCRIPTS: &str = r#"
configuration: names:
let
  inherit (configuration) config;
  generators = config.clan.core.vars.generators or config.muster.vars.generators;
  built = value: {
    drvs = builtins.concatMap (
      name:
      let
        outputs = (builtins.getContext "${value}").${name}.outputs or [ ];
      in
      if outputs == [ ] then [ ] else [ (name + "!" + builtins.concatStringsSep "," outputs) ]
    ) (builtins.attrNames (builtins.getContext "${value}"));
    out = builtins.unsafeDiscardStringContext "${value}";
  };
  script = name: {
    script = built generators.${name}.finalScript;
    bash = built (configuration.pkgs or configuration._module.args.pkgs).bash;
  };
  attempt =
    name:
    let
      tried = builtins.tryEval (builtins.deepSeq (script name) (script name));
    in
    if tried.success then tried.value else null;
in
builtins.listToAttrs (map (name: { inherit name; value = TRIED name; }) names)
"#;

/// The attribute of the configurations, how to adapt them, and the generators wanted from each machine.
type Group<'a> = (String, &'static str, BTreeMap<MachineName, Vec<&'a Generator>>);

pub type Scripts = BTreeMap<GeneratorId, Result<Script, VarsFlakeError>>;

impl VarsFlake {
    /// Evaluates and builds the scripts of these generators: one evaluation, one build.
    pub async fn scripts(
        &self,
        generators: &Generators,
        wanted: &[&Generator],
    ) -> Result<Scripts, VarsFlakeError> {
        let mut scripts = Scripts::new();
        let mut drvs = BTreeSet::new();
        for (attribute, adapt, machines) in self.groups(generators, wanted) {
            let together = self.evaluate(&attribute, adapt, &machines, "attempt").await.unwrap_or_default();
            for (machine, wanted) in &machines {
                for generator in wanted {
                    let name = generator.id.name.as_str();
                    let built =
                        together.get(machine.as_str()).and_then(|all| all.get(name)).cloned().flatten();
                    let built = match built {
                        Some(built) => Ok(built),
                        // Alone, for its own error message.
                        None => self.alone(&attribute, adapt, machine, generator).await,
                    };
                    let script = built.map(|built| {
                        drvs.extend(built.script.drvs.into_iter().chain(built.bash.drvs));
                        Script {
                            path: built.script.out,
                            bash: Path::new(built.bash.out.as_str()).join("bin/bash"),
                        }
                    });
                    scripts.insert(generator.id.clone(), script);
                }
            }
        }
        if !drvs.is_empty() {
            let drvs: Vec<&str> = drvs.iter().map(String::as_str).collect();
            let arguments = [&["--realise"], &drvs[..]].concat();
            run("nix-store", &arguments, BUILD_LIMIT).await.map_err(VarsFlakeError::Build)?;
        }
        Ok(scripts)
    }

    /// Groups generators by the configuration that provides their scripts.
    fn groups<'a>(&self, generators: &Generators, wanted: &[&'a Generator]) -> Vec<Group<'a>> {
        let class = |machine: &MachineName| generators.machines.get(machine).copied().unwrap_or(Class::Nixos);
        let here = self.system.parse().map_or(Class::Nixos, |system: System| system.class());
        let mut groups: BTreeMap<String, BTreeMap<MachineName, Vec<&'a Generator>>> = BTreeMap::new();
        for generator in wanted {
            // Of the machines that share a generator, one of this computer's class needs no other packages.
            let Some(machine) = generator.machines.iter().min_by_key(|machine| class(machine) != here) else {
                continue;
            };
            let attribute = match self.is_clan {
                true => self.clan_attribute(),
                false => class(machine).flake_output().to_owned(),
            };
            groups.entry(attribute).or_default().entry(machine.clone()).or_default().push(generator);
        }
        let adapt = if self.is_clan { "it: it" } else { FOR_OPERATOR };
        groups.into_iter().map(|(attribute, machines)| (attribute, adapt, machines)).collect()
    }

    async fn alone(
        &self,
        attribute: &str,
        adapt: &str,
        machine: &MachineName,
        generator: &Generator,
    ) -> Result<Derivations, VarsFlakeError> {
        let only = BTreeMap::from([(machine.clone(), vec![generator])]);
        let failed = |source| VarsFlakeError::Script {
            generator: generator.id.clone(),
            system: self.system.clone(),
            source,
        };
        let mut evaluated = self.evaluate(attribute, adapt, &only, "script").await.map_err(failed)?;
        let built = evaluated
            .get_mut(machine.as_str())
            .and_then(|all| all.remove(generator.id.name.as_str()))
            .flatten();
        built.ok_or_else(|| failed(NixError::Failed("Nix said nothing of it".into())))
    }

    async fn evaluate(
        &self,
        attribute: &str,
        adapt: &str,
        machines: &BTreeMap<MachineName, Vec<&Generator>>,
        tried: &str,
    ) -> Result<BTreeMap<String, BTreeMap<String, Option<Derivations>>>, NixError> {
        let wanted: Vec<String> = machines
            .iter()
            .map(|(machine, wanted)| {
                let names = nix_list(wanted.iter().map(|generator| generator.id.name.as_str()));
                format!("{} = {names};", nix_string(machine.as_str()))
            })
            .collect();
        let apply = format!(
            "all: let operator = {}; in builtins.mapAttrs (machine: names: ({}) (({adapt}) all.${{machine}}) \
             names) {{ {} }}",
            nix_string(&self.system),
            SCRIPTS.replace("TRIED", tried),
            wanted.join(" "),
        );
        let printed = self.flake.eval(attribute, &apply, EVALUATION_LIMIT).await?;
        serde_json::from_slice(&printed)
            .map_err(|error| NixError::Format { program: "nix", reason: error.to_string() })
    }
}

/// Where the store's files are: below another root if Nix was told of one (`local?root=`).
pub fn physical_store() -> PathBuf {
    let remote = std::env::var("NIX_REMOTE").unwrap_or_default();
    let root = remote.split_once("root=").map(|(_, rest)| rest.split('&').next().unwrap_or(rest));
    root.map_or_else(|| PathBuf::from("/nix/store"), |root| Path::new(root).join("nix/store"))
}
