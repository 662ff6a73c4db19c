//! The one place where both programs print. [`say!`](crate::say) prints one line to standard output and
//! [`tell!`](crate::tell) one to standard error. Whatever is in it is escaped (see [`crate::shown`]), so
//! text from elsewhere is at most a part of one line.
//!
//! Once nobody reads standard output (`muster status | head`), the rest is dropped silently and the command
//! runs to its end: output never stops a command half-way. Output that cannot be written (a full disk)
//! becomes an error at the end; see [`finish`].

use std::fmt;
use std::io::{self, IsTerminal as _, Write};
use std::sync::Mutex;

use crate::moment;
use crate::shown::{self, Shown};

/// Why standard output no longer accepts anything.
static LOST: Mutex<Option<io::Error>> = Mutex::new(None);

/// Prints one line to standard output, as `println!` does, escaped.
#[macro_export]
macro_rules! say {
    () => { $crate::terminal::line(format_args!("")) };
    ($($text:tt)+) => { $crate::terminal::line(format_args!($($text)+)) };
}

/// Prints one line to standard error, as `eprintln!` does, escaped.
#[macro_export]
macro_rules! tell {
    ($($text:tt)+) => { $crate::terminal::error_line(format_args!($($text)+)) };
}

/// Called by [`say!`](crate::say).
pub fn line(text: fmt::Arguments<'_>) {
    bytes(format!("{}\n", Shown(text)).as_bytes());
}

/// Called by [`tell!`](crate::tell). If standard error cannot be written either, there is nobody to tell.
pub fn error_line(text: fmt::Arguments<'_>) {
    let _ = stderr().lock().write_all(format!("{}\n", Shown(text)).as_bytes());
}

/// Prints a text of several lines, each with `before` in front.
pub fn lines(before: &str, text: &str) {
    for one in shown::lines(text) {
        line(format_args!("{before}{one}"));
    }
}

/// Like [`lines`], to standard error.
pub fn error_lines(before: &str, text: &str) {
    for one in shown::lines(text) {
        error_line(format_args!("{before}{one}"));
    }
}

/// An error as people read it, escaped. What it quotes may have lines of its own; each of them gets a mark
/// that our own lines do not have.
pub fn sentence(before: &str, text: &str, hint: Option<&str>) -> String {
    let marked = |text: &str| shown::lines(text).collect::<Vec<_>>().join("\n  | ");
    let hint = hint.map(|hint| format!("\nhint: {}", marked(hint)));
    format!("{before}{}{}", marked(text), hint.unwrap_or_default())
}

/// Prints a question to standard error, so that it is seen even where the output goes elsewhere.
pub fn question(text: fmt::Arguments<'_>) {
    let mut stderr = stderr().lock();
    let _ = write!(stderr, "{} ", Shown(text)).and_then(|()| stderr.flush());
}

/// Prints indented JSON, with times as RFC 3339 (see [`crate::moment`]). Characters that a terminal would
/// obey are written as `\uXXXX`, which means the same.
pub fn json(value: &impl serde::Serialize) -> Result<(), serde_json::Error> {
    let text = moment::json(value)?;
    bytes(format!("{}\n", shown::json(&text)).as_bytes());
    Ok(())
}

/// Prints bytes as they are: for what was composed of escaped fields, and for a value that was asked for.
pub fn bytes(bytes: &[u8]) {
    if lost().is_some() {
        return;
    }
    let mut stdout = stdout().lock();
    if let Err(error) = stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        *lost() = Some(error);
    }
}

/// Whether standard output no longer accepts anything; a command that prints for ever ends then.
pub fn is_lost() -> bool {
    lost().is_some()
}

/// Whether printing succeeded. A reader that went away is not an error.
pub fn finish() -> io::Result<()> {
    match lost().take() {
        Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// Whether standard output is a terminal.
pub fn output_is_terminal() -> bool {
    stdout().is_terminal()
}

fn lost() -> std::sync::MutexGuard<'static, Option<io::Error>> {
    LOST.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[allow(clippy::disallowed_methods, reason = "this is the place")]
fn stdout() -> io::Stdout {
    io::stdout()
}

#[allow(clippy::disallowed_methods, reason = "this is the place")]
pub(crate) fn stderr() -> io::Stderr {
    io::stderr()
}
