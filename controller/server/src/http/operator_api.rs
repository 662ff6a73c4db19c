//! What operators ask, each request signed by one of them.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use muster_protocol::api::{MAX_POLL_SECONDS, ProblemCode};
use muster_protocol::audit::{MAX_PAGE, Page};
use muster_protocol::ids::{Generation, IdError, MachineName};
use muster_protocol::operator::{
    AddMachine, AttackView, Changes as Changed, HistoryEntry, MachineView, SESSION_SECONDS, Session,
};
use muster_protocol::request::SignedRequest;
use serde::Deserialize;

use super::asking::{away, forget};
use super::auth::Signed;
use super::body;
use super::heavy::Long;
use super::machine_api::machine_name;
use super::memory::Payer;
use super::problem::{Refused, refuse};
use super::{App, Shared};
use crate::fleet;
use crate::store::Refusal;

/// How many generations a history shows unless asked, and at most.
const HISTORY: u32 = 20;
const MAX_HISTORY: u32 = 200;

pub async fn session(State(app): State<Shared>, signed: Signed) -> Result<Json<Session>, Refused> {
    let bearer = app.store.open_session(&signed.deed(), app.now_s()).await?;
    Ok(Json(Session { bearer, expires_in: SESSION_SECONDS }))
}

pub async fn machines(State(app): State<Shared>, _: Signed) -> Result<Long<Vec<MachineView>>, Refused> {
    let now = app.now();
    let machines = app.store.machines().await?;
    Ok(Long(machines.into_iter().map(|machine| fleet::view(machine, app.limits.poll_seconds, now)).collect()))
}

pub async fn machine(
    State(app): State<Shared>,
    Path(name): Path<String>,
    _: Signed,
) -> Result<Json<MachineView>, Refused> {
    view(&app, &machine_name(&name)?).await
}

pub async fn add(State(app): State<Shared>, signed: Signed) -> Result<Json<MachineView>, Refused> {
    let new: AddMachine = body::json("a new machine", &signed.body)?;
    if new.system.class() != new.class {
        let message =
            format!("a {} machine does not build {}: correct the class or the system", new.class, new.system);
        return Err(refuse(StatusCode::UNPROCESSABLE_ENTITY, ProblemCode::WrongClass, message));
    }
    if new.expires <= app.now_s() {
        let message = "the token would have expired already: see that your clock is right and make another";
        return Err(refuse(StatusCode::UNPROCESSABLE_ENTITY, ProblemCode::TokenExpired, message));
    }
    let cursor = app.store.add_machine(&new, &signed.deed()).await?;
    tracing::info!(machine = %new.machine, operator = signed.key.short(), "a token was made");
    app.changed(cursor);
    view(&app, &new.machine).await
}

pub async fn revoke(
    State(app): State<Shared>,
    Path(name): Path<String>,
    signed: Signed,
) -> Result<Json<MachineView>, Refused> {
    let machine = machine_name(&name)?;
    let cursor = app.store.revoke(&machine, &signed.deed()).await?;
    tracing::info!(%machine, operator = signed.key.short(), "revoked");
    forget(&Payer::Machine(machine.clone()));
    app.wakers.wake(&machine);
    app.changed(cursor);
    view(&app, &machine).await
}

#[derive(Deserialize)]
pub struct Limit {
    limit: Option<u32>,
    /// Only generations before this one.
    before: Option<String>,
}

pub async fn history(
    State(app): State<Shared>,
    Path(name): Path<String>,
    Query(Limit { limit, before }): Query<Limit>,
    _: Signed,
) -> Result<Long<Vec<HistoryEntry>>, Refused> {
    let machine = machine_name(&name)?;
    known(&app, &machine).await?;
    let limit = limit.unwrap_or(HISTORY).min(MAX_HISTORY);
    let before: Option<Generation> = match before {
        None => None,
        Some(text) => {
            let read = text.parse();
            Some(read.map_err(|error: IdError| Refused::malformed(format!("before={text}: {error}")))?)
        }
    };
    Ok(Long(app.store.history(&machine, before, limit).await?))
}

