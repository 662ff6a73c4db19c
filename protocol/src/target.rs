//! What one generation is: the signed document `NAME/generation.json`.

use serde::{Deserialize, Serialize};

use crate::api;
use crate::evaluation::Evaluation;
use crate::ids::{Generation, IdError, MachineName, StorePath};
use crate::machine::{Class, MachineError, System, can_take};
use crate::plan::{FEATURE, Place};
use crate::policy::{Policy, PolicyError};

/// The largest `generation.json` that anybody reads, in bytes.
pub const MAX_TARGET_BYTES: u64 = 64 * 1024;
/// Bounds of [`Target::deadline_seconds`].
pub const DEADLINE_SECONDS: std::ops::RangeInclusive<u32> = 10..=86_400;
/// The most health checks that a target may carry.
pub const MAX_CHECKS: usize = 64;
/// Features of agents that this version understands, which [`Target::requires`] may name.
pub const UNDERSTOOD: [&str; 1] = [crate::plan::FEATURE];
/// The most features in [`Target::requires`].
pub const MAX_REQUIRES: usize = 16;
/// The longest of them, in bytes.
pub const MAX_REQUIRES_BYTES: usize = 64;

/// One signed target for one machine.
///
/// Unknown fields are ignored, and a field is never removed.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Target {
    /// The machine it is for; any other refuses it.
    pub machine: MachineName,
    /// The machine's class; another one refuses it.
    pub class: Class,
    /// Its number, the same as that of the metadata that lists it.
    pub generation: Generation,
    /// The Nix system of the derivation.
    pub system: System,
    /// What the machine realises, `/nix/store/….drv`.
    pub derivation: StorePath,
    /// The only output that the machine accepts from it.
    pub output: StorePath,
    /// How to activate it.
    #[serde(default)]
    pub action: Action,
    /// How long the machine waits for a confirmation before it goes back, in seconds of time awake from the
    /// start of the activation.
    #[serde(default = "default_deadline")]
    pub deadline_seconds: u32,
    /// What must be healthy before the generation is confirmed; at most [`MAX_CHECKS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<HealthCheck>,
    /// Public Nix signing keys (`NAME:BASE64`) whose outputs the machine may download instead of building.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trusted_nix_keys: Vec<String>,
    /// When and how the machine takes it.
    #[serde(default, skip_serializing_if = "Policy::is_empty")]
    pub policy: Policy,
    /// Features that an agent must understand to act on this as intended. One that does not know a feature
    /// leaves the generation alone and reports that it needs a newer version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
    /// Its place in a rollout: the machine switches once its gate is open. Such a target requires
    /// [`crate::plan::FEATURE`], and is listed as [`api::gated_name`](crate::api::gated_name).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Place>,
    /// Why the operator published it, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What the operator told Nix besides the flake, for later signers and the history. Machines ignore it.
    #[serde(default, skip_serializing_if = "Evaluation::is_plain")]
    pub evaluation: Evaluation,
}

fn default_deadline() -> u32 {
    300
}

/// What to do with the system, as in `switch-to-configuration`. Macs only know `switch`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Activate it now and at each boot.
    #[default]
    Switch,
    /// Only make it what the next boot starts.
    Boot,
    /// Activate it now; the next boot starts the old one.
    Test,
    /// Only print what activating it would do.
    DryActivate,
}

impl Action {
    /// The word that `switch-to-configuration` takes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Switch => "switch",
            Self::Boot => "boot",
            Self::Test => "test",
            Self::DryActivate => "dry-activate",
        }
    }
}

/// A question that decides whether a generation is confirmed.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What people call it.
    pub name: String,
    /// What is asked. Its fields are on the same level in JSON.
    #[serde(flatten)]
    pub probe: Probe,
    /// How long one try may take, in seconds.
    #[serde(default = "default_timeout")]
    pub timeout_seconds: u32,
    /// How many tries must fail before the check has; at least 1.
    #[serde(default = "default_tries")]
    pub tries: u32,
}

fn default_timeout() -> u32 {
    10
}
fn default_tries() -> u32 {
    3
}

/// What a health check asks, and which answer is healthy.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Probe {
    /// A program that exits with 0.
    Command {
        /// The program and its arguments; there is no shell.
        command: Vec<String>,
    },
    /// A URL that answers with a status from 200 to 399.
    Http {
        /// `http://…` or `https://…`.
        url: String,
    },
    /// A port that accepts connections.
    Tcp {
        /// `HOST:PORT`.
        address: String,
    },
    /// A systemd unit that is active; NixOS only.
    Unit {
        /// Its name, with the ending.
        unit: String,
    },
    /// A launchd job that runs, or whose last run succeeded; Macs only.
    Label {
        /// Its label.
        label: String,
    },
    /// A kind of a later version. It is never healthy.
    #[serde(other)]
    Unknown,
}

