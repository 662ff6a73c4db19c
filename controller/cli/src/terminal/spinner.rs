//! Shows what a command is doing while it takes time.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use muster_protocol::shown;

/// Disappears from the terminal when it ends; control characters in its message have no effect.
pub struct Spinner(ProgressBar);

pub fn spinner() -> Spinner {
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(Duration::from_millis(120));
    Spinner(spinner)
}

impl Spinner {
    pub fn set_message(&self, message: impl AsRef<str>) {
        self.0.set_message(shown::field(message.as_ref()));
    }
    pub fn finish_and_clear(&self) {
        self.0.finish_and_clear();
    }
}
