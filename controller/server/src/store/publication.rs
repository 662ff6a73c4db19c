//! Publishing, and the files of a machine's TUF repository.

use std::collections::BTreeMap;

use muster_protocol::ids::{Epoch, Generation, MachineName};
use muster_protocol::operator::HistoryEntry;
use muster_protocol::tuf::TufError;

use super::{Failed, File, Latest, Store, StoreError};
use crate::core::audit::AuditContext;
use crate::core::publication::batch::{self, BatchRefusal};
use crate::core::publication::{self, NewGeneration, PublishRefusal};
use crate::core::rows::Timestamp;
use crate::threads;

impl Store {
    /// Stores a generation and its timestamp, and returns the timestamp. `None`: exactly this generation was
    /// already published.
    pub async fn publish(
        &self,
        new: &NewGeneration<'_>,
        context: &AuditContext<'_>,
        sign: impl Fn(u64, &[u8]) -> Result<Timestamp, TufError>,
    ) -> Result<Option<Timestamp>, Failed<PublishRefusal>> {
        let offered = new.publication.generation;
        let decided = self.decide(
            |mut transaction| async move {
                let stored = transaction.publishing(new.machine, offered).await?;
                Ok((transaction, stored))
            },
            |stored| publication::publish(stored.as_ref(), new, context, &sign),
        );
        Ok(decided.await?.answer)
    }

    /// What is stored of the machines that these generations are for; unknown ones are left out.
    pub async fn publishing_all(
        &self,
        offered: &[(&MachineName, Generation)],
    ) -> Result<BTreeMap<MachineName, publication::Stored>, StoreError> {
        self.database.view().await?.publishing_all(offered).await
    }

    /// Stores many generations and their timestamps, or none. Answers with the timestamps of those that are
    /// published now, by their place in `new`.
    pub async fn publish_all(
        &self,
        new: &[NewGeneration<'_>],
        context: &AuditContext<'_>,
        sign: impl Fn(&MachineName, u64, &[u8]) -> Result<Timestamp, TufError>,
    ) -> Result<Vec<(usize, Timestamp)>, Failed<BatchRefusal>> {
        let offered: Vec<_> = new.iter().map(|one| (one.machine, one.publication.generation)).collect();
        let offered = &offered;
        let decided = self.decide(
            |mut transaction| async move {
                let stored = transaction.publishing_all(offered).await?;
                Ok((transaction, stored))
            },
            |stored| threads::on(usize::MAX, || batch::publish_all(stored, new, context, &sign)),
        );
        Ok(decided.await?.answer)
    }

    /// The current timestamp of a machine; signed again unless `is_good` accepts the stored one. `None` if
    /// nothing was published in this epoch.
    pub async fn timestamp(
        &self,
        machine: &MachineName,
        epoch: Epoch,
        is_good: impl Fn(&Timestamp) -> bool,
        sign: impl Fn(u64, &[u8]) -> Result<Timestamp, TufError>,
    ) -> Result<Option<Timestamp>, Failed<PublishRefusal>> {
        let decided = self.consider(
            |mut transaction| async move {
                let current = transaction.timestamp(machine, epoch).await?;
                Ok((transaction, current))
            },
            |current| publication::timestamp(current.as_ref(), machine, &is_good, &sign),
        );
        Ok(decided.await?.answer)
    }

    pub async fn file(&self, machine: &MachineName, file: File) -> Result<Option<Vec<u8>>, StoreError> {
        self.database.file(machine, file).await
    }

    /// The latest generation of a machine with its timestamp, if anything was published in this epoch.
    pub async fn latest(&self, machine: &MachineName, epoch: Epoch) -> Result<Option<Latest>, StoreError> {
        self.database.latest(machine, epoch).await
    }

    /// The newest generations of a machine, only those before `before` if it is given, with the events it
    /// reported for them.
    pub async fn history(
        &self,
        machine: &MachineName,
        before: Option<Generation>,
        limit: u32,
    ) -> Result<Vec<HistoryEntry>, StoreError> {
        let published = self.database.generations(machine, before, limit).await?;
        let numbers: Vec<Generation> = published.iter().map(|entry| entry.target.generation).collect();
        let mut events = self.database.events(machine, &numbers).await?;
        let entries = published.into_iter().map(|published| {
            let reported = events.remove(&published.target.generation).unwrap_or_default();
            HistoryEntry { published, events: reported.events, left_out: reported.left_out }
        });
        Ok(entries.collect())
    }
}
