//! Asking for confirmation.

use std::io::IsTerminal as _;

use anyhow::{Result, anyhow};
use muster_protocol::terminal;

use super::error::WithHint as _;

/// Asks for confirmation, unless `yes` gave it beforehand. An error if nobody can answer.
pub fn confirm(question: &str, yes: bool) -> Result<bool> {
    answer(question, yes, || format!("nobody is here to answer: {question}"))
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
