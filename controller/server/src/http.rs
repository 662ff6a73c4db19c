//! The controller's HTTP API: its routes, and the layers that every request passes through.
//!
//! - `machine`, `operator`, `rollouts`, `cache` and `public` hold the handlers, one file per subject. A
//!   handler's types say who must have sent the request and what it holds.
//! - `auth`, `path` and `body` are those types: who sent it, what the path names, what the body says.
//! - `problem` is the one form of a refusal, and `refusals` maps each refusal of the other modules to its
//!   status and code.
//! - `request_peer` knows who sent the request being handled; `connection` accepts peers and schedules their
//!   turns; `memory` charges each `payer` for bodies, and `answers` for responses; `heavy` runs CPU-heavy
//!   work.
//! - `unread` reads the rest of a body that was refused.
//! - `spread` moves each `Retry-After`, so that those who are told the same do not come back together.
//! - `kept` and `together` share what costs something to find.
//! - `routes` is how the table of routes is read, by the router and by `openapi`, which describes the API.
//! - `watched` is what those who watch the controller ask: its health, its metrics, a log with request IDs.
//! - `state` is shared by every request.

mod answers;
mod auth;
mod body;
mod cache;
pub(crate) mod connection;
mod heavy;
mod kept;
mod machine;
mod memory;
mod openapi;
mod operator;
mod path;
mod payer;
mod problem;
mod public;
mod refusals;
mod request_peer;
mod rollouts;
mod routes;
mod sessions;
#[cfg(test)]
mod sizes;
mod spread;
pub(crate) mod state;
mod together;
mod unread;
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

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use futures_util::future::{BoxFuture, Either, Ready, ready};
use muster_protocol::api::{self, ProblemCode};
use tower::Service as _;

use cache::{many, read, upload};
use connection::exchange::{Answers, of_router};
use machine::{check_in, enrol, poll, reports, tuf};
use operator::{
    audit, changes, collect, drafts, history, machines, publish, publish_all, requests, roots, session,
};
use problem::{Refused, refuse};
use request_peer::Asked;
use rollouts::{operator as rollout, plans};
use routes::Routes;
use state::Shared;
use tracing::Instrument as _;
use watched::Access;

use crate::rates::Neighbourhood;

/// How long a "too many" refusal is delayed.
const LATE: Duration = Duration::from_secs(1);

/// Answers what machines and operators ask.
pub fn answers(app: Shared) -> Answers {
    let router = table(Router::new())
        .fallback(nothing_here)
        .method_not_allowed_fallback(other_method)
        .with_state(app.clone());
    // Around the router, where a layer in it would have three more boxes for each request.
    Arc::new(move |request| Box::pin(outermost(app.clone(), request, router.clone())))
}

/// The API as an OpenAPI document, made anew.
pub fn described() -> serde_json::Value {
    table(routes::Operations::default()).document()
}

