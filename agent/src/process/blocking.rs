//! Runs a program to its end, or to a limit and then kills everything it started. Blocks its thread.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::report::MAX_LOG_TAIL;
use rustix::process::Signal;

use super::family::{family, own, signal};
use super::limits::{free_bytes, unprotect};
use super::table::table;
use crate::core::backoff::look;

/// How much of a program's output is searched for what its exit code does not say.
const MAX_SAID: u64 = 256 * 1024;
/// With less free space than this no output is kept.
const ROOM_FOR_WORDS: u64 = 1024 * 1024;
/// How long a process has to exit by itself after it was asked to.
const GRACE: Duration = Duration::from_secs(2);
/// The longest pause between two looks at a child.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Its exit code, or 128 plus the number of the signal that killed it.
    pub exit: i32,
    /// The end of its output, as much as is reported.
    pub output: String,
    /// More of the same.
    pub said: String,
    /// Whether it was killed at the limit.
    pub timed_out: bool,
}

/// Runs `command` in a process group of its own. `scratch` is a folder for its output.
///
/// The output goes to an unnamed file rather than a pipe: the file outlives this process, so a program whose
/// watcher is killed does not die while writing, and a daemon that it leaves behind blocks nothing.
pub fn run(command: &mut Command, limit: Duration, scratch: &Path) -> io::Result<Finished> {
    // On a full disk a program is run without keeping its output: an undo must not depend on that.
    run_into(nameless(scratch).ok(), command, limit)
}

/// The same for one of the system's own programs, whose short output is kept in memory: it is called often.
#[cfg(target_os = "linux")]
pub fn ask(command: &mut Command, limit: Duration, scratch: &Path) -> io::Result<Finished> {
    run_into(in_memory().or_else(|_| nameless(scratch)).ok(), command, limit)
}

#[cfg(not(target_os = "linux"))]
pub use run as ask;

fn run_into(mut output: Option<File>, command: &mut Command, limit: Duration) -> io::Result<Finished> {
    let clock = SystemClock::new();
    let end_of = || match &output {
        Some(file) => file.try_clone().map(Stdio::from),
        None => Ok(Stdio::null()),
    };
    command.stdin(Stdio::null()).stdout(end_of()?).stderr(end_of()?);
    let mut child = command.process_group(0).spawn()?;
    unprotect(child.id());
    let (status, timed_out) = match wait(&mut child, &clock, limit)? {
        Some(status) => (status, false),
        None => (end(&mut child, &clock)?, true),
    };
    let said = output.as_mut().and_then(|file| tail(file).ok()).unwrap_or_default();
    let mut from = said.len().saturating_sub(MAX_LOG_TAIL);
    while !said.is_char_boundary(from) {
        from += 1;
    }
    Ok(Finished { exit: exit_code(status), output: said[from..].to_owned(), said, timed_out })
}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

#[cfg(target_os = "linux")]
fn in_memory() -> io::Result<File> {
    use rustix::fs::{MemfdFlags, OFlags, fcntl_setfl, memfd_create};
    let file = File::from(memfd_create("output", MemfdFlags::CLOEXEC)?);
    // Both streams append to it.
    fcntl_setfl(&file, OFlags::APPEND)?;
    Ok(file)
}

fn nameless(scratch: &Path) -> io::Result<File> {
    // A file can be created on a full disk, but a script under `set -e` ends at the first line that it cannot
    // write.
    if free_bytes(scratch)? < ROOM_FOR_WORDS {
        return Err(io::ErrorKind::StorageFull.into());
    }
    let number = u64::from_le_bytes(muster_protocol::random::bytes().map_err(io::Error::other)?);
    let path = scratch.join(format!(".output-{number:016x}"));
    let file = OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

fn tail(file: &mut File) -> io::Result<String> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_SAID)))?;
    let mut bytes = Vec::new();
    file.take(MAX_SAID).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The status of `child`, or `None` if it still runs at the end of `limit`.
fn wait(child: &mut Child, clock: &SystemClock, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let began = clock.awake();
    let end = began.saturating_add(limit);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let now = clock.awake();
        let left = end.saturating_sub(now);
        if left.is_zero() {
            return Ok(None);
        }
        std::thread::sleep(look(now.saturating_sub(began), LONGEST_PAUSE).min(left));
    }
}

/// Ends a child and everything it started, by force after [`GRACE`].
fn end(child: &mut Child, clock: &SystemClock) -> io::Result<ExitStatus> {
    let family = family(&table()?, own(), i32::try_from(child.id()).unwrap_or(i32::MAX));
    signal(&family, Signal::TERM);
    let ended = wait(child, clock, GRACE)?;
    signal(&family, Signal::KILL);
    match ended {
        Some(status) => Ok(status),
        None => child.wait(),
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Pid, kill_process};

    use super::*;

    fn sh(text: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", text]);
        command
    }

    fn lives(pid: i32) -> bool {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !state.is_empty() && !state.contains(") Z ")
    }

    #[test]
    fn the_exit_code_and_the_end_of_the_output_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        for run in [run, ask] {
            let text = "echo out; echo err >&2; exit 7";
            let finished = run(&mut sh(text), Duration::from_secs(60), folder.path()).unwrap();
            let output = "out\nerr\n".to_owned();
            let expected = Finished { exit: 7, said: output.clone(), output, timed_out: false };
            assert_eq!(finished, expected);
            let long = run(&mut sh("seq 100000"), Duration::from_secs(60), folder.path()).unwrap();
            assert!(long.output.len() <= MAX_LOG_TAIL && long.output.ends_with("100000\n"));
            assert!(long.said.len() as u64 <= MAX_SAID && long.said.len() > MAX_LOG_TAIL);
            let killed = run(&mut sh("kill -9 $$"), Duration::from_secs(60), folder.path()).unwrap();
            assert_eq!(killed.exit, 137);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "no output is left behind");
    }

    #[test]
    fn where_no_output_can_be_kept_the_program_runs_all_the_same() {
        let finished = run(&mut sh("echo x; exit 5"), Duration::from_secs(60), Path::new("/no/such/folder"));
        let (output, said) = (String::new(), String::new());
        assert_eq!(finished.unwrap(), Finished { exit: 5, output, said, timed_out: false });
    }

    #[test]
    fn a_daemon_that_is_left_behind_holds_nothing_up() {
        let folder = tempfile::tempdir().unwrap();
        let finished = run(&mut sh("sleep 300 & echo $!"), Duration::from_secs(60), folder.path()).unwrap();
        assert!(!finished.timed_out);
        kill_process(Pid::from_raw(finished.output.trim().parse().unwrap()).unwrap(), Signal::KILL).unwrap();
    }

    #[test]
    fn at_the_limit_the_whole_family_is_ended_even_what_ignores_the_request() {
        let folder = tempfile::tempdir().unwrap();
        let text = "trap '' TERM; setsid sleep 300 & echo $!; sleep 301 & echo $!; wait";
        let finished = run(&mut sh(text), Duration::from_millis(300), folder.path()).unwrap();
        assert!(finished.timed_out);
        let children: Vec<i32> = finished.output.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(children.len(), 2);
        while children.iter().any(|pid| lives(*pid)) {
            std::thread::yield_now();
        }
    }
}
