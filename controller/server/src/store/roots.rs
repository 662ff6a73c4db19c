//! Roots in the audit log.

use std::convert::Infallible;

use muster_protocol::clock::UnixMillis;

use super::{Failed, Store, StoreError};
use crate::core::audit::AuditContext;
use crate::core::roots;

impl Store {
    /// The newest root in the log.
    pub async fn logged_root(&self) -> Result<u64, StoreError> {
        self.database.logged_root().await
    }

    /// Logs that a root is in force, once. Without a context, the root was found in the folder.
    pub async fn log_root(
        &self,
        version: u64,
        context: Option<&AuditContext<'_>>,
        now: UnixMillis,
    ) -> Result<(), StoreError> {
        let decided = self.decide(
            |mut transaction| async move {
                let logged = transaction.root_logged().await?;
                Ok((transaction, logged))
            },
            |logged| Ok::<_, Infallible>(roots::in_force(*logged, version, context, now)),
        );
        decided.await.map(drop).map_err(Failed::into_store)
    }
}
