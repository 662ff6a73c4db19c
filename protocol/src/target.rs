//! What one generation says: the signed document `NAME/generation.json`.

use serde::{Deserialize, Serialize};

use crate::evaluation::Evaluation;
use crate::ids::{Generation, IdError, MachineName, StorePath};
use crate::machine::{Class, MachineError, System, can_take};
use crate::policy::{Policy, PolicyError};

/// The largest `generation.json` that anybody reads, in bytes.
pub const MAX_TARGET_BYTES: u64 = 64 * 1024;
/// Bounds of [`Target::deadline_seconds`].
pub const DEADLINE_SECONDS: std::ops::RangeInclusive<u32> = 10..=86_400;
/// The most health checks that a target may carry.
pub const MAX_CHECKS: usize = 64;
/// What an agent can be required to understand, as far as this version does. None yet.
pub const UNDERSTOOD: [&str; 0] = [];
/// The most words of [`Target::requires`], and the longest of them.
pub const MAX_REQUIRES: usize = 16;
pub const MAX_REQUIRES_BYTES: usize = 64;

/// One signed target for one machine.
///
/// Additive: a reader keeps to the fields that it knows and ignores others; a field is never removed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Target {
    pub machine: MachineName,
    pub class: Class,
    pub generation: Generation,
    /// The Nix system of the derivation.
    pub system: System,
    /// What the machine realises, `/nix/store/….drv`.
    pub derivation: StorePath,
    /// What the machine must get from it, and nothing else.
    pub output: StorePath,
    #[serde(default)]
    pub action: Action,
    /// Time awake from the start of activation until the machine undoes it without a confirmation, in seconds.
    #[serde(default = "default_deadline")]
    pub deadline_seconds: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<HealthCheck>,
    /// Public Nix signing keys (`NAME:BASE64`) whose built outputs the machine may take instead of building.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trusted_nix_keys: Vec<String>,
    /// When and how the machine takes it.
    #[serde(default, skip_serializing_if = "Policy::is_empty")]
    pub policy: Policy,
    /// What an agent must understand to act on this as it is meant: one that does not know a word leaves it alone, and says
    /// that it needs a newer version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
    /// The operator's words on why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What the operator told Nix beside the flake, for who signs next and for the history; no machine acts on it.
    #[serde(default, skip_serializing_if = "Evaluation::is_plain")]
    pub evaluation: Evaluation,
}

fn default_deadline() -> u32 {
    300
}

/// What to do with the system, in the words of `switch-to-configuration`. A Mac knows `switch` alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    #[default]
    Switch,
    Boot,
    Test,
    DryActivate,
}

impl Action {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Switch => "switch",
            Self::Boot => "boot",
            Self::Test => "test",
            Self::DryActivate => "dry-activate",
        }
    }
}

/// A question whose answer decides whether a generation is confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What people call it.
    pub name: String,
    #[serde(flatten)]
    pub probe: Probe,
    /// The limit of one try, in seconds.
    #[serde(default = "default_timeout")]
    pub timeout_seconds: u32,
    /// How often it is tried before it counts as failed; at least 1.
    #[serde(default = "default_tries")]
    pub tries: u32,
}

fn default_timeout() -> u32 {
    10
}
fn default_tries() -> u32 {
    3
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Probe {
    /// Exit code 0 is healthy. The first word is the program; no shell is asked.
    Command { command: Vec<String> },
    /// A status from 200 to 399 is healthy.
    Http { url: String },
    /// A connection that opens is healthy; `HOST:PORT`.
    Tcp { address: String },
    /// A systemd unit that is active is healthy. NixOS alone.
    Unit { unit: String },
    /// A launchd job that runs, or whose last run ended well, is healthy. Macs alone.
    Label { label: String },
    /// A kind that this program does not know yet. What is not known is not healthy.
    #[serde(other)]
    Unknown,
}

impl Probe {
    /// The class of machine that can be asked this, if not every one.
    pub fn class(&self) -> Option<Class> {
        match self {
            Self::Unit { .. } => Some(Class::Nixos),
            Self::Label { .. } => Some(Class::Darwin),
            Self::Command { .. } | Self::Http { .. } | Self::Tcp { .. } | Self::Unknown => None,
        }
    }
}

impl HealthCheck {
    /// What holds of every check on a machine of this class, whoever wrote it.
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

/// Why a target is not for this machine, or no target at all.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("the target is not valid JSON of a target: {0}")]
    Format(#[from] serde_json::Error),
    #[error("the target has {0} bytes; {MAX_TARGET_BYTES} are the limit")]
    TooLarge(usize),
    #[error("the target is for machine {found}, not for {wanted}")]
    OtherMachine { wanted: MachineName, found: MachineName },
    #[error("the target is generation {found}; generation {wanted} was signed")]
    OtherGeneration { wanted: Generation, found: Generation },
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Id(#[from] IdError),
    #[error("the target's output {0} is a derivation")]
    OutputIsDerivation(StorePath),
    #[error("the target's deadline of {0} s is outside 10 to 86400 s")]
    Deadline(u32),
    #[error("the target has {0} health checks; {MAX_CHECKS} are the limit")]
    TooManyChecks(usize),
    #[error("health check '{0}' is empty or has no tries")]
    EmptyCheck(String),
    #[error(
        "health check '{check}' cannot be asked of a {class} machine: units are NixOS's, labels are launchd's"
    )]
    CheckOfOtherClass { check: String, class: Class },
    #[error("a Mac knows the action switch alone, not {0}")]
    ActionOnDarwin(&'static str),
    #[error(
        "the target requires {MAX_REQUIRES} words at most of an agent, each of 1 to {MAX_REQUIRES_BYTES} letters, digits or '-'"
    )]
    Requires,
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

    /// What holds of every target, whoever made it.
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
        if self.class == Class::Darwin && self.action != Action::Switch {
            return Err(TargetError::ActionOnDarwin(self.action.as_str()));
        }
        Ok(())
    }

    /// What it requires of an agent and this version does not know.
    pub fn not_understood(&self) -> Vec<&str> {
        let unknown = self.requires.iter().map(String::as_str).filter(|word| !UNDERSTOOD.contains(word));
        unknown.collect()
    }

    /// Whether this target is for exactly this machine and generation (I1, I6).
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
