//! Check-ins: a machine's last one, the ones before it, and its key.

use std::collections::HashMap;

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::MachineName;
use muster_protocol::keys::PublicKey;
use sqlx::{AssertSqlSafe, SqliteConnection};

use super::columns::{json, sha256, signed, some_generation, unsigned};
use super::connection::Transaction;
use super::{machines, requests};
use crate::core::change::CheckedIn;
use crate::core::checkin::{DAY_MS, KEY_ROTATED, KEYS_A_DAY, Rotation, Stored};
use crate::core::rows::{Grant, Granted, LastCheckIn, Request};
use crate::store::earlier;
use crate::store::error::StoreError;
use crate::store::queue::{Asking, MOST_TOGETHER};

#[derive(sqlx::FromRow)]
struct Row {
    name: String,
    key: Option<Vec<u8>>,
    revoked_at: Option<i64>,
    enrolment: i64,
    bearer_counter: i64,
    seq: i64,
    body_sha256: Option<Vec<u8>>,
    bearer_key: Option<i64>,
    bearer_expires: Option<i64>,
    bearer_salt: Option<Vec<u8>>,
    reply: Option<String>,
    reports_through: i64,
    published: Option<i64>,
    key_rotation_asked_at: Option<i64>,
    earlier: Option<Vec<u8>>,
    clone_alarm_at: Option<i64>,
    rollout: Option<String>,
    vouched: Option<Vec<u8>>,
    has_requests: bool,
    attack_open: bool,
}

/// Of many machines at once. The flags keep the tables of what is rare untouched.
const ROWS: &str = "SELECT name, key, revoked_at, enrolment, bearer_counter, seq, body_sha256, bearer_key,
        bearer_expires, bearer_salt, reply, reports_through, published, key_rotation_asked_at, earlier,
        clone_alarm_at, rollout, vouched,
        EXISTS (SELECT 1 FROM requests r WHERE r.machine = m.name) AS has_requests,
        EXISTS (SELECT 1 FROM attacks a WHERE a.machine = m.name AND a.ended_at IS NULL) AS attack_open
     FROM machines m WHERE name IN (SELECT value FROM json_each($1))";

impl Row {
    fn is_of(&self, key: &PublicKey) -> bool {
        self.revoked_at.is_none() && self.key.as_deref() == Some(key.as_bytes().as_slice())
    }

    /// The last check-in. Its reply is parsed only if it may be asked for again.
    fn last(&self, asked: u64) -> Result<Option<LastCheckIn>, StoreError> {
        let Some(body) = &self.body_sha256 else { return Ok(None) };
        let key = self.bearer_key.and_then(|key| u32::try_from(key).ok());
        let granted = match (key.zip(self.bearer_expires), &self.bearer_salt) {
            (Some((key, expires)), _) => Granted::Sealed(Grant { key, expires }),
            (None, Some(salt)) => Granted::Salted(*sha256(salt)?.as_bytes()),
            (None, None) => return Ok(None),
        };
        let reply = self.reply.as_deref().filter(|_| unsigned(self.seq) == asked);
        let reply = reply.and_then(|text| serde_json::from_str(text).ok());
        Ok(Some(LastCheckIn { body: sha256(body)?, granted, reply }))
    }

    fn stored(&self, asked: u64, requests: Vec<Request>, rotation: Rotation) -> Result<Stored, StoreError> {
        Ok(Stored {
            enrolment: unsigned(self.enrolment),
            counter: unsigned(self.bearer_counter),
            seq: unsigned(self.seq),
            last: self.last(asked)?,
            earlier: earlier::read(self.earlier.as_deref().unwrap_or_default()),
            reports_through: unsigned(self.reports_through),
            published: some_generation(self.published),
            key_rotation_asked: self.key_rotation_asked_at.is_some(),
            clone_alarm: self.clone_alarm_at.is_some(),
            attack_open: self.attack_open,
            requests,
            rotation,
            turn: self.rollout.as_deref().and_then(|text| serde_json::from_str(text).ok()),
            vouched: self.vouched.as_deref().map(sha256).transpose()?,
        })
    }
}

impl Transaction {
    pub async fn check_in(
        &mut self,
        asking: &Asking<'_>,
        new_key: Option<&PublicKey>,
        now: UnixMillis,
    ) -> Result<Option<Stored>, StoreError> {
        let Asking { machine, key, seq } = asking;
        let Some(row) = self.rows_of(&[machine]).await?.pop().filter(|row| row.is_of(key)) else {
            return Ok(None);
        };
        let rotation = match new_key {
            Some(new) => rotation(self.connection(), machine, new, now).await?,
            None => Rotation::default(),
        };
        row.stored(*seq, requests::of(self.connection(), machine).await?, rotation).map(Some)
    }

