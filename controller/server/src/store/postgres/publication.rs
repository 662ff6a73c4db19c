//! Published generations, and the files of a machine's TUF repository.

use std::collections::BTreeMap;

use muster_protocol::checkin::{CheckIn, Holds};
use muster_protocol::ids::{Epoch, Generation, MachineName};
use muster_protocol::operator::Published;
use sqlx::PgConnection;

use super::columns::{json, public_key, query, query_as, query_scalar, signed, some_generation, unsigned};
use super::connection::{Postgres, Transaction, locking};
use super::machines::published;
use crate::core::publication::{Current, Stored};
use crate::core::rows::{GenerationFiles, StoredGeneration, Timestamp};
use crate::store::answers::{File, Latest};
use crate::store::error::StoreError;

#[derive(sqlx::FromRow)]
struct MachineRow {
    class: String,
    system: String,
    revoked_at: Option<i64>,
    published: Option<i64>,
    timestamp_version: i64,
    observed: Option<String>,
}

impl MachineRow {
    fn holds(&self) -> Holds {
        let last: Option<CheckIn> = self.observed.as_deref().and_then(|text| serde_json::from_str(text).ok());
        last.map(|checkin| checkin.holds).unwrap_or_default()
    }
}

#[derive(sqlx::FromRow)]
struct FilesRow {
    targets: Vec<u8>,
    snapshot: Vec<u8>,
    target: Vec<u8>,
}

#[derive(sqlx::FromRow)]
struct CurrentRow {
    timestamp: Option<Vec<u8>>,
    timestamp_version: i64,
    timestamp_expires: Option<i64>,
    timestamp_key: Option<Vec<u8>>,
    snapshot: Vec<u8>,
}

impl CurrentRow {
    fn current(self) -> Result<Current, StoreError> {
        let version = unsigned(self.timestamp_version);
        let timestamp = match (self.timestamp, self.timestamp_expires, self.timestamp_key) {
            (Some(bytes), Some(expires), Some(key)) => {
                Some(Timestamp { bytes, version, expires, key: public_key(&key)? })
            }
            _ => None,
        };
        Ok(Current { timestamp, version, snapshot: self.snapshot })
    }
}

#[derive(sqlx::FromRow)]
struct LatestRow {
    #[sqlx(flatten)]
    current: CurrentRow,
    targets: Vec<u8>,
    target: Vec<u8>,
}

impl LatestRow {
    fn latest(self) -> Result<Option<Latest>, StoreError> {
        let Current { timestamp, version: _, snapshot } = self.current.current()?;
        let files = GenerationFiles { targets: self.targets, snapshot, target: self.target };
        Ok(timestamp.map(|timestamp| Latest { timestamp, files }))
    }
}

impl Transaction {
    /// The same for many machines, locked in the order of their names.
    pub async fn publishing_all(
        &mut self,
        offered: &[(&MachineName, Generation)],
    ) -> Result<BTreeMap<MachineName, Stored>, StoreError> {
        let mut offered = offered.to_vec();
        offered.sort_by(|one, other| one.0.as_str().cmp(other.0.as_str()));
        let mut all = BTreeMap::new();
        for (machine, generation) in offered {
            if let Some(stored) = self.publishing(machine, generation).await? {
                all.insert(machine.clone(), stored);
            }
        }
        Ok(all)
    }

    pub async fn publishing(
        &mut self,
        machine: &MachineName,
        offered: Generation,
    ) -> Result<Option<Stored>, StoreError> {
        let row: Option<MachineRow> = query_as(locking!(
            self,
            "SELECT class, system, revoked_at, published, timestamp_version, observed
             FROM machines WHERE name = $1",
            "FOR NO KEY UPDATE"
        ))
        .bind(machine.as_str())
        .fetch_optional(self.connection())
        .await?;
        let Some(row) = row else { return Ok(None) };
        let published = some_generation(row.published);
        let latest = match published == Some(offered) {
            true => self.files(machine, offered).await?,
            false => None,
        };
        Ok(Some(Stored {
            class: row.class.parse().map_err(|_| StoreError::Damaged("a machine"))?,
            system: row.system.parse().map_err(|_| StoreError::Damaged("a machine"))?,
            revoked: row.revoked_at.is_some(),
            published,
            timestamp_version: unsigned(row.timestamp_version),
            holds: row.holds(),
            latest,
        }))
    }

    async fn files(
        &mut self,
        machine: &MachineName,
        generation: Generation,
    ) -> Result<Option<GenerationFiles>, StoreError> {
        let row: Option<FilesRow> = query_as(
            "SELECT targets, snapshot, target FROM generations WHERE machine = $1 AND generation = $2",
        )
        .bind(machine.as_str())
        .bind(generation.packed())
        .fetch_optional(self.connection())
        .await?;
        Ok(row.map(|FilesRow { targets, snapshot, target }| GenerationFiles { targets, snapshot, target }))
    }

