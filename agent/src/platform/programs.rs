//! Runs the system's own programs with a time limit.

use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::layout::Layout;
use crate::process::{self, Finished};

/// The limit for a query to systemd or launchd.
const SHORT: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    #[error("{program} cannot be run: {source}; {}", crate::durable::read_remedy(source))]
    Run { program: String, source: io::Error },
    #[error("{program} failed ({exit}): {output}")]
    Failed { program: String, exit: i32, output: String },
    #[error("{} cannot be written: {source}; {}", path.display(), crate::durable::remedy(source))]
    Write { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Other(String),
}

/// Runs a short program and returns its output; an exit code other than 0 is an error.
pub fn ask(layout: &Layout, program: &str, arguments: &[&str]) -> Result<String, PlatformError> {
    let finished = run(layout, program, arguments)?;
    if finished.exit == 0 {
        return Ok(finished.said);
    }
    let program = format!("{program} {}", arguments.first().unwrap_or(&""));
    Err(PlatformError::Failed { program, exit: finished.exit, output: finished.output.trim().to_owned() })
}

pub fn run(layout: &Layout, program: &str, arguments: &[&str]) -> Result<Finished, PlatformError> {
    let mut command = layout.command(program);
    command.args(arguments);
    process::ask(&mut command, SHORT, &layout.state(""))
        .map_err(|source| PlatformError::Run { program: program.into(), source })
}

pub fn finish(layout: &Layout, mut command: Command, limit: Duration) -> Result<Finished, PlatformError> {
    process::run(&mut command, limit, &layout.state("")).map_err(|source| PlatformError::Run {
        program: command.get_program().to_string_lossy().into(),
        source,
    })
}
