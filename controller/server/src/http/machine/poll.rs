//! The long poll: a machine waits for a generation, or for something that its next check-in will get.

use std::pin::Pin;
use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequest, FromRequestParts as _, Query, Request, State};
use axum::response::{IntoResponse, Response};
use muster_protocol::api::MAX_POLL_SECONDS;
use muster_protocol::checkin::PollReply;
use muster_protocol::ids::{Generation, IdError, MachineName};
use serde::Deserialize;
use tokio::time::Sleep;
use utoipa::ToSchema;

use super::files;
use crate::http::auth::bearer::Bearer;
use crate::http::path::OfMachine;
use crate::http::problem::Refused;
use crate::http::request_peer::for_news;
use crate::http::state::Shared;
use crate::store::News;
use crate::wakers::{Listener, Wake};

/// How many machines a second may come back after the controller has stopped.
const BACK_PER_SECOND: usize = 2000;

#[derive(Deserialize, ToSchema)]
pub struct Poll {
    /// `None` if it is 0 or missing.
    have: Option<String>,
    #[serde(default)]
    wait: u64,
    /// 1 if the files of the latest generation are wanted with the news of it.
    #[serde(default)]
    files: u8,
    /// The version of the root that the machine trusts.
    #[serde(default)]
    root: u64,
}

/// Replies at once if the latest generation is not the one the machine has; otherwise when that changes, or
/// after the wait. The poll also ends when its bearer expires.
pub async fn poll(State(app): State<Shared>, asked: Asked) -> Result<Json<PollReply>, Refused> {
    wait(&app, asked).await
}

/// What a poll asks. The request itself is gone while it waits: its head takes 8 KiB.
pub struct Asked {
    machine: MachineName,
    bearer: Bearer,
    have: Option<Generation>,
    wait: Duration,
    /// The version of the root that the machine trusts, if it wants files.
    root: Option<u64>,
}

impl FromRequest<Shared> for Asked {
    type Rejection = Response;

    async fn from_request(request: Request, app: &Shared) -> Result<Self, Response> {
        let (mut parts, _) = request.into_parts();
        let query = Query::<Poll>::from_request_parts(&mut parts, app).await;
        let Query(poll) = query.map_err(IntoResponse::into_response)?;
        let of = OfMachine::from_request_parts(&mut parts, app).await;
        let OfMachine(machine) = of.map_err(IntoResponse::into_response)?;
        let Ok(bearer) = Bearer::from_request_parts(&mut parts, app).await;
        let malformed = |error: IdError| Refused::malformed(error.to_string()).into_response();
        let have = match poll.have.as_deref() {
            None | Some("" | "0") => None,
            Some(text) => Some(text.parse().map_err(malformed)?),
        };
        let root = (poll.files == 1).then_some(poll.root);
        let wait = Duration::from_secs(poll.wait.min(MAX_POLL_SECONDS));
        Ok(Self { machine, bearer, have, wait, root })
    }
}

async fn wait(app: &Shared, asked: Asked) -> Result<Json<PollReply>, Refused> {
    let Asked { machine, bearer, have, wait, root } = asked;
    // What asks the database is large and soon over, so it has boxes of its own: thousands wait here.
    Box::pin(bearer.is_machines(app, &machine)).await?;
    Box::pin(app.services.store.seen(&machine, app.services.now())).await?;
    let timeout = tokio::time::sleep(wait);
    tokio::pin!(timeout);
    let mut listener = app.services.wakers.listen(&machine).ok_or_else(|| {
        Refused::too_many(
            &format!("machine {machine}"),
            Duration::from_secs(app.services.limits.poll_seconds),
        )
    })?;
    let mut last_look = false;
    loop {
        let News { generation, check_in } = Box::pin(app.services.store.news(&machine)).await?;
        if last_look || check_in || generation != have {
            let files = match root.filter(|_| generation != have && generation.is_some()) {
                Some(root) => Box::pin(files::stored(app, &machine, root)).await?,
                None => None,
            };
            return Ok(Json(PollReply { generation, check_in, files }));
        }
        match for_news(next(app, &mut listener, timeout.as_mut())).await {
            Next::News(wake) => {
                // It may have been revoked meanwhile.
                Box::pin(bearer.is_machines(app, &machine)).await?;
                if let Wake::Published(fresh) = wake
                    && Some(fresh.generation()) != have
                    && let Some(reply) = files::reply(app, &fresh, root)
                {
                    return Ok(Json(reply));
                }
            }
            Next::Timeout => last_look = true,
            Next::Stop => return Err(stopping(app.services.wakers.len())),
        }
    }
}

enum Next {
    News(Wake),
    Timeout,
    Stop,
}

async fn next(app: &Shared, listener: &mut Listener, timeout: Pin<&mut Sleep>) -> Next {
    tokio::select! {
        wake = listener.woken() => Next::News(wake),
        () = timeout => Next::Timeout,
        () = app.stopped() => Next::Stop,
    }
}

/// The machines that wait come back within a time that grows with their number, so that the next controller
/// does not meet all of them at the same moment.
fn stopping(waiting: usize) -> Refused {
    let spread = (waiting / BACK_PER_SECOND) as u64;
    let refused = Refused::busy("the controller is about to stop: ask again in a moment");
    refused.again_in(1).spread_over(spread + 1).closing()
}
