//! What kind of machine it is, and what it can build and activate.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How a system is activated, and where it may be built (invariant I6).
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Linux, activated by `switch-to-configuration`.
    Nixos,
    /// macOS, activated by nix-darwin.
    Darwin,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 2] = [Self::Nixos, Self::Darwin];

    /// The name, as it is written in flakes and sent.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nixos => "nixos",
            Self::Darwin => "darwin",
        }
    }
    /// The suffix of Nix system names that this class builds and runs.
    pub fn kernel(self) -> &'static str {
        match self {
            Self::Nixos => "linux",
            Self::Darwin => "darwin",
        }
    }
    /// The flake output that holds the systems of this class.
    pub fn flake_output(self) -> &'static str {
        match self {
            Self::Nixos => "nixosConfigurations",
            Self::Darwin => "darwinConfigurations",
        }
    }
}
impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
impl FromStr for Class {
    type Err = MachineError;
    fn from_str(text: &str) -> Result<Self, MachineError> {
        Self::ALL
            .into_iter()
            .find(|class| class.as_str() == text)
            .ok_or_else(|| MachineError::UnknownClass(text.to_owned()))
    }
}

/// A Nix system such as `aarch64-darwin`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct System(String);

impl System {
    /// The name, as Nix writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// The class of machine that runs this system.
    pub fn class(&self) -> Class {
        if self.0.ends_with("-darwin") { Class::Darwin } else { Class::Nixos }
    }
}
impl FromStr for System {
    type Err = MachineError;
    fn from_str(text: &str) -> Result<Self, MachineError> {
        let well_formed = text.split_once('-').is_some_and(|(cpu, kernel)| {
            !cpu.is_empty()
                && cpu.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
                && (kernel == "linux" || kernel == "darwin")
        });
        if well_formed && text.len() <= 32 {
            Ok(Self(text.to_owned()))
        } else {
            Err(MachineError::UnknownSystem(text.to_owned()))
        }
    }
}
impl TryFrom<String> for System {
    type Error = MachineError;
    fn try_from(text: String) -> Result<Self, MachineError> {
        text.parse()
    }
}
impl From<System> for String {
    fn from(system: System) -> String {
        system.0
    }
}
impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a machine cannot take a system.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MachineError {
    /// The text is not the name of a class.
    #[error("'{0}' is not a class: write nixos or darwin")]
    UnknownClass(String),
    /// The text is not the name of a system that machines can have.
    #[error(
        "'{0}' is not a Nix system that Muster supports: write x86_64-linux, aarch64-linux, \
         aarch64-darwin or x86_64-darwin"
    )]
    UnknownSystem(String),
    /// The system is for another kernel.
    #[error("a {machine} machine cannot activate a {target} system")]
    WrongClass {
        /// The class of the machine.
        machine: Class,
        /// The class of the system it was to activate.
        target: Class,
    },
    /// The derivation is for another processor.
    #[error("a {machine} machine cannot build a derivation for {derivation}")]
    WrongSystem {
        /// The system of the machine.
        machine: System,
        /// The system of the derivation.
        derivation: System,
    },
}

/// The rule of invariant I6, applied when planning, when signing, by the server and on the machine.
///
/// The derivation's own `system` must be the machine's; a class never crosses to the other kernel. As in
/// Nix itself, `x86_64-linux` accepts `i686-linux` derivations.
pub fn can_take(machine: (Class, &System), target: Class, derivation: &System) -> Result<(), MachineError> {
    let (class, system) = machine;
    if class != target || derivation.class() != class {
        return Err(MachineError::WrongClass {
            machine: class,
            target: if class == target { derivation.class() } else { target },
        });
    }
    let emulated = system.as_str() == "x86_64-linux" && derivation.as_str() == "i686-linux";
    if system != derivation && !emulated {
        return Err(MachineError::WrongSystem { machine: system.clone(), derivation: derivation.clone() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(text: &str) -> System {
        text.parse().unwrap()
    }

    #[test]
    fn i6_no_class_takes_the_others_systems() {
        let (linux, mac) = (system("x86_64-linux"), system("aarch64-darwin"));
        assert!(can_take((Class::Nixos, &linux), Class::Nixos, &linux).is_ok());
        assert!(can_take((Class::Darwin, &mac), Class::Darwin, &mac).is_ok());
        for (class, own, target, derivation) in [
            (Class::Nixos, &linux, Class::Darwin, &mac),
            (Class::Nixos, &linux, Class::Darwin, &linux),
            (Class::Nixos, &linux, Class::Nixos, &mac),
            (Class::Darwin, &mac, Class::Nixos, &linux),
            (Class::Darwin, &mac, Class::Darwin, &linux),
        ] {
            assert!(can_take((class, own), target, derivation).is_err(), "{class} {target} {derivation}");
        }
    }

    #[test]
    fn another_cpu_is_refused_and_i686_is_not() {
        let own = system("x86_64-linux");
        assert!(can_take((Class::Nixos, &own), Class::Nixos, &system("aarch64-linux")).is_err());
        assert!(can_take((Class::Nixos, &own), Class::Nixos, &system("i686-linux")).is_ok());
    }

    #[test]
    fn systems_without_a_known_kernel_are_refused() {
        for bad in ["", "x86_64", "x86_64-windows", "-linux", "x86 64-linux"] {
            assert!(bad.parse::<System>().is_err(), "{bad}");
        }
    }
}
