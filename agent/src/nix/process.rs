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
use crate::platform::process as programs;

/// How much of the output is kept, from its end.
const TAIL_BYTES: usize = 16 * 1024;
/// The longest part of a line that is logged, and that is heard at all.
const MAX_LOG_LINE: usize = 1024;
const MAX_LINE: usize = 64 * 1024;
/// Nix ends its builders itself when it is asked to; afterwards the group is killed.
const GRACE: Duration = Duration::from_secs(10);
/// How often the free space is looked at.
const SPACE_INTERVAL: Duration = Duration::from_secs(2);
/// How often the memory of a process is looked at, where the kernel holds it to no limit, and how long that may take.
const MEMORY_INTERVAL: Duration = Duration::from_secs(1);
const PS_LIMIT: Duration = Duration::from_secs(5);
/// It says how much memory a process has, on every system.
const PS: &str = "/bin/ps";
/// Below this a fetch or a build is ended, so that the agent and the machine can still write.
pub const RESERVE_BYTES: u64 = 128 * 1024 * 1024;
/// What a Nix that builds nothing may take. One that builds hands its limits down to compilers, so it has none.
pub const MOST_MEMORY: u64 = 4 * 1024 * 1024 * 1024;

/// What a process left.
pub struct Finished {
    pub status: ExitStatus,
    /// The end of what it wrote to stderr, as the listener gave it on.
    pub stderr: String,
}

/// Hears every line that a process writes to stderr.
pub trait Listener {
    /// Gives on what is worth keeping of it.
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
    /// Memory of its own, in bytes. Linux holds the process to it; on a Mac it is looked at, and ended when it has more.
    pub memory: Option<u64>,
    /// A folder of the disk whose free space is watched, and how much must stay free.
    pub disk: Option<(PathBuf, u64)>,
}

/// Runs `command` to its end. Dropping the future ends it.
pub async fn run(
    mut command: Command,
    what: &str,
    limits: &Limits,
    listener: &mut dyn Listener,
) -> Result<Finished, NixError> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|source| NixError::Run { program: program.clone(), source })?;
    let pid = child.id();
    restrict(pid, limits.memory);
    let stderr = child.stderr.take();
    let mut group = Group { child: Some(child) };
    let work = async {
        let stderr = follow(stderr, listener).await;
        let status = group.wait().await.map_err(|source| NixError::Run { program, source })?;
        Ok(Finished { status, stderr })
    };
    tokio::select! {
        finished = tokio::time::timeout(limits.time, work) => {
            finished.unwrap_or_else(|_| Err(NixError::TimedOut { what: what.to_owned(), limit: limits.time }))
        }
        reserve = watch(limits.disk.as_ref()) => Err(NixError::NoSpace(reserve)),
        limit = watch_memory(pid, limits.memory) => Err(NixError::TooMuchMemory { what: what.to_owned(), limit }),
    }
}

/// Ends when the process has more memory than it may have. Where the kernel sees to that, nobody looks.
async fn watch_memory(pid: Option<u32>, limit: Option<u64>) -> u64 {
    match pid.zip(limit).filter(|_| !programs::LIMITS_MEMORY) {
        Some((pid, limit)) => outgrows(pid, limit, PS).await,
        None => std::future::pending().await,
    }
}

/// Ends when the process has more than this, as `ps` sees it.
async fn outgrows(pid: u32, limit: u64, ps: &str) -> u64 {
    loop {
        if resident(pid, ps).await.is_some_and(|bytes| bytes > limit) {
            return limit;
        }
        tokio::time::sleep(MEMORY_INTERVAL).await;
    }
}

/// The memory that a process has, in bytes; `ps` says it in KiB.
async fn resident(pid: u32, ps: &str) -> Option<u64> {
    let mut command = Command::new(ps);
    command.args(["-o", "rss=", "-p", &pid.to_string()]).stdin(Stdio::null()).stderr(Stdio::null());
    let asked = tokio::time::timeout(PS_LIMIT, command.kill_on_drop(true).output()).await;
    let answer = asked.ok()?.ok()?;
    String::from_utf8_lossy(&answer.stdout).trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Ends when less than the reserve is free.
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

/// What an unprivileged process could still write below `folder`.
pub fn free_bytes(folder: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// The end of a long output; each line goes to the listener, and what that gives on to the log, as it comes.
async fn follow(stream: Option<impl AsyncRead + Unpin>, listener: &mut dyn Listener) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let (mut tail, mut line, mut buffer) = (String::new(), Vec::new(), [0; 4096]);
    let mut hear = |line: &[u8]| {
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
                hear(line.strip_suffix(b"\n").unwrap_or(&line));
                line.clear();
            }
        }
    }
    if !line.is_empty() {
        hear(&line);
    }
    tail.split_off(tail.ceil_char_boundary(tail.len().saturating_sub(TAIL_BYTES)))
}

