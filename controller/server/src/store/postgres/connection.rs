//! Connections and transactions. Every query is part of a transaction, and every wait in one has a limit.
//!
//! A transaction reads what is committed, and locks what its decision depends on before it reads it: the
//! machine's row, or one of the locks of `locks.rs`. Whoever comes second waits, and then reads what the
//! first one wrote. What no lock covers (two machines with one key, a token made twice) a unique index
//! refuses, and the decision is made again.

use std::sync::Arc;
use std::time::Duration;

use muster_protocol::ids::Sha256;
use muster_protocol::random;
use sqlx::SqlSafeStr as _;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};

use super::columns::{query, query_scalar, sha256};
use super::locks::{self, Lock};
use super::migrations;
use super::reach::Reach;
use crate::config::PostgresSettings;
use crate::store::error::StoreError;

/// Connections of one controller.
const CONNECTIONS: u32 = 16;
/// How long to wait for a connection.
const WAIT: Duration = Duration::from_secs(10);
/// How long one statement, one commit or one connection that is given back may take, seen from here: the
/// server's own limits end it before, if it can be reached.
pub const LONGEST: Duration = Duration::from_secs(20);

/// The server's limits: of a statement, of a wait for a lock, and of a transaction whose controller hangs
/// while others wait for what it locked.
macro_rules! limited {
    ($begin:literal) => {
        concat!(
            $begin,
            "; SET LOCAL statement_timeout = '15s'; SET LOCAL lock_timeout = '8s'; \
               SET LOCAL idle_in_transaction_session_timeout = '15s'"
        )
    };
}
const BEGIN: &str = limited!("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE");
const VIEW: &str = limited!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
const VIEW_LONG: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = 0";
/// A migration or a copy may take long, whatever limit the server has of its own.
const BEGIN_LONG: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL statement_timeout = 0; \
                          SET LOCAL lock_timeout = '60s'";

/// How long a migration waits for a table that somebody reads, a backup perhaps. Whoever else needs the table
/// waits behind it, so it gives up before they do, lets them go on, and tries again so often.
const MIGRATION_LOCK: &str = "SET LOCAL lock_timeout = '3s'";
const MIGRATION_TRIES: u32 = 20;
const MIGRATION_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
pub struct Postgres {
    pool: PgPool,
    reach: Arc<Reach>,
    /// Who wrote a change, so that this controller does not hear its own.
    pub instance: i64,
}

/// A transaction that writes, or a view, which sees one snapshot of the database.
pub struct Transaction {
    transaction: sqlx::Transaction<'static, sqlx::Postgres>,
    /// Whether it locks what it reads.
    pub writes: bool,
    pub instance: i64,
}

/// The text of a query whose rows a writing transaction locks.
macro_rules! locking {
    ($transaction:expr, $query:literal, $lock:literal) => {
        match $transaction.writes {
            true => concat!($query, " ", $lock),
            false => $query,
        }
    };
}
pub(super) use locking;

/// Where the database is. Its password is never printed.
pub fn options(settings: &PostgresSettings) -> Result<PgConnectOptions, StoreError> {
    with_password(settings.url.parse(), settings)
}

/// The same for the connection that listens, if there is one.
pub fn listen_options(settings: &PostgresSettings) -> Result<Option<PgConnectOptions>, StoreError> {
    let Some(url) = settings.listen_url() else { return Ok(None) };
    with_password(url.parse(), settings).map(Some)
}

fn with_password(
    parsed: Result<PgConnectOptions, sqlx::Error>,
    settings: &PostgresSettings,
) -> Result<PgConnectOptions, StoreError> {
    // The error may quote the text, and the text may have a password.
    let unreadable = |_| StoreError::Open("its connection string cannot be read".into());
    let options = parsed.map_err(unreadable)?.application_name("muster");
    Ok(match &settings.password {
        Some(password) => options.password(password),
        None => options,
    })
}

