//! Running Nix on the operator's computer, and saying in short what it said at length.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

pub use super::message::shorten;
use super::message::warnings;

/// Evaluating nixpkgs for one machine takes seconds to minutes; an evaluation that takes this long hangs.
pub const EVALUATION_LIMIT: Duration = Duration::from_secs(30 * 60);
/// The most that is read of what Nix prints, in bytes.
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

/// Runs a program of Nix to its end; its standard output, or its own message.
pub async fn run(program: &'static str, arguments: &[&str], limit: Duration) -> Result<Vec<u8>, NixError> {
    run_with(program, arguments, None, limit).await
}

/// The same, believing this certificate authority alone. Nix 2.8 has no setting for it, but every version reads the
/// variable.
pub async fn run_with(
    program: &'static str,
    arguments: &[&str],
    ca: Option<&Path>,
    limit: Duration,
) -> Result<Vec<u8>, NixError> {
    run_noting(program, arguments, ca, limit).await.map(|printed| printed.stdout)
}

/// What a program of Nix printed when it succeeded.
#[derive(Debug, Default)]
pub struct Printed {
    pub stdout: Vec<u8>,
    pub warnings: Vec<String>,
}

async fn run_noting(
    program: &'static str,
    arguments: &[&str],
    ca: Option<&Path>,
    limit: Duration,
) -> Result<Printed, NixError> {
    let start = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => NixError::Missing { program },
        _ => NixError::Start { program, source },
    };
    let mut child = Command::new(program)
        .args(arguments)
        .envs(ca.map(|path| ("NIX_SSL_CERT_FILE", path)))
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

/// `nix` with the features that flakes need, whatever nix.conf says.
pub async fn nix(arguments: &[&str], limit: Duration) -> Result<Vec<u8>, NixError> {
    nix_with(arguments, None, limit).await
}

/// The same, believing this certificate authority alone.
pub async fn nix_with(arguments: &[&str], ca: Option<&Path>, limit: Duration) -> Result<Vec<u8>, NixError> {
    run_with("nix", &[FEATURES, arguments].concat(), ca, limit).await
}

/// The same, with what Nix warned of.
pub async fn nix_noting(arguments: &[&str], limit: Duration) -> Result<Printed, NixError> {
    run_noting("nix", &[FEATURES, arguments].concat(), None, limit).await
}

async fn read_bounded(stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        let mut stream = stream.take(MAX_OUTPUT);
        stream.read_to_end(&mut bytes).await?;
        // What is past the limit is read and dropped, so that the program can end.
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
    async fn the_fleets_authority_reaches_nix_in_the_way_that_every_version_reads() {
        let ca = Path::new("/fleet/ca.pem");
        let told = run_with("printenv", &["NIX_SSL_CERT_FILE"], Some(ca), EVALUATION_LIMIT).await.unwrap();
        assert_eq!(told, b"/fleet/ca.pem\n");
    }
}
