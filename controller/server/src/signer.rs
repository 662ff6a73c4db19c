//! The online key. It signs timestamps and nothing else; the controller never holds an operator key or a root
//! key.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use muster_protocol::ids::MachineName;
use muster_protocol::keys::{PublicKey, SecretKey};
use muster_protocol::tuf::TufError;
use muster_protocol::tuf::repository::sign_timestamp;

use crate::config::{ConfigError, read_online_key};
use crate::core::publication::timestamp_version;
use crate::core::rows::Timestamp;

#[derive(Debug, Clone)]
pub struct OnlineSigner {
    key: SecretKey,
    /// How long a timestamp is valid, in seconds.
    life: i64,
}

/// The online key read from its file; reread when a root no longer names it.
#[derive(Debug)]
pub struct OnlineKey {
    file: PathBuf,
    held: RwLock<Arc<OnlineSigner>>,
}

/// The controller cannot sign timestamps that machines would accept.
#[derive(Debug, thiserror::Error)]
#[error(
    "the newest root names another key for timestamps than this controller holds: put that key in the place \
        of online_key in controller.toml, or have the root holders name this one"
)]
pub struct NotNamed;

impl OnlineKey {
    pub fn new(file: PathBuf, signer: OnlineSigner) -> Self {
        Self { file, held: RwLock::new(Arc::new(signer)) }
    }

    /// The signer, if `named` accepts its key or the one now in its file.
    pub fn signer(&self, named: impl Fn(&PublicKey) -> bool) -> Option<Arc<OnlineSigner>> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner).clone();
        if named(&held.key.public()) {
            return Some(held);
        }
        match read_online_key(&self.file) {
            Ok(key) if named(&key.public()) => {
                tracing::info!(key = key.public().short(), "a new online key signs timestamps");
                let signer = Arc::new(OnlineSigner::new(key, held.life));
                *self.held.write().unwrap_or_else(PoisonError::into_inner) = signer.clone();
                Some(signer)
            }
            Ok(_) => None,
            Err(error) => {
                let error: ConfigError = error;
                tracing::warn!("{error}");
                None
            }
        }
    }
}

impl OnlineSigner {
    pub fn new(key: SecretKey, life: i64) -> Self {
        Self { key, life }
    }

    /// A timestamp over a snapshot, given the last version used.
    pub fn timestamp(
        &self,
        machine: &MachineName,
        snapshot: &[u8],
        last: u64,
        now_s: i64,
    ) -> Result<Timestamp, TufError> {
        let version = timestamp_version(last, now_s);
        let expires = now_s.saturating_add(self.life);
        let bytes = sign_timestamp(machine, snapshot, version, expires, &self.key)?;
        Ok(Timestamp { bytes, version, expires, key: self.key.public() })
    }

    /// Whether a timestamp has at least half of its lifetime left and is signed by a key that the root names
    /// for it, this one or another controller's.
    pub fn is_good(&self, timestamp: &Timestamp, named: impl Fn(&PublicKey) -> bool, now_s: i64) -> bool {
        let left = timestamp.expires.saturating_sub(now_s);
        named(&timestamp.key) && left >= self.life / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn timestamp(version: u64, expires: i64, key: &SecretKey) -> Timestamp {
        Timestamp { bytes: vec![], version, expires, key: key.public() }
    }

    #[test]
    fn a_timestamp_is_renewed_after_half_its_life_or_when_its_key_is_no_longer_named() {
        let (key, other) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
        let signer = OnlineSigner::new(key.clone(), 1000);
        let named = |found: &PublicKey| [key.public(), other.public()].contains(found);
        assert!(signer.is_good(&timestamp(1, NOW + 1000, &key), named, NOW));
        assert!(signer.is_good(&timestamp(1, NOW + 500, &key), named, NOW));
        assert!(!signer.is_good(&timestamp(1, NOW + 499, &key), named, NOW));
        assert!(signer.is_good(&timestamp(1, NOW + 1000, &other), named, NOW), "another controller's");
        assert!(!signer.is_good(&timestamp(1, NOW + 1000, &SecretKey::generate().unwrap()), named, NOW));
    }
}
