//! The chain of roots, which all controllers of a fleet share.

use super::columns::{query, query_scalar, signed, unsigned};
use super::connection::{Postgres, Transaction};
use super::locks::{self, Lock};
use super::notify;
use crate::store::error::StoreError;

impl Postgres {
    /// The version of the newest root; 0 if there is none.
    pub async fn newest_root(&self) -> Result<u64, StoreError> {
        let newest: i64 = query_scalar("SELECT coalesce(max(version), 0) FROM roots")
            .fetch_one(self.view().await?.connection())
            .await?;
        Ok(unsigned(newest))
    }

    /// The roots after this one, oldest first.
    pub async fn roots_after(&self, version: u64) -> Result<Vec<Vec<u8>>, StoreError> {
        let roots = query_scalar("SELECT document FROM roots WHERE version > $1 ORDER BY version")
            .bind(signed(version))
            .fetch_all(self.view().await?.connection())
            .await?;
        Ok(roots)
    }

    /// Adds the next root; false if there is one with that number, or none with the number before.
    pub async fn add_root(&self, version: u64, document: &[u8]) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let added = tx.add_root(version, document).await?;
        tx.commit().await?;
        Ok(added)
    }
}

impl Transaction {
    pub async fn add_root(&mut self, version: u64, document: &[u8]) -> Result<bool, StoreError> {
        locks::take(self.connection(), Lock::Roots).await?;
        let added = query(
            "INSERT INTO roots (version, document)
             SELECT $1, $2 WHERE $1 = 1 + (SELECT coalesce(max(version), 0) FROM roots)",
        )
        .bind(signed(version))
        .bind(document)
        .execute(self.connection())
        .await?;
        notify::everything(self.connection()).await?;
        Ok(added.rows_affected() == 1)
    }
}
