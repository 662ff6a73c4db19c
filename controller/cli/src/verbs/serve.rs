//! `muster serve`: the controller.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use muster_protocol::logging;
use tracing_subscriber::EnvFilter;

use crate::terminal::error::WithHint as _;

#[derive(Debug, Args)]
pub struct Serve {}

impl Serve {
    pub async fn run(self, config: Option<PathBuf>) -> Result<()> {
        let config = match config {
            // MUSTER_CONFIG names the operator's file; the controller's is beside it.
            Some(config) if config.file_name().is_some_and(|name| name == "muster.toml") => {
                config.with_file_name("controller").join("controller.toml")
            }
            Some(config) => config,
            None => crate::config::default_folder()?.join("controller/controller.toml"),
        };
        log_to_journal_or_lines();
        muster_server::server::run(&config, shutdown())
            .await
            .context("the controller stopped")
            .hint("fix what the message names and start `muster serve` again; nothing stored was lost")
    }
}

/// Under systemd with structured fields, otherwise plain lines; the level comes from MUSTER_LOG.
fn log_to_journal_or_lines() {
    let filter = EnvFilter::try_from_env("MUSTER_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    logging::start(filter, |journal| journal);
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
