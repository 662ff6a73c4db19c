//! Check-ins: a machine's last one, the ones before it, and its key.

use std::collections::HashMap;

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::MachineName;
use muster_protocol::keys::PublicKey;
use sqlx::PgConnection;

use super::columns::{json, query, query_as, query_scalar, sha256, signed, some_generation, text, unsigned};
use super::connection::Transaction;
use super::{machines, requests};
use crate::core::change::CheckedIn;
use crate::core::checkin::{DAY_MS, KEY_ROTATED, KEYS_A_DAY, Rotation, Stored};
use crate::core::rows::{Grant, Granted, LastCheckIn, Request};
use crate::store::earlier;
use crate::store::error::StoreError;
use crate::store::queue::Asking;

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
     FROM machines m WHERE name = ANY($1)";

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
        let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
        self.lock_machines(&names).await?;
        Ok(query_as(ROWS).bind(names).fetch_all(self.connection()).await?)
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

/// Check-ins, each of another machine, in one statement.
pub async fn keep(sql: &mut PgConnection, checked_in: &[&CheckedIn]) -> Result<(), StoreError> {
    if checked_in.is_empty() {
        return Ok(());
    }
    let replies: Result<Vec<String>, StoreError> =
        checked_in.iter().map(|one| json(&one.reply, "a reply")).collect();
    query(
        "UPDATE machines SET seq = v.seq, body_sha256 = v.body, bearer_key = v.key,
             bearer_expires = v.expires,
             reply = v.reply, observed = v.observed, seen_at = v.seen_at, clock_skew_ms = v.skew,
             agent = v.agent, earlier = v.earlier, vouched = v.vouched, turn_changed = 0, bearer_salt = NULL
         FROM UNNEST($1::text[], $2::bigint[], $3::bytea[], $4::bigint[], $5::bigint[], $6::text[],
                     $7::text[], $8::bigint[], $9::bigint[], $10::text[], $11::bytea[], $12::bytea[])
             AS v (name, seq, body, key, expires, reply, observed, seen_at, skew, agent, earlier,
                   vouched)
         WHERE machines.name = v.name",
    )
    .bind(column(checked_in, |one| one.machine.as_str()))
    .bind(column(checked_in, |one| signed(one.seq)))
    .bind(column(checked_in, |one| one.body.as_bytes().as_slice()))
    .bind(column(checked_in, |one| i64::from(one.grant.key)))
    .bind(column(checked_in, |one| one.grant.expires))
    .bind(replies?)
    .bind(column(checked_in, |one| text(&one.observed)))
    .bind(column(checked_in, |one| one.at))
    .bind(column(checked_in, |one| one.clock_skew_ms))
    .bind(column(checked_in, |one| text(&one.agent)))
    .bind(column(checked_in, |one| earlier::column(&one.earlier)))
    .bind(column(checked_in, |one| one.vouched.as_ref().map(|mark| mark.as_bytes().as_slice())))
    .execute(sql)
    .await?;
    Ok(())
}

fn column<'a, T>(rows: &[&'a CheckedIn], value: impl Fn(&'a CheckedIn) -> T) -> Vec<T> {
    rows.iter().map(|row| value(row)).collect()
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
