//! Runs a process, reads each line it writes, limits its time, memory and disk space, and kills its whole
//! group when it is no longer wanted.

use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

use super::error::ProcessError;
use super::limits::{LIMITS_MEMORY, free_bytes, restrict};

/// How much of the output is kept, from its end.
const TAIL_BYTES: usize = 16 * 1024;
/// The longest part of a line that is logged or passed to the listener.
const MAX_LOG_LINE: usize = 1024;
const MAX_LINE: usize = 64 * 1024;
/// Nix ends its builders itself when asked to; afterwards the group is killed.
const GRACE: Duration = Duration::from_secs(10);
/// How often the free space is checked.
const SPACE_INTERVAL: Duration = Duration::from_secs(2);
/// How often a process's memory is checked if the kernel does not limit it, and how long that may take.
const MEMORY_INTERVAL: Duration = Duration::from_secs(1);
const PS_LIMIT: Duration = Duration::from_secs(5);
/// Reports a process's memory on every system.
const PS: &str = "/bin/ps";
/// The result of a process.
pub struct Ended {
    pub status: ExitStatus,
    /// The end of its stderr, as the listener passed it on.
    pub stderr: String,
}

/// Receives every line that a process writes to stderr.
pub trait Listener {
    /// Returns what is worth keeping of it.
    fn line(&mut self, line: &str) -> Option<String>;
}

/// Keeps every line as it is.
pub struct Plain;

impl Listener for Plain {
    fn line(&mut self, line: &str) -> Option<String> {
        Some(line.to_owned())
    }
}

/// Limits of one process.
pub struct Limits {
    pub time: Duration,
    /// Its own memory, in bytes. Linux enforces it; on a Mac it is checked, and the process killed if it uses
    /// more.
    pub memory: Option<u64>,
    /// A folder of the disk whose free space is watched, and how much must remain.
    pub disk: Option<(PathBuf, u64)>,
}

/// Runs `command` to its end. Dropping the future kills it.
pub async fn follow(
    mut command: Command,
    what: &str,
    limits: &Limits,
    listener: &mut dyn Listener,
) -> Result<Ended, ProcessError> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    let mut child =
        command.spawn().map_err(|source| ProcessError::Run { program: program.clone(), source })?;
    let pid = child.id();
    restrict(pid, limits.memory);
    let stderr = child.stderr.take();
    let mut group = Group { child: Some(child) };
    let work = async {
        let stderr = hear(stderr, listener).await;
        let status = group.wait().await.map_err(|source| ProcessError::Run { program, source })?;
        Ok(Ended { status, stderr })
    };
    tokio::select! {
        finished = tokio::time::timeout(limits.time, work) => {
            let late = |_| Err(ProcessError::TimedOut { what: what.to_owned(), limit: limits.time });
            finished.unwrap_or_else(late)
        }
        reserve = watch(limits.disk.as_ref()) => Err(ProcessError::NoSpace(reserve)),
        limit = watch_memory(pid, limits.memory) => {
            Err(ProcessError::TooMuchMemory { what: what.to_owned(), limit })
        }
    }
}

/// Returns when the process uses more memory than allowed. Never, if the kernel enforces the limit.
async fn watch_memory(pid: Option<u32>, limit: Option<u64>) -> u64 {
    match pid.zip(limit).filter(|_| !LIMITS_MEMORY) {
        Some((pid, limit)) => outgrows(pid, limit, PS).await,
        None => std::future::pending().await,
    }
}

/// Returns when the process uses more than this according to `ps`.
async fn outgrows(pid: u32, limit: u64, ps: &str) -> u64 {
    loop {
        if resident(pid, ps).await.is_some_and(|bytes| bytes > limit) {
            return limit;
        }
        tokio::time::sleep(MEMORY_INTERVAL).await;
    }
}

/// The memory of the process in bytes; `ps` prints KiB.
async fn resident(pid: u32, ps: &str) -> Option<u64> {
    let mut command = Command::new(ps);
    command.args(["-o", "rss=", "-p", &pid.to_string()]).stdin(Stdio::null()).stderr(Stdio::null());
    let asked = tokio::time::timeout(PS_LIMIT, command.kill_on_drop(true).output()).await;
    let answer = asked.ok()?.ok()?;
    String::from_utf8_lossy(&answer.stdout).trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Returns when less than the reserve is free.
async fn watch(disk: Option<&(PathBuf, u64)>) -> u64 {
    loop {
        if let Some((folder, reserve)) = disk
            && free_bytes(folder).is_ok_and(|free| free < *reserve)
        {
            return *reserve;
        }
        tokio::time::sleep(SPACE_INTERVAL).await;
    }
}

/// The end of a long output; each line goes to the listener, and what that returns to the log, as it arrives.
async fn hear(stream: Option<impl AsyncRead + Unpin>, listener: &mut dyn Listener) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let (mut tail, mut line, mut buffer) = (String::new(), Vec::new(), [0; 4096]);
    let mut take = |line: &[u8]| {
        let Some(text) = listener.line(&String::from_utf8_lossy(line)) else { return };
        tracing::debug!(target: "muster_agent::nix", "{}", &text[..text.floor_char_boundary(MAX_LOG_LINE)]);
        tail.push_str(&text);
        tail.push('\n');
        if tail.len() > 2 * TAIL_BYTES {
            tail.drain(..tail.ceil_char_boundary(tail.len() - TAIL_BYTES));
        }
    };
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        for part in buffer[..read].split_inclusive(|byte| *byte == b'\n') {
            let room = MAX_LINE.saturating_sub(line.len());
            line.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                take(line.strip_suffix(b"\n").unwrap_or(&line));
                line.clear();
            }
        }
    }
    if !line.is_empty() {
        take(&line);
    }
    tail.split_off(tail.ceil_char_boundary(tail.len().saturating_sub(TAIL_BYTES)))
}

