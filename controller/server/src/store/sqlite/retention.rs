//! Removal of old events and expired rows.

use std::collections::BTreeMap;

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::MachineName;
use sqlx::SqliteConnection;

use super::columns::{signed, unsigned};
use crate::core::retention::AT_ONCE;
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

pub async fn sweep(sql: &mut SqliteConnection, now_s: i64) -> Result<(), StoreError> {
    for query in [
        "DELETE FROM bearers WHERE expires <= $1",
        "DELETE FROM nonces WHERE expires < $1",
        "DELETE FROM drafts WHERE ends <= $1",
        "DELETE FROM requests WHERE ends <= $1",
    ] {
        sqlx::query(query).bind(now_s).execute(&mut *sql).await?;
    }
    // A requested key rotation that did not happen in time is no longer pending.
    sqlx::query(
        "UPDATE machines SET key_rotation_asked_at = NULL WHERE key_rotation_asked_at IS NOT NULL
         AND NOT EXISTS (SELECT 1 FROM requests r WHERE r.machine = machines.name AND r.asks = 'rotate-key')",
    )
    .execute(sql)
    .await?;
    Ok(())
}
