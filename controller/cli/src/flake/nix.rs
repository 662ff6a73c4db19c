//! Runs Nix on the operator's computer, and shortens its messages.

use std::process::Stdio;
use std::time::Duration;

use muster_protocol::ids::StorePath;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

pub use super::message::shorten;
use super::message::{MAX_WARNINGS, warnings};

/// Evaluating nixpkgs for one machine takes seconds to minutes; an evaluation that takes this long hangs.
pub const EVALUATION_LIMIT: Duration = Duration::from_secs(30 * 60);
/// The most bytes that are read of Nix's output.
const MAX_OUTPUT: u64 = 64 * 1024 * 1024;
const FEATURES: &[&str] = &["--extra-experimental-features", "nix-command flakes"];

#[derive(Debug, thiserror::Error)]
pub enum NixError {
    #[error("there is no `{program}` on PATH")]
    Missing { program: &'static str },
    #[error("cannot run `{program}`")]
    Start { program: &'static str, source: std::io::Error },
    #[error("`{program}` did not end within {} s", .limit.as_secs())]
    TooLong { program: &'static str, limit: Duration },
    #[error("{0}")]
    Failed(String),
    #[error("`{program}` printed what this version does not read: {reason}")]
    Format { program: &'static str, reason: String },
}

/// Runs a program of Nix to its end; returns its standard output, or its message.
pub async fn run(program: &'static str, arguments: &[&str], limit: Duration) -> Result<Vec<u8>, NixError> {
    run_noting(program, arguments, &[], limit).await.map(|printed| printed.stdout)
}

/// What a program of Nix printed on success.
#[derive(Debug, Default)]
pub struct Printed {
    pub stdout: Vec<u8>,
    pub warnings: Vec<String>,
}

async fn run_noting(
    program: &'static str,
    arguments: &[&str],
    variables: &[(&str, String)],
    limit: Duration,
) -> Result<Printed, NixError> {
    let Ended { success, stdout, stderr } = run_to_end(program, arguments, variables, limit).await?;
    if success {
        Ok(Printed { stdout, warnings: warnings(&stderr, MAX_WARNINGS) })
    } else {
        Err(NixError::Failed(shorten(&stderr)))
    }
}

/// How a program of Nix ended, and all that it printed.
#[derive(Debug)]
pub struct Ended {
    pub success: bool,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

async fn run_to_end(
    program: &'static str,
    arguments: &[&str],
    variables: &[(&str, String)],
    limit: Duration,
) -> Result<Ended, NixError> {
    let start = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => NixError::Missing { program },
        _ => NixError::Start { program, source },
    };
    let mut child = Command::new(program)
        .args(arguments)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let work = async {
        let (stdout, stderr, status) = tokio::join!(read_bounded(stdout), read_bounded(stderr), child.wait());
        Ok::<_, std::io::Error>((stdout?, stderr?, status?))
    };
    let (stdout, stderr, status) = tokio::time::timeout(limit, work)
        .await
        .map_err(|_| NixError::TooLong { program, limit })?
        .map_err(start)?;
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    Ok(Ended { success: status.success(), stdout, stderr })
}

/// Runs `nix` with the features that flakes need, whatever nix.conf says.
pub async fn nix(arguments: &[&str], limit: Duration) -> Result<Vec<u8>, NixError> {
    run("nix", &[FEATURES, arguments].concat(), limit).await
}

/// The same, for talking to this computer: the user's proxy is for the outside world.
pub async fn nix_here(arguments: &[&str], limit: Duration) -> Result<Vec<u8>, NixError> {
    let no_proxy = here(|name| std::env::var(name).ok());
    let printed = run_noting("nix", &[FEATURES, arguments].concat(), &no_proxy, limit).await?;
    Ok(printed.stdout)
}

/// curl prefers the lower-case name if it is set.
fn here(variable: impl Fn(&str) -> Option<String>) -> [(&'static str, String); 2] {
    ["no_proxy", "NO_PROXY"].map(|name| {
        let already = variable(name).filter(|value| !value.trim().is_empty());
        (name, already.map_or_else(|| "127.0.0.1".to_owned(), |value| format!("{value},127.0.0.1")))
    })
}

/// The same, with Nix's warnings.
pub async fn nix_noting(arguments: &[&str], limit: Duration) -> Result<Printed, NixError> {
    run_noting("nix", &[FEATURES, arguments].concat(), &[], limit).await
}

/// The same, whether it succeeds or not, with environment variables of its own.
pub async fn nix_to_end(
    arguments: &[&str],
    variables: &[(&str, String)],
    limit: Duration,
) -> Result<Ended, NixError> {
    run_to_end("nix", &[FEATURES, arguments].concat(), variables, limit).await
}

/// The paths in groups that fit in one command line each; macOS allows the fewest bytes, 1 MiB with the
/// environment.
pub fn in_command_lines(paths: &[StorePath]) -> Vec<&[StorePath]> {
    const MOST_BYTES: usize = 512 * 1024;
    let mut groups = Vec::new();
    let (mut begin, mut bytes) = (0, 0);
    for (at, path) in paths.iter().enumerate() {
        // With its terminator and its pointer.
        let more = path.as_str().len() + 9;
        if bytes + more > MOST_BYTES {
            groups.push(&paths[begin..at]);
            (begin, bytes) = (at, 0);
        }
        bytes += more;
    }
    if begin < paths.len() {
        groups.push(&paths[begin..]);
    }
    groups
}

async fn read_bounded(stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        let mut stream = stream.take(MAX_OUTPUT);
        stream.read_to_end(&mut bytes).await?;
        // Output past the limit is read and dropped, so that the program can finish.
        tokio::io::copy(&mut stream.into_inner(), &mut tokio::io::sink()).await?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let missing = run("no-such-program-of-nix", &[], EVALUATION_LIMIT).await.unwrap_err();
        assert_eq!(missing.to_string(), "there is no `no-such-program-of-nix` on PATH");
    }

    #[test]
    fn many_paths_are_split_so_that_a_command_line_takes_them() {
        let path = |n: usize| format!("/nix/store/{}-x{n}.drv", "0".repeat(32)).parse().unwrap();
        let paths: Vec<StorePath> = (0..20_000).map(path).collect();
        assert!(in_command_lines(&[]).is_empty());
        assert_eq!(in_command_lines(&paths[..1000]).len(), 1);
        let groups = in_command_lines(&paths);
        assert!(groups.len() > 1 && groups.iter().all(|group| !group.is_empty()), "{}", groups.len());
        assert_eq!(groups.concat(), paths);
    }

    #[tokio::test]
    async fn a_users_proxy_is_not_asked_for_this_computer_and_stays_for_the_others() {
        let set = |value: &str| here(|name| (name == "no_proxy").then(|| value.to_owned()));
        let alone = ("NO_PROXY", "127.0.0.1".to_owned());
        assert_eq!(set(""), [("no_proxy", "127.0.0.1".into()), alone.clone()]);
        let both = set(".corp,10.0.0.1");
        assert_eq!(both, [("no_proxy", ".corp,10.0.0.1,127.0.0.1".into()), alone]);
        let told = run_noting("printenv", &["no_proxy"], &both, EVALUATION_LIMIT).await.unwrap();
        assert_eq!(told.stdout, b".corp,10.0.0.1,127.0.0.1\n");
    }
}
