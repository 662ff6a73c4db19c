//! Asking before something is signed.

use std::io::IsTerminal as _;

use anyhow::{Result, anyhow};
use muster_protocol::terminal;

use super::error::WithHint as _;

/// Whether whoever sits at the terminal says yes. `yes` is the option that says so beforehand.
pub fn agreed(question: &str, yes: bool) -> Result<bool> {
    if yes {
        return Ok(true);
    }
    if !std::io::stdin().is_terminal() {
        return Err(anyhow!("nobody is here to answer: {question}"))
            .hint("give --yes to go on without being asked");
    }
    terminal::question(format_args!("{question} [y/N]"));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// `1 signature`, `2 signatures`.
pub fn count(number: u32, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
