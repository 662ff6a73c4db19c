//! Machines as rows: what operators see, and what they change.

use std::collections::BTreeSet;

use futures_util::TryStreamExt as _;
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{MachineName, Tag};
use muster_protocol::keys::PublicKey;
use muster_protocol::operator::{AttackView, Published};
use muster_protocol::report::Attack;
use muster_protocol::target::Target;
use sqlx::SqliteConnection;

use super::columns::{json, public_key, some_generation, unsigned};
use super::connection::{Sqlite, Transaction};
use crate::core::change::Invited;
use crate::core::machines::Stored;
use crate::core::rows::{KnownMachine, Machine};
use crate::store::answers::News;
use crate::store::error::StoreError;
use crate::store::parsed::{Keys, Parsed};
use crate::threads;

/// How many rows are read before other tasks of the thread have their turn.
const ROWS_AT_ONCE: usize = 64;

#[derive(sqlx::FromRow)]
struct Row {
    name: String,
    class: String,
    system: String,
    tags: String,
    key: Option<Vec<u8>>,
    age: Option<String>,
    agent: Option<String>,
    enrolled_at: Option<i64>,
    revoked_at: Option<i64>,
    seen_at: Option<i64>,
    clock_skew_ms: Option<i64>,
    generations_forgotten: i64,
    rollout: Option<String>,
    clone_alarm_at: Option<i64>,
    key_rotated_at: Option<i64>,
    key_rotation_asked_at: Option<i64>,
    observed: Option<String>,
    outcome: Option<String>,
    target: Option<Vec<u8>>,
    expires: Option<i64>,
    published_at: Option<i64>,
    published_by: Option<Vec<u8>>,
    signers: Option<String>,
    attack: Option<String>,
    attack_detail: Option<String>,
    attack_generation: Option<i64>,
    attack_at: Option<i64>,
    attack_received_at: Option<i64>,
}

impl Row {
    fn machine(self, parsed: &mut Parsed) -> Result<Machine, StoreError> {
        let damaged = || StoreError::Damaged("a machine");
        let attack = self.attack();
        let published = match (self.target, self.expires, self.published_at, self.published_by) {
            (Some(target), Some(expires), Some(at), Some(by)) => {
                // A generation that earlier versions accepted and this one does not parse (a number above the
                // cap) is treated as missing: its machine must still be listed, so that it can be brought
                // into a new epoch.
                let signers = self.signers.as_deref().unwrap_or_default();
                published(&target, (expires, at), (&by, signers), parsed).ok()
            }
            _ => None,
        };
        // A check-in may come from another version and not parse; then the state is unknown, and unknown is
        // not healthy.
        let observed = self.observed.and_then(|text| serde_json::from_str(&text).ok());
        Ok(Machine {
            name: self.name.parse().map_err(|_| damaged())?,
            class: self.class.parse().map_err(|_| damaged())?,
            system: self.system.parse().map_err(|_| damaged())?,
            tags: serde_json::from_str(&self.tags).map_err(|_| damaged())?,
            has_key: self.key.is_some(),
            key: parsed.own(self.key.as_deref())?,
            age: self.age,
            agent: self.agent,
            enrolled_at: self.enrolled_at,
            revoked_at: self.revoked_at,
            seen_at: self.seen_at,
            clock_skew_ms: self.clock_skew_ms,
            clone_alarm_at: self.clone_alarm_at,
            key_rotated_at: self.key_rotated_at,
            key_rotation_asked_at: self.key_rotation_asked_at,
            attack,
            observed,
            outcome: self.outcome.and_then(|text| serde_json::from_str(&text).ok()),
            published,
            generations_forgotten: unsigned(self.generations_forgotten),
            turn: self.rollout.and_then(|text| serde_json::from_str(&text).ok()),
        })
    }

    fn attack(&self) -> Option<AttackView> {
        let (Some(kind), Some(at), Some(received_at)) =
            (&self.attack, self.attack_at, self.attack_received_at)
        else {
            return None;
        };
        Some(AttackView {
            attack: serde_json::from_value(kind.as_str().into()).unwrap_or(Attack::Unknown),
            detail: self.attack_detail.clone().unwrap_or_default(),
            generation: some_generation(self.attack_generation),
            at,
            received_at,
            ended_at: None,
        })
    }
}

