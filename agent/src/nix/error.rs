//! What can go wrong with Nix, and its own messages shortened.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use muster_protocol::ids::StorePath;
use muster_protocol::machine::MachineError;
use muster_protocol::report::{Attack, MAX_LOG_TAIL};

use crate::core::blame::Blame;
use crate::process::{ProcessError, without_colours};

/// The longest message of Nix within a sentence.
const MAX_MESSAGE: usize = 600;

#[derive(Debug, thiserror::Error)]
pub enum NixError {
    #[error("there is no {program} on this machine (looked in {searched}): install Nix")]
    NotFound { program: String, searched: String },
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("{derivation} cannot be fetched from the controller's cache: {message}")]
    Fetch { derivation: StorePath, message: String },
    #[error("what the controller's cache delivered for {derivation} is refused: {detail}")]
    Altered { derivation: StorePath, detail: String },
    #[error("the controller's cache cannot be handed to Nix on 127.0.0.1: {0}")]
    Cache(io::Error),
    #[error("Nix refuses {0}: what the cache delivered does not match its name")]
    NotValid(StorePath),
    #[error("{path} is not a readable derivation: {detail}")]
    Derivation { path: StorePath, detail: String },
    #[error("{derivation}: {source}")]
    Platform { derivation: StorePath, source: MachineError },
    #[error("{derivation} makes {found}, but {wanted} was signed; nothing was activated")]
    WrongOutput { derivation: StorePath, wanted: StorePath, found: String },
    /// `log` is the end of the build's output.
    #[error("{derivation} cannot be built: {message}")]
    Build { derivation: StorePath, message: String, log: String, blame: Blame },
    #[error("Nix cannot build here: {0}")]
    BuildFolder(String),
    #[error("{what}: {message}")]
    Failed { what: String, message: String },
}

impl NixError {
    /// The attack, had the answer been believed.
    pub fn attack(&self) -> Option<Attack> {
        match self {
            Self::WrongOutput { .. } => Some(Attack::WrongOutput),
            Self::Platform { .. } => Some(Attack::WrongClass),
            Self::NotValid(_) | Self::Altered { .. } => Some(Attack::AlteredArchive),
            Self::Fetch { message, .. } => is_altered(message).then_some(Attack::AlteredArchive),
            _ => None,
        }
    }
    /// Whether the same derivation would fail in the same way again.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::WrongOutput { .. } | Self::Platform { .. } | Self::Derivation { .. } => true,
            Self::Build { blame, .. } => *blame == Blame::Derivation,
            _ => false,
        }
    }
    /// Whether a builder ran and failed because of the machine.
    pub fn broke_off_a_build(&self) -> bool {
        matches!(self, Self::Build { blame: Blame::Machine(_), log, .. } if log.contains("builder"))
    }
    /// For a report: the line with the cause first, then the end of the build's output.
    pub fn detail(&self) -> String {
        let Self::Build { message, log, blame, .. } = self else { return self.to_string() };
        let cause = match blame {
            Blame::Machine(words) if !words.is_empty() => {
                let words = words.strip_prefix("error: ").unwrap_or(words);
                format!("the machine was in the way, which says nothing against the derivation: {words}")
            }
            _ => message.clone(),
        };
        let cause = &cause[..cause.floor_char_boundary(MAX_LOG_TAIL / 4)];
        let log = &log[log.ceil_char_boundary(log.len().saturating_sub(MAX_LOG_TAIL * 3 / 4 - 1))..];
        if log.is_empty() { cause.to_owned() } else { format!("{cause}\n{log}") }
    }
}

/// What Nix 2.8 to 2.31 print about an archive, or its description, that does not match its name. An
/// interrupted transfer is reported differently, and is no attack.
fn is_altered(message: &str) -> bool {
    const WORDS: [&str; 11] = [
        "hash mismatch",
        // Nix parses a derivation before it checks its address.
        "error parsing derivation",
        // A directory's archive in place of a derivation's.
        "inside NAR file",
        "lacks a valid signature",
        "lacks a signature by a trusted key",
        "is corrupt",
        "NAR info file",
        // From a description; the agent asks only for store paths.
        "is not in the Nix store",
        "bad archive",
        "input is not a Nix archive",
        "decompress",
    ];
    WORDS.iter().any(|words| message.contains(words)) && !message.contains("unable to download")
}

/// What Nix prints about a path, and a cache's description of itself, that do not exist. It prints the same
/// if the cache answers 401 or 403 (`http-binary-cache-store.cc`), which hides the cause.
const ABSENT: [&str; 2] = ["is not a valid store path", "does not appear to be a binary cache"];

/// Why a derivation could not be fetched; names both causes where Nix's message does not tell them apart.
pub fn of_fetch(message: String) -> String {
    if ABSENT.iter().any(|words| message.contains(words)) {
        return format!("the cache does not have it, or does not let this machine read ({message})");
    }
    message
}

