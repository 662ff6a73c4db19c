//! Running Nix on the operator's computer, and saying in short what it said at length.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

/// Evaluating nixpkgs for one machine takes seconds to minutes; an evaluation that takes this long hangs.
pub const EVALUATION_LIMIT: Duration = Duration::from_secs(30 * 60);
/// The most that is read of what Nix prints, in bytes.
const MAX_OUTPUT: u64 = 64 * 1024 * 1024;
const MAX_MESSAGE_LINES: usize = 8;

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
        Ok(stdout)
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
    let all = [&["--extra-experimental-features", "nix-command flakes"], arguments].concat();
    run_with("nix", &all, ca, limit).await
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

/// The innermost `error:` of Nix's trace, with its place, in a few lines.
///
/// Nix 2.8 prints one `error: MESSAGE` and the frames after it; newer ones print `error:` alone, the frames from the
/// outside in, and `error: MESSAGE` last.
pub fn shorten(stderr: &str) -> String {
    let plain = without_colours(stderr);
    let lines: Vec<&str> = plain.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let begins = |line: &&str| line.strip_prefix("error:").is_some_and(|rest| !rest.trim().is_empty());
    let Some(first) = lines.iter().rposition(begins) else {
        let tail = lines.len().saturating_sub(MAX_MESSAGE_LINES);
        let text = lines[tail..].join("\n");
        return if text.is_empty() { "Nix failed and printed nothing".to_owned() } else { text };
    };
    let mut message = vec![lines[first].trim_start_matches("error:").trim()];
    for line in &lines[first + 1..] {
        let frame = line.starts_with('…') || line.starts_with("(use '--show-trace'") || is_source(line);
        if line.starts_with("warning:") || message.len() >= MAX_MESSAGE_LINES {
            break;
        }
        if !frame {
            message.push(line);
        }
    }
    message.join("\n")
}

/// A quoted line of source: `12| text` or `| ^`.
fn is_source(line: &str) -> bool {
    line.trim_start_matches(|c: char| c.is_ascii_digit()).starts_with('|')
}

fn without_colours(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c == '\u{1b}' {
            rest.by_ref().find(char::is_ascii_alphabetic);
        } else {
            plain.push(c);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_nix_2_8_is_told_in_short() {
        let said = "warning: Git tree '/x' is dirty\nerror: undefined variable 'pkg'\n\n       at /x/flake.nix:7:30:\n\n            \
                    6|   a = 1;\n            7|   b = pkg;\n             |       ^\n            8| }\n(use '--show-trace' to show detailed location information)\n";
        assert_eq!(shorten(said), "undefined variable 'pkg'\nat /x/flake.nix:7:30:");
    }

    #[test]
    fn an_error_of_nix_2_26_is_told_in_short() {
        let said = "\u{1b}[31;1merror:\u{1b}[0m\n       … while evaluating the attribute 'drvPath'\n\n       \
                    \u{1b}[31;1merror:\u{1b}[0m attribute 'x' missing\n       at /x/flake.nix:1:1:\n            1| {\n             | ^\n";
        assert_eq!(shorten(said), "attribute 'x' missing\nat /x/flake.nix:1:1:");
    }

    #[test]
    fn silence_is_told_as_such() {
        assert_eq!(shorten("\n"), "Nix failed and printed nothing");
    }

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
