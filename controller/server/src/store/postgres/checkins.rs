//! Check-ins: a machine's last one, the ones before it, and its key.

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::MachineName;
use muster_protocol::keys::PublicKey;
use sqlx::PgConnection;

use super::columns::{json, query, query_as, query_scalar, sha256, signed, some_generation, text, unsigned};
use super::connection::{Transaction, locking};
use super::{machines, requests};
use crate::core::change::CheckedIn;
use crate::core::checkin::{DAY_MS, KEY_ROTATED, KEYS_A_DAY, Rotation, Stored};
use crate::core::rows::{EarlierCheckIn, LastCheckIn};
use crate::store::error::StoreError;

#[derive(sqlx::FromRow)]
struct Row {
    seq: i64,
    body_sha256: Option<Vec<u8>>,
    bearer_salt: Option<Vec<u8>>,
    reply: Option<String>,
    reports_through: i64,
    published: Option<i64>,
    key_rotation_asked_at: Option<i64>,
    earlier: Option<Vec<u8>>,
    clone_alarm_at: Option<i64>,
}

impl Row {
    fn last(&self) -> Result<Option<LastCheckIn>, StoreError> {
        let (Some(body), Some(salt)) = (&self.body_sha256, &self.bearer_salt) else { return Ok(None) };
        let reply = self.reply.as_deref().and_then(|text| serde_json::from_str(text).ok());
        Ok(Some(LastCheckIn { body: sha256(body)?, salt: *sha256(salt)?.as_bytes(), reply }))
    }
}

impl Transaction {
    pub async fn check_in(
        &mut self,
        machine: &MachineName,
        key: &PublicKey,
        new_key: Option<&PublicKey>,
        now: UnixMillis,
    ) -> Result<Option<Stored>, StoreError> {
        let row: Option<Row> = query_as(locking!(
            self,
            "SELECT seq, body_sha256, bearer_salt, reply, reports_through, published, key_rotation_asked_at,
                    earlier, clone_alarm_at
             FROM machines WHERE name = $1 AND key = $2 AND revoked_at IS NULL",
            "FOR NO KEY UPDATE"
        ))
        .bind(machine.as_str())
        .bind(key.as_bytes().as_slice())
        .fetch_optional(self.connection())
        .await?;
        let Some(row) = row else { return Ok(None) };
        let rotation = match new_key {
            Some(new) => rotation(self.connection(), machine, new, now).await?,
            None => Rotation::default(),
        };
        Ok(Some(Stored {
            seq: unsigned(row.seq),
            last: row.last()?,
            earlier: earlier(row.earlier.as_deref().unwrap_or_default()),
            reports_through: unsigned(row.reports_through),
            published: some_generation(row.published),
            key_rotation_asked: row.key_rotation_asked_at.is_some(),
            clone_alarm: row.clone_alarm_at.is_some(),
            requests: requests::of(self.connection(), machine).await?,
            rotation,
        }))
    }
}

async fn rotation(
    sql: &mut PgConnection,
    machine: &MachineName,
    new: &PublicKey,
    now: UnixMillis,
) -> Result<Rotation, StoreError> {
    let today: Vec<UnixMillis> = query_scalar(
        "SELECT at FROM audit WHERE machine = $1 AND action = $2 AND at > $3 AND at <= $4
         ORDER BY id DESC LIMIT $5",
    )
    .bind(machine.as_str())
    .bind(KEY_ROTATED)
    .bind(now.saturating_sub(DAY_MS))
    .bind(now)
    .bind(signed(KEYS_A_DAY as u64))
    .fetch_all(&mut *sql)
    .await?;
    Ok(Rotation { taken: machines::another_has(sql, machine, new).await?, today })
}

pub async fn keep(sql: &mut PgConnection, checked_in: &CheckedIn) -> Result<(), StoreError> {
    query(
        "UPDATE machines SET seq = $2, body_sha256 = $3, bearer_salt = $4, reply = $5, observed = $6,
             seen_at = $7, clock_skew_ms = $8, agent = $9, earlier = $10
         WHERE name = $1",
    )
    .bind(checked_in.machine.as_str())
    .bind(signed(checked_in.seq))
    .bind(checked_in.body.as_bytes().as_slice())
    .bind(checked_in.salt.as_slice())
    .bind(json(&checked_in.reply, "a reply")?)
    .bind(text(&checked_in.observed))
    .bind(checked_in.at)
    .bind(checked_in.clock_skew_ms)
    .bind(text(&checked_in.agent))
    .bind(column_of(&checked_in.earlier))
    .execute(sql)
    .await?;
    Ok(())
}

pub async fn replace_key(
    sql: &mut PgConnection,
    machine: &MachineName,
    key: &PublicKey,
    at: UnixMillis,
) -> Result<(), StoreError> {
    query("UPDATE machines SET key = $2, key_rotated_at = $3, key_rotation_asked_at = NULL WHERE name = $1")
        .bind(machine.as_str())
        .bind(key.as_bytes().as_slice())
        .bind(at)
        .execute(sql)
        .await?;
    Ok(())
}

pub async fn alarm(
    sql: &mut PgConnection,
    machine: &MachineName,
    at: Option<UnixMillis>,
) -> Result<(), StoreError> {
    query("UPDATE machines SET clone_alarm_at = $2 WHERE name = $1")
        .bind(machine.as_str())
        .bind(at)
        .execute(sql)
        .await?;
    Ok(())
}

/// What is kept of each earlier check-in: its number, and the first bytes of its body's hash.
const EARLIER_BYTES: usize = 8 + 16;

fn earlier(column: &[u8]) -> Vec<EarlierCheckIn> {
    let (entries, _) = column.as_chunks::<EARLIER_BYTES>();
    let entries = entries.iter().filter_map(|entry| {
        let (seq, body) = entry.split_first_chunk::<8>()?;
        Some(EarlierCheckIn { seq: u64::from_be_bytes(*seq), body: body.try_into().ok()? })
    });
    entries.collect()
}

fn column_of(earlier: &[EarlierCheckIn]) -> Vec<u8> {
    earlier.iter().flat_map(|entry| [&entry.seq.to_be_bytes()[..], &entry.body].concat()).collect()
}
