//! Published generations, the files of a machine's TUF repository, and its history.

use muster_protocol::checkin::{CheckIn, Holds};
use muster_protocol::ids::{Epoch, Generation, IdError, MachineName, Sha256};
use muster_protocol::keys::PublicKey;
use muster_protocol::machine::{Class, System};
use muster_protocol::operator::{HistoryEntry, Publication, Published, next_generation};
use muster_protocol::tuf::TufError;

use super::audit::{Act, log};
use super::machines::published;
use super::{Cursor, Deed, Store, StoreError, Tx, changed, generation, public_key, signed, unsigned};

/// A signed `timestamp.json`.
#[derive(Debug, Clone)]
pub struct Timestamp {
    pub bytes: Vec<u8>,
    pub version: u64,
    /// Unix seconds.
    pub expires: i64,
    /// The online key that signed it.
    pub key: PublicKey,
}

/// A publication that was checked against the root and the machine.
#[derive(Debug, Clone, Copy)]
pub struct NewGeneration<'a> {
    pub machine: &'a MachineName,
    /// What the machine was when this was checked.
    pub class: Class,
    pub system: &'a System,
    pub publication: &'a Publication,
    pub target_sha256: &'a Sha256,
    /// When the operators' signature ends, in unix seconds.
    pub expires: i64,
    /// The operators who signed it.
    pub signers: &'a [PublicKey],
}

/// A stored file of a machine's repository.
#[derive(Debug, Clone, Copy)]
pub enum Files {
    Targets(Generation),
    Snapshot(Generation),
    Target(Sha256),
}

