//! What the machine is doing. The work writes it; check-ins and people read it.

use std::cell::{Cell, Ref, RefCell};
use std::time::Duration;

use muster_protocol::report::Attack;

use crate::core::plan::RebootNote;

#[derive(Default)]
pub struct Doing {
    /// What keeps the work from continuing, in one sentence.
    problem: RefCell<Option<String>>,
    /// The progress of the current step, as text.
    progress: RefCell<Option<String>>,
    /// The failed units at the last look, if any was taken.
    degraded: RefCell<Option<Vec<String>>>,
    reboot: RefCell<Option<RebootNote>>,
    /// What Nix fetched or built that differed from what was signed, until it gets the right thing.
    altered: Cell<Option<Attack>>,
    /// When the new system was seen running, in awake time.
    probing_since: Cell<Option<Duration>>,
}

impl Doing {
    pub fn problem(&self) -> Option<String> {
        self.problem.borrow().clone()
    }
    pub fn progress(&self) -> Option<String> {
        self.progress.borrow().clone()
    }
    pub fn degraded(&self) -> Ref<'_, Option<Vec<String>>> {
        self.degraded.borrow()
    }
    pub fn reboot(&self) -> Ref<'_, Option<RebootNote>> {
        self.reboot.borrow()
    }
    pub fn altered(&self) -> Option<Attack> {
        self.altered.get()
    }
    pub fn probing_since(&self) -> Option<Duration> {
        self.probing_since.get()
    }

    /// Returns whether it changed.
    pub fn set_problem(&self, problem: Option<String>) -> bool {
        let other = *self.problem.borrow() != problem;
        *self.problem.borrow_mut() = problem;
        other
    }

    pub fn set_progress(&self, progress: Option<String>) {
        self.progress.replace(progress);
    }

    pub fn set_degraded(&self, units: Vec<String>) {
        *self.degraded.borrow_mut() = Some(units);
    }

    /// Returns whether it changed.
    pub fn set_reboot(&self, note: Option<RebootNote>) -> bool {
        let other = *self.reboot.borrow() != note;
        *self.reboot.borrow_mut() = note;
        other
    }

    /// Returns the previous value.
    pub fn set_altered(&self, attack: Option<Attack>) -> Option<Attack> {
        self.altered.replace(attack)
    }

    pub fn probes_since(&self, since: Option<Duration>) {
        self.probing_since.set(since);
    }
}