/// The attacks that a machine refused, the newest first.
pub async fn attacks(
    State(app): State<Shared>,
    Path(name): Path<String>,
    Query(Limit { limit, .. }): Query<Limit>,
    _: Signed,
) -> Result<Long<Vec<AttackView>>, Refused> {
    let machine = machine_name(&name)?;
    known(&app, &machine).await?;
    Ok(Long(app.store.attacks(&machine, limit.unwrap_or(HISTORY).min(MAX_HISTORY)).await?))
}

/// Ends a clone alarm.
pub async fn acknowledge(
    State(app): State<Shared>,
    Path(name): Path<String>,
    signed: Signed,
) -> Result<Json<MachineView>, Refused> {
    let machine = machine_name(&name)?;
    let cursor = app.store.acknowledge(&machine, &signed.deed()).await?;
    tracing::info!(%machine, operator = signed.key.short(), "the clone alarm was ended");
    app.changed(cursor);
    view(&app, &machine).await
}

/// Hands a request on to a machine. The machine checks it once more, by the root that it trusts.
pub async fn ask(
    State(app): State<Shared>,
    Path(name): Path<String>,
    signed: Signed,
) -> Result<Json<MachineView>, Refused> {
    let machine = machine_name(&name)?;
    let asked: SignedRequest = body::json("a request to a machine", &signed.body)?;
    let chain = app.roots.current();
    let operators = chain.operators();
    let request = asked.verify(&chain.fleet(), &machine, &operators, app.now_s()).map_err(|error| {
        let message = format!("the machine would refuse this: {error}; sign it anew");
        refuse(StatusCode::UNPROCESSABLE_ENTITY, ProblemCode::BadSignature, message)
    })?;
    let cursor = app.store.ask(&asked, &request, &signed.deed()).await?;
    tracing::info!(%machine, operator = signed.key.short(), asks = request.asked.as_str(), "a request waits for a machine");
    app.wakers.wake(&machine);
    app.changed(cursor);
    view(&app, &machine).await
}

#[derive(Deserialize)]
pub struct Log {
    #[serde(default)]
    after: u64,
    limit: Option<u32>,
}

/// The audit log, from an entry on.
pub async fn audit(
    State(app): State<Shared>,
    Query(Log { after, limit }): Query<Log>,
    _: Signed,
) -> Result<Long<Page>, Refused> {
    Ok(Long(app.store.audit(after, limit.unwrap_or(MAX_PAGE).min(MAX_PAGE)).await?))
}

#[derive(Deserialize)]
pub struct Changes {
    #[serde(default)]
    after: u64,
    #[serde(default)]
    wait: u64,
}

/// Waits until anything that any machine did was stored, or an operator changed something.
pub async fn changes(
    State(app): State<Shared>,
    Query(changes): Query<Changes>,
    _: Signed,
) -> Result<Json<Changed>, Refused> {
    let mut cursor = app.cursor.subscribe();
    let wait = Duration::from_secs(changes.wait.min(MAX_POLL_SECONDS));
    let news = async {
        tokio::select! {
            // Another one, not a higher one: a restored database may stand behind what the operator saw.
            _ = cursor.wait_for(|cursor| *cursor != changes.after) => {}
            () = tokio::time::sleep(wait) => {}
            () = app.stopped() => {}
        }
    };
    away(news).await;
    let cursor = *cursor.borrow();
    Ok(Json(Changed { cursor }))
}

pub async fn known(app: &App, name: &MachineName) -> Result<crate::store::Machine, Refused> {
    let machine = app.store.machine(name).await?;
    machine.ok_or_else(|| Refusal::Unknown(name.clone()).into())
}

pub async fn view(app: &App, name: &MachineName) -> Result<Json<MachineView>, Refused> {
    let machine = known(app, name).await?;
    Ok(Json(fleet::view(machine, app.limits.poll_seconds, app.now())))
}
