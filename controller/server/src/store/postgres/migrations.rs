//! Brings a database to the newest schema, forward only, inside the caller's transaction.

use sqlx::PgConnection;
use sqlx::migrate::Migrator;

use super::columns::{query, query_as, query_scalar};
use crate::store::error::StoreError;

static ALL: Migrator = sqlx::migrate!("migrations/postgres");

#[derive(sqlx::FromRow)]
struct Applied {
    version: i64,
    checksum: Vec<u8>,
}

/// What `sqlx` does by its own `run` needs a lock of the session and named statements: neither works behind a
/// pooler. The caller holds [`super::locks::Lock::Migration`].
pub async fn run(sql: &mut PgConnection) -> Result<(), StoreError> {
    run_to(sql, i64::MAX).await
}

async fn run_to(sql: &mut PgConnection, newest: i64) -> Result<(), StoreError> {
    // Without IF NOT EXISTS, which the server answers with a notice each time.
    if query_scalar("SELECT to_regclass('schema_migrations') IS NULL").fetch_one(&mut *sql).await? {
        query("CREATE TABLE schema_migrations (version BIGINT PRIMARY KEY, checksum BYTEA NOT NULL)")
            .execute(&mut *sql)
            .await?;
    }
    let applied: Vec<Applied> = query_as("SELECT version, checksum FROM schema_migrations ORDER BY version")
        .fetch_all(&mut *sql)
        .await?;
    if let Some(unknown) = applied.iter().find(|applied| !ALL.version_exists(applied.version)) {
        let version = unknown.version;
        return Err(StoreError::Open(format!(
            "a newer muster has migrated it to schema {version}: start that version"
        )));
    }
    for migration in ALL.iter().filter(|migration| migration.version <= newest) {
        match applied.iter().find(|applied| applied.version == migration.version) {
            Some(found) if found.checksum == *migration.checksum => {}
            Some(found) => {
                let version = found.version;
                return Err(StoreError::Open(format!(
                    "its schema {version} is not this muster's: start the version that made it"
                )));
            }
            None => {
                sqlx::raw_sql(migration.sql.clone()).execute(&mut *sql).await?;
                query("INSERT INTO schema_migrations (version, checksum) VALUES ($1, $2)")
                    .bind(migration.version)
                    .bind(migration.checksum.to_vec())
                    .execute(&mut *sql)
                    .await?;
            }
        }
    }
    Ok(())
}

/// Refuses a database of another schema.
pub async fn require_all(sql: &mut PgConnection) -> Result<(), StoreError> {
    let schema: i64 =
        query_scalar("SELECT coalesce(max(version), 0) FROM schema_migrations").fetch_one(sql).await?;
    let ours = ALL.iter().map(|migration| migration.version).max().unwrap_or(0);
    if schema == ours {
        return Ok(());
    }
    let problem =
        format!("it has schema {schema}, and this muster's is {ours}: use the version that runs there");
    Err(StoreError::Database(problem))
}
