//! The local socket: `status`, `check-now`, `pause`, `resume`, `retry` and `rollback` for root on this
//! machine, one request per connection. If the configuration names a group, a second socket serves its
//! members.

mod group;

use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use muster_protocol::audit::Checkpoint;
use muster_protocol::checkin::{Health, Holds, Phase, Runs};
use muster_protocol::clock::{Clock as _, SystemClock, UnixMillis};
use muster_protocol::ids::{Generation, MachineName, Sha256};
use muster_protocol::keys::PublicKey;
use muster_protocol::machine::{Class, System};
use muster_protocol::plan::{RolloutName, Said};
use muster_protocol::report::Attack;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::config::Config;
use crate::core::backoff::look;
use crate::identity::Identity;
use crate::platform::Layout;
use crate::service;

/// The socket's name in the state folder, which only root can access.
pub const SOCKET: &str = "agent.sock";
/// The folder of the group's socket. It disappears at each boot.
const SHARED_FOLDER: &str = "var/run/muster";
const MAX_REQUEST_BYTES: u64 = 4 * 1024;
const MAX_REPLY_BYTES: u64 = 256 * 1024;
/// How long a client may take to send its request.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// How long the agent may take to answer. An undo is started within this time, not finished.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long to wait for the controller's answer to a requested check.
const CHECK_LIMIT: Duration = Duration::from_secs(15);
/// How long a starting agent may take until it listens. launchd delays restarts by ten seconds.
const START_LIMIT: Duration = Duration::from_secs(15);
/// The longest pause between two looks for its socket.
const LONGEST_LOOK: Duration = Duration::from_millis(250);
const MAX_CONNECTIONS: usize = 8;
/// The pause after the system refused a connection (too many open files, say).
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// A request to the runner; it answers through the channel inside.
#[derive(Debug)]
pub enum Command {
    Status(oneshot::Sender<Status>),
    /// Ask the controller now.
    CheckNow(Answer),
    /// Go back to the previous system. The answer is one sentence: what was started, or why not.
    Rollback(Answer),
    /// Install at the next boot what NixOS cannot switch to. The answer is one sentence.
    AtBoot(Answer),
    /// Begin nothing new until then, or until resumed. `by` is the user ID of the requester.
    Pause {
        until: Option<UnixMillis>,
        by: Option<u32>,
        to: Answer,
    },
    Resume {
        by: Option<u32>,
        to: Answer,
    },
    /// Try the newest generation again although it failed. `by` is the user ID of the requester.
    Retry {
        by: Option<u32>,
        to: Answer,
    },
    /// Generate a new key. The answer is one sentence.
    RotateKey(Answer),
}

type Answer = oneshot::Sender<Result<String, String>>;

/// The status of this machine, for `muster-agent status [--json]`. Fields are only ever added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Whether the agent itself answered; if not, this comes from its files.
    pub agent_running: bool,
    pub agent: String,
    pub machine: MachineName,
    pub class: Class,
    pub system: System,
    pub controller: String,
    pub fleet: Sha256,
    pub phase: Phase,
    /// The generation that `phase` refers to.
    #[serde(default)]
    pub phase_generation: Option<Generation>,
    /// What the machine waits for, or what is wrong, in one sentence.
    #[serde(default)]
    pub note: Option<String>,
    /// The newest verified generation.
    #[serde(default)]
    pub verified: Option<Generation>,
    #[serde(default)]
    pub runs: Option<Runs>,
    #[serde(default)]
    pub holds: Holds,
    /// The last answer that was refused, until one is accepted.
    #[serde(default)]
    pub refused: Option<Attack>,
    #[serde(default)]
    pub health: Health,
    /// What comes next, in one sentence.
    #[serde(default)]
    pub next: String,
    /// When the controller last answered.
    #[serde(default)]
    pub last_contact: Option<UnixMillis>,
    /// Events not yet stored by the controller.
    pub reports_waiting: usize,
    /// Why the controller no longer accepts this machine, in its words.
    #[serde(default)]
    pub shut_out: Option<String>,
    /// The recipient to encrypt this machine's secrets to.
    #[serde(default)]
    pub age: Option<String>,
    /// The public key that this machine signs with.
    #[serde(default)]
    pub key: Option<PublicKey>,
    /// What the controller showed of its audit log, oldest first.
    #[serde(default)]
    pub log: Vec<Checkpoint>,
    /// The rollout of the generation that is under way or wanted.
    #[serde(default)]
    pub rollout: Option<InRollout>,
    /// What this machine says of the rollout that it vouches in.
    #[serde(default)]
    pub vouches: Option<Vouches>,
}

