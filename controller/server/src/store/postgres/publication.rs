//! Published generations, and the files of a machine's TUF repository.

use std::collections::BTreeMap;

use muster_protocol::ids::{Epoch, Generation, MachineName};
use muster_protocol::operator::Published;
use sqlx::PgConnection;

use super::columns::{json, public_key, query, query_as, query_scalar, signed, some_generation, unsigned};
use super::connection::{Postgres, Transaction, locking};
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
        row.stored(latest).map(Some)
    }

    /// The same for many machines.
    pub async fn publishing_all(
        &mut self,
        offered: &[(&MachineName, Generation)],
    ) -> Result<BTreeMap<MachineName, Stored>, StoreError> {
        let names: Vec<&str> = offered.iter().map(|(name, _)| name.as_str()).collect();
        let numbers: Vec<i64> = offered.iter().map(|(_, number)| number.packed()).collect();
        self.lock_machines(&names).await?;
        // The files only where exactly this generation is published already.
        let rows: Vec<ManyRow> = query_as(
            "SELECT m.name, m.class, m.system, m.revoked_at, m.published, m.timestamp_version, m.observed,
                    g.targets, g.snapshot, g.target
             FROM UNNEST($1::text[], $2::bigint[]) AS o (name, generation) JOIN machines m ON m.name = o.name
             LEFT JOIN generations g
                 ON g.machine = m.name AND g.generation = m.published AND g.generation = o.generation",
        )
        .bind(names)
        .bind(numbers)
        .fetch_all(self.connection())
        .await?;
        threads::on(usize::MAX, || rows.into_iter().map(ManyRow::stored).collect())
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
    pub async fn file(&self, machine: &MachineName, file: File) -> Result<Option<Vec<u8>>, StoreError> {
        let text = match file {
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
        let query = query_scalar(text).bind(machine.as_str());
        let query = match file {
            File::Targets(number) | File::Snapshot(number) => query.bind(number.packed()),
            File::Target(hash) | File::Gated(hash) => query.bind(hash.as_bytes().to_vec()),
        };
        Ok(query.fetch_optional(self.view().await?.connection()).await?)
    }

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
        let mut parsed = Parsed::new(Keys::Left);
        rows.iter()
            .map(|row| {
                let times = (row.expires, row.published_at);
                published(&row.target, times, (&row.published_by, &row.signers), &mut parsed)
            })
            .collect()
    }
}

fn column<'a, R: ?Sized, T>(rows: &[&'a R], value: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(|row| value(row)).collect()
}

pub async fn store(sql: &mut PgConnection, new: &[&StoredGeneration]) -> Result<(), StoreError> {
    let signers = new.iter().map(|new| json(&new.signers, "signers"));
    let signers: Vec<String> = signers.collect::<Result<_, _>>()?;
    query(
        "INSERT INTO generations (machine, generation, targets, snapshot, target, target_sha256, expires,
             published_at, published_by, signers, plan)
         SELECT * FROM UNNEST($1::text[], $2::bigint[], $3::bytea[], $4::bytea[], $5::bytea[], $6::bytea[],
                              $7::bigint[], $8::bigint[], $9::bytea[], $10::text[], $11::bytea[])",
    )
    .bind(column(new, |new| new.machine.as_str()))
    .bind(column(new, |new| new.generation.packed()))
    .bind(column(new, |new| &new.files.targets[..]))
    .bind(column(new, |new| &new.files.snapshot[..]))
    .bind(column(new, |new| &new.files.target[..]))
    .bind(column(new, |new| new.target_sha256.as_bytes().as_slice()))
    .bind(column(new, |new| new.expires))
    .bind(column(new, |new| new.published_at))
    .bind(column(new, |new| new.published_by.to_bytes()))
    .bind(signers)
    .bind(column(new, |new| new.plan.as_ref().map(|plan| plan.as_bytes().as_slice())))
    .execute(sql)
    .await?;
    Ok(())
}

pub async fn point(
    sql: &mut PgConnection,
    published: &[(&MachineName, Generation, Option<&Turn>)],
) -> Result<(), StoreError> {
    let turns = published.iter().map(|(.., turn)| turn.map(|turn| json(turn, "a turn")).transpose());
    let turns: Vec<Option<String>> = turns.collect::<Result<_, _>>()?;
    let machines: Vec<&str> = published.iter().map(|(machine, ..)| machine.as_str()).collect();
    let generations: Vec<i64> = published.iter().map(|(_, generation, _)| generation.packed()).collect();
    query(
        "UPDATE machines SET published = new.published, rollout = new.turn, turn_changed = 0
         FROM UNNEST($1::text[], $2::bigint[], $3::text[]) AS new (name, published, turn)
         WHERE machines.name = new.name",
    )
    .bind(machines)
    .bind(generations)
    .bind(turns)
    .execute(sql)
    .await?;
    Ok(())
}

pub async fn keep_timestamps(
    sql: &mut PgConnection,
    timestamps: &[(&MachineName, &Timestamp)],
) -> Result<(), StoreError> {
    let machines: Vec<&str> = timestamps.iter().map(|(machine, _)| machine.as_str()).collect();
    let timestamps: Vec<&Timestamp> = timestamps.iter().map(|(_, timestamp)| *timestamp).collect();
    query(
        "UPDATE machines SET timestamp = new.bytes, timestamp_version = new.version,
             timestamp_expires = new.expires, timestamp_key = new.key
         FROM UNNEST($1::text[], $2::bytea[], $3::bigint[], $4::bigint[], $5::bytea[])
             AS new (name, bytes, version, expires, key)
         WHERE machines.name = new.name",
    )
    .bind(machines)
    .bind(column(&timestamps, |timestamp| &timestamp.bytes[..]))
    .bind(column(&timestamps, |timestamp| signed(timestamp.version)))
    .bind(column(&timestamps, |timestamp| timestamp.expires))
    .bind(column(&timestamps, |timestamp| timestamp.key.as_bytes().as_slice()))
    .execute(sql)
    .await?;
    Ok(())
}
