//! Operators' requests to machines.

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{MachineName, Sha256};
use sqlx::PgConnection;

use super::columns::{json, public_key, query, query_as, sha256};
use super::connection::{Transaction, locking};
use crate::core::requests::Stored;
use crate::core::rows::Request;
use crate::store::error::StoreError;

#[derive(sqlx::FromRow)]
struct Row {
    id: Vec<u8>,
    asks: String,
    document: String,
    ends: i64,
    handed_on: bool,
}

impl Row {
    fn request(self) -> Result<Request, StoreError> {
        Ok(Request {
            id: sha256(&self.id)?,
            asks: self.asks,
            document: serde_json::from_str(&self.document).ok(),
            ends: self.ends,
            handed_on: self.handed_on,
        })
    }
}

/// A machine's requests, in order of expiry.
pub async fn of(sql: &mut PgConnection, machine: &MachineName) -> Result<Vec<Request>, StoreError> {
    let rows: Vec<Row> =
        query_as("SELECT id, asks, document, ends, handed_on FROM requests WHERE machine = $1 ORDER BY ends")
            .bind(machine.as_str())
            .fetch_all(sql)
            .await?;
    rows.into_iter().map(Row::request).collect()
}

#[derive(sqlx::FromRow)]
struct MachineRow {
    key: Vec<u8>,
    key_rotation_asked_at: Option<i64>,
}

impl Transaction {
    pub async fn asking(&mut self, machine: &MachineName) -> Result<Option<Stored>, StoreError> {
        let row: Option<MachineRow> = query_as(locking!(
            self,
            "SELECT key, key_rotation_asked_at FROM machines
             WHERE name = $1 AND key IS NOT NULL AND revoked_at IS NULL",
            "FOR NO KEY UPDATE"
        ))
        .bind(machine.as_str())
        .fetch_optional(self.connection())
        .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(Stored {
            key: public_key(&row.key)?,
            key_rotation_asked: row.key_rotation_asked_at.is_some(),
            requests: of(self.connection(), machine).await?,
        }))
    }
}

pub async fn keep(
    sql: &mut PgConnection,
    machine: &MachineName,
    request: &Request,
) -> Result<(), StoreError> {
    let document = request.document.as_ref().ok_or(StoreError::Damaged("a request"))?;
    query(
        "INSERT INTO requests (machine, id, asks, document, ends, handed_on) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(machine.as_str())
    .bind(request.id.as_bytes().as_slice())
    .bind(&request.asks)
    .bind(json(document, "a request")?)
    .bind(request.ends)
    .bind(request.handed_on)
    .execute(sql)
    .await?;
    Ok(())
}

pub async fn end(sql: &mut PgConnection, machine: &MachineName, ids: &[Sha256]) -> Result<(), StoreError> {
    for id in ids {
        query("DELETE FROM requests WHERE machine = $1 AND id = $2")
            .bind(machine.as_str())
            .bind(id.as_bytes().as_slice())
            .execute(&mut *sql)
            .await?;
    }
    Ok(())
}

pub async fn handed_on(sql: &mut PgConnection, machine: &MachineName) -> Result<(), StoreError> {
    query("UPDATE requests SET handed_on = TRUE WHERE machine = $1")
        .bind(machine.as_str())
        .execute(sql)
        .await?;
    Ok(())
}

pub async fn rotation_asked(
    sql: &mut PgConnection,
    machine: &MachineName,
    at: UnixMillis,
) -> Result<(), StoreError> {
    query("UPDATE machines SET key_rotation_asked_at = $2 WHERE name = $1")
        .bind(machine.as_str())
        .bind(at)
        .execute(sql)
        .await?;
    Ok(())
}
