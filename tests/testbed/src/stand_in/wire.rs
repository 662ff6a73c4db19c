//! The protocol between the commands and the machine's `init`: one line of JSON each way.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::job::{Job, Status};
use crate::root::Root;

/// Where `init` listens.
pub const SOCKET: &str = "/run/stand-in.sock";
/// Longer than any job may take to end.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Lists everything that is loaded.
    List,
    Load(Box<Job>),
    /// Ends the job and unloads it.
    Unload(String),
    /// Starts a loaded job that is not running; with `kill`, ends a running one first.
    Start {
        name: String,
        kill: bool,
    },
    /// Ends the job and keeps it loaded.
    Stop(String),
    /// Clears a job's failed state.
    Reset(String),
    /// Turns the machine off, in order or like a power failure.
    Off {
        power_failure: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    NotLoaded,
    AlreadyLoaded,
    CannotRun(String),
}

pub type Reply = Result<Vec<Status>, Refusal>;

/// Sends a command to `init`; an error means that the machine is off.
pub fn ask(root: &Root, request: &Request) -> anyhow::Result<Reply> {
    use anyhow::Context as _;
    let mut stream = UnixStream::connect(root.at(SOCKET))
        .with_context(|| format!("the machine in {} is off", root.folder().display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply)?;
    serde_json::from_str(&reply).context("the machine went off before it answered")
}

/// The job of this name, if it is loaded.
pub fn find(root: &Root, name: &str) -> anyhow::Result<Option<Status>> {
    let all = ask(root, &Request::List)?.unwrap_or_default();
    Ok(all.into_iter().find(|status| status.job.name == name))
}