/// Every route, with what it is for.
fn table<R: Routes>(routes: R) -> R {
    let of_machines = api::OPERATOR_MACHINES;
    let machine = format!("{of_machines}/{{name}}");
    let draft = format!("{}/{{id}}", api::OPERATOR_DRAFTS);
    let one_rollout = format!("{}/{{plan}}", api::OPERATOR_ROLLOUTS);
    routes
        .get(api::FLEET, "The fleet's name and newest root", public::fleet)
        .get("/v1/root/{file}", "A root, N.root.json", public::root)
        .get(api::OPENAPI, "This document", openapi::openapi)
        .get(api::HEALTH, "Whether the process is alive", watched::healthz)
        .get(api::READY, "Whether it can serve requests", watched::readyz)
        .post(api::ENROL, "A machine enrols with its token", enrol::enrol)
        .post(api::CHECKIN, "A machine says what it runs and holds", check_in::check_in)
        .post(api::REPORTS, "A machine says what happened", reports::reports)
        .get("/v1/machines/{name}/poll", "Waits for another generation", poll::poll)
        .get("/v1/machines/{name}/tuf/{file}", "A machine's metadata", tuf::metadata)
        .get("/v1/machines/{name}/tuf/targets/{of}/{file}", "A machine's target", tuf::target)
        .get("/v1/plans/{plan}", "The plan of a rollout", plans::plan)
        .get("/v1/plans/{plan}/statements", "What a machine's gate is proved by", plans::said)
        .get("/cache/nix-cache-info", "What Nix asks a cache first", read::info)
        .get("/cache/{file}", "What the cache says of a store path", read::narinfo)
        .put("/cache/{file}", "Says what a store path is", upload::narinfo)
        .get("/cache/nar/{file}", "An archive of the cache", read::nar)
        .put("/cache/nar/{file}", "Uploads an archive", upload::nar)
        .post(api::CACHE_MISSING, "Which store paths the cache does not have", many::missing)
        .post(api::CACHE_PATHS, "Uploads small store paths", many::paths)
        .post(api::OPERATOR_SESSION, "A bearer for the cache", session::session)
        .get(api::OPERATOR_CHANGES, "Waits for a change of the fleet", changes::changes)
        .get(of_machines, "Every machine", machines::list)
        .post(of_machines, "A new machine, or a new token for one", machines::add)
        .post(api::OPERATOR_INVITATIONS, "New machines, or new tokens for them", machines::add_all)
        .get(&machine, "One machine", machines::show)
        .post(&format!("{machine}/revoke"), "Ends a machine's access", machines::revoke)
        .post(&format!("{machine}/readmit"), "Admits a machine by its key", machines::readmit)
        .post(&format!("{machine}/generations"), "Publishes a signed generation", publish::publish)
        .post(api::OPERATOR_GENERATIONS, "Publishes generations of many machines", publish_all::publish_all)
        .get(&format!("{machine}/history"), "What a machine ran", history::history)
        .get(&format!("{machine}/attacks"), "What a machine refused", history::attacks)
        .post(&format!("{machine}/acknowledge"), "Ends a clone alarm", machines::acknowledge)
        .post(&format!("{machine}/requests"), "Asks something of a machine", requests::ask)
        .get(api::OPERATOR_AUDIT, "A page of the audit log", audit::audit)
        .post(api::OPERATOR_AUDIT_CUT, "Cuts the audit log at an entry that was exported", audit::cut)
        .get(api::OPERATOR_COLLECT, "What the last collection of the cache's garbage found", collect::show)
        .post(api::OPERATOR_COLLECT, "Collects the cache's garbage", collect::start)
        .post(api::OPERATOR_ROOT, "Publishes the next root", roots::publish)
        .get(api::OPERATOR_DRAFTS, "What waits for signatures", drafts::list)
        .post(api::OPERATOR_DRAFTS, "Keeps a draft", drafts::keep)
        .get(&draft, "A draft", drafts::show)
        .post(&format!("{draft}/drop"), "Drops a draft", drafts::drop)
        .post(api::OPERATOR_PLANS, "Sends the plan of a rollout", rollout::send)
        .get(api::OPERATOR_ROLLOUTS, "The newest rollouts", rollout::list)
        .get(&one_rollout, "A rollout and its machines", rollout::show)
        .post(&one_rollout, "Pauses, resumes or stops a rollout", rollout::ask)
        .get(api::OPERATOR_BRAKE, "Who pulled the brake", rollout::brake)
        .post(api::OPERATOR_BRAKE, "Pulls the brake of all rollouts, or releases it", rollout::set_brake)
}

/// What is served where Prometheus scrapes.
pub fn watched_answers(app: Shared) -> Answers {
    let router = Router::new()
        .route(api::METRICS, get(watched::metrics))
        .route(api::HEALTH, get(watched::healthz))
        .route(api::READY, get(watched::readyz))
        .fallback(nothing_here)
        .with_state(app);
    of_router(router)
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
fn outermost(
    app: Shared,
    request: Request,
    mut router: Router,
) -> impl Future<Output = Response> + Send + 'static {
    let (access, caller) = (Access::new(&request, &*app.services.clock), spread::caller(&request));
    let (request, unread) = unread::kept(request);
    let answering = request_peer::answering(request, move |request| router.call(request));
    async move {
        let answered = async {
            let (response, asked) = answering.await;
            charged(&app, response, asked).await
        };
        let mut response = answered.instrument(access.span()).await;
        if let Some(unread) = unread
            && (response.status().is_client_error() || response.status().is_server_error())
        {
            Box::pin(unread.drain()).await;
        }
        spread::out(&mut response, caller);
        access.answered(&mut response, &*app.services.clock);
        response
    }
}

/// Charges unauthenticated requests to their address, and gives every refusal the same form, including the
/// framework's. What takes longer has a box: most requests are answered at once or have waited before.
fn charged(
    app: &Shared,
    response: Response,
    asked: Asked,
) -> Either<Ready<Response>, BoxFuture<'static, Response>> {
    if let Asked::Stranger(peer) = &asked
        && let Err(wait) = app.rates.address(Neighbourhood::of(peer.address()))
    {
        return Either::Right(Box::pin(late(Refused::too_many("this address", wait).into_response())));
    }
    if response.status() == StatusCode::TOO_MANY_REQUESTS {
        return Either::Right(Box::pin(late(response)));
    }
    if !response.status().is_client_error() && !response.status().is_server_error() {
        return match asked {
            Asked::By(who) if answers::is_large(&response) => {
                let app = app.clone();
                Either::Right(Box::pin(async move { answers::charged(&app.memory, response, who).await }))
            }
            _ => Either::Left(ready(response)),
        };
    }
    let kind = response.headers().get(header::CONTENT_TYPE);
    if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json")) {
        return Either::Left(ready(response));
    }
    Either::Right(Box::pin(in_one_form(response)))
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
