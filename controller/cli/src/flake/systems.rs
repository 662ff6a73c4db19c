//! The Nix systems of machines whose inventory does not name them. Only this much of a configuration is
//! evaluated.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use muster_protocol::machine::{Class, System};

use super::discover::Found;
use super::evaluate::Flake;
use super::nix::NixError;
use super::text::nix_string;

/// A machine's system follows from its modules, without its packages; an evaluation that takes this long
/// hangs.
const SYSTEM_LIMIT: Duration = Duration::from_secs(10 * 60);

/// The system of a configuration: the platform set by its modules, that of the finished system, or that of
/// its packages. Errors are skipped except for the last, so that there is one to report.
const SYSTEM_OF: &str = r#"
configuration:
let
  platform = configuration.config.nixpkgs.hostPlatform or null;
  first =
    candidates:
    let
      tried = builtins.tryEval (builtins.head candidates);
    in
    if candidates == [ ] then
      configuration.pkgs.stdenv.hostPlatform.system or null
    else if builtins.isString tried.value then
      tried.value
    else
      first (builtins.tail candidates);
in
first [
  (platform.system or platform)
  (configuration.config.nixpkgs.system or null)
  (configuration.config.system.build.toplevel.system or null)
  (configuration.system.system or null)
]
"#;

impl Flake {
    /// Evaluates the missing systems of the wanted machines.
    pub async fn find_systems(&mut self, jobs: usize, wanted: impl Fn(&str) -> bool) {
        for class in Class::ALL {
            let unknown = |found: &&mut Found| {
                found.system.is_none() && found.output() == Some(class) && wanted(&found.machine)
            };
            let names: Vec<String> =
                self.found.iter_mut().filter(unknown).map(|found| found.machine.clone()).collect();
            let mut known = systems(self, class, &names, jobs).await;
            for found in self.found.iter_mut().filter(unknown) {
                match known.remove(&found.machine) {
                    Some(Ok(system)) => found.set_system(system),
                    Some(Err(reason)) => found.notes.push(format!("its system is not known: {reason}")),
                    None => {}
                }
            }
        }
    }
}

/// Each machine's system, or why it is unknown.
type Systems = BTreeMap<String, Result<System, String>>;

/// Evaluates the systems of machines of one class in one Nix run; if that fails, one by one, so that a
/// mistake is reported for the machine that has it.
async fn systems(flake: &Flake, class: Class, names: &[String], jobs: usize) -> Systems {
    if names.is_empty() {
        return Systems::new();
    }
    if let Ok(systems) = ask(flake, class, names).await {
        return systems;
    }
    let each = stream::iter(names).map(|name| async move {
        let alone = std::slice::from_ref(name);
        let system = ask(flake, class, alone).await.map(|mut systems| systems.remove(name));
        match system {
            Ok(Some(system)) => (name.clone(), system),
            Ok(None) => (name.clone(), Err("it says no system".to_owned())),
            Err(error) => (name.clone(), Err(error.to_string())),
        }
    });
    each.buffer_unordered(jobs.max(1)).collect().await
}

async fn ask(flake: &Flake, class: Class, names: &[String]) -> Result<Systems, NixError> {
    let wanted: Vec<String> = names.iter().map(|name| nix_string(name)).collect();
    let apply = format!(
        "all: builtins.listToAttrs (map (name: {{ inherit name; value = ({SYSTEM_OF}) all.${{name}}; }}) [ \
         {} ])",
        wanted.join(" ")
    );
    let printed = flake.eval(class.flake_output(), &apply, SYSTEM_LIMIT).await?;
    let systems: BTreeMap<String, Option<String>> = serde_json::from_slice(&printed)
        .map_err(|error| NixError::Format { program: "nix", reason: error.to_string() })?;
    Ok(systems
        .into_iter()
        .map(|(name, system)| {
            let system = system.ok_or_else(|| "it says no system".to_owned());
            (name, system.and_then(|system| system.parse().map_err(|error| format!("{error}"))))
        })
        .collect())
}