#[derive(Debug, thiserror::Error)]
pub enum PublishRefusal {
    #[error(
        "there is no machine {0}: `muster machines list --all` shows who is known, `muster machines add {0}` adds it"
    )]
    Unknown(MachineName),
    #[error("machine {0} was revoked: add it anew with `muster machines add {0}`")]
    Revoked(MachineName),
    #[error(
        "generation {offered} of {machine} cannot be published: the next one is {next}; repeat `muster update`"
    )]
    NotNext { machine: MachineName, offered: Generation, next: Generation },
    #[error("{machine} has no next generation: {source}")]
    NoNext { machine: MachineName, source: IdError },
    #[error("machine {0} changed while this was published: repeat `muster update`")]
    Changed(MachineName),
    #[error("the timestamp cannot be signed: {0}")]
    Sign(#[from] TufError),
    #[error(transparent)]
    Store(#[from] StoreError),
}
impl From<sqlx::Error> for PublishRefusal {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

#[derive(sqlx::FromRow)]
struct Stands {
    class: String,
    system: String,
    revoked_at: Option<i64>,
    published: Option<i64>,
    timestamp_version: i64,
    observed: Option<String>,
}

impl Stands {
    /// What the machine said in its last check-in that it holds.
    fn holds(&self) -> Holds {
        let told: Option<CheckIn> = self.observed.as_deref().and_then(|text| serde_json::from_str(text).ok());
        told.map(|told| told.holds).unwrap_or_default()
    }
}

impl Store {
    /// Stores a generation and the timestamp that points to it, both or neither. The closure signs a timestamp over a
    /// snapshot, given the last version that was used. None: this very generation was published before.
    pub async fn publish(
        &self,
        new: NewGeneration<'_>,
        deed: &Deed<'_>,
        sign: impl FnOnce(u64, &[u8]) -> Result<Timestamp, TufError>,
    ) -> Result<Option<Cursor>, PublishRefusal> {
        let name = new.machine;
        let mut tx = self.sql.begin().await?;
        let stands: Option<Stands> = sqlx::query_as(
            "SELECT class, system, revoked_at, published, timestamp_version, observed FROM machines WHERE name = $1",
        )
        .bind(name.as_str())
        .fetch_optional(&mut *tx)
        .await?;
        let stands = stands.ok_or_else(|| PublishRefusal::Unknown(name.clone()))?;
        if stands.revoked_at.is_some() {
            return Err(PublishRefusal::Revoked(name.clone()));
        }
        if stands.class != new.class.as_str() || stands.system != new.system.as_str() {
            return Err(PublishRefusal::Changed(name.clone()));
        }
        let offered = new.publication.generation;
        // A number that earlier versions took and no generation has any more holds nothing up.
        let latest = stands.published.and_then(|number| generation(number).ok());
        if latest == Some(offered) && is_stored(&mut tx, new).await? {
            return Ok(None);
        }
        // What was offered is of the root's epoch: that was checked with its signatures.
        let next = next_generation(offered.epoch(), latest, &stands.holds())
            .map_err(|source| PublishRefusal::NoNext { machine: name.clone(), source })?;
        if offered != next {
            return Err(PublishRefusal::NotNext { machine: name.clone(), offered, next });
        }
        insert(&mut tx, new, deed).await?;
        let timestamp = sign(unsigned(stands.timestamp_version), new.publication.snapshot.as_bytes())?;
        keep(&mut tx, name, &timestamp).await?;
        sqlx::query("UPDATE machines SET published = $2 WHERE name = $1")
            .bind(name.as_str())
            .bind(offered.packed())
            .execute(&mut *tx)
            .await?;
        log(&mut tx, Act::of(deed, "generation-published", &offered.to_string()).on(name)).await?;
        let cursor = changed(&mut tx, name).await?;
        tx.commit().await?;
        Ok(Some(cursor))
    }

    /// The current timestamp of a machine; signed anew unless `is_good` says that it may stay. None where nothing was
    /// published in this epoch.
    pub async fn timestamp(
        &self,
        machine: &MachineName,
        epoch: Epoch,
        is_good: impl Fn(&Timestamp) -> bool,
        sign: impl FnOnce(u64, &[u8]) -> Result<Timestamp, TufError>,
    ) -> Result<Option<Timestamp>, PublishRefusal> {
        const CURRENT: &str =
            "SELECT m.timestamp, m.timestamp_version, m.timestamp_expires, m.timestamp_key, g.snapshot
             FROM machines m JOIN generations g ON g.machine = m.name AND g.generation = m.published
             WHERE m.name = $1 AND m.published >= $2";
        let first = Generation::first_of(epoch).packed();
        let row: Option<Current> = sqlx::query_as(CURRENT)
            .bind(machine.as_str())
            .bind(first)
            .fetch_optional(self.sql.read())
            .await?;
        match row.as_ref().map(Current::timestamp).transpose()?.flatten() {
            Some(timestamp) if is_good(&timestamp) => return Ok(Some(timestamp)),
            _ if row.is_none() => return Ok(None),
            _ => {}
        }
        let mut tx = self.sql.begin().await?;
        let row: Current =
            sqlx::query_as(CURRENT).bind(machine.as_str()).bind(first).fetch_one(&mut *tx).await?;
        if let Some(timestamp) = row.timestamp()?.filter(is_good) {
            return Ok(Some(timestamp));
        }
        let timestamp = sign(unsigned(row.timestamp_version), &row.snapshot)?;
        keep(&mut tx, machine, &timestamp).await?;
        tx.commit().await?;
        Ok(Some(timestamp))
    }

    pub async fn file(&self, machine: &MachineName, file: Files) -> Result<Option<Vec<u8>>, StoreError> {
        let query = match file {
            Files::Targets(_) => "SELECT targets FROM generations WHERE machine = $1 AND generation = $2",
            Files::Snapshot(_) => "SELECT snapshot FROM generations WHERE machine = $1 AND generation = $2",
            Files::Target(_) => {
                "SELECT target FROM generations WHERE machine = $1 AND target_sha256 = $2
                 ORDER BY generation DESC LIMIT 1"
            }
        };
        let query = sqlx::query_scalar(query).bind(machine.as_str());
        let query = match file {
            Files::Targets(number) | Files::Snapshot(number) => query.bind(number.packed()),
            Files::Target(hash) => query.bind(hash.as_bytes().to_vec()),
        };
        Ok(query.fetch_optional(self.sql.read()).await?)
    }

    /// The newest generations of a machine, of those before one where it is given, with what it told of them.
    pub async fn history(
        &self,
        machine: &MachineName,
        before: Option<Generation>,
        limit: u32,
    ) -> Result<Vec<HistoryEntry>, StoreError> {
        type Row = (Vec<u8>, i64, i64, Vec<u8>, String);
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT target, expires, published_at, published_by, signers FROM generations
             WHERE machine = $1 AND generation < $3 ORDER BY generation DESC LIMIT $2",
        )
        .bind(machine.as_str())
        .bind(i64::from(limit))
        .bind(before.map_or(i64::MAX, Generation::packed))
        .fetch_all(self.sql.read())
        .await?;
        let entries: Vec<Published> = rows
            .iter()
            .map(|(target, expires, at, by, signers)| published(target, *expires, *at, by, signers))
            .collect::<Result<_, _>>()?;
        let numbers: Vec<Generation> = entries.iter().map(|entry| entry.target.generation).collect();
        let mut events = self.events(machine, &numbers).await?;
        Ok(entries
            .into_iter()
            .map(|published| {
                let (events, left_out) = events.remove(&published.target.generation).unwrap_or_default();
                HistoryEntry { published, events, left_out }
            })
            .collect())
    }
}

#[derive(sqlx::FromRow)]
struct Current {
    timestamp: Option<Vec<u8>>,
    timestamp_version: i64,
    timestamp_expires: Option<i64>,
    timestamp_key: Option<Vec<u8>>,
    snapshot: Vec<u8>,
}

impl Current {
    fn timestamp(&self) -> Result<Option<Timestamp>, StoreError> {
        let (Some(bytes), Some(expires), Some(key)) =
            (&self.timestamp, self.timestamp_expires, &self.timestamp_key)
        else {
            return Ok(None);
        };
        let version = unsigned(self.timestamp_version);
        Ok(Some(Timestamp { bytes: bytes.clone(), version, expires, key: public_key(key)? }))
    }
}

async fn is_stored(tx: &mut Tx, new: NewGeneration<'_>) -> Result<bool, StoreError> {
    let publication = new.publication;
    Ok(sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM generations WHERE machine = $1 AND generation = $2
             AND targets = $3 AND snapshot = $4 AND target = $5)",
    )
    .bind(new.machine.as_str())
    .bind(publication.generation.packed())
    .bind(publication.targets.as_bytes())
    .bind(publication.snapshot.as_bytes())
    .bind(publication.target.as_bytes())
    .fetch_one(&mut **tx)
    .await?)
}