impl Probe {
    /// The only class of machine that can be asked this, if not every one.
    pub fn class(&self) -> Option<Class> {
        match self {
            Self::Unit { .. } => Some(Class::Nixos),
            Self::Label { .. } => Some(Class::Darwin),
            Self::Command { .. } | Self::Http { .. } | Self::Tcp { .. } | Self::Unknown => None,
        }
    }
}

impl HealthCheck {
    /// Checks what must hold for every check on a machine of this class.
    pub fn check(&self, class: Class) -> Result<(), TargetError> {
        let empty = match &self.probe {
            Probe::Command { command } => command.first().is_none_or(String::is_empty),
            Probe::Http { url: text }
            | Probe::Tcp { address: text }
            | Probe::Unit { unit: text }
            | Probe::Label { label: text } => text.is_empty(),
            Probe::Unknown => false,
        };
        if empty || self.tries == 0 || self.timeout_seconds == 0 {
            return Err(TargetError::EmptyCheck(self.name.clone()));
        }
        match self.probe.class() {
            Some(other) if other != class => {
                Err(TargetError::CheckOfOtherClass { check: self.name.clone(), class })
            }
            _ => Ok(()),
        }
    }
}

/// Why a target is refused, by everybody or by this machine.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Not the JSON of a target.
    #[error("this is not the JSON of a target: {0}")]
    Format(#[from] serde_json::Error),
    /// Longer than [`MAX_TARGET_BYTES`].
    #[error("the target has {0} bytes; {MAX_TARGET_BYTES} are the limit")]
    TooLarge(usize),
    /// It is for another machine.
    #[error("the target is for machine {found}, not for {wanted}")]
    OtherMachine {
        /// This machine.
        wanted: MachineName,
        /// The machine it is for.
        found: MachineName,
    },
    /// It is another generation than the metadata lists.
    #[error("the target is generation {found}; generation {wanted} was signed")]
    OtherGeneration {
        /// The generation of the metadata.
        wanted: Generation,
        /// The target's generation.
        found: Generation,
    },
    /// It is for another class or system, or its own two differ.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A name or a path in it is malformed.
    #[error(transparent)]
    Id(#[from] IdError),
    /// The output is itself a derivation.
    #[error("the target's output {0} is a derivation")]
    OutputIsDerivation(StorePath),
    /// The deadline is outside [`DEADLINE_SECONDS`].
    #[error("the target's deadline of {0} s is outside 10 to 86400 s")]
    Deadline(u32),
    /// It has more than [`MAX_CHECKS`] checks.
    #[error("the target has {0} health checks; {MAX_CHECKS} are the limit")]
    TooManyChecks(usize),
    /// A check, by its name, asks nothing or is never tried.
    #[error("health check '{0}' is empty or has no tries")]
    EmptyCheck(String),
    /// A check cannot be asked of this class.
    #[error(
        "health check '{check}' cannot be asked of a {class} machine: units are NixOS's, labels are launchd's"
    )]
    CheckOfOtherClass {
        /// Its name.
        check: String,
        /// The target's class.
        class: Class,
    },
    /// The action is one that Macs do not have.
    #[error("a Mac only supports the action switch, not {0}")]
    ActionOnDarwin(&'static str),
    /// It requires too many features, or one with a malformed name.
    #[error(
        "the target may require at most {MAX_REQUIRES} features of an agent, each of 1 to \
         {MAX_REQUIRES_BYTES} letters, digits or '-'"
    )]
    Requires,
    /// It has a place in a rollout and does not require agents that know what that is.
    #[error("a target of a rollout must require the feature {FEATURE} of its agent")]
    Ungated,
    /// Its policy contradicts itself or is out of bounds.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

impl Target {
    /// Reads and checks a target; nothing of it is used before this succeeds.
    pub fn parse(bytes: &[u8]) -> Result<Self, TargetError> {
        if bytes.len() as u64 > MAX_TARGET_BYTES {
            return Err(TargetError::TooLarge(bytes.len()));
        }
        let target: Self = serde_json::from_slice(bytes)?;
        target.check()?;
        Ok(target)
    }

