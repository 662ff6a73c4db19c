//! One connection writes, so that no transaction has to wait for a lock halfway; several read beside it
//! (WAL).

use std::path::Path;
use std::time::Duration;

use muster_protocol::ids::Sha256;
use sqlx::Connection as _;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};

use super::columns::sha256;
use crate::store::error::StoreError;
use crate::store::queue::MOST_TOGETHER;

pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");
const READERS: u32 = 4;
/// After how many pages the write-ahead log is copied into the database: 16 MiB.
const CHECKPOINT_PAGES: &str = "4096";
/// How much of the database the writer keeps in memory, in KiB (negative for SQLite): the rows of thousands
/// of machines that check in again and again. Ten thousand whose rows have 1 KiB take 10 MiB.
const WRITER_CACHE: &str = "-32768";
/// How long to wait for a lock or a connection.
pub(super) const WAIT: Duration = Duration::from_secs(10);

/// One writer: it takes the lock at the start, so that what a transaction has read stays true until it
/// commits.
const BEGIN: &str = "BEGIN IMMEDIATE";

#[derive(Debug, Clone)]
pub struct Sqlite {
    writer: SqlitePool,
    readers: SqlitePool,
}

/// A transaction: of the writer, or of a reader, which sees one snapshot of the database.
pub struct Transaction {
    transaction: sqlx::Transaction<'static, sqlx::Sqlite>,
}

impl Sqlite {
    /// Whether the file is a database with a fleet's state. Creates and changes nothing.
    pub async fn exists(file: &Path) -> Result<bool, StoreError> {
        if !file.is_file() {
            return Ok(false);
        }
        let options = SqliteConnectOptions::new().filename(file).read_only(true).busy_timeout(WAIT);
        let open = |error: sqlx::Error| opened(file, &error);
        let mut connection = SqliteConnection::connect_with(&options).await.map_err(open)?;
        let found: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_master WHERE name = 'fleet'")
            .fetch_one(&mut connection)
            .await
            .map_err(open)?;
        connection.close().await?;
        Ok(found > 0)
    }

    /// Opens the database of a fleet, creates it if needed, and migrates it to the newest schema.
    pub async fn open(file: &Path, fleet: &Sha256) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            // Pages that are written again and again are copied into the database less often.
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
            // What a statement would undo by is not worth a file.
            .pragma("temp_store", "MEMORY")
            // All rows of a group at once, so that its reader is woken once.
            .row_buffer_size(MOST_TOGETHER + 1)
            .busy_timeout(WAIT);
        let open = |error: &dyn std::fmt::Display| StoreError::Open(format!("{}: {error}", file.display()));
        // A connection to a file needs no asking whether it is still there.
        let pool = |connections| {
            let pool = SqlitePoolOptions::new().max_connections(connections).acquire_timeout(WAIT);
            pool.test_before_acquire(false)
        };
        let writing = options.clone().pragma("cache_size", WRITER_CACHE);
        let writer = pool(1).connect_with(writing).await.map_err(|error| opened(file, &error))?;
        MIGRATIONS.run(&writer).await.map_err(|error| match error {
            MigrateError::VersionMissing(version) => open(&format_args!(
                "a newer muster has migrated it to schema {version}: use that version or a newer one"
            )),
            MigrateError::VersionMismatch(version) => {
                open(&format_args!("its schema {version} is not this muster's: use the version that made it"))
            }
            error => open(&error),
        })?;
        // A failed read makes SQLite end a view by itself, which sqlx does not see: the connection would go
        // on in a view of long ago. Such a one is given up.
        let readers = pool(READERS)
            .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
            .connect_with(options.read_only(true))
            .await
            .map_err(|error| open(&error))?;
        let sqlite = Self { writer, readers };
        sqlite.belongs_to(fleet).await?;
        sqlite.take_over_the_log_of_0_1().await?;
        Ok(sqlite)
    }

    /// A transaction that holds the write lock from the start.
    ///
    /// On a full disk SQLite rolls back by itself, which sqlx does not notice: it believes that the
    /// transaction is still open, and the connection would refuse every later one. Such a connection is
    /// replaced.
    pub async fn begin(&self) -> Result<Transaction, StoreError> {
        let transaction = match self.writer.begin_with(BEGIN).await {
            Err(sqlx::Error::InvalidSavePointStatement) => {
                self.writer.acquire().await?.close().await?;
                self.writer.begin_with(BEGIN).await?
            }
            begun => begun?,
        };
        Ok(Transaction { transaction })
    }

    /// A read-only transaction.
    pub async fn view(&self) -> Result<Transaction, StoreError> {
        Ok(Transaction { transaction: self.readers.begin().await? })
    }

    pub fn read(&self) -> &SqlitePool {
        &self.readers
    }

    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    async fn belongs_to(&self, fleet: &Sha256) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let found: Option<Vec<u8>> =
            sqlx::query_scalar("SELECT id FROM fleet").fetch_optional(tx.connection()).await?;
        match found {
            Some(found) if found == fleet.as_bytes() => {}
            Some(found) => {
                let found = sha256(&found)?.short();
                return Err(StoreError::OtherFleet { wanted: fleet.short(), found });
            }
            None => {
                sqlx::query("INSERT INTO fleet (id) VALUES ($1)")
                    .bind(fleet.as_bytes().as_slice())
                    .execute(tx.connection())
                    .await?;
            }
        }
        tx.commit().await
    }
}

/// Why a file cannot be opened; for a damaged one (SQLITE_CORRUPT, SQLITE_NOTADB), what to do.
fn opened(file: &Path, error: &sqlx::Error) -> StoreError {
    let code = error.as_database_error().and_then(|error| error.code()?.parse::<u32>().ok());
    let advice = match code.map(|code| code & 0xff) {
        Some(11 | 26) => ": it is damaged, so restore a backup with `muster restore`",
        _ => "",
    };
    StoreError::Open(format!("{}: {error}{advice}", file.display()))
}

impl Transaction {
    pub fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.transaction
    }

    /// Writes a row as it is: the page goes to the disk as with any other change.
    pub async fn touch(&mut self) -> Result<(), StoreError> {
        sqlx::query("UPDATE fleet SET id = id").execute(self.connection()).await?;
        Ok(())
    }

    pub async fn commit(self) -> Result<(), StoreError> {
        Ok(self.transaction.commit().await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What SQLite does by itself after a failed read, done by hand: sqlx believes that the view goes on.
    #[tokio::test]
    async fn a_reader_whose_view_ended_by_itself_sees_what_is_written_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let fleet = Sha256::of(b"fleet");
        let sqlite = Sqlite::open(&folder.path().join("muster.db"), &fleet).await.unwrap();
        for _ in 0..READERS {
            let mut view = sqlite.view().await.unwrap();
            sqlx::query("ROLLBACK").execute(view.connection()).await.unwrap();
        }
        let count = "SELECT count(*) FROM nonces";
        for written in 1..=i64::from(READERS) * 2 {
            let mut view = sqlite.view().await.unwrap();
            let seen: i64 = sqlx::query_scalar(count).fetch_one(view.connection()).await.unwrap();
            assert_eq!(seen, written - 1);
            drop(view);
            let insert = "INSERT INTO nonces (key, nonce, expires) VALUES (x'00', $1, 0)";
            sqlx::query(insert).bind(written.to_be_bytes().to_vec()).execute(&sqlite.writer).await.unwrap();
            let seen: i64 = sqlx::query_scalar(count).fetch_one(sqlite.read()).await.unwrap();
            assert_eq!(seen, written);
        }
    }
}
