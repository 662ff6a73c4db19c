//! Events of machines: each stored once and in order (I7), as the bytes that came.
//!
//! A machine counts its events by itself, and gives the count another name where it has to begin anew: then the numbers through
//! which everything is stored are none of its own. Here each event gets a number behind the last one, so that they stay in order.

use std::collections::BTreeMap;

use futures_util::TryStreamExt as _;
use muster_protocol::checkin::CheckIn;
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Generation, MachineName};
use muster_protocol::keys::PublicKey;
use muster_protocol::report::{Asker, Event, EventKind, MAX_EVENT_NUMBER, Stream};

use super::audit::{Act, log};
use super::cut::MAX_EVENT_BYTES;
use super::machines::{Outcome, in_range};
use super::{Cursor, Store, StoreError, Tx, attacks, changed, retention, signed, unsigned};

/// The most events of one generation that the history shows: the newest.
const SHOWN: i64 = 500;
/// The most bytes of events in one answer, and what each takes beside its text.
const SHOWN_BYTES: usize = 2 * 1024 * 1024;
const EVENT_OVERHEAD: usize = 256;

/// How many entries of the audit log about retries one machine may cause in a day: nobody can remove them.
const RETRIES_LOGGED: i64 = 16;
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// One event of a batch.
#[derive(Debug, Clone)]
pub struct NewEvent {
    pub seq: u64,
    pub generation: Option<Generation>,
    /// JSON, as it came.
    pub raw: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ReportRefusal {
    #[error("machine {0} is not enrolled with this key: enrol it with a token of `muster machines add {0}`")]
    NotEnrolled(MachineName),
    #[error(
        "the events of {machine} go on with {found}, and {wanted} is next: send them by number, from {wanted} on"
    )]
    Order { machine: MachineName, wanted: u64, found: u64 },
    #[error("{found} is no number of an event of {machine}: begin another count, and name it")]
    OutOfRange { machine: MachineName, found: u64 },
    #[error(transparent)]
    Store(#[from] StoreError),
}
impl From<sqlx::Error> for ReportRefusal {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// What became of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Stored {
    pub through: u64,
    /// Where the fleet's changes stand, unless nothing was new.
    pub cursor: Option<Cursor>,
}

