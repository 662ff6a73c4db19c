//! The finished scripts of generators. A script runs on the operator's computer, so its programs must be of that system:
//! Clan evaluates each machine once more with such packages (`clanInternals.machines.SYSTEM`), and other flakes' machines
//! are extended by this in the same way. The machine's own system is never built here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_protocol::ids::{MachineName, StorePath};
use muster_protocol::machine::Class;
use serde::Deserialize;

use super::{VarsFlake, VarsFlakeError};
use crate::flake::nix::{EVALUATION_LIMIT, NixError, nix, run};
use crate::vars::generators::{Generator, Generators};

/// The longest that building one script, or fetching its programs, may take.
const BUILD_LIMIT: Duration = Duration::from_secs(60 * 60);

/// A script that can be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    pub path: StorePath,
    /// bash, by its name in the store.
    pub bash: PathBuf,
}

#[derive(Deserialize)]
struct Told {
    script: Built,
    bash: Built,
}

#[derive(Deserialize)]
struct Built {
    /// What is to be realised, as `DERIVATION!OUTPUTS`.
    drvs: Vec<String>,
    out: StorePath,
}

/// The configuration with packages of the operator's system, wherever its own come from.
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

const SCRIPT: &str = r#"
configuration:
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
in
{
  script = built generators.${generator}.finalScript;
  bash = built (configuration.pkgs or configuration._module.args.pkgs).bash;
}
"#;

impl VarsFlake {
    /// Evaluates and builds a generator's script.
    pub async fn script(
        &self,
        generators: &Generators,
        generator: &Generator,
    ) -> Result<Script, VarsFlakeError> {
        let told = self.evaluate(generators, generator).await?;
        let drvs: Vec<&str> = told.script.drvs.iter().chain(&told.bash.drvs).map(String::as_str).collect();
        if !drvs.is_empty() {
            let arguments = [&["--realise"], &drvs[..]].concat();
            run("nix-store", &arguments, BUILD_LIMIT)
                .await
                .map_err(|source| VarsFlakeError::Build { generator: generator.id.clone(), source })?;
        }
        Ok(Script { path: told.script.out, bash: Path::new(told.bash.out.as_str()).join("bin/bash") })
    }

    async fn evaluate(&self, generators: &Generators, generator: &Generator) -> Result<Told, VarsFlakeError> {
        let failed = |source| VarsFlakeError::Script {
            generator: generator.id.clone(),
            system: self.system.clone(),
            source,
        };
        // Of the machines that share one, one of this computer's class needs no other packages.
        let class = |machine: &MachineName| generators.machines.get(machine).copied().unwrap_or(Class::Nixos);
        let here = self
            .system
            .parse()
            .map_or(Class::Nixos, |system: muster_protocol::machine::System| system.class());
        let machine = generator.machines.iter().min_by_key(|machine| class(machine) != here);
        let Some(machine) = machine else {
            return Err(failed(NixError::Failed("no machine declares it".into())));
        };
        let (attribute, adapt) = match self.is_clan {
            true => (self.clan_attribute(), "it: it"),
            false => (class(machine).flake_output().to_owned(), FOR_OPERATOR),
        };
        let apply = format!(
            "all: let operator = {}; generator = {}; in ({SCRIPT}) (({adapt}) all.{})",
            nix_string(&self.system),
            nix_string(generator.id.name.as_str()),
            nix_string(machine.as_str()),
        );
        let installable = format!("{}#{attribute}", self.flake.url());
        let arguments = ["eval", "--json", "--no-write-lock-file", &installable, "--apply", &apply];
        let printed = nix(&arguments, EVALUATION_LIMIT).await.map_err(failed)?;
        serde_json::from_slice(&printed)
            .map_err(|error| failed(NixError::Format { program: "nix", reason: error.to_string() }))
    }
}

/// Where the store's files lie: below another root, if Nix was told of one (`local?root=`).
pub fn physical_store() -> PathBuf {
    let remote = std::env::var("NIX_REMOTE").unwrap_or_default();
    let root = remote.split_once("root=").map(|(_, rest)| rest.split('&').next().unwrap_or(rest));
    root.map_or_else(|| PathBuf::from("/nix/store"), |root| Path::new(root).join("nix/store"))
}

/// A string of the Nix language.
pub fn nix_string(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace("${", "\\${");
    format!("\"{escaped}\"")
}

pub fn nix_list<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<String> = texts.map(nix_string).collect();
    format!("[ {} ]", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_quotes() {
        assert_eq!(nix_list([r#"a"b"#, "${x}", r"c\"].into_iter()), r#"[ "a\"b" "\${x}" "c\\" ]"#);
    }
}
