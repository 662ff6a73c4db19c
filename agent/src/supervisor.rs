//! What the agent tells the service manager that started it: that it is ready, alive, and what it is doing.
//! Under launchd, or if not requested, nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// The agent is up, and listens at its socket unless a person is needed first. Enrolment does not matter
/// here: a unit that waited for it would be killed at its timeout.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// One line for `systemctl status`.
pub fn status(words: &str) {
    // A line break would start a separate message to the service manager.
    tell(&[NotifyState::Status(&muster_protocol::shown::field(words))]);
}

/// Reports twice within the unit's `WatchdogSec` that the agent's one thread still runs. Never ends.
pub async fn watchdog() {
    match sd_notify::watchdog_enabled() {
        Some(limit) => loop {
            tell(&[NotifyState::Watchdog]);
            tokio::time::sleep((limit / 2).max(Duration::from_millis(100))).await;
        },
        None => std::future::pending().await,
    }
}

fn tell(states: &[NotifyState<'_>]) {
    // If nobody listens, or nobody can, the agent's work does not depend on it.
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager cannot be notified");
    }
}
