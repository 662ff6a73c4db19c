//! Whether the process is alive, and whether it can serve requests. Anybody may ask, so what it costs is
//! shared by all who ask within a second.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use tokio::time::timeout;

use crate::http::problem::Refused;
use crate::http::state::{App, Shared};
use crate::store::StoreError;
use crate::store::blobs::BlobError;

/// How long the controller's loops may be late: each goes round every ten seconds.
const LATE: Duration = Duration::from_secs(60);
/// How long an answer is given again.
const KEPT: Duration = Duration::from_secs(1);
/// How long the database and the blob store may take.
const WAIT: Duration = Duration::from_secs(2);
/// A file that is in no cache; asking for it shows whether the blob store answers.
const NOTHING: &str = "nix-cache-info";

/// Whether the process is alive and its loops run.
pub async fn healthz(State(app): State<Shared>) -> Result<&'static str, Refused> {
    let late = app.services.pulse.age(&*app.services.clock);
    if late > LATE {
        let seconds = late.as_secs();
        let message = format!("the controller's own loop has not run for {seconds} s: restart it");
        return Err(Refused::busy(&message));
    }
    Ok("the controller is alive\n")
}

/// Whether it can serve requests now.
///
/// Settings that differ from another controller's are named, and are no reason to ask others instead: the
/// other one says the same, and the fleet would have none.
pub async fn readyz(State(app): State<Shared>) -> Result<String, Refused> {
    match readiness(&app).await {
        Ok(()) => {
            let mut text = "the controller is ready\n".to_owned();
            app.services
                .settings
                .apart()
                .iter()
                .for_each(|setting| text += &format!("{}\n", setting.complaint()));
            Ok(text)
        }
        Err(why) => Err(Refused::busy(why)),
    }
}

/// `Err` says in one sentence what is wrong; the log has the details.
pub async fn readiness(app: &App) -> Result<(), &'static str> {
    if app.is_stopping() {
        return Err("the controller is stopping: ask again when it has started");
    }
    let found = async { Ok::<_, Infallible>((KEPT, look(app).await)) };
    match app.readiness.get(&*app.services.clock, found).await {
        Ok(answer) => answer,
        Err(never) => match never {},
    }
}

async fn look(app: &App) -> Result<(), &'static str> {
    match timeout(WAIT, app.services.store.probe()).await {
        Ok(Ok(())) => {}
        Ok(Err(StoreError::Full)) => return Err("the disk of the database is full: free some space"),
        Ok(Err(error)) if error.is_away() => {
            tracing::warn!("not ready: {error}");
            return Err("the database cannot be reached: the controller's log says why");
        }
        Ok(Err(error)) => {
            tracing::warn!("not ready: {error}");
            return Err("the database does not take a change: the controller's log says why");
        }
        Err(_) => return Err("the database did not answer within 2 s"),
    }
    match timeout(WAIT, app.services.blobs.size(NOTHING)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(BlobError::Full)) => Err("the disk of the cache is full: free some space"),
        Ok(Err(error)) => {
            tracing::warn!("not ready: {error}");
            Err("the cache's store does not answer as it should: the controller's log says why")
        }
        Err(_) => Err("the cache's store did not answer within 2 s"),
    }
}
