//! What is done when there is nothing new: looking whether somebody changed the machine, and reboots.

use std::time::Duration;

use muster_protocol::machine::Class;

use super::Shared;
use super::work::{Work, WorkError};
use crate::core::plan::RebootNote;
use crate::core::reboot::{Due, Rebooted};

/// How often the service manager is asked which units have failed while nothing happens.
const UNITS_INTERVAL: Duration = Duration::from_secs(1800);

impl Work<'_> {
    /// Looks at the machine; whether there is something new to plan for.
    pub(super) async fn rest(&mut self) -> Result<bool, WorkError> {
        let running = self.shared.platform.layout().running();
        let now = self.shared.clock.unix_ms();
        if let Some(running) = running
            && self.shared.ledger.borrow_mut().drift(&running, now)?
        {
            tracing::warn!(%running, "the running system was changed, or changed back");
            self.shared.changed();
            return Ok(true);
        }
        // Nothing to plan for, and worth telling.
        let specialisation = self.shared.platform.layout().specialisation();
        if self.specialisation != specialisation {
            self.specialisation = specialisation;
            self.shared.changed();
        }
        self.look_at_units().await;
        Ok(false)
    }

    async fn look_at_units(&mut self) {
        let now = self.shared.clock.awake();
        if self.units_seen.is_some_and(|seen| now.saturating_sub(seen) < UNITS_INTERVAL) {
            return;
        }
        self.units_seen = Some(now);
        match self.ask(|platform| platform.failed_units()).await {
            Ok(units) if self.shared.degraded.borrow().as_ref() != Some(&units) => {
                if !units.is_empty() {
                    tracing::warn!("units have failed: {}", units.join(", "));
                }
                *self.shared.degraded.borrow_mut() = Some(units);
                self.shared.changed();
            }
            Ok(_) => {}
            Err(error) => tracing::warn!("{error}"),
        }
    }

    /// Reboots, once: that it was asked for is durable first.
    pub(super) async fn reboot(&mut self, due: Due) -> Result<(), WorkError> {
        let why = format!("for {}", due.what.join(", "));
        tracing::warn!("rebooting {why}");
        let rebooted = Rebooted { mark: due.mark, boot: self.shared.boot.clone() };
        let now = self.shared.clock.unix_ms();
        self.shared.ledger.borrow_mut().reboot(rebooted, why, now)?;
        self.shared.changed();
        let asked = self.ask(|platform| platform.reboot()).await;
        if asked.is_err() {
            // Nobody took the request, so it may be made again.
            self.shared.ledger.borrow_mut().not_rebooting()?;
        }
        asked
    }
}

impl Shared {
    /// Somebody at the machine takes the generation that is under way at the next boot, one that NixOS does not switch a
    /// running system to for example.
    pub(super) fn ask_at_boot(&self) -> Result<String, String> {
        if self.identity.class == Class::Darwin {
            return Err("a Mac is switched while it runs, and by nothing else".to_owned());
        }
        let ledger = self.ledger.borrow();
        let Some(open) = ledger.transaction().filter(|open| open.state.is_before_activation()) else {
            return Err("nothing waits here for a reboot: see muster-agent status".to_owned());
        };
        *self.at_boot.borrow_mut() = Some(open.id.clone());
        self.asked.set(true);
        self.work.notify_one();
        Ok(format!("generation {} is made what the next boot brings", open.generation()))
    }

    pub(super) fn is_asked_for_at_boot(&self) -> bool {
        let ledger = self.ledger.borrow();
        ledger.transaction().is_some_and(|open| self.at_boot.borrow().as_ref() == Some(&open.id))
    }

    /// `None`: what is known still holds.
    pub(super) fn note_reboot(&self, note: Option<Option<RebootNote>>) {
        let Some(note) = note else { return };
        if *self.reboot.borrow() != note {
            *self.reboot.borrow_mut() = note;
            self.changed();
        }
    }
}
