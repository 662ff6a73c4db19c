//! Forgetting, in steps so small that others hardly wait for the one connection that writes.

use std::convert::Infallible;

use muster_protocol::clock::UnixMillis;

use super::{Failed, Store, StoreError, nothing};
use crate::core::change::Decided;
use crate::core::retention::{self, Kept};

/// How many machines one read looks at.
const MACHINES: u32 = 256;

impl Store {
    /// Removes expired bearers, nonces, drafts and requests.
    pub async fn sweep(&self, now_s: i64) -> Result<(), StoreError> {
        self.repeat(|| retention::sweep(now_s)).await
    }

    /// Removes events that arrived before `before`, except those that decided a generation.
    pub async fn forget_events(&self, before: UnixMillis) -> Result<(), StoreError> {
        self.repeat(|| retention::forget_events(before)).await
    }

    /// Removes tokens that ended long ago.
    pub async fn forget_tokens(&self, now_s: i64) -> Result<(), StoreError> {
        self.repeat(|| retention::forget_tokens(now_s)).await
    }

    /// Removes attacks that ended before `before`.
    pub async fn forget_attacks(&self, before: UnixMillis) -> Result<(), StoreError> {
        self.repeat(|| retention::forget_attacks(before)).await
    }

    /// Removes entries of the log that were cut.
    pub async fn forget_cut_entries(&self) -> Result<(), StoreError> {
        self.repeat(retention::forget_cut_entries).await
    }

    /// Removes the old generations of all machines.
    pub async fn forget_generations(&self, kept: Kept) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let machines = self.database.machines_after(after.as_ref(), MACHINES, kept).await?;
            for (machine, _) in machines.iter().filter(|(_, has_old)| *has_old) {
                let decided = self.consider(
                    |mut transaction| async move {
                        let old = transaction.old_generations(machine, kept).await?;
                        Ok((transaction, old))
                    },
                    |old| {
                        let forget = |old| retention::forget_generations(machine, old);
                        Ok::<_, Infallible>(old.as_ref().map_or(Decided::unchanged(()), forget))
                    },
                );
                decided.await.map_err(Failed::into_store)?;
            }
            match machines.into_iter().last() {
                Some((last, _)) => after = Some(last),
                None => return Ok(()),
            }
        }
    }

    /// Repeats a decision until it removes nothing more.
    pub(super) async fn repeat(&self, decision: impl Fn() -> Decided<()>) -> Result<(), StoreError> {
        loop {
            let decided = self.decide(nothing, |()| Ok::<_, Infallible>(decision()));
            if decided.await.map_err(Failed::into_store)?.applied.forgotten == 0 {
                return Ok(());
            }
        }
    }
}
