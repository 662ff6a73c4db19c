//! How much is kept of what machines tell: the newest, in bounds of bytes and of age. What decided on a generation goes last.

use std::collections::BTreeMap;

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::MachineName;

use super::{Store, StoreError, Tx, signed, unsigned};

/// How many events one statement removes; other writers wait for no more.
const AT_ONCE: i64 = 512;

/// What an event of so many bytes takes in the database.
pub(super) fn cost(bytes: usize) -> u64 {
    bytes as u64 + 128
}

/// Removes the oldest events of a machine that has more than it may; how many bytes are left.
pub(super) async fn forget_beyond(
    tx: &mut Tx,
    machine: &MachineName,
    bytes: u64,
    keep: u64,
) -> Result<u64, StoreError> {
    if bytes <= keep {
        return Ok(bytes);
    }
    // A little more, so that this is not done again for each event.
    let (mut left, wanted) = (bytes, keep - keep / 64);
    for decides in [false, true] {
        while left > wanted {
            let gone: Vec<i64> = sqlx::query_scalar(
                "DELETE FROM events WHERE rowid IN
                     (SELECT rowid FROM events WHERE machine = $1 AND decides = $2 ORDER BY enrolment, seq LIMIT $3)
                 RETURNING length(CAST(event AS BLOB)) + 128",
            )
            .bind(machine.as_str())
            .bind(decides)
            .bind(if left - wanted > 1024 * 1024 { AT_ONCE } else { AT_ONCE / 8 })
            .fetch_all(&mut **tx)
            .await?;
            if gone.is_empty() {
                break;
            }
            left = left.saturating_sub(gone.into_iter().map(unsigned).sum());
        }
    }
    Ok(left)
}

impl Store {
    /// Removes the events that came before `before`, but for those that decided on a generation.
    pub async fn forget_events(&self, before: UnixMillis) -> Result<(), StoreError> {
        loop {
            let mut tx = self.sql.begin().await?;
            let gone: Vec<(String, i64)> = sqlx::query_as(
                "DELETE FROM events WHERE rowid IN
                     (SELECT rowid FROM events WHERE decides = 0 AND received_at < $1 ORDER BY received_at LIMIT $2)
                 RETURNING machine, length(CAST(event AS BLOB)) + 128",
            )
            .bind(before)
            .bind(AT_ONCE)
            .fetch_all(&mut *tx)
            .await?;
            if gone.is_empty() {
                return Ok(());
            }
            let mut bytes = BTreeMap::<String, u64>::new();
            for (machine, size) in gone {
                *bytes.entry(machine).or_default() += unsigned(size);
            }
            for (machine, bytes) in bytes {
                sqlx::query("UPDATE machines SET events_bytes = max(0, events_bytes - $2) WHERE name = $1")
                    .bind(machine)
                    .bind(signed(bytes))
                    .execute(&mut *tx)
                    .await?;
            }
            tx.commit().await?;
        }
    }
}
