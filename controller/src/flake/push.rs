//! Between this computer's Nix store and the controller's cache, with Nix's own `nix copy`.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use muster_protocol::ids::StorePath;

use super::nix::{NixError, nix_with};

/// How long one push may take; a closure of sources is at most a few gigabytes.
const PUSH_LIMIT: Duration = Duration::from_secs(6 * 3600);
/// How many paths one `nix copy` is given, so that the argument list stays short.
const PATHS_AT_ONCE: usize = 200;

/// Where to push, and with what right.
pub struct Cache<'a> {
    /// `https://HOST:PORT`, without a slash at the end.
    pub url: &'a str,
    pub host: &'a str,
    pub bearer: &'a str,
    pub ca: Option<&'a Path>,
}

#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error("cannot keep the password for the cache in a temporary file")]
    Netrc(#[source] std::io::Error),
    #[error("cannot push the derivations to the controller's cache")]
    Copy(#[source] NixError),
    #[error("cannot fetch {0} from the controller's cache")]
    Fetch(StorePath, #[source] NixError),
}

/// Copies the whole closures of these derivations; what the cache has is not sent again.
pub async fn push(derivations: &[StorePath], cache: &Cache<'_>) -> Result<(), PushError> {
    let netrc = netrc(cache)?;
    let netrc_path = netrc.path().to_string_lossy().into_owned();
    let store = format!("{}{}?compression=zstd", cache.url, muster_protocol::api::CACHE);

    for paths in derivations.chunks(PATHS_AT_ONCE) {
        let mut arguments =
            vec!["copy", "--derivation", "--to", &store, "--option", "netrc-file", &netrc_path];
        // What Nix remembers of this URL may be of a controller that is gone.
        for setting in ["narinfo-cache-negative-ttl", "narinfo-cache-positive-ttl"] {
            arguments.extend(["--option", setting, "0"]);
        }
        arguments.extend(paths.iter().map(StorePath::as_str));
        nix_with(&arguments, cache.ca, PUSH_LIMIT).await.map_err(PushError::Copy)?;
    }
    Ok(())
}

/// Brings a derivation and what it names into this computer's store, to be looked at. Derivations and sources are named by
/// their content, so nothing that comes in this way is believed by anybody's word.
pub async fn fetch(derivation: &StorePath, cache: &Cache<'_>) -> Result<(), PushError> {
    let netrc = netrc(cache)?;
    let netrc_path = netrc.path().to_string_lossy().into_owned();
    let store = format!("{}{}", cache.url, muster_protocol::api::CACHE);
    let mut arguments = vec!["copy", "--derivation", "--from", &store, "--option", "netrc-file", &netrc_path];
    arguments.extend(["--option", "require-sigs", "true", "--option", "trusted-public-keys", ""]);
    for setting in ["narinfo-cache-negative-ttl", "narinfo-cache-positive-ttl"] {
        arguments.extend(["--option", setting, "0"]);
    }
    arguments.push(derivation.as_str());
    let fetched = nix_with(&arguments, cache.ca, PUSH_LIMIT).await;
    fetched.map(drop).map_err(|error| PushError::Fetch(derivation.clone(), error))
}

/// nix copy can only do HTTP Basic, and reads the password from a file in the form of netrc.
fn netrc(cache: &Cache<'_>) -> Result<tempfile::NamedTempFile, PushError> {
    let mut netrc = tempfile::NamedTempFile::new().map_err(PushError::Netrc)?;
    writeln!(netrc, "machine {} login operator password {}", cache.host, cache.bearer)
        .map_err(PushError::Netrc)?;
    netrc.flush().map_err(PushError::Netrc)?;
    Ok(netrc)
}
