//! The check-in: what a machine runs and holds, signed by it or proved by its session.

use axum::Json;
use axum::extract::State;
use muster_protocol::api;
use muster_protocol::checkin::{CheckIn, CheckInReply, MAX_CHECKIN_BYTES};
use muster_protocol::ids::MachineName;
use muster_protocol::keys::{Context, PublicKey};

use crate::core::checkin::{CheckInRefusal, require_own};
use crate::http::auth::machine::{FromMachine, MachineDocument};
use crate::http::body::Document;
use crate::http::payer::Payer;
use crate::http::problem::Refused;
use crate::http::request_peer::forget;
use crate::http::state::Shared;
use crate::store::Arrived;

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
    /// A session changes no key and sets up no other session.
    fn is_routine(&self) -> bool {
        self.new_key.is_none() && self.session.is_none()
    }
}

pub async fn check_in(
    State(app): State<Shared>,
    request: FromMachine<CheckIn>,
) -> Result<Json<CheckInReply>, Refused> {
    let FromMachine { sent: checkin, bytes: body, sha256: body_sha256, known, signature } = request;
    require_own(&checkin, app.services.roots.fleet(), known.class)?;
    let brings_key = checkin.new_key.as_ref().map(|_| checkin.machine.clone());
    let vouches = vouches(&app, &checkin).await?;
    let arrived = Box::new(Arrived {
        checkin,
        body,
        body_sha256,
        key: known.key,
        signature,
        now: app.services.now(),
        poll_seconds: app.services.limits.poll_seconds,
        log: app.services.store.newest_entry(),
        vouches,
        seals: app.services.keyring.keys().seals.clone(),
    });
    match app.services.store.check_in(arrived).await? {
        Ok(reply) => {
            brings_key.into_iter().for_each(|machine| forget(&Payer::Machine(machine)));
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

/// Whether what the machine says of a plan is signed by the key that the plan has of it. Anything else that
/// it says of one is left alone: it may be of a plan that this controller lost.
async fn vouches(app: &Shared, checkin: &CheckIn) -> Result<bool, Refused> {
    let Some(vouch) = &checkin.vouch else { return Ok(false) };
    let (plans, store) = (&app.services.plans, &app.services.store);
    // Its own box: few machines vouch, and every check-in keeps room for this.
    let Some(held) = Box::pin(plans.spoken_of(store, &vouch.plan)).await? else { return Ok(false) };
    Ok(plans.is_signed((vouch.plan, &held.plan), &checkin.machine, vouch.said, &vouch.signature))
}