pub fn published(
    target: &[u8],
    (expires, at): (i64, UnixMillis),
    (by, signers): (&[u8], &str),
    parsed: &mut Parsed,
) -> Result<Published, StoreError> {
    let target: Target = serde_json::from_slice(target).map_err(|_| StoreError::Damaged("a target"))?;
    Ok(Published { target, at, by: parsed.publisher(by)?, expires, signers: parsed.signers(signers) })
}

macro_rules! select {
    ($tail:literal) => {
        concat!(
            "SELECT m.name, m.class, m.system, m.tags, m.key, m.age, m.agent, m.enrolled_at, m.revoked_at,
                    m.seen_at, m.clock_skew_ms, m.clone_alarm_at, m.key_rotated_at, m.key_rotation_asked_at,
                    m.observed, m.outcome, m.generations_forgotten, m.rollout,
                    g.target, g.expires, g.published_at, g.published_by, g.signers,
                    a.attack, a.detail AS attack_detail, a.generation AS attack_generation, a.at AS attack_at,
                    a.received_at AS attack_received_at
             FROM machines m
             LEFT JOIN generations g ON g.machine = m.name AND g.generation = m.published
             LEFT JOIN attacks a ON a.id =
                 (SELECT max(id) FROM attacks o WHERE o.machine = m.name AND o.ended_at IS NULL) ",
            $tail
        )
    };
}

/// What the requests of an enrolled machine are checked against.
#[derive(sqlx::FromRow)]
struct KeyRow {
    key: Option<Vec<u8>>,
    revoked_at: Option<i64>,
    class: String,
    enrolment: i64,
    bearer_counter: i64,
    seq: i64,
    seen_at: Option<i64>,
}

#[derive(sqlx::FromRow)]
struct NewsRow {
    published: Option<i64>,
    waits: bool,
}

impl Sqlite {
    pub async fn machine(&self, name: &MachineName) -> Result<Option<Machine>, StoreError> {
        let row: Option<Row> = sqlx::query_as(select!("WHERE m.name = $1"))
            .bind(name.as_str())
            .fetch_optional(self.read())
            .await?;
        row.map(|row| row.machine(&mut Parsed::new(Keys::Parsed))).transpose()
    }

    pub async fn machines(&self, keys: Keys) -> Result<Vec<Machine>, StoreError> {
        // Each row is read while SQLite, in its own thread, makes the next ones.
        let mut rows = sqlx::query_as::<_, Row>(select!("ORDER BY m.name")).fetch(self.read());
        let (mut machines, mut parsed) = (Vec::new(), Parsed::new(keys));
        while let Some(row) = rows.try_next().await? {
            machines.push(row.machine(&mut parsed)?);
            if machines.len() % ROWS_AT_ONCE == 0 {
                tokio::task::yield_now().await;
            }
        }
        Ok(machines)
    }

    pub async fn machines_named(
        &self,
        names: &[MachineName],
        keys: Keys,
    ) -> Result<Vec<Machine>, StoreError> {
        let of_these = select!("WHERE m.name IN (SELECT value FROM json_each($1)) ORDER BY m.name");
        let rows: Vec<Row> =
            sqlx::query_as(of_these).bind(json(&names, "names")?).fetch_all(self.read()).await?;
        let mut parsed = Parsed::new(keys);
        threads::on(usize::MAX, || rows.into_iter().map(|row| row.machine(&mut parsed)).collect())
    }

    pub async fn machine_key(&self, name: &MachineName) -> Result<Option<KnownMachine>, StoreError> {
        let row: Option<KeyRow> = sqlx::query_as(
            "SELECT key, revoked_at, class, enrolment, bearer_counter, seq, seen_at FROM machines
                 WHERE name = $1",
        )
        .bind(name.as_str())
        .fetch_optional(self.read())
        .await?;
        let Some(row) = row else { return Ok(None) };
        let Some(key) = row.key else { return Ok(None) };
        Ok(Some(KnownMachine {
            key: public_key(&key)?,
            class: row.class.parse().map_err(|_| StoreError::Damaged("a class"))?,
            revoked: row.revoked_at.is_some(),
            enrolment: unsigned(row.enrolment),
            counter: unsigned(row.bearer_counter),
            seq: unsigned(row.seq),
            seen_at: row.seen_at.unwrap_or(0),
        }))
    }

