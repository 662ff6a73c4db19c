//! What the controller works with, shared by the HTTP handlers and the controller's own loops.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use muster_protocol::cache::Collection;
use muster_protocol::clock::{Clock, UnixMillis};
use muster_protocol::keys::PublicKey;
use tokio::sync::{Mutex, watch};

use crate::certificate::Certificate;
use crate::config::Limits;
use crate::core::audit::AuditContext;
use crate::core::roots::RootRefusal;
use crate::keyring::Keyring;
use crate::notify::Notify;
use crate::rollout::held::Plans;
use crate::roots::{Roots, RootsError};
use crate::settings::Settings;
use crate::signer::{NotNamed, OnlineKey, OnlineSigner};
use crate::store::blobs::Blobs;
use crate::store::{Failed, Store, StoreError};
use crate::wakers::Wakers;

pub struct Services {
    pub store: Store,
    pub blobs: Blobs,
    pub roots: Roots,
    pub online: OnlineKey,
    pub keyring: Keyring,
    /// `None` if connections are accepted without TLS.
    pub certificate: Option<Arc<Certificate>>,
    pub settings: Settings,
    pub clock: Arc<dyn Clock>,
    pub limits: Limits,
    /// Machines waiting in a long poll.
    pub wakers: Wakers,
    /// Operators waiting for changes.
    pub notify: Notify,
    /// The newest run of the cache's collector.
    pub collecting: std::sync::Mutex<Option<watch::Receiver<Collection>>>,
    /// Held while a root comes into force and until it is logged, so that no other task sees it in between.
    /// What it holds outlives a client that hangs up.
    pub root_log: Mutex<Option<UnloggedRoot>>,
    /// The controller's own loops.
    pub pulse: Pulse,
    /// Plans of rollouts, and what machines are known to have signed.
    pub plans: Plans,
}

/// When the controller's loops last went round.
#[derive(Debug, Default)]
pub struct Pulse(AtomicU64);

impl Pulse {
    pub fn beat(&self, clock: &dyn Clock) {
        self.0.store(u64::try_from(clock.awake().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How long ago that was.
    pub fn age(&self, clock: &dyn Clock) -> Duration {
        clock.awake().saturating_sub(Duration::from_millis(self.0.load(Ordering::Relaxed)))
    }
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

    /// The signer of timestamps, if the newest root names its key. Otherwise machines would call the
    /// timestamp forged.
    pub fn signer(&self) -> Result<Arc<OnlineSigner>, NotNamed> {
        let chain = self.roots.current();
        self.online.signer(|key| chain.may_sign_timestamps(key)).ok_or(NotNamed)
    }

    /// Puts the next root in force: first its file, then its entry in the log. The root is in force once the
    /// file is written, so a failure to log it is not a refusal: the entry follows as soon as possible, under
    /// the operator's name. A crash in between leaves a root in force without an entry; the next start logs
    /// it as found.
    pub async fn publish_root(
        &self,
        version: u64,
        root: &[u8],
        context: &AuditContext<'_>,
    ) -> Result<(), Failed<RootsError>> {
        if self.roots.shared() {
            return self.publish_shared_root(version, root, context).await;
        }
        let mut unlogged = self.root_log.lock().await;
        self.log_newest_root(&mut unlogged).await?;
        self.roots.put(version, root).map_err(Failed::Refused)?;
        *unlogged = Some(UnloggedRoot { version, operator: *context.operator, at: context.at });
        if let Err(error) = self.log_newest_root(&mut unlogged).await {
            tracing::error!(version, "the new root is in force, and the log cannot say so yet: {error}");
        }
        Ok(())
    }

    /// In a shared database the root and its entry come together.
    async fn publish_shared_root(
        &self,
        version: u64,
        root: &[u8],
        context: &AuditContext<'_>,
    ) -> Result<(), Failed<RootsError>> {
        let added = self.store.publish_shared_root(version, root, context, self.now()).await?;
        self.roots.refresh().await?;
        if added {
            return Ok(());
        }
        let held = self.roots.current().newest().version();
        Err(Failed::Refused(RootsError::Refused(RootRefusal::NotNext { held, found: version })))
    }

    /// Logs a root that is in force and not in the log: one that came into the folder without being published
    /// here, or one whose entry could not be written.
    pub async fn log_found_root(&self) -> Result<(), StoreError> {
        self.roots.refresh().await?;
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
