//! `muster serve`: the controller.

use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use muster_protocol::moment::{self, Unit};
use muster_protocol::{logging, tell};
use tracing_subscriber::EnvFilter;

use crate::config::controller_file;
use crate::terminal::error::WithHint as _;

#[derive(Debug, Args)]
pub struct Serve {
    /// Add the next key to the file `bearer_keys` that several controllers share; it seals in an hour
    #[arg(long)]
    next_bearer_key: bool,
}

impl Serve {
    pub async fn run(self, config: Option<PathBuf>) -> Result<()> {
        let config = controller_file(config)?;
        if self.next_bearer_key {
            let from = muster_server::server::next_bearer_key(&config)?;
            let from = moment::rfc3339(from, Unit::Milliseconds);
            tell!("the next key is added: copy the file to the other controllers before {from}");
            return Ok(());
        }
        start_logging()?;
        muster_server::server::run(&config, shutdown())
            .await
            .context("the controller stopped")
            .hint("fix what the message names and start `muster serve` again")
    }
}

/// Without what the database's driver says of single connections: the controller says what it means.
const LOGGED: &str = "info,sqlx::pool=error,sqlx_core::pool=error,sqlx::postgres::notice=warn";

/// With MUSTER_LOG_FORMAT=json one object a line; otherwise under systemd with structured fields, elsewhere
/// plain lines. The level comes from MUSTER_LOG.
fn start_logging() -> Result<()> {
    let filter = EnvFilter::try_from_env("MUSTER_LOG").unwrap_or_else(|_| EnvFilter::new(LOGGED));
    match std::env::var("MUSTER_LOG_FORMAT").as_deref() {
        Ok("json") => logging::start_json(filter),
        Err(std::env::VarError::NotPresent) | Ok("" | "text") => logging::start(filter, |journal| journal),
        _ => {
            return Err(anyhow!("MUSTER_LOG_FORMAT is neither json nor text"))
                .hint("set one of them, or neither");
        }
    }
    Ok(())
}

/// SIGTERM or SIGINT.
async fn shutdown() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut streams: Vec<_> =
        [SignalKind::terminate(), SignalKind::interrupt()].into_iter().flat_map(signal).collect();
    let waits = streams.iter_mut().map(|stream| Box::pin(stream.recv()));
    if waits.len() == 0 {
        return std::future::pending().await;
    }
    futures_util::future::select_all(waits).await;
}
