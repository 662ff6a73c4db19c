//! The audit log: each entry is written in the transaction of the change it records, and chained to the entry
//! before it.

use muster_protocol::audit::{Checkpoint, Entry, Page, origin};
use muster_protocol::ids::MachineName;
use muster_protocol::keys::PublicKey;
use sqlx::PgConnection;

use super::columns::{plain, public_key, query, query_as, query_scalar, sha256, signed, text, unsigned};
use super::connection::{Postgres, Transaction, locking};
use super::locks::{self, Lock};
use crate::core::log::Stored;
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
    match newest {
        Some(Newest { id, hash }) => Ok(Checkpoint { id: unsigned(id), hash: sha256(&hash)? }),
        None => anchor(sql).await,
    }
}

#[derive(sqlx::FromRow)]
struct Anchor {
    id: Vec<u8>,
    audit_cut: i64,
    audit_cut_hash: Option<Vec<u8>>,
}

/// What the log's first entry is chained to: the entry that it was cut at, or its origin.
async fn anchor(sql: &mut PgConnection) -> Result<Checkpoint, StoreError> {
    let row: Anchor = query_as("SELECT id, audit_cut, audit_cut_hash FROM fleet").fetch_one(sql).await?;
    match row.audit_cut_hash {
        Some(hash) => Ok(Checkpoint { id: unsigned(row.audit_cut), hash: sha256(&hash)? }),
        None => Ok(origin(&sha256(&row.id)?)),
    }
}

/// Triggers let this happen only at an entry that is there, and only after the entry that tells of it.
pub async fn cut(sql: &mut PgConnection, through: &Checkpoint) -> Result<(), StoreError> {
    query("UPDATE fleet SET audit_cut = $1, audit_cut_hash = $2")
        .bind(signed(through.id))
        .bind(through.hash.as_bytes().as_slice())
        .execute(sql)
        .await?;
    Ok(())
}

/// In their order, by one statement.
pub async fn insert(sql: &mut PgConnection, entries: &[Entry]) -> Result<(), StoreError> {
    fn column<'a, T>(entries: &'a [Entry], value: impl Fn(&'a Entry) -> T) -> Vec<T> {
        entries.iter().map(value).collect()
    }
    query(
        "INSERT INTO audit (id, at, operator, action, machine, detail, hash)
         SELECT * FROM UNNEST($1::bigint[], $2::bigint[], $3::bytea[], $4::text[], $5::text[], $6::text[],
                              $7::bytea[]) AS v (id, at, operator, action, machine, detail, hash)
         ORDER BY v.id",
    )
    .bind(column(entries, |entry| signed(entry.id)))
    .bind(column(entries, |entry| entry.at))
    .bind(column(entries, |entry| entry.by.as_ref().map(PublicKey::to_bytes)))
    .bind(column(entries, |entry| entry.action.as_str()))
    .bind(column(entries, |entry| entry.machine.as_ref().map(MachineName::as_str)))
    .bind(column(entries, |entry| text(&entry.detail)))
    .bind(column(entries, |entry| entry.hash.as_bytes().as_slice()))
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

    pub async fn log(&mut self, through: u64) -> Result<Stored, StoreError> {
        if self.writes {
            locks::take(self.connection(), Lock::Log).await?;
        }
        let (anchor, newest) = (anchor(self.connection()).await?, newest(self.connection()).await?);
        let entry: Option<Newest> = query_as("SELECT id, hash FROM audit WHERE id = $1 AND id > $2")
            .bind(signed(through))
            .bind(signed(anchor.id))
            .fetch_optional(self.connection())
            .await?;
        let entry = entry.map(|Newest { id, hash }| {
            Ok::<_, StoreError>(Checkpoint { id: unsigned(id), hash: sha256(&hash)? })
        });
        Ok(Stored { anchor, newest, entry: entry.transpose()? })
    }
}

impl Postgres {
    /// One snapshot: a cut in between would leave a gap.
    pub async fn audit(&self, after: u64, limit: u32) -> Result<Page, StoreError> {
        let mut view = self.view().await?;
        let (anchor, newest) = (anchor(view.connection()).await?, newest(view.connection()).await?);
        let rows: Vec<Row> = query_as(
            "SELECT id, at, operator, action, machine, detail, hash FROM audit
             WHERE id > $1 ORDER BY id LIMIT $2",
        )
        .bind(signed(after.max(anchor.id)))
        .bind(i64::from(limit))
        .fetch_all(view.connection())
        .await?;
        let entries = rows.into_iter().map(Row::entry).collect::<Result<_, _>>()?;
        Ok(Page { entries, last: newest.id, anchor: (anchor.id > 0).then_some(anchor) })
    }

    pub async fn newest_entry(&self) -> Result<Checkpoint, StoreError> {
        newest(self.view().await?.connection()).await
    }

    pub async fn logged_root(&self) -> Result<u64, StoreError> {
        let version: i64 =
            query_scalar("SELECT root_version FROM fleet").fetch_one(self.view().await?.connection()).await?;
        Ok(unsigned(version))
    }
}
