//! Between this computer's Nix store and the controller's cache, with Nix's own `nix copy` and a gate between the two.

use std::time::Duration;

use muster_protocol::ids::StorePath;

use super::gate::{Cache, Gate, Way};
use super::nix::{NixError, nix_here};

/// How long one push may take; a closure of sources is at most a few gigabytes.
const PUSH_LIMIT: Duration = Duration::from_secs(6 * 3600);
/// How many paths one `nix copy` is given, so that the argument list stays short.
const PATHS_AT_ONCE: usize = 200;

#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error("cannot open a way from Nix to the controller's cache")]
    Gate(#[source] std::io::Error),
    #[error("cannot push the derivations to the controller's cache")]
    Copy(#[source] NixError),
    #[error("cannot fetch {0} from the controller's cache")]
    Fetch(StorePath, #[source] NixError),
    #[error("the controller's cache is not believed: {0}")]
    Altered(String),
}

/// Copies the whole closures of these derivations; what the cache has is not sent again.
pub async fn push(derivations: &[StorePath], cache: &Cache) -> Result<(), PushError> {
    let gate = Gate::open(cache, Way::Push).await.map_err(PushError::Gate)?;
    let store = format!("{}?compression=zstd", gate.url());
    for paths in derivations.chunks(PATHS_AT_ONCE) {
        let copied = copy(&gate, &["--to", &store], paths).await;
        copied.map_err(|error| gate.trouble().map_or(PushError::Copy(error), PushError::Altered))?;
    }
    Ok(())
}

/// Brings a derivation and what it names into this computer's store, to be looked at. Derivations and sources are named by
/// their content, so nothing that comes in this way is believed by anybody's word.
pub async fn fetch(derivation: &StorePath, cache: &Cache) -> Result<(), PushError> {
    let gate = Gate::open(cache, Way::Fetch).await.map_err(PushError::Gate)?;
    let mut from = vec!["--from", gate.url()];
    from.extend(["--option", "require-sigs", "true", "--option", "trusted-public-keys", ""]);
    let fetched = copy(&gate, &from, std::slice::from_ref(derivation)).await;
    let failed = |error| PushError::Fetch(derivation.clone(), error);
    fetched.map_err(|error| gate.trouble().map_or(failed(error), PushError::Altered))
}

async fn copy(gate: &Gate, how: &[&str], paths: &[StorePath]) -> Result<(), NixError> {
    let netrc = gate.netrc();
    let mut arguments = vec!["copy", "--derivation"];
    arguments.extend(how);
    arguments.extend(["--option", "netrc-file", &netrc]);
    // What Nix remembers of this URL is of another run.
    for setting in ["narinfo-cache-negative-ttl", "narinfo-cache-positive-ttl"] {
        arguments.extend(["--option", setting, "0"]);
    }
    arguments.extend(paths.iter().map(StorePath::as_str));
    nix_here(&arguments, PUSH_LIMIT).await.map(drop)
}
