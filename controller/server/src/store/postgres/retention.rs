//! Removal of old events and expired rows.

use std::collections::BTreeMap;

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::MachineName;
use sqlx::PgConnection;

use super::columns::{query, query_as, query_scalar, signed, unsigned};
use super::locks::{self, Lock};
use crate::core::retention::AT_ONCE;
use crate::store::error::StoreError;

pub async fn trim(
    sql: &mut PgConnection,
    machine: &MachineName,
    bytes: u64,
    wanted: u64,
) -> Result<(), StoreError> {
    let mut left = bytes;
    for decides in [false, true] {
        while left > wanted {
            let gone: Vec<i64> = query_scalar(
                "DELETE FROM events WHERE ctid IN
                     (SELECT ctid FROM events WHERE machine = $1 AND decides = $2
                       ORDER BY enrolment, seq LIMIT $3)
                 RETURNING octet_length(event)::bigint + 128",
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
    query("UPDATE machines SET events_bytes = $2 WHERE name = $1")
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

/// How many were removed. The rows of the machines concerned are locked first, as by everyone who changes
/// their events. If another controller is at it, nothing.
pub async fn forget(sql: &mut PgConnection, before: UnixMillis, most: u32) -> Result<u64, StoreError> {
    if !locks::try_take(sql, Lock::Forgetting).await? {
        return Ok(0);
    }
    let machines: Vec<String> = query_scalar(
        "SELECT name FROM machines WHERE name IN
             (SELECT machine FROM events WHERE NOT decides AND received_at < $1 ORDER BY received_at LIMIT $2)
         ORDER BY name FOR NO KEY UPDATE",
    )
    .bind(before)
    .bind(i64::from(most))
    .fetch_all(&mut *sql)
    .await?;
    let gone: Vec<Gone> = query_as(
        "DELETE FROM events WHERE ctid IN
             (SELECT ctid FROM events WHERE NOT decides AND received_at < $1 AND machine = ANY($3)
               ORDER BY received_at LIMIT $2)
         RETURNING machine, octet_length(event)::bigint + 128 AS bytes",
    )
    .bind(before)
    .bind(i64::from(most))
    .bind(machines)
    .fetch_all(&mut *sql)
    .await?;
    let forgotten = gone.len() as u64;
    let mut by_machine = BTreeMap::<String, u64>::new();
    for Gone { machine, bytes } in gone {
        *by_machine.entry(machine).or_default() += unsigned(bytes);
    }
    for (machine, bytes) in by_machine {
        query("UPDATE machines SET events_bytes = greatest(0, events_bytes - $2) WHERE name = $1")
            .bind(machine)
            .bind(signed(bytes))
            .execute(&mut *sql)
            .await?;
    }
    Ok(forgotten)
}

/// Nothing if another controller is at it.
pub async fn sweep(sql: &mut PgConnection, now_s: i64) -> Result<(), StoreError> {
    if !locks::try_take(sql, Lock::Forgetting).await? {
        return Ok(());
    }
    for expired in [
        "DELETE FROM bearers WHERE expires <= $1",
        "DELETE FROM nonces WHERE expires < $1",
        "DELETE FROM drafts WHERE ends <= $1",
        "DELETE FROM requests WHERE ends <= $1",
    ] {
        query(expired).bind(now_s).execute(&mut *sql).await?;
    }
    // A requested key rotation that did not happen in time is no longer pending.
    query(
        "UPDATE machines SET key_rotation_asked_at = NULL WHERE key_rotation_asked_at IS NOT NULL
         AND NOT EXISTS (SELECT 1 FROM requests r WHERE r.machine = machines.name AND r.asks = 'rotate-key')",
    )
    .execute(sql)
    .await?;
    Ok(())
}
