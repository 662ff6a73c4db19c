//! The marks of the cache's files, and what signed generations need.

use std::collections::BTreeSet;
use std::convert::Infallible;

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::MachineName;

use super::answers::NeededPage;
use super::{Failed, Store, StoreError};
use crate::core::audit::AuditContext;
use crate::core::garbage::{self, GarbageRefusal, Marks, Sentence};
use crate::core::retention::{Kept, last_confirmed};

/// How many machines one read looks at.
const CONFIRMED_AT_ONCE: u32 = 64;

impl Store {
    /// An operator uploads these files, or one that relies on them: they are spared.
    pub async fn spare_upload(
        &self,
        names: &[String],
        now: UnixMillis,
    ) -> Result<(), Failed<GarbageRefusal>> {
        let decided = self.consider(
            |mut transaction| async move {
                let marks = transaction.cache_marks(names).await?;
                Ok((transaction, marks))
            },
            |marks| garbage::upload(marks, now),
        );
        decided.await.map(drop)
    }

    /// Whether operators are told that the cache does not have this file.
    pub async fn is_condemned(&self, name: &str) -> Result<bool, StoreError> {
        self.database.cache_marked(name).await
    }

    /// Those of these files that operators are told are missing.
    pub async fn condemned(&self, names: &[String]) -> Result<BTreeSet<String>, StoreError> {
        let marks = self.database.view().await?.cache_marks(names).await?;
        Ok(marks.into_keys().collect())
    }

    /// Something needs these files after all.
    pub async fn spare(&self, names: &[String]) -> Result<(), StoreError> {
        let decided = self.consider(
            |mut transaction| async move {
                let marks = transaction.cache_marks(names).await?;
                Ok((transaction, marks))
            },
            |marks| Ok::<_, Infallible>(garbage::spare(marks)),
        );
        decided.await.map(drop).map_err(Failed::into_store)
    }

    /// Decides about files that nothing needs. Those to be removed count as being removed from now on.
    pub async fn sentence(&self, names: &[String], now: UnixMillis) -> Result<Sentence, StoreError> {
        let decided = self.decide(
            |mut transaction| async move {
                let marks = transaction.cache_marks(names).await?;
                Ok((transaction, marks))
            },
            |marks: &Marks| Ok::<_, Infallible>(garbage::sentence(names, marks, now)),
        );
        Ok(decided.await.map_err(Failed::into_store)?.answer)
    }

    /// The same without changing anything.
    pub async fn dry_sentence(&self, names: &[String], now: UnixMillis) -> Result<Sentence, StoreError> {
        let marks = self.database.view().await?.cache_marks(names).await?;
        Ok(garbage::sentence(names, &marks, now).answer)
    }

    /// These files are gone.
    pub async fn removed(&self, names: &[String]) -> Result<(), StoreError> {
        let decided = self.decide(super::nothing, |()| Ok::<_, Infallible>(garbage::removed(names)));
        decided.await.map(drop).map_err(Failed::into_store)
    }

    /// Records that a run has ended.
    pub async fn collected(&self, detail: &str, context: &AuditContext<'_>) -> Result<(), StoreError> {
        let decided =
            self.decide(super::nothing, |()| Ok::<_, Infallible>(garbage::collected(detail, context)));
        decided.await.map(drop).map_err(Failed::into_store)
    }

    /// The marked files after `after`, by name.
    pub async fn marked(&self, after: &str, limit: u32) -> Result<Vec<String>, StoreError> {
        self.database.cache_marked_after(after, limit).await
    }

    /// The newest published generation of each machine, and every one published since; a page after
    /// `after`, which is where the last page ended.
    pub async fn needed(&self, since: UnixMillis, after: &NeededPage) -> Result<NeededPage, StoreError> {
        let after_generation = after.after.as_ref().map_or(0, |(_, generation)| generation.packed());
        let after_machine = after.after.as_ref().map_or("", |(machine, _)| machine.as_str());
        self.database.needed(since, after_machine, after_generation).await
    }

    /// The targets of the generations that each machine confirmed last, of the next machines after this one,
    /// and the last of them; `None` after all of them.
    pub async fn confirmed(
        &self,
        after: Option<&MachineName>,
    ) -> Result<Option<(MachineName, Vec<Vec<u8>>)>, StoreError> {
        let kept = Kept { newest: 1, since: UnixMillis::MAX };
        let machines = self.database.machines_after(after, CONFIRMED_AT_ONCE, kept).await?;
        let mut targets = Vec::new();
        for (machine, _) in &machines {
            for generation in last_confirmed(&self.database.decisions(machine).await?) {
                targets.extend(self.database.target_of(machine, generation).await?);
            }
        }
        Ok(machines.into_iter().last().map(|(last, _)| (last, targets)))
    }
}
