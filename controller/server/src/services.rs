//! What the controller does its work with. Whoever works with it (HTTP, a loop of the controller's own) holds
//! the same ones.

use std::sync::Arc;

use muster_protocol::clock::{Clock, UnixMillis};
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
    /// between.
    pub root_log: Mutex<()>,
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

    /// Puts the next root in force: its file first, then its entry in the log. A crash in between leaves a
    /// root that counts and no entry; the next start finds it and logs it as found.
    pub async fn publish_root(
        &self,
        version: u64,
        root: &[u8],
        context: &AuditContext<'_>,
    ) -> Result<(), Failed<RootsError>> {
        let _in_turn = self.root_log.lock().await;
        self.roots.put(version, root).map_err(Failed::Refused)?;
        Ok(self.store.log_root(version, Some(context), self.now()).await?)
    }

    /// Logs a root that came into force without being published here.
    pub async fn log_found_root(&self) -> Result<(), StoreError> {
        let _in_turn = self.root_log.lock().await;
        let version = self.roots.current().newest().version();
        if self.store.logged_root().await? < version {
            self.store.log_root(version, None, self.now()).await?;
        }
        Ok(())
    }
}