    pub async fn check_ins(
        &mut self,
        asked: &[Asking<'_>],
    ) -> Result<Vec<Result<Option<Stored>, StoreError>>, StoreError> {
        let names: Vec<&MachineName> = asked.iter().map(|asking| asking.machine).collect();
        let rows = self.rows_of(&names).await?;
        let rows: HashMap<&str, &Row> = rows.iter().map(|row| (row.name.as_str(), row)).collect();
        let mut found = Vec::with_capacity(asked.len());
        for Asking { machine, key, seq } in asked {
            let Some(row) = rows.get(machine.as_str()).filter(|row| row.is_of(key)) else {
                found.push(Ok(None));
                continue;
            };
            let requests = match row.has_requests {
                true => requests::of(self.connection(), machine).await,
                false => Ok(Vec::new()),
            };
            let stored = requests.and_then(|requests| row.stored(*seq, requests, Rotation::default()));
            found.push(stored.map(Some));
        }
        Ok(found)
    }

    async fn rows_of(&mut self, names: &[&MachineName]) -> Result<Vec<Row>, StoreError> {
        let names = json(&names, "names")?;
        Ok(sqlx::query_as(ROWS).bind(names).fetch_all(self.connection()).await?)
    }
}

async fn rotation(
    sql: &mut SqliteConnection,
    machine: &MachineName,
    new: &PublicKey,
    now: UnixMillis,
) -> Result<Rotation, StoreError> {
    let today: Vec<UnixMillis> = sqlx::query_scalar(
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

/// Check-ins, each of another machine, in as few statements as possible.
pub async fn keep(sql: &mut SqliteConnection, checked_in: &[&CheckedIn]) -> Result<(), StoreError> {
    for some in checked_in.chunks(MOST_TOGETHER) {
        // Few sizes, so that each one's statement is prepared once; the rows that are left name no machine.
        let rows = some.len().next_power_of_two();
        let mut query = sqlx::query(AssertSqlSafe(update(rows)));
        for one in some {
            query = query
                .bind(one.machine.as_str())
                .bind(signed(one.seq))
                .bind(one.body.as_bytes().as_slice())
                .bind(i64::from(one.grant.key))
                .bind(one.grant.expires)
                .bind(json(&one.reply, "a reply")?)
                .bind(one.observed.clone())
                .bind(one.at)
                .bind(one.clock_skew_ms)
                .bind(&one.agent)
                .bind(earlier::column(&one.earlier))
                .bind(one.vouched.as_ref().map(|mark| mark.as_bytes().as_slice()));
        }
        for _ in some.len() * COLUMNS..rows * COLUMNS {
            query = query.bind(None::<i64>);
        }
        query.execute(&mut *sql).await?;
    }
    Ok(())
}

const COLUMNS: usize = 12;

/// It fails as it is: the transaction is undone as a whole, so the statement keeps nothing to undo itself by.
fn update(rows: usize) -> String {
    const ROW: &str = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
    let values = vec![ROW; rows].join(", ");
    format!(
        "UPDATE OR FAIL machines SET seq = v.column2, body_sha256 = v.column3, bearer_key = v.column4,
             bearer_expires = v.column5, reply = v.column6, observed = v.column7, seen_at = v.column8,
             clock_skew_ms = v.column9, agent = v.column10, earlier = v.column11, vouched = v.column12,
             turn_changed = 0, bearer_salt = NULL
         FROM (VALUES {values}) AS v WHERE name = v.column1"
    )
}

pub async fn replace_key(
    sql: &mut SqliteConnection,
    machine: &MachineName,
    key: &PublicKey,
    at: UnixMillis,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE machines SET key = $2, key_rotated_at = $3, key_rotation_asked_at = NULL WHERE name = $1",
    )
    .bind(machine.as_str())
    .bind(key.as_bytes().as_slice())
    .bind(at)
    .execute(sql)
    .await?;
    Ok(())
}

pub async fn alarm(
    sql: &mut SqliteConnection,
    machine: &MachineName,
    at: Option<UnixMillis>,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE machines SET clone_alarm_at = $2 WHERE name = $1")
        .bind(machine.as_str())
        .bind(at)
        .execute(sql)
        .await?;
    Ok(())
}
