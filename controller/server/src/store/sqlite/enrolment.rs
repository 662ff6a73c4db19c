//! Tokens, and the enrolment of machines with them.

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{MachineName, Sha256};
use muster_protocol::keys::PublicKey;
use sqlx::SqliteConnection;

use super::columns::{machine, public_key, sha256};
use super::connection::Transaction;
use super::machines;
use crate::core::change::Enrolled;
use crate::core::enrolment::Stored;
use crate::core::rows::{Token, TokenUse};
use crate::store::error::StoreError;

#[derive(sqlx::FromRow)]
struct Row {
    machine: String,
    class: String,
    check_key: Vec<u8>,
    expires: i64,
    made_at: i64,
    used_at: Option<i64>,
    used_by: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
    revoked_at: Option<i64>,
}

impl Transaction {
    pub async fn enrolment(&mut self, token: &Sha256, key: &PublicKey) -> Result<Option<Stored>, StoreError> {
        let row: Option<Row> = sqlx::query_as(
            "SELECT t.machine, t.class, t.check_key, t.expires, t.made_at, t.used_at, t.used_by,
                    m.key, m.revoked_at
             FROM tokens t JOIN machines m ON m.name = t.machine WHERE t.id = $1",
        )
        .bind(token.as_bytes().as_slice())
        .fetch_optional(self.connection())
        .await?;
        let Some(row) = row else { return Ok(None) };
        let name = machine(&row.machine)?;
        let used = match (row.used_at, row.used_by) {
            (None, _) => None,
            (Some(at), Some(by)) => Some(TokenUse { at, by: public_key(&by)? }),
            (Some(_), None) => return Err(StoreError::Damaged("a token")),
        };
        let taken = had(self.connection(), &name, key).await?;
        let token = Token {
            id: *token,
            machine: name,
            class: row.class.parse().map_err(|_| StoreError::Damaged("a class"))?,
            check_key: sha256(&row.check_key)?,
            expires: row.expires,
            made_at: row.made_at,
            used,
        };
        let key = row.key.as_deref().map(public_key).transpose()?;
        Ok(Some(Stored { token, key, revoked: row.revoked_at.is_some(), taken }))
    }

    pub async fn key_taken(&mut self, machine: &MachineName, key: &PublicKey) -> Result<bool, StoreError> {
        machines::another_has(self.connection(), machine, key).await
    }

    pub async fn token_taken(&mut self, token: &Sha256) -> Result<bool, StoreError> {
        let taken = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM tokens WHERE id = $1)")
            .bind(token.as_bytes().as_slice())
            .fetch_one(self.connection())
            .await?;
        Ok(taken)
    }
}

/// Whether any machine has this key, or this one enrolled with it before: what it signed then would count
/// once more, as a new enrolment counts its check-ins from the beginning.
async fn had(sql: &mut SqliteConnection, machine: &MachineName, key: &PublicKey) -> Result<bool, StoreError> {
    let had = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM machines WHERE key = $1)
             OR EXISTS (SELECT 1 FROM tokens WHERE machine = $2 AND used_by = $1)",
    )
    .bind(key.as_bytes().as_slice())
    .bind(machine.as_str())
    .fetch_one(sql)
    .await?;
    Ok(had)
}

pub async fn make_token(sql: &mut SqliteConnection, token: &Token) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO tokens (id, machine, class, check_key, expires, made_at)
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(token.id.as_bytes().as_slice())
    .bind(token.machine.as_str())
    .bind(token.class.as_str())
    .bind(token.check_key.as_bytes().as_slice())
    .bind(token.expires)
    .bind(token.made_at)
    .execute(sql)
    .await?;
    Ok(())
}

pub async fn use_token(
    sql: &mut SqliteConnection,
    token: &Sha256,
    by: &PublicKey,
    at: UnixMillis,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE tokens SET used_at = $2, used_by = $3 WHERE id = $1")
        .bind(token.as_bytes().as_slice())
        .bind(at)
        .bind(by.to_bytes())
        .execute(sql)
        .await?;
    Ok(())
}

pub async fn end_tokens(sql: &mut SqliteConnection, machine: &MachineName) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM tokens WHERE machine = $1 AND used_at IS NULL")
        .bind(machine.as_str())
        .execute(sql)
        .await?;
    Ok(())
}

pub async fn enrol(sql: &mut SqliteConnection, enrolled: &Enrolled) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE machines SET class = $2, system = $3, key = $4, age = $5, agent = $6, enrolled_at = $7,
             seen_at = $7, revoked_at = NULL, enrolment = enrolment + 1, seq = 0, body_sha256 = NULL,
             bearer_salt = NULL, bearer_key = NULL, bearer_expires = NULL, reply = NULL, observed = NULL,
             clock_skew_ms = NULL,
             clone_alarm_at = NULL, reports_through = 0, report_stream = NULL, earlier = NULL,
             outcome = NULL, key_rotated_at = NULL, key_rotation_asked_at = NULL
         WHERE name = $1",
    )
    .bind(enrolled.machine.as_str())
    .bind(enrolled.class.as_str())
    .bind(enrolled.system.as_str())
    .bind(enrolled.key.as_bytes().as_slice())
    .bind(&enrolled.age)
    .bind(&enrolled.agent)
    .bind(enrolled.at)
    .execute(sql)
    .await?;
    Ok(())
}
