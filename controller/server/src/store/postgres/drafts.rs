//! Drafts waiting for signatures.

use muster_protocol::draft::{Draft, Drafted};
use muster_protocol::ids::Sha256;
use sqlx::PgConnection;

use super::columns::{json, query, query_as, query_scalar, sha256, unsigned};
use super::connection::{Postgres, Transaction};
use super::locks::{self, Lock};
use crate::core::drafts::Stored;
use crate::core::rows::StoredDraft;
use crate::store::error::StoreError;
use crate::threads;

#[derive(sqlx::FromRow)]
struct Row {
    id: Vec<u8>,
    document: String,
}

impl Transaction {
    pub async fn draft(&mut self, id: &Sha256) -> Result<Stored, StoreError> {
        if self.writes {
            locks::take(self.connection(), Lock::Drafts).await?;
        }
        let held: Option<String> = query_scalar("SELECT document FROM drafts WHERE id = $1")
            .bind(id.as_bytes().as_slice())
            .fetch_optional(self.connection())
            .await?;
        let waiting: i64 = query_scalar("SELECT count(*) FROM drafts").fetch_one(self.connection()).await?;
        Ok(Stored { held, waiting: unsigned(waiting) })
    }
}

impl Postgres {
    pub async fn drafts(&self, now_s: i64) -> Result<Vec<StoredDraft>, StoreError> {
        let rows: Vec<Row> = query_as("SELECT id, document FROM drafts WHERE ends > $1 ORDER BY made_at, id")
            .bind(now_s)
            .fetch_all(self.view().await?.connection())
            .await?;
        rows.into_iter()
            .map(|row| {
                let text = row.document.as_bytes();
                let draft = threads::on(text.len(), || Draft::parse(text));
                let draft = draft.map_err(|_| StoreError::Damaged("a draft"))?;
                Ok(StoredDraft { id: sha256(&row.id)?, draft })
            })
            .collect()
    }

    pub async fn drafts_beginning(
        &self,
        prefix: &str,
        now_s: i64,
    ) -> Result<Vec<(Sha256, String)>, StoreError> {
        let rows: Vec<Row> = query_as(
            "SELECT id, document FROM drafts WHERE ends > $1 AND encode(id, 'hex') LIKE $2 || '%' LIMIT 2",
        )
        .bind(now_s)
        .bind(prefix)
        .fetch_all(self.view().await?.connection())
        .await?;
        rows.into_iter().map(|row| Ok((sha256(&row.id)?, row.document))).collect()
    }
}

pub async fn keep(sql: &mut PgConnection, kept: &StoredDraft) -> Result<(), StoreError> {
    let kind = match kept.draft.what {
        Drafted::Generations { .. } => "generations",
        Drafted::Root { .. } => "root",
    };
    query(
        "INSERT INTO drafts (id, kind, made_at, ends, document) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (id) DO UPDATE SET document = excluded.document",
    )
    .bind(kept.id.as_bytes().as_slice())
    .bind(kind)
    .bind(kept.draft.made_at)
    .bind(kept.draft.ends)
    .bind(json(&kept.draft, "a draft")?)
    .execute(sql)
    .await?;
    Ok(())
}

pub async fn end(sql: &mut PgConnection, id: &Sha256) -> Result<(), StoreError> {
    query("DELETE FROM drafts WHERE id = $1").bind(id.as_bytes().as_slice()).execute(sql).await?;
    Ok(())
}
