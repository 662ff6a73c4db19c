//! Everything of one database into another, empty one, of the same kind or not. Nobody else may use either
//! meanwhile; `backup` copies a database in use.

use futures_util::{Stream, TryStreamExt as _};
use muster_protocol::audit::{AuditError, Checkpoint, MAX_PAGE, origin, verify};
use muster_protocol::ids::Sha256;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{Database, Store, StoreError};

/// Rows that are handed on at once.
const BATCH: usize = 200;
/// Batches that wait.
pub(super) const WAITING: usize = 2;

#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("its log does not hold together, so it is not copied: {0}")]
    Log(AuditError),
    #[error("the target is not empty: {0} has {1} rows; name a new database or folder")]
    NotEmpty(String, u64),
    #[error("{0} of {1} rows of {2} arrived, so nothing was kept: repeat the copy")]
    Lost(u64, u64, String),
    #[error(
        "the copy's log does not hold together: remove the copy and repeat; the original is as it was: {0}"
    )]
    CopiedLog(AuditError),
    #[error("the databases have different tables or columns ({0}): repeat it with the newest muster")]
    Shape(String),
    #[error("the copy ended early")]
    Ended,
}

impl From<sqlx::Error> for CopyError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Integer(i64),
    Text(String),
    Bytes(Vec<u8>),
}

/// A table and its columns, both as in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub name: String,
    pub columns: Vec<String>,
}

impl Table {
    /// Each name in quotes. They come from a database's own catalogue, which only migrations change.
    pub fn listed(&self) -> String {
        self.columns.iter().map(|column| format!("\"{column}\"")).collect::<Vec<_>>().join(", ")
    }
    /// Every row, as both databases are asked for it.
    pub fn select(&self) -> String {
        // A log begins after its cut, whether or not what is before it was removed, and is written in its
        // order.
        let from = if self.name == "audit" { " WHERE id > (SELECT audit_cut FROM fleet)" } else { "" };
        let order = if self.columns.iter().any(|column| column == "id") { " ORDER BY id" } else { "" };
        format!("SELECT {} FROM {}{from}{order}", self.listed(), self.name)
    }
}

pub(super) struct Batch {
    pub table: usize,
    pub rows: Vec<Vec<Value>>,
}

/// Sends the rows of one table, and returns how many they are.
pub(super) async fn send<R>(
    table: usize,
    mut found: impl Stream<Item = Result<R, sqlx::Error>> + Unpin,
    values: impl Fn(&R) -> Result<Vec<Value>, StoreError>,
    to: &mpsc::Sender<Batch>,
) -> Result<u64, CopyError> {
    let (mut rows, mut count) = (Vec::new(), 0);
    while let Some(row) = found.try_next().await? {
        rows.push(values(&row)?);
        count += 1;
        if rows.len() == BATCH {
            let batch = Batch { table, rows: std::mem::take(&mut rows) };
            to.send(batch).await.map_err(|_| CopyError::Ended)?;
        }
    }
    to.send(Batch { table, rows }).await.map_err(|_| CopyError::Ended)?;
    Ok(count)
}

/// The tables that others refer to come first.
pub(super) fn in_order(mut tables: Vec<Table>) -> Vec<Table> {
    let first = ["fleet", "machines", "plans"];
    let place = |table: &Table| first.iter().position(|name| *name == table.name).unwrap_or(first.len());
    tables.sort_by_key(|table| (place(table), table.name.clone()));
    tables
}

impl Store {
    /// Copies everything into `target`, which has the fleet's ID and nothing else. Returns how many rows each
    /// table has.
    pub async fn copy_to(&self, target: &Self, fleet: &Sha256) -> Result<Vec<(String, u64)>, CopyError> {
        // What was cut off is removed first: a log begins after its cut.
        self.forget_cut_entries().await?;
        self.verify_log(fleet).await.map_err(|failed| failed.map_or_else(CopyError::from, CopyError::Log))?;
        let tables = in_order(match &self.database {
            Database::Sqlite(database) => database.tables().await?,
            Database::Postgres(database) => database.tables().await?,
        });
        let (sender, receiver) = mpsc::channel(WAITING);
        let (source, read) = (self.database.clone(), tables.clone());
        let reading = tokio::spawn(async move {
            match source {
                Database::Sqlite(database) => database.read_all(&read, sender).await,
                Database::Postgres(database) => database.read_all(&read, sender).await,
            }
        });
        let written = target.write_all(&tables, receiver, reading).await?;
        let verified = target.verify_log(fleet).await;
        verified.map_err(|failed| failed.map_or_else(CopyError::from, CopyError::CopiedLog))?;
        Ok(tables.into_iter().map(|table| table.name).zip(written).collect())
    }

    /// Refuses a copy that is damaged, or whose log does not hold together. Returns the log's newest entry.
    pub async fn require_sound(&self, fleet: &Sha256) -> Result<Checkpoint, CopyError> {
        if let Database::Sqlite(database) = &self.database {
            database.require_sound().await?;
        }
        self.verify_log(fleet).await.map_err(|failed| failed.map_or_else(CopyError::from, CopyError::Log))
    }

    /// Writes every row, all or nothing.
    pub(super) async fn write_all(
        &self,
        tables: &[Table],
        from: mpsc::Receiver<Batch>,
        reading: JoinHandle<Result<Vec<u64>, CopyError>>,
    ) -> Result<Vec<u64>, CopyError> {
        match &self.database {
            Database::Sqlite(database) => database.write_all(tables, from, reading).await,
            Database::Postgres(database) => database.write_all(tables, from, reading).await,
        }
    }

    /// The log from its first entry on. Returns its newest entry.
    async fn verify_log(&self, fleet: &Sha256) -> Result<Checkpoint, LogFailure> {
        let mut before: Checkpoint = origin(fleet);
        loop {
            let page = self.audit(before.id, MAX_PAGE).await.map_err(LogFailure::Store)?;
            if let Some(anchor) = page.anchor.filter(|anchor| anchor.id > before.id) {
                before = anchor;
            }
            if page.entries.is_empty() {
                return Ok(before);
            }
            before = verify(before, &page.entries).map_err(LogFailure::Log)?;
        }
    }
}

enum LogFailure {
    Store(StoreError),
    Log(AuditError),
}

impl LogFailure {
    fn map_or_else(
        self,
        store: impl FnOnce(StoreError) -> CopyError,
        log: impl FnOnce(AuditError) -> CopyError,
    ) -> CopyError {
        match self {
            Self::Store(error) => store(error),
            Self::Log(error) => log(error),
        }
    }
}

/// What was read and what arrived, table by table.
pub(super) fn compare(tables: &[Table], read: &[u64], arrived: &[u64]) -> Result<(), CopyError> {
    for ((table, read), arrived) in tables.iter().zip(read).zip(arrived) {
        if read != arrived {
            return Err(CopyError::Lost(*arrived, *read, table.name.clone()));
        }
    }
    Ok(())
}

/// The tables of the target must be those of the source.
pub(super) fn same_shape(source: &[Table], target: Vec<Table>) -> Result<(), CopyError> {
    let sorted = |table: &Table| {
        let mut table = table.clone();
        table.columns.sort();
        table
    };
    let target: Vec<Table> = in_order(target).iter().map(sorted).collect();
    let source: Vec<Table> = source.iter().map(sorted).collect();
    match source.iter().zip(&target).find(|(source, target)| source != target) {
        Some((source, target)) => Err(CopyError::Shape(format!("{}, {}", source.name, target.name))),
        None if source.len() != target.len() => Err(CopyError::Shape("one has more".into())),
        None => Ok(()),
    }
}
