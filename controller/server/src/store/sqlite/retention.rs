//! Removal of old events, old generations and expired rows.

use std::collections::BTreeMap;

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Generation, MachineName};
use muster_protocol::report::Event;
use sqlx::SqliteConnection;

use super::columns::{machine, signed, some_generation, unsigned};
use super::connection::{Sqlite, Transaction};
use crate::core::retention::{AT_ONCE, DECISIONS, GENERATIONS_AT_ONCE, Kept, Old};
use crate::core::rows::Outcome;
use crate::store::error::StoreError;

pub async fn trim(
    sql: &mut SqliteConnection,
    machine: &MachineName,
    bytes: u64,
    wanted: u64,
) -> Result<(), StoreError> {
    let mut left = bytes;
    for decides in [false, true] {
        while left > wanted {
            let gone: Vec<i64> = sqlx::query_scalar(
                "DELETE FROM events WHERE rowid IN
                     (SELECT rowid FROM events WHERE machine = $1 AND decides = $2
                       ORDER BY enrolment, seq LIMIT $3)
                 RETURNING length(CAST(event AS BLOB)) + 128",
            )
            .bind(machine.as_str())
            .bind(decides)
            .bind(i64::from(if left - wanted > 1024 * 1024 { AT_ONCE } else { AT_ONCE / 8 }))
            .fetch_all(&mut *sql)
            .await?;
            if gone.is_empty() {
                break;
            }
            left = left.saturating_sub(gone.into_iter().map(unsigned).sum());
        }
    }
    sqlx::query("UPDATE machines SET events_bytes = $2 WHERE name = $1")
        .bind(machine.as_str())
        .bind(signed(left))
        .execute(sql)
        .await?;
    Ok(())
}

#[derive(sqlx::FromRow)]
struct Gone {
    machine: String,
    bytes: i64,
}

/// How many were removed.
pub async fn forget(sql: &mut SqliteConnection, before: UnixMillis, most: u32) -> Result<u64, StoreError> {
    let gone: Vec<Gone> = sqlx::query_as(
        "DELETE FROM events WHERE rowid IN
             (SELECT rowid FROM events WHERE decides = 0 AND received_at < $1 ORDER BY received_at LIMIT $2)
         RETURNING machine, length(CAST(event AS BLOB)) + 128 AS bytes",
    )
    .bind(before)
    .bind(i64::from(most))
    .fetch_all(&mut *sql)
    .await?;
    let forgotten = gone.len() as u64;
    let mut by_machine = BTreeMap::<String, u64>::new();
    for Gone { machine, bytes } in gone {
        *by_machine.entry(machine).or_default() += unsigned(bytes);
    }
    for (machine, bytes) in by_machine {
        sqlx::query("UPDATE machines SET events_bytes = max(0, events_bytes - $2) WHERE name = $1")
            .bind(machine)
            .bind(signed(bytes))
            .execute(&mut *sql)
            .await?;
    }
    Ok(forgotten)
}

/// Removes what has expired, `most` rows of each table. How many were removed.
pub async fn sweep(sql: &mut SqliteConnection, now_s: i64, most: u32) -> Result<u64, StoreError> {
    let mut gone = 0;
    for query in [
        "DELETE FROM bearers WHERE hash IN (SELECT hash FROM bearers WHERE expires <= $1 LIMIT $2)",
        "DELETE FROM nonces WHERE (key, nonce) IN (SELECT key, nonce FROM nonces WHERE expires < $1 LIMIT $2)",
        "DELETE FROM drafts WHERE id IN (SELECT id FROM drafts WHERE ends <= $1 LIMIT $2)",
        "DELETE FROM requests WHERE (machine, id) IN
             (SELECT machine, id FROM requests WHERE ends <= $1 LIMIT $2)",
    ] {
        gone +=
            sqlx::query(query).bind(now_s).bind(i64::from(most)).execute(&mut *sql).await?.rows_affected();
    }
    // A requested key rotation that did not happen in time is no longer pending.
    sqlx::query(
        "UPDATE machines SET key_rotation_asked_at = NULL WHERE key_rotation_asked_at IS NOT NULL
         AND NOT EXISTS (SELECT 1 FROM requests r WHERE r.machine = machines.name AND r.asks = 'rotate-key')",
    )
    .execute(sql)
    .await?;
    Ok(gone)
}

pub async fn forget_tokens(sql: &mut SqliteConnection, before_s: i64, most: u32) -> Result<u64, StoreError> {
    let gone = sqlx::query(
        "DELETE FROM tokens WHERE id IN (SELECT id FROM tokens WHERE expires < $1 ORDER BY expires, id LIMIT $2)",
    )
    .bind(before_s)
    .bind(i64::from(most))
    .execute(sql)
    .await?;
    Ok(gone.rows_affected())
}

pub async fn forget_attacks(
    sql: &mut SqliteConnection,
    before: UnixMillis,
    most: u32,
) -> Result<u64, StoreError> {
    let gone = sqlx::query(
        "DELETE FROM attacks WHERE id IN
             (SELECT id FROM attacks WHERE ended_at IS NOT NULL AND ended_at < $1 ORDER BY ended_at, id LIMIT $2)",
    )
    .bind(before)
    .bind(i64::from(most))
    .execute(sql)
    .await?;
    Ok(gone.rows_affected())
}

