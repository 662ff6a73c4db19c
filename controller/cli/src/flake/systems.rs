//! The Nix systems of machines whose inventory does not name them. Only this much of a configuration is
//! evaluated.

use std::collections::BTreeMap;
use std::time::Duration;

use muster_protocol::machine::{Class, System};
use serde_json::Value;

use super::discover::Found;
use super::each::Question;
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

async fn systems(flake: &Flake, class: Class, names: &[String], jobs: usize) -> Systems {
    let question = Question { output: class.flake_output(), function: SYSTEM_OF, limit: SYSTEM_LIMIT };
    let alone = |name: String| async move { ask(flake, class, &name).await };
    let asked: Vec<&str> = names.iter().map(String::as_str).collect();
    let values = flake.eval_each(&question, &asked, jobs, (alone, |_| {})).await;
    let each = names.iter().cloned().zip(values).map(|(name, value)| {
        let system = match value {
            Ok(Value::String(system)) => system.parse().map_err(|error| format!("{error}")),
            Ok(_) => Err("it says no system".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        (name, system)
    });
    each.collect()
}

async fn ask(flake: &Flake, class: Class, name: &str) -> Result<Value, NixError> {
    let apply = format!("all: ({SYSTEM_OF}) all.${{{}}}", nix_string(name));
    let printed = flake.eval(class.flake_output(), &apply, SYSTEM_LIMIT).await?;
    serde_json::from_slice(&printed)
        .map_err(|error| NixError::Format { program: "nix", reason: error.to_string() })
}
