//! JSON, for programs.

use anyhow::Result;
use muster_protocol::terminal;
use serde::Serialize;

/// Prints a value as JSON.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    Ok(terminal::json(value)?)
}
