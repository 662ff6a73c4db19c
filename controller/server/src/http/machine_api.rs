//! What machines send and ask: enrolment, check-in, reports, and the long poll.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use muster_protocol::api::{self, MAX_POLL_SECONDS, ProblemCode};
use muster_protocol::checkin::{CheckIn, CheckInReply, MAX_CHECKIN_BYTES, PollReply};
use muster_protocol::enrol::{EnrolReply, EnrolRequest, MAX_ENROL_BYTES};
use muster_protocol::ids::{Generation, IdError, MachineName};
use muster_protocol::keys::{Context, PublicKey, Signature};
use muster_protocol::report::{Accepted, MAX_BATCH_BYTES, MAX_BATCH_EVENTS, Stream};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::asking::{away, forget, proved, stranger};
use super::auth::{
    admit, announced, fits, known_machine, machine_signature, new_signature, not_by_its_key,
    signed_by_machine,
};
use super::heavy;
use super::memory::Payer;
use super::problem::{Refused, refuse};
use super::{Shared, body, small_body};
use crate::store::{CheckInRefusal, Known, NewEvent, Seen, cut};

/// What the smallest event counts for: a row has more than its text.
const LEAST_CHARGED: usize = 256;

pub fn machine_name(text: &str) -> Result<MachineName, Refused> {
    text.parse().map_err(|error: muster_protocol::ids::IdError| Refused::malformed(error.to_string()))
}

pub async fn enrol(
    State(app): State<Shared>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<EnrolReply>, Refused> {
    let body = small_body(&app, &headers, body, MAX_ENROL_BYTES, stranger()).await?;
    let request: EnrolRequest = body::json("an enrolment", &body)?;
    if !app.roots.current().knows(&request.root) {
        let message = "the token names a root that this controller does not serve: use a token of this fleet, made with `muster machines add`";
        return Err(refuse(StatusCode::NOT_FOUND, ProblemCode::TokenUnknown, message));
    }
    let cursor = app.store.enrol(&request, app.now()).await?;
    tracing::info!(machine = %request.machine, key = request.key.short(), "enrolled");
    app.wakers.wake(&request.machine);
    app.changed(cursor);
    let payer = Payer::Machine(request.machine.clone());
    // Whoever had the key before may hold all the connections that a machine may have.
    forget(&payer);
    proved(&payer).await?;
    Ok(Json(EnrolReply { machine: request.machine }))
}

pub async fn check_in(
    State(app): State<Shared>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<CheckInReply>, Refused> {
    let signature = machine_signature(&headers)?;
    let (payer, hash) = announced(&app, &headers, api::CHECKIN).await?;
    let body = small_body(&app, &headers, body, MAX_CHECKIN_BYTES, payer).await?;
    fits(hash.as_ref(), &body)?;
    let checkin: CheckIn = body::json("a check-in", &body)?;
    let (known, signature) = match checkin.new_key {
        None => {
            (signed_by_machine(&app, &checkin.machine, Context::CheckIn, &body, &signature).await?, signature)
        }
        Some(new) => signed_by_both(&app, &checkin.machine, &new, &headers, &body, &signature).await?,
    };
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
            if checkin.new_key.is_some() {
                forget(&Payer::Machine(checkin.machine.clone()));
            }
            answer.cursor.into_iter().for_each(|cursor| app.changed(cursor));
            Ok(Json(answer.reply))
        }
        Err(refusal) => {
            if let CheckInRefusal::Sequence { machine, seq, last, cursor } = &refusal {
                tracing::debug!(%machine, seq, last, "a check-in with a number that was used");
                app.changed(*cursor);
            }
            Err(refusal.into())
        }
    }
}

