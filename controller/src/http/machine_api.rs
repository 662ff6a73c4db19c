//! What machines send and ask: enrolment, check-in, reports, and the long poll.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use muster_protocol::api::{MAX_POLL_SECONDS, ProblemCode};
use muster_protocol::checkin::{CheckIn, CheckInReply, MAX_CHECKIN_BYTES, PollReply};
use muster_protocol::enrol::{EnrolReply, EnrolRequest, MAX_ENROL_BYTES};
use muster_protocol::ids::{Generation, MachineName};
use muster_protocol::keys::Context;
use muster_protocol::report::{Accepted, MAX_BATCH_BYTES, MAX_BATCH_EVENTS};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::auth::{machine_signature, signed_by_machine};
use super::problem::{Refused, refuse};
use super::{Shared, body, small_body};
use crate::store::{CheckInRefusal, NewEvent, Seen};

pub fn machine_name(text: &str) -> Result<MachineName, Refused> {
    text.parse().map_err(|error: muster_protocol::ids::IdError| Refused::malformed(error.to_string()))
}

pub async fn enrol(
    State(app): State<Shared>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<EnrolReply>, Refused> {
    let body = small_body(&headers, body, MAX_ENROL_BYTES).await?;
    let request: EnrolRequest = body::json("an enrolment", &body)?;
    if !app.roots.current().knows(&request.root) {
        let message = "the token names a root that this controller does not serve: use a token of this fleet, made with `muster machines add`";
        return Err(refuse(StatusCode::NOT_FOUND, ProblemCode::TokenUnknown, message));
    }
    let cursor = app.store.enrol(&request, app.now()).await?;
    tracing::info!(machine = %request.machine, key = request.key.short(), "enrolled");
    app.wakers.wake(&request.machine);
    app.changed(cursor);
    Ok(Json(EnrolReply { machine: request.machine }))
}

pub async fn check_in(
    State(app): State<Shared>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<CheckInReply>, Refused> {
    let signature = machine_signature(&headers)?;
    let body = small_body(&headers, body, MAX_CHECKIN_BYTES).await?;
    let checkin: CheckIn = body::json("a check-in", &body)?;
    let known = signed_by_machine(&app, &checkin.machine, Context::CheckIn, &body, &signature).await?;
    let fleet = app.roots.current().fleet();
    if checkin.audience != fleet {
        let message = format!(
            "this check-in is for fleet {}, and this controller serves {}: enrol the machine with a token of this fleet",
            checkin.audience.short(),
            fleet.short()
        );
        return Err(refuse(StatusCode::FORBIDDEN, ProblemCode::Unauthorised, message));
    }
    if checkin.class != known.class {
        let message = format!(
            "{} is enrolled as a {} machine and says that it is {}: enrol it anew with --class {}",
            checkin.machine, known.class, checkin.class, checkin.class
        );
        return Err(refuse(StatusCode::FORBIDDEN, ProblemCode::WrongClass, message));
    }
    let seen = Seen {
        checkin: &checkin,
        body: &body,
        key: &known.key,
        signature: &signature,
        now: app.now(),
        poll_seconds: app.limits.poll_seconds,
    };
    match app.store.check_in(seen).await {
        Ok(answer) => {
            answer.cursor.into_iter().for_each(|cursor| app.changed(cursor));
            Ok(Json(answer.reply))
        }
        Err(refusal) => {
            if let CheckInRefusal::Sequence { machine, seq, last, cursor } = &refusal {
                tracing::warn!(%machine, seq, last, "clone alarm: a check-in with a number that was used");
                app.changed(*cursor);
            }
            Err(refusal.into())
        }
    }
}

/// A batch with each event as it came.
#[derive(Deserialize)]
pub struct RawBatch {
    pub machine: MachineName,
    pub oldest: u64,
    pub events: Vec<Box<RawValue>>,
}

/// What must be known of every event, of whatever version.
#[derive(Deserialize)]
pub struct Numbered {
    pub seq: u64,
    #[serde(default)]
    pub generation: Option<Generation>,
}

pub async fn reports(
    State(app): State<Shared>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Accepted>, Refused> {
    let signature = machine_signature(&headers)?;
    let body = small_body(&headers, body, MAX_BATCH_BYTES).await?;
    let batch: RawBatch = body::json("a batch of events", &body)?;
    let known = signed_by_machine(&app, &batch.machine, Context::Reports, &body, &signature).await?;
    if batch.events.len() > MAX_BATCH_EVENTS {
        let message =
            format!("{} events are more than {MAX_BATCH_EVENTS}: send smaller batches", batch.events.len());
        return Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, ProblemCode::TooLarge, message));
    }
    let mut events = Vec::with_capacity(batch.events.len());
    for raw in batch.events {
        let raw = raw.get();
        let Numbered { seq, generation } = body::json("an event", raw.as_bytes())?;
        events.push(NewEvent { seq, generation, raw: raw.to_owned() });
    }
    let stored = app.store.report(&batch.machine, &known.key, batch.oldest, &events, app.now()).await?;
    stored.cursor.into_iter().for_each(|cursor| app.changed(cursor));
    Ok(Json(Accepted { through: stored.through }))
}

#[derive(Deserialize)]
pub struct Poll {
    #[serde(default)]
    have: u64,
    #[serde(default)]
    wait: u64,
}

/// Answers at once when the latest generation is another one than the machine has, else when it becomes so, or after
/// the wait. A bearer that ends while it waits ends the poll.
pub async fn poll(
    State(app): State<Shared>,
    Path(name): Path<String>,
    Query(poll): Query<Poll>,
    headers: HeaderMap,
) -> Result<Json<PollReply>, Refused> {
    let machine = machine_name(&name)?;
    app.is_machine(&headers, &machine).await?;
    app.store.seen(&machine, app.now()).await?;
    let timeout = tokio::time::sleep(Duration::from_secs(poll.wait.min(MAX_POLL_SECONDS)));
    tokio::pin!(timeout);
    let mut listener = app.wakers.listen(&machine);
    let mut last_look = false;
    loop {
        let generation = app.store.latest(&machine).await?;
        if last_look || generation.map_or(0, Generation::get) != poll.have {
            return Ok(Json(PollReply { generation }));
        }
        tokio::select! {
            () = listener.woken() => app.is_machine(&headers, &machine).await?,
            () = &mut timeout => last_look = true,
            () = app.stopped() => last_look = true,
        }
    }
}
