//! Garbage collection in the cache: a run is started, or its state is read.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use muster_protocol::cache::{Collect, Collection, MAX_KEEP_DAYS};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::collector;
use crate::http::auth::operator::Signed;
use crate::http::body::Document;
use crate::http::problem::Refused;
use crate::http::request_peer::away;
use crate::http::state::{App, Shared};

/// How long a request waits for the end of a run: less than any proxy.
const WAIT: Duration = Duration::from_secs(20);

impl Document for Collect {
    const WHAT: &'static str = "a request to collect garbage";
}

pub async fn start(State(app): State<Shared>, signed: Signed<Collect>) -> Result<Json<Collection>, Refused> {
    if signed.sent.keep_days > MAX_KEEP_DAYS {
        return Err(Refused::malformed(format!("keep_days must be at most {MAX_KEEP_DAYS}")));
    }
    Ok(ended(&app, collector::start(&app.services, signed.sent, signed.by)).await)
}

pub async fn show(State(app): State<Shared>, _: Signed) -> Result<Json<Collection>, Refused> {
    let run = collector::newest(&app.services).ok_or_else(|| {
        Refused::not_found(
            "this controller has collected nothing since it started: `muster audit` shows the runs of others",
        )
    })?;
    Ok(ended(&app, run).await)
}

/// Waits a while for the end.
async fn ended(app: &App, mut run: watch::Receiver<Collection>) -> Json<Collection> {
    let wait = async {
        tokio::select! {
            _ = timeout(WAIT, run.wait_for(|run| run.ended)) => {}
            () = app.stopped() => {}
        }
    };
    away(wait).await;
    let run = run.borrow().clone();
    Json(run)
}
