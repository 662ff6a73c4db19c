//! The audit log: each entry in the transaction of its deed, chained to the one before it.

use muster_protocol::audit::{Checkpoint, Entry, MAX_PAGE, Page, hash, origin};
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::MachineName;
use muster_protocol::keys::PublicKey;

use super::{Deed, Store, StoreError, Tx, public_key, sha256, signed, unsigned};

/// What an entry says.
#[derive(Debug, Clone, Copy)]
pub struct Act<'a> {
    pub at: UnixMillis,
    /// None where a machine or the controller itself was the cause.
    pub by: Option<&'a PublicKey>,
    pub action: &'static str,
    pub machine: Option<&'a MachineName>,
    pub detail: &'a str,
}

impl<'a> Act<'a> {
    /// What an operator did.
    pub(super) fn of(deed: &Deed<'a>, action: &'static str, detail: &'a str) -> Self {
        Self { at: deed.at, by: Some(deed.operator), action, machine: None, detail }
    }
    /// What a machine caused, or what happened by itself.
    pub(super) fn by_itself(at: UnixMillis, action: &'static str, detail: &'a str) -> Self {
        Self { at, by: None, action, machine: None, detail }
    }
    pub(super) fn on(self, machine: &'a MachineName) -> Self {
        Self { machine: Some(machine), ..self }
    }
}

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
        let damaged = || StoreError::Damaged("an entry of the audit log");
        Ok(Entry {
            id: unsigned(self.id),
            at: self.at,
            by: self.operator.as_deref().map(public_key).transpose()?,
            action: self.action,
            machine: self.machine.map(|name| name.parse()).transpose().map_err(|_| damaged())?,
            detail: self.detail,
            hash: sha256(&self.hash)?,
        })
    }
}

/// Adds an entry to the log.
pub(super) async fn log(tx: &mut Tx, act: Act<'_>) -> Result<(), StoreError> {
    let before = last(tx).await?;
    let mut entry = Entry {
        id: before.id.saturating_add(1),
        at: act.at,
        by: act.by.copied(),
        action: act.action.to_owned(),
        machine: act.machine.cloned(),
        detail: act.detail.to_owned(),
        hash: before.hash,
    };
    entry.hash = hash(&before.hash, &entry);
    insert(tx, &entry).await
}

/// The newest entry, or what the first one is chained to.
async fn last(tx: &mut Tx) -> Result<Checkpoint, StoreError> {
    let newest: Option<(i64, Vec<u8>)> =
        sqlx::query_as("SELECT id, hash FROM audit ORDER BY id DESC LIMIT 1")
            .fetch_optional(&mut **tx)
            .await?;
    if let Some((id, hash)) = newest {
        return Ok(Checkpoint { id: unsigned(id), hash: sha256(&hash)? });
    }
    let fleet: Vec<u8> = sqlx::query_scalar("SELECT id FROM fleet").fetch_one(&mut **tx).await?;
    Ok(origin(&sha256(&fleet)?))
}

async fn insert(tx: &mut Tx, entry: &Entry) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO audit (id, at, operator, action, machine, detail, hash) VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(signed(entry.id))
    .bind(entry.at)
    .bind(entry.by.as_ref().map(|key| key.as_bytes().to_vec()))
    .bind(&entry.action)
    .bind(entry.machine.as_ref().map(MachineName::as_str))
    .bind(&entry.detail)
    .bind(entry.hash.as_bytes().as_slice())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

impl Store {
    /// The entries after `after`, the oldest first.
    pub async fn audit(&self, after: u64, limit: u32) -> Result<Page, StoreError> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT id, at, operator, action, machine, detail, hash FROM audit WHERE id > $1 ORDER BY id LIMIT $2",
        )
        .bind(signed(after))
        .bind(i64::from(limit.min(MAX_PAGE)))
        .fetch_all(self.sql.read())
        .await?;
        let last: Option<i64> =
            sqlx::query_scalar("SELECT max(id) FROM audit").fetch_one(self.sql.read()).await?;
        let entries = rows.into_iter().map(Row::entry).collect::<Result<_, _>>()?;
        Ok(Page { entries, last: last.map_or(0, unsigned) })
    }

    /// The newest root that the log tells of.
    pub async fn logged_root(&self) -> Result<u64, StoreError> {
        let version: i64 =
            sqlx::query_scalar("SELECT root_version FROM fleet").fetch_one(self.sql.read()).await?;
        Ok(unsigned(version))
    }

    /// Logs that a root is in force, once. `put_in_force` makes it so and runs before the entry is kept; without a deed the
    /// root lay in the folder.
    pub async fn log_root<E: From<StoreError> + From<sqlx::Error>>(
        &self,
        version: u64,
        deed: Option<&Deed<'_>>,
        now: UnixMillis,
        put_in_force: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let mut tx = self.sql.begin().await?;
        let done = sqlx::query("UPDATE fleet SET root_version = $1 WHERE root_version < $1")
            .bind(signed(version))
            .execute(&mut *tx)
            .await?;
        if done.rows_affected() > 0 {
            let detail = format!("version {version}");
            let act = match deed {
                Some(deed) => Act::of(deed, "root-published", &detail),
                None => Act::by_itself(now, "root-found", &detail),
            };
            log(&mut tx, act).await?;
        }
        put_in_force()?;
        Ok(tx.commit().await?)
    }

    /// Copies the log of version 0.1 into the chained one, whole or not at all.
    pub(super) async fn take_over_the_log_of_0_1(&self) -> Result<(), StoreError> {
        let exists = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'audit_of_0_1')";
        let left: bool = sqlx::query_scalar(exists).fetch_one(self.sql.read()).await?;
        if !left {
            return Ok(());
        }
        let mut tx = self.sql.begin().await?;
        type Old = (i64, Vec<u8>, String, Option<String>, String);
        let rows: Vec<Old> =
            sqlx::query_as("SELECT at, operator, action, machine, detail FROM audit_of_0_1 ORDER BY id")
                .fetch_all(&mut *tx)
                .await?;
        let mut before = last(&mut tx).await?;
        for (at, operator, action, machine, detail) in rows {
            let damaged = || StoreError::Damaged("an entry of the audit log");
            let machine = machine.map(|name| name.parse()).transpose().map_err(|_| damaged())?;
            let (id, by) = (before.id + 1, Some(public_key(&operator)?));
            let mut entry = Entry { id, at, by, action, machine, detail, hash: before.hash };
            entry.hash = hash(&before.hash, &entry);
            insert(&mut tx, &entry).await?;
            before = Checkpoint { id, hash: entry.hash };
        }
        sqlx::query("DROP TABLE audit_of_0_1").execute(&mut *tx).await?;
        Ok(tx.commit().await?)
    }
}
