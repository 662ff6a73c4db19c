//! The marks of the cache's files, and the targets of generations that are still needed.

use muster_protocol::clock::UnixMillis;
use sqlx::SqliteConnection;

use super::columns::{generation, json, machine};
use super::connection::{Sqlite, Transaction};
use crate::core::garbage::{Mark, Marks};
use crate::store::answers::NeededPage;
use crate::store::error::StoreError;

const NEEDED_AT_ONCE: i64 = 500;

#[derive(sqlx::FromRow)]
struct MarkRow {
    name: String,
    at: i64,
    removing: i64,
}

#[derive(sqlx::FromRow)]
struct TargetRow {
    machine: String,
    generation: i64,
    target: Vec<u8>,
}

impl Transaction {
    pub async fn cache_marks(&mut self, names: &[String]) -> Result<Marks, StoreError> {
        let rows: Vec<MarkRow> = sqlx::query_as(
            "SELECT m.name, m.at, m.removing FROM json_each($1) o JOIN cache_marks m ON m.name = o.value",
        )
        .bind(json(&names, "names")?)
        .fetch_all(self.connection())
        .await?;
        let mark = |MarkRow { name, at, removing }| (name, Mark { at, removing: removing != 0 });
        Ok(rows.into_iter().map(mark).collect())
    }
}

impl Sqlite {
    pub async fn cache_marked(&self, name: &str) -> Result<bool, StoreError> {
        let marked: Option<i64> = sqlx::query_scalar("SELECT at FROM cache_marks WHERE name = $1")
            .bind(name)
            .fetch_optional(self.read())
            .await?;
        Ok(marked.is_some())
    }

    pub async fn cache_marked_after(&self, after: &str, limit: u32) -> Result<Vec<String>, StoreError> {
        let names = sqlx::query_scalar("SELECT name FROM cache_marks WHERE name > $1 ORDER BY name LIMIT $2")
            .bind(after)
            .bind(i64::from(limit))
            .fetch_all(self.read())
            .await?;
        Ok(names)
    }

    pub async fn needed(
        &self,
        since: UnixMillis,
        after_machine: &str,
        after_generation: i64,
    ) -> Result<NeededPage, StoreError> {
        let rows: Vec<TargetRow> = sqlx::query_as(
            "SELECT g.machine, g.generation, g.target
             FROM generations g JOIN machines m ON m.name = g.machine
             WHERE (g.machine, g.generation) > ($2, $3)
               AND (g.published_at >= $1 OR g.generation = m.published)
             ORDER BY g.machine, g.generation LIMIT $4",
        )
        .bind(since)
        .bind(after_machine)
        .bind(after_generation)
        .bind(NEEDED_AT_ONCE)
        .fetch_all(self.read())
        .await?;
        let after = match rows.last() {
            Some(row) => Some((machine(&row.machine)?, generation(row.generation)?)),
            None => None,
        };
        Ok(NeededPage { targets: rows.into_iter().map(|row| row.target).collect(), after })
    }
}

pub async fn mark(
    sql: &mut SqliteConnection,
    names: &[String],
    mark: Option<Mark>,
) -> Result<(), StoreError> {
    for name in names {
        match mark {
            None => {
                sqlx::query("DELETE FROM cache_marks WHERE name = $1").bind(name).execute(&mut *sql).await?;
            }
            Some(Mark { at, removing }) => {
                sqlx::query(
                    "INSERT INTO cache_marks (name, at, removing) VALUES ($1, $2, $3)
                     ON CONFLICT (name) DO UPDATE SET at = excluded.at, removing = excluded.removing",
                )
                .bind(name)
                .bind(at)
                .bind(i64::from(removing))
                .execute(&mut *sql)
                .await?;
            }
        }
    }
    Ok(())
}
