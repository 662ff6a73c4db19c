//! Asking for confirmation, and for lines of text.

use std::io::{BufRead as _, IsTerminal as _, Read as _};

use anyhow::{Result, anyhow};
use muster_protocol::terminal;

use super::error::WithHint as _;

/// The most bytes that are read of an answer.
const MAX_LINE: u64 = 4096;

/// Asks for confirmation, unless `yes` gave it beforehand. An error if nobody can answer.
pub fn confirm(question: &str, yes: bool) -> Result<bool> {
    answer(question, yes, || format!("nobody is here to answer: {question}"))
}

/// Whether somebody is there to answer.
pub fn is_answered() -> bool {
    std::io::stdin().is_terminal()
}

/// Asks for a line of text; `enter` is what an empty one stands for.
pub fn line(question: &str, enter: &str) -> Result<String> {
    terminal::question(format_args!("{question} [{enter}]"));
    let mut answer = String::new();
    match std::io::stdin().lock().take(MAX_LINE).read_line(&mut answer)? {
        0 => Err(anyhow!("nobody is here to answer: {question}"))
            .hint("give the answers as options; see --help"),
        _ => Ok(answer),
    }
}

/// Asks for confirmation before files are changed, and says so if they were not.
pub fn confirm_change(question: &str, yes: bool) -> Result<bool> {
    let confirmed = answer(question, yes, || "nobody is here to agree, and nothing was changed".to_owned())?;
    if !confirmed {
        say!("Nothing was changed.");
    }
    Ok(confirmed)
}

fn answer(question: &str, yes: bool, nobody: impl FnOnce() -> String) -> Result<bool> {
    if yes {
        return Ok(true);
    }
    if !std::io::stdin().is_terminal() {
        return Err(anyhow!(nobody())).hint("give --yes to go on without being asked");
    }
    terminal::question(format_args!("{question} [y/N]"));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
