//! What the controller does its work with. Whoever works with it (HTTP, a loop of the controller's own) holds the same ones.

use std::sync::Arc;

use muster_protocol::clock::{Clock, UnixMillis};

use crate::config::Limits;
use crate::notify::Notify;
use crate::roots::Roots;
use crate::signer::{NotNamed, OnlineKey, OnlineSigner};
use crate::store::blobs::Blobs;
use crate::store::{Store, StoreError};
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
}

impl Services {
    pub fn now(&self) -> UnixMillis {
        self.clock.unix_ms()
    }
    pub fn now_s(&self) -> i64 {
        self.clock.unix_seconds()
    }

    /// Who signs timestamps, if the newest root names its key. Where it does not, machines would call the timestamp forged.
    pub fn signer(&self) -> Result<Arc<OnlineSigner>, NotNamed> {
        let chain = self.roots.current();
        self.online.signer(|key| chain.may_sign_timestamps(key)).ok_or(NotNamed)
    }

    /// Logs a root that came into force without being published here.
    pub async fn log_root(&self) -> Result<(), StoreError> {
        let version = self.roots.current().newest().version();
        if self.store.logged_root().await? < version {
            self.store.log_root(version, None, self.now()).await?;
        }
        Ok(())
    }
}
