//! What one exploration is about: a machine's class, what operators publish for it, and how many faults
//! there are.

use muster_protocol::ids::{Epoch, Generation, Sha256, StorePath};
use muster_protocol::machine::Class;
use muster_protocol::plan::Place;
use muster_protocol::target::{Action, Target};

/// A system by its number; 0 is what the machine had before anything was published.
pub type System = u8;

/// What somebody set as the profile who is not Muster.
pub const FOREIGN: System = 4;

/// How a published generation behaves on the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    Good,
    /// Good, and it changes the agent's own job, so that its activation ends the agent.
    ReloadsAgent,
    /// The same, and the activation does not load it again (a Mac).
    LosesAgent,
    /// Good, and it changes the job of a Mac's boot, which its activation then runs half way.
    ChangesBootJob,
    BuildFails,
    /// Its own checks refuse before anything is changed.
    Refuses,
    /// Its activation ends with an error, half way.
    ActivationFails,
    /// Its activation never ends.
    Hangs,
    /// Its health check fails.
    Ill,
    /// No agent can run on it.
    BreaksAgent,
    /// The controller cannot be reached from it.
    CutsNetwork,
    /// Its activation wants a reboot first (NixOS).
    NeedsReboot,
    /// The boot loader gives it up and boots what ran before (NixOS).
    DoesNotBoot,
    /// The very derivation of the generation before it, under a new number.
    SameAgain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    pub behaviour: Behaviour,
    pub action: Action,
}

/// A guard that is taken out, to see that the properties notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Break {
    /// Begin whatever was tried already.
    ForgetTried,
    /// Try quarantined derivations again.
    ForgetQuarantine,
    /// Open the transaction of a generation that is refused, and end it later.
    RefuseInTwoSteps,
    /// Take an older generation for a newer one.
    AcceptOlder,
    /// Go on with what was signed before a new epoch.
    IgnoreEpoch,
    /// Switch to a gated target on the controller's word.
    SkipGate,
    /// Wait for a verdict on an activation that was killed half way.
    TrustHalfActivation,
    /// Take what a Mac's boot has linked for a system whose activation ended.
    TrustBootLink,
    /// Leave what the other system has left behind (a Mac).
    LeaveDaemons,
    /// Confirm without having reached the controller.
    ConfirmUnreached,
    /// Go back to the profile instead of to what ran.
    UndoToProfile,
    /// Keep no deadline.
    NoDeadline,
    /// Leave an agent alone that was not loaded again.
    LeaveAgentOut,
    /// Leave OLD's agent running on a system that brings another one (NixOS).
    KeepOldAgent,
    /// Start no activator again that was killed.
    NoRestart,
    /// Start no activator at boot.
    NoStartAtBoot,
    /// Push again what was written down before a crash, pushed or not.
    TellTwice,
    /// Push an event without writing it down first.
    TellUnwritten,
    /// Remove reports before the controller has stored them.
    ForgetReports,
    /// Make another check-in though the last one was not answered.
    ForgetUnanswered,
    /// Take polls that are answered at once for news, however many there are.
    SpinOnPolls,
    /// Stay away for as long as a `Retry-After` asks.
    ObeyRetryAfter,
    /// Take for told what was in a check-in that failed.
    ForgetToTell,
    /// Go on with a bearer that the controller knows no longer.
    KeepDeadBearer,
}

impl Break {
    /// Whether it is one of the contact's schedule.
    pub fn is_of_contact(self) -> bool {
        matches!(
            self,
            Self::ForgetUnanswered
                | Self::SpinOnPolls
                | Self::ObeyRetryAfter
                | Self::ForgetToTell
                | Self::KeepDeadBearer
        )
    }
}

/// How much may go wrong in one run, whatever and whenever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Kills, reboots, outages and lost replies, all together.
    pub faults: u8,
    pub rollbacks: u8,
}

#[derive(Debug, Clone)]
pub struct Scene {
    pub class: Class,
    pub published: Vec<Published>,
    /// The first of them that is of a new epoch, counted from 1, if root holders begin one.
    pub epoch_from: Option<u8>,
    pub budget: Budget,
    /// Whether the way of each report is followed. What the agent decides does not depend on it, so most
    /// scenes leave it out.
    pub reports: bool,
    /// Somebody set another profile than what runs, before all this.
    pub foreign_profile: bool,
    /// What is published has a place in a rollout, behind another machine.
    pub gated: bool,
    /// OLD cannot be activated again.
    pub old_fails: bool,
    pub broken: Option<Break>,
}

impl Scene {
    pub fn breaks(&self, guard: Break) -> bool {
        self.broken == Some(guard)
    }

    /// The pair of epoch and number that a generation goes by. Their order is the order in which they are
    /// published.
    fn pair(&self, generation: u8) -> Option<Generation> {
        match self.epoch_from.filter(|from| generation >= *from) {
            Some(from) => Generation::of(Epoch::new(1).ok()?, u64::from(generation - from + 1)).ok(),
            None => Generation::new(generation.into()).ok(),
        }
    }

    /// The other way round.
    pub fn place(&self, pair: Generation) -> u8 {
        let before = if pair.epoch().is_first() { 0 } else { self.epoch_from.unwrap_or(1) - 1 };
        u8::try_from(pair.get()).map_or(u8::MAX, |number| number.saturating_add(before))
    }

    /// The system of a generation.
    pub fn system(&self, generation: u8) -> System {
        match self.published.get(usize::from(generation).wrapping_sub(1)) {
            Some(published) if published.behaviour == Behaviour::SameAgain => self.system(generation - 1),
            _ => generation,
        }
    }

    /// How a system behaves, by the generation that brought it first.
    pub fn behaviour(&self, system: System) -> Behaviour {
        let published = self.published.get(usize::from(system).wrapping_sub(1));
        published.map_or(Behaviour::Good, |published| published.behaviour)
    }

    pub fn target(&self, generation: u8) -> Option<Target> {
        let published = self.published.get(usize::from(generation).checked_sub(1)?)?;
        let system = self.system(generation);
        Some(Target {
            rollout: self.gated.then(place),
            machine: "m".parse().ok()?,
            class: self.class,
            generation: self.pair(generation)?,
            system: match self.class {
                Class::Nixos => "x86_64-linux".parse().ok()?,
                Class::Darwin => "aarch64-darwin".parse().ok()?,
            },
            derivation: format!("{}.drv", text(system)).parse().ok()?,
            output: path(system)?,
            action: published.action,
            deadline_seconds: 60,
            checks: Vec::new(),
            trusted_nix_keys: Vec::new(),
            policy: muster_protocol::policy::Policy::default(),
            requires: if self.gated { vec![muster_protocol::plan::FEATURE.to_owned()] } else { vec![] },
            message: None,
            evaluation: Default::default(),
        })
    }
}

/// The place of every gated target.
pub fn place() -> Place {
    Place { plan: Sha256::of(b"plan"), wave: 1 }
}

fn text(system: System) -> String {
    format!(
        "/nix/store/{}-system",
        ["0", "1", "2", "3", "4"].get(usize::from(system)).unwrap_or(&"5").repeat(32)
    )
}

/// The store path of a system.
pub fn path(system: System) -> Option<StorePath> {
    text(system).parse().ok()
}

/// The system of a store path.
pub fn number(path: &StorePath) -> System {
    let digit = path.as_str().as_bytes().get("/nix/store/".len()).copied().unwrap_or(b'0');
    digit - b'0'
}