/// The entries up to the one that the log was cut at; a trigger protects the others.
pub async fn forget_cut_entries(sql: &mut SqliteConnection, most: u32) -> Result<u64, StoreError> {
    let gone = sqlx::query(
        "DELETE FROM audit WHERE id IN
             (SELECT id FROM audit WHERE id <= (SELECT audit_cut FROM fleet) ORDER BY id LIMIT $1)",
    )
    .bind(i64::from(most))
    .execute(sql)
    .await?;
    Ok(gone.rows_affected())
}

pub async fn forget_generations(
    sql: &mut SqliteConnection,
    machine: &MachineName,
    generations: &[Generation],
) -> Result<(), StoreError> {
    let mut gone = 0;
    for generation in generations {
        let done = sqlx::query("DELETE FROM generations WHERE machine = $1 AND generation = $2")
            .bind(machine.as_str())
            .bind(generation.packed())
            .execute(&mut *sql)
            .await?;
        gone += done.rows_affected();
    }
    sqlx::query("UPDATE machines SET generations_forgotten = generations_forgotten + $2 WHERE name = $1")
        .bind(machine.as_str())
        .bind(signed(gone))
        .execute(sql)
        .await?;
    Ok(())
}

#[derive(sqlx::FromRow)]
struct MachineRow {
    name: String,
    has_old: bool,
}

#[derive(sqlx::FromRow)]
struct OldRow {
    published: Option<i64>,
    observed: Option<String>,
}

/// What a machine reported of its generations, the newest first.
const DECIDED: &str = "SELECT generation, event FROM events
     WHERE machine = $1 AND decides = 1 ORDER BY enrolment DESC, seq DESC LIMIT $2";

#[derive(sqlx::FromRow)]
struct DecisionRow {
    generation: Option<i64>,
    event: String,
}

impl DecisionRow {
    /// What cannot be read decides nothing.
    fn outcome(self) -> Option<Outcome> {
        let event: Event = serde_json::from_str(&self.event).ok()?;
        Outcome::of(some_generation(self.generation), &event.kind)
    }
}

impl Sqlite {
    pub async fn decisions(&self, machine: &MachineName) -> Result<Vec<Outcome>, StoreError> {
        let rows: Vec<DecisionRow> = sqlx::query_as(DECIDED)
            .bind(machine.as_str())
            .bind(i64::from(DECISIONS))
            .fetch_all(self.read())
            .await?;
        Ok(rows.into_iter().filter_map(DecisionRow::outcome).collect())
    }

    pub async fn target_of(
        &self,
        machine: &MachineName,
        generation: Generation,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let target =
            sqlx::query_scalar("SELECT target FROM generations WHERE machine = $1 AND generation = $2")
                .bind(machine.as_str())
                .bind(generation.packed())
                .fetch_optional(self.read())
                .await?;
        Ok(target)
    }

    pub async fn machines_after(
        &self,
        name: Option<&MachineName>,
        most: u32,
        kept: Kept,
    ) -> Result<Vec<(MachineName, bool)>, StoreError> {
        let rows: Vec<MachineRow> = sqlx::query_as(
            "SELECT m.name, EXISTS (
                 SELECT 1 FROM generations g
                 WHERE g.machine = m.name AND g.published_at < $3 AND g.generation <
                     (SELECT n.generation FROM generations n WHERE n.machine = m.name
                      ORDER BY n.generation DESC LIMIT 1 OFFSET $4)) AS has_old
             FROM machines m WHERE m.name > $1 ORDER BY m.name LIMIT $2",
        )
        .bind(name.map_or("", MachineName::as_str))
        .bind(i64::from(most))
        .bind(kept.since)
        .bind(i64::from(kept.newest.saturating_sub(1)))
        .fetch_all(self.read())
        .await?;
        rows.into_iter().map(|row| Ok((machine(&row.name)?, row.has_old))).collect()
    }
}

impl Transaction {
    pub async fn old_generations(
        &mut self,
        machine: &MachineName,
        kept: Kept,
    ) -> Result<Option<Old>, StoreError> {
        let row: Option<OldRow> = sqlx::query_as("SELECT published, observed FROM machines WHERE name = $1")
            .bind(machine.as_str())
            .fetch_optional(self.connection())
            .await?;
        let Some(row) = row else { return Ok(None) };
        let generations: Vec<i64> = sqlx::query_scalar(
            "SELECT g.generation FROM generations g WHERE g.machine = $1 AND g.published_at < $2 AND g.generation <
                 (SELECT n.generation FROM generations n WHERE n.machine = $1
                  ORDER BY n.generation DESC LIMIT 1 OFFSET $3)
             ORDER BY g.generation LIMIT $4",
        )
        .bind(machine.as_str())
        .bind(kept.since)
        .bind(i64::from(kept.newest.saturating_sub(1)))
        .bind(i64::from(GENERATIONS_AT_ONCE))
        .fetch_all(self.connection())
        .await?;
        let decisions: Vec<DecisionRow> = sqlx::query_as(DECIDED)
            .bind(machine.as_str())
            .bind(i64::from(DECISIONS))
            .fetch_all(self.connection())
            .await?;
        Ok(Some(Old {
            decisions: decisions.into_iter().filter_map(DecisionRow::outcome).collect(),
            published: some_generation(row.published),
            observed: row.observed.and_then(|text| serde_json::from_str(&text).ok()),
            generations: generations.into_iter().filter_map(|packed| some_generation(Some(packed))).collect(),
        }))
    }
}
