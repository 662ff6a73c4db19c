//! The audit log: its newest entry, and its cut.

use std::sync::PoisonError;

use muster_protocol::audit::{Checkpoint, MAX_PAGE, Page};
use muster_protocol::clock::UnixMillis;
use muster_protocol::signed_cut::SignedCut;

use super::{Applied, Failed, Store, StoreError};
use crate::core::audit::AuditContext;
use crate::core::log::{self, CutRefusal, Reading};

impl Store {
    /// The entries of the audit log after `after`, oldest first.
    pub async fn audit(&self, after: u64, limit: u32) -> Result<Page, StoreError> {
        self.database.audit(after, limit.min(MAX_PAGE)).await
    }

    /// The newest entry that this process knows of; from memory. `None` while the log is empty.
    pub fn newest_entry(&self) -> Option<Checkpoint> {
        let newest = *self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        (newest.id > 0).then_some(newest)
    }

    /// Remembers what was committed.
    pub(super) fn logged(&self, applied: &Applied) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever comes later may have committed earlier.
        if let Some(entry) = applied.log.filter(|entry| entry.id > newest.id) {
            *newest = entry;
        }
    }

    /// Lets the log begin after an entry that was exported. What is before it is removed later, in small
    /// steps.
    pub async fn cut_log(
        &self,
        signed: &SignedCut,
        context: &AuditContext<'_>,
        now: UnixMillis,
    ) -> Result<Checkpoint, Failed<CutRefusal>> {
        let through = signed.asked.through.id;
        let (view, stored) = log_of(self.database.view().await?, through).await?;
        drop(view);
        let mut reading = Reading::from(stored.anchor);
        loop {
            let page = self.database.audit(reading.at(), MAX_PAGE).await?;
            if !reading.add(&page.entries, through).map_err(Failed::Refused)? {
                break;
            }
        }
        let read = reading.done();
        let decided = self.decide(
            |transaction| log_of(transaction, through),
            |stored| log::cut(stored, &read, signed, context, now),
        );
        Ok(decided.await?.answer)
    }
}

async fn log_of(
    mut transaction: super::Transaction,
    through: u64,
) -> Result<(super::Transaction, log::Stored), StoreError> {
    let stored = transaction.log(through).await?;
    Ok((transaction, stored))
}
