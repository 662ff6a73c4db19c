//! The class and system of a new machine: as given, otherwise as the flake says.

use anyhow::{Result, anyhow};
use muster_protocol::ids::MachineName;
use muster_protocol::machine::{Class, System};

use crate::flake::discover::Found;
use crate::flake::evaluate::{Flake, Lock};
use crate::flake::notes::{tell_of, with_hint};
use crate::flake::options::Options;
use crate::terminal::error::WithHint as _;
use crate::terminal::spinner::spinner;

/// What was given on the command line.
#[derive(Debug, Clone, Default)]
pub struct Written {
    pub class: Option<Class>,
    pub system: Option<System>,
}

/// Class and system. The flake is read if it is named, or if nothing else gives the class.
pub async fn find(
    machine: &MachineName,
    written: &Written,
    flake: Option<&str>,
    usual_flake: &str,
    options: &Options,
) -> Result<(Class, System)> {
    let is_said = written.class.is_some() || written.system.is_some();
    let reference = match flake {
        Some(reference) => reference,
        None if is_said => return decide(machine, written, None),
        None => usual_flake,
    };
    let progress = spinner();
    progress.set_message(format!("reading {reference}"));
    let opened = Flake::open_with(reference, options, Lock::Keep).await.map_err(with_hint);
    let mut flake = match opened {
        Ok(flake) => flake,
        Err(error) if is_said => return Err(error),
        Err(error) => {
            return Err(error.context(format!("nothing says of which class {machine} is")))
                .hint("name its flake with --flake, or write --class nixos or --class darwin");
        }
    };
    if written.system.is_none() {
        flake.find_systems(1, |name| name == machine.as_str()).await;
    }
    progress.finish_and_clear();
    tell_of(&flake);
    let found = flake.found.iter().find(|found| found.machine == machine.as_str());
    match found {
        Some(found) => decide(machine, written, Some(found)),
        None => {
            let known: Vec<&str> = flake.found.iter().map(|found| found.machine.as_str()).take(20).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            Err(anyhow!("the flake {reference} has no machine {machine}; it has {known}"))
                .hint("check the spelling, or write --class nixos or --class darwin without --flake")
        }
    }
}

/// Pure.
pub(super) fn decide(
    machine: &MachineName,
    written: &Written,
    found: Option<&Found>,
) -> Result<(Class, System)> {
    let of_flake = found.and_then(|found| found.class);
    if let (Some(written), Some(of_flake)) = (written.class, of_flake)
        && written != of_flake
    {
        return Err(anyhow!("{machine} is a {of_flake} machine in the flake, and you write {written}"))
            .hint(format!("leave --class out, or correct {} of the flake", of_flake.flake_output()));
    }
    let class = written.class.or(of_flake).or(written.system.as_ref().map(System::class));
    let Some(class) = class else {
        let notes = found.map(|found| found.notes.join("; ")).unwrap_or_default();
        return Err(anyhow!("the flake does not say of which class {machine} is: {notes}"))
            .hint("write --class nixos or --class darwin");
    };
    let system = match written.system.clone().or_else(|| found.and_then(|found| found.system.clone())) {
        Some(system) => system,
        None => match class {
            Class::Nixos => "x86_64-linux".parse()?,
            Class::Darwin => "aarch64-darwin".parse()?,
        },
    };
    if system.class() != class {
        return Err(anyhow!("a {class} machine does not build {system}"))
            .hint(format!("write --system …-{}", class.kernel()));
    }
    Ok((class, system))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(class: Option<Class>, system: Option<&str>) -> Found {
        Found {
            machine: "tin".into(),
            class,
            system: system.map(|system| system.parse().unwrap()),
            tags: Default::default(),
            description: None,
            build_host: None,
            roles: Default::default(),
            known_from: vec![],
            notes: vec!["it is in both".into()],
        }
    }

    fn decided(class: Option<Class>, system: Option<&str>, found: Option<&Found>) -> Result<String, String> {
        let written = Written { class, system: system.map(|system| system.parse().unwrap()) };
        let decided = decide(&"tin".parse().unwrap(), &written, found);
        decided.map(|(class, system)| format!("{class} {system}")).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn class_and_system_are_known_from_the_flake_or_from_one_another() {
        let (nixos, darwin) = (Some(Class::Nixos), Some(Class::Darwin));
        assert_eq!(
            decided(None, None, Some(&found(nixos, Some("aarch64-linux")))).unwrap(),
            "nixos aarch64-linux"
        );
        assert_eq!(decided(None, None, Some(&found(darwin, None))).unwrap(), "darwin aarch64-darwin");
        assert_eq!(decided(None, Some("x86_64-darwin"), None).unwrap(), "darwin x86_64-darwin");
        assert_eq!(decided(nixos, None, None).unwrap(), "nixos x86_64-linux");
        assert_eq!(
            decided(None, Some("aarch64-linux"), Some(&found(nixos, None))).unwrap(),
            "nixos aarch64-linux"
        );
    }

    #[test]
    fn what_contradicts_the_flake_is_refused() {
        let (nixos, darwin) = (Some(Class::Nixos), Some(Class::Darwin));
        let said = decided(darwin, None, Some(&found(nixos, None))).unwrap_err();
        assert!(said.contains("tin is a nixos machine in the flake, and you write darwin"), "{said}");
        let said = decided(nixos, Some("aarch64-darwin"), None).unwrap_err();
        assert!(said.contains("a nixos machine does not build aarch64-darwin"), "{said}");
        let said = decided(None, None, Some(&found(None, None))).unwrap_err();
        assert!(said.contains("does not say of which class tin is: it is in both"), "{said}");
    }
}
