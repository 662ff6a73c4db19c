//! What other controllers say, on a connection of its own: not through a pooler, which does not keep it.

use std::time::Duration;

use muster_protocol::ids::MachineName;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};

use super::connection::{LONGEST, silent};
use super::moved;
use super::notify::{CHANNEL, EVERYTHING};
use super::reach::Reach;
use super::settings;
use crate::core::settings::Prints;
use crate::store::answers::Heard;
use crate::store::error::StoreError;

/// After this long without a word, the connection is tried.
const QUIET: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub struct Listener {
    options: PgConnectOptions,
    reach: Reach,
}

impl Listener {
    pub fn new(options: PgConnectOptions) -> Self {
        Self { reach: Reach::new(options.clone()), options }
    }

    /// Listens until the connection ends. What was said before it began is lost, so everything counts as
    /// heard once it begins.
    pub async fn listen(
        &self,
        heard: &mut (impl FnMut(Heard) + Send),
        prints: &(impl Fn() -> Prints + Sync),
    ) -> Result<(), StoreError> {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(LONGEST)
            .max_lifetime(None)
            .idle_timeout(None)
            .connect_lazy_with(self.options.clone());
        let mut listener = self.reach.wait(PgListener::connect_with(&pool)).await?;
        listener.eager_reconnect(false);
        within(listener.listen(CHANNEL)).await?;
        within(moved::work(&mut listener)).await?;
        let mut said = prints();
        within(settings::tell(&mut listener, None, &said)).await?;
        heard(Heard::Everything);
        loop {
            match tokio::time::timeout(QUIET, listener.try_recv()).await {
                Ok(Ok(Some(told))) => heard(understood(told.payload())),
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => {
                    within(sqlx::Executor::execute(&mut listener, "SELECT 1")).await?;
                }
            }
            let now = prints();
            if now != said {
                within(settings::tell(&mut listener, Some(&said), &now)).await?;
                said = now;
            }
        }
    }
}

async fn within<T>(done: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
    match tokio::time::timeout(LONGEST, done).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(silent()),
    }
}

/// A payload that another version sends, or somebody else, may mean anything.
fn understood(payload: &str) -> Heard {
    if payload == EVERYTHING {
        return Heard::Everything;
    }
    let names: Result<Vec<MachineName>, _> = payload.split(' ').map(str::parse).collect();
    names.map_or(Heard::Everything, Heard::Machines)
}
