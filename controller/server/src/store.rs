//! What the controller remembers, behind one type. Nothing outside this folder knows SQL.
//!
//! Every change of several rows is one transaction, and a check-in touches its own machine's rows alone.

mod access;
mod attacks;
mod audit;
pub mod blobs;
mod checkin;
mod cut;
mod drafts;
mod enrolment;
mod machines;
mod publication;
mod reports;
mod requests;
mod retention;
mod sqlite;

use std::path::Path;

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Generation, MachineName, Sha256};
use muster_protocol::keys::PublicKey;

pub use access::Holder;
pub use audit::Act;
pub use checkin::{Answer, CheckInRefusal, Seen};
pub use cut::cut;
pub use drafts::{DraftRefusal, StoredDraft};
pub use enrolment::{EnrolRefusal, Known};
pub use machines::{Machine, Outcome, Refusal};
pub use publication::{Files, NewGeneration, PublishRefusal, Timestamp};
pub use reports::{NewEvent, ReportRefusal};
pub use requests::AskRefusal;

/// The database did not do what was asked; nothing of it was kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the controller's disk is full: nothing of this was stored; free some space and repeat")]
    Full,
    #[error("the controller's database is busy: repeat in a moment")]
    Busy,
    #[error("the controller's database fails: {0}")]
    Database(sqlx::Error),
    #[error("the controller's database cannot be opened: {0}")]
    Open(String),
    #[error(
        "the controller's database belongs to fleet {found}, and the root folder to fleet {wanted}: correct data or root in controller.toml"
    )]
    OtherFleet { wanted: String, found: String },
    #[error("the controller's database holds {0} that it cannot read: bring back a backup")]
    Damaged(&'static str),
    #[error(transparent)]
    Random(#[from] muster_protocol::random::RandomError),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        // The primary result codes of SQLite (sqlite3.h) are the low byte of the extended ones.
        let code = error.as_database_error().and_then(|e| e.code()).and_then(|c| c.parse::<u32>().ok());
        match (&error, code.map(|code| code & 0xff)) {
            (_, Some(13)) => Self::Full,
            (sqlx::Error::PoolTimedOut, _) | (_, Some(5 | 6)) => Self::Busy,
            _ => Self::Database(error),
        }
    }
}

/// Who did what; written in the same transaction as the deed.
#[derive(Debug, Clone)]
pub struct Deed<'a> {
    /// An operator's key, or a root key.
    pub operator: &'a PublicKey,
    pub at: UnixMillis,
}

/// The number of the newest change of the fleet; it only grows.
pub type Cursor = u64;

#[derive(Debug, Clone)]
pub struct Store {
    sql: sqlite::Sqlite,
}

impl Store {
    /// Opens `muster.db` in `folder`, makes it if need be, and brings it to the newest form.
    pub async fn open(folder: &Path, fleet: &Sha256) -> Result<Self, StoreError> {
        let store = Self { sql: sqlite::Sqlite::open(&folder.join("muster.db")).await? };
        store.belongs_to(fleet).await?;
        store.take_over_the_log_of_0_1().await?;
        Ok(store)
    }

    pub async fn close(&self) {
        self.sql.close().await;
    }

    async fn belongs_to(&self, fleet: &Sha256) -> Result<(), StoreError> {
        let mut tx = self.sql.begin().await?;
        let found: Option<Vec<u8>> =
            sqlx::query_scalar("SELECT id FROM fleet").fetch_optional(&mut *tx).await?;
        match found {
            Some(found) if found == fleet.as_bytes() => {}
            Some(found) => {
                let found = sha256(&found)?.short();
                return Err(StoreError::OtherFleet { wanted: fleet.short(), found });
            }
            None => {
                sqlx::query("INSERT INTO fleet (id) VALUES ($1)")
                    .bind(fleet.as_bytes().as_slice())
                    .execute(&mut *tx)
                    .await?;
            }
        }
        Ok(tx.commit().await?)
    }

    /// Forgets what has ended by itself: bearers, nonces and drafts.
    pub async fn sweep(&self, now_s: i64) -> Result<(), StoreError> {
        let mut tx = self.sql.begin().await?;
        for query in [
            "DELETE FROM bearers WHERE expires <= $1",
            "DELETE FROM nonces WHERE expires < $1",
            "DELETE FROM drafts WHERE ends <= $1",
            "DELETE FROM requests WHERE ends <= $1",
        ] {
            sqlx::query(query).bind(now_s).execute(&mut *tx).await?;
        }
        // A key that was asked for and did not come in time is asked for no longer.
        sqlx::query(
            "UPDATE machines SET key_rotation_asked_at = NULL WHERE key_rotation_asked_at IS NOT NULL
             AND NOT EXISTS (SELECT 1 FROM requests r WHERE r.machine = machines.name AND r.asks = 'rotate-key')",
        )
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    /// Where the fleet's changes stand.
    pub async fn cursor(&self) -> Result<Cursor, StoreError> {
        let id: Option<i64> =
            sqlx::query_scalar("SELECT max(id) FROM changes").fetch_one(self.sql.read()).await?;
        Ok(id.map_or(0, unsigned))
    }
}

type Tx = sqlx::Transaction<'static, sqlx::Sqlite>;

/// Moves the fleet's cursor, since something of this machine changed.
async fn changed(tx: &mut Tx, machine: &MachineName) -> Result<Cursor, StoreError> {
    sqlx::query("DELETE FROM changes WHERE machine = $1").bind(machine.as_str()).execute(&mut **tx).await?;
    let id: i64 = sqlx::query_scalar("INSERT INTO changes (machine) VALUES ($1) RETURNING id")
        .bind(machine.as_str())
        .fetch_one(&mut **tx)
        .await?;
    Ok(unsigned(id))
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
fn sha256(bytes: &[u8]) -> Result<Sha256, StoreError> {
    bytes.try_into().map(Sha256::from_bytes).map_err(|_| StoreError::Damaged("a hash"))
}
fn public_key(bytes: &[u8]) -> Result<PublicKey, StoreError> {
    let bytes = bytes.try_into().map_err(|_| StoreError::Damaged("a key"))?;
    PublicKey::from_bytes(bytes).map_err(|_| StoreError::Damaged("a key"))
}
fn generation(number: i64) -> Result<Generation, StoreError> {
    Generation::from_packed(number).map_err(|_| StoreError::Damaged("a generation's number"))
}
/// SQL's integers have a sign; nothing that is counted here comes near it.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