/// Runs a command to its end and passes each line of its stdout to `take`; returns its status and the end of
/// its stderr.
pub async fn lines(
    mut command: Command,
    what: &str,
    limit: Duration,
    memory: u64,
    mut take: impl FnMut(&str),
) -> Result<Ended, ProcessError> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child =
        command.spawn().map_err(|source| ProcessError::Run { program: program.clone(), source })?;
    restrict(child.id(), Some(memory));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let mut group = Group { child: Some(child) };
    let mut listener = Lines(&mut take);
    let mut plain = Plain;
    let work = async {
        let (_, stderr) = tokio::join!(hear(stdout, &mut listener), hear(stderr, &mut plain));
        let status = group.wait().await.map_err(|source| ProcessError::Run { program, source })?;
        Ok(Ended { status, stderr })
    };
    let late = || ProcessError::TimedOut { what: what.to_owned(), limit };
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(late()))
}

/// Passes lines on and keeps none.
struct Lines<'a, F: FnMut(&str)>(&'a mut F);

impl<F: FnMut(&str)> Listener for Lines<'_, F> {
    fn line(&mut self, line: &str) -> Option<String> {
        (self.0)(line);
        None
    }
}

/// A child that leads its own process group; if dropped before its end the whole group is killed.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }
    fn limits(time: Duration) -> Limits {
        Limits { time, memory: None, disk: None }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn nix_has_a_memory_limit_of_its_own_and_is_ended_by_the_kernel_before_the_agent() {
        // Waits until the limits are there: they are set right after the start.
        let script = "while [ $(ulimit -d) = unlimited ] || [ $(cat /proc/$$/oom_score_adj) != 250 ]; do :; done; \
            ulimit -d >&2";
        let limits = Limits { memory: Some(64 * 1024 * 1024), ..limits(Duration::from_secs(60)) };
        let finished = follow(sh(script), "it", &limits, &mut Plain).await.unwrap();
        assert_eq!(finished.stderr, "65536\n");
    }

    #[tokio::test]
    async fn where_the_kernel_holds_nothing_to_a_limit_a_process_that_outgrows_it_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let ps = folder.path().join("ps");
        // It grows by a MiB between two looks, and the query is about this very process.
        let grows = "echo >> $0.looks; [ \"$*\" = '-o rss= -p 4711' ] && echo \"  $(( $(wc -l < $0.looks) * \
            1024 ))\"";
        crate::scripts::script(&ps, grows);
        let ps = ps.to_str().unwrap();
        assert_eq!(resident(4711, ps).await, Some(1024 * 1024));
        assert_eq!(resident(4712, ps).await, None, "one that is gone has none");
        assert_eq!(resident(4711, "/nowhere/ps").await, None);
        let limit = 4 * 1024 * 1024;
        assert_eq!(outgrows(4711, limit, ps).await, limit);
        let looks = std::fs::read_to_string(format!("{ps}.looks")).unwrap();
        assert_eq!(looks.lines().count(), 5, "the first that is above it");
    }

    #[tokio::test]
    async fn the_end_of_a_long_output_is_kept_and_nothing_more() {
        let script = "i=0; while [ $i -lt 20000 ]; do echo line $i >&2; i=$((i+1)); done; exit 3";
        let finished = follow(sh(script), "it", &limits(Duration::from_secs(60)), &mut Plain).await.unwrap();
        assert_eq!(finished.status.code(), Some(3));
        assert!(finished.stderr.ends_with("line 19999\n") && finished.stderr.len() <= TAIL_BYTES);
    }

    #[tokio::test]
    async fn lines_of_any_length_and_without_an_end_are_heard_in_bounds() {
        let script =
            "printf 'one\\ntwo'; head -c 200000 /dev/zero | tr '\\0' x; printf '\\nlast'; echo err >&2";
        let mut heard = Vec::new();
        let finished = lines(sh(script), "it", Duration::from_secs(60), 4 << 30, |line| {
            heard.push(line.to_owned());
        })
        .await;
        assert_eq!(finished.unwrap().stderr, "err\n");
        assert_eq!((heard[0].as_str(), heard[2].as_str()), ("one", "last"));
        assert!(heard[1].starts_with("twoxx") && heard[1].len() == MAX_LINE);
    }

    #[tokio::test]
    async fn failure_mode_23_what_takes_too_long_is_ended_with_its_whole_group() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", file.display());
        let error = follow(sh(&script), "waiting", &limits(Duration::from_millis(300)), &mut Plain)
            .await
            .err()
            .unwrap();
        assert!(matches!(error, ProcessError::TimedOut { .. }), "{error}");
        let child: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        let child = Pid::from_raw(child).unwrap();
        // The orphan is reaped by init; until then it is a zombie, which is dead as well.
        let alive = || {
            rustix::process::test_kill_process(child).is_ok()
                && !std::fs::read_to_string(format!("/proc/{}/stat", child.as_raw_nonzero()))
                    .is_ok_and(|stat| stat.contains(") Z "))
        };
        tokio::time::timeout(Duration::from_secs(20), async {
            while alive() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn failure_mode_10_a_disk_that_runs_full_ends_it() {
        let disk = Some((PathBuf::from("/"), u64::MAX));
        let limits = Limits { time: Duration::from_secs(60), memory: None, disk };
        let error = follow(sh("sleep 1000"), "it", &limits, &mut Plain).await.err().unwrap();
        assert!(matches!(error, ProcessError::NoSpace(_)), "{error}");
    }
}
