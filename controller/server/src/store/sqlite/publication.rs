//! Published generations, and the files of a machine's TUF repository.

use std::collections::BTreeMap;

use muster_protocol::ids::{Epoch, Generation, MachineName};
use muster_protocol::operator::Published;
use sqlx::{QueryBuilder, SqliteConnection};

use super::columns::{json, public_key, signed, some_generation, unsigned};
use super::connection::{Sqlite, Transaction};
use super::machines::published;
use crate::core::publication::{Current, Stored};
use crate::core::rollouts::Turn;
use crate::core::rows::{GenerationFiles, StoredGeneration, Timestamp};
use crate::store::answers::{File, Latest};
use crate::store::error::StoreError;
use crate::store::parsed::{Keys, Parsed, told};
use crate::threads;

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
    fn stored(self, latest: Option<GenerationFiles>) -> Result<Stored, StoreError> {
        let damaged = || StoreError::Damaged("a machine");
        let told = self.observed.as_deref().map(told);
        Ok(Stored {
            class: self.class.parse().map_err(|_| damaged())?,
            system: self.system.parse().map_err(|_| damaged())?,
            revoked: self.revoked_at.is_some(),
            published: some_generation(self.published),
            timestamp_version: unsigned(self.timestamp_version),
            holds: told.as_ref().map(|told| told.holds).unwrap_or_default(),
            understands: told.map(|told| told.understands),
            latest,
        })
    }
}

#[derive(sqlx::FromRow)]
struct ManyRow {
    name: String,
    #[sqlx(flatten)]
    machine: MachineRow,
    targets: Option<Vec<u8>>,
    snapshot: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
}

