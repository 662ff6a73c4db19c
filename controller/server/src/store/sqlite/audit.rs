//! The audit log: each entry is written in the transaction of the change it records, and chained to the entry
//! before it.

use muster_protocol::audit::{Checkpoint, Entry, Page, hash, origin};
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::MachineName;
use muster_protocol::keys::PublicKey;
use sqlx::{QueryBuilder, SqliteConnection};

use super::columns::{public_key, sha256, signed, unsigned};
use super::connection::{Sqlite, Transaction};
use super::publication::AT_ONCE;
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
async fn anchor(sql: &mut SqliteConnection) -> Result<Checkpoint, StoreError> {
    let row: Anchor =
        sqlx::query_as("SELECT id, audit_cut, audit_cut_hash FROM fleet").fetch_one(sql).await?;
    match row.audit_cut_hash {
        Some(hash) => Ok(Checkpoint { id: unsigned(row.audit_cut), hash: sha256(&hash)? }),
        None => Ok(origin(&sha256(&row.id)?)),
    }
}

/// Triggers let this happen only at an entry that is there, and only after the entry that tells of it.
pub async fn cut(sql: &mut SqliteConnection, through: &Checkpoint) -> Result<(), StoreError> {
    sqlx::query("UPDATE fleet SET audit_cut = $1, audit_cut_hash = $2")
        .bind(signed(through.id))
        .bind(through.hash.as_bytes().as_slice())
        .execute(sql)
        .await?;
    Ok(())
}

pub async fn insert(sql: &mut SqliteConnection, entries: &[Entry]) -> Result<(), StoreError> {
    for some in entries.chunks(AT_ONCE) {
        let mut insert =
            QueryBuilder::new("INSERT INTO audit (id, at, operator, action, machine, detail, hash) ");
        insert.push_values(some, |mut row, entry| {
            row.push_bind(signed(entry.id))
                .push_bind(entry.at)
                .push_bind(entry.by.as_ref().map(PublicKey::to_bytes))
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

    pub async fn log(&mut self, through: u64) -> Result<Stored, StoreError> {
        let (anchor, newest) = (anchor(self.connection()).await?, newest(self.connection()).await?);
        let entry: Option<Newest> = sqlx::query_as("SELECT id, hash FROM audit WHERE id = $1 AND id > $2")
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
    /// One snapshot: a cut in between would leave a gap.
    pub async fn audit(&self, after: u64, limit: u32) -> Result<Page, StoreError> {
        let mut view = self.view().await?;
        let (anchor, newest) = (anchor(view.connection()).await?, newest(view.connection()).await?);
        let rows: Vec<Row> = sqlx::query_as(
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
