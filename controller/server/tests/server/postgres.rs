//! A database of its own for each fleet, in the cluster that `tests/postgres` starts, if the tests run on
//! PostgreSQL.

use std::sync::atomic::{AtomicU64, Ordering};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

/// Names the cluster as `postgres://USER@HOST:PORT`. There, the database `muster_template` has the functions
/// of SQLite that the tests' own queries use.
const CLUSTER: &str = "MUSTER_TEST_POSTGRES";
/// The same through a pooler: that is where the controller connects to, and it listens at the cluster itself.
const POOLER: &str = "MUSTER_TEST_POOLER";

#[derive(Clone)]
pub struct Place {
    cluster: String,
    name: String,
}

impl Place {
    /// `None` if the tests run on SQLite.
    pub async fn new() -> Option<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let cluster = std::env::var(CLUSTER).ok()?;
        let name = format!("t{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
        let mut admin = PgConnection::connect(&format!("{cluster}/postgres")).await.unwrap();
        let create = format!("CREATE DATABASE {name} TEMPLATE muster_template");
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut admin).await.unwrap();
        admin.close().await.unwrap();
        Some(Self { cluster, name })
    }

    pub fn url(&self) -> String {
        format!("{}/{}", self.cluster, self.name)
    }

    /// The lines of `controller.toml`.
    pub fn setting(&self) -> String {
        let keys = "bearer_keys = \"bearer-keys.json\"\n";
        match std::env::var(POOLER) {
            Ok(pooler) => {
                let (pooler, direct) = (format!("{pooler}/{}", self.name), self.url());
                format!("{keys}database = \"{pooler}\"\ndatabase_listen = \"{direct}\"\n")
            }
            Err(_) => format!("{keys}database = \"{}\"\n", self.url()),
        }
    }

    pub async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        PgConnection::connect(&self.url()).await
    }

    pub async fn sql(&self, query: &str) -> String {
        let query = format!("SELECT answer::text FROM ({query}) AS answers (answer)");
        let mut connection = self.connect().await.unwrap();
        sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&mut connection).await.unwrap()
    }

    pub async fn try_sql(&self, query: &str) -> Result<(), sqlx::Error> {
        let query = AssertSqlSafe(query.to_owned());
        sqlx::raw_sql(query).execute(&mut self.connect().await?).await.map(drop)
    }

    pub async fn all_rows(&self) -> String {
        let mut connection = self.connect().await.unwrap();
        let tables: Vec<String> =
            sqlx::query_scalar("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'")
                .fetch_all(&mut connection)
                .await
                .unwrap();
        let mut all = String::new();
        for table in tables {
            let rows = format!("SELECT row_of::text FROM {table} AS row_of");
            let rows: Vec<String> =
                sqlx::query_scalar(AssertSqlSafe(rows)).fetch_all(&mut connection).await.unwrap();
            all.extend(rows);
        }
        all
    }
}
