//! The check-in: what a machine runs and holds, signed by it.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use muster_protocol::api::{self, ProblemCode};
use muster_protocol::checkin::{CheckIn, CheckInReply, MAX_CHECKIN_BYTES};
use muster_protocol::ids::MachineName;
use muster_protocol::keys::{Context, PublicKey, Signature};

use crate::http::auth::{
    admit, announced, fits, known_machine, machine_signature, new_signature, not_by_its_key,
    signed_by_machine,
};
use crate::http::body::{self, small_body};
use crate::http::payer::Payer;
use crate::http::problem::{Refused, refuse};
use crate::http::request_peer::forget;
use crate::http::state::Shared;
use crate::store::{CheckInRefusal, Known, Seen};

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
    let fleet = app.services.roots.current().fleet();
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
        now: app.services.now(),
        poll_seconds: app.services.limits.poll_seconds,
    };
    match app.services.store.check_in(seen).await {
        Ok(answer) => {
            if checkin.new_key.is_some() {
                forget(&Payer::Machine(checkin.machine.clone()));
            }
            answer.cursor.into_iter().for_each(|cursor| app.services.notify.changed(cursor));
            Ok(Json(answer.reply))
        }
        Err(refusal) => {
            if let CheckInRefusal::Sequence { machine, seq, last, cursor } = &refusal {
                tracing::debug!(%machine, seq, last, "a check-in with a number that was used");
                app.services.notify.changed(*cursor);
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
