//! Publishing a generation: checked as the machine will check it, then stored with its timestamp.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use muster_protocol::api::ProblemCode;
use muster_protocol::ids::MachineName;
use muster_protocol::machine::can_take;
use muster_protocol::operator::{MachineView, Publication, Standing};
use muster_protocol::tuf::metadata::Role;
use muster_protocol::tuf::repository::{check_publication, signed_by};

use super::view::{known, view};
use crate::core::publication::{NewGeneration, PublishRefusal};
use crate::http::auth::operator::Signed;
use crate::http::body::Document;
use crate::http::problem::{Refused, refuse};
use crate::http::refusals::unacceptable;
use crate::http::state::Shared;

impl Document for Publication {
    const WHAT: &'static str = "a signed generation";
}

pub async fn publish(
    State(app): State<Shared>,
    signed: Signed<Publication, MachineName>,
) -> Result<Json<MachineView>, Refused> {
    let (name, publication) = (&signed.on, &signed.sent);
    let machine = known(&app, name).await?;
    if machine.standing() == Standing::Revoked {
        return Err(PublishRefusal::Revoked(name.clone()).into());
    }
    let now = app.services.now_s();
    let chain = app.services.roots.current();
    let checked = check_publication(chain.newest(), name, machine.class, publication, now)
        .map_err(|error| unacceptable(&error))?;
    let signers = signed_by(&publication.targets, &chain.newest().keys_of(Role::Targets))
        .map_err(|error| unacceptable(&error))?;
    // Invariant I6 holds for the CPU too, which the signed metadata does not know.
    can_take((machine.class, &machine.system), checked.target.class, &checked.target.system).map_err(
        |error| {
            let message = format!("{name} cannot take this generation: {error}");
            refuse(StatusCode::UNPROCESSABLE_ENTITY, ProblemCode::WrongClass, message)
        },
    )?;
    let new = NewGeneration {
        machine: name,
        class: machine.class,
        system: &machine.system,
        publication,
        target_sha256: &checked.target_sha256,
        expires: checked.targets_expires,
        signers: &signers,
    };
    let signer = app.services.signer()?;
    let sign = |last, snapshot: &[u8]| signer.timestamp(name, snapshot, last, now);
    if let Some(cursor) = app.services.store.publish(&new, &signed.audit_context(), sign).await? {
        tracing::info!(machine = %name, generation = %publication.generation, operator = signed.by.short(), "published");
        app.services.wakers.wake(name);
        app.services.notify.changed(cursor);
    }
    view(&app, name).await
}