/// A machine's place in a rollout, and what it waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InRollout {
    pub plan: Sha256,
    /// The rollout's name and its wave's; `None` while the plan is not here.
    #[serde(default)]
    pub name: Option<RolloutName>,
    #[serde(default)]
    pub wave: Option<String>,
    /// The wave's number, counted from 1, and how many there are.
    #[serde(default)]
    pub number: u32,
    #[serde(default)]
    pub of: Option<usize>,
    /// Why its turn has not come, in one sentence, if that is all it waits for.
    #[serde(default)]
    pub waits: Option<String>,
    #[serde(default)]
    pub since: Option<UnixMillis>,
}

/// What a machine says of the generation of a plan that it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vouches {
    pub plan: Sha256,
    pub name: RolloutName,
    pub wave: String,
    pub generation: Generation,
    pub said: Said,
    /// How long it has run well, and how long it has to, in seconds of time awake.
    pub soaked_seconds: u64,
    pub soak_seconds: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
enum Request {
    Status,
    CheckNow,
    Rollback,
    AtBoot,
    Pause {
        #[serde(default)]
        until: Option<UnixMillis>,
    },
    Resume,
    Retry,
    RotateKey,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Reply {
    Status(Box<Status>),
    Done(String),
    Error(String),
}

#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    #[error("the agent is not running on this machine")]
    NotRunning,
    #[error(
        "the agent's job is up, but nothing has been listening at its socket for {} s: check its log, or ask \
         as root", .0.as_secs()
    )]
    NotListening(Duration),
    #[error("only root and the members of the group in agent.toml may use the agent: run this with sudo")]
    NotAllowed,
    #[error("the group '{group}' cannot use the agent: {reason}")]
    Group { group: String, reason: String },
    #[error("the socket {} cannot be used: {source}", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("the agent did not answer within {} s: check its log", .0.as_secs())]
    Slow(Duration),
    #[error("the agent's answer is not understood ({0}): restart it, it may be a different version")]
    Malformed(String),
    #[error("{0}")]
    Refused(String),
}

