//! What the controller does its work with. Whoever works with it (HTTP, a loop of the controller's own) holds
//! the same ones.

use std::sync::Arc;

use muster_protocol::clock::{Clock, UnixMillis};
use muster_protocol::keys::PublicKey;
use tokio::sync::Mutex;

use crate::config::Limits;
use crate::core::audit::AuditContext;
use crate::notify::Notify;
use crate::roots::{Roots, RootsError};
use crate::signer::{NotNamed, OnlineKey, OnlineSigner};
use crate::store::blobs::Blobs;
use crate::store::{Failed, Store, StoreError};
use crate::wakers::Wakers;

pub struct Services {
    pub store: Store,
    pub blobs: Blobs,
    pub roots: Roots,
    pub online: OnlineKey,
    pub clock: Arc<dyn Clock>,
    pub limits: Limits,
    /// Machines that wait in a long poll.
    pub wakers: Wakers,
    /// Operators who wait for changes.
    pub notify: Notify,
    /// Held from the moment that a root comes into force until the log says so: nobody else finds it in
    /// between. What it holds outlives a client that hangs up meanwhile.
    pub root_log: Mutex<Option<UnloggedRoot>>,
}

/// A root that was published here and is in force, and whose entry is not in the log yet.
#[derive(Debug)]
pub struct UnloggedRoot {
    version: u64,
    operator: PublicKey,
    at: UnixMillis,
}

impl Services {
    pub fn now(&self) -> UnixMillis {
        self.clock.unix_ms()
    }
    pub fn now_s(&self) -> i64 {
        self.clock.unix_seconds()
    }

    /// Who signs timestamps, if the newest root names its key. Where it does not, machines would call the
    /// timestamp forged.
    pub fn signer(&self) -> Result<Arc<OnlineSigner>, NotNamed> {
        let chain = self.roots.current();
        self.online.signer(|key| chain.may_sign_timestamps(key)).ok_or(NotNamed)
    }

    /// Puts the next root in force: its file first, then its entry in the log. From the file on the root counts,
    /// so what hinders the entry is no reason to refuse: the entry follows as soon as it can, under the name of the
    /// operator. A crash in between leaves a root that counts and no entry; the next start finds it and logs it as
    /// found.
    pub async fn publish_root(
        &self,
        version: u64,
        root: &[u8],
        context: &AuditContext<'_>,
    ) -> Result<(), Failed<RootsError>> {
        let mut unlogged = self.root_log.lock().await;
        self.log_newest_root(&mut unlogged).await?;
        self.roots.put(version, root).map_err(Failed::Refused)?;
        *unlogged = Some(UnloggedRoot { version, operator: *context.operator, at: context.at });
        if let Err(error) = self.log_newest_root(&mut unlogged).await {
            tracing::error!(version, "the new root is in force, and the log cannot say so yet: {error}");
        }
        Ok(())
    }

    /// Logs a root that is in force and not in the log: one that came into the folder without being published here, or
    /// one whose entry could not be written.
    pub async fn log_found_root(&self) -> Result<(), StoreError> {
        self.log_newest_root(&mut *self.root_log.lock().await).await
    }

    async fn log_newest_root(&self, unlogged: &mut Option<UnloggedRoot>) -> Result<(), StoreError> {
        let version = self.roots.current().newest().version();
        if self.store.logged_root().await? < version {
            let published = unlogged.as_ref().filter(|root| root.version == version);
            let context = published.map(|root| AuditContext { operator: &root.operator, at: root.at });
            self.store.log_root(version, context.as_ref(), self.now()).await?;
        }
        *unlogged = None;
        Ok(())
    }
}
