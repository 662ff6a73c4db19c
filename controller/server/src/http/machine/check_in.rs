//! The check-in: what a machine runs and holds, with its signature.

use axum::Json;
use axum::extract::State;
use muster_protocol::api;
use muster_protocol::checkin::{CheckIn, CheckInReply, MAX_CHECKIN_BYTES};
use muster_protocol::ids::MachineName;
use muster_protocol::keys::{Context, PublicKey};

use crate::core::checkin::{CheckInRefusal, ReceivedCheckIn, require_own};
use crate::http::auth::machine::{FromMachine, MachineDocument};
use crate::http::body::Document;
use crate::http::payer::Payer;
use crate::http::problem::Refused;
use crate::http::request_peer::forget;
use crate::http::state::Shared;

impl Document for CheckIn {
    const WHAT: &'static str = "a check-in";
    const LIMIT: usize = MAX_CHECKIN_BYTES;
}

impl MachineDocument for CheckIn {
    const PATH: &'static str = api::CHECKIN;
    const CONTEXT: Context = Context::CheckIn;

    fn machine(&self) -> &MachineName {
        &self.machine
    }
    fn new_key(&self) -> Option<&PublicKey> {
        self.new_key.as_ref()
    }
}

pub async fn check_in(
    State(app): State<Shared>,
    request: FromMachine<CheckIn>,
) -> Result<Json<CheckInReply>, Refused> {
    let FromMachine { sent: checkin, bytes: body, known, signature } = request;
    require_own(&checkin, app.services.roots.current().fleet(), known.class)?;
    let received = ReceivedCheckIn {
        checkin: &checkin,
        body: &body,
        key: &known.key,
        signature: &signature,
        now: app.services.now(),
        poll_seconds: app.services.limits.poll_seconds,
    };
    let answer = app.services.store.check_in(&received).await?;
    answer.cursor.into_iter().for_each(|cursor| app.services.notify.changed(cursor));
    match answer.answer {
        Ok(reply) => {
            if checkin.new_key.is_some() {
                forget(&Payer::Machine(checkin.machine.clone()));
            }
            Ok(Json(reply))
        }
        Err(refusal) => {
            if let CheckInRefusal::Sequence { machine, seq, last, .. } = &refusal {
                tracing::debug!(%machine, seq, last, "a check-in with a used number");
            }
            Err(refusal.into())
        }
    }
}
