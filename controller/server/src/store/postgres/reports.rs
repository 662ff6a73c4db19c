//! Events of machines, and how far each machine's count is stored.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::TryStreamExt as _;
use muster_protocol::checkin::CheckIn;
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Generation, MachineName};
use muster_protocol::keys::PublicKey;
use muster_protocol::report::{Event, EventKind};
use sqlx::PgConnection;

use super::columns::{json, plain, query, query_as, query_scalar, signed, text, unsigned};
use super::connection::{Postgres, Transaction, locking};
use crate::core::change::ReportsThrough;
use crate::core::cut::MAX_EVENT_BYTES;
use crate::core::reports::{
    ATTACK_REFUSED, Batch, DAY_MS, LOGGED_APART_MS, QUARANTINE_LIFTED, RETRIED, Stored,
};
use crate::core::rows::StoredEvent;
use crate::store::answers::{EventsByGeneration, GenerationEvents};
use crate::store::error::StoreError;

/// The most events of one generation that the history shows: the newest.
const SHOWN: i64 = 500;
/// The most bytes of events in one response, and the overhead of each.
const SHOWN_BYTES: usize = 2 * 1024 * 1024;
const EVENT_OVERHEAD: usize = 256;

#[derive(sqlx::FromRow)]
struct Row {
    enrolment: i64,
    reports_through: i64,
    report_stream: Option<String>,
    outcome: Option<String>,
    observed: Option<String>,
    events_bytes: i64,
}

impl Row {
    fn refuses(&self) -> bool {
        let last: Option<CheckIn> = self.observed.as_deref().and_then(|text| serde_json::from_str(text).ok());
        last.is_some_and(|checkin| checkin.refused.is_some())
    }
}

impl Transaction {
    pub async fn report(
        &mut self,
        batch: &Batch<'_>,
        key: &PublicKey,
        now: UnixMillis,
    ) -> Result<Option<Stored>, StoreError> {
        let machine = batch.machine;
        let row: Option<Row> = query_as(locking!(
            self,
            "SELECT enrolment, reports_through, report_stream, outcome, observed, events_bytes FROM machines
             WHERE name = $1 AND key = $2 AND revoked_at IS NULL",
            "FOR NO KEY UPDATE"
        ))
        .bind(machine.as_str())
        .bind(key.as_bytes().as_slice())
        .fetch_optional(self.connection())
        .await?;
        let Some(row) = row else { return Ok(None) };
        let newest: i64 =
            query_scalar("SELECT coalesce(max(seq), 0) FROM events WHERE machine = $1 AND enrolment = $2")
                .bind(machine.as_str())
                .bind(row.enrolment)
                .fetch_one(self.connection())
                .await?;
        let (attacks, retries) = (batch.tells_of_attacks(), batch.tells_of_retries());
        Ok(Some(Stored {
            enrolment: unsigned(row.enrolment),
            through: unsigned(row.reports_through),
            refuses: attacks && row.refuses(),
            stream: row.report_stream.map(plain),
            outcome: row.outcome.as_deref().and_then(|text| serde_json::from_str(text).ok()),
            events_bytes: unsigned(row.events_bytes),
            newest: unsigned(newest),
            attacks_logged: match attacks {
                true => attacks_logged(self.connection(), machine, now).await?,
                false => BTreeSet::new(),
            },
            retries_logged: match retries {
                true => retries_logged(self.connection(), machine, now).await?,
                false => 0,
            },
        }))
    }
}

/// Counted in the log itself: of the attacks only the newest are kept.
async fn attacks_logged(
    sql: &mut PgConnection,
    machine: &MachineName,
    now: UnixMillis,
) -> Result<BTreeSet<String>, StoreError> {
    let logged: Vec<String> =
        query_scalar("SELECT DISTINCT detail FROM audit WHERE machine = $1 AND action = $2 AND at > $3")
            .bind(machine.as_str())
            .bind(ATTACK_REFUSED)
            .bind(now.saturating_sub(LOGGED_APART_MS))
            .fetch_all(sql)
            .await?;
    Ok(logged.into_iter().map(plain).collect())
}

