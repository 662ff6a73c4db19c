//! Locks that end with their transaction, so that they hold behind a pooler too.
//!
//! A transaction takes what it needs in this order: the rollouts, rows of machines by name, the drafts, the
//! marks of the cache, the log, the changes.

use sqlx::PgConnection;

use super::columns::{query, query_scalar};
use crate::store::error::StoreError;

/// `pg_advisory_xact_lock` counts them by two numbers; the first one is ours.
pub const OURS: i32 = 0x6d75_7374;

#[derive(Debug, Clone, Copy)]
pub enum Lock {
    Migration = 1,
    /// How many drafts wait.
    Drafts = 2,
    /// The newest entry of the log stays the newest until the commit.
    Log = 3,
    /// Numbers of changes are drawn in the order of commits.
    Changes = 4,
    /// One controller forgets what is old.
    Forgetting = 5,
    /// The chain of roots.
    Roots = 6,
    /// The marks of the cache's files.
    Cache = 7,
    /// Held, shared, by every controller that works on the database, as long as its session lives.
    Work = 8,
    /// What is decided of rollouts.
    Rollouts = 9,
}

pub async fn take(sql: &mut PgConnection, lock: Lock) -> Result<(), StoreError> {
    query("SELECT pg_advisory_xact_lock($1, $2)").bind(OURS).bind(lock as i32).execute(sql).await?;
    Ok(())
}

/// Whether it was free.
pub async fn try_take(sql: &mut PgConnection, lock: Lock) -> Result<bool, StoreError> {
    let taken = query_scalar("SELECT pg_try_advisory_xact_lock($1, $2)");
    Ok(taken.bind(OURS).bind(lock as i32).fetch_one(sql).await?)
}
