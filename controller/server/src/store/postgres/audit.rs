//! The audit log: each entry is written in the transaction of the change it records, and chained to the entry
//! before it.

use muster_protocol::audit::{Checkpoint, Entry, Page, origin};
use muster_protocol::ids::MachineName;
use sqlx::PgConnection;

use super::columns::{plain, public_key, query, query_as, query_scalar, sha256, signed, text, unsigned};
use super::connection::{Postgres, Transaction, locking};
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
            detail: plain(self.detail),
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

/// The newest entry, or what the first entry is chained to. It stays the newest until the commit:
/// `apply` holds the log's lock.
pub async fn newest(sql: &mut PgConnection) -> Result<Checkpoint, StoreError> {
    let newest: Option<Newest> =
        query_as("SELECT id, hash FROM audit ORDER BY id DESC LIMIT 1").fetch_optional(&mut *sql).await?;
    if let Some(Newest { id, hash }) = newest {
        return Ok(Checkpoint { id: unsigned(id), hash: sha256(&hash)? });
    }
    let fleet: Vec<u8> = query_scalar("SELECT id FROM fleet").fetch_one(sql).await?;
    Ok(origin(&sha256(&fleet)?))
}

pub async fn insert(sql: &mut PgConnection, entry: &Entry) -> Result<(), StoreError> {
    query(
        "INSERT INTO audit (id, at, operator, action, machine, detail, hash)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(signed(entry.id))
    .bind(entry.at)
    .bind(entry.by.as_ref().map(|key| key.as_bytes().to_vec()))
    .bind(&entry.action)
    .bind(entry.machine.as_ref().map(MachineName::as_str))
    .bind(text(&entry.detail))
    .bind(entry.hash.as_bytes().as_slice())
    .execute(sql)
    .await?;
    Ok(())
}

pub async fn root_in_force(sql: &mut PgConnection, version: u64) -> Result<(), StoreError> {
    query("UPDATE fleet SET root_version = $1").bind(signed(version)).execute(sql).await?;
    Ok(())
}

impl Transaction {
    pub async fn root_logged(&mut self) -> Result<u64, StoreError> {
        let version: i64 = query_scalar(locking!(self, "SELECT root_version FROM fleet", "FOR UPDATE"))
            .fetch_one(self.connection())
            .await?;
        Ok(unsigned(version))
    }
}

impl Postgres {
    pub async fn audit(&self, after: u64, limit: u32) -> Result<Page, StoreError> {
        let mut view = self.view().await?;
        let rows: Vec<Row> = query_as(
            "SELECT id, at, operator, action, machine, detail, hash FROM audit
             WHERE id > $1 ORDER BY id LIMIT $2",
        )
        .bind(signed(after))
        .bind(i64::from(limit))
        .fetch_all(view.connection())
        .await?;
        let last: Option<i64> =
            query_scalar("SELECT max(id) FROM audit").fetch_one(view.connection()).await?;
        let entries = rows.into_iter().map(Row::entry).collect::<Result<_, _>>()?;
        Ok(Page { entries, last: last.map_or(0, unsigned) })
    }

    pub async fn logged_root(&self) -> Result<u64, StoreError> {
        let version: i64 =
            query_scalar("SELECT root_version FROM fleet").fetch_one(self.view().await?.connection()).await?;
        Ok(unsigned(version))
    }
}