    pub async fn timestamp(
        &mut self,
        machine: &MachineName,
        epoch: Epoch,
    ) -> Result<Option<Current>, StoreError> {
        self.lock_machine(machine).await?;
        let row: Option<CurrentRow> = query_as(
            "SELECT m.timestamp, m.timestamp_version, m.timestamp_expires, m.timestamp_key, g.snapshot
             FROM machines m JOIN generations g ON g.machine = m.name AND g.generation = m.published
             WHERE m.name = $1 AND m.published >= $2",
        )
        .bind(machine.as_str())
        .bind(Generation::first_of(epoch).packed())
        .fetch_optional(self.connection())
        .await?;
        row.map(CurrentRow::current).transpose()
    }
}

#[derive(sqlx::FromRow)]
struct PublishedRow {
    target: Vec<u8>,
    expires: i64,
    published_at: i64,
    published_by: Vec<u8>,
    signers: String,
}

impl Postgres {
    pub async fn latest(&self, machine: &MachineName, epoch: Epoch) -> Result<Option<Latest>, StoreError> {
        let row: Option<LatestRow> = query_as(
            "SELECT m.timestamp, m.timestamp_version, m.timestamp_expires, m.timestamp_key,
                    g.targets, g.snapshot, g.target
             FROM machines m JOIN generations g ON g.machine = m.name AND g.generation = m.published
             WHERE m.name = $1 AND m.published >= $2",
        )
        .bind(machine.as_str())
        .bind(Generation::first_of(epoch).packed())
        .fetch_optional(self.view().await?.connection())
        .await?;
        Ok(row.map(LatestRow::latest).transpose()?.flatten())
    }

    pub async fn file(&self, machine: &MachineName, file: File) -> Result<Option<Vec<u8>>, StoreError> {
        let text = match file {
            File::Targets(_) => "SELECT targets FROM generations WHERE machine = $1 AND generation = $2",
            File::Snapshot(_) => "SELECT snapshot FROM generations WHERE machine = $1 AND generation = $2",
            File::Target(_) => {
                "SELECT target FROM generations WHERE machine = $1 AND target_sha256 = $2
                 ORDER BY generation DESC LIMIT 1"
            }
        };
        let query = query_scalar(text).bind(machine.as_str());
        let query = match file {
            File::Targets(number) | File::Snapshot(number) => query.bind(number.packed()),
            File::Target(hash) => query.bind(hash.as_bytes().to_vec()),
        };
        Ok(query.fetch_optional(self.view().await?.connection()).await?)
    }

    pub async fn generations(
        &self,
        machine: &MachineName,
        before: Option<Generation>,
        limit: u32,
    ) -> Result<Vec<Published>, StoreError> {
        let rows: Vec<PublishedRow> = query_as(
            "SELECT target, expires, published_at, published_by, signers FROM generations
             WHERE machine = $1 AND generation < $3 ORDER BY generation DESC LIMIT $2",
        )
        .bind(machine.as_str())
        .bind(i64::from(limit))
        .bind(before.map_or(i64::MAX, Generation::packed))
        .fetch_all(self.view().await?.connection())
        .await?;
        rows.iter()
            .map(|row| published(&row.target, row.expires, row.published_at, &row.published_by, &row.signers))
            .collect()
    }
}

pub async fn store(sql: &mut PgConnection, new: &StoredGeneration) -> Result<(), StoreError> {
    query(
        "INSERT INTO generations (machine, generation, targets, snapshot, target, target_sha256, expires,
             published_at, published_by, signers)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(new.machine.as_str())
    .bind(new.generation.packed())
    .bind(&new.files.targets)
    .bind(&new.files.snapshot)
    .bind(&new.files.target)
    .bind(new.target_sha256.as_bytes().as_slice())
    .bind(new.expires)
    .bind(new.published_at)
    .bind(new.published_by.as_bytes().as_slice())
    .bind(json(&new.signers, "signers")?)
    .execute(sql)
    .await?;
    Ok(())
}

pub async fn point(
    sql: &mut PgConnection,
    machine: &MachineName,
    generation: Generation,
) -> Result<(), StoreError> {
    query("UPDATE machines SET published = $2 WHERE name = $1")
        .bind(machine.as_str())
        .bind(generation.packed())
        .execute(sql)
        .await?;
    Ok(())
}

pub async fn keep_timestamp(
    sql: &mut PgConnection,
    machine: &MachineName,
    timestamp: &Timestamp,
) -> Result<(), StoreError> {
    query(
        "UPDATE machines SET timestamp = $2, timestamp_version = $3, timestamp_expires = $4,
             timestamp_key = $5
         WHERE name = $1",
    )
    .bind(machine.as_str())
    .bind(&timestamp.bytes)
    .bind(signed(timestamp.version))
    .bind(timestamp.expires)
    .bind(timestamp.key.as_bytes().as_slice())
    .execute(sql)
    .await?;
    Ok(())
}