impl Store {
    /// Stores what is new of a batch. Numbers below `oldest` that never came are gone for good.
    pub async fn report(
        &self,
        machine: &MachineName,
        key: &PublicKey,
        ((stream, oldest), keep): ((Option<Stream>, u64), u64),
        events: &[NewEvent],
        now: UnixMillis,
    ) -> Result<Stored, ReportRefusal> {
        let found = events.iter().map(|event| event.seq).max().unwrap_or(0).max(oldest);
        // Agents of 0.1 have one count alone, and went where they were told to.
        if (stream.is_some() && found > MAX_EVENT_NUMBER) || !in_range(found) {
            return Err(ReportRefusal::OutOfRange { machine: machine.clone(), found });
        }
        let mut tx = self.sql.begin().await?;
        let row: Option<Row> = sqlx::query_as(
            "SELECT enrolment, reports_through, report_stream, outcome, observed, events_bytes FROM machines
             WHERE name = $1 AND key = $2 AND revoked_at IS NULL",
        )
        .bind(machine.as_str())
        .bind(key.as_bytes().as_slice())
        .fetch_optional(&mut *tx)
        .await?;
        let row = row.ok_or_else(|| ReportRefusal::NotEnrolled(machine.clone()))?;
        let (enrolment, observed) = (row.enrolment, row.observed.clone());
        let count = row.count(stream, oldest);
        let mut through = count.through;
        let mut bytes = unsigned(row.events_bytes);
        let before = through;
        let mut stored: i64 = sqlx::query_scalar(
            "SELECT coalesce(max(seq), 0) FROM events WHERE machine = $1 AND enrolment = $2",
        )
        .bind(machine.as_str())
        .bind(enrolment)
        .fetch_one(&mut *tx)
        .await?;
        let mut outcome: Option<Outcome> =
            row.outcome.as_deref().and_then(|text| serde_json::from_str(text).ok());
        let mut last = before;
        let mut retries_left = None;
        for event in events.iter().filter(|event| event.seq > before) {
            if event.seq <= last && last > before {
                let wanted = last.saturating_add(1);
                return Err(ReportRefusal::Order { machine: machine.clone(), wanted, found: event.seq });
            }
            (last, stored) = (event.seq, stored.saturating_add(1));
            let event_read = serde_json::from_str::<Event>(&event.raw).ok();
            let decides =
                event_read.as_ref().is_some_and(|read| Outcome::of(event.generation, &read.kind).is_some());
            sqlx::query(
                "INSERT INTO events (machine, enrolment, seq, generation, received_at, event, decides)
                 VALUES ($1, $2, $3, $4, $5, $6, $7)",
            )
            .bind(machine.as_str())
            .bind(enrolment)
            .bind(stored)
            .bind(event.generation.map(|generation| generation.packed()))
            .bind(now)
            .bind(&event.raw)
            .bind(decides)
            .execute(&mut *tx)
            .await?;
            bytes = bytes.saturating_add(retention::cost(event.raw.len()));
            through = event.seq;
            if let Some(told @ Event { kind: EventKind::Refused { attack, detail }, .. }) = &event_read {
                let goes_on = observed.as_deref().is_some_and(still_refuses);
                attacks::keep(&mut tx, machine, (*attack, detail), told, goes_on, now).await?;
            }
            if let Some(Event { kind: EventKind::Retried { derivation, quarantined, by }, .. }) = &event_read
            {
                let left = match retries_left {
                    Some(left) => left,
                    None => RETRIES_LOGGED - retries_logged(&mut tx, machine, now).await?,
                };
                if left > 0 {
                    let action = if *quarantined { QUARANTINE_LIFTED } else { RETRIED };
                    let detail = format!("{} ({})", derivation.name(), asker(by));
                    log(&mut tx, Act::by_itself(now, action, &detail).on(machine)).await?;
                }
                retries_left = Some(left - 1);
            }
            // An event of another version that this one cannot read is unknown, and no reason to refuse the batch.
            let kind = event_read.map_or(EventKind::Unknown, |event| event.kind);
            // A local rollback tells of an older generation; what became of the newest stays known.
            let told = Outcome::of(event.generation, &kind);
            let stays = outcome.as_ref().map(|held| held.generation);
            outcome = told.filter(|told| stays.is_none_or(|held| told.generation >= held)).or(outcome);
        }
        through = through.max(oldest.saturating_sub(1));
        if through == before && !count.renamed {
            return Ok(Stored { through, cursor: None });
        }
        let bytes = retention::forget_beyond(&mut tx, machine, bytes, keep).await?;
        let outcome = match outcome {
            Some(outcome) => {
                Some(serde_json::to_string(&outcome).map_err(|_| StoreError::Damaged("an outcome"))?)
            }
            None => None,
        };
        sqlx::query(
            "UPDATE machines SET reports_through = $2, outcome = $3, seen_at = $4, report_stream = $5,
                 events_bytes = $6
             WHERE name = $1",
        )
        .bind(machine.as_str())
        .bind(signed(through))
        .bind(outcome)
        .bind(now)
        .bind(stream.map(|stream| stream.to_string()).or(row.report_stream))
        .bind(signed(bytes))
        .execute(&mut *tx)
        .await?;
        let cursor = changed(&mut tx, machine).await?;
        tx.commit().await?;
        Ok(Stored { through, cursor: Some(cursor) })
    }