impl Postgres {
    /// Opens the database of a fleet and migrates it to the newest schema.
    pub async fn open(settings: &PostgresSettings, fleet: &Sha256) -> Result<Self, StoreError> {
        let postgres = Self::connect(settings).await?;
        postgres.belongs_to(fleet).await?;
        Ok(postgres)
    }

    /// Opens a database that controllers use, and changes nothing there. Its schema must be this muster's.
    pub async fn beside(settings: &PostgresSettings, fleet: &Sha256) -> Result<Self, StoreError> {
        let postgres = Self::lazily(settings)?;
        let place = postgres.reach.place();
        let mut view = postgres.view().await?;
        migrations::require_all(view.connection())
            .await
            .map_err(|error| StoreError::Open(format!("PostgreSQL at {place}: {error}")))?;
        let found: Vec<u8> = query_scalar("SELECT id FROM fleet").fetch_one(view.connection()).await?;
        drop(view);
        if found != fleet.as_bytes() {
            let found = sha256(&found)?.short();
            return Err(StoreError::OtherFleet { wanted: fleet.short(), found });
        }
        Ok(postgres)
    }

    /// Opens a database, empty or not, and migrates it to the newest schema.
    pub async fn connect(settings: &PostgresSettings) -> Result<Self, StoreError> {
        let postgres = Self::lazily(settings)?;
        let place = postgres.reach.place();
        postgres.prepare().await.map_err(|error| match error {
            StoreError::Busy => StoreError::Open(format!(
                "PostgreSQL at {place} is busy: another controller migrates it, a backup or a long query reads \
                 its tables, or no connection is free: start again when that is over"
            )),
            StoreError::Database(error) | StoreError::Unavailable(error) => {
                StoreError::Open(format!("PostgreSQL at {place}: {error}"))
            }
            StoreError::Open(error) => StoreError::Open(format!("PostgreSQL at {place}: {error}")),
            error => error,
        })?;
        Ok(postgres)
    }

    /// With connections that are made when they are needed.
    pub fn lazily(settings: &PostgresSettings) -> Result<Self, StoreError> {
        let options = options(settings)?;
        let reach = Arc::new(Reach::new(options.clone()));
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(WAIT)
            .test_before_acquire(false)
            // A connection whose statement was given up may hang, and would be waited for without a limit.
            .after_release(|connection, _| {
                Box::pin(async move {
                    use sqlx::Connection as _;
                    let pinged = tokio::time::timeout(LONGEST, connection.ping()).await;
                    pinged.unwrap_or(Err(sqlx::Error::PoolTimedOut)).map(|()| true)
                })
            })
            .connect_lazy_with(options);
        Ok(Self { pool, reach, instance: i64::from_be_bytes(random::bytes()?) })
    }

    /// Refuses a server whose answers would not hold, and migrates. Only one controller does so at a time.
    async fn prepare(&self) -> Result<(), StoreError> {
        for _ in 1..MIGRATION_TRIES {
            match self.prepare_once().await {
                Err(StoreError::Busy) => tokio::time::sleep(MIGRATION_PAUSE).await,
                done => return done,
            }
        }
        self.prepare_once().await
    }

    async fn prepare_once(&self) -> Result<(), StoreError> {
        let mut tx = self.begun(BEGIN_LONG, true).await?;
        for (setting, bad, advice) in [
            ("synchronous_commit", "off", "it answers before it is durable: set synchronous_commit = on"),
            ("fsync", "off", "it does not write durably: set fsync = on"),
            ("server_encoding", "SQL_ASCII", "create the database with ENCODING 'UTF8'"),
            ("transaction_read_only", "on", "it is read-only, a standby perhaps: name the primary"),
        ] {
            let found: String =
                query_scalar("SELECT current_setting($1)").bind(setting).fetch_one(tx.connection()).await?;
            if found == bad {
                return Err(StoreError::Open(format!("{setting} is {found}, so {advice}")));
            }
        }
        query(MIGRATION_LOCK).execute(tx.connection()).await?;
        locks::take(tx.connection(), Lock::Migration).await?;
        migrations::run(tx.connection()).await?;
        tx.commit().await
    }