/// Nix's error in one line: from the first `error:` on, without colours and hints about flags.
pub fn message(output: &str, status: ExitStatus) -> String {
    let plain = without_colours(output);
    let lines: Vec<&str> = plain.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let error = lines.iter().position(|line| line.starts_with("error:"));
    if let (None, Some(signal)) = (error, status.signal()) {
        // Its last output was what it was about to do.
        return format!("Nix was ended by signal {signal} from outside");
    }
    let first = error.unwrap_or(lines.len().saturating_sub(3));
    let useful = lines[first..].iter().filter(|line| !line.starts_with("(use '--"));
    let mut text = useful.copied().collect::<Vec<_>>().join(" ");
    if let Some(rest) = text.strip_prefix("error: ") {
        text = rest.to_owned();
    }
    if text.len() > MAX_MESSAGE {
        text.truncate(text.floor_char_boundary(MAX_MESSAGE));
        text.push('…');
    }
    if text.is_empty() { format!("it ended with {status} and said nothing") } else { text }
}

/// The end of an output, as much as a report holds.
pub fn tail(output: &str) -> String {
    let plain = without_colours(output);
    plain[plain.ceil_char_boundary(plain.len().saturating_sub(MAX_LOG_TAIL))..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nixs_message_is_cut_to_what_matters() {
        let output = "these derivations will be built:\n  /nix/store/x.drv\n\u{1b}[31;1merror:\u{1b}[0m builder for \
            '/nix/store/x.drv' failed with exit code 1;\n       last 1 log lines:\n       > no\n(use \
            '--show-trace' to see)\n";
        let text = message(output, ExitStatus::from_raw(256));
        assert_eq!(text, "builder for '/nix/store/x.drv' failed with exit code 1; last 1 log lines: > no");
        assert!(message(&format!("error: {}", "é".repeat(5000)), ExitStatus::from_raw(256)).len() < 700);
        assert!(message("", ExitStatus::from_raw(256)).contains("said nothing"));
    }

    #[test]
    fn a_report_begins_with_the_line_that_says_why() {
        let output = "these 2 derivations will be built:\n  /nix/store/x.drv\n";
        let killed = ExitStatus::from_raw(9);
        assert_eq!(message(output, killed), "Nix was ended by signal 9 from outside");
        let derivation: StorePath = "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-x.drv".parse().unwrap();
        let words = "error: builder for '/nix/store/x.drv' failed due to signal 9 (Killed)".to_owned();
        let log = "é\n".repeat(10_000);
        for (blame, first) in [
            (Blame::Machine(words), "failed due to signal 9 (Killed)"),
            (Blame::Derivation, "no such compiler"),
        ] {
            let (derivation, message) = (derivation.clone(), "no such compiler".to_owned());
            let error = NixError::Build { derivation, message, log: tail(&log), blame };
            let detail = error.detail();
            assert!(detail.lines().next().unwrap().ends_with(first), "{detail}");
            assert!(detail.len() <= MAX_LOG_TAIL, "a report would cut its beginning off");
        }
    }

    #[test]
    fn what_a_cache_keeps_back_is_told_with_both_causes() {
        let text = of_fetch("path '/nix/store/x.drv' is not a valid store path".into());
        assert!(text.starts_with("the cache does not have it, or does not let this machine read"), "{text}");
        assert_eq!(of_fetch("unable to download".into()), "unable to download");
    }

    #[test]
    fn an_altered_archive_is_told_from_a_transfer_that_broke_off() {
        for altered in [
            "hash mismatch importing path '/nix/store/x'; specified: sha256:a got: sha256:b",
            "NAR info file 'http://127.0.0.1:1/cache/x.narinfo' is corrupt",
            "cannot add path '/nix/store/x' because it lacks a valid signature",
            "failed to decompress the archive: truncated input",
            "bad archive: input doesn't look like a Nix archive",
            "path '/etc/shadow' is not in the Nix store",
            "error parsing derivation '/nix/store/x.drv': error: expected string 'Derive(['",
            "path '' inside NAR file is not a regular file",
        ] {
            assert!(is_altered(altered), "{altered}");
        }
        for trouble in [
            "unable to download 'http://127.0.0.1:1/cache/nar/x.nar.zst': Transferred a partial file (18)",
            "unable to download 'http://127.0.0.1:1/cache/x.narinfo': HTTP error 503",
            "writing to file: No space left on device",
        ] {
            assert!(!is_altered(trouble), "{trouble}");
        }
    }

    #[test]
    fn the_end_of_an_output_fits_a_report() {
        let log = tail(&"é\n".repeat(10_000));
        assert!(log.len() <= MAX_LOG_TAIL && log.len() > MAX_LOG_TAIL - 4);
    }
}
