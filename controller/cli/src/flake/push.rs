//! Copies between this computer's Nix store and the controller's cache: derivations in a few requests where
//! that is possible, all else with Nix's own `nix copy` and the gate between them.

use std::time::Duration;

use muster_protocol::ids::StorePath;

use super::derivations::Derivations;
use super::gate::{Cache, Gate, Trouble, Way};
use super::nix::{NixError, in_command_lines, nix_here};
use super::upload::upload;

/// The time limit of one push; a closure of sources is at most a few gigabytes.
const PUSH_LIMIT: Duration = Duration::from_secs(6 * 3600);
/// The time limit for fetching one derivation and its sources, whatever the controller does.
const FETCH_LIMIT: Duration = Duration::from_secs(30 * 60);

#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error("cannot open a way from Nix to the controller's cache")]
    Gate(#[source] std::io::Error),
    #[error("cannot push the derivations to the controller's cache")]
    Copy(#[source] NixError),
    #[error("cannot fetch {0} from the controller's cache")]
    Fetch(StorePath, #[source] NixError),
    #[error("the controller's cache did not give {path} within {} minutes", .limit.as_secs() / 60)]
    TooLong { path: StorePath, limit: Duration },
    #[error("cannot use the controller's cache: {0}")]
    Away(String, #[source] NixError),
    #[error("the controller's cache is not believed: {0}")]
    Altered(String),
    #[error(
        "the draft needs {0}, which is not named by its content, so it cannot be looked into without \
         believing somebody"
    )]
    Unnamed(StorePath),
}

impl PushError {
    /// What the signer can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Altered(_) => {
                "the draft may not be what it says. Sign it with --unseen only if you know by other means \
                 what it does"
            }
            Self::Unnamed(_) => {
                "the flake has it by builtins.storePath, for example: bring it here from a cache that you \
                 trust and evaluate the flake here, then repeat; or sign with --unseen if you know by other \
                 means what the draft does"
            }
            _ => {
                "repeat this once the controller answers well. Sign with --unseen only if you know by other \
                 means what the draft does"
            }
        }
    }
}

/// Copies the closures of these derivations, without what the cache already has.
pub async fn push(
    derivations: &[StorePath],
    files: &mut Derivations,
    cache: &Cache,
) -> Result<(), PushError> {
    match upload(derivations, files, cache).await {
        Some(sources) if sources.is_empty() => Ok(()),
        Some(sources) => push_by_nix(&sources, &[], cache).await,
        None => push_by_nix(derivations, &[OF_DERIVATIONS], cache).await,
    }
}

/// The paths are derivations, and mean themselves and not what they build.
const OF_DERIVATIONS: &str = "--derivation";

async fn push_by_nix(paths: &[StorePath], how: &[&str], cache: &Cache) -> Result<(), PushError> {
    let gate = Gate::open(cache, Way::Push).await.map_err(PushError::Gate)?;
    let store = format!("{}?compression=zstd", gate.url());
    for paths in in_command_lines(paths) {
        let copied = copy(&gate, &[how, &["--to", &store]].concat(), paths, PUSH_LIMIT).await;
        copied.map_err(|error| explained(gate.trouble(), error, PushError::Copy))?;
    }
    Ok(())
}

/// Fetches a derivation and what it refers to into this computer's store, to be inspected. Derivations and
/// sources are content-addressed, so nothing fetched this way is taken on trust.
pub async fn fetch(derivation: &StorePath, cache: &Cache) -> Result<(), PushError> {
    let gate = Gate::open(cache, Way::Fetch).await.map_err(PushError::Gate)?;
    let mut from = vec![OF_DERIVATIONS, "--from", gate.url()];
    from.extend(["--option", "require-sigs", "true", "--option", "trusted-public-keys", ""]);
    let fetched = copy(&gate, &from, std::slice::from_ref(derivation), FETCH_LIMIT).await;
    let failed = |error| match error {
        NixError::TooLong { limit, .. } => PushError::TooLong { path: derivation.clone(), limit },
        error => PushError::Fetch(derivation.clone(), error),
    };
    fetched.map_err(|error| explained(gate.trouble(), error, failed))
}

/// The gate's reason says more than Nix can.
fn explained(
    trouble: Option<Trouble>,
    error: NixError,
    otherwise: impl FnOnce(NixError) -> PushError,
) -> PushError {
    match (trouble, error) {
        (Some(Trouble::Altered(why)), _) => PushError::Altered(why),
        (Some(Trouble::Unnamed(path)), _) => PushError::Unnamed(path),
        (Some(Trouble::Away(why)), error @ NixError::Failed(_)) => PushError::Away(why, error),
        (_, error) => otherwise(error),
    }
}

async fn copy(gate: &Gate, how: &[&str], paths: &[StorePath], limit: Duration) -> Result<(), NixError> {
    let netrc = gate.netrc();
    let mut arguments = vec!["copy"];
    arguments.extend(how);
    arguments.extend(["--option", "netrc-file", &netrc]);
    // Nix's cached answers for this URL belong to another run.
    for setting in ["narinfo-cache-negative-ttl", "narinfo-cache-positive-ttl"] {
        arguments.extend(["--option", setting, "0"]);
    }
    arguments.extend(paths.iter().map(StorePath::as_str));
    nix_here(&arguments, limit).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_cache_blames_it_for_what_it_altered_alone() {
        let path: StorePath = "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-hello".parse().unwrap();
        let told = |trouble: Option<Trouble>, error: NixError| {
            let failed = |error| PushError::Fetch(path.clone(), error);
            let error = explained(trouble, error, failed);
            (error.to_string(), error.hint())
        };
        let failed = || NixError::Failed("error: 404".to_owned());
        let (words, hint) = told(Some(Trouble::Altered("bent".to_owned())), failed());
        assert!(words.contains("not believed: bent") && hint.contains("may not be what it says"), "{words}");
        for (trouble, wanted) in [
            (
                Some(Trouble::Unnamed(path.clone())),
                "the draft needs /nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-hello, which",
            ),
            (Some(Trouble::Away("it is slow".to_owned())), "it is slow"),
            (None, "cannot fetch"),
        ] {
            let (words, hint) = told(trouble, failed());
            assert!(words.contains(wanted) && !words.contains("not believed"), "{words}");
            assert!(!hint.contains("may not be"), "{hint}");
        }
        let long = PushError::TooLong { path: path.clone(), limit: FETCH_LIMIT };
        assert!(long.to_string().ends_with("within 30 minutes"), "{long}");
    }
}
