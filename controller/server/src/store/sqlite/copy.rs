//! Everything of this database, read or written as values.

use std::path::Path;

use muster_protocol::audit::Checkpoint;
use muster_protocol::ids::Sha256;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Column as _, Connection as _, Row as _, TypeInfo as _, ValueRef as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::audit::newest;
use super::columns::sha256;
use super::connection::{MIGRATIONS, Sqlite, WAIT};
use crate::store::copy::{Batch, CopyError, Table, Value, compare, same_shape, send};
use crate::store::error::StoreError;

impl Sqlite {
    pub async fn tables(&self) -> Result<Vec<Table>, StoreError> {
        let names: Vec<String> = sqlx::query_scalar(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'
             AND name NOT LIKE '_sqlx_%'",
        )
        .fetch_all(self.read())
        .await?;
        let mut tables = Vec::new();
        for name in names {
            let columns = sqlx::query_scalar("SELECT name FROM pragma_table_info($1)")
                .bind(&name)
                .fetch_all(self.read())
                .await?;
            tables.push(Table { name, columns });
        }
        Ok(tables)
    }

    /// Copies the database in `file` into `to`, which is empty, as it is at one moment, while a
    /// controller may use it. Migrates nothing. Returns its fleet and the newest entry of its log.
    pub async fn copy_file(file: &Path, to: &Path) -> Result<(Sha256, Checkpoint), StoreError> {
        let open = |error: &dyn std::fmt::Display| StoreError::Open(format!("{}: {error}", file.display()));
        let options = SqliteConnectOptions::new().filename(file).read_only(true).busy_timeout(WAIT);
        let mut source = SqliteConnection::connect_with(&options).await.map_err(|error| open(&error))?;
        let schema: i64 = sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM _sqlx_migrations")
            .fetch_one(&mut source)
            .await?;
        let ours = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
        if schema != ours {
            return Err(open(&format_args!(
                "it has schema {schema}, and this muster's is {ours}: use the version that runs there"
            )));
        }
        let path = to.to_str().ok_or_else(|| StoreError::Open(format!("{}: no UTF-8", to.display())))?;
        sqlx::query("VACUUM INTO $1").bind(path).execute(&mut source).await?;
        source.close().await?;
        let mut copy = SqliteConnection::connect_with(&options.filename(to)).await?;
        let fleet: Vec<u8> = sqlx::query_scalar("SELECT id FROM fleet").fetch_one(&mut copy).await?;
        let newest = newest(&mut copy).await?;
        copy.close().await?;
        Ok((sha256(&fleet)?, newest))
    }

    /// Refuses a file that SQLite finds damaged.
    pub async fn require_sound(&self) -> Result<(), StoreError> {
        let found: String = sqlx::query_scalar("PRAGMA integrity_check(1)").fetch_one(self.read()).await?;
        if found == "ok" { Ok(()) } else { Err(StoreError::Database(found)) }
    }

    /// Sends every row, and returns how many each table has.
    pub async fn read_all(&self, tables: &[Table], to: mpsc::Sender<Batch>) -> Result<Vec<u64>, CopyError> {
        let mut view = self.view().await?;
        let mut counts = Vec::new();
        for (table, shape) in tables.iter().enumerate() {
            let found = sqlx::query(AssertSqlSafe(shape.select())).fetch(view.connection());
            counts.push(send(table, found, values, &to).await?);
        }
        Ok(counts)
    }

    /// Writes every row, all or nothing.
    pub async fn write_all(
        &self,
        tables: &[Table],
        mut from: mpsc::Receiver<Batch>,
        reading: JoinHandle<Result<Vec<u64>, CopyError>>,
    ) -> Result<Vec<u64>, CopyError> {
        same_shape(tables, self.tables().await?)?;
        let mut tx = self.begin().await?;
        for table in tables.iter().filter(|table| table.name != "fleet") {
            let count = count(tx.connection(), table).await?;
            if count > 0 {
                return Err(CopyError::NotEmpty(table.name.clone(), count));
            }
        }
        sqlx::query("DELETE FROM fleet").execute(tx.connection()).await?;
        while let Some(Batch { table, rows }) = from.recv().await {
            let Some(table) = tables.get(table) else { continue };
            let places: Vec<String> = (1..=table.columns.len()).map(|n| format!("${n}")).collect();
            let insert =
                format!("INSERT INTO {} ({}) VALUES ({})", table.name, table.listed(), places.join(", "));
            for row in rows {
                let mut query = sqlx::query(AssertSqlSafe(insert.clone()));
                for value in row {
                    query = match value {
                        Value::Null => query.bind(None::<i64>),
                        Value::Integer(number) => query.bind(number),
                        Value::Text(text) => query.bind(text),
                        Value::Bytes(bytes) => query.bind(bytes),
                    };
                }
                query.execute(tx.connection()).await?;
            }
        }
        let read = reading.await.map_err(|_| CopyError::Ended)??;
        let mut counts = Vec::new();
        for table in tables {
            counts.push(count(tx.connection(), table).await?);
        }
        compare(tables, &read, &counts)?;
        tx.commit().await?;
        Ok(counts)
    }
}

async fn count(sql: &mut sqlx::SqliteConnection, table: &Table) -> Result<u64, StoreError> {
    let query = format!("SELECT count(*) FROM {}", table.name);
    let count: i64 = sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(sql).await?;
    Ok(super::columns::unsigned(count))
}

fn values(row: &sqlx::sqlite::SqliteRow) -> Result<Vec<Value>, StoreError> {
    row.columns()
        .iter()
        .map(|column| {
            let at = column.ordinal();
            let raw = row.try_get_raw(at)?;
            if raw.is_null() {
                return Ok(Value::Null);
            }
            Ok(match raw.type_info().name() {
                "INTEGER" | "BOOLEAN" => Value::Integer(row.try_get_unchecked(at)?),
                "TEXT" => Value::Text(row.try_get_unchecked(at)?),
                "BLOB" => Value::Bytes(row.try_get_unchecked(at)?),
                _ => return Err(StoreError::Damaged("a value")),
            })
        })
        .collect()
}
