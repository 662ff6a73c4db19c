//! What the agent tells the service manager that started it: that it is ready, that it lives, and what it does. Under
//! launchd, and where nobody asked for it, nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// The agent is up, and listens at its socket unless a person is needed first. Whether it is enrolled is another matter: a
/// unit that waits for that would be ended at its limit.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// One line for `systemctl status`.
pub fn status(words: &str) {
    // A line break would be a message of its own to the service manager.
    tell(&[NotifyState::Status(&muster_protocol::shown::field(words))]);
}

/// Says twice in the time that the unit allows (`WatchdogSec`) that the agent's one thread still turns. Never ends.
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
    // Nobody listens, or nobody can: the agent's work does not depend on it.
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager is not told");
    }
}