/// Runs a command to its end and gives each line of its stdout to `take`; its status and the end of its stderr.
pub async fn lines(
    mut command: Command,
    what: &str,
    limit: Duration,
    mut take: impl FnMut(&str),
) -> Result<Finished, NixError> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|source| NixError::Run { program: program.clone(), source })?;
    restrict(child.id(), Some(MOST_MEMORY));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let mut group = Group { child: Some(child) };
    let mut listener = Lines(&mut take);
    let mut plain = Plain;
    let work = async {
        let (_, stderr) = tokio::join!(follow(stdout, &mut listener), follow(stderr, &mut plain));
        let status = group.wait().await.map_err(|source| NixError::Run { program, source })?;
        Ok(Finished { status, stderr })
    };
    let late = || NixError::TimedOut { what: what.to_owned(), limit };
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(late()))
}

/// Hands lines on and keeps none.
struct Lines<'a, F: FnMut(&str)>(&'a mut F);

impl<F: FnMut(&str)> Listener for Lines<'_, F> {
    fn line(&mut self, line: &str) -> Option<String> {
        (self.0)(line);
        None
    }
}

fn restrict(pid: Option<u32>, memory: Option<u64>) {
    let Some(pid) = pid else { return };
    programs::unprotect(pid);
    if let Some(bytes) = memory {
        programs::limit_memory(pid, bytes);
    }
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
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(failed)?;
    restrict(Some(child.id()), Some(MOST_MEMORY));
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
        // It waits until the limits are there: they are set right after it was started.
        let script = "while [ $(ulimit -d) = unlimited ] || [ $(cat /proc/$$/oom_score_adj) != 250 ]; do :; done; \
            ulimit -d >&2";
        let limits = Limits { memory: Some(64 * 1024 * 1024), ..limits(Duration::from_secs(60)) };
        let finished = run(sh(script), "it", &limits, &mut Plain).await.unwrap();
        assert_eq!(finished.stderr, "65536\n");
        let script = "while [ $(cat /proc/$$/oom_score_adj) != 250 ]; do :; done; ulimit -d";
        let mut command = std::process::Command::new("/bin/sh");
        let (_, text) = run_sync(
            {
                command.args(["-c", script]);
                command
            },
            "it",
            Duration::from_secs(60),
        )
        .unwrap();
        assert_ne!(text, "unlimited\n");
    }

    #[tokio::test]
    async fn where_the_kernel_holds_nothing_to_a_limit_a_process_that_outgrows_it_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let ps = folder.path().join("ps");
        // It grows by a MiB between two looks, and what is asked for is this very process.
        let grows = "echo >> $0.looks; [ \"$*\" = '-o rss= -p 4711' ] && echo \"  $(( $(wc -l < $0.looks) * 1024 ))\"";
        crate::platform::tests::script(&ps, grows);
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
        let finished = run(sh(script), "it", &limits(Duration::from_secs(60)), &mut Plain).await.unwrap();
        assert_eq!(finished.status.code(), Some(3));
        assert!(finished.stderr.ends_with("line 19999\n") && finished.stderr.len() <= TAIL_BYTES);
    }

    #[tokio::test]
    async fn lines_of_any_length_and_without_an_end_are_heard_in_bounds() {
        let script =
            "printf 'one\\ntwo'; head -c 200000 /dev/zero | tr '\\0' x; printf '\\nlast'; echo err >&2";
        let mut heard = Vec::new();
        let finished =
            lines(sh(script), "it", Duration::from_secs(60), |line| heard.push(line.to_owned())).await;
        assert_eq!(finished.unwrap().stderr, "err\n");
        assert_eq!((heard[0].as_str(), heard[2].as_str()), ("one", "last"));
        assert!(heard[1].starts_with("twoxx") && heard[1].len() == MAX_LINE);
    }

    #[tokio::test]
    async fn failure_mode_23_what_takes_too_long_is_ended_with_its_whole_group() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", file.display());
        let error =
            run(sh(&script), "waiting", &limits(Duration::from_millis(300)), &mut Plain).await.err().unwrap();
        assert!(matches!(error, NixError::TimedOut { .. }), "{error}");
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
        let error = run(sh("sleep 1000"), "it", &limits, &mut Plain).await.err().unwrap();
        assert!(matches!(error, NixError::NoSpace(_)), "{error}");
    }

    #[test]
    fn a_short_command_gives_all_that_it_wrote_and_is_ended_at_its_limit() {
        let command = |script: &str| {
            let mut command = std::process::Command::new("/bin/sh");
            command.args(["-c", script]);
            command
        };
        let script = "echo out; echo err >&2; head -c 300000 /dev/zero; exit 4";
        let (status, text) = run_sync(command(script), "it", Duration::from_secs(60)).unwrap();
        assert_eq!(status.code(), Some(4));
        assert!(text.starts_with("out\n") && text.ends_with("err\n") && text.len() < 2 * TAIL_BYTES);
        let late = run_sync(command("sleep 1000"), "waiting", Duration::from_millis(50));
        assert!(matches!(late, Err(NixError::TimedOut { .. })));
    }
}
