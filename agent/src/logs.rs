//! Where log lines go: the journal under systemd, plain lines on stderr elsewhere (launchd writes them to a file).
//!
//! In the journal each line has the fields `MUSTER_MACHINE`, and about a switch `MUSTER_GENERATION` and
//! `MUSTER_TRANSACTION`: `journalctl MUSTER_GENERATION=7` is the whole story of that generation, the activator's part too.

use std::io::IsTerminal as _;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Set to a filter such as `debug` or `muster_agent::nix=debug` to see more.
const VARIABLE: &str = "MUSTER_LOG";

/// Begins logging. A second call changes nothing.
pub fn start() {
    let named = std::env::var(VARIABLE).ok().and_then(|text| text.parse::<Targets>().ok());
    let filter = named.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let registry = tracing_subscriber::registry().with(filter);
    // systemd sets this for services whose output goes to the journal.
    if std::env::var_os("JOURNAL_STREAM").is_some()
        && let Ok(journal) = tracing_journald::layer()
    {
        let journal =
            journal.with_syslog_identifier("muster-agent".into()).with_field_prefix(Some("MUSTER".into()));
        let _ = registry.with(journal).try_init();
        return;
    }
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    let _ = registry.with(lines).try_init();
}