/// A check-in that brings a new key is signed by the old one and by the new one. Once the new one is in force its own
/// signature is enough: the machine did not hear that it is, and says it again.
async fn signed_by_both(
    app: &Shared,
    machine: &MachineName,
    new: &PublicKey,
    headers: &HeaderMap,
    body: &[u8],
    by_old: &Signature,
) -> Result<(Known, Signature), Refused> {
    let by_new = new_signature(headers)?;
    let known = known_machine(app, machine).await?;
    new.verify(Context::KeyRotation, body, &by_new).map_err(|_| not_by_its_key(machine))?;
    if known.key != *new {
        known.key.verify(Context::CheckIn, body, by_old).map_err(|_| not_by_its_key(machine))?;
    }
    admit(app, machine, &known).await?;
    Ok((known, by_new))
}

/// A batch with each event as it came.
#[derive(Deserialize)]
pub struct RawBatch {
    pub machine: MachineName,
    #[serde(default)]
    pub stream: Option<Stream>,
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

/// The events of a batch as they are stored, and what they count for.
fn events(batch: &[Box<RawValue>]) -> Result<(Vec<NewEvent>, usize), Refused> {
    let (mut events, mut size) = (Vec::with_capacity(batch.len()), 0);
    for raw in batch {
        let raw = raw.get();
        let Numbered { seq, generation } = body::json("an event", raw.as_bytes())?;
        let raw = cut(raw);
        size += raw.len().max(LEAST_CHARGED);
        events.push(NewEvent { seq, generation, raw });
    }
    Ok((events, size))
}

pub async fn reports(
    State(app): State<Shared>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Accepted>, Refused> {
    let signature = machine_signature(&headers)?;
    let (payer, hash) = announced(&app, &headers, api::REPORTS).await?;
    let body = small_body(&app, &headers, body, MAX_BATCH_BYTES, payer).await?;
    fits(hash.as_ref(), &body)?;
    let batch: RawBatch = body::json("a batch of events", &body)?;
    let known = signed_by_machine(&app, &batch.machine, Context::Reports, &body, &signature).await?;
    if batch.events.len() > MAX_BATCH_EVENTS {
        let message =
            format!("{} events are more than {MAX_BATCH_EVENTS}: send smaller batches", batch.events.len());
        return Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, ProblemCode::TooLarge, message));
    }
    let (events, size) = heavy::on(body.len(), || events(&batch.events))?;
    app.rates.reports(&batch.machine, size).map_err(|wait| {
        Refused::too_many(&format!("machine {}, by the size of its events,", batch.machine), wait)
    })?;
    let count = (batch.stream, batch.oldest);
    let keep = u64::from(app.limits.event_mib) * 1024 * 1024;
    let stored = app.store.report(&batch.machine, &known.key, (count, keep), &events, app.now()).await?;
    stored.cursor.into_iter().for_each(|cursor| app.changed(cursor));
    Ok(Json(Accepted { through: stored.through, stream: batch.stream }))
}

#[derive(Deserialize)]
pub struct Poll {
    /// None where it is 0, or missing.
    have: Option<String>,
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
    let have = match poll.have.as_deref() {
        None | Some("" | "0") => None,
        Some(text) => Some(text.parse().map_err(|error: IdError| Refused::malformed(error.to_string()))?),
    };
    app.is_machine(&headers, &machine).await?;
    app.store.seen(&machine, app.now()).await?;
    let timeout = tokio::time::sleep(Duration::from_secs(poll.wait.min(MAX_POLL_SECONDS)));
    tokio::pin!(timeout);
    let mut listener = app.wakers.listen(&machine).ok_or_else(|| {
        Refused::too_many(&format!("machine {machine}"), Duration::from_secs(app.limits.poll_seconds))
    })?;
    let mut last_look = false;
    loop {
        let (generation, check_in) = app.store.news(&machine).await?;
        if last_look || check_in || generation != have {
            return Ok(Json(PollReply { generation, check_in }));
        }
        let news = async {
            tokio::select! {
                () = listener.woken() => true,
                () = &mut timeout => false,
                () = app.stopped() => false,
            }
        };
        if away(news).await {
            app.is_machine(&headers, &machine).await?;
        } else {
            last_look = true;
        }
    }
}
