//! What systemd calls a service and launchd a job, as far as the stand-ins go.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::root::Root;

/// launchd's own path (`launchd.plist(5)`); the machine's `bin` comes first.
pub const LAUNCHD_PATH: &str = "/usr/bin:/bin:/usr/sbin:/sbin";
/// systemd's path for system services (`systemd.exec(5)`); the machine's `bin` comes first.
pub const SYSTEMD_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Manager {
    Launchd,
    Systemd,
}

impl Manager {
    pub fn path(self) -> &'static str {
        match self {
            Self::Launchd => LAUNCHD_PATH,
            Self::Systemd => SYSTEMD_PATH,
        }
    }
}

/// When a job that ended is restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restart {
    Never,
    Always,
    OnFailure,
    /// It was ended by a signal.
    OnCrash,
}

/// What ends together with the job's first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Together {
    /// Nothing (`AbandonProcessGroup`, `KillMode=process`).
    Nothing,
    /// Its process group, as launchd does it.
    Group,
    /// Everything that it started, as a cgroup does it.
    Everything,
}

/// A job as its plist or unit describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The label, or the name of the unit.
    pub name: String,
    pub manager: Manager,
    /// The plist or unit file; a transient unit has none.
    pub source: Option<PathBuf>,
    /// The program and its arguments. The program is looked up in the machine, then on the host.
    pub arguments: Vec<String>,
    pub environment: BTreeMap<String, String>,
    pub folder: Option<PathBuf>,
    pub stdout: Option<PathBuf>,
    pub stderr: Option<PathBuf>,
    /// Whether it runs as soon as it is loaded.
    pub start: bool,
    pub restart: Restart,
    /// launchd: the least time between two starts. systemd: the time between an end and the next start. In
    /// milliseconds.
    pub pause_ms: u64,
    /// How long it may take to end before it is killed, in milliseconds.
    pub patience_ms: u64,
    pub together: Together,
    /// Unloaded as soon as it ends (`--collect`).
    pub collect: bool,
    /// `ConditionPathExists`, with `!` before a path that must not exist. A start whose conditions fail does
    /// nothing.
    #[serde(default)]
    pub conditions: Vec<String>,
    /// Below `/run`; exists while the job runs.
    #[serde(default)]
    pub runtime_directory: Option<String>,
}

impl Job {
    pub fn is_wanted_now(&self, root: &Root) -> bool {
        self.conditions.iter().all(|condition| match condition.strip_prefix('!') {
            Some(path) => !root.at(path).exists(),
            None => root.at(condition).exists(),
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Loaded, but not running.
    Waiting,
    Running,
    /// It ended with an error and is not restarted automatically.
    Failed,
}

/// The state of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub job: Job,
    pub state: State,
    pub pid: Option<i32>,
    pub runs: u64,
    /// The exit code, or minus the number of the signal.
    pub last_exit: Option<i32>,
}

impl Status {
    pub fn new(job: Job) -> Self {
        Self { job, state: State::Waiting, pid: None, runs: 0, last_exit: None }
    }
}