/// A listening socket. It is removed when this is dropped.
pub struct Listener {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Listens at `STATE/agent.sock` (mode 0600) and passes requests to the runner.
///
/// The caller holds the agent's lock, so an existing socket was left by a crash.
pub fn listen(config: &Config, commands: mpsc::Sender<Command>) -> Result<Listener, LocalError> {
    listen_within(&config.state_dir, commands, READ_LIMIT)
}

fn listen_within(
    state_dir: &Path,
    commands: mpsc::Sender<Command>,
    patience: Duration,
) -> Result<Listener, LocalError> {
    // Only root can enter the folder (0700), so nobody connects before the mode is set.
    bind(state_dir.join(SOCKET), 0o600, commands, patience)
}

/// Listens for the members of the configured group, if any.
pub fn listen_to_group(
    config: &Config,
    commands: mpsc::Sender<Command>,
) -> Result<Option<Listener>, LocalError> {
    let Some(group) = &config.group else { return Ok(None) };
    let failed = |reason: String| LocalError::Group { group: group.clone(), reason };
    let id = group::id(group).map_err(failed)?;
    let path = shared_socket(config);
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    let open = |source: io::Error| failed(format!("{}: {source}", folder.display()));
    // Closed until everything in it has its final permissions.
    std::fs::create_dir_all(folder).and_then(|()| mode(folder, 0o700)).map_err(open)?;
    let listener = bind(path.clone(), 0o660, commands, READ_LIMIT)?;
    chown(&path, None, Some(id))
        .and_then(|()| chown(folder, None, Some(id)))
        .and_then(|()| mode(folder, 0o750))
        .map_err(open)?;
    Ok(Some(listener))
}

/// Whether this machine has a group of this name, or why not.
pub fn group_exists(name: &str) -> Result<(), String> {
    group::id(name).map(drop)
}

fn shared_socket(config: &Config) -> PathBuf {
    let root = config.stand_in.as_ref().map_or(Path::new("/"), |stand_in| &stand_in.root);
    root.join(SHARED_FOLDER).join(SOCKET)
}

fn bind(
    path: PathBuf,
    mode: u32,
    commands: mpsc::Sender<Command>,
    patience: Duration,
) -> Result<Listener, LocalError> {
    let failed = |source| LocalError::Socket { path: path.clone(), source };
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let socket = UnixListener::bind(&path).map_err(failed)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
    let task = tokio::spawn(accept(socket, commands, patience));
    Ok(Listener { path, task })
}

async fn accept(socket: UnixListener, commands: mpsc::Sender<Command>, patience: Duration) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        match socket.accept().await {
            Ok((stream, _)) => {
                let commands = commands.clone();
                tokio::spawn(async move {
                    if let Err(error) = serve(stream, &commands, patience).await {
                        tracing::debug!(%error, "a request on the local socket ended early");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the local socket accepts no connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(
    mut stream: UnixStream,
    commands: &mpsc::Sender<Command>,
    patience: Duration,
) -> io::Result<()> {
    let by = stream.peer_cred().ok().map(|peer| peer.uid());
    let read = timeout(patience, read_line(&mut stream, MAX_REQUEST_BYTES));
    let reply = match read.await {
        Ok(Ok(line)) => match serde_json::from_slice(&line) {
            Ok(request) => answer(request, by, commands).await,
            Err(_) => {
                Reply::Error("the request is not understood: use muster-agent of the same version".into())
            }
        },
        Ok(Err(error)) => return Err(error),
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    };
    let mut line = serde_json::to_vec(&reply)?;
    line.push(b'\n');
    timeout(patience, stream.write_all(&line)).await?
}

async fn answer(request: Request, by: Option<u32>, commands: &mpsc::Sender<Command>) -> Reply {
    let busy = || Reply::Error("the agent is busy and did not answer: try again".to_owned());
    let asked = async {
        match request {
            Request::Status => {
                let (sender, receiver) = oneshot::channel();
                commands.send(Command::Status(sender)).await.ok()?;
                receiver.await.ok().map(|status| Reply::Status(Box::new(status)))
            }
            Request::CheckNow => {
                let (to, receiver) = oneshot::channel();
                commands.send(Command::CheckNow(to)).await.ok()?;
                let asks = || Ok("the agent is asking the controller now".to_owned());
                let answer = timeout(CHECK_LIMIT, receiver).await.ok().and_then(Result::ok);
                Some(answer.unwrap_or_else(asks).map_or_else(Reply::Error, Reply::Done))
            }
            Request::Rollback
            | Request::AtBoot
            | Request::Pause { .. }
            | Request::Resume
            | Request::Retry
            | Request::RotateKey => {
                let (to, receiver) = oneshot::channel();
                let command = match request {
                    Request::Pause { until } => Command::Pause { until, by, to },
                    Request::Resume => Command::Resume { by, to },
                    Request::Retry => Command::Retry { by, to },
                    Request::RotateKey => Command::RotateKey(to),
                    Request::AtBoot => Command::AtBoot(to),
                    _ => Command::Rollback(to),
                };
                commands.send(command).await.ok()?;
                receiver.await.ok().map(|result| result.map_or_else(Reply::Error, Reply::Done))
            }
        }
    };
    timeout(ANSWER_LIMIT, asked).await.ok().flatten().unwrap_or_else(busy)
}

/// One line without its newline; longer ones are an error.
async fn read_line(stream: &mut (impl AsyncRead + Unpin), limit: u64) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut stream = stream.take(limit);
    let mut buffer = [0; 1024];
    loop {
        let read = stream.read(&mut buffer).await?;
        if let Some(end) = buffer[..read].iter().position(|byte| *byte == b'\n') {
            line.extend_from_slice(&buffer[..end]);
            return Ok(line);
        }
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the line is too long or has no end"));
        }
        line.extend_from_slice(&buffer[..read]);
    }
}

/// The status reported by the running agent.
pub async fn status(config: &Config) -> Result<Status, LocalError> {
    match ask(config, Request::Status).await? {
        Reply::Status(status) => Ok(*status),
        Reply::Error(sentence) => Err(LocalError::Refused(sentence)),
        Reply::Done(other) => Err(LocalError::Malformed(other)),
    }
}

/// Makes the next boot bring what NixOS cannot switch to.
pub async fn at_boot(config: &Config) -> Result<String, LocalError> {
    done(ask(config, Request::AtBoot).await?)
}

/// Makes the running agent ask the controller now.
pub async fn check_now(config: &Config) -> Result<String, LocalError> {
    done(ask(config, Request::CheckNow).await?)
}

/// Makes the running agent go back to the previous system.
pub async fn rollback(config: &Config) -> Result<String, LocalError> {
    done(ask(config, Request::Rollback).await?)
}

/// Makes the running agent begin nothing new until then, or until resumed.
pub async fn pause(config: &Config, until: Option<UnixMillis>) -> Result<String, LocalError> {
    done(ask(config, Request::Pause { until }).await?)
}

pub async fn resume(config: &Config) -> Result<String, LocalError> {
    done(ask(config, Request::Resume).await?)
}

/// Makes the running agent try the newest generation again.
pub async fn retry(config: &Config) -> Result<String, LocalError> {
    done(ask(config, Request::Retry).await?)
}

/// Makes the running agent generate a new key.
pub async fn rotate_key(config: &Config) -> Result<String, LocalError> {
    done(ask(config, Request::RotateKey).await?)
}

fn done(reply: Reply) -> Result<String, LocalError> {
    match reply {
        Reply::Done(sentence) => Ok(sentence),
        Reply::Error(sentence) => Err(LocalError::Refused(sentence)),
        Reply::Status(_) => Err(LocalError::Malformed("a status".into())),
    }
}

async fn ask(config: &Config, request: Request) -> Result<Reply, LocalError> {
    ask_within(config, request, START_LIMIT).await
}

/// Waits up to `patience` for an agent that was just started, by a person or after a switch.
async fn ask_within(config: &Config, request: Request, patience: Duration) -> Result<Reply, LocalError> {
    let clock = SystemClock::new();
    loop {
        let answer = ask_once(config, request).await;
        if !matches!(answer, Err(LocalError::NotRunning)) || !is_coming(config).await {
            return answer;
        }
        let waited = clock.awake();
        if waited >= patience {
            return Err(LocalError::NotListening(patience));
        }
        tokio::time::sleep(look(waited, LONGEST_LOOK)).await;
    }
}

/// Without an enrolment the agent does not listen.
async fn is_coming(config: &Config) -> bool {
    let class = match Identity::enrolment(&config.state_dir) {
        Ok(Some(enrolment)) => enrolment.class,
        Ok(None) => return false,
        // Members of the group cannot read it.
        Err(_) if cfg!(target_os = "macos") => Class::Darwin,
        Err(_) => Class::Nixos,
    };
    service::is_up_or_coming(&Layout::new(config, class)).await
}

async fn ask_once(config: &Config, request: Request) -> Result<Reply, LocalError> {
    let own = ask_at(&config.state_dir.join(SOCKET), request).await;
    match own {
        // Users other than root may be members of the group.
        Err(LocalError::NotAllowed) if config.group.is_some() => {
            ask_at(&shared_socket(config), request).await
        }
        answer => answer,
    }
}

async fn ask_at(path: &Path, request: Request) -> Result<Reply, LocalError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => LocalError::NotRunning,
        io::ErrorKind::PermissionDenied => LocalError::NotAllowed,
        _ => LocalError::Socket { path: path.to_path_buf(), source },
    };
    let limit = ANSWER_LIMIT + READ_LIMIT;
    let asked = async {
        let mut stream = UnixStream::connect(path).await.map_err(failed)?;
        let mut line =
            serde_json::to_vec(&request).map_err(|error| LocalError::Malformed(error.to_string()))?;
        line.push(b'\n');
        stream.write_all(&line).await.map_err(failed)?;
        let line = read_line(&mut stream, MAX_REPLY_BYTES).await.map_err(failed)?;
        serde_json::from_slice(&line).map_err(|error| LocalError::Malformed(error.to_string()))
    };
    timeout(limit, asked).await.map_err(|_| LocalError::Slow(limit))?
}

#[cfg(test)]
mod tests;
