//! What several controllers on one database share: the chain of roots, and word of what the others did.

use std::convert::Infallible;

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::MachineName;

use super::postgres::{self, Listener};
use super::{Database, Failed, Heard, Store, StoreError, Transaction};
use crate::config::DatabaseSettings;
use crate::core::audit::AuditContext;
use crate::core::change::Decided;
use crate::core::roots;
use crate::core::settings::{Prints, Told};

/// The roots in a database that several controllers share.
#[derive(Debug, Clone)]
pub struct SharedRoots(postgres::Postgres);

impl SharedRoots {
    /// The version of the newest root; 0 if there is none.
    pub async fn newest(&self) -> Result<u64, StoreError> {
        super::within(self.0.newest_root()).await
    }
    /// The roots after this one, oldest first.
    pub async fn after(&self, version: u64) -> Result<Vec<Vec<u8>>, StoreError> {
        super::within(self.0.roots_after(version)).await
    }
    /// Adds the next root; false if there is one with that number, or none with the number before.
    pub async fn add(&self, version: u64, document: &[u8]) -> Result<bool, StoreError> {
        super::within(self.0.add_root(version, document)).await
    }
}

impl Store {
    /// Adds the next root to the shared ones, together with its entry in the log; false if another controller
    /// has added one with that number.
    pub async fn publish_shared_root(
        &self,
        version: u64,
        document: &[u8],
        context: &AuditContext<'_>,
        now: UnixMillis,
    ) -> Result<bool, StoreError> {
        let decided = self.decide(
            |mut transaction| async move {
                let added = match &mut transaction {
                    Transaction::Sqlite(_) => false,
                    Transaction::Postgres(transaction) => transaction.add_root(version, document).await?,
                };
                let logged = transaction.root_logged().await?;
                Ok((transaction, (added, logged)))
            },
            |(added, logged)| {
                Ok::<_, Infallible>(match added {
                    true => {
                        let Decided { changes, .. } = roots::in_force(*logged, version, Some(context), now);
                        Decided { changes, answer: true }
                    }
                    false => Decided::unchanged(false),
                })
            },
        );
        Ok(decided.await.map_err(Failed::into_store)?.answer)
    }

    /// The number of the newest change in a shared database.
    pub async fn newest_change(&self) -> Result<u64, StoreError> {
        match &self.database {
            Database::Sqlite(_) => Ok(0),
            Database::Postgres(database) => super::within(database.newest_change()).await,
        }
    }

    /// The machines that other controllers changed after this number, and the number to ask for next.
    pub async fn changed_since(&self, number: u64) -> Result<(Vec<MachineName>, u64), StoreError> {
        match &self.database {
            Database::Sqlite(_) => Ok((Vec::new(), number)),
            Database::Postgres(database) => super::within(database.changed_since(number)).await,
        }
    }

    /// What the controllers on a shared database tell of their settings, this one too.
    pub async fn told(&self) -> Result<Vec<Told>, StoreError> {
        match &self.database {
            Database::Sqlite(_) => Ok(Vec::new()),
            Database::Postgres(database) => super::within(database.told()).await,
        }
    }

    /// `None` if this database belongs to one controller, whose roots are in a folder.
    pub fn shared_roots(&self) -> Option<SharedRoots> {
        match &self.database {
            Database::Sqlite(_) => None,
            Database::Postgres(database) => Some(SharedRoots(database.clone())),
        }
    }
}

/// A connection on which other controllers are heard.
#[derive(Debug)]
pub struct Ear(Listener);

impl Ear {
    /// `None` if there are no others, or if they cannot be heard.
    pub fn of(database: &DatabaseSettings) -> Result<Option<Self>, StoreError> {
        let DatabaseSettings::Postgres(settings) = database else { return Ok(None) };
        Ok(postgres::listen_options(settings)?.map(|options| Self(Listener::new(options))))
    }

    /// Listens until the connection ends, and tells others of this controller's settings as long as it lasts.
    pub async fn listen(
        &self,
        heard: &mut (impl FnMut(Heard) + Send),
        prints: &(impl Fn() -> Prints + Sync),
    ) -> Result<(), StoreError> {
        self.0.listen(heard, prints).await
    }
}
