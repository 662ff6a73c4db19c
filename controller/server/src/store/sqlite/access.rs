//! Bearers and the nonces of operators' requests.

use muster_protocol::ids::{MachineName, Sha256};
use muster_protocol::keys::PublicKey;
use sqlx::SqliteConnection;

use super::columns::{machine, public_key, signed};
use super::connection::Sqlite;
use crate::core::change::Bearer;
use crate::core::rows::Principal;
use crate::store::error::StoreError;

#[derive(sqlx::FromRow)]
struct Row {
    machine: Option<String>,
    operator: Option<Vec<u8>>,
}

impl Sqlite {
    pub async fn principal(&self, bearer: &Sha256, now_s: i64) -> Result<Option<Principal>, StoreError> {
        let row: Option<Row> =
            sqlx::query_as("SELECT machine, operator FROM bearers WHERE hash = $1 AND expires > $2")
                .bind(bearer.as_bytes().as_slice())
                .bind(now_s)
                .fetch_optional(self.read())
                .await?;
        match row {
            Some(Row { machine: Some(name), .. }) => Ok(Some(Principal::Machine(machine(&name)?))),
            Some(Row { operator: Some(key), .. }) => Ok(Some(Principal::Operator(public_key(&key)?))),
            _ => Ok(None),
        }
    }

    pub async fn use_nonce(
        &self,
        key: &PublicKey,
        nonce: &[u8; 16],
        expires: i64,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let done = sqlx::query(
            "INSERT INTO nonces (key, nonce, expires) VALUES ($1, $2, $3)
             ON CONFLICT (key, nonce) DO NOTHING",
        )
        .bind(key.to_bytes())
        .bind(nonce.as_slice())
        .bind(expires)
        .execute(tx.connection())
        .await?;
        tx.commit().await?;
        Ok(done.rows_affected() == 1)
    }
}

/// Raises the machine's counter, and removes what is left of version 0.1.
pub async fn end(sql: &mut SqliteConnection, machine: &MachineName) -> Result<(), StoreError> {
    sqlx::query("UPDATE machines SET bearer_counter = bearer_counter + 1 WHERE name = $1")
        .bind(machine.as_str())
        .execute(&mut *sql)
        .await?;
    sqlx::query("DELETE FROM bearers WHERE machine = $1").bind(machine.as_str()).execute(sql).await?;
    Ok(())
}

/// Raises the counter of one machine, or of all.
pub async fn raise(
    sql: &mut SqliteConnection,
    machine: Option<&MachineName>,
    to: u64,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE machines SET bearer_counter = max(bearer_counter + 1, $1)
         WHERE $2 IS NULL OR name = $2",
    )
    .bind(signed(to))
    .bind(machine.map(MachineName::as_str))
    .execute(sql)
    .await?;
    Ok(())
}

/// Removes every stored bearer and every unused token.
pub async fn end_all(sql: &mut SqliteConnection) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM bearers").execute(&mut *sql).await?;
    sqlx::query("DELETE FROM tokens WHERE used_at IS NULL").execute(sql).await?;
    Ok(())
}

/// An operator's.
pub async fn grant(sql: &mut SqliteConnection, bearer: &Bearer) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO bearers (hash, operator, expires) VALUES ($1, $2, $3)")
        .bind(bearer.hash.as_bytes().as_slice())
        .bind(bearer.of.to_bytes())
        .bind(bearer.expires)
        .execute(sql)
        .await?;
    Ok(())
}