    /// A transaction that writes.
    pub async fn begin(&self) -> Result<Transaction, StoreError> {
        self.begun(BEGIN, true).await
    }

    /// A read-only transaction.
    pub async fn view(&self) -> Result<Transaction, StoreError> {
        self.begun(VIEW, false).await
    }

    /// A transaction without a limit for its statements.
    pub async fn begin_long(&self) -> Result<Transaction, StoreError> {
        self.begun(BEGIN_LONG, true).await
    }

    /// A view without a limit for its statements.
    pub async fn view_long(&self) -> Result<Transaction, StoreError> {
        self.begun(VIEW_LONG, false).await
    }

    /// In a box: it is part of all that uses the database, and of whatever waits for that.
    fn begun(
        &self,
        begin: &'static str,
        writes: bool,
    ) -> futures_util::future::BoxFuture<'_, Result<Transaction, StoreError>> {
        Box::pin(self.begin_as(begin, writes))
    }

    /// A connection may have ended while it was idle: then another one is tried.
    async fn begin_as(&self, begin: &'static str, writes: bool) -> Result<Transaction, StoreError> {
        let mut left = CONNECTIONS;
        loop {
            let connection = self.reach.wait(self.pool.acquire()).await?;
            let begun = sqlx::Transaction::begin(connection, Some(begin.into_sql_str()));
            // A task of its own: were it dropped halfway, the transaction would stay open, and the next one
            // on this connection would be part of it.
            match tokio::spawn(tokio::time::timeout(LONGEST, begun)).await {
                Ok(Ok(Ok(transaction))) => {
                    return Ok(Transaction { transaction, writes, instance: self.instance });
                }
                Ok(Ok(Err(error))) if left > 0 && ended(&error) => left -= 1,
                Ok(Ok(Err(error))) => return Err(error.into()),
                Ok(Err(_)) => return Err(silent()),
                Err(error) => return Err(StoreError::Database(error.to_string())),
            }
        }
    }

    pub async fn close(&self) {
        let _ = tokio::time::timeout(WAIT, self.pool.close()).await;
    }

    async fn belongs_to(&self, fleet: &Sha256) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        locks::take(tx.connection(), Lock::Migration).await?;
        let found: Option<Vec<u8>> =
            query_scalar("SELECT id FROM fleet").fetch_optional(tx.connection()).await?;
        match found {
            Some(found) if found == fleet.as_bytes() => {}
            Some(found) => {
                let found = sha256(&found)?.short();
                return Err(StoreError::OtherFleet { wanted: fleet.short(), found });
            }
            None => {
                query("INSERT INTO fleet (id) VALUES ($1)")
                    .bind(fleet.as_bytes().to_vec())
                    .execute(tx.connection())
                    .await?;
            }
        }
        tx.commit().await
    }
}

impl Transaction {
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.transaction
    }

    /// Writes something that changes nothing.
    pub async fn touch(&mut self) -> Result<(), StoreError> {
        query("UPDATE fleet SET id = id").execute(self.connection()).await?;
        Ok(())
    }

    /// If the connection breaks meanwhile, nobody here knows whether it was written. Whoever is told of the
    /// failure repeats what they sent, and every command takes the same twice.
    pub async fn commit(self) -> Result<(), StoreError> {
        match tokio::time::timeout(LONGEST, self.transaction.commit()).await {
            Ok(done) => Ok(done?),
            Err(_) => Err(silent()),
        }
    }
}

/// The server did not answer in time.
pub fn silent() -> StoreError {
    StoreError::Unavailable("it does not answer".into())
}

/// Whether the connection is of no use any more, and nothing was done on it.
fn ended(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(error) => matches!(error.code().as_deref(), Some("57P01" | "25P03")),
        _ => false,
    }
}
