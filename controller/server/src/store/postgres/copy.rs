//! Everything of this database, read or written as values. The roots are not among it: they are in a folder
//! elsewhere.

use sqlx::{AssertSqlSafe, Column as _, PgConnection, Row as _, TypeInfo as _, ValueRef as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::columns::{plain, query, query_as, text, unsigned};
use super::connection::Postgres;
use crate::store::copy::{Batch, CopyError, Table, Value, compare, same_shape, send};
use crate::store::error::StoreError;

#[derive(sqlx::FromRow)]
struct ColumnRow {
    table_name: String,
    column_name: String,
    data_type: String,
}

/// Every column of every table, with its type.
async fn catalogue(sql: &mut PgConnection) -> Result<Vec<ColumnRow>, StoreError> {
    let columns = query_as(
        "SELECT table_name::text, column_name::text, data_type::text FROM information_schema.columns
         WHERE table_schema = current_schema() AND table_name NOT IN ('schema_migrations', 'roots', 'changes')
         ORDER BY table_name, ordinal_position",
    );
    Ok(columns.fetch_all(sql).await?)
}

impl Postgres {
    pub async fn tables(&self) -> Result<Vec<Table>, StoreError> {
        let mut tables: Vec<Table> = Vec::new();
        for row in catalogue(self.view().await?.connection()).await? {
            match tables.last_mut() {
                Some(last) if last.name == row.table_name => last.columns.push(row.column_name),
                _ => tables.push(Table { name: row.table_name, columns: vec![row.column_name] }),
            }
        }
        Ok(tables)
    }

    /// Sends every row, and returns how many each table has. Nobody changes anything meanwhile.
    pub async fn read_all(&self, tables: &[Table], to: mpsc::Sender<Batch>) -> Result<Vec<u64>, CopyError> {
        let mut tx = self.begin_long().await?;
        let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
        let lock = format!("LOCK TABLE {} IN EXCLUSIVE MODE", names.join(", "));
        sqlx::raw_sql(AssertSqlSafe(lock)).execute(tx.connection()).await?;
        rows_of(tx.connection(), tables, to).await
    }

    /// The same as of one moment, while others go on.
    pub async fn read_view(&self, tables: &[Table], to: mpsc::Sender<Batch>) -> Result<Vec<u64>, CopyError> {
        let mut view = self.view_long().await?;
        rows_of(view.connection(), tables, to).await
    }

    /// Writes every row, all or nothing.
    pub async fn write_all(
        &self,
        tables: &[Table],
        mut from: mpsc::Receiver<Batch>,
        reading: JoinHandle<Result<Vec<u64>, CopyError>>,
    ) -> Result<Vec<u64>, CopyError> {
        same_shape(tables, self.tables().await?)?;
        let mut tx = self.begin_long().await?;
        let types = catalogue(tx.connection()).await?;
        for table in tables.iter().filter(|table| table.name != "fleet") {
            let count = count(tx.connection(), table).await?;
            if count > 0 {
                return Err(CopyError::NotEmpty(table.name.clone(), count));
            }
        }
        query("DELETE FROM fleet").execute(tx.connection()).await?;
        while let Some(Batch { table, rows }) = from.recv().await {
            if let Some(table) = tables.get(table).filter(|_| !rows.is_empty()) {
                insert(tx.connection(), table, &types, &rows).await?;
            }
        }
        // What is numbered here goes on where it was.
        query(
            "SELECT setval(pg_get_serial_sequence('attacks', 'id'), max(id)) FROM attacks HAVING max(id) > 0",
        )
        .execute(tx.connection())
        .await?;
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

async fn rows_of(
    sql: &mut PgConnection,
    tables: &[Table],
    to: mpsc::Sender<Batch>,
) -> Result<Vec<u64>, CopyError> {
    let mut counts = Vec::new();
    for (table, shape) in tables.iter().enumerate() {
        let found = sqlx::query(AssertSqlSafe(shape.select())).persistent(false).fetch(&mut *sql);
        counts.push(send(table, found, values, &to).await?);
    }
    Ok(counts)
}

/// All rows in one statement, column by column.
async fn insert(
    sql: &mut PgConnection,
    table: &Table,
    types: &[ColumnRow],
    rows: &[Vec<Value>],
) -> Result<(), CopyError> {
    let kinds: Vec<&str> = table
        .columns
        .iter()
        .filter_map(|column| {
            types.iter().find(|row| row.table_name == table.name && row.column_name == *column)
        })
        .map(|row| row.data_type.as_str())
        .collect();
    let places: Vec<String> = kinds.iter().zip(1..).map(|(kind, n)| format!("${n}::{kind}[]")).collect();
    let statement = format!(
        "INSERT INTO {} ({}) SELECT * FROM UNNEST({})",
        table.name,
        table.listed(),
        places.join(", ")
    );
    let mut query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
    for (at, kind) in kinds.iter().enumerate() {
        let column = rows.iter().map(|row| row.get(at).unwrap_or(&Value::Null));
        let shape = || CopyError::Shape(format!("{}: a value that is no {kind}", table.name));
        query = match *kind {
            "bigint" => query.bind(
                every(column, |value| match value {
                    Value::Integer(number) => Some(*number),
                    _ => None,
                })
                .ok_or_else(shape)?,
            ),
            "boolean" => query.bind(
                every(column, |value| match value {
                    Value::Integer(number) => Some(*number != 0),
                    _ => None,
                })
                .ok_or_else(shape)?,
            ),
            "bytea" => query.bind(
                every(column, |value| match value {
                    Value::Bytes(bytes) => Some(bytes.clone()),
                    _ => None,
                })
                .ok_or_else(shape)?,
            ),
            _ => query.bind(
                every(column, |value| match value {
                    Value::Text(told) => Some(text(told).into_owned()),
                    _ => None,
                })
                .ok_or_else(shape)?,
            ),
        };
    }
    query.execute(sql).await?;
    Ok(())
}

/// `None` if one of them is something else.
fn every<'a, T>(
    values: impl Iterator<Item = &'a Value>,
    read: impl Fn(&Value) -> Option<T>,
) -> Option<Vec<Option<T>>> {
    values
        .map(|value| match value {
            Value::Null => Some(None),
            value => read(value).map(Some),
        })
        .collect()
}

async fn count(sql: &mut PgConnection, table: &Table) -> Result<u64, StoreError> {
    let query = format!("SELECT count(*) FROM {}", table.name);
    let count: i64 = sqlx::query_scalar(AssertSqlSafe(query)).persistent(false).fetch_one(sql).await?;
    Ok(unsigned(count))
}

fn values(row: &sqlx::postgres::PgRow) -> Result<Vec<Value>, StoreError> {
    row.columns()
        .iter()
        .map(|column| {
            let at = column.ordinal();
            if row.try_get_raw(at)?.is_null() {
                return Ok(Value::Null);
            }
            Ok(match column.type_info().name() {
                "INT8" => Value::Integer(row.try_get(at)?),
                "BOOL" => Value::Integer(row.try_get::<bool, _>(at)?.into()),
                "TEXT" => Value::Text(plain(row.try_get(at)?)),
                "BYTEA" => Value::Bytes(row.try_get(at)?),
                _ => return Err(StoreError::Damaged("a value")),
            })
        })
        .collect()
}
