//! The audit log: each entry is written in the transaction of the change it records, and chained to the entry
//! before it.

use muster_protocol::audit::{Checkpoint, Entry, Page, hash, origin};
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::MachineName;
use sqlx::{QueryBuilder, SqliteConnection};

use super::columns::{public_key, sha256, signed, unsigned};
use super::connection::{Sqlite, Transaction};
use super::publication::AT_ONCE;
use crate::store::error::StoreError;

#[derive(sqlx::FromRow)]
struct Row {
    id: i64,
    at: i64,
    operator: Option<Vec<u8>>,
    action: String,
    machine: Option<String>,
    detail: String,
    hash: Vec<u8>,
}

impl Row {
    fn entry(self) -> Result<Entry, StoreError> {
        Ok(Entry {
            id: unsigned(self.id),
            at: self.at,
            by: self.operator.as_deref().map(public_key).transpose()?,
            action: self.action,
            machine: machine(self.machine)?,
            detail: self.detail,
            hash: sha256(&self.hash)?,
        })
    }
}

fn machine(name: Option<String>) -> Result<Option<MachineName>, StoreError> {
    let damaged = |_| StoreError::Damaged("an entry of the audit log");
    name.map(|name| name.parse()).transpose().map_err(damaged)
}

#[derive(sqlx::FromRow)]
struct Newest {
    id: i64,
    hash: Vec<u8>,
}

/// The newest entry, or what the first entry is chained to. It stays the newest until the commit, since there
/// is one writer.
pub async fn newest(sql: &mut SqliteConnection) -> Result<Checkpoint, StoreError> {
    let newest: Option<Newest> = sqlx::query_as("SELECT id, hash FROM audit ORDER BY id DESC LIMIT 1")
        .fetch_optional(&mut *sql)
        .await?;
    if let Some(Newest { id, hash }) = newest {
        return Ok(Checkpoint { id: unsigned(id), hash: sha256(&hash)? });
    }
    let fleet: Vec<u8> = sqlx::query_scalar("SELECT id FROM fleet").fetch_one(sql).await?;
    Ok(origin(&sha256(&fleet)?))
}

pub async fn insert(sql: &mut SqliteConnection, entries: &[Entry]) -> Result<(), StoreError> {
    for some in entries.chunks(AT_ONCE) {
        let mut insert =
            QueryBuilder::new("INSERT INTO audit (id, at, operator, action, machine, detail, hash) ");
        insert.push_values(some, |mut row, entry| {
            row.push_bind(signed(entry.id))
                .push_bind(entry.at)
                .push_bind(entry.by.as_ref().map(|key| &key.as_bytes()[..]))
                .push_bind(&entry.action)
                .push_bind(entry.machine.as_ref().map(MachineName::as_str))
                .push_bind(&entry.detail)
                .push_bind(&entry.hash.as_bytes()[..]);
        });
        insert.build().execute(&mut *sql).await?;
    }
    Ok(())
}

pub async fn root_in_force(sql: &mut SqliteConnection, version: u64) -> Result<(), StoreError> {
    sqlx::query("UPDATE fleet SET root_version = $1").bind(signed(version)).execute(sql).await?;
    Ok(())
}

impl Transaction {
    pub async fn root_logged(&mut self) -> Result<u64, StoreError> {
        let version: i64 =
            sqlx::query_scalar("SELECT root_version FROM fleet").fetch_one(self.connection()).await?;
        Ok(unsigned(version))
    }
}

/// An entry of version 0.1, which had no chain.
#[derive(sqlx::FromRow)]
struct Old {
    at: UnixMillis,
    operator: Vec<u8>,
    action: String,
    machine: Option<String>,
    detail: String,
}

impl Sqlite {
    pub async fn audit(&self, after: u64, limit: u32) -> Result<Page, StoreError> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT id, at, operator, action, machine, detail, hash FROM audit
             WHERE id > $1 ORDER BY id LIMIT $2",
        )
        .bind(signed(after))
        .bind(i64::from(limit))
        .fetch_all(self.read())
        .await?;
        let last: Option<i64> =
            sqlx::query_scalar("SELECT max(id) FROM audit").fetch_one(self.read()).await?;
        let entries = rows.into_iter().map(Row::entry).collect::<Result<_, _>>()?;
        Ok(Page { entries, last: last.map_or(0, unsigned) })
    }

    pub async fn logged_root(&self) -> Result<u64, StoreError> {
        let version: i64 =
            sqlx::query_scalar("SELECT root_version FROM fleet").fetch_one(self.read()).await?;
        Ok(unsigned(version))
    }

    /// Copies the log of version 0.1 into the chained one, all or nothing.
    pub async fn take_over_the_log_of_0_1(&self) -> Result<(), StoreError> {
        let exists = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'audit_of_0_1')";
        let left: bool = sqlx::query_scalar(exists).fetch_one(self.read()).await?;
        if !left {
            return Ok(());
        }
        let mut tx = self.begin().await?;
        let rows: Vec<Old> =
            sqlx::query_as("SELECT at, operator, action, machine, detail FROM audit_of_0_1 ORDER BY id")
                .fetch_all(tx.connection())
                .await?;
        let mut before = newest(tx.connection()).await?;
        for Old { at, operator, action, machine: name, detail } in rows {
            let (id, by, machine) = (before.id + 1, Some(public_key(&operator)?), machine(name)?);
            let mut entry = Entry { id, at, by, action, machine, detail, hash: before.hash };
            entry.hash = hash(&before.hash, &entry);
            insert(tx.connection(), std::slice::from_ref(&entry)).await?;
            before = Checkpoint { id, hash: entry.hash };
        }
        sqlx::query("DROP TABLE audit_of_0_1").execute(tx.connection()).await?;
        tx.commit().await
    }
}
