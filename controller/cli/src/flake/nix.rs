//! Runs Nix on the operator's computer, and shortens its messages.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

pub use super::message::shorten;
use super::message::warnings;

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
    if status.success() {
        Ok(Printed { stdout, warnings: warnings(&String::from_utf8_lossy(&stderr)) })
    } else {
        Err(NixError::Failed(shorten(&String::from_utf8_lossy(&stderr))))
    }
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
