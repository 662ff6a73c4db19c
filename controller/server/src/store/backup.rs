//! A copy of the database while controllers use it.

use std::path::Path;

use muster_protocol::audit::Checkpoint;
use muster_protocol::ids::Sha256;
use tokio::sync::mpsc;

use super::copy::{CopyError, WAITING, in_order};
use super::{Store, StoreError, postgres, sqlite};
use crate::config::DatabaseSettings;

impl Store {
    /// Copies a database that controllers use into `muster.db` in the folder `to`, as it is at one moment.
    /// Migrates nothing. Returns the newest entry of its log, and the roots that are in the database.
    pub async fn back_up(
        database: &DatabaseSettings,
        data: &Path,
        to: &Path,
        fleet: &Sha256,
    ) -> Result<(Checkpoint, Vec<Vec<u8>>), CopyError> {
        let file = to.join("muster.db");
        let DatabaseSettings::Postgres(settings) = database else {
            let (found, newest) = sqlite::Sqlite::copy_file(&data.join("muster.db"), &file).await?;
            if found != *fleet {
                let (wanted, found) = (fleet.short(), found.short());
                return Err(StoreError::OtherFleet { wanted, found }.into());
            }
            return Ok((newest, Vec::new()));
        };
        let source = postgres::Postgres::beside(settings, fleet).await?;
        let target = Self::open(to, fleet).await?;
        let tables = in_order(source.tables().await?);
        let (sender, receiver) = mpsc::channel(WAITING);
        let (shared, read) = (source.clone(), tables.clone());
        let reading = tokio::spawn(async move { shared.read_view(&read, sender).await });
        target.write_all(&tables, receiver, reading).await?;
        let newest = target.database.newest_entry().await?;
        target.close().await;
        // After the rows: a root that they name is among these.
        let roots = source.roots_after(0).await?;
        source.close().await;
        Ok((newest, roots))
    }
}