async fn retries_logged(
    sql: &mut PgConnection,
    machine: &MachineName,
    now: UnixMillis,
) -> Result<u64, StoreError> {
    let count: i64 =
        query_scalar("SELECT count(*) FROM audit WHERE machine = $1 AND action IN ($2, $3) AND at > $4")
            .bind(machine.as_str())
            .bind(QUARANTINE_LIFTED)
            .bind(RETRIED)
            .bind(now.saturating_sub(DAY_MS))
            .fetch_one(sql)
            .await?;
    Ok(unsigned(count))
}

pub async fn store(sql: &mut PgConnection, event: &StoredEvent) -> Result<(), StoreError> {
    query(
        "INSERT INTO events (machine, enrolment, seq, generation, received_at, event, decides)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(event.machine.as_str())
    .bind(signed(event.enrolment))
    .bind(signed(event.seq))
    .bind(event.generation.map(|generation| generation.packed()))
    .bind(event.received_at)
    .bind(text(&event.raw))
    .bind(event.decides)
    .execute(sql)
    .await?;
    Ok(())
}

pub async fn through(sql: &mut PgConnection, count: &ReportsThrough) -> Result<(), StoreError> {
    let outcome = count.outcome.as_ref().map(|outcome| json(outcome, "an outcome")).transpose()?;
    query(
        "UPDATE machines SET reports_through = $2, outcome = $3, seen_at = $4, report_stream = $5,
             events_bytes = $6
         WHERE name = $1",
    )
    .bind(count.machine.as_str())
    .bind(signed(count.through))
    .bind(outcome)
    .bind(count.seen_at)
    .bind(count.stream.as_deref().map(text))
    .bind(signed(count.events_bytes))
    .execute(sql)
    .await?;
    Ok(())
}

#[derive(sqlx::FromRow)]
struct EventRow {
    seq: i64,
    received_at: i64,
    event: Option<String>,
}

impl Postgres {
    pub async fn events(
        &self,
        machine: &MachineName,
        generations: &[Generation],
    ) -> Result<EventsByGeneration, StoreError> {
        let (mut all, mut room) = (BTreeMap::new(), SHOWN_BYTES);
        let mut view = self.view().await?;
        for &generation in generations {
            let count: i64 =
                query_scalar("SELECT count(*) FROM events WHERE machine = $1 AND generation = $2")
                    .bind(machine.as_str())
                    .bind(generation.packed())
                    .fetch_one(view.connection())
                    .await?;
            // An event larger than is stored today comes from version 0.1, and is not loaded into memory.
            let mut rows = query_as::<EventRow>(
                "SELECT seq, received_at, CASE WHEN length(event) <= $4 THEN event END AS event FROM events
                 WHERE machine = $1 AND generation = $2 ORDER BY enrolment DESC, seq DESC LIMIT $3",
            )
            .bind(machine.as_str())
            .bind(generation.packed())
            .bind(SHOWN)
            .bind(MAX_EVENT_BYTES as i64)
            .fetch(view.connection());
            let mut events = Vec::new();
            while let Some(EventRow { seq, received_at, event }) = rows.try_next().await? {
                let raw = plain(event.unwrap_or_default());
                let Some(left) = room.checked_sub(raw.len() + EVENT_OVERHEAD) else { break };
                room = left;
                events.push(serde_json::from_str(&raw).unwrap_or(Event {
                    seq: unsigned(seq),
                    at: received_at,
                    generation: Some(generation),
                    kind: EventKind::Unknown,
                }));
            }
            events.reverse();
            let left_out = unsigned(count).saturating_sub(events.len() as u64);
            all.insert(generation, GenerationEvents { events, left_out });
        }
        Ok(all)
    }
}
