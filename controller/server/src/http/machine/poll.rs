//! The long poll: a machine waits for a generation, or for something that its next check-in will get.

use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequest, FromRequestParts as _, Query, Request, State};
use axum::response::{IntoResponse, Response};
use muster_protocol::api::MAX_POLL_SECONDS;
use muster_protocol::checkin::PollReply;
use muster_protocol::ids::{Generation, IdError, MachineName};
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};
use utoipa::ToSchema;

use super::files;
use crate::http::auth::bearer::Bearer;
use crate::http::path::OfMachine;
use crate::http::problem::Refused;
use crate::http::request_peer;
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
///
/// Not an `async fn`: that would keep room for what is asked for as long as it waits.
pub fn poll(
    State(app): State<Shared>,
    asked: Asked,
) -> impl Future<Output = Result<Json<PollReply>, Refused>> + Send {
    // What asks the database is large and soon over, so it has boxes of its own: thousands wait here.
    let begun = Box::pin(begin(app, asked));
    async move {
        let mut waiting = begun.await?;
        let mut next = None;
        loop {
            if let Some(reply) = Box::pin(waiting.look(next)).await? {
                return Ok(Json(reply));
            }
            next = Some(waiting.next().await);
        }
    }
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

    fn from_request(request: Request, app: &Shared) -> impl Future<Output = Result<Self, Response>> + Send {
        Box::pin(read(request, app))
    }
}

async fn read(request: Request, app: &Shared) -> Result<Asked, Response> {
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
    Ok(Asked { machine, bearer, have, wait, root })
}

/// A poll whose machine has proved who it is.
struct Waiting {
    app: Shared,
    machine: MachineName,
    bearer: Bearer,
    have: Option<Generation>,
    root: Option<u64>,
    until: Instant,
    listener: Listener,
}

async fn begin(app: Shared, asked: Asked) -> Result<Box<Waiting>, Refused> {
    let Asked { machine, bearer, have, wait, root } = asked;
    bearer.is_machines(&app, &machine).await?;
    app.services.store.seen(&machine, app.services.now()).await?;
    let until = Instant::now() + wait;
    let listener = app.services.wakers.listen(&machine).ok_or_else(|| {
        Refused::too_many(
            &format!("machine {machine}"),
            Duration::from_secs(app.services.limits.poll_seconds),
        )
    })?;
    Ok(Box::new(Waiting { app, machine, bearer, have, root, until, listener }))
}

impl Waiting {
    /// The reply, if there is one after what was waited for. `None` before it waits at all.
    async fn look(&self, next: Option<Next>) -> Result<Option<PollReply>, Refused> {
        let services = &self.app.services;
        match &next {
            Some(Next::Stop) => return Err(stopping(services.wakers.len())),
            Some(Next::News(wake)) => {
                // It may have been revoked meanwhile.
                self.bearer.is_machines(&self.app, &self.machine).await?;
                if let Wake::Published(fresh) = wake
                    && is_newer(fresh.generation(), self.have)
                    && let Some(reply) = files::reply(&self.app, fresh, self.root)
                {
                    return Ok(Some(reply));
                }
            }
            Some(Next::Timeout) | None => {}
        }
        let News { generation, check_in } = services.store.news(&self.machine).await?;
        let is_other = generation != self.have;
        if !is_other && !check_in && !matches!(next, Some(Next::Timeout)) {
            return Ok(None);
        }
        let files = match self.root.filter(|_| is_other && generation.is_some()) {
            Some(root) => Box::pin(files::stored(&self.app, &self.machine, root)).await?,
            None => None,
        };
        Ok(Some(PollReply { generation, check_in, files }))
    }

    async fn next(&mut self) -> Next {
        let _waits = request_peer::waits_for_news();
        // Who stops the server rings every bell then.
        if self.app.is_stopping() {
            return Next::Stop;
        }
        match timeout_at(self.until, self.listener.woken()).await {
            _ if self.app.is_stopping() => Next::Stop,
            Ok(wake) => Next::News(wake),
            Err(_) => Next::Timeout,
        }
    }
}

enum Next {
    News(Wake),
    Timeout,
    Stop,
}

/// Wakes may arrive late: a machine that has fetched a later generation meanwhile would take the one it is
/// told of for an attack.
fn is_newer(fresh: Generation, have: Option<Generation>) -> bool {
    have.is_none_or(|have| fresh > have)
}

/// The machines that wait come back within a time that grows with their number, so that the next controller
/// does not meet all of them at the same moment.
fn stopping(waiting: usize) -> Refused {
    let spread = (waiting / BACK_PER_SECOND) as u64;
    let refused = Refused::busy("the controller is about to stop: ask again in a moment");
    refused.again_in(1).spread_over(spread + 1).closing()
}

#[cfg(test)]
mod tests {
    use muster_protocol::ids::Epoch;

    use super::*;

    #[test]
    fn a_wake_that_comes_late_tells_of_nothing() {
        let (one, two) = (Generation::new(1).unwrap(), Generation::new(2).unwrap());
        let anew = Generation::first_of(Epoch::new(1).unwrap());
        assert!(is_newer(one, None) && is_newer(two, Some(one)) && is_newer(anew, Some(two)));
        for (fresh, have) in [(one, one), (one, two), (two, anew)] {
            assert!(!is_newer(fresh, Some(have)), "{fresh} {have}");
        }
    }
}
