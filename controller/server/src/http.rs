//! The controller's HTTP API: routes, and what all of them share.

mod answers;
mod arriving;
mod asking;
mod auth;
mod body;
mod cache;
pub mod connection;
mod draft_api;
mod heavy;
mod machine_api;
mod memory;
mod operator_api;
mod paced;
mod parties;
mod problem;
mod public;
mod publish;
pub mod rates;
mod root_api;
pub mod roots;
mod tuf_files;
mod wakers;

/// The readers of what comes over the network that are not in the protocol, for the fuzz targets.
#[doc(hidden)]
pub mod readers {
    pub use super::auth::{bearer, machine_signature, operator_signature, sign_in};
    pub use super::machine_api::{Numbered, RawBatch};
}

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use muster_protocol::api::{self, ProblemCode};
use muster_protocol::clock::{Clock, UnixMillis};
use tokio::sync::watch;

use crate::server_config::Limits;
use crate::signer::{OnlineKey, OnlineSigner};
use crate::store::blobs::Blobs;
use crate::store::{Cursor, Store, StoreError};

use asking::Asked;
pub use memory::Memory;
use memory::Payer;
use problem::{Refused, refuse};
use rates::{Neighbourhood, Rates};
use roots::Roots;
use wakers::Wakers;

/// How long a refusal for asking too much is held back.
const LATE: Duration = Duration::from_secs(1);

/// What every request sees.
pub struct App {
    pub store: Store,
    pub blobs: Blobs,
    pub roots: Roots,
    pub online: OnlineKey,
    pub clock: Arc<dyn Clock>,
    pub limits: Limits,
    pub rates: Rates,
    /// What bodies may take while they arrive.
    pub memory: Memory,
    pub wakers: Wakers,
    /// The fleet's cursor, as far as this process moved it.
    pub cursor: watch::Sender<Cursor>,
    /// True once the server stops: long polls end.
    pub stopping: watch::Receiver<bool>,
}

pub type Shared = Arc<App>;

impl App {
    fn now(&self) -> UnixMillis {
        self.clock.unix_ms()
    }
    fn now_s(&self) -> i64 {
        self.clock.unix_seconds()
    }
    /// Ends when the server is told to stop.
    async fn stopped(&self) {
        let _ = self.stopping.clone().wait_for(|stopping| *stopping).await;
    }
    /// Who signs timestamps, if the newest root names its key. Where it does not, machines would call the timestamp forged.
    fn signer(&self) -> Result<Arc<OnlineSigner>, Refused> {
        let chain = self.roots.current();
        self.online.signer(|key| chain.may_sign_timestamps(key)).ok_or_else(|| {
            let message = "the newest root names another key for timestamps than this controller holds: put that key in the place of online_key in controller.toml, or have the root holders name this one";
            refuse(StatusCode::SERVICE_UNAVAILABLE, ProblemCode::Busy, message)
        })
    }
    /// Logs a root that came into force without being published here.
    pub async fn log_root(&self) -> Result<(), StoreError> {
        let version = self.roots.current().newest().version();
        if self.store.logged_root().await? < version {
            self.store.log_root::<StoreError>(version, None, self.now(), || Ok(())).await?;
        }
        Ok(())
    }
    /// Tells the operators who wait that something changed.
    fn changed(&self, cursor: Cursor) {
        self.cursor.send_if_modified(|held| {
            let newer = cursor > *held;
            *held = cursor.max(*held);
            newer
        });
    }
}

pub fn router(app: Shared) -> Router {
    let machines = api::OPERATOR_MACHINES;
    Router::new()
        .route(api::FLEET, get(public::fleet))
        .route("/v1/root/{file}", get(public::root))
        .route(api::ENROL, post(machine_api::enrol))
        .route(api::CHECKIN, post(machine_api::check_in))
        .route(api::REPORTS, post(machine_api::reports))
        .route("/v1/machines/{name}/poll", get(machine_api::poll))
        .route("/v1/machines/{name}/tuf/{file}", get(tuf_files::metadata))
        .route("/v1/machines/{name}/tuf/targets/{of}/{file}", get(tuf_files::target))
        .route("/cache/nix-cache-info", get(cache::info))
        .route("/cache/{file}", get(cache::get_narinfo).put(cache::put_narinfo))
        .route("/cache/nar/{file}", get(cache::get_nar).put(cache::put_nar))
        .route(api::OPERATOR_SESSION, post(operator_api::session))
        .route(api::OPERATOR_CHANGES, get(operator_api::changes))
        .route(machines, get(operator_api::machines).post(operator_api::add))
        .route(&format!("{machines}/{{name}}"), get(operator_api::machine))
        .route(&format!("{machines}/{{name}}/revoke"), post(operator_api::revoke))
        .route(&format!("{machines}/{{name}}/generations"), post(publish::publish))
        .route(&format!("{machines}/{{name}}/history"), get(operator_api::history))
        .route(&format!("{machines}/{{name}}/attacks"), get(operator_api::attacks))
        .route(&format!("{machines}/{{name}}/acknowledge"), post(operator_api::acknowledge))
        .route(&format!("{machines}/{{name}}/requests"), post(operator_api::ask))
        .route(api::OPERATOR_AUDIT, get(operator_api::audit))
        .route(api::OPERATOR_ROOT, post(root_api::publish))
        .route(api::OPERATOR_DRAFTS, get(draft_api::list).post(draft_api::keep))
        .route(&format!("{}/{{id}}", api::OPERATOR_DRAFTS), get(draft_api::show))
        .route(&format!("{}/{{id}}/drop", api::OPERATOR_DRAFTS), post(draft_api::drop))
        .fallback(nothing_here)
        .method_not_allowed_fallback(other_method)
        .layer(middleware::from_fn_with_state(app.clone(), outermost))
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

/// Logs each request, charges those that prove nothing to their address, and gives every refusal the one form, those of
/// the framework too.
async fn outermost(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let (method, path, began) =
        (request.method().clone(), request.uri().path().to_owned(), app.clock.awake());
    let (response, asked) = asking::answering(request, |request| next.run(request)).await;
    let (status, ms) = (response.status().as_u16(), (app.clock.awake() - began).as_millis());
    tracing::debug!(%method, path, status, ms, "answered");
    if let Asked::Stranger(peer) = &asked
        && let Err(wait) = app.rates.address(Neighbourhood::of(peer.address))
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

/// Whoever asks too much gets the refusal a little later: over one connection they are refused once in that time.
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

/// The whole body of a small request.
async fn small_body(
    app: &App,
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    payer: Payer,
) -> Result<Bytes, Refused> {
    body::whole(headers, body, limit, &app.memory, payer).await
}
