//! Plans and verified statements in memory. A plan is named by the hash of its bytes, so what was read once
//! stays true.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use muster_protocol::ids::{MachineName, Sha256};
use muster_protocol::keys::Signature;
use muster_protocol::plan::{Claim, Plan, Said};
use tokio::time::Instant;

use crate::store::{Store, StoreError};
use crate::threads;

/// How many bytes of plans are held; in memory each is a few times as large. With more, all are read again.
const MOST_BYTES: usize = 16 * 1024 * 1024;
/// How many statements are known to be signed: 48 µs each to verify again.
const MOST_VERIFIED: usize = 100_000;
/// How many plans are known to be unknown, and for how long.
const MOST_UNKNOWN: usize = 1024;
const UNKNOWN: Duration = Duration::from_secs(30);

/// A stored plan.
#[derive(Debug)]
pub struct Held {
    pub plan: Arc<Plan>,
    pub bytes: Bytes,
}

#[derive(Debug, Default)]
pub struct Plans(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    held: HashMap<Sha256, Arc<Held>>,
    bytes: usize,
    /// Until when nobody looks for a plan that a machine named.
    unknown: HashMap<Sha256, Instant>,
    verified: HashSet<[u8; 32]>,
    /// Stored plans that this version cannot read.
    unreadable: HashSet<Sha256>,
}

impl Plans {
    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A stored plan. What this version cannot read is as good as not there.
    pub async fn get(&self, store: &Store, plan: &Sha256) -> Result<Option<Arc<Held>>, StoreError> {
        if let Some(held) = self.with(|inner| inner.held.get(plan).cloned()) {
            return Ok(Some(held));
        }
        let Some(bytes) = store.plan(plan).await? else { return Ok(None) };
        let read = threads::on(bytes.len(), || Plan::parse_named(&bytes, *plan));
        let parsed = match read {
            Ok(parsed) => parsed,
            Err(error) => {
                // Once: it is asked for all the time.
                if self.with(|inner| inner.unreadable.insert(*plan)) {
                    tracing::warn!(
                        "the plan {} cannot be read, and its rollout stands still: {error}",
                        plan.short()
                    );
                }
                return Ok(None);
            }
        };
        let held = Arc::new(Held { plan: Arc::new(parsed), bytes: bytes.into() });
        self.with(|inner| {
            inner.unknown.remove(plan);
            if inner.bytes + held.bytes.len() > MOST_BYTES {
                (inner.held, inner.bytes) = (HashMap::new(), 0);
            }
            if inner.held.insert(*plan, held.clone()).is_none() {
                inner.bytes += held.bytes.len();
            }
        });
        Ok(Some(held))
    }

    /// The same for a plan that a machine named: one that is not there is not looked for all the time.
    pub async fn spoken_of(&self, store: &Store, plan: &Sha256) -> Result<Option<Arc<Held>>, StoreError> {
        let now = Instant::now();
        if self.with(|inner| inner.unknown.get(plan).is_some_and(|until| *until > now)) {
            return Ok(None);
        }
        let found = self.get(store, plan).await?;
        if found.is_none() {
            self.with(|inner| {
                if inner.unknown.len() >= MOST_UNKNOWN {
                    inner.unknown.clear();
                }
                inner.unknown.insert(*plan, now + UNKNOWN);
            });
        }
        Ok(found)
    }

    /// This plan was stored just now.
    pub fn stored(&self, plan: &Sha256) {
        self.with(|inner| inner.unknown.remove(plan));
    }

    /// Plans may have been removed.
    pub fn forget(&self) {
        self.with(|inner| {
            (inner.held, inner.bytes) = (HashMap::new(), 0);
            inner.unreadable.clear();
        });
    }

    /// Whether a machine signed this with the key that the plan has of it.
    pub fn is_signed(
        &self,
        (hash, plan): (Sha256, &Plan),
        machine: &MachineName,
        said: Said,
        signature: &Signature,
    ) -> bool {
        let Some(voucher) = plan.voucher(machine) else { return false };
        let name = [machine.as_str(), " ", said.as_str()].concat();
        let what = [hash.as_bytes().as_slice(), signature.as_bytes(), name.as_bytes()].concat();
        let id = *Sha256::of(&what).as_bytes();
        if self.with(|inner| inner.verified.contains(&id)) {
            return true;
        }
        let good = Claim { hash, plan, voucher, said }.verify(signature).is_ok();
        if good {
            self.with(|inner| {
                if inner.verified.len() >= MOST_VERIFIED {
                    inner.verified.clear();
                }
                inner.verified.insert(id);
            });
        }
        good
    }
}
