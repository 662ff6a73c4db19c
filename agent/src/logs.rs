//! Where log lines go: the journal under systemd, plain lines on stderr elsewhere (launchd writes them to a file).

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Set to a filter such as `debug` or `muster_agent::nix=debug` to see more.
const VARIABLE: &str = "MUSTER_LOG";

/// Begins logging. A second call changes nothing.
pub fn start() {
    let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    // systemd sets this for services whose output goes to the journal.
    if std::env::var_os("JOURNAL_STREAM").is_some()
        && let Ok(journal) = tracing_journald::layer()
    {
        let _ = registry.with(journal.with_syslog_identifier("muster-agent".into())).try_init();
        return;
    }
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    let _ = registry.with(lines).try_init();
}
