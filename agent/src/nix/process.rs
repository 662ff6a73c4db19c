//! Runs one Nix process with limits on time, memory and disk, and ends its whole group when it is not wanted any more.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use muster_protocol::clock::{Clock as _, SystemClock};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

use super::NixError;

/// How much of the output is kept, from its end.
const TAIL_BYTES: usize = 16 * 1024;
/// The longest line that is logged.
const MAX_LOG_LINE: usize = 1024;
/// Nix ends its builders itself when it is asked to; afterwards the group is killed.
const GRACE: Duration = Duration::from_secs(10);
/// How often the free space is looked at.
const SPACE_INTERVAL: Duration = Duration::from_secs(2);
/// Below this a fetch or a build is ended, so that the agent and the machine can still write.
pub const RESERVE_BYTES: u64 = 128 * 1024 * 1024;

/// What a process left.
pub struct Finished {
    pub status: ExitStatus,
    /// The end of what it wrote to stderr.
    pub stderr: String,
}

/// Limits of one process.
pub struct Limits {
    pub time: Duration,
    /// A folder of the disk whose free space is watched.
    pub disk: Option<PathBuf>,
}

/// Runs `command` to its end. Dropping the future ends it.
pub async fn run(mut command: Command, what: &str, limits: &Limits) -> Result<Finished, NixError> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|source| NixError::Run { program: program.clone(), source })?;
    let stderr = child.stderr.take();
    let mut group = Group { child: Some(child) };
    let work = async {
        let stderr = follow(stderr).await;
        let status = group.wait().await.map_err(|source| NixError::Run { program, source })?;
        Ok(Finished { status, stderr })
    };
    tokio::select! {
        finished = tokio::time::timeout(limits.time, work) => {
            finished.unwrap_or_else(|_| Err(NixError::TimedOut { what: what.to_owned(), limit: limits.time }))
        }
        free = watch(limits.disk.as_deref()) => Err(NixError::NoSpace(free)),
    }
}

/// Ends with the free space when it falls below the reserve.
async fn watch(disk: Option<&Path>) -> u64 {
    loop {
        if let Some(free) = disk.and_then(|disk| free_bytes(disk).ok())
            && free < RESERVE_BYTES
        {
            return free;
        }
        tokio::time::sleep(SPACE_INTERVAL).await;
    }
}

/// What an unprivileged process could still write below `folder`.
pub fn free_bytes(folder: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// The end of a long output; each line goes to the log as it comes.
async fn follow(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let (mut tail, mut line, mut buffer) = (Vec::new(), Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        for &byte in &buffer[..read] {
            if byte == b'\n' {
                tracing::debug!(target: "muster_agent::nix", "{}", String::from_utf8_lossy(&line));
                line.clear();
            } else if line.len() < MAX_LOG_LINE {
                line.push(byte);
            }
        }
        tail.extend_from_slice(&buffer[..read]);
        if tail.len() > 2 * TAIL_BYTES {
            tail.drain(..tail.len() - TAIL_BYTES);
        }
    }
    String::from_utf8_lossy(&tail[tail.len().saturating_sub(TAIL_BYTES)..]).into_owned()
}

/// A child that leads its own process group; when dropped before its end the whole group is ended.
struct Group {
    child: Option<Child>,
}

impl Group {
    async fn wait(&mut self) -> io::Result<ExitStatus> {
        let Some(child) = &mut self.child else { return Err(io::Error::other("it was waited for twice")) };
        let status = child.wait().await?;
        self.child = None;
        Ok(status)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let Some(group) = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) else { return };
        let _ = kill_process_group(group, Signal::TERM);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            let _ = kill_process_group(group, Signal::KILL);
            return;
        };
        runtime.spawn(async move {
            let _ = tokio::time::timeout(GRACE, child.wait()).await;
            let _ = kill_process_group(group, Signal::KILL);
        });
    }
}

/// Runs a short command without a runtime and returns its status and everything that it wrote (stdout, then stderr).
pub fn run_sync(
    mut command: std::process::Command,
    what: &str,
    limit: Duration,
) -> Result<(ExitStatus, String), NixError> {
    use std::os::unix::process::CommandExt as _;
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |source| NixError::Run { program: program.clone(), source };
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(failed)?;
    let readers = (child.stdout.take().map(read_in_thread), child.stderr.take().map(read_in_thread));
    let clock = SystemClock::new();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if clock.awake() > limit {
            if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = child.wait();
            return Err(NixError::TimedOut { what: what.to_owned(), limit });
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let text = |reader: Option<std::thread::JoinHandle<String>>| {
        reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
    };
    Ok((status, text(readers.0) + &text(readers.1)))
}

fn read_in_thread(stream: impl io::Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut start = Vec::new();
        let mut stream = stream;
        let _ = io::Read::take(&mut stream, TAIL_BYTES as u64).read_to_end(&mut start);
        // A full pipe would stop the process, so the rest is read as well.
        let _ = io::copy(&mut stream, &mut io::sink());
        String::from_utf8_lossy(&start).into_owned()
    })
}
