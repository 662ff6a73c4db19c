//! What the agent and its activator need from a system.

use std::path::PathBuf;
use std::time::Duration;

use muster_protocol::ids::{Generation, StorePath};
use muster_protocol::target::Action;

use super::layout::Layout;
use super::programs::PlatformError;
use crate::core::activate::{Ailing, Outcome, Way};
use crate::core::boots::BootFacts;
use crate::core::reboot::Due;
use crate::process::Finished;

/// The result of a system's own checks, before anything is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Preflight {
    Passed,
    /// A person has to do something first; the text says what.
    NeedsHuman(String),
    Failed(String),
    /// It cannot be switched to while the machine runs; the text names the obstacle. A reboot brings it.
    Inhibited(String),
}

/// What the agent and its activator need from a system. Blocking: the runner calls it on a separate thread.
pub trait Platform: Send + Sync {
    fn layout(&self) -> &Layout;
    /// Changes at each boot.
    fn boot_id(&self) -> Result<String, PlatformError>;
    /// The units that the service manager reports as failed, sorted.
    fn failed_units(&self) -> Result<Vec<String>, PlatformError>;
    /// The units that count as failed before a switch, sorted.
    fn failed_before(&self) -> Result<Vec<String>, PlatformError> {
        self.failed_units()
    }
    /// The system's own checks, as far as they change nothing.
    fn preflight(&self, new: &StorePath, action: Action) -> Result<Preflight, PlatformError>;
    /// Starts `muster-agent activate` where nothing that happens to the agent affects it.
    fn start_activator(&self, generation: Generation) -> Result<(), PlatformError>;
    /// Makes the next boot start the activator as well, until [`Platform::activator_ends`]: the new system's
    /// agent may be the very thing that does not work. Called by the activator itself, under its lock.
    fn activator_begins(&self);
    /// The switch is over.
    fn activator_ends(&self);
    /// Runs the system's own activation to its end, or to `limit` and then kills everything it started. On
    /// the way back none of the system's checks may stop it.
    fn activate(
        &self,
        system: &StorePath,
        action: Action,
        way: Way,
        limit: Duration,
    ) -> Result<Finished, PlatformError>;
    fn outcome(&self, finished: &Finished) -> Outcome;
    /// What failed according to the output of an activation that ran to its end.
    fn ailing(&self, _finished: &Finished) -> Ailing {
        Ailing::default()
    }
    /// The program that [`Platform::activate`] runs, to find one that an activator left behind.
    fn script(&self, system: &StorePath) -> PathBuf;
    /// What a person has to do, if an activation's output asks for it.
    fn needs_human(&self, _exit: i32, _output: &str) -> Option<String> {
        None
    }
    /// Waits until the boot's own part in activating a system is over, if there is one.
    fn wait_for_boot(&self) {}
    /// Periodic housekeeping, such as keeping logs small where nobody else does.
    fn tend(&self) {}
    /// Removes what `from` has left in place and `to` does not have.
    fn tidy(&self, _from: &StorePath, _to: &StorePath) {}
    /// Makes sure that the agent's own job runs as `to` defines it; `from` is the system before.
    fn ensure_agent(&self, from: Option<&StorePath>, to: &StorePath);
    /// Who else is switching this machine, if anybody.
    fn busy(&self) -> Result<Option<String>, PlatformError>;
    /// Keeps the machine from sleeping until the guard is dropped.
    fn keep_awake(&self) -> Option<Awake> {
        None
    }
    /// The charge in percent, while the machine runs on battery.
    fn on_battery(&self) -> Option<u8>;
    /// Whether the network is metered.
    fn metered(&self) -> bool;
    /// In bytes.
    fn free_memory(&self) -> Option<u64>;
    /// The user at a Mac's screen, if any.
    fn console(&self) -> Option<u32> {
        None
    }
    /// Who has to log in before this system can be activated, if anybody.
    fn absent(&self, _new: &StorePath) -> Option<String> {
        None
    }
    /// What a reboot would bring.
    fn due(&self) -> Option<Due> {
        None
    }
    /// What the boot loader says about the last boot, where it is systemd's.
    fn boots(&self) -> Option<BootFacts> {
        None
    }
    /// Who is logged in and what inhibits a reboot, as text for people.
    fn blockers(&self) -> Result<Vec<String>, PlatformError> {
        Ok(Vec::new())
    }
    fn reboot(&self) -> Result<(), PlatformError>;
    /// Whether a unit or job of this name is healthy, or what is wrong with it.
    fn service(&self, name: &str) -> Result<(), String>;
}

/// Keeps a machine awake until dropped.
pub struct Awake {
    pub(super) program: std::process::Child,
}

impl Drop for Awake {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}
