//! Where log lines go: the journal under systemd, plain lines on stderr elsewhere (launchd writes them to a
//! file).
//!
//! In the journal each line has the field `MUSTER_MACHINE`, and lines about a switch have `MUSTER_GENERATION`
//! and `MUSTER_TRANSACTION`: `journalctl MUSTER_GENERATION=7` is the whole story of that generation,
//! including the activator's part.

use muster_protocol::logging;
use tracing_subscriber::filter::{LevelFilter, Targets};

/// Set to a filter such as `debug` or `muster_agent::nix=debug` to see more.
const VARIABLE: &str = "MUSTER_LOG";

/// Starts logging. A second call changes nothing.
pub fn start() {
    let named = std::env::var(VARIABLE).ok().and_then(|text| text.parse::<Targets>().ok());
    let filter = named.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    logging::start(filter, |journal| {
        journal.with_syslog_identifier("muster-agent".into()).with_field_prefix(Some("MUSTER".into()))
    });
}
