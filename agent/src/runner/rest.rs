//! What is done when there is nothing new: checking whether somebody changed the machine, and reboots.

use std::time::Duration;

use super::work::{Work, WorkError};
use crate::core::boots::CameUp;
use crate::core::reboot::{Due, Rebooted};
use crate::core::records::Old;

/// How often the service manager is asked for failed units while nothing happens.
const UNITS_INTERVAL: Duration = Duration::from_secs(1800);

impl Work<'_> {
    /// Looks at the machine; returns whether there is something new to plan for.
    pub(super) async fn rest(&mut self) -> Result<bool, WorkError> {
        if self.fell_back().await? {
            return Ok(true);
        }
        let running = self.shared.platform.layout().running();
        let now = self.shared.clock.unix_ms();
        if let Some(running) = running
            && self.shared.ledger.borrow_mut().drift(&running, now)?
        {
            tracing::warn!(%running, "the running system was changed, or changed back");
            self.shared.wakes.changed();
            self.shared.wakes.wake_soak();
            return Ok(true);
        }
        // Nothing to plan for, but worth reporting.
        let specialisation = self.shared.platform.layout().specialisation();
        if self.specialisation != specialisation {
            self.specialisation = specialisation;
            self.shared.wakes.changed();
        }
        self.look_at_units().await;
        Ok(false)
    }

    /// Takes a confirmed generation back if a boot did not bring it up; returns whether that was so. A switch
    /// that has not changed anything gives way.
    pub(super) async fn fell_back(&mut self) -> Result<bool, WorkError> {
        let layout = self.shared.platform.layout();
        let (Some(running), profile) = (layout.running(), layout.profile_target()) else { return Ok(false) };
        let came_up =
            self.shared.ledger.borrow_mut().came_up(&running, &self.shared.boot, layout.booted().as_ref());
        came_up?;
        let journal = self.shared.ledger.borrow().journal().clone();
        let Some(target) = journal.confirmed.as_ref().and_then(|known| known.target.clone()) else {
            return Ok(false);
        };
        let came_up = CameUp {
            confirmed: &target.output,
            seen_in: journal.seen_in.as_deref(),
            boot: &self.shared.boot,
            booted: journal.booted.as_ref() == Some(&target.output),
            running: &running,
            profile: profile.as_ref(),
        };
        if journal.expected.as_ref() != Some(&target.output)
            || !came_up.is_strange()
            || self.is_switching()?
        {
            return Ok(false);
        }
        let facts = self.ask(|platform| Ok(platform.boots())).await?.unwrap_or_default();
        let Some(why) = came_up.judge(&facts) else { return Ok(false) };
        tracing::error!(%running, "generation {} did not boot: {why}", target.generation);
        let old = Old { running: Some(running.clone()), profile: Some(running.clone()) };
        self.take_back(*target, old, why)?;
        Ok(true)
    }

    /// Whether a transaction, or an activation whose transaction was lost, has begun to change the machine.
    fn is_switching(&self) -> Result<bool, WorkError> {
        let ledger = self.shared.ledger.borrow();
        let begun = ledger.transaction().is_some_and(|open| !open.state.is_before_activation());
        let record = ledger.files.activation()?.whole();
        Ok(begun || record.is_some_and(|record| !record.phase.is_final()))
    }

    async fn look_at_units(&mut self) {
        let now = self.shared.clock.awake();
        if self.units_seen.is_some_and(|seen| now.saturating_sub(seen) < UNITS_INTERVAL) {
            return;
        }
        self.units_seen = Some(now);
        match self.ask(|platform| platform.failed_units()).await {
            Ok(units) if self.shared.doing.degraded().as_ref() != Some(&units) => {
                if !units.is_empty() {
                    tracing::warn!("units have failed: {}", units.join(", "));
                }
                self.shared.doing.set_degraded(units);
                self.shared.wakes.changed();
            }
            Ok(_) => {}
            Err(error) => tracing::warn!("{error}"),
        }
    }

    /// Reboots once: the request is durable first.
    pub(super) async fn reboot(&mut self, due: Due) -> Result<(), WorkError> {
        let why = format!("for {}", due.what.join(", "));
        tracing::warn!("rebooting {why}");
        let rebooted = Rebooted { mark: due.mark, boot: self.shared.boot.clone() };
        let now = self.shared.clock.unix_ms();
        self.shared.ledger.borrow_mut().reboot(rebooted, why, now)?;
        self.shared.wakes.changed();
        let asked = self.ask(|platform| platform.reboot()).await;
        if asked.is_err() {
            // Nobody accepted the request, so it may be made again.
            self.shared.ledger.borrow_mut().not_rebooting()?;
        }
        asked
    }
}