    /// Checks what must hold for every target, whoever made it.
    pub fn check(&self) -> Result<(), TargetError> {
        can_take((self.class, &self.system), self.class, &self.system)?;
        self.derivation.clone().require_derivation()?;
        if self.output.is_derivation() {
            return Err(TargetError::OutputIsDerivation(self.output.clone()));
        }
        if !DEADLINE_SECONDS.contains(&self.deadline_seconds) {
            return Err(TargetError::Deadline(self.deadline_seconds));
        }
        if self.checks.len() > MAX_CHECKS {
            return Err(TargetError::TooManyChecks(self.checks.len()));
        }
        self.checks.iter().try_for_each(|check| check.check(self.class))?;
        self.policy.check()?;
        let word = |word: &String| {
            (1..=MAX_REQUIRES_BYTES).contains(&word.len())
                && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        if self.requires.len() > MAX_REQUIRES || !self.requires.iter().all(word) {
            return Err(TargetError::Requires);
        }
        if self.rollout.is_some() && !self.requires.iter().any(|word| word == FEATURE) {
            return Err(TargetError::Ungated);
        }
        if self.class == Class::Darwin && self.action != Action::Switch {
            return Err(TargetError::ActionOnDarwin(self.action.as_str()));
        }
        Ok(())
    }

    /// The path under which its metadata lists it.
    pub fn listed_as(&self) -> String {
        match self.rollout {
            Some(_) => api::gated_name(&self.machine),
            None => api::target_name(&self.machine),
        }
    }

    /// The features it requires that this version does not understand.
    pub fn not_understood(&self) -> Vec<&str> {
        let unknown = self.requires.iter().map(String::as_str).filter(|word| !UNDERSTOOD.contains(word));
        unknown.collect()
    }

    /// Checks that it is for exactly this machine and generation (I1, I6).
    pub fn require_for(
        &self,
        machine: &MachineName,
        class: Class,
        system: &System,
        generation: Generation,
    ) -> Result<(), TargetError> {
        if &self.machine != machine {
            return Err(TargetError::OtherMachine { wanted: machine.clone(), found: self.machine.clone() });
        }
        if self.generation != generation {
            return Err(TargetError::OtherGeneration { wanted: generation, found: self.generation });
        }
        can_take((class, system), self.class, &self.system)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn target() -> Target {
        Target {
            machine: "stibnite".parse().unwrap(),
            class: Class::Darwin,
            generation: Generation::FIRST,
            system: "aarch64-darwin".parse().unwrap(),
            derivation: "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv".parse().unwrap(),
            output: "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system".parse().unwrap(),
            action: Action::Switch,
            deadline_seconds: 300,
            checks: vec![],
            trusted_nix_keys: vec![],
            policy: Policy::default(),
            requires: vec![],
            rollout: None,
            message: None,
            evaluation: Evaluation::default(),
        }
    }

    fn unit() -> HealthCheck {
        let probe = Probe::Unit { unit: "sshd.service".into() };
        HealthCheck { name: "ssh".into(), probe, timeout_seconds: 1, tries: 1 }
    }

    #[test]
    fn a_check_and_a_policy_of_the_future_do_not_keep_a_machine_from_its_target() {
        let mut later = serde_json::to_value(target()).unwrap();
        later["policy"] = serde_json::json!({ "moon": "full", "urgent": true });
        later["checks"] = serde_json::json!([{ "name": "x", "kind": "grpc", "service": "y" }]);
        let read = Target::parse(later.to_string().as_bytes()).unwrap();
        assert!(read.policy.urgent);
        assert_eq!(read.checks[0].probe, Probe::Unknown);
    }

    #[test]
    fn failure_mode_26_a_recorded_target_of_version_0_1_still_parses() {
        let text = r#"{"machine":"stibnite","class":"darwin","generation":3,"system":"aarch64-darwin",
            "derivation":"/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv",
            "output":"/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system",
            "checks":[{"name":"ssh","kind":"tcp","address":"127.0.0.1:22"}],"a field of the future":[1]}"#;
        let target = Target::parse(text.as_bytes()).unwrap();
        assert_eq!(target.generation.get(), 3);
        assert_eq!(target.checks[0].tries, 3);
        assert_eq!(target.deadline_seconds, 300);
    }

    #[test]
    fn a_target_is_for_one_machine_class_and_generation() {
        let (target, mac) = (target(), "aarch64-darwin".parse().unwrap());
        let name = |text: &str| text.parse::<MachineName>().unwrap();
        let first = Generation::FIRST;
        assert!(target.require_for(&name("stibnite"), Class::Darwin, &mac, first).is_ok());
        assert!(target.require_for(&name("blackphos"), Class::Darwin, &mac, first).is_err());
        assert!(target.require_for(&name("stibnite"), Class::Darwin, &mac, first.next().unwrap()).is_err());
        let linux = "x86_64-linux".parse().unwrap();
        assert!(target.require_for(&name("stibnite"), Class::Nixos, &linux, first).is_err());
    }

    #[test]
    fn targets_that_say_two_things_are_refused() {
        for (what, target) in [
            ("class and system differ", Target { class: Class::Nixos, ..target() }),
            ("no derivation", Target { derivation: target().output, ..target() }),
            ("output is a derivation", Target { output: target().derivation, ..target() }),
            ("deadline too short", Target { deadline_seconds: 1, ..target() }),
            ("boot on a Mac", Target { action: Action::Boot, ..target() }),
            ("a unit on a Mac", Target { checks: vec![unit()], ..target() }),
            (
                "a policy without sense",
                Target { policy: Policy { nice: Some(20), ..Policy::default() }, ..target() },
            ),
        ] {
            assert!(target.check().is_err(), "{what}");
        }
    }
}
