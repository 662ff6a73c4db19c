//! Runs a program whose input or output is secret: both stay in memory, and its time is limited.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::secret::{SecretBytes, read_all};

/// The most bytes that are read of a program's standard error.
const MAX_WORDS: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("`{name}` cannot be run: {source}")]
    Run { name: String, source: std::io::Error },
    #[error("`{name}` did not end within {} s", .limit.as_secs())]
    TooLong { name: String, limit: Duration },
    #[error("`{name}` prints more than {limit} bytes")]
    TooMuch { name: String, limit: usize },
}

/// How a program ended.
pub struct Ended {
    /// The exit code, or `None` if it was killed by a signal.
    pub code: Option<i32>,
    pub output: SecretBytes,
    /// Its standard error: show it only if it cannot contain secrets.
    pub stderr: String,
}

impl Ended {
    pub fn well(&self) -> bool {
        self.code == Some(0)
    }
    /// How it ended, for display.
    pub fn how(&self) -> String {
        self.code
            .map_or_else(|| "was ended by a signal".to_owned(), |code| format!("ended with exit code {code}"))
    }
}

/// Runs `command` with `input` on its standard input.
pub async fn run(
    command: Command,
    input: &[u8],
    limit: Duration,
    max_output: usize,
) -> Result<Ended, ProgramError> {
    run_as(command, input, limit, max_output, false).await
}

/// The same in its own process group, so that everything it starts ends with it. It cannot prompt at a
/// terminal.
pub async fn run_alone(
    mut command: Command,
    limit: Duration,
    max_output: usize,
) -> Result<Ended, ProgramError> {
    command.process_group(0);
    run_as(command, b"", limit, max_output, true).await
}

/// Kills a process group, unless its leader has ended and been reaped: then the number may belong to another.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

async fn run_as(
    mut command: Command,
    input: &[u8],
    limit: Duration,
    max_output: usize,
    alone: bool,
) -> Result<Ended, ProgramError> {
    let name = shown(command.as_std().get_program().as_ref());
    let failed = |source| ProgramError::Run { name: name.clone(), source };
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    let leader = child.id().filter(|_| alone).and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let mut group = Group(leader);
    let (Some(mut stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(failed(std::io::Error::other("it has no pipes")));
    };
    let work = async {
        let feed = async {
            // A program that does not read its input to the end is judged by its exit code.
            let _ = stdin.write_all(input).await;
            drop(stdin);
        };
        let ((), output, stderr) =
            tokio::join!(feed, read_all(stdout, max_output), read_all(stderr, MAX_WORDS));
        let (output, stderr) = (output?, stderr?);
        if output.len() > max_output {
            return Ok(Err(ProgramError::TooMuch { name: name.clone(), limit: max_output }));
        }
        let code = child.wait().await?.code();
        group.0 = None;
        Ok(Ok(Ended { code, output, stderr: String::from_utf8_lossy(&stderr).into_owned() }))
    };
    tokio::time::timeout(limit, work)
        .await
        .map_err(|_| ProgramError::TooLong { name: name.clone(), limit })?
        .map_err(failed)?
}

fn shown(program: &Path) -> String {
    program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned()
}

/// The first program of this name in the folders of PATH.
pub fn find(name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(name)).find(|path| {
        path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }
    const SOON: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn input_output_and_words_are_kept_apart() {
        let ended = run(shell("cat; echo words >&2; exit 3"), b"input", SOON, 100).await.unwrap();
        assert_eq!(
            (ended.code, &ended.output[..], ended.stderr.as_str()),
            (Some(3), &b"input"[..], "words\n")
        );
        assert_eq!(ended.how(), "ended with exit code 3");
    }

    #[tokio::test]
    async fn a_program_that_ignores_its_input_is_no_error() {
        let ended = run(shell("exit 0"), &vec![7; 1_000_000], SOON, 100).await.unwrap();
        assert!(ended.well());
    }

    #[tokio::test]
    async fn all_that_a_program_started_ends_with_it_at_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let script = format!("sleep 1000 & echo $! > {}/pid; wait", folder.path().display());
        let limit = Duration::from_millis(500);
        let error = run_alone(shell(&script), limit, 100).await.err().unwrap();
        assert!(matches!(error, ProgramError::TooLong { .. }), "{error}");
        let pid: i32 = std::fs::read_to_string(folder.path().join("pid")).unwrap().trim().parse().unwrap();
        let gone = || {
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            state.is_empty() || state.contains(") Z ")
        };
        for _ in 0..1000 {
            if gone() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{pid} still runs");
    }

    #[tokio::test]
    async fn time_and_output_are_limited() {
        let error = run(shell("exec sleep 1000"), b"", Duration::from_millis(50), 100).await.err().unwrap();
        assert!(matches!(error, ProgramError::TooLong { .. }), "{error}");
        let error = run(shell("exec yes"), b"", SOON, 1000).await.err().unwrap();
        assert_eq!(error.to_string(), "`sh` prints more than 1000 bytes");
    }
}
