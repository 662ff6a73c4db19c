//! Whether controllers work on this database, and where it was copied to.
//!
//! Each controller holds a lock on the session that listens. The place where a database went is the comment
//! of a table: it needs no migration, and survives as long as the table.

use sqlx::{AssertSqlSafe, PgExecutor};

use super::columns::{query, query_scalar};
use super::connection::Postgres;
use super::locks::{Lock, OURS};
use crate::config::PostgresSettings;
use crate::store::error::StoreError;

/// What the comment begins with.
const MOVED: &str = "moved to ";

/// Until the session ends.
pub async fn work(session: impl PgExecutor<'_>) -> Result<(), sqlx::Error> {
    let lock = query("SELECT pg_advisory_lock_shared($1, $2)").bind(OURS).bind(Lock::Work as i32);
    lock.execute(session).await.map(drop)
}

impl Postgres {
    /// Whether a controller has used it.
    pub async fn exists(settings: &PostgresSettings) -> Result<bool, StoreError> {
        let postgres = Self::lazily(settings)?;
        let mut view = postgres.view().await?;
        let mut found: bool =
            query_scalar("SELECT to_regclass('fleet') IS NOT NULL").fetch_one(view.connection()).await?;
        if found {
            found = query_scalar("SELECT EXISTS (SELECT 1 FROM fleet)").fetch_one(view.connection()).await?;
        }
        drop(view);
        postgres.close().await;
        Ok(found)
    }

    /// Where the sessions of working controllers come from.
    pub async fn at_work(&self) -> Result<Vec<String>, StoreError> {
        let places = query_scalar(
            "SELECT coalesce(host(a.client_addr), 'this host') || ' (process ' || l.pid || ' of PostgreSQL)'
             FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
             WHERE l.locktype = 'advisory' AND l.granted AND l.classid::bigint = $1 AND l.objid::bigint = $2
               AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
             ORDER BY 1 LIMIT 20",
        );
        let places = places.bind(i64::from(OURS)).bind(Lock::Work as i64);
        Ok(places.fetch_all(self.view().await?.connection()).await?)
    }

    /// What its clock says, in Unix milliseconds.
    pub async fn clock(&self) -> Result<i64, StoreError> {
        let now = query_scalar("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint");
        Ok(now.fetch_one(self.view().await?.connection()).await?)
    }

    pub async fn moved_to(&self) -> Result<Option<String>, StoreError> {
        let comment: Option<String> = query_scalar("SELECT obj_description('fleet'::regclass, 'pg_class')")
            .fetch_one(self.view().await?.connection())
            .await?;
        Ok(comment.as_deref().and_then(|comment| comment.strip_prefix(MOVED)).map(str::to_owned))
    }

    pub async fn set_moved_to(&self, to: Option<&str>) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        // A comment takes no parameters, so the server quotes it.
        let statement: String = query_scalar("SELECT format('COMMENT ON TABLE fleet IS %L', $1::text)")
            .bind(to.map(|to| format!("{MOVED}{to}")))
            .fetch_one(tx.connection())
            .await?;
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(tx.connection()).await?;
        tx.commit().await
    }
}
