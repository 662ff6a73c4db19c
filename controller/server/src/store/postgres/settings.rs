//! What controllers tell one another of their settings: locks of the session that listens, shared ones that
//! nobody waits for. They end with the session, so nothing of a controller that is gone stays.

use sqlx::PgExecutor;
use sqlx::postgres::PgListener;

use super::columns::{query, query_as};
use super::connection::Postgres;
use super::locks::OURS;
use crate::core::settings::{Prints, Setting, Told};
use crate::store::error::StoreError;

/// How many are looked at.
const MOST: i64 = 1000;

/// The first of a lock's two numbers; the second one is what is told.
fn class(setting: Setting) -> i32 {
    match setting {
        Setting::BearerKeys => OURS + 1,
        Setting::Blobs => OURS + 2,
        Setting::Limits => OURS + 3,
    }
}

/// Tells what is not told yet, and takes back what has changed.
pub async fn tell(session: &mut PgListener, said: Option<&Prints>, now: &Prints) -> Result<(), sqlx::Error> {
    for setting in Setting::ALL {
        let (before, now) = (said.and_then(|said| said.get(setting)), now.get(setting));
        if before == now {
            continue;
        }
        if let Some(print) = now {
            lock("SELECT pg_try_advisory_lock_shared($1, $2)", setting, print, &mut *session).await?;
        }
        if let Some(print) = before {
            lock("SELECT pg_advisory_unlock_shared($1, $2)", setting, print, &mut *session).await?;
        }
    }
    Ok(())
}

async fn lock(
    statement: &'static str,
    setting: Setting,
    print: i32,
    session: impl PgExecutor<'_>,
) -> Result<(), sqlx::Error> {
    query(statement).bind(class(setting)).bind(print).execute(session).await.map(drop)
}

#[derive(sqlx::FromRow)]
struct Row {
    class: i64,
    print: i64,
    place: String,
}

impl Postgres {
    /// What all controllers tell, this one too.
    pub async fn told(&self) -> Result<Vec<Told>, StoreError> {
        let (first, last) = (class(Setting::BearerKeys), class(Setting::Limits));
        let rows: Vec<Row> = query_as(
            "SELECT l.classid::bigint AS class, l.objid::bigint AS print,
                    coalesce(host(a.client_addr), 'this host') AS place
             FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
             WHERE l.locktype = 'advisory' AND l.granted AND l.classid::bigint BETWEEN $1 AND $2
               AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
             ORDER BY 1, 2, 3 LIMIT $3",
        )
        .bind(i64::from(first))
        .bind(i64::from(last))
        .bind(MOST)
        .fetch_all(self.view().await?.connection())
        .await?;
        let told = |row: Row| {
            let setting = Setting::ALL.into_iter().find(|one| i64::from(class(*one)) == row.class)?;
            // The server shows the number without its sign.
            let print = u32::try_from(row.print).ok()?.cast_signed();
            Some(Told { setting, print, place: row.place })
        };
        Ok(rows.into_iter().filter_map(told).collect())
    }
}