impl ManyRow {
    fn stored(self) -> Result<(MachineName, Stored), StoreError> {
        let latest = match (self.targets, self.snapshot, self.target) {
            (Some(targets), Some(snapshot), Some(target)) => {
                Some(GenerationFiles { targets, snapshot, target })
            }
            _ => None,
        };
        let name = self.name.parse().map_err(|_| StoreError::Damaged("a machine"))?;
        Ok((name, self.machine.stored(latest)?))
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
    pub async fn publishing(
        &mut self,
        machine: &MachineName,
        offered: Generation,
    ) -> Result<Option<Stored>, StoreError> {
        let row: Option<MachineRow> = sqlx::query_as(
            "SELECT class, system, revoked_at, published, timestamp_version, observed
             FROM machines WHERE name = $1",
        )
        .bind(machine.as_str())
        .fetch_optional(self.connection())
        .await?;
        let Some(row) = row else { return Ok(None) };
        let published = some_generation(row.published);
        let latest = match published == Some(offered) {
            true => self.files(machine, offered).await?,
            false => None,
        };
        row.stored(latest).map(Some)
    }

    /// The same for many machines, by one statement.
    pub async fn publishing_all(
        &mut self,
        offered: &[(&MachineName, Generation)],
    ) -> Result<BTreeMap<MachineName, Stored>, StoreError> {
        let offered: Vec<_> = offered.iter().map(|(name, number)| (name.as_str(), number.packed())).collect();
        // The files only where exactly this generation is published already.
        let rows: Vec<ManyRow> = sqlx::query_as(
            "SELECT m.name, m.class, m.system, m.revoked_at, m.published, m.timestamp_version, m.observed,
                    g.targets, g.snapshot, g.target
             FROM json_each($1) o JOIN machines m ON m.name = o.value ->> 0
             LEFT JOIN generations g
                 ON g.machine = m.name AND g.generation = m.published AND g.generation = o.value ->> 1",
        )
        .bind(json(&offered, "generations")?)
        .fetch_all(self.connection())
        .await?;
        threads::on(usize::MAX, || rows.into_iter().map(ManyRow::stored).collect())
    }

    async fn files(
        &mut self,
        machine: &MachineName,
        generation: Generation,
    ) -> Result<Option<GenerationFiles>, StoreError> {
        let row: Option<FilesRow> = sqlx::query_as(
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
        let row: Option<CurrentRow> = sqlx::query_as(
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

impl Sqlite {
    pub async fn file(&self, machine: &MachineName, file: File) -> Result<Option<Vec<u8>>, StoreError> {
        let query = match file {
            File::Targets(_) => "SELECT targets FROM generations WHERE machine = $1 AND generation = $2",
            File::Snapshot(_) => "SELECT snapshot FROM generations WHERE machine = $1 AND generation = $2",
            File::Target(_) => {
                "SELECT target FROM generations WHERE machine = $1 AND target_sha256 = $2 AND plan IS NULL
                 ORDER BY generation DESC LIMIT 1"
            }
            File::Gated(_) => {
                "SELECT target FROM generations WHERE machine = $1 AND target_sha256 = $2 AND plan IS NOT NULL
                 ORDER BY generation DESC LIMIT 1"
            }
        };
        let query = sqlx::query_scalar(query).bind(machine.as_str());
        let query = match file {
            File::Targets(number) | File::Snapshot(number) => query.bind(number.packed()),
            File::Target(hash) | File::Gated(hash) => query.bind(hash.as_bytes().to_vec()),
        };
        Ok(query.fetch_optional(self.read()).await?)
    }

    pub async fn latest(&self, machine: &MachineName, epoch: Epoch) -> Result<Option<Latest>, StoreError> {
        let row: Option<LatestRow> = sqlx::query_as(
            "SELECT m.timestamp, m.timestamp_version, m.timestamp_expires, m.timestamp_key,
                    g.targets, g.snapshot, g.target
             FROM machines m JOIN generations g ON g.machine = m.name AND g.generation = m.published
             WHERE m.name = $1 AND m.published >= $2",
        )
        .bind(machine.as_str())
        .bind(Generation::first_of(epoch).packed())
        .fetch_optional(self.read())
        .await?;
        Ok(row.map(LatestRow::latest).transpose()?.flatten())
    }

    pub async fn generations(
        &self,
        machine: &MachineName,
        before: Option<Generation>,
        limit: u32,
    ) -> Result<Vec<Published>, StoreError> {
        let rows: Vec<PublishedRow> = sqlx::query_as(
            "SELECT target, expires, published_at, published_by, signers FROM generations
             WHERE machine = $1 AND generation < $3 ORDER BY generation DESC LIMIT $2",
        )
        .bind(machine.as_str())
        .bind(i64::from(limit))
        .bind(before.map_or(i64::MAX, Generation::packed))
        .fetch_all(self.read())
        .await?;
        let mut parsed = Parsed::new(Keys::Left);
        rows.iter()
            .map(|row| {
                let times = (row.expires, row.published_at);
                published(&row.target, times, (&row.published_by, &row.signers), &mut parsed)
            })
            .collect()
    }
}

/// How many rows one statement writes. Databases limit the parameters of a statement: SQLite to 32,766.
pub const AT_ONCE: usize = 256;

pub async fn store(sql: &mut SqliteConnection, new: &[&StoredGeneration]) -> Result<(), StoreError> {
    for some in new.chunks(AT_ONCE) {
        let signers = some.iter().map(|new| json(&new.signers, "signers"));
        let signers: Vec<String> = signers.collect::<Result<_, _>>()?;
        let mut insert = QueryBuilder::new(
            "INSERT INTO generations (machine, generation, targets, snapshot, target, target_sha256,
                 expires, published_at, published_by, signers, plan) ",
        );
        insert.push_values(some.iter().zip(&signers), |mut row, (new, signers)| {
            row.push_bind(new.machine.as_str())
                .push_bind(new.generation.packed())
                .push_bind(&new.files.targets[..])
                .push_bind(&new.files.snapshot[..])
                .push_bind(&new.files.target[..])
                .push_bind(&new.target_sha256.as_bytes()[..])
                .push_bind(new.expires)
                .push_bind(new.published_at)
                .push_bind(new.published_by.to_bytes())
                .push_bind(signers.as_str())
                .push_bind(new.plan.as_ref().map(|plan| &plan.as_bytes()[..]));
        });
        insert.build().execute(&mut *sql).await?;
    }
    Ok(())
}

pub async fn point(
    sql: &mut SqliteConnection,
    published: &[(&MachineName, Generation, Option<&Turn>)],
) -> Result<(), StoreError> {
    for some in published.chunks(AT_ONCE) {
        let turns = some.iter().map(|(.., turn)| turn.map(|turn| json(turn, "a turn")).transpose());
        let turns: Vec<Option<String>> = turns.collect::<Result<_, _>>()?;
        let mut update = QueryBuilder::new("WITH new (name, published, turn) AS (");
        update.push_values(some.iter().zip(&turns), |mut row, ((machine, generation, _), turn)| {
            row.push_bind(machine.as_str()).push_bind(generation.packed()).push_bind(turn.as_deref());
        });
        update.push(
            ") UPDATE machines SET published = new.published, rollout = new.turn, turn_changed = 0
             FROM new WHERE machines.name = new.name",
        );
        update.build().execute(&mut *sql).await?;
    }
    Ok(())
}

pub async fn keep_timestamps(
    sql: &mut SqliteConnection,
    timestamps: &[(&MachineName, &Timestamp)],
) -> Result<(), StoreError> {
    for some in timestamps.chunks(AT_ONCE) {
        let mut update = QueryBuilder::new("WITH new (name, bytes, version, expires, key) AS (");
        update.push_values(some, |mut row, (machine, timestamp)| {
            row.push_bind(machine.as_str())
                .push_bind(&timestamp.bytes[..])
                .push_bind(signed(timestamp.version))
                .push_bind(timestamp.expires)
                .push_bind(&timestamp.key.as_bytes()[..]);
        });
        update.push(
            ") UPDATE machines SET timestamp = new.bytes, timestamp_version = new.version,
                 timestamp_expires = new.expires, timestamp_key = new.key
             FROM new WHERE machines.name = new.name",
        );
        update.build().execute(&mut *sql).await?;
    }
    Ok(())
}
