//! A database with a past: events that machines reported long ago, written into it while no controller runs.

use std::path::Path;

use anyhow::{Context as _, Result};
use muster_protocol::clock::UnixMillis;
use muster_protocol::report::{Event, EventKind};
use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;

/// Gives the machines of this database so many events, equally many each.
pub async fn fill(database: &Path, events: u64, now: UnixMillis) -> Result<()> {
    let enrolled = EventKind::Enrolled { agent: "0.1.0".into() };
    let event = serde_json::to_string(&Event { seq: 1, at: now, generation: None, kind: enrolled })?;
    let file = SqliteConnectOptions::new().filename(database).foreign_keys(true);
    let mut sql = file.connect().await.with_context(|| format!("cannot open {}", database.display()))?;
    sqlx::query(
        "INSERT INTO events (machine, enrolment, seq, generation, received_at, event, decides)
         WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < $1),
             m AS (SELECT name, enrolment, row_number() OVER (ORDER BY name) - 1 AS place,
                 count(*) OVER () AS many FROM machines)
         SELECT m.name, m.enrolment, n.i / m.many + 1, NULL, $2, $3, 0
         FROM n JOIN m ON m.place = n.i % m.many",
    )
    .bind(i64::try_from(events)?)
    .bind(now)
    .bind(&event)
    .execute(&mut sql)
    .await?;
    sqlx::query(
        "UPDATE machines SET
             events_bytes = (SELECT coalesce(sum(length(event) + 128), 0) FROM events WHERE machine = name),
             reports_through = (SELECT coalesce(max(seq), 0) FROM events WHERE machine = name)",
    )
    .execute(&mut sql)
    .await?;
    Ok(())
}
