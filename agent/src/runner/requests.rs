//! Operators' requests to this machine, passed on by the controller: verified, followed once, and remembered
//! until they expire.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use muster_protocol::ids::Sha256;
use muster_protocol::keys::PublicKey;
use muster_protocol::report::{Asker, Attack};
use muster_protocol::request::{Asked, MachineRequest, RequestError, SignedRequest};
use serde::{Deserialize, Serialize};

use super::error::ContactError;
use super::shared::Shared;
use crate::client::Client;
use crate::durable;

/// The followed requests, in the state folder.
const FILE: &str = "requests.json";
const MAX_FILE_BYTES: u64 = 64 * 1024;
/// How many are remembered: those that expire last.
const MOST: usize = 64;

/// A followed request. None is followed twice, although the controller keeps passing it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Followed {
    id: Sha256,
    /// Unix seconds.
    ends: i64,
}

pub(super) struct Requests {
    path: PathBuf,
    followed: Vec<Followed>,
    /// The refused requests, so that each is reported once.
    refused: BTreeSet<Sha256>,
    /// The last requests passed on include one that nobody signed.
    forged: bool,
    /// Those whose execution was reported to the controller.
    reported: BTreeSet<Sha256>,
}

/// A refused request, and the attack.
pub(super) struct Refusal {
    pub attack: Attack,
    pub detail: String,
}

impl Requests {
    /// A damaged file counts as empty: at worst a key is replaced once more, and a generation tried once
    /// more.
    pub fn open(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let bytes = durable::read(&path, MAX_FILE_BYTES).ok().flatten();
        let followed = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Self { path, followed, refused: BTreeSet::new(), forged: false, reported: BTreeSet::new() }
    }

    pub fn has_forged(&self) -> bool {
        self.forged
    }

    /// Follows requests that are new. Returns refusals that were not reported yet.
    pub fn heard(
        &mut self,
        requests: &[SignedRequest],
        operators: &[PublicKey],
        shared: &Shared,
        client: &Client,
    ) -> Result<Vec<Refusal>, ContactError> {
        let (identity, now) = (&shared.identity, shared.clock.unix_seconds());
        let mut refused = Vec::new();
        self.forged = false;
        for signed in requests {
            let id = signed.id();
            if self.has(&id) || self.followed.iter().filter(|followed| followed.ends > now).count() >= MOST {
                continue;
            }
            match signed.verify(&identity.fleet, &identity.machine, operators, now) {
                Ok(request) => {
                    if follow(&request, signed.key, shared, client)? {
                        self.remember(id, request.ends, now)?;
                    }
                }
                Err(RequestError::NotAnOperator) => {
                    // It may belong to a root that is not held yet: look for that once.
                    if self.refused.len() < MOST && self.refused.insert(id) {
                        shared.asks.for_refresh();
                    }
                }
                Err(error) if error.is_attack() => {
                    self.forged = true;
                    if self.refused.len() < MOST && self.refused.insert(id) {
                        refused.push(Refusal { attack: Attack::ForgedSignature, detail: error.to_string() });
                    }
                }
                Err(error) => tracing::debug!("{error}"),
            }
        }
        let known: Vec<Sha256> = requests.iter().map(SignedRequest::id).filter(|id| self.has(id)).collect();
        // Each once: a list that changes all the time is no news.
        let before = self.reported.len();
        self.reported.extend(&known);
        let news = self.reported.len() > before;
        shared.heard.set_followed(known);
        if news {
            shared.wakes.changed();
        }
        Ok(refused)
    }

    fn has(&self, id: &Sha256) -> bool {
        self.followed.iter().any(|followed| followed.id == *id)
    }

    fn remember(&mut self, id: Sha256, ends: i64, now: i64) -> std::io::Result<()> {
        let mut followed = self.followed.clone();
        followed.retain(|followed| followed.ends > now);
        followed.push(Followed { id, ends });
        followed.sort_by_key(|followed| std::cmp::Reverse(followed.ends));
        followed.truncate(MOST);
        let json = serde_json::to_vec(&followed).map_err(std::io::Error::other)?;
        durable::write(&self.path, &json, 0o600)?;
        self.followed = followed;
        Ok(())
    }
}

/// Whether nothing more is to be done for it.
fn follow(
    request: &MachineRequest,
    key: PublicKey,
    shared: &Shared,
    client: &Client,
) -> Result<bool, ContactError> {
    match &request.asked {
        Asked::RotateKey { key: old } => Ok(shared.rotation_wanted(old, client)?),
        Asked::Retry { derivation, .. } => {
            let wanted = shared.heard.wanted().as_ref().map(|target| target.derivation.clone());
            if wanted.as_ref() != Some(derivation) {
                // For a generation other than the one held: it may arrive with the next metadata.
                return Ok(false);
            }
            match shared.retry(Asker::Operator { key }) {
                Ok(words) => tracing::info!("an operator asks: {words}"),
                // Under way it may still fail; if confirmed by now there is nothing to lift.
                Err(words) => {
                    tracing::debug!("an operator asks to try {derivation} again: {words}");
                    return Ok(shared.ledger.borrow().transaction().is_none());
                }
            }
            Ok(true)
        }
        Asked::Unknown => {
            tracing::debug!("an operator's request is not supported by this version");
            Ok(false)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_followed_is_remembered_until_its_end_and_never_without_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let mut requests = Requests::open(folder.path());
        for n in 0..100u8 {
            requests.remember(Sha256::of(&[n]), 1000 + i64::from(n), 0).unwrap();
        }
        let mut again = Requests::open(folder.path());
        assert_eq!(again.followed.len(), MOST);
        assert!(again.has(&Sha256::of(&[99])) && !again.has(&Sha256::of(&[1])));
        again.remember(Sha256::of(b"new"), 3000, 2000).unwrap();
        assert_eq!(Requests::open(folder.path()).followed.len(), 1, "the others have ended");
        std::fs::write(folder.path().join(FILE), "{").unwrap();
        assert!(Requests::open(folder.path()).followed.is_empty());
    }
}
