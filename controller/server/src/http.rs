//! The controller's HTTP API: its routes, and the layers that every request passes through.
//!
//! - `machine`, `operator`, `cache` and `public` hold the handlers, one file per subject. A handler's types
//!   say who must have sent the request and what it holds.
//! - `auth`, `path` and `body` are those types: who sent it, what the path names, what the body says.
//! - `problem` is the one form of a refusal, and `refusals` maps each refusal of the other modules to its
//!   status and code.
//! - `request_peer` knows who sent the request being handled; `connection` accepts peers and schedules their
//!   turns; `memory` charges each `payer` for bodies, and `answers` for responses; `heavy` runs CPU-heavy
//!   work.
//! - `spread` moves each `Retry-After`, so that those who are told the same do not come back together.
//! - `watched` is what those who watch the controller ask: its health, its metrics, a log with request IDs.
//! - `state` is shared by every request.

mod answers;
mod auth;
mod body;
mod cache;
pub(crate) mod connection;
mod heavy;
mod machine;
mod memory;
mod operator;
mod path;
mod payer;
mod problem;
mod public;
mod refusals;
mod request_peer;
mod spread;
pub(crate) mod state;
mod watched;

/// Parsers of network input outside the protocol crate, for the fuzz targets.
#[doc(hidden)]
pub mod readers {
    pub use super::auth::bearer::bearer;
    pub use super::auth::machine::machine_signature;
    pub use super::auth::operator::operator_signature;
    pub use super::auth::sign_in::sign_in;
    pub use super::machine::reports::{Numbered, RawBatch};
}

use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use futures_util::future::BoxFuture;
use muster_protocol::api::{self, ProblemCode};
use tower::Service as _;

use cache::{read, upload};
use machine::{check_in, enrol, poll, reports, tuf};
use operator::{audit, changes, drafts, history, machines, publish, requests, roots, session};
use problem::{Refused, refuse};
use request_peer::Asked;
use state::Shared;
use tracing::Instrument as _;
use watched::Access;

use crate::rates::Neighbourhood;

/// How long a "too many" refusal is delayed.
const LATE: Duration = Duration::from_secs(1);

pub fn router(app: Shared) -> Router {
    let of_machines = api::OPERATOR_MACHINES;
    Router::new()
        .route(api::FLEET, get(public::fleet))
        .route("/v1/root/{file}", get(public::root))
        .route(api::ENROL, post(enrol::enrol))
        .route(api::CHECKIN, post(check_in::check_in))
        .route(api::REPORTS, post(reports::reports))
        .route("/v1/machines/{name}/poll", get(poll::poll))
        .route("/v1/machines/{name}/tuf/{file}", get(tuf::metadata))
        .route("/v1/machines/{name}/tuf/targets/{of}/{file}", get(tuf::target))
        .route("/cache/nix-cache-info", get(read::info))
        .route("/cache/{file}", get(read::narinfo).put(upload::narinfo))
        .route("/cache/nar/{file}", get(read::nar).put(upload::nar))
        .route(api::OPERATOR_SESSION, post(session::session))
        .route(api::OPERATOR_CHANGES, get(changes::changes))
        .route(of_machines, get(machines::list).post(machines::add))
        .route(api::OPERATOR_INVITATIONS, post(machines::add_all))
        .route(&format!("{of_machines}/{{name}}"), get(machines::show))
        .route(&format!("{of_machines}/{{name}}/revoke"), post(machines::revoke))
        .route(&format!("{of_machines}/{{name}}/generations"), post(publish::publish))
        .route(&format!("{of_machines}/{{name}}/history"), get(history::history))
        .route(&format!("{of_machines}/{{name}}/attacks"), get(history::attacks))
        .route(&format!("{of_machines}/{{name}}/acknowledge"), post(machines::acknowledge))
        .route(&format!("{of_machines}/{{name}}/requests"), post(requests::ask))
        .route(api::OPERATOR_AUDIT, get(audit::audit))
        .route(api::OPERATOR_ROOT, post(roots::publish))
        .route(api::OPERATOR_DRAFTS, get(drafts::list).post(drafts::keep))
        .route(&format!("{}/{{id}}", api::OPERATOR_DRAFTS), get(drafts::show))
        .route(&format!("{}/{{id}}/drop", api::OPERATOR_DRAFTS), post(drafts::drop))
        .route(api::HEALTH, get(watched::healthz))
        .route(api::READY, get(watched::readyz))
        .fallback(nothing_here)
        .method_not_allowed_fallback(other_method)
        .layer(middleware::from_fn_with_state(app.clone(), outermost))
        .with_state(app)
}

/// What is served where Prometheus scrapes.
pub fn watched_router(app: Shared) -> Router {
    Router::new()
        .route(api::METRICS, get(watched::metrics))
        .route(api::HEALTH, get(watched::healthz))
        .route(api::READY, get(watched::readyz))
        .fallback(nothing_here)
        .with_state(app)
}

async fn nothing_here() -> Refused {
    Refused::not_found(
        "there is nothing at this address: see that the controller and this program are of one version",
    )
}

async fn other_method() -> Refused {
    let message =
        "this address does not take this method: see that the controller and this program are of one version";
    refuse(StatusCode::METHOD_NOT_ALLOWED, ProblemCode::NotFound, message)
}

/// What every request passes through: gives it its ID, logs and counts it. Those who are told to come later
/// come back at different times.
///
/// Not an `async fn`: that would keep room for the request for as long as it is being answered.
fn outermost(State(app): State<Shared>, request: Request, mut next: Next) -> BoxFuture<'static, Response> {
    let (access, caller) = (Access::new(&request, &*app.services.clock), spread::caller(&request));
    let answering = request_peer::answering(request, move |request| next.call(request));
    Box::pin(async move {
        let answered = async {
            let (response, asked) = answering.await;
            charged(&app, response, asked).await
        };
        let mut response = answered.instrument(access.span()).await;
        spread::out(&mut response, caller);
        access.answered(&mut response, &*app.services.clock);
        response
    })
}

/// Charges unauthenticated requests to their address, and gives every refusal the same form, including the
/// framework's.
async fn charged(app: &Shared, response: Response, asked: Asked) -> Response {
    if let Asked::Stranger(peer) = &asked
        && let Err(wait) = app.rates.address(Neighbourhood::of(peer.address()))
    {
        return late(Refused::too_many("this address", wait).into_response()).await;
    }
    if response.status() == StatusCode::TOO_MANY_REQUESTS {
        return late(response).await;
    }
    if !response.status().is_client_error() && !response.status().is_server_error() {
        return match asked {
            Asked::By(who) => answers::charged(&app.memory, response, who).await,
            _ => response,
        };
    }
    let kind = response.headers().get(header::CONTENT_TYPE);
    if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json")) {
        return response;
    }
    in_one_form(response).await
}

/// Delays the refusal of a client that sends too much: over one connection it is refused at most once in that
/// time.
async fn late(response: Response) -> Response {
    tokio::time::sleep(LATE).await;
    response
}

async fn in_one_form(response: Response) -> Response {
    let status = response.status();
    let text = match axum::body::to_bytes(response.into_body(), 4096).await {
        Ok(bytes) if !bytes.is_empty() => String::from_utf8_lossy(&bytes).into_owned(),
        _ => format!("the controller refuses this request ({status})"),
    };
    refuse(status, ProblemCode::Malformed, text).into_response()
}