async fn insert(tx: &mut Tx, new: NewGeneration<'_>, deed: &Deed<'_>) -> Result<(), StoreError> {
    let publication = new.publication;
    sqlx::query(
        "INSERT INTO generations (machine, generation, targets, snapshot, target, target_sha256, expires,
             published_at, published_by, signers)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(new.machine.as_str())
    .bind(publication.generation.packed())
    .bind(publication.targets.as_bytes())
    .bind(publication.snapshot.as_bytes())
    .bind(publication.target.as_bytes())
    .bind(new.target_sha256.as_bytes().as_slice())
    .bind(new.expires)
    .bind(deed.at)
    .bind(deed.operator.as_bytes().as_slice())
    .bind(serde_json::to_string(new.signers).map_err(|_| StoreError::Damaged("signers"))?)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn keep(tx: &mut Tx, machine: &MachineName, timestamp: &Timestamp) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE machines SET timestamp = $2, timestamp_version = $3, timestamp_expires = $4, timestamp_key = $5
         WHERE name = $1",
    )
    .bind(machine.as_str())
    .bind(&timestamp.bytes)
    .bind(signed(timestamp.version))
    .bind(timestamp.expires)
    .bind(timestamp.key.as_bytes().as_slice())
    .execute(&mut **tx)
    .await?;
    Ok(())
}
