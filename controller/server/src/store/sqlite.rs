//! SQLite, embedded. One connection writes, so that nobody waits for a lock in the middle of a transaction;
//! some read beside it (WAL).

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};

use super::{StoreError, Tx};

const READERS: u32 = 4;
/// How long anybody waits for a lock or for a connection.
const WAIT: Duration = Duration::from_secs(10);

const BEGIN: &str = "BEGIN IMMEDIATE";

#[derive(Debug, Clone)]
pub struct Sqlite {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl Sqlite {
    pub async fn open(file: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(WAIT);
        let open = |error: &dyn std::fmt::Display| StoreError::Open(format!("{}: {error}", file.display()));
        let pool = |connections| SqlitePoolOptions::new().max_connections(connections).acquire_timeout(WAIT);
        let writer = pool(1).connect_with(options.clone()).await.map_err(|error| open(&error))?;
        sqlx::migrate!("migrations/sqlite").run(&writer).await.map_err(|error| open(&error))?;
        let readers =
            pool(READERS).connect_with(options.read_only(true)).await.map_err(|error| open(&error))?;
        Ok(Self { writer, readers })
    }

    /// A transaction that holds the write lock from its beginning.
    ///
    /// A full disk makes SQLite roll back by itself, which sqlx does not see: it believes that the transaction goes on,
    /// and the connection would refuse every later one. Such a connection is given up for a new one.
    pub async fn begin(&self) -> Result<Tx, StoreError> {
        match self.writer.begin_with(BEGIN).await {
            Err(sqlx::Error::InvalidSavePointStatement) => {
                self.writer.acquire().await?.close().await?;
                Ok(self.writer.begin_with(BEGIN).await?)
            }
            begun => Ok(begun?),
        }
    }

    pub fn read(&self) -> &SqlitePool {
        &self.readers
    }

    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}