    /// The events of some generations of a machine, the oldest first: of each the newest, and of all together no more than
    /// an answer holds. Says how many of each were left out.
    pub(super) async fn events(
        &self,
        machine: &MachineName,
        generations: &[Generation],
    ) -> Result<BTreeMap<Generation, (Vec<Event>, u64)>, StoreError> {
        let (mut all, mut room) = (BTreeMap::new(), SHOWN_BYTES);
        for &generation in generations {
            let count: i64 =
                sqlx::query_scalar("SELECT count(*) FROM events WHERE machine = $1 AND generation = $2")
                    .bind(machine.as_str())
                    .bind(generation.packed())
                    .fetch_one(self.sql.read())
                    .await?;
            // A larger one than is stored today comes from version 0.1, and is not brought into memory.
            let mut rows = sqlx::query_as::<_, (i64, i64, Option<String>)>(
                "SELECT seq, received_at, iif(length(event) <= $4, event, NULL) FROM events
                 WHERE machine = $1 AND generation = $2 ORDER BY enrolment DESC, seq DESC LIMIT $3",
            )
            .bind(machine.as_str())
            .bind(generation.packed())
            .bind(SHOWN)
            .bind(MAX_EVENT_BYTES as i64)
            .fetch(self.sql.read());
            let mut events = Vec::new();
            while let Some((seq, received_at, raw)) = rows.try_next().await? {
                let raw = raw.unwrap_or_default();
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
            all.insert(generation, (events, left_out));
        }
        Ok(all)
    }
}

/// What a machine causes in the audit log when somebody lets a generation be tried again there.
const QUARANTINE_LIFTED: &str = "quarantine-lifted";
const RETRIED: &str = "retried";

/// How many entries about retries this machine has caused since yesterday.
async fn retries_logged(tx: &mut Tx, machine: &MachineName, now: UnixMillis) -> Result<i64, StoreError> {
    let count = sqlx::query_scalar(
        "SELECT count(*) FROM audit WHERE machine = $1 AND action IN ($2, $3) AND at > $4",
    )
    .bind(machine.as_str())
    .bind(QUARANTINE_LIFTED)
    .bind(RETRIED)
    .bind(now.saturating_sub(DAY_MS))
    .fetch_one(&mut **tx)
    .await?;
    Ok(count)
}

/// Who asked for it, as the machine tells it.
fn asker(by: &Asker) -> String {
    match by {
        Asker::Local { user: Some(0) } => "by root at the machine".to_owned(),
        Asker::Local { user: Some(user) } => format!("by user {user} at the machine"),
        Asker::Local { user: None } => "at the machine".to_owned(),
        Asker::Operator { key } => format!("as the operator with key {} asked", key.short()),
        Asker::Unknown => "asked for in a way that this version does not know".to_owned(),
    }
}

#[derive(sqlx::FromRow)]
struct Row {
    enrolment: i64,
    reports_through: i64,
    report_stream: Option<String>,
    outcome: Option<String>,
    observed: Option<String>,
    events_bytes: i64,
}

/// Where a machine's count stands.
struct Count {
    /// Everything through this number is stored, or never will be.
    through: u64,
    renamed: bool,
}

impl Row {
    /// Another name than the one before begins anew. The first name says nothing of the numbers: the machine's agent learned
    /// to give one. Neither does none: an older agent took its place.
    fn count(&self, stream: Option<Stream>, oldest: u64) -> Count {
        let known = self.report_stream.as_ref();
        let renamed = stream.zip(known).is_some_and(|(stream, known)| stream.to_string() != *known);
        let through = if renamed { 0 } else { unsigned(self.reports_through) };
        // What a machine no longer has never comes. A number that no count reaches was never stored.
        let beyond = stream.is_some() && through > MAX_EVENT_NUMBER;
        Count { through: if beyond { oldest.saturating_sub(1) } else { through }, renamed }
    }
}

/// Whether the last check-in says that the attack goes on.
fn still_refuses(check_in: &str) -> bool {
    serde_json::from_str::<CheckIn>(check_in).is_ok_and(|told| told.refused.is_some())
}
