//! Adding, listing and revoking machines.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use muster_protocol::ids::MachineName;
use muster_protocol::operator::{
    AddMachine, AddMachines, MAX_CHANGED, MachineSummary, MachineView, MachinesAdded, Readmit,
};
use serde::Deserialize;
use utoipa::ToSchema;

use super::view::view;
use crate::core::condition;
use crate::core::machines::{require_each_once, require_usable};
use crate::http::auth::operator::Signed;
use crate::http::body::Document;
use crate::http::heavy::{self, Each};
use crate::http::payer::Payer;
use crate::http::problem::Refused;
use crate::http::request_peer::{forget, regardless};
use crate::http::state::{App, Shared};
use crate::store::Keys;

impl Document for AddMachine {
    const WHAT: &'static str = "a new machine";
}

impl Document for AddMachines {
    const WHAT: &'static str = "a list of new machines";
}

impl Document for Readmit {
    const WHAT: &'static str = "a machine to admit by its key";
}

/// Which machines are listed: those that changed after a cursor, or all of them. And how much of each.
#[derive(Deserialize, ToSchema)]
pub struct Listed {
    #[serde(default)]
    after: u64,
    #[serde(default)]
    instance: Option<String>,
    #[serde(default)]
    #[schema(inline)]
    fields: Fields,
}

#[derive(Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
enum Fields {
    #[default]
    All,
    Summary,
}

pub async fn list(
    State(app): State<Shared>,
    Query(listed): Query<Listed>,
    _: Signed,
) -> Result<Listing, Refused> {
    let changed = app.services.notify.since(listed.instance.as_deref(), listed.after, MAX_CHANGED);
    let (fields, changed) = (listed.fields, changed.as_deref());
    let list = match (fields, changed) {
        // Whoever follows the fleet asks for it.
        (Fields::Summary, None) => app.summaries.get(Box::pin(written(&app, fields, None))).await?,
        _ => written(&app, fields, changed).await?,
    };
    Ok(Listing(heavy::Written(list).into_response()))
}

/// The list of these machines, or of all, as JSON.
async fn written(app: &App, fields: Fields, of: Option<&[MachineName]>) -> Result<Bytes, Refused> {
    let (store, now, poll) = (&app.services.store, app.services.now(), app.services.limits.poll_seconds);
    let keys = match fields {
        Fields::All => Keys::Parsed,
        Fields::Summary => Keys::Left,
    };
    let machines = match of {
        Some(names) => store.machines_named(names, keys).await?,
        None => store.machines(keys).await?,
    };
    let views = machines.into_iter().map(|machine| condition::view(machine, poll, now));
    match fields {
        Fields::All => heavy::written(&Each::of(views)),
        Fields::Summary => heavy::written(&Each::of(views.map(MachineSummary::from))),
    }
}

/// A list of [`MachineView`], or of [`MachineSummary`], which has some of its fields.
pub struct Listing(Response);

impl IntoResponse for Listing {
    fn into_response(self) -> Response {
        self.0
    }
}

pub async fn show(
    State(app): State<Shared>,
    Signed { on: name, .. }: Signed<(), MachineName>,
) -> Result<Json<MachineView>, Refused> {
    view(&app, &name).await
}

pub async fn add(
    State(app): State<Shared>,
    signed: Signed<AddMachine>,
) -> Result<Json<MachineView>, Refused> {
    let new = &signed.sent;
    require_usable(new, app.services.now_s())?;
    app.services.store.add_machine(new, &signed.audit_context()).await?;
    tracing::info!(machine = %new.machine, operator = signed.by.short(), "a token was made");
    view(&app, &new.machine).await
}

/// Adds many machines, or none of them.
pub async fn add_all(
    State(app): State<Shared>,
    signed: Signed<AddMachines>,
) -> Result<Json<MachinesAdded>, Refused> {
    let new = &signed.sent.machines;
    require_each_once(new)?;
    let now = app.services.now_s();
    new.iter().try_for_each(|one| require_usable(one, now))?;
    app.services.store.add_machines(new, &signed.audit_context()).await?;
    tracing::info!(machines = new.len(), operator = signed.by.short(), "tokens were made");
    Ok(Json(MachinesAdded { added: new.len() }))
}

/// Admits a machine by the key that it has, which a lost database knew.
pub async fn readmit(
    State(app): State<Shared>,
    signed: Signed<Readmit, MachineName>,
) -> Result<Json<MachineView>, Refused> {
    regardless(async move {
        let machine = &signed.on;
        app.services.store.readmit(machine, &signed.sent, &signed.audit_context()).await?;
        tracing::info!(%machine, operator = signed.by.short(), "admitted by its key");
        forget(&Payer::Machine(machine.clone()));
        app.services.wakers.wake(machine);
        view(&app, machine).await
    })
    .await
}

pub async fn revoke(
    State(app): State<Shared>,
    signed: Signed<(), MachineName>,
) -> Result<Json<MachineView>, Refused> {
    regardless(async move {
        let machine = &signed.on;
        app.services.store.revoke(machine, &signed.audit_context()).await?;
        tracing::info!(%machine, operator = signed.by.short(), "revoked");
        forget(&Payer::Machine(machine.clone()));
        app.services.wakers.wake(machine);
        view(&app, machine).await
    })
    .await
}

/// Ends a clone alarm.
pub async fn acknowledge(
    State(app): State<Shared>,
    signed: Signed<(), MachineName>,
) -> Result<Json<MachineView>, Refused> {
    let machine = &signed.on;
    app.services.store.acknowledge(machine, &signed.audit_context()).await?;
    tracing::info!(%machine, operator = signed.by.short(), "the clone alarm was ended");
    view(&app, machine).await
}