    pub async fn news(&self, name: &MachineName) -> Result<News, StoreError> {
        let row: Option<NewsRow> = sqlx::query_as(
            "SELECT published,
                    turn_changed <> 0
                        OR EXISTS (SELECT 1 FROM requests WHERE machine = $1 AND handed_on = FALSE) AS waits
             FROM machines WHERE name = $1",
        )
        .bind(name.as_str())
        .fetch_optional(self.read())
        .await?;
        let news = row.map(|row| News { generation: some_generation(row.published), check_in: row.waits });
        Ok(news.unwrap_or_default())
    }
}

#[derive(sqlx::FromRow)]
struct Standing {
    has_key: bool,
    revoked_at: Option<i64>,
    clone_alarm_at: Option<i64>,
    seen_at: Option<i64>,
}

impl Transaction {
    pub async fn known(&mut self, machine: &MachineName) -> Result<Option<Stored>, StoreError> {
        let row: Option<Standing> = sqlx::query_as(
            "SELECT key IS NOT NULL AS has_key, revoked_at, clone_alarm_at, seen_at FROM machines
             WHERE name = $1",
        )
        .bind(machine.as_str())
        .fetch_optional(self.connection())
        .await?;
        Ok(row.map(|row| Stored {
            has_key: row.has_key,
            revoked_at: row.revoked_at,
            clone_alarm_at: row.clone_alarm_at,
            seen_at: row.seen_at,
        }))
    }
}

/// Whether another machine has this key.
pub async fn another_has(
    sql: &mut SqliteConnection,
    machine: &MachineName,
    key: &PublicKey,
) -> Result<bool, StoreError> {
    let taken = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM machines WHERE key = $1 AND name <> $2)")
        .bind(key.as_bytes().as_slice())
        .bind(machine.as_str())
        .fetch_one(sql)
        .await?;
    Ok(taken)
}

pub async fn add(sql: &mut SqliteConnection, new: &Invited, at: UnixMillis) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO machines (name, class, system, tags, added_at) VALUES ($1, $2, $3, $4, $5)")
        .bind(new.machine.as_str())
        .bind(new.class.as_str())
        .bind(new.system.as_str())
        .bind(json(&new.tags, "tags")?)
        .bind(at)
        .execute(sql)
        .await?;
    Ok(())
}

pub async fn invite(sql: &mut SqliteConnection, new: &Invited) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE machines SET class = $2, system = $3, tags = $4, key = NULL, revoked_at = NULL
         WHERE name = $1",
    )
    .bind(new.machine.as_str())
    .bind(new.class.as_str())
    .bind(new.system.as_str())
    .bind(json(&new.tags, "tags")?)
    .execute(sql)
    .await?;
    Ok(())
}

pub async fn replace_tags(
    sql: &mut SqliteConnection,
    machine: &MachineName,
    tags: &BTreeSet<Tag>,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE machines SET tags = $2 WHERE name = $1")
        .bind(machine.as_str())
        .bind(json(tags, "tags")?)
        .execute(sql)
        .await?;
    Ok(())
}

pub async fn revoke(
    sql: &mut SqliteConnection,
    machine: &MachineName,
    at: UnixMillis,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE machines SET revoked_at = $2 WHERE name = $1")
        .bind(machine.as_str())
        .bind(at)
        .execute(sql)
        .await?;
    Ok(())
}

pub async fn seen(
    sql: &mut SqliteConnection,
    machine: &MachineName,
    at: UnixMillis,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE machines SET seen_at = $2 WHERE name = $1")
        .bind(machine.as_str())
        .bind(at)
        .execute(sql)
        .await?;
    Ok(())
}
