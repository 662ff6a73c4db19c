//! Reports: batches of events, signed by the machine they are about.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use muster_protocol::api::{self, ProblemCode};
use muster_protocol::ids::{Generation, MachineName};
use muster_protocol::keys::Context;
use muster_protocol::report::{Accepted, MAX_BATCH_BYTES, MAX_BATCH_EVENTS, Stream};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::core::cut::cut;
use crate::core::reports::{Batch, NewEvent};
use crate::http::auth::machine::{FromMachine, MachineDocument};
use crate::http::body::{self, Document};
use crate::http::heavy;
use crate::http::problem::{Refused, refuse};
use crate::http::state::Shared;
use crate::metrics::COUNTED;

/// The least that an event costs: a row takes more room than its text.
const LEAST_CHARGED: usize = 256;

/// A batch, with each event as received.
#[derive(Deserialize)]
pub struct RawBatch {
    pub machine: MachineName,
    #[serde(default)]
    pub stream: Option<Stream>,
    pub oldest: u64,
    pub events: Vec<Box<RawValue>>,
}

impl Document for RawBatch {
    const WHAT: &'static str = "a batch of events";
    const LIMIT: usize = MAX_BATCH_BYTES;
}

impl MachineDocument for RawBatch {
    const PATH: &'static str = api::REPORTS;
    const CONTEXT: Context = Context::Reports;

    fn machine(&self) -> &MachineName {
        &self.machine
    }
}

/// The fields that an event of any version must have.
#[derive(Deserialize)]
pub struct Numbered {
    pub seq: u64,
    #[serde(default)]
    pub generation: Option<Generation>,
}

/// The events of a batch as they are stored, and their cost.
fn events(batch: &[Box<RawValue>]) -> Result<(Vec<(Numbered, String)>, usize), Refused> {
    let (mut events, mut size) = (Vec::with_capacity(batch.len()), 0);
    for raw in batch {
        let raw = raw.get();
        let numbered: Numbered = body::json("an event", raw.as_bytes())?;
        let raw = cut(raw);
        size += raw.len().max(LEAST_CHARGED);
        events.push((numbered, raw));
    }
    Ok((events, size))
}

pub async fn reports(
    State(app): State<Shared>,
    request: FromMachine<RawBatch>,
) -> Result<Json<Accepted>, Refused> {
    let FromMachine { sent: batch, bytes: body, known, .. } = request;
    if batch.events.len() > MAX_BATCH_EVENTS {
        let message =
            format!("{} events are more than {MAX_BATCH_EVENTS}: send smaller batches", batch.events.len());
        return Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, ProblemCode::TooLarge, message));
    }
    let (events, size) = heavy::on(body.len(), || events(&batch.events))?;
    app.rates.reports(&batch.machine, size).map_err(|wait| {
        Refused::too_many(&format!("machine {}, by the size of its events,", batch.machine), wait)
    })?;
    // What they say is read once it is known that they may be as large.
    let read = |(Numbered { seq, generation }, raw)| NewEvent::new(seq, generation, raw);
    let events: Vec<NewEvent> = heavy::on(body.len(), || events.into_iter().map(read).collect());
    let keep = u64::from(app.services.limits.event_mib) * 1024 * 1024;
    let received =
        Batch { machine: &batch.machine, stream: batch.stream, oldest: batch.oldest, events: &events };
    let through = app.services.store.report(&received, &known.key, keep, app.services.now()).await?;
    COUNTED.events.add(events.len() as u64);
    Ok(Json(Accepted { through, stream: batch.stream }))
}
