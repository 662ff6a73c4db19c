//! Runs a short command without an async runtime and captures its output through pipes.

use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use muster_protocol::clock::{Clock as _, SystemClock};
use rustix::process::{Pid, Signal, kill_process_group};

use super::error::ProcessError;
use super::limits::restrict;

/// How much of each stream is kept, from its beginning.
const KEPT_BYTES: u64 = 16 * 1024;

/// Runs it with this memory limit, in bytes, and returns its status and its output (stdout, then stderr).
pub fn capture(
    mut command: Command,
    what: &str,
    limit: Duration,
    memory: u64,
) -> Result<(ExitStatus, String), ProcessError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |source| ProcessError::Run { program: program.clone(), source };
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(failed)?;
    restrict(Some(child.id()), Some(memory));
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
            return Err(ProcessError::TimedOut { what: what.to_owned(), limit });
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
        let _ = io::Read::take(&mut stream, KEPT_BYTES).read_to_end(&mut start);
        // A full pipe would block the process, so the rest is read as well.
        let _ = io::copy(&mut stream, &mut io::sink());
        String::from_utf8_lossy(&start).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: u64 = 4 * 1024 * 1024 * 1024;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_short_command_has_a_memory_limit_of_its_own_too() {
        let script = "while [ $(cat /proc/$$/oom_score_adj) != 250 ]; do :; done; ulimit -d";
        let (_, text) = capture(sh(script), "it", Duration::from_secs(60), MEMORY).unwrap();
        assert_ne!(text, "unlimited\n");
    }

    #[test]
    fn a_short_command_gives_all_that_it_wrote_and_is_ended_at_its_limit() {
        let script = "echo out; echo err >&2; head -c 300000 /dev/zero; exit 4";
        let (status, text) = capture(sh(script), "it", Duration::from_secs(60), MEMORY).unwrap();
        assert_eq!(status.code(), Some(4));
        assert!(text.starts_with("out\n") && text.ends_with("err\n") && text.len() < 2 * 16 * 1024);
        let late = capture(sh("sleep 1000"), "waiting", Duration::from_millis(50), MEMORY);
        assert!(matches!(late, Err(ProcessError::TimedOut { .. })));
    }
}
