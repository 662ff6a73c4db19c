//! Attacks that machines refused, as they reported them.

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::MachineName;
use muster_protocol::operator::AttackView;
use muster_protocol::report::Attack;
use sqlx::PgConnection;

use super::columns::{plain, query, query_as, some_generation, text};
use super::connection::Postgres;
use crate::core::rows::StoredAttack;
use crate::store::error::StoreError;

#[derive(sqlx::FromRow)]
struct Row {
    attack: String,
    detail: String,
    generation: Option<i64>,
    at: i64,
    received_at: i64,
    ended_at: Option<i64>,
}

impl Row {
    fn view(self) -> AttackView {
        AttackView {
            attack: serde_json::from_value(self.attack.into()).unwrap_or(Attack::Unknown),
            detail: plain(self.detail),
            generation: some_generation(self.generation),
            at: self.at,
            received_at: self.received_at,
            ended_at: self.ended_at,
        }
    }
}

impl Postgres {
    pub async fn attacks(&self, machine: &MachineName, limit: u32) -> Result<Vec<AttackView>, StoreError> {
        let rows: Vec<Row> = query_as(
            "SELECT attack, detail, generation, at, received_at, ended_at FROM attacks WHERE machine = $1
             ORDER BY id DESC LIMIT $2",
        )
        .bind(machine.as_str())
        .bind(i64::from(limit))
        .fetch_all(self.view().await?.connection())
        .await?;
        Ok(rows.into_iter().map(Row::view).collect())
    }
}

pub async fn open(sql: &mut PgConnection, attack: &StoredAttack) -> Result<(), StoreError> {
    let kind = serde_json::to_value(attack.attack).map_err(|_| StoreError::Damaged("an attack"))?;
    query(
        "INSERT INTO attacks (machine, attack, detail, generation, at, received_at, ended_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(attack.machine.as_str())
    .bind(kind.as_str().unwrap_or("unknown"))
    .bind(text(&attack.detail))
    .bind(attack.generation.map(|generation| generation.packed()))
    .bind(attack.at)
    .bind(attack.received_at)
    .bind(attack.ended_at)
    .execute(sql)
    .await?;
    Ok(())
}

pub async fn trim(sql: &mut PgConnection, machine: &MachineName, keep: u32) -> Result<(), StoreError> {
    query(
        "DELETE FROM attacks WHERE machine = $1 AND id NOT IN
             (SELECT id FROM attacks WHERE machine = $1 ORDER BY id DESC LIMIT $2)",
    )
    .bind(machine.as_str())
    .bind(i64::from(keep))
    .execute(sql)
    .await?;
    Ok(())
}

pub async fn end(sql: &mut PgConnection, machine: &MachineName, at: UnixMillis) -> Result<(), StoreError> {
    query("UPDATE attacks SET ended_at = $2 WHERE machine = $1 AND ended_at IS NULL")
        .bind(machine.as_str())
        .bind(at)
        .execute(sql)
        .await?;
    Ok(())
}
