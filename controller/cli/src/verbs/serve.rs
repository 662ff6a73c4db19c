//! `muster serve`: the controller.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Args;
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::moment::{self, Unit};
use muster_protocol::{logging, tell};
use muster_server::server::ServerError;
use tracing_subscriber::EnvFilter;

use crate::config::controller_file;
use crate::terminal::error::{self, Hint, WithHint as _};

#[derive(Debug, Args)]
pub struct Serve {
    /// Add the next key to the file `bearer_keys` that several controllers share; it seals in an hour
    #[arg(long)]
    next_bearer_key: bool,
}

impl Serve {
    pub async fn run(self, config: Option<PathBuf>) -> Result<ExitCode> {
        if self.next_bearer_key {
            let config = controller_file(config)?;
            let from = muster_server::server::next_bearer_key(&config)?;
            let from = moment::rfc3339(from, Unit::Milliseconds);
            tell!("the next key is added: copy the file to the other controllers before {from}");
            return Ok(ExitCode::SUCCESS);
        }
        match (start_logging()?, serve(config).await) {
            (_, Ok(())) => Ok(ExitCode::SUCCESS),
            (Format::Text, Err(error)) => Err(error),
            // Whoever reads the log reads objects to its end, whatever MUSTER_LOG says.
            (Format::Json, Err(error)) => {
                error::print_json(&error, SystemClock::new().unix_ms());
                Ok(ExitCode::FAILURE)
            }
        }
    }
}

async fn serve(config: Option<PathBuf>) -> Result<()> {
    let ended = muster_server::server::run(&controller_file(config)?, shutdown()).await;
    ended.map_err(|error| {
        let hint = hint_about(&error).to_owned();
        anyhow::Error::new(error).context("the controller stopped").context(Hint(hint))
    })
}

/// How the log is written.
enum Format {
    Text,
    Json,
}

/// Only a controller that has served is known to have its data whole.
fn hint_about(error: &ServerError) -> &'static str {
    match error {
        ServerError::Serve(_) => "start `muster serve` again; nothing stored was lost",
        _ => "fix what the message names and start `muster serve` again",
    }
}

/// With MUSTER_LOG_FORMAT=json one object a line; otherwise under systemd with structured fields, elsewhere
/// plain lines. The level comes from MUSTER_LOG.
fn start_logging() -> Result<Format> {
    let filter = EnvFilter::try_from_env("MUSTER_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    match std::env::var("MUSTER_LOG_FORMAT").as_deref() {
        Ok("json") => {
            logging::start_json(filter);
            Ok(Format::Json)
        }
        Err(std::env::VarError::NotPresent) | Ok("" | "text") => {
            logging::start(filter, |journal| journal);
            Ok(Format::Text)
        }
        _ => Err(anyhow!("MUSTER_LOG_FORMAT is neither json nor text")).hint("set one of them, or neither"),
    }
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

#[cfg(test)]
mod tests {
    use std::io::Error;

    use super::*;

    #[test]
    fn only_a_controller_that_served_promises_that_nothing_was_lost() {
        let promises = |error: &ServerError| hint_about(error).contains("nothing stored was lost");
        assert!(promises(&ServerError::Serve(Error::other("accept"))));
        for error in [
            ServerError::Data("data".into(), Error::other("full")),
            ServerError::Locked("data".into()),
            ServerError::Listen(([127, 0, 0, 1], 1).into(), Error::other("taken")),
        ] {
            assert!(!promises(&error), "{error}");
        }
    }
}
