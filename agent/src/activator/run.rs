//! Does what [`Course`] says, and reports the result to it.

use std::time::Duration;

use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::StorePath;
use muster_protocol::report::Reason;
use muster_protocol::target::Action;

use super::error::ActivatorError;
use crate::core::activate::{Act, Course, Done, Ran, Sight, Way};
use crate::core::boots::assess;
use crate::core::records::{Activation, ActivationPhase, GivenVerdict};
use crate::journal::{FileId, Files};
use crate::nix::Nix;
use crate::platform::Platform;
use crate::process;
use crate::secrets::{self, SecretsError};

pub struct Activator {
    pub files: Files,
    pub platform: Box<dyn Platform>,
    pub nix: Nix,
    pub clock: SystemClock,
    /// The boot in which this process runs.
    pub boot: String,
}

impl Activator {
    /// From OLD to NEW.
    pub fn begin(&self, record: Activation) -> Result<(), ActivatorError> {
        let course = Course::begin(record, &self.boot, self.clock.awake());
        self.follow(course)
    }

    /// Takes up the record of an activator that is gone.
    pub fn resume(&self, record: Activation) -> Result<(), ActivatorError> {
        for system in [Some(&record.new), record.old.system()].into_iter().flatten() {
            let own = self.platform.layout().specialisations(system).into_iter().map(|(_, own)| own);
            for system in std::iter::once(system.clone()).chain(own) {
                if let Err(error) = process::end_leftovers(&self.platform.script(&system)) {
                    tracing::warn!(%error, "processes of an earlier activation cannot be looked for");
                }
            }
        }
        let phase = record.phase;
        let seen = self.look(&record.transaction);
        let went_back = record.phase == ActivationPhase::Undoing;
        let mut course = Course::resume(record, &self.boot, &seen.sight());
        if course.record.reason == Some(Reason::DidNotBoot) && !went_back && !course.is_over() {
            let facts = self.platform.boots().unwrap_or_default();
            course.explain(&assess(&course.record.new, &facts).words());
        }
        if phase.is_final() || course.is_over() {
            tracing::debug!(?phase, "nothing is left to do");
        } else {
            tracing::info!(?phase, next = ?course.record.phase, "taking up an activation that was \
                interrupted");
        }
        self.follow(course)
    }

    fn follow(&self, mut course: Course) -> Result<(), ActivatorError> {
        let _awake = self.platform.keep_awake();
        let mut unwritten = None;
        let mut seen = self.look(&course.record.transaction);
        loop {
            let act = course.next(&seen.sight());
            let done = match act {
                Act::End => return unwritten.map_or(Ok(()), Err),
                Act::Write => match self.write(&course.record) {
                    Ok(()) => {
                        unwritten = None;
                        Done::Well
                    }
                    Err(error) => {
                        tracing::error!(%error, "the activation cannot be recorded yet");
                        let why = error.to_string();
                        unwritten = Some(error);
                        Done::Failed(why)
                    }
                },
                act => self.perform(act, &course.record.new),
            };
            seen = self.look_again(&course.record.transaction, seen);
            course.done(done, &seen.sight());
        }
    }

    fn write(&self, record: &Activation) -> Result<(), ActivatorError> {
        tracing::info!(phase = ?record.phase, reason = ?record.reason, "activation");
        Ok(self.files.write_activation(record)?)
    }

    fn perform(&self, act: Act, new: &StorePath) -> Done {
        match act {
            Act::AskOthers => Done::Others(self.platform.busy().unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot find out whether somebody else is switching this machine");
                None
            })),
            Act::SetProfile(system) => match self.nix.set_profile(&system) {
                Ok(()) => Done::Well,
                Err(error) => Done::Failed(error.to_string()),
            },
            Act::RemoveProfile => match self.nix.remove_profile() {
                Ok(()) => Done::Well,
                Err(error) => Done::Failed(error.to_string()),
            },
            Act::Tidy { from, to } => {
                from.iter().for_each(|from| self.platform.tidy(from, &to));
                Done::Well
            }
            Act::Run { system, action, limit } => match self.prepare(&system, action, new) {
                Ok(()) => {
                    let way = if system == *new { Way::Forth } else { Way::Back };
                    self.run(&system, action, way, limit)
                }
                Err(error) => Done::Failed(error.to_string()),
            },
            Act::EnsureAgent { from, to } => {
                self.platform.ensure_agent(from.as_ref(), &to);
                Done::Well
            }
            Act::Pause(pause) => {
                std::thread::sleep(pause);
                Done::Well
            }
            Act::Write | Act::End => Done::Well,
        }
    }

    /// The secrets that a system needs before its activation. Going back must not depend on them.
    fn prepare(&self, system: &StorePath, action: Action, new: &StorePath) -> Result<(), SecretsError> {
        if action == Action::DryActivate {
            return Ok(());
        }
        match secrets::install(self.platform.layout(), system) {
            Err(error) if system != new => {
                tracing::error!("the old system may lack its secrets: {error}");
                Ok(())
            }
            installed => installed,
        }
    }

    fn run(&self, system: &StorePath, action: Action, way: Way, limit: Duration) -> Done {
        tracing::info!(%system, action = action.as_str(), "activating");
        let finished = match self.platform.activate(system, action, way, limit) {
            Ok(finished) => finished,
            Err(error) => return Done::Failed(error.to_string()),
        };
        tracing::info!(exit = finished.exit, timed_out = finished.timed_out, "the activation ended");
        Done::Ran(Ran {
            outcome: self.platform.outcome(&finished),
            person: self.platform.needs_human(finished.exit, &finished.said),
            ailing: self.platform.ailing(&finished),
            exit: finished.exit,
            timed_out: finished.timed_out,
            output: finished.output,
        })
    }

    /// Observes the machine and the verdict on this record.
    fn look(&self, transaction: &str) -> Sighting {
        let layout = self.platform.layout();
        let file = self.files.confirmation_file();
        let verdict = file.as_ref().and_then(|_| self.files.confirmation().ok()?.whole());
        Sighting {
            running: layout.running(),
            profile: layout.profile_target(),
            verdict: verdict.filter(|given| given.transaction == transaction).map(|given| given.verdict),
            file,
            now: self.clock.awake(),
        }
    }

    /// The same; an unchanged verdict file need not be read again.
    fn look_again(&self, transaction: &str, before: Sighting) -> Sighting {
        if self.files.confirmation_file() != before.file {
            return self.look(transaction);
        }
        let layout = self.platform.layout();
        let (running, profile) = (layout.running(), layout.profile_target());
        Sighting { running, profile, now: self.clock.awake(), ..before }
    }
}

/// What was observed at one moment.
struct Sighting {
    running: Option<StorePath>,
    profile: Option<StorePath>,
    verdict: Option<GivenVerdict>,
    /// Which file the verdict is of.
    file: Option<FileId>,
    now: Duration,
}

impl Sighting {
    fn sight(&self) -> Sight<'_> {
        Sight {
            running: self.running.as_ref(),
            profile: self.profile.as_ref(),
            verdict: self.verdict.as_ref(),
            now: self.now,
        }
    }
}
